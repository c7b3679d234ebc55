"""Evaluation of a method over a dataset: segmentation and perturbation, as in the paper, pointing, and sanity checks.

A protocol is a value in :data:`PROTOCOLS`, which can be called: :mod:`lrp_jax.evaluate.base` says what one is.
"""

from lrp_jax.evaluate.base import PROTOCOLS, Option, Protocol, register
from lrp_jax.evaluate.draw import draw_curves, draw_maps
from lrp_jax.evaluate.paired import difference
from lrp_jax.evaluate.perturbation import FRACTIONS, perturbation
from lrp_jax.evaluate.pointing import pointing
from lrp_jax.evaluate.sanity import sanity
from lrp_jax.evaluate.segmentation import segmentation
from lrp_jax.evaluate.study import Chosen, Curves, Figure, Figures, Measured, Preparation, Study, Summary

__all__ = [
    "FRACTIONS",
    "PROTOCOLS",
    "Chosen",
    "Curves",
    "Figure",
    "Figures",
    "Measured",
    "Option",
    "Preparation",
    "Protocol",
    "Study",
    "Summary",
    "difference",
    "draw_curves",
    "draw_maps",
    "perturbation",
    "pointing",
    "register",
    "sanity",
    "segmentation",
]
