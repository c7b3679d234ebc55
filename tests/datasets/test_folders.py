"""A mask is of one picture."""

import pytest
from helpers import config_of, touch

from lrp_jax.datasets import MaskFolder


@pytest.mark.parametrize(
    ("pictures", "masks", "expected"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png", "c.png"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.jpg"], ["a.jpg", "a.png"], ["a.jpg"]),
        (["a.jpg"], ["a.png", "._a.png"], ["a.png"]),
        (["a.jpg"], ["a.bmp", "a.png"], r"holds several masks of a\.jpg: a\.bmp, a\.png"),
        (["a.jpg", "a.png"], ["a.bmp"], r"a\.bmp could be of a\.jpg, a\.png"),
        (["a.jpg", "a.png"], ["a.png"], r"holds no mask of a\.jpg\."),
    ],
)
def test_masks_are_of_one_picture(tmp_path, pictures, masks, expected):
    touch(tmp_path, *(f"images/{name}" for name in pictures), *(f"masks/{name}" for name in masks))
    if isinstance(expected, list):
        pairs = MaskFolder(tmp_path, config_of((), 2)).pairs
        assert [(image.name, mask.name) for image, mask in pairs] == list(zip(pictures, expected, strict=True))
    else:
        with pytest.raises(ValueError, match=expected):
            MaskFolder(tmp_path, config_of((), 2))
