"""Datasets with a known answer to the question of where a class is.

*Digit scenes*: two handwritten digits of different classes on one noisy image, each with its mask. A map that
is specific to a class lies on the mask of that class and not on the other digit.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

import numpy as np
from PIL import Image

from lrp_jax.checkpoint import listed
from lrp_jax.files import needs
from lrp_jax.images import picture_suffixes, preprocess, read_image, read_mask
from lrp_jax.labels import ORDERS, described, of_folders, of_pictures, paired
from lrp_jax.vit import ViTConfig

SCENE_SIZE = 64
#: Per-channel mean and standard deviation that the demo model expects: pixels in [0, 1] become [-1, 1].
SCENE_MEAN, SCENE_STD = 0.5, 0.5
# Zeros around a digit, so that strokes at its edge fade out instead of being cut.
_FRAME = 2
# By archives of macOS, by network drives, by Windows and by Linux.
_LEFT_BEHIND = {
    *("__macosx", "@eadir", "#recycle", "thumbs.db", "desktop.ini"),
    *("$recycle.bin", "system volume information", "lost+found"),
}

Split = Literal["train", "test"]


class DigitScenes(NamedTuple):
    """A batch of n scenes.

    Attributes:
        images: float32 ``[n, 64, 64, 3]``, normalised for the demo model: (pixel in [0, 1] - 0.5) / 0.5.
        labels: int32 ``[n, 2]``, the classes of the two digits, which differ.
        masks: bool ``[n, 2, 64, 64]``, the strokes of each digit, in the order of ``labels``.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def digit_scenes(n: int, *, seed: int, split: Split = "test") -> DigitScenes:
    """Draw scenes of two digits of different classes at random, non-overlapping places.

    Size, slant, colour and contrast of the digits vary, and so do background and noise. The digits are the
    1,797 of the UCI *Optical Recognition of Handwritten Digits* test set (Alpaydin and Kaynak 1998, CC BY 4.0);
    the splits share no digit: 400 are held out for ``"test"``. Scene i of a seed does not depend on ``n``.

    Args:
        n: number of scenes.
        seed: of the random draws.
        split: whose digits to use, ``"train"`` (1,397) or ``"test"`` (400).

    Returns:
        The scenes.

    Raises:
        ValueError: ``n`` or ``seed`` is negative, or ``split`` is unknown.
    """
    if n < 0 or seed < 0:
        raise ValueError(f"n and seed must be at least 0, got n={n}, seed={seed}.")
    if split not in get_args(Split):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    size = SCENE_SIZE
    scenes = DigitScenes(
        images=np.empty((n, size, size, 3), np.float32),
        labels=np.empty((n, 2), np.int32),
        masks=np.zeros((n, 2, size, size), bool),
    )
    for i in range(n):
        scenes.images[i], scenes.labels[i], scenes.masks[i] = _digit_scene(i, seed, split)
    return scenes


