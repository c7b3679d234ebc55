"""Relevance rules: operations whose backward pass carries relevance.

A :class:`Rules` value holds the operations a Vision Transformer is made of. :data:`GRADIENT` holds the
ordinary ones. Every other set holds the same operations, with the same values, and a ``jax.custom_vjp``
whose backward pass turns the relevance ``R`` of the output into the relevance of the inputs. Run a model
with a rule set and its vector-Jacobian product *is* relevance propagation; it batches, jits and shards
like any other JAX function.

Notation: ``x+ = max(x, 0)``, ``x- = min(x, 0)``. Parameters receive no relevance (a zero cotangent).
The equations are those of Chefer, Gur and Wolf, *Transformer Interpretability Beyond Attention
Visualization*, CVPR 2021 (arXiv 2012.09838), section 3, as their published code computes them.
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


@dataclasses.dataclass(frozen=True)
class Rules:
    """A set of operations, each with one way to send relevance backward.

    Attributes:
        name: how the set is called in messages.
        dense: ``(x [..., I], kernel [I, O], bias [O] or None) -> [..., O]``, ``x @ kernel + bias``.
        patch_embed: the same for the flattened patches of an image, ``x`` in ``[patches, I]``.
        matmul: ``(a [..., n, m], b [..., m, p]) -> [..., n, p]``, the product of two activations.
        add: ``(a, b) -> a + b`` for two activations of one shape (a residual connection).
        multiply: ``(a, b) -> a * b`` for two activations of one shape (a gate).
        mean: ``(x [n, D]) -> [D]``, the mean over the first axis (pooling).
        softmax: ``(x, scale) -> softmax(scale * x)`` over the last axis.
        layer_norm: ``(x [..., D], scale [D], bias [D], epsilon) -> [..., D]``.
        activation: ``(function, x) -> function(x)`` for an elementwise ``function``.
    """

    name: str
    dense: Callable[[Array, Array, Array | None], Array]
    patch_embed: Callable[[Array, Array, Array | None], Array]
    matmul: Callable[[Array, Array], Array]
    add: Callable[[Array, Array], Array]
    multiply: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    softmax: Callable[[Array, float], Array]
    layer_norm: Callable[[Array, Array, Array, float], Array]
    activation: Callable[[Callable[[Array], Array], Array], Array]


def safe_divide(a: Array, b: Array) -> Array:
    """``a / (b + 1e-9)``, and 0 where ``b`` is 0."""
    denominator = b + 1e-9
    denominator = jnp.where(denominator == 0, 1e-9, denominator)
    return jnp.where(b == 0, 0, a / denominator)


def _divide(r: Array, z: Array, magnitude: Array, epsilon: float) -> Array:
    """``S = R / z`` of a rule whose z is a sum of terms, and ``magnitude`` the sum of their absolute values.

    Rounding errs in z by a part of the magnitude, and so the quotient is wrong where z is small beside it. With
    ``epsilon``, ``S = R z / (z^2 + (epsilon magnitude)^2)``: R / z where z is large beside ``epsilon magnitude``,
    and going through 0 with z, without a jump, where it is not.
    """
    if not epsilon:
        return safe_divide(r, z)
    magnitude = jnp.maximum(magnitude, 1e-9)  # as in the safe division; the square is above float32's smallest number
    ratio = z / magnitude
    return r * ratio / (magnitude * (ratio * ratio + epsilon * epsilon))


# The ordinary operations.


def _dense(x: Array, kernel: Array, bias: Array | None) -> Array:
    y = x @ kernel
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _softmax(x: Array, scale: float) -> Array:
    return jax.nn.softmax(x * scale, axis=-1)


def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scale, bias = jnp.broadcast_to(scale, x.shape), jnp.broadcast_to(bias, x.shape)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


def _mean(x: Array) -> Array:
    return x.mean(axis=0)


def _activation(function: Callable[[Array], Array], x: Array) -> Array:
    return function(x)


# identity: R_x = R.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _identity(function: Callable[..., Array], x: Array, *parameters: Any) -> Array:
    return function(x, *parameters)


def _identity_forward(function: Callable[..., Array], x: Array, *parameters: Any) -> tuple[Array, tuple[None, ...]]:
    return function(x, *parameters), (None,) * len(parameters)


def _identity_backward(_: Callable[..., Array], no_relevance: tuple[None, ...], r: Array) -> tuple[Any, ...]:
    return r, *no_relevance


_identity.defvjp(_identity_forward, _identity_backward)


def _dense_and_residuals(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, ...]]:
    """``_dense``, and what its rules need of it: the bias takes no part."""
    product = x @ kernel
    return (product if bias is None else product + jnp.broadcast_to(bias, product.shape)), (x, kernel, product)


# dense, z-plus with both signs:
#   Z = x+ w+ + x- w-,  S = R / Z,  R_x = x+ (S w+^T) + x- (S w-^T).
# With x w at hand from the forward pass, Z = (x w + |x| |w|) / 2 and
# R_x = (x (S w^T) + |x| (S |w|^T)) / 2 take three products where the plain form takes four.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chefer_dense(epsilon: float, x: Array, kernel: Array, bias: Array | None) -> Array:
    return _dense(x, kernel, bias)


def _chefer_dense_forward(
    epsilon: float, x: Array, kernel: Array, bias: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    return _dense_and_residuals(x, kernel, bias)


def _chefer_dense_backward(epsilon: float, residuals: tuple[Array, ...], r: Array) -> tuple[Array, None, None]:
    x, kernel, product = residuals
    absolute = jnp.abs(kernel)
    magnitude = jnp.abs(x) @ absolute
    s = _divide(r, (product + magnitude) / 2, magnitude, epsilon)
    return (x * (s @ kernel.T) + jnp.abs(x) * (s @ absolute.T)) / 2, None, None


_chefer_dense.defvjp(_chefer_dense_forward, _chefer_dense_backward)


# patch embedding, z^B with lo and hi the smallest and largest value of the image:
#   Z = x w - lo w+ - hi w- + 1e-9,  S = R / Z,  R_x = x (S w^T) - lo (S w+^T) - hi (S w-^T).


@jax.custom_vjp
def _zb_patch_embed(x: Array, kernel: Array, bias: Array | None) -> Array:
    return _dense(x, kernel, bias)


def _zb_patch_embed_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, ...]]:
    return _dense_and_residuals(x, kernel, bias)


def _zb_patch_embed_backward(residuals: tuple[Array, ...], r: Array) -> tuple[Array, None, None]:
    x, kernel, product = residuals
    lo, hi = x.min(), x.max()
    positive, negative = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
    least = lo * positive.sum(axis=0, keepdims=True) + hi * negative.sum(axis=0, keepdims=True)
    s = r / (product - least + 1e-9)
    return x * (s @ kernel.T) - lo * (s @ positive.T) - hi * (s @ negative.T), None, None


_zb_patch_embed.defvjp(_zb_patch_embed_forward, _zb_patch_embed_backward)


# matmul of two activations, O = A B:  S = R / O,  R_A = A * (S B^T) / 2,  R_B = B * (A^T S) / 2.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chefer_matmul(epsilon: float, a: Array, b: Array) -> Array:
    return a @ b


def _chefer_matmul_forward(epsilon: float, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    product = a @ b
    return product, (a, b, product)


def _chefer_matmul_backward(epsilon: float, residuals: tuple[Array, ...], r: Array) -> tuple[Array, Array]:
    a, b, product = residuals
    s = _divide(r, product, jnp.abs(a) @ jnp.abs(b), epsilon)
    return a * (s @ b.mT) / 2, b * (a.mT @ s) / 2


_chefer_matmul.defvjp(_chefer_matmul_forward, _chefer_matmul_backward)


def _summed(r: Array, z: Array) -> Array:
    """The relevance of a sum z, which all that reads it gave: the authors divide each part by z, and multiply by it."""
    return z * safe_divide(r, z)


# add, z = a + b:  S = R / z, a' = a S, b' = b S, and R_a = a' |Sum a'| / (|Sum a'| + |Sum b'|) Sum R / Sum a',
# R_b alike, with sums over all tokens and channels of the one example.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chefer_add(epsilon: float, a: Array, b: Array) -> Array:
    return a + b


def _chefer_add_forward(epsilon: float, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return a + b, (a, b)


def _chefer_add_backward(epsilon: float, residuals: tuple[Array, Array], r: Array) -> tuple[Array, Array]:
    a, b = residuals
    r = r if epsilon else _summed(r, a + b)
    s = _divide(r, a + b, jnp.abs(a) + jnp.abs(b), epsilon)
    a, b, total = a * s, b * s, r.sum()
    a_sum, b_sum = a.sum(), b.sum()
    weight = jnp.abs(a_sum) + jnp.abs(b_sum)
    a_share = safe_divide(jnp.abs(a_sum), weight) * total
    b_share = safe_divide(jnp.abs(b_sum), weight) * total
    return a * safe_divide(a_share, a_sum), b * safe_divide(b_share, b_sum)


_chefer_add.defvjp(_chefer_add_forward, _chefer_add_backward)


# The rules that the paper compares with. dense, each sign for itself, which gives out twice what it receives:
#   Z+ = x+ w+,  Z- = x- w-,  R_x = x+ ((R / Z+) w+^T) + x- ((R / Z-) w-^T);  add, z = a + b: R_a = a R / z, R_b alike.


@jax.custom_vjp
def _baseline_dense(x: Array, kernel: Array, bias: Array | None) -> Array:
    return _dense(x, kernel, bias)


def _baseline_dense_forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, Array]]:
    return _dense(x, kernel, bias), (x, kernel)


def _baseline_dense_backward(residuals: tuple[Array, Array], r: Array) -> tuple[Array, None, None]:
    def of_sign(x: Array, kernel: Array) -> Array:
        return x * (safe_divide(r, x @ kernel) @ kernel.T)

    x, kernel = residuals
    positive = of_sign(jnp.maximum(x, 0), jnp.maximum(kernel, 0))
    return positive + of_sign(jnp.minimum(x, 0), jnp.minimum(kernel, 0)), None, None


_baseline_dense.defvjp(_baseline_dense_forward, _baseline_dense_backward)


@jax.custom_vjp
def _baseline_add(a: Array, b: Array) -> Array:
    return a + b


def _baseline_add_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return a + b, (a, b)


def _baseline_add_backward(residuals: tuple[Array, Array], r: Array) -> tuple[Array, Array]:
    a, b = residuals
    s = safe_divide(_summed(r, a + b), a + b)
    return a * s, b * s


_baseline_add.defvjp(_baseline_add_forward, _baseline_add_backward)


# multiply, z = a b, is the matmul of numbers: R_a = R_b = R / 2.


@jax.custom_vjp
def _halving_multiply(a: Array, b: Array) -> Array:
    return a * b


def _halving_multiply_forward(a: Array, b: Array) -> tuple[Array, None]:
    return a * b, None


def _halving_multiply_backward(_: None, r: Array) -> tuple[Array, Array]:
    return r / 2, r / 2


_halving_multiply.defvjp(_halving_multiply_forward, _halving_multiply_backward)


# mean over n tokens, z = Sum x / n:  S = R / z,  R_x = x S / n.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _proportional_mean(epsilon: float, x: Array) -> Array:
    return _mean(x)


def _proportional_mean_forward(epsilon: float, x: Array) -> tuple[Array, Array]:
    return _mean(x), x


def _proportional_mean_backward(epsilon: float, x: Array, r: Array) -> tuple[Array]:
    return (x * _divide(r, _mean(x), _mean(jnp.abs(x)), epsilon)[None] / x.shape[0],)


_proportional_mean.defvjp(_proportional_mean_forward, _proportional_mean_backward)


#: The ordinary operations: the backward pass is the gradient.
GRADIENT = Rules(
    name="gradient",
    dense=_dense,
    patch_embed=_dense,
    matmul=jnp.matmul,
    add=jnp.add,
    multiply=jnp.multiply,
    mean=_mean,
    softmax=_softmax,
    layer_norm=_layer_norm,
    activation=_activation,
)


def _chefer(name: str, epsilon: float) -> Rules:
    return Rules(
        name=name,
        dense=partial(_chefer_dense, epsilon),
        patch_embed=_zb_patch_embed,
        matmul=partial(_chefer_matmul, epsilon),
        add=partial(_chefer_add, epsilon),
        multiply=_halving_multiply,
        mean=partial(_proportional_mean, epsilon),
        softmax=partial(_identity, _softmax),
        layer_norm=partial(_identity, _layer_norm),
        activation=_identity,
    )


#: The rules of Chefer, Gur and Wolf (CVPR 2021): z-plus products, normalised residual additions and
#: attention products, identity for layer norm, softmax and activations, z^B at the pixels.
CHEFER = _chefer("chefer", 0.0)


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
    return _chefer("stable" if epsilon == 0.03 else f"stable({epsilon})", epsilon)


#: The rules that the paper compares its own with: z-plus products of each sign for itself, additions that are not
#: normalised.
BASELINE = dataclasses.replace(CHEFER, name="baseline", dense=_baseline_dense, add=_baseline_add)

#: Rule sets of relevance by name.
RULES: dict[str, Rules] = {"chefer": CHEFER, "stable": stable(), "baseline": BASELINE}
