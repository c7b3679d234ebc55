"""What a dataset is: images with what is known of them; and folders of pictures."""

from __future__ import annotations

import dataclasses
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from lrp_jax.checks import listed
from lrp_jax.pictures import (
    Levels,
    Picture,
    PictureNote,
    Preprocessing,
    checked_levels,
    is_own,
    is_picture,
    preprocess,
    read_picture,
)

# By archives of macOS, by network drives, by Windows and by Linux.
_LEFT_BEHIND = {
    *("__macosx", "@eadir", "#recycle", "thumbs.db", "desktop.ini"),
    *("$recycle.bin", "system volume information", "lost+found"),
}


class Sample(NamedTuple):
    """An image to evaluate a method on.

    Attributes:
        image: float32 ``[H, W, channels]``, normalised for the model.
        labels: int ``[m]``, its classes; None: unknown.
        masks: bool ``[k, H, W]``, where they are, one for each or one for all; None: unknown.
    """

    image: np.ndarray
    labels: np.ndarray | None
    masks: np.ndarray | None


class Dataset(Protocol):
    """Images that a method is evaluated on."""

    @property
    def name(self) -> str:
        """What it is, to be told from others in a file of results."""
        ...

    @property
    def labels_per_image(self) -> int:
        """How many classes an image has."""
        ...

    @property
    def masks_of_labels(self) -> bool:
        """Whether each label has a mask of its own."""
        ...

    def __len__(self) -> int: ...

    def key(self, i: int) -> str:
        """The name of image i."""
        ...

    def sample(self, i: int) -> Sample:
        """Image i. Raises an OSError or a ValueError if it cannot be read."""
        ...


class Pictures:
    """What datasets of pictures share: a picture is resized to the model's size, cropped or not.

    Args:
        path: where they are.
        preprocessing: of the model.
        squash: whether they are resized to the model's size as the paper's evaluation does, without a crop.
        images: how many to take, evenly spaced; None: all.
        levels: the samples that are black and white in pictures of more than 8 bits: :func:`lrp_jax.read_image`.
    """

    labels_per_image = 1
    masks_of_labels = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocessing: Preprocessing,
        *,
        squash: bool,
        images: int | None,
        levels: Levels | None = None,
    ) -> None:
        self.path, self.limit, self.levels = Path(path), images, checked_levels(levels)
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.squash, self.preprocessing = squash, preprocessing
        if squash:
            rows, cols, _ = preprocessing.image_shape
            self.preprocessing = dataclasses.replace(
                preprocessing, resize=(rows, cols), crop=False, interpolation="bilinear"
            )

    @property
    def name(self) -> str:
        """Where they are, and how they are prepared."""
        levels = "" if self.levels is None else f", levels {self.levels[0]:g} to {self.levels[1]:g}"
        return f"{self.path.resolve()}, {'squashed' if self.squash else 'cropped'}{levels}"

    def read(self, path: Path) -> Picture:
        """A picture of the dataset."""
        return read_picture(path, self.preprocessing.channels, levels=self.levels)

    def spaced(self, total: int) -> list[int]:
        """At most ``self.limit`` of so many, evenly spaced."""
        return spaced(self.limit or total, total)

    def masked(self, picture: Picture, mask: Image.Image) -> Sample:
        """The sample of a picture and its mask, which is of the same size."""
        size = picture.shape[1::-1] if isinstance(picture, np.ndarray) else picture.size
        if mask.size != size:
            raise ValueError(f"the mask has {mask.size} pixels, its picture {size}.")
        rows, cols, _ = self.preprocessing.image_shape
        small = np.asarray(mask.resize((cols, rows), Image.Resampling.NEAREST)) > 0
        return Sample(preprocess(picture, self.preprocessing), None, small[None])


def spaced(limit: int, total: int) -> list[int]:
    """At most ``limit`` of so many, evenly spaced."""
    n = min(limit, total)
    return [i * total // n for i in range(n)]


def pictures_in(folder: str | os.PathLike[str], *, nested: bool = False, channels: int = 3) -> list[Path]:
    """The pictures of a folder, sorted; hidden ones, and what systems and this library leave behind, are none.

    Args:
        folder: the folder.
        nested: also those of the folders in it.
        channels: of the model: for other than 1 or 3, arrays are pictures too.

    Returns:
        Their paths.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no pictures.
    """
    found = list(walk(Path(folder), nested=nested, channels=channels))
    if not found:
        left = [path.name for path in sorted(Path(folder).iterdir()) if not is_left_behind(path)]
        only = f", only {listed(left, 3)}" if left else ""
        raise ValueError(f"{folder}: the folder holds no pictures{only}.")
    return found


def walk(folder: Path, *, nested: bool, channels: int = 3) -> Iterator[Path]:
    """The pictures of a folder, sorted, and of the folders in it, links aside: they can lead round in circles.

    A note says which were written by this library, as panels, and left aside.
    """
    for path in sorted(folder.iterdir()):
        if is_left_behind(path):
            continue
        if not path.is_dir():
            if is_own(path):
                warnings.warn(PictureNote(str(path), "was written by lrp_jax, and is left aside."), stacklevel=2)
            elif is_picture(path, channels):
                yield path
        elif nested and not path.is_symlink():
            yield from walk(path, nested=True, channels=channels)


def is_left_behind(path: PurePath) -> bool:
    """Whether a file or folder is hidden, or left behind by a system."""
    return path.name.startswith(".") or path.name.casefold() in _LEFT_BEHIND
