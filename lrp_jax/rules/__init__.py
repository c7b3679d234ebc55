"""Relevance rules: operations whose backward pass carries relevance.

A :class:`Rules` value holds the operations a Vision Transformer is made of. :data:`GRADIENT` holds the ordinary ones.
Every other set holds the same operations, with the same values, and a backward pass that turns the relevance R of the
output into the relevance of the inputs. Run a model with a rule set and its vector-Jacobian product *is* relevance
propagation; it batches, jits and shards like any other JAX function.

A rule is an equation under :func:`rule`, a set of them a :class:`Rules` under :func:`register`.
"""

from lrp_jax.rules.base import (
    GRADIENT,
    OPERATIONS,
    PARTS,
    RULES,
    Rules,
    named,
    register,
    rule,
    safe_divide,
    stable_divide,
)
from lrp_jax.rules.chefer import BASELINE, CHEFER, stable
from lrp_jax.rules.composite import Where, composite
from lrp_jax.rules.modified import ALI_LRP, ATTNLRP, CP_LRP, LIBRAGRAD, with_gamma

__all__ = [
    "ALI_LRP",
    "ATTNLRP",
    "BASELINE",
    "CHEFER",
    "CP_LRP",
    "GRADIENT",
    "LIBRAGRAD",
    "OPERATIONS",
    "PARTS",
    "RULES",
    "Rules",
    "Where",
    "composite",
    "named",
    "register",
    "rule",
    "safe_divide",
    "stable",
    "stable_divide",
    "with_gamma",
]
