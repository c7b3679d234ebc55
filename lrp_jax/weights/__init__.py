"""Weights: our checkpoint, and the files of other libraries."""

from lrp_jax.weights.convert import Conversion, convert, convert_with_summary
from lrp_jax.weights.families import FAMILIES, PREPROCESSING, Family
from lrp_jax.weights.native import load, save
from lrp_jax.weights.readers import read_weights

__all__ = [
    "FAMILIES",
    "PREPROCESSING",
    "Conversion",
    "Family",
    "convert",
    "convert_with_summary",
    "load",
    "read_weights",
    "save",
]
