"""The maps of many methods of one picture, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lrp_jax.checks import visible
from lrp_jax.pictures.draw import GREY, draw_scales, overlays, scaled
from lrp_jax.pictures.fonts import Font, draw_line, font_for, shortened

# In pixels.
_WIDTH = 1100  # of a page, about
_CELL = 256  # of a cell, at least: its title and note stand on one line
_OVERLAY = 128  # of an overlay, at least
_GAP, _SPACE, _MARGIN = 2, 20, 16  # between the overlays of a cell, between cells, around the page
_HEADING, _TITLE, _TEXT = 17, 13, 12  # heights of fonts
_LINE = 17  # from line to line
_ROOM = 560  # for what is said beside the picture, at least


class Cell(NamedTuple):
    """The maps of one method.

    Attributes:
        title: its name.
        note: what stands beside the name.
        maps: ``[K, rows, cols]``, finite.
        signed: whether their sign says for or against, see :func:`lrp_jax.overlay`.
        captions: K lines, one under each map.
    """

    title: str
    note: str
    maps: np.ndarray
    signed: bool
    captions: Sequence[str]


def montage(
    picture: Image.Image,
    heads: Sequence[str],
    cells: Sequence[Cell],
    *,
    lines: Sequence[str] = (),
    footnotes: Sequence[str] = (),
) -> Image.Image:
    """A page of maps: the picture and what is said of it, and below a cell for each method.

    Args:
        picture: the picture, as the model sees it.
        heads: K lines, what the maps of a cell are of.
        cells: at least one; each has K maps.
        lines: to stand beside the picture, the first as a heading.
        footnotes: paragraphs at the foot of the page.

    Returns:
        The page, mode RGB.

    Raises:
        ValueError: there is no cell, or the number of maps or captions of one is not that of the heads.
    """
    _check(heads, cells)
    count = len(heads)
    edge = max(_OVERLAY, (_CELL - _GAP * (count - 1)) // count)
    picture = scaled(picture, edge / picture.width)
    width = count * (edge + _GAP) - _GAP
    columns = min(max(1, round(_WIDTH / (width + _SPACE))), len(cells))
    rows = -(-len(cells) // columns)
    inner = max(columns * (width + _SPACE) - _SPACE, picture.width + _SPACE + _ROOM)
    feet = [line for note in footnotes for line in _wrapped(visible(note), inner)]
    captioned = any(any(cell.captions) for cell in cells)
    height = _LINE + picture.height + (_LINE if captioned else 0)
    top = _MARGIN + max(picture.height, (len(lines) + 3) * _LINE) + _SPACE  # of the heads
    first = top + _LINE + 5  # of the cells
    foot = first + rows * (height + _SPACE)
    size = (inner + 2 * _MARGIN, foot + (len(feet) * _LINE + _MARGIN if feet else _MARGIN - _SPACE))

    page = _Page(size)
    page.image.paste(picture, (_MARGIN, _MARGIN))
    beside = _MARGIN + picture.width + _SPACE
    page.write(lines, beside, inner + _MARGIN - beside)
    draw_scales(page.image, beside, _MARGIN + len(lines) * _LINE + 14, {cell.signed for cell in cells})
    for i, cell in enumerate(cells):
        left, upper = _MARGIN + i % columns * (width + _SPACE), first + i // columns * (height + _SPACE)
        if i < columns:
            page.caption(heads, left, top, edge)
        page.draw_cell(cell, picture, left, upper, width)
    for i, line in enumerate(feet):
        draw_line(page.draw, (_MARGIN, foot + i * _LINE), line, _TEXT, fill=GREY)
    return page.image


def _check(heads: Sequence[str], cells: Sequence[Cell]) -> None:
    if not cells:
        raise ValueError("a page needs at least one cell, got none.")
    for cell in cells:
        if cell.maps.ndim != 3 or not len(heads) == len(cell.maps) == len(cell.captions):
            raise ValueError(
                f"{cell.title}: expected {len(heads)} maps [K, rows, cols] and captions, one for each head; got the "
                f"shape {cell.maps.shape} and {len(cell.captions)} captions."
            )


class _Page:
    """An empty page, and what is drawn there."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.image = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.image)

    def write(self, lines: Sequence[str], left: int, width: int) -> None:
        """Lines at the head of the page, the first as a heading."""
        for i, line in enumerate(lines):
            height, colour, top = (_TEXT, GREY, 6) if i else (_HEADING, "black", 0)
            draw_line(self.draw, (left, _MARGIN + i * _LINE + top), line, height, width=width, fill=colour)

    def caption(self, captions: Sequence[str], left: int, top: int, edge: int) -> None:
        """A line in the middle of each overlay of a cell."""
        for k, caption in enumerate(captions):
            place = left + k * (edge + _GAP) + edge / 2, top
            draw_line(self.draw, place, caption, _TEXT, width=edge, fill=GREY, anchor="ma")

    def draw_cell(self, cell: Cell, picture: Image.Image, left: int, top: int, width: int) -> None:
        """Name and note, below them the overlays, and their captions."""
        line = top + _LINE - 5
        noted = draw_line(self.draw, (left + width, line), cell.note, _TEXT, fill=GREY, anchor="rs")
        draw_line(self.draw, (left, line), cell.title, _TITLE, width=width - noted - _GAP, anchor="ls")
        for k, part in enumerate(overlays(picture, cell.maps, signed=cell.signed)):
            self.image.paste(part, (left + k * (part.width + _GAP), top + _LINE))
        self.caption(cell.captions, left, top + _LINE + picture.height + 3, picture.width)


def _wrapped(text: str, width: float) -> list[str]:
    """A paragraph as lines of at most some pixels; a longer word has a line of its own, shortened."""
    lines: list[str] = []
    font: Font = font_for(text, _TEXT)
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, font, width))
    return lines
