"""Heat maps over pictures."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.pictures import in_shape, limits_of, scale_of_colours, seen_box


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
    top = 8 + 224  # of the pictures; each kind of maps has a scale of its own
    first, second = (8 + k * (336 + 8) for k in (1, 2))
    assert (drawn[False][:top] != drawn[True][:top]).any()
    for k, left in enumerate((first, second)):
        kind = bool(k)
        alone = lrp_jax.panel(image, maps[k : k + 1], "a", signed=kind)
        expected = np.asarray(alone)[8:top, first : first + 336]
        np.testing.assert_array_equal(drawn[False, True][8:top, left : left + 336], expected)
    with pytest.raises(ValueError, match="shape"):
        lrp_jax.panel(image, maps, "ab", signed=(True, False, True))


@pytest.mark.parametrize("signed", [False, True])
def test_one_scale_for_all_maps(pixels, signed):
    """A map half as large is drawn half as hot, unless each has a scale of its own."""
    image = Image.fromarray(pixels).resize((224, 224))
    large = np.random.default_rng(0).random((224, 224))
    large[0, 0] = 0
    maps = np.stack([large, large / 2])
    limits = limits_of(maps, signed=signed)
    shared, own = (np.asarray(lrp_jax.panel(image, maps, "ab", signed=signed, one_scale=one)) for one in (True, False))
    for k, heat in enumerate(maps):
        left = 8 + (k + 1) * 232
        expected = lrp_jax.overlay(image, heat, signed=signed, limits=limits)
        np.testing.assert_array_equal(shared[8:232, left : left + 224], expected)
        np.testing.assert_array_equal(own[8:232, left : left + 224], lrp_jax.overlay(image, heat, signed=signed))
    assert (shared[:232] != own[:232]).any()
    assert (shared[250:] != own[250:]).any()  # what is said of it


def test_the_legend_has_the_colours_of_the_maps(pixels):
    shown = np.asarray(lrp_jax.panel(Image.fromarray(pixels), np.ones((1, 2, 2)), "a", title="method"))
    bar = np.asarray(scale_of_colours((96, 10), signed=False))
    height, width = bar.shape[:2]
    rows = range(shown.shape[0] - height - 20, shown.shape[0] - height)
    assert any((shown[y : y + height, x : x + width] == bar).all() for y in rows for x in range(20, 60))
    assert bar[0, 0].sum() < bar[0, -1].sum()


def test_maps_on_the_whole_picture():
    """They lie where the model looked, and nothing lies beside."""
    config = lrp_jax.ViTConfig(image_size=32, patch_size=8, resize=40)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8))
    box = seen_box(picture.size, config)
    assert box == (180, 30, 420, 270)
    maps = np.random.default_rng(1).random((1, 4, 4))
    shown = np.asarray(lrp_jax.panel(picture, maps, "a", box=box))[8:308, 616:1216]
    grey = np.asarray(picture.convert("L").convert("RGB")).copy()
    grey[30:270, 180:420] = lrp_jax.overlay(picture.crop(box), lrp_jax.heatmaps(maps[0], (240, 240)))
    np.testing.assert_array_equal(shown, grey)
    large = lrp_jax.panel(picture.resize((6000, 3000)), maps, "a", box=tuple(10 * edge for edge in box))
    assert large.width == 2 * (1024 + 8) + 8


@pytest.mark.parametrize(("size", "shape"), [((500, 300), (53, 32)), ((300, 500), (32, 53)), ((7, 500), (32, 256))])
def test_what_was_squashed_is_drawn_in_its_own_shape(size, shape):
    config = lrp_jax.ViTConfig(image_size=32, patch_size=8, resize=(32, 32), crop=False)
    assert in_shape(Image.new("RGB", (32, 32)), seen_box(size, config)).size == shape
    config = lrp_jax.ViTConfig(image_size=32, patch_size=8)
    seen = Image.new("RGB", (32, 32))
    assert in_shape(seen, seen_box(size, config)) is seen
