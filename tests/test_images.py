"""Pictures of every kind, in and out."""

import sys

import jax
import numpy as np
import pytest
from PIL import Image, features

import lrp_jax
from lrp_jax import images
from lrp_jax.images import crop


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def read_back(path, image, **options):
    image.save(path, **options)
    return np.asarray(lrp_jax.read_image(path))


def test_rgb_is_kept(tmp_path, pixels):
    np.testing.assert_array_equal(read_back(tmp_path / "a.png", Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "I", "I;16"])
def test_modes_become_rgb(tmp_path, mode):
    grey = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 2)))
    image = grey.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    if mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    suffix = ".tif" if mode in ("CMYK", "YCbCr", "I") else ".png"
    actual = read_back(tmp_path / f"a{suffix}", image)
    assert actual.shape == (4, 4, 3)
    np.testing.assert_allclose(actual, np.asarray(grey)[..., None].repeat(3, axis=2), atol=1)


def test_sixteen_bits_keep_their_grey_levels(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    actual = read_back(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_array_equal(actual[..., 0], [[0, 1, 128, 255]])


def test_transparency_becomes_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, :, 3] = 255  # the upper row is black, the lower one is not there
    expected = [[[0] * 3] * 2, [[255] * 3] * 2]
    np.testing.assert_array_equal(read_back(tmp_path / "a.png", Image.fromarray(rgba)), expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    actual = read_back(tmp_path / "b.png", palette, transparency=1)
    np.testing.assert_array_equal(actual, [[[10, 20, 30], [255, 255, 255]]])


def test_exif_rotation_is_applied(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    actual = read_back(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(actual, np.rot90(pixels, -1))


def test_unreadable_files(tmp_path, pixels):
    with pytest.raises(FileNotFoundError):
        lrp_jax.read_image(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError):
        lrp_jax.read_image(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        lrp_jax.read_image(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is not a picture"):
        lrp_jax.read_image(tmp_path / "empty.png")
    for suffix in ("png", "jpg", "gif", "tif"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"cut\.{suffix} is (a damaged|not a) picture"):
            lrp_jax.read_image(path)
    header = b"Image type: 0 1 image\r\nImage size (x*y): 2.5*2\r\nFile size (no of images): 1\r\n"  # IM; TypeError
    (tmp_path / "half.im").write_bytes(header.ljust(511, b"\0") + b"\x1a")
    with pytest.raises(ValueError, match=r"half\.im is a damaged picture"):
        lrp_jax.read_image(tmp_path / "half.im")
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif has floating-point pixels"):
        lrp_jax.read_image(tmp_path / "float.tif")


def box(brands):
    """The head of a file of HEIF's family."""
    return (16 + len(brands[4:])).to_bytes(4) + b"ftyp" + brands[:4] + bytes(4) + brands[4:] + bytes(100)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg", "a"])
@pytest.mark.parametrize("brands", [b"heic", b"mif1heic", b"heixmif1", b"isomheic", b"msf1hevc"])
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, name, brands):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "EXTENSION", {k: v for k, v in Image.registered_extensions().items() if k != ".heic"})
    (tmp_path / name).write_bytes(box(brands))
    with pytest.raises(ValueError, match=rf'{name} is a HEIF or AVIF picture: .*pip install "lrp-jax\[heif\]"'):
        lrp_jax.read_image(tmp_path / name)
    (tmp_path / name).write_bytes(box(b"isommp42"))
    with pytest.raises(ValueError, match="is not a picture of a known format"):
        lrp_jax.read_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    picture = Image.new("RGB", (32, 16), "red")
    assert np.abs(read_back(tmp_path / "a.avif", picture).astype(int) - np.asarray(picture)).max() < 10
    (tmp_path / "a.avif").write_bytes((tmp_path / "a.avif").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.avif is (a damaged|not a) picture"):
        lrp_jax.read_image(tmp_path / "a.avif")


def test_heic(tmp_path):
    """By its content, whatever the suffix, and upright."""
    heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.heic", "a.jpg"):
        heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=-1)
        (tmp_path / "a.heic").rename(tmp_path / name)
        assert np.abs(np.asarray(lrp_jax.read_image(tmp_path / name)).astype(int) - pixels).max() < 10
    heif.register_heif_opener()
    Image.fromarray(pixels).save(tmp_path / "b.heic", exif=exif.tobytes(), quality=-1)
    turned = np.asarray(lrp_jax.read_image(tmp_path / "b.heic")).astype(int)
    assert np.abs(turned - np.rot90(pixels, -1)).max() < 10
    (tmp_path / "b.heic").write_bytes((tmp_path / "b.heic").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.heic is (a damaged|not a) picture"):
        lrp_jax.read_image(tmp_path / "b.heic")


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


def plain_bilinear(x, size):
    """Half-pixel centres, clamped at the border (torch's ``align_corners=False``), one output at a time."""
    out = np.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = (np.clip((p + 0.5) * n / m - 0.5, 0, n - 1) for p, n, m in zip((i, j), x.shape, size, strict=True))
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            upper = x[y0, z0] * (1 - (z - z0)) + x[y0, z1] * (z - z0)
            lower = x[y1, z0] * (1 - (z - z0)) + x[y1, z1] * (z - z0)
            out[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


@pytest.mark.parametrize("size", [(32, 48), (4, 6), (9, 7), (2, 3)])
def test_heatmaps(size):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    actual = lrp_jax.heatmaps(maps, size)
    assert actual.shape == (2, 3, *size)
    expected = [[plain_bilinear(m, size) for m in row] for row in maps]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_bad_heatmaps():
    with pytest.raises(ValueError, match=r"got the shape \(4,\)"):
        lrp_jax.heatmaps(np.zeros(4), (8, 8))
    with pytest.raises(ValueError, match="got \\(0, 8\\)"):
        lrp_jax.heatmaps(np.zeros((4, 4)), (0, 8))


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


def test_masks_are_above_zero(tmp_path):
    """Of 16 bits, of a palette, on transparent ground, of one bit: wherever there is anything."""
    expected = np.zeros((6, 8), bool)
    expected[:, 4:] = True
    pixels = expected.astype(np.uint8)
    palette = Image.fromarray(pixels, "P")
    palette.putpalette([0, 0, 0, 0, 0, 3])
    strokes = np.stack([np.full_like(pixels, 255)] * 3 + [255 * pixels], axis=-1)
    opaque = np.stack([255 * pixels] * 3 + [np.full_like(pixels, 255)], axis=-1)
    masks = {
        "grey": Image.fromarray(pixels),
        "deep": Image.fromarray(pixels.astype(np.uint16)),
        "palette": palette,
        "strokes": Image.fromarray(strokes),
        "opaque": Image.fromarray(opaque),
        "colour": Image.fromarray(np.stack([0 * pixels, 0 * pixels, pixels], axis=-1)),
        "bit": Image.fromarray(expected),
    }
    for name, mask in masks.items():
        mask.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(images.read_mask(tmp_path / f"{name}.png")), expected, err_msg=name)
    for mode, index in (("P", 0), ("L", 1)):  # an index or a grey that stands for nothing
        ground = Image.fromarray(np.where(expected, 2, index).astype(np.uint8), mode)
        if mode == "P":
            ground.putpalette(range(9))
        ground.save(tmp_path / "ground.png", transparency=index)
        np.testing.assert_array_equal(np.asarray(images.read_mask(tmp_path / "ground.png")), expected)
    Image.fromarray(opaque, "CMYK").save(tmp_path / "ink.tif")
    with pytest.raises(ValueError, match=r"ink\.tif is a mask of mode CMYK"):
        images.read_mask(tmp_path / "ink.tif")
    (tmp_path / "bit.png").write_bytes(b"no mask")
    with pytest.raises(ValueError, match="not a picture of a known format"):
        images.read_mask(tmp_path / "bit.png")


@pytest.mark.parametrize("name", lrp_jax.METHODS)
def test_signed_methods_are_those_with_values_below_zero(name):
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, width=8, depth=2, num_heads=2, mlp_dim=8, num_classes=3)
    model = lrp_jax.ViT(config)
    image = np.random.default_rng(0).standard_normal((16, 16, 3), np.float32)
    params = jax.tree.map(lambda p: p * 3, model.init(jax.random.key(0), image)["params"])
    few = {"smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2}, "rise": {"masks": 8}}.get(name, {})
    relevance = lrp_jax.explain(model, params, image[None], np.arange(3)[None], method=name, **few).relevance
    assert bool((relevance < 0).any()) == lrp_jax.METHODS[name].signed
