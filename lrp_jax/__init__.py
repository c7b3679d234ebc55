"""Class-specific relevance maps for Vision Transformers, as pure JAX functions.

Explaining: :func:`explain`, :func:`attention_signals`, :data:`METHODS`, :class:`Method`,
:class:`Explanation`, :class:`AttentionSignals`, :class:`Model`.
Models: :func:`trace`, of any function in JAX (:mod:`lrp_jax.tracing`);
:class:`ViT`, :class:`ViTConfig`, :func:`load`, :func:`save`, :func:`convert`.
Rules: :class:`Rules`, :data:`RULES`, :data:`GRADIENT`, :data:`CHEFER`, :func:`stable`, :data:`BASELINE`;
chosen by place, :func:`composite` of :class:`Where`, counted by :func:`matches`; :func:`conservation` of relevance.
Pictures: :func:`read_image`, :class:`Preprocessing`, :func:`preprocess`, :class:`Labels`, :func:`heatmaps`,
:func:`overlay`, :func:`panel`; :func:`show_tokens`.
Whole datasets: :mod:`lrp_jax.jobs`. Without this library: :func:`export`.
Evaluation: :mod:`lrp_jax.evaluate`, :mod:`lrp_jax.metrics`, and data with known masks, :mod:`lrp_jax.datasets`.
"""

import lrp_jax.xla  # noqa: F401  # first: before JAX starts
from lrp_jax import datasets, evaluate, jobs, metrics, tracing
from lrp_jax.attribution import attention_signals, explain, matches
from lrp_jax.conservation import Conservation, conservation
from lrp_jax.exporting import export
from lrp_jax.labels import Labels
from lrp_jax.maps import heatmaps
from lrp_jax.methods import METHODS, Method
from lrp_jax.model import Model
from lrp_jax.pictures import Preprocessing, overlay, panel, preprocess, read_image
from lrp_jax.rules import BASELINE, CHEFER, GRADIENT, RULES, Rules, Where, composite, stable
from lrp_jax.signals import AttentionSignals, Explanation
from lrp_jax.tokens import show_tokens
from lrp_jax.tracing import trace
from lrp_jax.version import __version__
from lrp_jax.vit import ViT
from lrp_jax.vit_config import ViTConfig
from lrp_jax.weights import convert, load, save

__all__ = [
    "BASELINE",
    "CHEFER",
    "GRADIENT",
    "METHODS",
    "RULES",
    "AttentionSignals",
    "Conservation",
    "Explanation",
    "Labels",
    "Method",
    "Model",
    "Preprocessing",
    "Rules",
    "ViT",
    "ViTConfig",
    "Where",
    "__version__",
    "attention_signals",
    "composite",
    "conservation",
    "convert",
    "datasets",
    "evaluate",
    "explain",
    "export",
    "heatmaps",
    "jobs",
    "load",
    "matches",
    "metrics",
    "overlay",
    "panel",
    "preprocess",
    "read_image",
    "save",
    "show_tokens",
    "stable",
    "trace",
    "tracing",
]
