"""Pictures of any number of bands."""

import sys

import numpy as np
import pytest

from lrp_jax.pictures import read_bands
from lrp_jax.pictures.bands import has_bands

tifffile = pytest.importorskip("tifffile")
BANDS = np.random.default_rng(0).integers(0, 65536, (9, 11, 5)).astype(np.uint16)
LAYOUTS = {
    "interleaved": (BANDS, {"planarconfig": "contig"}),
    "deflate": (BANDS, {"planarconfig": "contig", "compression": "zlib"}),
    "planes": (BANDS.transpose(2, 0, 1), {"planarconfig": "separate"}),
    "pages": (BANDS.transpose(2, 0, 1), {}),
    "big-endian": (BANDS.transpose(2, 0, 1), {"byteorder": ">"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_layouts_of_tiff(tmp_path, layout, kind):
    samples, options = LAYOUTS[layout]
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(samples), photometric=kind, **options)
    expected = BANDS / 65535
    found = read_bands(tmp_path / "a.tif", 5).pixels
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected if kind == "minisblack" else 1 - expected, atol=1e-6)


def test_arrays_and_levels(tmp_path):
    np.save(tmp_path / "bytes.npy", BANDS.astype(np.uint8))
    np.testing.assert_allclose(read_bands(tmp_path / "bytes.npy", 5).pixels, BANDS.astype(np.uint8) / 255, atol=1e-6)
    np.save(tmp_path / "deep.npy", BANDS >> 4)
    with pytest.warns(UserWarning, match="makes use of 12 of its 16 bits"):
        np.testing.assert_allclose(read_bands(tmp_path / "deep.npy", 5).pixels, (BANDS >> 4) / 65535, atol=1e-6)
    found = read_bands(tmp_path / "deep.npy", 5, levels=(0, 4095)).pixels
    np.testing.assert_allclose(found, (BANDS >> 4) / 4095, atol=1e-6)
    normalised = BANDS.astype(np.float32) / 1e4 - 3
    np.save(tmp_path / "float.npy", normalised)
    np.testing.assert_array_equal(read_bands(tmp_path / "float.npy", 5), normalised.astype(np.float64))
    found = read_bands(tmp_path / "float.npy", 5, levels=(-3, 3.5535)).pixels
    np.testing.assert_allclose(found, BANDS / 65535, atol=1e-5)
    tifffile.imwrite(tmp_path / "float.tif", normalised, photometric="minisblack", planarconfig="contig")
    np.testing.assert_allclose(
        read_bands(tmp_path / "float.tif", 5, levels=(-3, 3.5535)).pixels, BANDS / 65535, atol=1e-5
    )
    np.save(tmp_path / "wide.npy", BANDS.astype(np.int64))
    np.testing.assert_allclose(read_bands(tmp_path / "wide.npy", 5, levels=(0, 65535)).pixels, BANDS / 65535, atol=1e-6)
    np.save(tmp_path / "grey.npy", BANDS[..., 0])
    assert read_bands(tmp_path / "grey.npy", 1).pixels.shape == (9, 11, 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (BANDS[..., :4], r"has the shape \(9, 11, 4\), expected \[H, W, 5\] for this model\.$"),
        (BANDS.transpose(2, 0, 1), r"has the shape \(5, 9, 11\), .* Bands come last"),
        (BANDS[None], r"has the shape \(1, 9, 11, 5\)"),
        (BANDS > 9, "holds bool, expected integers"),
        (BANDS.astype(np.int16), "has pixels from -"),
        ((BANDS >> 8).astype(np.int64), "holds int64 from 0 to 255, expected uint8 or uint16: .* such as 0 255"),
        ((BANDS >> 8).astype(np.uint32), "holds uint32 from 0 to 255, expected"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=r"a\.npy " + message):
        read_bands(tmp_path / "a.npy", 5)


def test_other_files_are_refused(tmp_path, monkeypatch):
    for name in ("a.npy", "a.tif"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=r"a\.\w+ is no "):
            read_bands(tmp_path / name, 5)
        with pytest.raises(FileNotFoundError):
            read_bands(tmp_path / f"no-{name}", 5)
    tifffile.imwrite(tmp_path / "turned.tif", BANDS, planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    with pytest.raises(ValueError, match="is turned by its Orientation 6"):
        read_bands(tmp_path / "turned.tif", 5)
    tifffile.imwrite(tmp_path / "float.tif", BANDS.astype(np.float32), planarconfig="contig")
    with pytest.raises(ValueError, match="has floating-point pixels"):
        read_bands(tmp_path / "float.tif", 5)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError, match=r"tifffile is needed here: .*lrp-jax\[tiff\]"):
        read_bands(tmp_path / "float.tif", 5)


def test_which_files_have_bands(tmp_path):
    assert [has_bands(tmp_path / "a.tif", channels) for channels in (1, 2, 3, 4)] == [False, True, False, True]
    assert has_bands(tmp_path / "a.npy", 3)
    assert not has_bands(tmp_path / "a.png", 5)
