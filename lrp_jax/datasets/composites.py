"""Composites: pictures made of several images of different classes, each in a cell of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from lrp_jax.datasets.base import Dataset, Sample

Box = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class Composites:
    """Pictures of the size of a dataset's images, each made of two or four of them (after Boehle et al. 2021).

    Of four, each is shrunk to a quarter of the picture, so that all of it is seen. Of two, each is cut to its middle
    half, as it is: one over the other, or side by side where images are wider than high. A label's mask is the cell of
    its image; where images have several labels, these have the same mask.

    Attributes:
        dataset: images with labels.
        groups: which images are in each picture, row by row.

    Raises:
        ValueError: a group holds neither two images nor four, or not as many as another.
    """

    dataset: Dataset
    groups: Sequence[Sequence[int]]
    masks_of_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = {len(group) for group in self.groups}
        if sizes not in ({2}, {4}):
            raise ValueError(f"groups must all hold 2 or all hold 4 images, got groups of {sorted(sizes)}.")

    @property
    def cells(self) -> int:
        """How many images are in a picture."""
        return len(self.groups[0])

    @property
    def name(self) -> str:
        """The dataset, and how many of its images are in a picture."""
        return f"{self.dataset.name}, {self.cells} in a picture"

    @property
    def labels_per_image(self) -> int:
        """Those of all images in a picture."""
        return self.cells * self.dataset.labels_per_image

    def __len__(self) -> int:
        return len(self.groups)

    def key(self, i: int) -> str:
        """The names of the images in picture i."""
        return " + ".join(map(self.dataset.key, self.groups[i]))

    def sample(self, i: int) -> Sample:
        """Picture i, the labels of its images, and their cells."""
        samples = [self.dataset.sample(j) for j in self.groups[i]]
        labels = [sample.labels for sample in samples if sample.labels is not None]
        if len(labels) < len(samples):
            raise ValueError(f"an image of {self.key(i)} has no labels.")
        image = np.zeros_like(samples[0].image)
        masks = np.zeros((self.cells, *image.shape[:2]), bool)
        for mask, box, sample in zip(masks, _boxes(self.cells, *image.shape[:2]), samples, strict=True):
            mask[box] = True
            image[box] = _fitted(sample.image, image[box].shape, shrink=self.cells == 4)
        return Sample(image, np.concatenate(labels), masks.repeat(self.dataset.labels_per_image, axis=0))


def _boxes(cells: int, rows: int, cols: int) -> list[Box]:
    """The cells of a picture, row by row."""
    halves = [[slice(0, edge // 2), slice(edge // 2, edge)] for edge in (rows, cols)]
    if cells == 2:
        return (
            [(slice(rows), half) for half in halves[1]] if cols > rows else [(half, slice(cols)) for half in halves[0]]
        )
    return [(row, col) for row in halves[0] for col in halves[1]]


def _fitted(image: np.ndarray, shape: Sequence[int], *, shrink: bool) -> np.ndarray:
    """An image shrunk to the size of a cell, or its middle of that size."""
    rows, cols, _ = shape
    if not shrink:
        top, left = (image.shape[0] - rows) // 2, (image.shape[1] - cols) // 2
        return image[top : top + rows, left : left + cols]
    channels = [Image.fromarray(channel) for channel in np.moveaxis(np.asarray(image, np.float32), -1, 0)]
    small = [np.asarray(channel.resize((cols, rows), Image.Resampling.BILINEAR)) for channel in channels]
    return np.stack(small, axis=-1)


def disjoint_groups(labels: Sequence[Sequence[int]], size: int, *, seed: int) -> list[list[int]]:
    """Groups of images, no two of a group with a class in common; each image is in one of them at most.

    A group takes of the classes that have the most images left, equals at random: of images of one label, there can be
    no more groups.

    Args:
        labels: of each image.
        size: of a group.
        seed: of the draws.

    Returns:
        Indices of images, ``size`` a group.
    """
    rng = np.random.default_rng(seed)
    left: dict[tuple[int, ...], list[int]] = {}
    for i in rng.permutation(len(labels)).tolist():
        left.setdefault(tuple(sorted(map(int, labels[i]))), []).append(i)
    kinds = sorted(left)
    groups: list[list[int]] = []
    while True:
        counts = np.array([len(left[kind]) for kind in kinds])
        order = np.lexsort((rng.random(len(kinds)), -counts))
        found = _compatible([kinds[k] for k in order if counts[k]], size)
        if not found:
            return groups
        groups.append(rng.permutation([left[kind].pop() for kind in found]).tolist())


def _compatible(kinds: Sequence[tuple[int, ...]], size: int) -> list[tuple[int, ...]]:
    """The first kinds that have no class in common; empty if there are not so many."""
    for start in range(len(kinds)):
        found: list[tuple[int, ...]] = []
        taken: set[int] = set()
        for kind in kinds[start:]:
            if taken.isdisjoint(kind):
                found.append(kind)
                taken.update(kind)
            if len(found) == size:
                return found
    return []
