"""Pictures and masks from files, upright, whatever their kind."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lrp_jax.files import needs

_WARNINGS = threading.Lock()  # their filters are the process's, and pictures are read in threads

# Pillow reads HEIF with pillow-heif, and AVIF by itself from 11.3 on; the brands are those at the head of a file.
_HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"} | _AVIF_BRANDS


def picture_suffixes() -> set[str]:
    """The suffixes of pictures, in small letters; those that need the extra ``heif`` as well, installed or not."""
    read = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    return {*read, *_HEIF_SUFFIXES}


def read_image(path: str | os.PathLike[str] | IO[bytes], *, name: str | None = None) -> Image.Image:
    """Read a picture of any kind as upright RGB.

    Grey, palette and 16-bit pictures become 8-bit RGB, what is transparent becomes white, and the rotation that a
    camera noted in EXIF is applied.

    Args:
        path: the file, or one that is open for reading bytes.
        name: what errors call an open file.

    Returns:
        The picture, mode RGB.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no picture, is truncated or damaged, has floating-point pixels, or is HEIF or AVIF and the
            extra ``heif`` is not installed.
    """
    called = os.fspath(path) if isinstance(path, (str, os.PathLike)) else name or "the file"
    image = _loaded(path, called)
    if image.mode == "F":
        raise ValueError(f"{called} has floating-point pixels, expected 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{called} has pixels from {grey.min()} to {grey.max()}, expected 8 or 16 bits.")
        image = Image.fromarray((grey // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(path: str | os.PathLike[str]) -> Image.Image:
    """Read a mask: foreground is what is not transparent and has a channel, or an index of a palette, above 0.

    Args:
        path: the file.

    Returns:
        The mask, mode 1.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no picture, is truncated or damaged, or is CMYK, YCbCr, LAB or HSV.
    """
    stored = _loaded(path, os.fspath(path))
    if stored.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"{path} is a mask of mode {stored.mode}, expected grey, RGB, or a palette.")
    alpha = "A" in stored.mode
    pixels = np.atleast_3d(np.asarray(stored))[..., : -1 if alpha else None]
    mask = (pixels > 0).any(axis=-1)
    if stored.has_transparency_data:
        mask &= np.asarray(stored.convert("RGBA"))[..., 3] > 0
    return Image.fromarray(mask)


def _loaded(path: str | os.PathLike[str] | IO[bytes], called: str) -> Image.Image:
    """A picture as it is stored, upright; errors call it so."""
    with open(path, "rb") if isinstance(path, (str, os.PathLike)) else contextlib.nullcontext(path) as file:
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = _opened(file)
            opened.load()
            image: Image.Image = ImageOps.exif_transpose(opened)
        except ImportError as error:
            raise ValueError(f"{called} is a HEIF or AVIF picture: {error}") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{called} is not a picture of a known format.") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{called} is too large a picture: {error}") from error
        except Exception as error:  # Pillow's many readers raise nearly any
            raise ValueError(f"{called} is a damaged picture: {error}") from error
    return image


def _opened(file: IO[bytes]) -> Image.Image:
    """Open a picture; one of HEIF, whatever its suffix, by the extra ``heif``."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        size, kind = int.from_bytes(file.read(4)), file.read(4)
        head = file.read(min(size, 256) - 8) if size > 8 else b""
        brands = {head[i : i + 4] for i in range(0, len(head), 4)}
        suffix = ".heic" if brands.isdisjoint(_AVIF_BRANDS) else ".avif"
        if kind != b"ftyp" or brands.isdisjoint(_HEIF_BRANDS) or suffix in Image.registered_extensions():
            raise
        needs("pillow_heif", extra="heif").register_heif_opener()
        return Image.open(file)
