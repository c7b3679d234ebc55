"""Pictures in and out: reading, preprocessing, and heat maps over them."""

from lrp_jax.pictures.draw import overlay, panel
from lrp_jax.pictures.montage import Cell, montage
from lrp_jax.pictures.preprocessing import Preprocessing, crop, described, preprocess
from lrp_jax.pictures.read import picture_suffixes, read_image, read_mask

__all__ = [
    "Cell",
    "Preprocessing",
    "crop",
    "described",
    "montage",
    "overlay",
    "panel",
    "picture_suffixes",
    "preprocess",
    "read_image",
    "read_mask",
]
