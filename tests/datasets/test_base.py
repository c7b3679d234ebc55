"""Which files of a folder are pictures."""

import pytest
from helpers import touch

from lrp_jax.datasets import pictures_in


def test_what_systems_leave_behind_is_no_picture(tmp_path):
    touch(
        tmp_path, "b.JPG", "a.heic", "._b.JPG", ".a.png", "Thumbs.db", "notes.txt", "@eaDir/c.jpg", "folder.png/d.jpg"
    )
    assert [path.name for path in pictures_in(tmp_path)] == ["a.heic", "b.JPG"]
    assert [path.name for path in pictures_in(tmp_path, nested=True)] == ["a.heic", "b.JPG", "d.jpg"]
    touch(tmp_path / "none", "sub/x.jpg", "x.jxl", ".y.jpg")
    with pytest.raises(ValueError, match=r"none: the folder holds no pictures, only sub, x\.jxl\.$"):
        pictures_in(tmp_path / "none")
    touch(tmp_path / "hidden", ".y.jpg")
    with pytest.raises(ValueError, match=r"hidden: the folder holds no pictures\.$"):
        pictures_in(tmp_path / "hidden")