def _digit_scene(i: int, seed: int, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, labels and masks of scene i."""
    rng = np.random.default_rng((seed, i, get_args(Split).index(split)))
    masks = np.zeros((2, SCENE_SIZE, SCENE_SIZE), bool)
    pixels, labels = _scene(rng, _digits(split), masks)
    return (pixels - SCENE_MEAN) / SCENE_STD, labels, masks


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


@dataclasses.dataclass(frozen=True)
class DigitDataset:
    """Digit scenes, drawn one by one: see :func:`digit_scenes`."""

    n: int
    seed: int = dataclasses.field(default=1, kw_only=True)
    split: Split = dataclasses.field(default="test", kw_only=True)
    labels_per_image: ClassVar[int] = 2
    masks_of_labels: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Kind, seed and split."""
        return f"digit scenes, seed {self.seed}, {self.split}"

    def __len__(self) -> int:
        return self.n

    def key(self, i: int) -> str:
        """The scene's number."""
        return f"scene {i}"

    def sample(self, i: int) -> Sample:
        """Scene i."""
        return Sample(*_digit_scene(i, self.seed, self.split))


def sees_scenes(config: ViTConfig) -> bool:
    """Whether a model takes digit scenes and has their ten classes."""
    return config.image_shape == (SCENE_SIZE, SCENE_SIZE, 3) and config.num_classes == 10


class _Pictures:
    """What datasets of pictures share: a picture is resized to the model's size, cropped or not."""

    labels_per_image = 1
    masks_of_labels = False

    def __init__(self, path: str | os.PathLike[str], config: ViTConfig, *, squash: bool, images: int | None) -> None:
        self.path, self.limit = Path(path), images
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.squash, self.config = squash, config
        if squash:
            rows, cols, _ = config.image_shape
            self.config = dataclasses.replace(config, resize=(rows, cols), crop=False, interpolation="bilinear")

    @property
    def name(self) -> str:
        return f"{self.path.resolve()}, {'squashed' if self.squash else 'cropped'}"

    def _spaced(self, total: int) -> list[int]:
        """At most ``self.limit`` of so many, evenly spaced."""
        n = min(self.limit or total, total)
        return [i * total // n for i in range(n)]

    def _masked(self, picture: Image.Image, mask: Image.Image) -> Sample:
        if mask.size != picture.size:
            raise ValueError(f"the mask has {mask.size} pixels, its picture {picture.size}.")
        rows, cols, _ = self.config.image_shape
        small = np.asarray(mask.resize((cols, rows), Image.Resampling.NEAREST)) > 0
        return Sample(preprocess(picture, self.config), None, small[None])


class MaskFolder(_Pictures):
    """Pictures in ``images/`` and their masks in ``masks/``, under the same names or else the same stems.

    Masks are read by :func:`lrp_jax.images.read_mask`.

    Args:
        path: the folder that holds both.
        config: of the model; pictures and masks are resized to its size, as in the paper, without a crop.
        images: how many to take, evenly spaced; None: all.

    Raises:
        OSError: there is no such folder.
        ValueError: there are no pictures, or one has no mask, or several.
    """

    def __init__(self, path: str | os.PathLike[str], config: ViTConfig, *, images: int | None = None) -> None:
        super().__init__(path, config, squash=True, images=images)
        masks, pictures = pictures_in(self.path / "masks"), pictures_in(self.path / "images")
        image_names, mask_names = ([PurePosixPath(path.name) for path in paths] for paths in (pictures, masks))
        found = paired(image_names, mask_names, lambda i: str(masks[i]))
        missing = [picture.name for picture, places in zip(pictures, found, strict=True) if not places]
        if missing:
            raise ValueError(f"{self.path / 'masks'} holds no mask of {listed(missing, 5)}.")
        for picture, places in zip(pictures, found, strict=True):
            if len(places) > 1:
                those = listed([masks[i].name for i in places], 3)
                raise ValueError(f"{self.path / 'masks'} holds several masks of {picture.name}: {those}.")
        self.pairs = [(pictures[i], masks[found[i][0]]) for i in self._spaced(len(pictures))]

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, i: int) -> str:
        """The picture's file name."""
        return self.pairs[i][0].name

    def sample(self, i: int) -> Sample:
        """Picture i and its mask."""
        image, mask = self.pairs[i]
        return self._masked(read_image(image), read_mask(mask))


class ImageNetSegmentation(_Pictures):
    """The ImageNet-Segmentation dataset (Guillaumin et al. 2014), ``gtsegs_ijcv.mat``, read as it is needed.

    Args:
        path: the file, MATLAB 7.3 (HDF5): ``value/img`` and ``value/gt`` hold references.
        config: of the model; pictures and masks are resized to its size, as in the paper, without a crop.
        images: how many to take, evenly spaced; None: all.

    Raises:
        OSError: there is no such file.
        ValueError: it is not of this layout.
        ImportError: the extra ``evaluate`` is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], config: ViTConfig, *, images: int | None = None) -> None:
        super().__init__(path, config, squash=True, images=images)
        try:
            self.file = needs("h5py", extra="evaluate").File(self.path, "r")
            self.images, self.masks = self.file["value/img"], self.file["value/gt"]
            self.numbers = self._spaced(len(self.images))
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
        return self._masked(picture.convert("RGB"), Image.fromarray(mask.transpose()))


class ImageNetFolder(_Pictures):
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
        config: of the model.
        labels: the file of labels; None: a folder a class.
        images: how many pictures to take, evenly spaced; None: all.
        squash: resize to the model's size as the paper's evaluation does; else resize and crop as for the model.

    Attributes:
        note: which classes the folders were taken for, or what was read of the file.

    Raises:
        OSError: there is no such folder or file.
        ValueError: there are no pictures, or the class of one is unknown or could be two.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: ViTConfig,
        *,
        labels: str | os.PathLike[str] | None = None,
        images: int | None = None,
        squash: bool = True,
    ) -> None:
        super().__init__(path, config, squash=squash, images=images)
        self.note = ""
        found = self._by_folder() if labels is None else self._by_file(Path(labels))
        self.pictures = [found[i] for i in self._spaced(len(found))]

    @property
    def name(self) -> str:
        """Where it is, how pictures are prepared, and a digest of the pictures and their classes."""
        listed = repr([(self.key(i), label) for i, (_, label) in enumerate(self.pictures)])
        return f"{super().name}, {hashlib.sha256(listed.encode()).hexdigest()[:8]}"

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, i: int) -> str:
        """The picture's place in the folder."""
        return str(self.pictures[i][0].relative_to(self.path))

    def sample(self, i: int) -> Sample:
        """Picture i and its class."""
        picture, label = self.pictures[i]
        return Sample(preprocess(read_image(picture), self.config), np.array([label]), None)

    def _by_folder(self) -> list[tuple[Path, int]]:
        folders = sorted(folder for folder in self.path.iterdir() if folder.is_dir() and not _is_left_behind(folder))
        if not folders:
            raise ValueError(
                f"{self.path} holds no folders, one a class; pictures in one folder need a file of labels."
            )
        title, classes, doubts = of_folders(self.path, [folder.name for folder in folders], self.config)
        found = {folder: list(_walk(self.path / folder, nested=True)) for folder in classes}
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
        self.note = f"{len(folders)} folders by {title}: {described(classes, self.config)}"
        return [(picture, classes[folder]) for folder, pictures in found.items() for picture in pictures]

    def _by_file(self, path: Path) -> list[tuple[Path, int]]:
        pictures = pictures_in(self.path, nested=True)
        relative = [PurePosixPath(picture.relative_to(self.path).as_posix()) for picture in pictures]
        classes, read = of_pictures(path, relative, self.path, self.config)
        self.note = f"{path}: {read}"
        return list(zip(pictures, classes, strict=True))


def pictures_in(folder: str | os.PathLike[str], *, nested: bool = False) -> list[Path]:
    """The pictures of a folder, sorted; hidden ones, and what systems leave behind, are none.

    Args:
        folder: the folder.
        nested: also those of the folders in it.

    Returns:
        Their paths.

    Raises:
        OSError: there is no such folder.
        ValueError: it holds no pictures.
    """
    found = list(_walk(Path(folder), nested=nested))
    if not found:
        others = [path.name for path in sorted(Path(folder).iterdir()) if not _is_left_behind(path)]
        only = f", only {listed(others, 3)}" if others else ""
        raise ValueError(f"{folder}: the folder holds no pictures{only}.")
    return found


def _walk(folder: Path, *, nested: bool) -> Iterator[Path]:
    """The pictures of a folder, sorted, and of the folders in it, links aside: they can lead round in circles."""
    for path in sorted(folder.iterdir()):
        if _is_left_behind(path):
            continue
        if not path.is_dir():
            if path.suffix.lower() in picture_suffixes():
                yield path
        elif nested and not path.is_symlink():
            yield from _walk(path, nested=True)


def _is_left_behind(path: Path) -> bool:
    """Whether a file or folder is hidden, or left behind by a system."""
    return path.name.startswith(".") or path.name.casefold() in _LEFT_BEHIND


@functools.cache
def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Framed digits ``[m, 12, 12]`` in [0, 1] and their classes ``[m]``: two in nine are held out."""
    with np.load(Path(__file__).parent / "data" / "digits.npz") as data:
        images, labels = data["images"].astype(np.float32) / 16, data["labels"].astype(np.int32)
    held_out = np.arange(len(labels)) % 9 < 2
    chosen = held_out if split == "test" else ~held_out
    return np.pad(images[chosen], ((0, 0), (_FRAME, _FRAME), (_FRAME, _FRAME))), labels[chosen]


def _scene(
    rng: np.random.Generator, digits: tuple[np.ndarray, np.ndarray], masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1] ``[64, 64, 3]`` and the two classes; writes the masks ``[2, 64, 64]``."""
    images, labels = digits
    size = SCENE_SIZE
    first = rng.integers(len(labels))
    second = rng.choice(np.flatnonzero(labels != labels[first]))

    # Background: a dark colour with soft blotches.
    blotches = Image.fromarray(rng.uniform(-0.15, 0.15, (4, 4)).astype(np.float32))
    field = np.asarray(blotches.resize((size, size), Image.Resampling.BICUBIC))
    pixels = rng.uniform(0.05, 0.35, 3).astype(np.float32) + field[..., None]

    edges = rng.integers(18, 29, 2)
    while True:
        (y0, x0), (y1, x1) = corners = rng.integers(0, size + 1 - edges[:, None], (2, 2))
        # Apart in rows or in columns.
        if y0 + edges[0] <= y1 or y1 + edges[1] <= y0 or x0 + edges[0] <= x1 or x1 + edges[1] <= x0:
            break
    for k, index in enumerate((first, second)):
        edge, (top, left) = int(edges[k]), corners[k]
        stroke = _warp(rng, images[index], edge)
        box = slice(top, top + edge), slice(left, left + edge)
        masks[k][box] = stroke > 0.3
        colour = rng.uniform(0.6, 1.0, 3).astype(np.float32)
        cover = rng.uniform(0.7, 1.0) * stroke[..., None]
        pixels[box] = pixels[box] * (1 - cover) + colour * cover
    pixels += rng.uniform(0.01, 0.08) * rng.standard_normal(pixels.shape, np.float32)
    return pixels.clip(0, 1), labels[[first, second]]


def _warp(rng: np.random.Generator, digit: np.ndarray, edge: int) -> np.ndarray:
    """The framed digit ``[12, 12]``, turned and slanted, its inner ``[8, 8]`` enlarged to ``[edge, edge]``."""
    angle, slant = rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15)
    scale = (len(digit) - 2 * _FRAME) / edge
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[1, slant], [0, 1]])  # from (x, y) of the output to the digit's
    shift = len(digit) / 2 - matrix @ np.array([edge / 2, edge / 2])
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    warped = Image.fromarray(digit).transform(
        (edge, edge), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.asarray(warped).clip(0, 1)
