"""Pictures in one folder, their masks in another."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from lrp_jax.checks import listed
from lrp_jax.datasets.base import Pictures, Sample, pictures_in
from lrp_jax.datasets.label_files import paired
from lrp_jax.pictures import Levels, Preprocessing, read_mask


class MaskFolder(Pictures):
    """Pictures in ``images/`` and their masks in ``masks/``, under the same names or else the same stems.

    Masks are read by :func:`lrp_jax.pictures.read_mask`.

    Args:
        path: the folder that holds both.
        preprocessing: of the model; pictures and masks are resized to its size, as in the paper, without a crop.
        images: how many to take, evenly spaced; None: all.
        levels: the samples that are black and white in pictures of more than 8 bits: :func:`lrp_jax.read_image`.

    Raises:
        OSError: there is no such folder.
        ValueError: there are no pictures, or one has no mask, or several.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocessing: Preprocessing,
        *,
        images: int | None = None,
        levels: Levels | None = None,
    ) -> None:
        super().__init__(path, preprocessing, squash=True, images=images, levels=levels)
        pictures = pictures_in(self.path / "images", channels=preprocessing.channels)
        masks = pictures_in(self.path / "masks")
        image_names, mask_names = ([PurePosixPath(path.name) for path in paths] for paths in (pictures, masks))
        found = paired(image_names, mask_names, lambda i: str(masks[i]))
        missing = [picture.name for picture, places in zip(pictures, found, strict=True) if not places]
        if missing:
            raise ValueError(f"{self.path / 'masks'} holds no mask of {listed(missing, 5)}.")
        for picture, places in zip(pictures, found, strict=True):
            if len(places) > 1:
                those = listed([masks[i].name for i in places], 3)
                raise ValueError(f"{self.path / 'masks'} holds several masks of {picture.name}: {those}.")
        self.pairs = [(pictures[i], masks[found[i][0]]) for i in self.spaced(len(pictures))]

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, i: int) -> str:
        """The picture's file name."""
        return self.pairs[i][0].name

    def sample(self, i: int) -> Sample:
        """Picture i and its mask."""
        image, mask = self.pairs[i]
        return self.masked(self.read(image), read_mask(mask))
