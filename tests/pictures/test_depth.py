"""Samples of more than 8 bits have the brightness that their file or the caller says, and a note says which."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.pictures import PictureNote, read_mask

tifffile = pytest.importorskip("tifffile")
LARGEST, S_SMALLEST, S_LARGEST = 281, 340, 341  # tags of TIFF


def grey(bits, seed=0):
    """Random samples of so many bits, black and white among them."""
    samples = np.random.default_rng(seed).integers(0, 2**bits, (9, 11)).astype(np.uint16)
    samples[0, :2] = 0, 2**bits - 1
    return samples


def write_tiff(path, samples, kind="minisblack", tags=(), **options):
    tifffile.imwrite(path, samples, photometric=kind, extratags=[(*tag, True) for tag in tags], **options)


def write_png(path, samples, colour_type, *chunks):
    """A PNG of 16 bits, written by the specification: Pillow writes none of colours."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def read(path, **options):
    """The picture, and the notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = np.asarray(lrp_jax.read_image(path, **options)).astype(int)
    assert all(w.category is PictureNote and path.name in str(w.message) for w in caught)
    return pixels, " ".join(str(w.message) for w in caught)


def assert_close(pixels, fractions):
    """Pixels are what these fractions of white are, to the bit that is rounded."""
    fractions = fractions if fractions.ndim == 3 else fractions[..., None]
    assert np.abs(pixels - 255 * fractions).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bits_that_are_not_used_are_noted(tmp_path, bits, suffix):
    samples, path = grey(bits), tmp_path / f"a{suffix}"
    Image.fromarray(samples).save(path)
    pixels, note = read(path)
    assert_close(pixels, samples / 65535)
    assert f"makes use of {bits} of its 16 bits" in note
    assert f"--levels 0 {2**bits - 1}," in note
    pixels, note = read(path, levels=(0, 2**bits - 1))
    assert_close(pixels, samples / (2**bits - 1))
    assert not note


def test_sixteen_bits_need_no_note(tmp_path):
    samples = grey(16)
    Image.fromarray(samples).save(tmp_path / "a.png")
    pixels, note = read(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels[..., 0], samples // 257)
    assert not note


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_files_that_say_what_is_white(tmp_path, bits):
    """SMaxSampleValue as it is, MaxSampleValue by its bits, sBIT of samples that were not stretched."""
    samples, top = grey(bits), 2**bits - 1
    write_tiff(tmp_path / "s.tif", samples, tags=[(S_LARGEST, 3, 1, top)])
    write_tiff(tmp_path / "largest.tif", np.minimum(samples, top - 9), tags=[(LARGEST, 3, 1, top - 9)])
    write_png(tmp_path / "sbit.png", samples, 0, (b"sBIT", bytes([bits])))
    for name, field in {"s.tif": "SMax", "largest.tif": "Max", "sbit.png": "sBIT"}.items():
        pixels, note = read(tmp_path / name)
        assert_close(pixels, np.minimum(samples, top - 9) / top if name == "largest.tif" else samples / top)
        assert f"from 0 to {top:,} as its {field}" in note
    write_tiff(tmp_path / "window.tif", samples, tags=[(S_SMALLEST, 3, 1, 100), (S_LARGEST, 3, 1, top)])
    samples[samples < 100] = 100
    write_tiff(tmp_path / "window.tif", samples, tags=[(S_SMALLEST, 3, 1, 100), (S_LARGEST, 3, 1, top)])
    assert_close(read(tmp_path / "window.tif")[0], (samples - 100) / (top - 100))


def test_twelve_bits_that_are_packed(tmp_path):
    """Two samples in three bytes: BitsPerSample is 12."""
    samples = grey(12)[:, :10]
    first, second = samples[:, ::2].astype(int), samples[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    data = packed.reshape(9, 15).tobytes()
    fields = {256: 10, 257: 9, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 9, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data) + len(data) % 2)
    body = data + b"\0" * (len(data) % 2) + struct.pack("<H", len(fields)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + body)
    pixels, note = read(tmp_path / "a.tif")
    assert_close(pixels, samples / 4095)
    assert "as its BitsPerSample says" in note


def test_a_statement_that_the_samples_belie_does_not_count(tmp_path):
    samples = grey(16)
    write_tiff(tmp_path / "a.tif", samples, tags=[(S_LARGEST, 3, 1, 4095)])
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0][..., 0], samples // 257)


@pytest.mark.parametrize("stretch", [lambda s: s << 4, lambda s: np.rint(s * (65535 / 4095)).astype(np.uint16)])
@pytest.mark.parametrize("top", [4095, 200])
def test_significant_bits_that_were_stretched_stay(tmp_path, stretch, top):
    """As PNG wants samples of fewer bits stored; of a dark picture too."""
    samples = stretch(np.minimum(grey(12), top).astype(np.uint16))
    write_png(tmp_path / "grey.png", samples, 0, (b"sBIT", b"\x0c"))
    pixels, note = read(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels[..., 0], samples // 257)
    assert not note


@pytest.mark.parametrize("samples", [grey(16), np.tile(np.arange(256, dtype=np.uint8), (2, 1))])
def test_white_for_zero(tmp_path, samples):
    """16 bits as 8: the negative of what is stored; and so are masks."""
    write_tiff(tmp_path / "a.tif", samples, "miniswhite")
    pixels, _ = read(tmp_path / "a.tif")
    top = np.iinfo(samples.dtype).max
    assert_close(pixels, 1 - samples / top)
    np.testing.assert_array_equal(np.asarray(read_mask(tmp_path / "a.tif")), samples < top)
    if top == 65535:
        write_tiff(tmp_path / "b.tif", samples >> 4, "miniswhite", tags=[(S_LARGEST, 3, 1, 4095)])
        assert_close(read(tmp_path / "b.tif")[0], 1 - (samples >> 4) / 4095)


@pytest.mark.parametrize(
    ("samples", "levels"),
    [
        (grey(12).astype(np.float32) / 4095, (0, 1)),
        (grey(12).astype(np.float32) - 1000.5, (-1000.5, 3094.5)),
        (grey(12).astype(np.int16) - 1024, (-1024, 3071)),
        (grey(12).astype(np.int32) * 1000, (0, 4095000)),
    ],
)
def test_samples_whose_white_must_be_said(tmp_path, samples, levels):
    write_tiff(tmp_path / "a.tif", samples)
    with pytest.raises(ValueError, match=r"a\.tif has .*pixels from .* to .*, expected 8 or 16 bits: .*--levels BLACK"):
        lrp_jax.read_image(tmp_path / "a.tif")
    assert_close(read(tmp_path / "a.tif", levels=levels)[0], grey(12) / 4095)
    middle = (levels[0] + levels[1]) / 2  # what lies beyond is black or white
    half = read(tmp_path / "a.tif", levels=(levels[0], middle))[0]
    assert_close(half, np.minimum(grey(12) / 4095 * 2, 1))


def test_not_a_number(tmp_path):
    write_tiff(tmp_path / "a.tif", np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"a\.tif has pixels that are NaN"):
        lrp_jax.read_image(tmp_path / "a.tif", levels=(0, 1))


@pytest.mark.parametrize("levels", [(1, 1), (4095, 0), (0,), (0, np.nan), (0, 1, 2)])
def test_wrong_levels(tmp_path, levels):
    with pytest.raises(ValueError, match="levels must be"):
        lrp_jax.read_image(tmp_path / "a.tif", levels=levels)


COLOURS = np.stack([grey(12, seed) for seed in range(3)], axis=-1)
CONTAINERS = {
    "png": lambda path, s: write_png(path, s, 2 if s.shape[2] == 3 else 6),
    "raw": lambda path, s: write_tiff(path, s, "rgb"),
    "big-endian": lambda path, s: write_tiff(path, s, "rgb", byteorder=">"),
    "deflate": lambda path, s: write_tiff(path, s, "rgb", compression="zlib", predictor=True),
    "tiles": lambda path, s: write_tiff(path, s, "rgb", tile=(16, 16)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("alpha", [False, True])
def test_all_bits_of_colours(tmp_path, container, alpha):
    """Pillow keeps the upper 8 of 16 bits; those of 12 are all read."""
    path = tmp_path / f"a.{container if container == 'png' else 'tif'}"
    opaque = np.full((9, 11, 1), 65535, np.uint16)
    CONTAINERS[container](path, np.concatenate([COLOURS, opaque], axis=-1) if alpha else COLOURS)
    pixels, note = read(path)
    np.testing.assert_array_equal(pixels, COLOURS >> 8)
    assert "makes use of 12 of its 16 bits" in note
    assert_close(read(path, levels=(0, 4095))[0], COLOURS / 4095)


def test_colours_that_say_what_is_white(tmp_path):
    write_png(tmp_path / "a.png", COLOURS, 2, (b"sBIT", bytes([12] * 3)))
    write_tiff(tmp_path / "a.tif", COLOURS, "rgb", tags=[(S_LARGEST, 3, 3, (4095,) * 3)])
    for name in ("a.png", "a.tif"):
        pixels, note = read(tmp_path / name)
        assert_close(pixels, COLOURS / 4095)
        assert "from 0 to 4,095" in note


def test_what_pillow_does_not_read_right_is_refused(tmp_path):
    """Channels one after the other, of 16 bits; grey with alpha, of which there are but 8."""
    write_tiff(
        tmp_path / "planes.tif", np.ascontiguousarray(COLOURS.transpose(2, 0, 1)), "rgb", planarconfig="separate"
    )
    with pytest.raises(ValueError, match=r"planes\.tif has 16 bits in channels that lie one after the other"):
        lrp_jax.read_image(tmp_path / "planes.tif")
    write_png(tmp_path / "la.png", np.stack([grey(12), np.full((9, 11), 65535)], axis=-1), 4)
    with pytest.raises(ValueError, match=r"la\.png has 16 bits in a layout of which only 8 are read"):
        lrp_jax.read_image(tmp_path / "la.png", levels=(0, 4095))


def test_the_transparent_value_of_sixteen_bits(tmp_path):
    """tRNS is compared with all 16 bits."""
    samples = grey(16)
    write_png(tmp_path / "grey.png", samples, 0, (b"tRNS", struct.pack(">H", samples[3, 4])))
    expected = np.where(samples == samples[3, 4], 1, samples / 65535)
    assert_close(read(tmp_path / "grey.png")[0], expected)
    colours = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    colours[0, 0], colours[1, 1] = 0, (256, 512, 768)  # of which the lower 8 bits are those of black
    write_png(tmp_path / "rgb.png", colours, 2, (b"tRNS", struct.pack(">3H", 256, 512, 768)))
    expected = colours / 65535
    expected[1, 1] = 1
    assert_close(read(tmp_path / "rgb.png")[0], expected)


def test_a_palette_of_eight_bits_in_sixteen(tmp_path):
    indices, palette = np.array([[0, 1, 2]], np.uint8), np.zeros((3, 256), np.uint16)
    palette[:, 1], palette[:, 2] = (200, 100, 50), 255
    for name, colours in (("eight.tif", palette), ("sixteen.tif", palette * 257)):
        write_tiff(tmp_path / name, indices, "palette", colormap=colours)
        pixels, note = read(tmp_path / name)
        np.testing.assert_array_equal(pixels, [[[0, 0, 0], [200, 100, 50], [255, 255, 255]]])
        assert bool(note) == (name == "eight.tif")
