"""Heat maps over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from PIL import Image, ImageDraw

from lrp_jax.maps import heatmaps
from lrp_jax.pictures.fonts import draw_line
from lrp_jax.pictures.preprocessing import Box

_PANEL = 224  # smallest edge of each picture of a panel, in pixels
_WHOLE = 1024  # largest edge of a whole picture in a panel
_TEXT, _SMALL = 15, 12  # heights of fonts
_MARGIN = 8
_BAR = (96, 10)  # a scale of colours
_SLIMMEST = 8  # of a picture in its own shape, the longer edge over the shorter

GREY = (96, 96, 96)

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


def overlay(
    picture: Image.Image, heatmap: ArrayLike, *, signed: bool = False, limits: tuple[float, float] | None = None
) -> Image.Image:
    """Lay a heat map over the grey form of its picture.

    Args:
        picture: the picture.
        heatmap: ``[H, W]``, the size of the picture.
        signed: whether the sign says for or against (:attr:`lrp_jax.methods.Method.signed`). If so, zero is drawn
            neutral, what is below blue and what is above red, on one scale up to the 99th percentile of the absolute
            value. Otherwise the smallest value is drawn dark, the largest bright.
        limits: the values that get the first and the last colour, instead of those of this map: of several maps on one
            scale, :func:`limits_of` them all.

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
    low, high = limits_of(heat, signed=signed) if limits is None else limits
    heat = (heat / (high or 1)).clip(-1, 1) if signed else ((heat - low) / ((high - low) or 1)).clip(0, 1)
    table = _SIGNED_COLOURS if signed else _COLOURS
    places = np.linspace(-1 if signed else 0, 1, len(table))
    colours = np.stack([np.interp(heat, places, channel) for channel in table.T], axis=-1)
    grey = np.asarray(picture.convert("L"), np.float64)[..., None]
    cover = 0.3 + 0.4 * np.abs(heat)[..., None]
    return Image.fromarray(((1 - cover) * grey + cover * colours).round().astype(np.uint8))


def limits_of(maps: ArrayLike, *, signed: bool = False) -> tuple[float, float]:
    """The values of maps of any shape that get the first and the last colour of one scale: see :func:`overlay`."""
    heat = np.asarray(maps, np.float64)
    if not signed:
        return float(heat.min()), float(heat.max())
    size = np.abs(heat)
    high = float(np.percentile(size, _SIGNED_RANGE) or size.max())
    return -high, high


