"""Pages of many maps."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.pictures import Cell, montage


def cell(title="method", *, maps=2, signed=False, captions=None):
    drawn = np.random.default_rng(len(title)).normal(size=(maps, 4, 4))
    return Cell(title, "1.0 forward pass", drawn, signed, captions or [""] * maps)


def test_overlays_stand_in_a_grid(pixels):
    """Each where it is expected, as :func:`lrp_jax.overlay` draws it."""
    image = Image.fromarray(pixels)  # 30 pixels wide and 20 high
    cells = [cell("m" * i, signed=i % 2 == 0, captions=["good", "bad"]) for i in range(1, 7)]
    page = np.asarray(montage(image, ["one", "two"], cells, lines=["title", "text"]))
    picture = image.resize((128, 85), Image.Resampling.BICUBIC)
    edge, height, width = 128, 17 + 85 + 17, 2 * 128 + 2
    assert page.shape == (16 + 85 + 20 + 22 + 2 * (height + 20) - 20 + 16, 16 + 4 * (width + 20) - 20 + 16, 3)
    np.testing.assert_array_equal(page[16:101, 16:144], picture)
    for i, c in enumerate(cells):
        large = lrp_jax.heatmaps(c.maps, (85, 128))
        top, left = 16 + 85 + 20 + 22 + i // 4 * (height + 20) + 17, 16 + i % 4 * (width + 20)
        for k in range(2):
            x = left + k * (edge + 2)
            expected = lrp_jax.overlay(picture, large[k], signed=c.signed)
            np.testing.assert_array_equal(page[top : top + 85, x : x + edge], expected)
    assert (page[top : top + 85, left + width :] == 255).all()


def test_pages_grow_with_what_is_said(pixels):
    image = Image.fromarray(pixels)
    plain = montage(image, ["one", "two"], [cell()])
    assert montage(image, ["one", "two"], [cell("x" * 500)]).size == plain.size  # shortened
    captioned = montage(image, ["one", "two"], [cell(captions=["a", "b"])])
    assert captioned.height == plain.height + 17
    noted = montage(image, ["one", "two"], [cell()], footnotes=["word " * 300, "y" * 1000])
    assert noted.width == plain.width
    assert noted.height > plain.height + 4 * 17
    many = [f"{k}" for k in range(9)]
    assert montage(image, many, [cell(maps=9)] * 3).width == 16 + 9 * 130 - 2 + 16  # one column


def test_wrong_numbers(pixels):
    image = Image.fromarray(pixels)
    with pytest.raises(ValueError, match="at least one cell"):
        montage(image, ["one"], [])
    with pytest.raises(ValueError, match=r"method: expected 1 maps .* got the shape \(2, 4, 4\)"):
        montage(image, ["one"], [cell()])
    with pytest.raises(ValueError, match="and 1 captions"):
        montage(image, ["one", "two"], [cell(captions=["a"])])
