"""Pictures of the library are told from those that it is given."""

import os
import warnings

import pytest
from PIL import Image

from lrp_jax.datasets import pictures_in
from lrp_jax.pictures import PictureNote, is_own, save


def test_what_was_written_is_recognised(tmp_path):
    for name in ("own.png", "own.jpg"):
        save(Image.new("RGB", (300, 300)), tmp_path / name)
    Image.new("RGB", (3, 3)).save(tmp_path / "other.png")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    found = {path.name for path in tmp_path.iterdir() if is_own(path)}
    assert found == {"own.png"}  # a JPEG has no such text
    assert not is_own(tmp_path / "none.png")
    with pytest.warns(PictureNote, match=r"own\.png was written by lrp_jax"):
        names = [path.name for path in pictures_in(tmp_path)]
    assert names == ["empty.png", "other.png", "own.jpg", "pipe.png"]


def test_curves_are_recognised_too(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    from lrp_jax.pictures import MARK

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(tmp_path / "curves.png", metadata=MARK)
    assert is_own(tmp_path / "curves.png")
