"""Class-specific relevance maps for Vision Transformers, as pure JAX functions.

Explaining: :func:`explain`, :func:`attention_signals`, :data:`METHODS`, :class:`Method`,
:class:`Explanation`, :class:`AttentionSignals`, :class:`Model`.
Models: :class:`ViT`, :class:`ViTConfig`, :func:`load`, :func:`save`, :func:`convert`.
Rules: :class:`Rules`, :data:`RULES`, :data:`GRADIENT`, :data:`CHEFER`, :func:`stable`, :data:`BASELINE`.
Pictures: :func:`read_image`, :func:`preprocess`, :func:`heatmaps`, :func:`overlay`, :func:`panel`.
Evaluation: :mod:`lrp_jax.evaluate`, :mod:`lrp_jax.metrics`, and data with known masks, :mod:`lrp_jax.datasets`.
"""

from lrp_jax import datasets, evaluate, metrics
from lrp_jax.attribution import AttentionSignals, Explanation, attention_signals, explain
from lrp_jax.checkpoint import load, save
from lrp_jax.convert import convert
from lrp_jax.images import heatmaps, overlay, panel, preprocess, read_image
from lrp_jax.methods import METHODS, Method
from lrp_jax.model import Model
from lrp_jax.rules import BASELINE, CHEFER, GRADIENT, RULES, Rules, stable
from lrp_jax.vit import ViT, ViTConfig

__version__ = "0.1.0"

__all__ = [
    "BASELINE",
    "CHEFER",
    "GRADIENT",
    "METHODS",
    "RULES",
    "AttentionSignals",
    "Explanation",
    "Method",
    "Model",
    "Rules",
    "ViT",
    "ViTConfig",
    "attention_signals",
    "convert",
    "datasets",
    "evaluate",
    "explain",
    "heatmaps",
    "load",
    "metrics",
    "overlay",
    "panel",
    "preprocess",
    "read_image",
    "save",
    "stable",
]
