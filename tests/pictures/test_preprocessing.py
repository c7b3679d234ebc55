"""Pictures become images as published."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.pictures import Bands, crop, crop_bands, seen_box


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


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (64, 64), (3, 400), (33, 257)])
@pytest.mark.parametrize(
    "fields",
    [{}, {"resize": 45}, {"resize": (45, 60)}, {"resize": (24, 40), "crop": False}],
    ids=["cover", "shorter edge", "both edges", "squashed"],
)
def test_the_box_is_what_the_model_sees(size, fields):
    """A picture of its own coordinates, resized and cropped, has those of the box."""
    config = lrp_jax.ViTConfig(image_size=(24, 40), patch_size=8, channels=2, interpolation="bilinear", **fields)
    left, top, right, bottom = seen_box(size, config)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    width, height = size
    coordinates = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    seen = crop_bands(Bands((coordinates / 1000).astype(np.float32)), config).pixels * 1000
    x = left + (np.arange(40) + 0.5) * (right - left) / 40
    y = top + (np.arange(24) + 0.5) * (bottom - top) / 24
    inside_x = (x - max(1, width / 40) > 0.5) & (x + max(1, width / 40) < width - 0.5)  # not at the edges
    inside_y = (y - max(1, height / 24) > 0.5) & (y + max(1, height / 24) < height - 0.5)
    np.testing.assert_allclose(seen[0, inside_x, 0], x[inside_x], atol=0.1)  # a resize samples its kernel
    np.testing.assert_allclose(seen[inside_y, 0, 1], y[inside_y], atol=0.1)
    assert inside_x.any() or width < 40
    assert inside_y.any() or height < 24


def test_bands_are_cropped_as_colours_are(pixels):
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, resize=18, interpolation="bilinear")
    bands = crop_bands(Bands((pixels / 255).astype(np.float32)), config).pixels
    np.testing.assert_allclose(bands * 255, np.asarray(crop(Image.fromarray(pixels), config)), atol=1)
