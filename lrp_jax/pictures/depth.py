"""Pictures of more than 8 bits a sample: what their files say of black and white, and how they become 8 bits."""

from __future__ import annotations

import math
import sys
import warnings
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

_FULL = 65535  # the largest value of 16 bits
_SIXTEEN = (np.uint16, np.int16)
# Tags of TIFF 6.0.
_BITS, _PHOTOMETRIC, _LARGEST, _SMALLEST_SHOWN, _LARGEST_SHOWN = 258, 262, 281, 340, 341

#: The samples that are black and white.
Levels = tuple[float, float]


class PictureNote(UserWarning):
    """What was assumed of a picture.

    Attributes:
        text: the same for all pictures of which this was assumed.
    """

    def __init__(self, picture: str, text: str) -> None:
        super().__init__(f"{picture} {text}")
        self.text = text


class Depth(NamedTuple):
    """What a file says of its samples of more than 8 bits.

    Attributes:
        levels: the samples that are black and white; None: it does not say.
        said_by: the field that says so.
        inverted: whether the largest sample is black (TIFF's PhotometricInterpretation 0, white is zero).
        layout: Pillow's name for the order of the bytes of colours; empty, of grey.
    """

    levels: Levels | None
    said_by: str
    inverted: bool
    layout: str


def checked_levels(levels: Levels | None) -> Levels | None:
    """The levels as given, if they are two finite numbers, black below white, or None."""
    numbers = levels is None or (len(levels) == 2 and all(math.isfinite(level) for level in levels))
    if not numbers or (levels is not None and not levels[0] < levels[1]):
        raise ValueError(f"levels must be the samples (black, white), black below white; got {levels!r}.")
    return levels


def depth_of(opened: Image.Image, file: IO[bytes], called: str) -> Depth | None:
    """What the file says of an image that is opened and not loaded yet; None: its samples have 8 bits or fewer.

    Raises:
        ValueError: Pillow does not read such a file right.
    """
    tags: Any = getattr(opened, "tag_v2", {})
    layouts = [str(raw) for raw in map(_layout, getattr(opened, "tile", ())) if ";16" in str(raw)]
    is_grey = opened.mode.startswith(("I", "F"))
    if not is_grey and not layouts and max(tags.get(_BITS, (1,))) > 8:
        raise ValueError(f"{called} has 16 bits in channels that lie one after the other: save it interleaved.")
    if is_grey and opened.format == "FITS":
        raise ValueError(f"{called} is FITS of more than 8 bits, whose BZERO and BSCALE are not read: save it as TIFF.")
    if not is_grey and not layouts:
        return None
    stated = _stated_by_png(file) if opened.format == "PNG" else stated_by_tiff(tags)
    return Depth(*stated, tags.get(_PHOTOMETRIC) == 0, "" if is_grey else layouts[0])


def _layout(tile: Any) -> Any:
    """How the bytes of a part of a picture are unpacked."""
    return tile[3][0] if tile[3] and isinstance(tile[3], tuple) else tile[3]


def stated_by_tiff(tags: Any) -> tuple[Levels | None, str]:
    """What the tags of a TIFF, by their numbers, say of samples of more than 8 bits."""
    bits, largest = int(np.max(tags.get(_BITS, 16))), int(np.max(tags.get(_LARGEST, 0)))
    if _LARGEST_SHOWN in tags:
        levels = float(np.min(tags.get(_SMALLEST_SHOWN, 0))), float(np.max(tags[_LARGEST_SHOWN]))
        return (levels, "SMaxSampleValue") if levels[0] < levels[1] else (None, "")
    if bits < 16:
        return (0, 2**bits - 1), "BitsPerSample"
    if 0 < largest.bit_length() < 16:  # TIFF 6.0 has it as a statistic: it tells how many bits there are, not white
        return (0, 2 ** largest.bit_length() - 1), "MaxSampleValue"
    return None, ""


