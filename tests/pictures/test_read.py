"""Pictures and masks of any kind are read, and what is none is named."""

import sys

import numpy as np
import pytest
from PIL import Image, features

import lrp_jax
from lrp_jax.pictures import read_mask


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
        np.testing.assert_array_equal(np.asarray(read_mask(tmp_path / f"{name}.png")), expected, err_msg=name)
    for mode, index in (("P", 0), ("L", 1)):  # an index or a grey that stands for nothing
        ground = Image.fromarray(np.where(expected, 2, index).astype(np.uint8), mode)
        if mode == "P":
            ground.putpalette(range(9))
        ground.save(tmp_path / "ground.png", transparency=index)
        np.testing.assert_array_equal(np.asarray(read_mask(tmp_path / "ground.png")), expected)
    Image.fromarray(opaque, "CMYK").save(tmp_path / "ink.tif")
    with pytest.raises(ValueError, match=r"ink\.tif is a mask of mode CMYK"):
        read_mask(tmp_path / "ink.tif")
    (tmp_path / "bit.png").write_bytes(b"no mask")
    with pytest.raises(ValueError, match="not a picture of a known format"):
        read_mask(tmp_path / "bit.png")
