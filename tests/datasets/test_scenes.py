"""Digit scenes are what they say."""

import numpy as np
import pytest
from helpers import EXAMPLES
from PIL import Image

from lrp_jax.datasets import digit_scenes, example_scenes, scene_pixels
from lrp_jax.datasets.scenes import _digits


def test_shapes_and_ranges():
    scenes = digit_scenes(20, seed=3, split="train")
    assert scenes.images.shape == (20, 64, 64, 3)
    assert scenes.images.dtype == np.float32
    assert scenes.labels.shape == (20, 2)
    assert scenes.masks.shape == (20, 2, 64, 64)
    assert scenes.masks.dtype == bool
    assert scenes.images.min() >= -1
    assert scenes.images.max() <= 1
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    assert set(scenes.labels.ravel()) <= set(range(10))


def test_digits_do_not_overlap_and_stand_out():
    scenes = digit_scenes(50, seed=4)
    assert not scenes.masks.all(axis=1).any()
    assert (scenes.masks.sum(axis=(2, 3)) > 20).all()
    brightness = scenes.images.mean(axis=-1)
    for image, masks in zip(brightness, scenes.masks, strict=True):
        background = image[~masks.any(axis=0)].mean()
        assert all(image[mask].mean() > background + 0.2 for mask in masks)


def test_draws_repeat_and_do_not_depend_on_n():
    few, many = digit_scenes(3, seed=5), digit_scenes(6, seed=5)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])
    assert (digit_scenes(3, seed=6).images != few.images).any()
    assert (digit_scenes(3, seed=5, split="train").images != few.images).any()


def test_pictures_of_the_package_are_those_of_the_example_scenes():
    for i, pixels in enumerate(scene_pixels(example_scenes()), start=1):
        np.testing.assert_array_equal(pixels, Image.open(EXAMPLES / f"scene-{i}.png"))


def test_splits_share_no_digit():
    (train, train_labels), (test, test_labels) = _digits("train"), _digits("test")
    assert (len(train), len(test)) == (1397, 400)
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in test}


def test_bad_arguments():
    with pytest.raises(ValueError, match="n=-1"):
        digit_scenes(-1, seed=0)
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        digit_scenes(1, seed=0, split="val")
    assert len(digit_scenes(0, seed=0).images) == 0