def _stated_by_png(file: IO[bytes]) -> tuple[Levels | None, str]:
    """What the chunk sBIT says, which Pillow does not read."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"PLTE", b"IDAT", b"IEND"):
        size = int.from_bytes(head[:4])
        if head[4:] == b"sBIT" and size <= 4:
            bits = max(file.read(size), default=16)
            return ((0, 2**bits - 1), "sBIT") if 0 < bits < 16 else (None, "")
        file.seek(size + 4, 1)
    return None, ""


def eight_bits(
    opened: Image.Image, file: IO[bytes], depth: Depth, called: str, levels: Levels | None
) -> tuple[Image.Image, np.ndarray | None]:
    """An image of more than 8 bits a sample, upright, in 8, and where it is transparent by its colour, if anywhere.

    Args:
        opened: the image, loaded.
        file: of the image.
        depth: what the file says of it.
        called: the picture, for notes.
        levels: the samples that are black and white; None: as the file says, or else all 16 bits.

    Raises:
        ValueError: nothing says what is white, or Pillow does not give all bits.
    """
    image: Image.Image = ImageOps.exif_transpose(opened)
    key = opened.info.get("transparency")
    if not depth.layout:
        grey = np.asarray(image).astype(np.float64 if image.mode == "F" else np.int64)
        bytes_ = _scaled(grey, _levels(grey, depth, called, levels, image.mode), depth)
        return Image.fromarray(bytes_), None if key is None else grey == key
    has_alpha = image.mode.upper().endswith("A")
    if levels is None and depth.levels is None and key is None:
        upper = np.atleast_3d(np.asarray(image))
        _note_unused(256 * int(upper[..., : upper.shape[-1] - has_alpha].max()), called)
        return image, None  # Pillow has kept the upper 8 bits
    samples = _all_bits(image, file, depth, called)
    colours = samples[..., :3]
    found = _levels(colours, depth, called, levels, image.mode)
    parts = [_scaled(colours, found, depth)]
    if has_alpha:
        whole = (0, found[1]) if samples[..., 3].max() <= found[1] else (0, _FULL)
        parts.append(_scaled(samples[..., 3:], whole, depth))
    place = None if key is None else (colours == np.asarray(key)).all(axis=-1)
    return Image.fromarray(np.concatenate(parts, axis=-1)), place


def pixels_of(samples: np.ndarray, depth: Depth, called: str, levels: Levels | None) -> np.ndarray:
    """Samples of any shape as pixels from 0 to 1, float32; the arguments are those of :func:`eight_bits`."""
    if samples.dtype == np.uint8 and levels is None:
        found: Levels = (0, 255)
    elif levels is None and depth.levels is None and samples.dtype.kind != "f" and samples.dtype not in _SIXTEEN:
        raise ValueError(  # NumPy makes int64 of bytes that are listed or computed with
            f"{called} holds {samples.dtype} from {samples.min()} to {samples.max()}, expected uint8 or uint16: "
            "levels=(BLACK, WHITE), in commands --levels BLACK WHITE, says what is black and white, such as 0 255."
        )
    else:
        wide = samples.astype(np.float64 if samples.dtype.kind == "f" else np.int64)
        found = _levels(wide, depth, called, levels, "F" if samples.dtype.kind == "f" else "I")
    black, white = reversed(found) if depth.inverted else found
    return ((samples.astype(np.float64) - black) / (white - black)).clip(0, 1).astype(np.float32)


def _levels(samples: np.ndarray, depth: Depth, called: str, asked: Levels | None, mode: str) -> Levels:
    """Black and white of samples: as asked, as the file says unless its samples say otherwise, or of 16 bits."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{called} has pixels that are NaN or infinite.")
    if asked is not None:
        return asked
    low, high, stated = samples.min(), samples.max(), depth.levels
    if stated and depth.said_by == "sBIT" and _is_stretched(samples, int(stated[1])):
        return 0, _FULL  # as PNG wants it
    if stated and stated[0] <= low and high <= stated[1]:
        shown = " to ".join(f"{level:,.10g}" for level in stated)
        warnings.warn(PictureNote(called, f"is read from {shown} as its {depth.said_by} says."), stacklevel=2)
        return stated
    if mode == "F" or low < 0 or high > _FULL:
        raise ValueError(
            f"{called} has {'floating-point ' if mode == 'F' else ''}pixels from {low:.10g} to {high:.10g}, expected 8 "
            "or 16 bits: levels=(BLACK, WHITE), in commands --levels BLACK WHITE, says what is black and white."
        )
    _note_unused(int(high), called)
    return 0, _FULL


def _scaled(samples: np.ndarray, levels: Levels, depth: Depth) -> np.ndarray:
    black, white = reversed(levels) if depth.inverted else levels
    return np.floor((samples - black) * 255.0 / (white - black)).clip(0, 255).astype(np.uint8)


def _is_stretched(samples: np.ndarray, white: int) -> bool:
    """Whether samples of fewer bits were stretched to 16, by zeros below or evenly."""
    unused = 16 - white.bit_length()
    evenly = np.rint((samples >> unused) * (_FULL / white))
    return not (samples & ((1 << unused) - 1)).any() or bool((np.abs(samples - evenly) <= 1).all())


def _note_unused(high: int, called: str) -> None:
    """Say it where 16 bits are not made use of: the file may hold 12, and look nearly black."""
    bits = high.bit_length()
    if 0 < bits < 16:
        top = 2**bits - 1
        text = (
            f"makes use of {bits} of its 16 bits and is read as 16 bits: if white is {top:,}, levels=(0, {top}), in "
            f"commands --levels 0 {top}, reads the picture so."
        )
        warnings.warn(PictureNote(called, text), stacklevel=2)


def _all_bits(image: Image.Image, file: IO[bytes], depth: Depth, called: str) -> np.ndarray:
    """Samples of colours, 16 bits: Pillow keeps the upper 8, and those of the other order of bytes are the lower 8."""
    if depth.layout.partition(";")[0] not in ("RGB", "RGBX", "RGBA"):
        raise ValueError(f"{called} has 16 bits in a layout of which only 8 are read ({depth.layout}): save it as RGB.")
    exchanged = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

    def swapped(tile: Any) -> Any:
        layout = _layout(tile)
        layout = layout[:-1] + exchanged[layout[-1]]
        parts = (*tile[:3], (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout)
        return parts if type(tile) is tuple else type(tile)(*parts)

    file.seek(0)
    lower = Image.open(file)
    lower.tile = [swapped(tile) for tile in lower.tile]
    lower.load()
    both = [np.asarray(part, np.int64) for part in (image, ImageOps.exif_transpose(lower))]
    return both[0] << 8 | both[1]
