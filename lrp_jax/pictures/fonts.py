"""A font for a text in any script: Pillow's own has Latin letters, those of the system have others."""

from __future__ import annotations

import os
import unicodedata
import warnings
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

from lrp_jax.checks import visible

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "cond", "narrow")  # tried last
_NO_CHARACTER = "\U0010ffff"  # no font has a glyph for it


def draw_line(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    height: int,
    *,
    width: float = float("inf"),
    fill: str | tuple[int, int, int] = "black",
    anchor: str = "la",
) -> float:
    """Draw a line of any text, without its middle where it is too wide.

    Args:
        draw: where.
        place: of the anchor.
        text: the line; what controls a terminal is drawn as an escape.
        height: of the font, in pixels.
        width: of the line, at most, in pixels.
        fill: its colour.
        anchor: as Pillow names it.

    Returns:
        How wide it is.
    """
    text = visible(text)
    font = font_for(text, height)
    shown = shortened(text, font, width)
    draw.text(place, shown, fill=fill, font=font, anchor=anchor)
    return font.getlength(shown)


def shortened(text: str, font: Font, width: float) -> str:
    """The text, without its middle where it is wider than ``width`` pixels."""
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]}\u2026{text[len(text) - (kept + 1) // 2 :]}"
    return shown


def font_for(text: str, height: int) -> Font:
    """A font that has the characters of a text; a warning says which it lacks, if none has all.

    Args:
        text: the text.
        height: of the font, in pixels.
    """
    own = ImageFont.load_default(height)
    needed = frozenset(c for c in text if unicodedata.category(c)[0] not in "ZC")
    if not isinstance(own, ImageFont.FreeTypeFont) or not _lacking(own, needed):
        return own
    path, lacking = _best_file(needed, _folders())
    if lacking:
        shown = "".join(sorted(lacking))
        warnings.warn(f"no font of this system has {shown!r}, which is drawn as boxes: install one.", stacklevel=2)
    return own if path is None else ImageFont.truetype(path, height)


@cache
def _best_file(needed: frozenset[str], folders: tuple[Path, ...]) -> tuple[Path | None, frozenset[str]]:
    """The font with the most of some characters, and those that it lacks."""
    best: tuple[Path | None, frozenset[str]] = None, needed
    for path in _files(folders):
        try:
            lacking = _lacking(ImageFont.truetype(path, 20, layout_engine=ImageFont.Layout.BASIC), needed)
        except (OSError, ValueError):  # no font, or of pictures in one size
            continue
        if len(lacking) < len(best[1]):
            best = path, lacking
        if not lacking:
            break
    return best


def _lacking(font: ImageFont.FreeTypeFont, characters: frozenset[str]) -> frozenset[str]:
    """The characters that a font draws as it draws what it does not have."""
    missing = font.getmask(_NO_CHARACTER)
    known = missing.size, bytes(missing)

    def drawn(c: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(c)
        return mask.size, bytes(mask)

    return frozenset(c for c in characters if drawn(c) == known)


@cache
def _files(folders: tuple[Path, ...]) -> list[Path]:
    """The fonts in folders, upright sans first."""
    found = [
        path
        for folder in folders
        for path in folder.rglob("*")
        # A font of last resort has for each character a picture of its script.
        if path.suffix.lower() in (".ttf", ".otf", ".ttc") and "lastresort" not in path.stem.lower()
    ]

    def order(path: Path) -> tuple[bool, bool, int, str]:
        name = path.stem.lower()
        return any(style in name for style in _STYLES), "sans" not in name, len(name), str(path)

    return sorted(found, key=order)


def _folders() -> tuple[Path, ...]:
    """Where systems keep fonts."""
    home, data = Path.home(), os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [
        *(Path(folder) / "fonts" for folder in data.split(os.pathsep)),
        *(home / ".local/share/fonts", home / ".fonts", home / "Library/Fonts"),
        *(Path("/Library/Fonts"), Path("/System/Library/Fonts")),
        Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
        home / "AppData/Local/Microsoft/Windows/Fonts",
    ]
    return tuple(folder for folder in folders if folder.is_dir())
