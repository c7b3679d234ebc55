"""Pictures in and out: reading, preprocessing, and heat maps over them."""

from lrp_jax.pictures.bands import Bands, Picture, is_picture, note_bands, read_bands, read_picture
from lrp_jax.pictures.depth import Levels, PictureNote, checked_levels
from lrp_jax.pictures.draw import in_shape, limits_of, overlay, panel, scale_of_colours
from lrp_jax.pictures.montage import Cell, montage
from lrp_jax.pictures.own import MARK, is_own, save
from lrp_jax.pictures.preprocessing import Box, Preprocessing, box_of, crop, crop_bands, described, preprocess, seen_box
from lrp_jax.pictures.read import picture_suffixes, read_image, read_mask

__all__ = [
    "MARK",
    "Bands",
    "Box",
    "Cell",
    "Levels",
    "Picture",
    "PictureNote",
    "Preprocessing",
    "box_of",
    "checked_levels",
    "crop",
    "crop_bands",
    "described",
    "in_shape",
    "is_own",
    "is_picture",
    "limits_of",
    "montage",
    "note_bands",
    "overlay",
    "panel",
    "picture_suffixes",
    "preprocess",
    "read_bands",
    "read_image",
    "read_mask",
    "read_picture",
    "save",
    "scale_of_colours",
    "seen_box",
]
