"""The rules of Chefer, Gur and Wolf, and those that they compare them with.

*Transformer Interpretability Beyond Attention Visualization*, CVPR 2021 (arXiv 2012.09838), section 3, as their
published code computes it. ``x+ = max(x, 0)``, ``x- = min(x, 0)``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.rules import base
from lrp_jax.rules.base import Operation, Product, Rules, register, rule, safe_divide, stable_divide, transposed


def passing(primal: Operation) -> Operation:
    """identity: R_x = R."""
    return rule(primal)(lambda *inputs_z_r, **_: inputs_z_r[-1])


@rule(base.product)
def zplus_dense(
    x: Array, w: Array, _: Any, z: Array, r: Array, *, epsilon: float, product: Product = jnp.matmul
) -> Array:
    """z-plus with both signs: ``Z = x+ w+ + x- w-``, ``S = R / Z``, ``R_x = x+ (S w+^T) + x- (S w-^T)``."""
    # With z = x w from the forward pass, Z = (x w + |x| |w|) / 2 and R_x = (x (S w^T) + |x| (S |w|^T)) / 2 take three
    # products where the plain form takes four.
    absolute = jnp.abs(w)
    magnitude = product(jnp.abs(x), absolute)
    s = stable_divide(r, (z + magnitude) / 2, magnitude, epsilon)
    return (x * transposed(product, x, w, s) + jnp.abs(x) * transposed(product, x, absolute, s)) / 2


@rule(base.product)
def zb_patch_embed(x: Array, w: Array, _: Any, z: Array, r: Array, *, product: Product = jnp.matmul) -> Array:
    """z^B, with lo and hi the smallest and largest value of the image.

    ``Z = x w - lo w+ - hi w- + 1e-9``, ``S = R / Z``, ``R_x = x (S w^T) - lo (S w+^T) - hi (S w-^T)``.
    """
    lo, hi = x.min(), x.max()
    positive, negative = jnp.maximum(w, 0), jnp.minimum(w, 0)
    one = jnp.ones_like(x[:1] if product is jnp.matmul else x)
    s = r / (z - lo * product(one, positive) - hi * product(one, negative) + 1e-9)
    back = partial(transposed, product, x)
    return x * back(w, s) - lo * back(positive, s) - hi * back(negative, s)


@rule(jnp.matmul)
def halved_matmul(a: Array, b: Array, z: Array, r: Array, *, epsilon: float) -> tuple[Array, Array]:
    """Product of two activations, ``z = a b``: ``S = R / z``, ``R_a = a * (S b^T) / 2``, ``R_b = b * (a^T S) / 2``."""
    s = stable_divide(r, z, jnp.abs(a) @ jnp.abs(b), epsilon)
    return a * (s @ b.mT) / 2, b * (a.mT @ s) / 2


@rule(base.multiply)
def halved_multiply(a: Array, b: Array, z: Array, r: Array, *, gated: bool = True) -> tuple[Array, Array]:
    """``z = a b``, the matmul of numbers: ``R_a = R_b = R / 2``."""
    return r / 2, r / 2


@rule(jnp.add)
def normalised_add(a: Array, b: Array, z: Array, r: Array, *, epsilon: float) -> tuple[Array, Array]:
    """``z = a + b``: each part's share of R, scaled so that all of a and all of b receive R together.

    ``S = R / z``, ``a' = a S``, ``b' = b S``, ``R_a = a' |Sum a'| / (|Sum a'| + |Sum b'|) Sum R / Sum a'``, and R_b
    alike, with sums over all tokens and channels of the one example.
    """
    r = r if epsilon else summed(r, z)
    s = stable_divide(r, z, jnp.abs(a) + jnp.abs(b), epsilon)
    a, b, total = a * s, b * s, r.sum()
    a_sum, b_sum = a.sum(), b.sum()
    weight = jnp.abs(a_sum) + jnp.abs(b_sum)
    a_share = safe_divide(jnp.abs(a_sum), weight) * total
    b_share = safe_divide(jnp.abs(b_sum), weight) * total
    return a * safe_divide(a_share, a_sum), b * safe_divide(b_share, b_sum)


@rule(base.mean)
def proportional_mean(
    x: Array, *parameters_z_r: Any, epsilon: float, function: Callable[..., Array] = base.average
) -> Array:
    """Mean over n tokens, ``z = Sum x / n``: ``S = R / z``, ``R_x = x S / n``; of other sums, ``R_x = x (S back)``."""
    *parameters, z, r = parameters_z_r
    s = stable_divide(r, z, function(jnp.abs(x), *parameters), epsilon)
    if function is base.average:
        return x * s[None] / x.shape[0]
    return x * jax.linear_transpose(lambda x: function(x, *parameters), x)(s)[0]


def summed(r: Array, z: Array) -> Array:
    """The relevance of a sum z, which all that reads it gave: the authors divide each part by z, and multiply by it."""
    return z * safe_divide(r, z)


def chefer(name: str, epsilon: float) -> Rules:
    """The rule set, with :func:`stable_divide` of an ``epsilon``."""
    return Rules(
        name=name,
        dense=partial(zplus_dense, epsilon=epsilon),
        patch_embed=zb_patch_embed,
        matmul=partial(halved_matmul, epsilon=epsilon),
        add=partial(normalised_add, epsilon=epsilon),
        multiply=halved_multiply,
        mean=partial(proportional_mean, epsilon=epsilon),
        softmax=passing(base.softmax),
        layer_norm=passing(base.layer_norm),
        activation=passing(base.activation),
    )


#: The rules of Chefer, Gur and Wolf (CVPR 2021): z-plus products, normalised residual additions and
#: attention products, identity for layer norm, softmax and activations, z^B at the pixels.
CHEFER = register(chefer("chefer", 0.0))


@functools.cache
def stable(epsilon: float = 0.03) -> Rules:
    """Chefer's rules, with divisions that do not amplify rounding.

    Where the paper's rules divide relevance by a sum z of terms t, ``R / z``, these divide by
    ``(z^2 + (epsilon sum|t|)^2) / z``. The larger epsilon, the smaller the error of low precision and the larger the
    distance from the paper's maps; ``scripts/precision.py`` measures both.

    Args:
        epsilon: the size of a sum, in parts of its terms' absolute values, under which it counts as cancelled.

    Returns:
        The rule set; the same object for the same epsilon.

    Raises:
        ValueError: epsilon is not a positive finite number.
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be a positive finite number, got {epsilon!r}.")
    return chefer("stable" if epsilon == 0.03 else f"stable({epsilon})", epsilon)


register(stable())


@rule(base.dense)
def signed_dense(x: Array, w: Array, _: Any, z: Array, r: Array, *, product: Product = jnp.matmul) -> Array:
    """Each sign for itself, which gives out twice what it receives.

    ``Z+ = x+ w+``, ``Z- = x- w-``, ``R_x = x+ ((R / Z+) w+^T) + x- ((R / Z-) w-^T)``.
    """

    def of_sign(x: Array, w: Array) -> Array:
        return x * transposed(product, x, w, safe_divide(r, product(x, w)))

    return of_sign(jnp.maximum(x, 0), jnp.maximum(w, 0)) + of_sign(jnp.minimum(x, 0), jnp.minimum(w, 0))


@rule(jnp.add)
def proportional_add(a: Array, b: Array, z: Array, r: Array) -> tuple[Array, Array]:
    """``z = a + b``: ``R_a = a R / z``, ``R_b = b R / z``."""
    s = safe_divide(summed(r, z), z)
    return a * s, b * s


#: The rules that the paper compares its own with: z-plus products of each sign for itself, additions that are not
#: normalised.
BASELINE = register(dataclasses.replace(CHEFER, name="baseline", dense=signed_dense, add=proportional_add))
