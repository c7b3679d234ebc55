"""Pictures of any number of bands, from TIFF and ``.npy``, for models that see more than grey or colours."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from lrp_jax.files import needs
from lrp_jax.pictures.depth import Depth, Levels, PictureNote, checked_levels, pixels_of, stated_by_tiff
from lrp_jax.pictures.read import opened_file, picture_suffixes, read_image

_TIFF = (".tif", ".tiff")
_ORIENTATION, _PHOTOMETRIC = 274, 262  # tags of TIFF 6.0


@dataclasses.dataclass(frozen=True)
class Bands:
    """A picture of any number of bands.

    Attributes:
        pixels: from 0 to 1, float32 ``[H, W, channels]``.
    """

    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as of Pillow's pictures."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def shown(self) -> Image.Image:
        """The first three bands as red, green and blue; of one or two, the first as grey."""
        colours = self.pixels[..., : 3 if self.pixels.shape[2] >= 3 else 1]
        pixels = (255 * colours).round().astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


#: What files of pictures hold: grey or colours, bands, or an image that is normalised for the model already.
Picture = Image.Image | Bands | np.ndarray


def is_picture(name: str | os.PathLike[str], channels: int) -> bool:
    """Whether a file is, by its suffix, a picture for a model of so many channels.

    An array, ``.npy``, is one where other files have too few bands.
    """
    suffix = Path(name).suffix.lower()
    return suffix in picture_suffixes() or (suffix == ".npy" and channels not in (1, 3))


def has_bands(path: str | os.PathLike[str], channels: int) -> bool:
    """Whether a file is read by :func:`read_bands` for a model of so many channels, rather than as a picture."""
    suffix = Path(path).suffix.lower()
    return suffix == ".npy" or (channels not in (1, 3) and suffix in _TIFF)


def note_bands(picture: str, channels: int) -> None:
    """Say which bands are shown of a picture of more than colours."""
    if channels not in (1, 3):
        bands = "band 1" if channels == 2 else "bands 1, 2 and 3 as red, green and blue"
        warnings.warn(PictureNote(picture, f"has {channels} bands: shown is {bands}."), stacklevel=3)


def read_picture(
    path: str | os.PathLike[str] | IO[bytes], channels: int, *, name: str | None = None, levels: Levels | None = None
) -> Picture:
    """Read a picture for a model of so many channels: :func:`lrp_jax.read_image`, or :func:`read_bands`.

    Args:
        path: the file, or one that is open for reading bytes.
        channels: of the model.
        name: of an open file, by whose suffix it is read.
        levels: the samples that are black and white: see both functions.

    Returns:
        A picture, for a model of one channel or three; bands for any other; or what a ``.npy`` holds for any.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or has another number of bands than the model.
        ImportError: the extra ``tiff`` is needed and not installed.
    """
    called = name or os.fspath(path)  # type: ignore[arg-type]  # an open file has a name
    if has_bands(called, channels):
        return read_bands(path, channels, name=name, levels=levels)
    if channels not in (1, 3):
        raise ValueError(f"{called} is no TIFF and no .npy: expected one of the model's {channels} bands.")
    return read_image(path, name=name, levels=levels)


def read_bands(
    path: str | os.PathLike[str] | IO[bytes], channels: int, *, name: str | None = None, levels: Levels | None = None
) -> Bands | np.ndarray:
    """Read a picture of as many bands as a model has channels.

    Args:
        path: a TIFF (extra ``tiff``), its bands interleaved, in planes or a page each; or a ``.npy`` of
            ``[H, W, channels]``, or ``[H, W]`` for one channel; or one that is open for reading bytes.
        channels: of the model.
        name: of an open file, by whose suffix it is read.
        levels: the samples that are black and white; None: as the file says, else all of 8 or 16 bits.

    Returns:
        The bands; or, where the file is a ``.npy`` of floating-point numbers and there are no levels, the array: an
        image ``[H, W, channels]`` that is normalised for the model already.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, has another number of bands, or nothing says what is white, as where integers
            have 32 or 64 bits.
        ImportError: the extra ``tiff`` is not installed.
    """
    checked_levels(levels)
    called = name or os.fspath(path)  # type: ignore[arg-type]  # an open file has a name
    is_array = called.lower().endswith(".npy")
    with opened_file(path, called) as file:
        samples, depth = _of_npy(file, called) if is_array else _of_tiff(file, called, channels)
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.ndim != 3 or samples.shape[2] != channels or not samples.size:
        last = " Bands come last." if samples.ndim == 3 and samples.shape[0] == channels else ""
        raise ValueError(f"{called} has the shape {samples.shape}, expected [H, W, {channels}] for this model.{last}")
    if samples.dtype.kind == "f" and is_array and levels is None:
        return samples
    if samples.dtype.kind not in "uif":
        raise ValueError(f"{called} holds {samples.dtype}, expected integers or floating-point numbers.")
    return Bands(pixels_of(samples, depth, called, levels))


def _of_npy(file: IO[bytes], called: str) -> tuple[np.ndarray, Depth]:
    try:
        found = np.load(file, allow_pickle=False)
    except (EOFError, MemoryError, ValueError) as error:
        raise ValueError(f"{called} is no array of numbers, or a damaged one: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{called} is an archive, expected one array.")
    return found, Depth(None, "", False, "")


def _of_tiff(file: IO[bytes], called: str, channels: int) -> tuple[np.ndarray, Depth]:
    with _told(called), needs("tifffile", extra="tiff").TiffFile(file) as opened:
        series, tags = opened.series[0], opened.pages[0].tags
        said: dict[int, Any] = {tag.code: tag.value for tag in tags.values()}
        samples, axes = series.asarray(), series.axes
    if samples.ndim == 3 and samples.shape[0] == channels and not axes.endswith("S"):
        samples = np.moveaxis(samples, 0, -1)  # planes, or pages
    if said.get(_ORIENTATION, 1) != 1:
        raise ValueError(f"{called} is turned by its Orientation {said[_ORIENTATION]}: save it upright.")
    return samples, Depth(*stated_by_tiff(said), said.get(_PHOTOMETRIC) == 0, "")


@contextlib.contextmanager
def _told(called: str) -> Iterator[None]:
    """What the reader raises, as a ValueError that names the file."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # damaged files make it raise nearly any
        raise ValueError(f"{called} is no TIFF that can be read, or a damaged one: {error}") from error
