"""Tables, progress and warnings."""

import sys
import warnings

import pytest

from lrp_jax.cli import console


def test_names_that_are_to_be_typed_are_not_cut(monkeypatch, capsys):
    """In a terminal of 80 columns: lines break between words, or run on."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")  # without colours
    monkeypatch.setenv("COLUMNS", "80")
    long = ["folder/" + "x" * 60 + ".png", "lrp_jax_maps/" + "x" * 60 + ".explained.png", "--some-option=1 --other=2"]
    rows = console.table("image", "panel", "options")
    console.add_row(rows, *long)
    console.print_table(rows)
    out = capsys.readouterr().out
    for word in " ".join(long).split():
        assert word in out
    rows = console.table("name", "what")
    console.add_row(rows, "name", "several words " * 20)
    console.print_table(rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_what_happens_is_said_at_once(capsys):
    with console.progress("explaining", 4) as (advance, _):
        assert "compiled first" in capsys.readouterr().err
        advance(4)
    assert "4 of 4 images" in capsys.readouterr().err


def test_warnings_are_lines(capsys):
    with console.warnings_told():
        warnings.warn("a\x1b is strange", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "lrp-jax: warning: a\\x1b is strange\n"
    with pytest.raises(DeprecationWarning), console.warnings_told():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
