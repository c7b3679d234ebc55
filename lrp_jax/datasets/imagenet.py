"""ImageNet, and datasets laid out like it: pictures of known classes, and ImageNet-Segmentation."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from lrp_jax.checks import listed
from lrp_jax.datasets.base import Pictures, Sample, is_left_behind, pictures_in, walk
from lrp_jax.datasets.conventions import ORDERS, described, of_folders
from lrp_jax.datasets.label_files import of_pictures
from lrp_jax.files import needs
from lrp_jax.labels import Labels
from lrp_jax.pictures import Levels, Preprocessing, preprocess


class ImageNetSegmentation(Pictures):
    """The ImageNet-Segmentation dataset (Guillaumin et al. 2014), ``gtsegs_ijcv.mat``, read as it is needed.

    Args:
        path: the file, MATLAB 7.3 (HDF5): ``value/img`` and ``value/gt`` hold references.
        preprocessing: of the model; pictures and masks are resized to its size, as in the paper, without a crop.
        images: how many to take, evenly spaced; None: all.

    Raises:
        OSError: there is no such file.
        ValueError: it is not of this layout.
        ImportError: the extra ``evaluate`` is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], preprocessing: Preprocessing, *, images: int | None = None
    ) -> None:
        super().__init__(path, preprocessing, squash=True, images=images)
        try:
            self.file = needs("h5py", extra="evaluate").File(self.path, "r")
            self.images, self.masks = self.file["value/img"], self.file["value/gt"]
            self.numbers = self.spaced(len(self.images))
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the HDF5 file of ImageNet-Segmentation: {error}") from error
        if not self.numbers:
            raise ValueError(f"{path} holds no images.")

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, i: int) -> str:
        """The picture's number."""
        return f"image {self.numbers[i]}"

    def sample(self, i: int) -> Sample:
        """Picture i and its mask."""
        i = self.numbers[i]
        try:
            pixels = np.asarray(self.file[self.images[i, 0]])  # [channels, W, H] or [W, H], as MATLAB stores it
            mask = np.asarray(self.file[self.file[self.masks[i, 0]][0, 0]])
            picture = Image.fromarray(pixels.transpose())
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"image {i} of {self.path} cannot be read: {error}") from error
        return self.masked(picture.convert("RGB"), Image.fromarray(mask.transpose()))


class ImageNetFolder(Pictures):
    """Pictures of known classes: a folder a class, or one folder with a file of labels.

    Folders are named after the model's classes (case, ``_``, ``-`` and blanks aside) or after synsets of ImageNet-1k;
    otherwise there must be as many as the model has classes, in the order of their numbers or else names.

    A file of labels has a picture's name and its class, by name, synset or index, on each line: between commas,
    semicolons or tabs, as spreadsheets write them, with or without a first line that names the columns, as in
    ``LOC_val_solution.csv``; or between blanks, the class last, as in ``val.txt``. A picture is named by its path, or
    else its file name, or else its stem. Or, as in the development kit, there is one number a line for the pictures in
    sorted order, and ``meta.mat`` beside it.

    A warning says where folders could be read in two ways, or are empty.

    Args:
        path: the folder.
        preprocessing: of the model.
        classes: what the model's logits stand for; None: ``preprocessing`` says it, if it is a
            :class:`lrp_jax.ViTConfig`.
        labels: the file of labels; None: a folder a class.
        images: how many pictures to take, evenly spaced; None: all.
        squash: resize to the model's size as the paper's evaluation does; else resize and crop as for the model.
        levels: the samples that are black and white in pictures of more than 8 bits: :func:`lrp_jax.read_image`.

    Attributes:
        note: which classes the folders were taken for, or what was read of the file.

    Raises:
        OSError: there is no such folder or file.
        ValueError: there are no pictures, the class of one is unknown or could be two, or nothing says what the classes
            of the model are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocessing: Preprocessing,
        classes: Labels | None = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        images: int | None = None,
        squash: bool = True,
        levels: Levels | None = None,
    ) -> None:
        super().__init__(path, preprocessing, squash=squash, images=images, levels=levels)
        described_by = preprocessing if classes is None else classes
        if not isinstance(described_by, Labels):
            raise ValueError(f"classes must be Labels, for a model without a ViTConfig; got {classes!r}.")
        self.classes: Labels = described_by
        self.note = ""
        found = self._by_folder() if labels is None else self._by_file(Path(labels))
        self.pictures = [found[i] for i in self.spaced(len(found))]

    @property
    def name(self) -> str:
        """Where it is, how pictures are prepared, and a digest of the pictures and their classes."""
        pictures = repr([(self.key(i), label) for i, (_, label) in enumerate(self.pictures)])
        return f"{super().name}, {hashlib.sha256(pictures.encode()).hexdigest()[:8]}"

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, i: int) -> str:
        """The picture's place in the folder."""
        return str(self.pictures[i][0].relative_to(self.path))

    def sample(self, i: int) -> Sample:
        """Picture i and its class."""
        picture, label = self.pictures[i]
        return Sample(preprocess(self.read(picture), self.preprocessing), np.array([label]), None)

    def _by_folder(self) -> list[tuple[Path, int]]:
        folders = sorted(folder for folder in self.path.iterdir() if folder.is_dir() and not is_left_behind(folder))
        if not folders:
            raise ValueError(
                f"{self.path} holds no folders, one a class; pictures in one folder need a file of labels."
            )
        channels = self.preprocessing.channels
        title, classes, doubts = of_folders(self.path, [folder.name for folder in folders], self.classes)
        found = {folder: list(walk(self.path / folder, nested=True, channels=channels)) for folder in classes}
        if not any(found.values()):
            raise ValueError(f"{self.path}: none of its {len(folders)} folders holds pictures.")
        for folder, pictures in found.items():
            deep = [picture for picture in pictures if picture.parent != self.path / folder]
            if deep and title in ORDERS:
                raise ValueError(
                    f"{self.path / folder} is no class of the model by name and holds folders of pictures "
                    f"({deep[0].relative_to(self.path)}): give the folder that holds one folder a class."
                )
        empty = [folder for folder, pictures in found.items() if not pictures]
        if empty:
            doubts.append(f"{self.path}: {len(empty)} of {len(folders)} folders hold no pictures: {listed(empty, 5)}.")
        for doubt in doubts:
            warnings.warn(doubt, stacklevel=3)
        self.note = f"{len(folders)} folders by {title}: {described(classes, self.classes)}"
        return [(picture, classes[folder]) for folder, pictures in found.items() for picture in pictures]

    def _by_file(self, path: Path) -> list[tuple[Path, int]]:
        pictures = pictures_in(self.path, nested=True, channels=self.preprocessing.channels)
        relative = [PurePosixPath(picture.relative_to(self.path).as_posix()) for picture in pictures]
        classes, read = of_pictures(path, relative, self.path, self.classes)
        self.note = f"{path}: {read}"
        return list(zip(pictures, classes, strict=True))
