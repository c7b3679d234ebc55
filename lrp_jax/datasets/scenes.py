"""Digit scenes: two handwritten digits of different classes on one noisy image, each with its mask.

A map that is specific to a class lies on the mask of that class and not on the other digit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from lrp_jax.datasets.base import Sample
from lrp_jax.files import DATA
from lrp_jax.labels import Labels
from lrp_jax.pictures import Preprocessing

SCENE_SIZE = 64
#: Per-channel mean and standard deviation that the demo model expects: pixels in [0, 1] become [-1, 1].
SCENE_MEAN, SCENE_STD = 0.5, 0.5
# Zeros around a digit, so that strokes at its edge fade out instead of being cut.
_FRAME = 2

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


def example_scenes() -> DigitScenes:
    """The scenes whose pictures come with the package."""
    return digit_scenes(4, seed=2026, split="test")


def scene_pixels(scenes: DigitScenes) -> np.ndarray:
    """What pictures of scenes hold, uint8 ``[n, 64, 64, 3]``."""
    return ((scenes.images * SCENE_STD + SCENE_MEAN) * 255).round().astype(np.uint8)


def _digit_scene(i: int, seed: int, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, labels and masks of scene i."""
    rng = np.random.default_rng((seed, i, get_args(Split).index(split)))
    masks = np.zeros((2, SCENE_SIZE, SCENE_SIZE), bool)
    pixels, labels = _scene(rng, _digits(split), masks)
    return (pixels - SCENE_MEAN) / SCENE_STD, labels, masks


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


def sees_scenes(preprocessing: Preprocessing, labels: Labels) -> bool:
    """Whether a model takes digit scenes and has their ten classes."""
    return preprocessing.image_shape == (SCENE_SIZE, SCENE_SIZE, 3) and labels.num_classes == 10


@functools.cache
def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Framed digits ``[m, 12, 12]`` in [0, 1] and their classes ``[m]``: two in nine are held out."""
    with np.load(DATA / "digits.npz") as data:
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
