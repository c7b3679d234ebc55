"""Texts in any script are drawn in a font that has it, and nothing in a text steers what shows it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from lrp_jax.checks import visible
from lrp_jax.pictures import fonts


@pytest.fixture
def dejavu(monkeypatch):
    """A system with the fonts of matplotlib."""
    folder = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"
    monkeypatch.setattr(fonts, "_folders", lambda: (folder,))
    return folder


def test_latin_needs_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "_folders", lambda: pytest.fail("no font is to be looked for"))
    assert fonts.font_for("golden retriever 47.3%\u2026", 15).getname() == ImageFont.load_default(15).getname()


@pytest.mark.parametrize("text", ["Ёлка", "Ελληνικά 47.3%", "שלום", "قطة"])
def test_a_font_of_the_system_has_other_scripts(dejavu, text):
    font = fonts.font_for(text, 15)
    assert font.getname() == ("DejaVu Sans", "Book")
    image = Image.new("L", (200, 30), 255)
    fonts.draw_line(ImageDraw.Draw(image), (0, 0), text, 15)
    expected = Image.new("L", (200, 30), 255)
    ImageDraw.Draw(expected).text((0, 0), text, fill=0, font=ImageFont.truetype(dejavu / "DejaVuSans.ttf", 15))
    np.testing.assert_array_equal(image, expected)


def test_characters_that_no_font_has_are_named(dejavu, tmp_path):
    with pytest.warns(UserWarning, match="no font of this system has '猫'"):
        fonts.font_for("猫 47.3%", 15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fonts.draw_line(ImageDraw.Draw(Image.new("L", (200, 30))), (0, 0), "猫", 15)


def test_files_that_are_no_fonts_are_passed_over(monkeypatch, tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_folders", lambda: (tmp_path,))
    with pytest.warns(UserWarning, match="no font of this system"):
        fonts.font_for("Ёлка", 15)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("gpj\u202e.exe", r"gpj\u202e.exe"),
        ("\u2028\udcff", r"\u2028\udcff"),
        ("猫 Ёлка é\u200d", "猫 Ёлка é\u200d"),
    ],
)
def test_what_steers_is_escaped(text, shown):
    assert visible(text) == shown
