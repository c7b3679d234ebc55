"""Heat maps over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from lrp_jax.maps import heatmaps, unit_range

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PANEL = 224  # smallest edge of each picture of a panel, in pixels
_FONT = 15  # height of a caption's font, in pixels
_MARGIN = 8

# From none to most: matplotlib's inferno (Smith and van der Walt, CC0) at nine even places.
_COLOURS = np.array(
    [
        [0, 0, 4],
        [31, 12, 72],
        [85, 15, 109],
        [136, 34, 106],
        [186, 54, 85],
        [227, 89, 51],
        [249, 140, 10],
        [249, 201, 50],
        [252, 255, 164],
    ]
)
# From against to for, neutral at zero: Moreland 2009, "Diverging Color Maps for Scientific Visualization", which tells
# apart who sees no red or no green; matplotlib's coolwarm at nine even places.
_SIGNED_COLOURS = np.array(
    [
        [59, 76, 192],
        [98, 130, 234],
        [141, 176, 254],
        [185, 208, 249],
        [221, 220, 220],
        [245, 196, 172],
        [244, 152, 122],
        [221, 95, 75],
        [180, 4, 38],
    ]
)
_SIGNED_RANGE = 99  # percent of the pixels that the colours tell apart: a few are often far above all others


def overlay(picture: Image.Image, heatmap: ArrayLike, *, signed: bool = False) -> Image.Image:
    """Lay a heat map over the grey form of its picture.

    Args:
        picture: the picture.
        heatmap: ``[H, W]``, the size of the picture.
        signed: whether the sign says for or against (:attr:`lrp_jax.methods.Method.signed`). If so, zero is drawn
            neutral, what is below blue and what is above red, on one scale up to the 99th percentile of the absolute
            value. Otherwise the smallest value is drawn dark, the largest bright.

    Returns:
        The picture, mode RGB.

    Raises:
        ValueError: the sizes differ, or the heat map is not finite.
    """
    heat = np.asarray(heatmap, np.float64)
    if heat.shape != (picture.height, picture.width):
        raise ValueError(f"heatmap must be [H, W] = {(picture.height, picture.width)}, got the shape {heat.shape}.")
    if not np.isfinite(heat).all():
        raise ValueError("heatmap must be finite, got NaN or infinite values.")
    if signed:
        size = np.abs(heat)
        heat = (heat / (np.percentile(size, _SIGNED_RANGE) or size.max() or 1)).clip(-1, 1)
    else:
        heat = np.asarray(unit_range(heat))
    table = _SIGNED_COLOURS if signed else _COLOURS
    places = np.linspace(-1 if signed else 0, 1, len(table))
    colours = np.stack([np.interp(heat, places, channel) for channel in table.T], axis=-1)
    grey = np.asarray(picture.convert("L"), np.float64)[..., None]
    cover = 0.3 + 0.4 * np.abs(heat)[..., None]
    return Image.fromarray(((1 - cover) * grey + cover * colours).round().astype(np.uint8))


def panel(
    picture: Image.Image, maps: ArrayLike, captions: Sequence[str], *, signed: bool | Sequence[bool] = False
) -> Image.Image:
    """A picture and, beside it, the overlay of each of its maps with a caption.

    Args:
        picture: the picture, as the model sees it.
        maps: ``[K, rows, cols]``.
        captions: K lines.
        signed: whether the maps' signs say for or against, of all or of each: see :func:`overlay`.

    Returns:
        The panel, mode RGB, each picture of it enlarged to 224 pixels or more.

    Raises:
        ValueError: the numbers of maps and captions, or of maps and of ``signed``, differ.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or len(maps) != len(captions):
        raise ValueError(f"maps must be [K, rows, cols] for {len(captions)} captions, got the shape {maps.shape}.")
    picture = scaled(picture, max(1, _PANEL / min(picture.size)))
    pictures = [picture, *overlays(picture, maps, signed=signed)]
    font = ImageFont.load_default(_FONT)
    step = picture.width + _MARGIN
    out = Image.new("RGB", (_MARGIN + step * len(pictures), picture.height + 2 * (_MARGIN + _FONT)), "white")
    draw = ImageDraw.Draw(out)
    for k, (part, caption) in enumerate(zip(pictures, ["image", *captions], strict=True)):
        left = _MARGIN + k * step
        out.paste(part, (left, _MARGIN))
        place = (left + picture.width / 2, picture.height + _MARGIN + _FONT)
        draw.text(place, shortened(caption, font, picture.width), fill="black", font=font, anchor="mm")
    return out


def overlays(picture: Image.Image, maps: ArrayLike, *, signed: bool | Sequence[bool] = False) -> list[Image.Image]:
    """The overlay of each of K maps ``[K, rows, cols]``, enlarged to the picture; ``signed`` as of :func:`panel`."""
    maps = np.asarray(maps)
    large = heatmaps(maps, (picture.height, picture.width))
    signs = np.broadcast_to(signed, len(maps)).tolist()
    return [overlay(picture, heat, signed=sign) for heat, sign in zip(large, signs, strict=True)]


def scaled(picture: Image.Image, scale: float) -> Image.Image:
    """The picture, larger or smaller by a factor."""
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def shortened(text: str, font: Font, width: float) -> str:
    """The text, without its middle where it is wider than ``width`` pixels."""
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]}\u2026{text[len(text) - (kept + 1) // 2 :]}"
    return shown
