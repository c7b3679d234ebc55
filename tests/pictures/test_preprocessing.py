"""Pictures become images as published."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.pictures import crop


def test_preprocess_normalises(pixels):
    config = lrp_jax.ViTConfig(image_size=(20, 30), patch_size=10, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    actual = lrp_jax.preprocess(Image.fromarray(pixels), config)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0], atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "cropped", "expected"),
    [
        # Shorter edge to 16, so 24 columns: the middle 16 of them.
        (None, True, lambda image: image.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))),
        (18, True, lambda image: image.resize((27, 18), Image.Resampling.BICUBIC).crop((6, 1, 22, 17))),
        ((16, 16), False, lambda image: image.resize((16, 16), Image.Resampling.BICUBIC)),
        ((20, 30), True, lambda image: image.crop((7, 2, 23, 18))),
    ],
)
def test_resize_and_crop(pixels, resize, cropped, expected):
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, resize=resize, crop=cropped)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(crop(image, config)), np.asarray(expected(image)))


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (3, 500), (64, 64), (1_000_000, 1)])
def test_any_size_fits(size):
    config = lrp_jax.ViTConfig(image_size=(24, 40), patch_size=8)
    assert lrp_jax.preprocess(Image.new("RGB", size), config).shape == (24, 40, 3)


def test_grey_model(pixels):
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, channels=1)
    assert lrp_jax.preprocess(Image.fromarray(pixels), config).shape == (16, 16, 1)
    with pytest.raises(ValueError, match="the model expects 4"):
        lrp_jax.preprocess(Image.fromarray(pixels), lrp_jax.ViTConfig(image_size=16, patch_size=8, channels=4))
