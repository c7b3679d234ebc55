"""Heat maps over pictures."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax


def test_overlay(pixels):
    image = Image.fromarray(pixels)
    heat = np.zeros((20, 30))
    heat[5, 7] = 3.0
    shown = np.asarray(lrp_jax.overlay(image, heat)).astype(int)
    grey = np.asarray(image.convert("L")).astype(float)
    np.testing.assert_allclose(shown[5, 7], 0.3 * grey[5, 7] + 0.7 * np.array([252, 255, 164]), atol=0.51)
    np.testing.assert_allclose(shown[0, 0], 0.7 * grey[0, 0] + 0.3 * np.array([0, 0, 4]), atol=0.51)
    np.testing.assert_array_equal(lrp_jax.overlay(image, heat * 0), lrp_jax.overlay(image, heat * 0 + 5))
    with pytest.raises(ValueError, match=r"\(20, 30\), got the shape \(4, 4\)"):
        lrp_jax.overlay(image, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="finite"):
        lrp_jax.overlay(image, heat * np.nan)


BLUE, NEUTRAL, RED = [59, 76, 192], [221, 220, 220], [180, 4, 38]


def test_signed_overlay(pixels):
    """Zero is neutral wherever the values lie, and one scale holds on both sides of it."""
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L")).astype(float)[..., None]

    def covered(colour, cover):
        return (1 - cover) * grey + cover * np.array(colour)

    def shown(heat):
        return np.asarray(lrp_jax.overlay(image, heat, signed=True)).astype(int)

    np.testing.assert_allclose(shown(np.zeros((20, 30))), covered(NEUTRAL, 0.3), atol=0.51)
    np.testing.assert_allclose(shown(np.full((20, 30), 5.0)), covered(RED, 0.7), atol=0.51)
    np.testing.assert_allclose(shown(np.full((20, 30), -1e-9)), covered(BLUE, 0.7), atol=0.51)
    heat = np.full((20, 30), 2.0)
    heat[0, :3] = -1, 0, 1e6  # half as far below; nothing; a pixel that does not set the scale
    actual = shown(heat)
    np.testing.assert_allclose(actual[0, 0], covered([141, 176, 254], 0.5)[0, 0], atol=0.51)
    np.testing.assert_allclose(actual[0, 1], covered(NEUTRAL, 0.3)[0, 1], atol=0.51)
    np.testing.assert_allclose(actual[0, 2:], covered(RED, 0.7)[0, 2:], atol=0.51)
    few = np.zeros((20, 30))
    few[5, 7] = -3  # a single pixel: more than 99 % are zero
    np.testing.assert_allclose(shown(few)[5, 7], covered(BLUE, 0.7)[5, 7], atol=0.51)


def test_panel(pixels):
    image = Image.fromarray(pixels)
    shown = lrp_jax.panel(
        image, np.eye(4)[None].repeat(2, axis=0), ["one", "a name much too long for its picture " * 3]
    )
    assert shown.mode == "RGB"
    assert shown.width > 3 * 336  # 30 pixels enlarged as 20 to 224
    assert shown.height > 224
    with pytest.raises(ValueError, match="for 1 captions"):
        lrp_jax.panel(image, np.zeros((2, 4, 4)), ["one"])
    maps = np.random.default_rng(0).normal(size=(2, 4, 4))
    drawn = {
        signs: np.asarray(lrp_jax.panel(image, maps, "ab", signed=signs)) for signs in (False, True, (False, True))
    }
    half = drawn[False].shape[1] * 2 // 3
    np.testing.assert_array_equal(drawn[False, True][:, :half], drawn[False][:, :half])
    np.testing.assert_array_equal(drawn[False, True][:, half:], drawn[True][:, half:])
    assert (drawn[False] != drawn[True]).any()
    with pytest.raises(ValueError, match="shape"):
        lrp_jax.panel(image, maps, "ab", signed=(True, False, True))
