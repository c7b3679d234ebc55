"""Pictures in and out: reading, preprocessing, and heat maps over them."""

from lrp_jax.pictures.bands import has_bands, read_bands
from lrp_jax.pictures.depth import Levels, PictureNote, checked_levels
from lrp_jax.pictures.draw import in_shape, limits_of, overlay, panel, scale_of_colours
from lrp_jax.pictures.montage import Cell, montage
from lrp_jax.pictures.own import MARK, is_own, save
from lrp_jax.pictures.preprocessing import Box, Preprocessing, crop, crop_bands, described, preprocess, seen_box
from lrp_jax.pictures.read import picture_suffixes, read_image, read_mask

__all__ = [
    "MARK",
    "Box",
    "Cell",
    "Levels",
    "PictureNote",
    "Preprocessing",
    "checked_levels",
    "crop",
    "crop_bands",
    "described",
    "has_bands",
    "in_shape",
    "is_own",
    "limits_of",
    "montage",
    "overlay",
    "panel",
    "picture_suffixes",
    "preprocess",
    "read_bands",
    "read_image",
    "read_mask",
    "save",
    "scale_of_colours",
    "seen_box",
]
