"""Datasets with a known answer to the question of where a class is, or of which class an image is."""

from lrp_jax.datasets.base import Dataset, Sample, is_left_behind, pictures_in, spaced
from lrp_jax.datasets.composites import Composites, disjoint_groups
from lrp_jax.datasets.folders import MaskFolder
from lrp_jax.datasets.imagenet import ImageNetFolder, ImageNetSegmentation
from lrp_jax.datasets.scenes import (
    SCENE_MEAN,
    SCENE_SIZE,
    SCENE_STD,
    DigitDataset,
    DigitScenes,
    Split,
    digit_scenes,
    example_scenes,
    scene_pixels,
    sees_scenes,
)

__all__ = [
    "SCENE_MEAN",
    "SCENE_SIZE",
    "SCENE_STD",
    "Composites",
    "Dataset",
    "DigitDataset",
    "DigitScenes",
    "ImageNetFolder",
    "ImageNetSegmentation",
    "MaskFolder",
    "Sample",
    "Split",
    "digit_scenes",
    "disjoint_groups",
    "example_scenes",
    "is_left_behind",
    "pictures_in",
    "scene_pixels",
    "sees_scenes",
    "spaced",
]