def panel(
    picture: Image.Image,
    maps: ArrayLike,
    captions: Sequence[str],
    *,
    signed: bool | Sequence[bool] = False,
    title: str = "",
    one_scale: bool = True,
    box: Box | None = None,
) -> Image.Image:
    """A picture and, beside it, the overlay of each of its maps with a caption; below, what the colours mean.

    Args:
        picture: the picture, as the model sees it, or with ``box`` all of it.
        maps: ``[K, rows, cols]``.
        captions: K lines.
        signed: whether the maps' signs say for or against, of all or of each: see :func:`overlay`.
        title: a line above, such as the name of the method.
        one_scale: whether a colour means the same value in all maps; else each has a scale of its own, as maps of
            different methods must have.
        box: the part of the picture that the maps cover: :func:`lrp_jax.pictures.seen_box`.

    Returns:
        The panel, mode RGB, each picture of it enlarged to 224 pixels or more, a whole one to at most 1,024.

    Raises:
        ValueError: the numbers of maps and captions, or of maps and of ``signed``, differ.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or len(maps) != len(captions):
        raise ValueError(f"maps must be [K, rows, cols] for {len(captions)} captions, got the shape {maps.shape}.")
    scale = max(1, _PANEL / min(picture.size))
    if box is not None:
        scale = min(scale, _WHOLE / max(picture.size))
        box = box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale
    picture = scaled(picture, scale)
    pictures = [picture, *overlays(picture, maps, signed=signed, one_scale=one_scale, box=box)]
    column = max(picture.width, _PANEL if box else 0)
    step, top = column + _MARGIN, _MARGIN + (_TEXT + _MARGIN if title else 0)
    foot = top + picture.height + _MARGIN + _TEXT
    size = _MARGIN + step * len(pictures), foot + _MARGIN + (_SMALL + _MARGIN if len(maps) else 0)
    out = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(out)
    draw_line(draw, (_MARGIN, _MARGIN), title, _TEXT, width=size[0] - 2 * _MARGIN)
    for k, (part, caption) in enumerate(zip(pictures, ["image", *captions], strict=True)):
        left = _MARGIN + k * step
        out.paste(part, (left + (column - part.width) // 2, top))
        draw_line(draw, (left + column / 2, foot - _TEXT / 2), caption, _TEXT, width=column, anchor="mm")
    if len(maps):
        right = draw_scales(out, _MARGIN, foot + _MARGIN, set(np.broadcast_to(signed, len(maps)).tolist()))
        said = "one scale for all maps" if one_scale else "each map has a scale of its own"
        middle = foot + _MARGIN + _BAR[1] / 2
        draw_line(draw, (right, middle), said if len(maps) > 1 else "", _SMALL, fill=GREY, anchor="lm")
    return out


def overlays(
    picture: Image.Image,
    maps: ArrayLike,
    *,
    signed: bool | Sequence[bool] = False,
    one_scale: bool = False,
    box: Box | None = None,
) -> list[Image.Image]:
    """The overlay of each of K maps ``[K, rows, cols]``, enlarged to the picture or to the part of it in the box.

    The arguments are those of :func:`panel`.
    """
    left, top, right, bottom = map(round, box or (0, 0, *picture.size))
    part = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    large = np.asarray(heatmaps(np.asarray(maps), (part.height, part.width)))
    signs = np.broadcast_to(signed, len(large)).tolist()
    found = []
    for heat, sign in zip(large, signs, strict=True):
        limits = limits_of(large[np.equal(signs, sign)], signed=sign)
        drawn = overlay(part, heat, signed=sign, limits=limits if one_scale else None)
        if box is not None:
            whole = picture.convert("L").convert("RGB")
            whole.paste(drawn, (left, top))
            drawn = whole
        found.append(drawn)
    return found


def draw_scales(image: Image.Image, left: int, top: int, kinds: set[bool]) -> int:
    """Draw what the colours of some kinds of maps mean, signed or not; where they end, with a space behind."""
    draw, middle = ImageDraw.Draw(image), top + _BAR[1] / 2
    for signed, (low, high) in {False: ("least", "most relevant"), True: ("against", "for the class")}.items():
        if signed in kinds:
            left += round(draw_line(draw, (left, middle), low, _SMALL, fill=GREY, anchor="lm")) + 6
            image.paste(scale_of_colours(_BAR, signed=signed), (left, top))
            left += _BAR[0] + 6
            left += round(draw_line(draw, (left, middle), high, _SMALL, fill=GREY, anchor="lm")) + 20
    return left


def scale_of_colours(size: tuple[int, int], *, signed: bool) -> Image.Image:
    """The colours of maps from the first to the last, over grey, of this width and height."""
    heat = np.tile(np.linspace(-1 if signed else 0, 1, size[0]), (size[1], 1))
    return overlay(Image.new("L", size, 128), heat, signed=signed, limits=(-1 if signed else 0, 1))


def scaled(picture: Image.Image, scale: float) -> Image.Image:
    """The picture, larger or smaller by a factor."""
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def in_shape(picture: Image.Image, box: Box) -> Image.Image:
    """What a model sees, in the shape of the part of the picture that it is of: as it is, if it was not squashed."""
    wanted, shape = (box[2] - box[0]) / (box[3] - box[1]), picture.width / picture.height
    wanted = min(max(wanted, 1 / _SLIMMEST), _SLIMMEST)
    if abs(wanted / shape - 1) < 0.02:  # by the rounding of a resize
        return picture
    size = picture.width, picture.height
    size = (round(size[1] * wanted), size[1]) if wanted > shape else (size[0], round(size[0] / wanted))
    return picture.resize(size, Image.Resampling.BICUBIC)
