"""Pictures of any number of bands, from TIFF and ``.npy``, for models that see more than grey or colours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.files import needs
from lrp_jax.pictures.depth import Depth, Levels, checked_levels, pixels_of, stated_by_tiff

_TIFF = (".tif", ".tiff")
_ORIENTATION, _PHOTOMETRIC = 274, 262  # tags of TIFF 6.0


def has_bands(path: Path, channels: int) -> bool:
    """Whether a file is read by :func:`read_bands` for a model of so many channels, rather than as a picture."""
    suffix = path.suffix.lower()
    return suffix == ".npy" or (channels not in (1, 3) and suffix in _TIFF)


def read_bands(path: str | os.PathLike[str], channels: int, *, levels: Levels | None = None) -> np.ndarray:
    """Read a picture of as many bands as a model has channels.

    Args:
        path: a TIFF (extra ``tiff``), its bands interleaved, in planes or a page each; or a ``.npy`` of
            ``[H, W, channels]``, or ``[H, W]`` for one channel.
        channels: of the model.
        levels: the samples that are black and white; None: as the file says, else all of 8 or 16 bits.

    Returns:
        Pixels from 0 to 1, float32 ``[H, W, channels]``; or float64 where the file is a ``.npy`` of floating-point
        numbers and there are no levels: an image that is normalised for the model already.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, has another number of bands, or nothing says what is white, as where integers
            have 32 or 64 bits.
        ImportError: the extra ``tiff`` is not installed.
    """
    checked_levels(levels)
    path = Path(path)
    with path.open("rb"):  # for the operating system's own words
        pass
    samples, depth = _of_npy(path) if path.suffix.lower() == ".npy" else _of_tiff(path, channels)
    if samples.ndim == 2:
        samples = samples[..., None]
    if samples.ndim != 3 or samples.shape[2] != channels or not samples.size:
        last = " Bands come last." if samples.ndim == 3 and samples.shape[0] == channels else ""
        raise ValueError(f"{path} has the shape {samples.shape}, expected [H, W, {channels}] for this model.{last}")
    if samples.dtype.kind == "f" and path.suffix.lower() == ".npy" and levels is None:
        return samples.astype(np.float64)
    if samples.dtype.kind not in "uif":
        raise ValueError(f"{path} holds {samples.dtype}, expected integers or floating-point numbers.")
    return pixels_of(samples, depth, str(path), levels)


def _of_npy(path: Path) -> tuple[np.ndarray, Depth]:
    try:
        found = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} is no array of numbers, or a damaged one: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} is an archive, expected one array.")
    return found, Depth(None, "", False, "")


def _of_tiff(path: Path, channels: int) -> tuple[np.ndarray, Depth]:
    with _told(path), needs("tifffile", extra="tiff").TiffFile(path) as file:
        series, tags = file.series[0], file.pages[0].tags
        said: dict[int, Any] = {tag.code: tag.value for tag in tags.values()}
        samples, axes = series.asarray(), series.axes
    if samples.ndim == 3 and samples.shape[0] == channels and not axes.endswith("S"):
        samples = np.moveaxis(samples, 0, -1)  # planes, or pages
    if said.get(_ORIENTATION, 1) != 1:
        raise ValueError(f"{path} is turned by its Orientation {said[_ORIENTATION]}: save it upright.")
    return samples, Depth(*stated_by_tiff(said), said.get(_PHOTOMETRIC) == 0, "")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the reader raises, as a ValueError that names the file."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # damaged files make it raise nearly any
        raise ValueError(f"{path} is no TIFF that can be read, or a damaged one: {error}") from error
