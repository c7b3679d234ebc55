"""Pictures and masks from files, upright, whatever their kind."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lrp_jax.files import needs, regular
from lrp_jax.pictures.depth import Depth, Levels, PictureNote, checked_levels, depth_of, eight_bits

T = TypeVar("T")

_PALETTE = 320  # ColorMap of TIFF 6.0
_WARNINGS = threading.Lock()  # their filters are the process's, and pictures are read in threads

# Pillow reads HEIF with pillow-heif, and AVIF by itself from 11.3 on; the brands are those at the head of a file.
_HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"} | _AVIF_BRANDS


def picture_suffixes() -> set[str]:
    """The suffixes of pictures, in small letters; those that need the extra ``heif`` as well, installed or not."""
    read = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    return {*read, *_HEIF_SUFFIXES}


@contextlib.contextmanager
def opened_file(path: str | os.PathLike[str] | IO[bytes], called: str) -> Iterator[IO[bytes]]:
    """A file for reading bytes, or one that is open already; a folder, a pipe and the like is refused at once."""
    if not isinstance(path, (str, os.PathLike)):
        yield path
        return
    with regular(path, called).open("rb") as file:
        yield file


def read_image(
    path: str | os.PathLike[str] | IO[bytes], *, name: str | None = None, levels: Levels | None = None
) -> Image.Image:
    """Read a picture of any kind as upright RGB of 8 bits.

    Grey and palette pictures become RGB, what is transparent becomes white, and the rotation that a camera noted in
    EXIF is applied. Samples of more than 8 bits are scaled: from black to white as ``levels`` says, or else as the file
    does (SMaxSampleValue, BitsPerSample and MaxSampleValue of TIFF, sBIT of PNG), or else from 0 to 65,535. A
    :class:`lrp_jax.pictures.PictureNote`, a warning, says so where the file decided, and where the upper bits are not
    used: 12 bits in a file of 16 look nearly black, until ``levels=(0, 4095)`` says what is white.

    Args:
        path: the file, or one that is open for reading bytes.
        name: what errors call an open file.
        levels: the samples (black, white) of pictures of more than 8 bits; what lies beyond becomes black or white.

    Returns:
        The picture, mode RGB.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no picture, is truncated or damaged, nothing says what is white in its floating-point pixels
            or in more than 16 bits, not all of its bits can be read, or it is HEIF or AVIF and the extra ``heif`` is
            not installed.
    """
    checked_levels(levels)
    called = os.fspath(path) if isinstance(path, (str, os.PathLike)) else name or "the file"

    def shown(opened: Image.Image, file: IO[bytes], depth: Depth | None) -> tuple[Image.Image, np.ndarray | None]:
        if depth is not None:
            return eight_bits(opened, file, depth, called, levels)
        _repair_palette(opened, called)
        return ImageOps.exif_transpose(opened), None

    image, transparent = _loaded(path, called, shown)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if transparent is not None:
        image.paste("white", mask=Image.fromarray(transparent))
    return image


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

    def upright(opened: Image.Image, file: IO[bytes], depth: Depth | None) -> tuple[Image.Image, Depth | None]:
        return ImageOps.exif_transpose(opened), depth

    stored, depth = _loaded(path, os.fspath(path), upright)
    if stored.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"{path} is a mask of mode {stored.mode}, expected grey, RGB, or a palette.")
    alpha = "A" in stored.mode
    pixels = np.atleast_3d(np.asarray(stored))[..., : -1 if alpha else None]
    if depth is not None and depth.inverted:
        pixels = pixels != (np.iinfo(np.uint16).max if stored.mode.startswith("I;") else pixels.max())
    mask = (pixels > 0).any(axis=-1)
    if stored.has_transparency_data:
        mask &= np.asarray(stored.convert("RGBA"))[..., 3] > 0
    return Image.fromarray(mask)


def _loaded(
    path: str | os.PathLike[str] | IO[bytes],
    called: str,
    use: Callable[[Image.Image, IO[bytes], Depth | None], T],
) -> T:
    """What a function makes of a picture as it is stored, of its file and of its depth; errors call it so."""
    with opened_file(path, called) as file:
        with _told(called), _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = _opened(file)
        depth = depth_of(opened, file, called)
        with _told(called):
            opened.load()
        return use(opened, file, depth)


@contextlib.contextmanager
def _told(called: str) -> Iterator[None]:
    """What Pillow raises, as a ValueError that names the picture."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{called} is a HEIF or AVIF picture: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{called} is not a picture of a known format.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{called} is too large a picture: {error}") from error
    except Exception as error:  # Pillow's many readers raise nearly any
        raise ValueError(f"{called} is a damaged picture: {error}") from error


def _repair_palette(opened: Image.Image, called: str) -> None:
    """Give a palette of TIFF its colours, where they were written in 8 bits instead of 16, as libtiff does."""
    colours = np.asarray(getattr(opened, "tag_v2", {}).get(_PALETTE, ()), int)
    if opened.mode == "P" and 0 < colours.max(initial=0) < 256:
        opened.putpalette(colours.reshape(3, -1).T.astype(np.uint8).tobytes())
        warnings.warn(PictureNote(called, "has a palette of 16 bits that holds 8, and is read as 8."), stacklevel=2)


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
