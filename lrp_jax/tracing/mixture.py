"""A rule set whose operations are means of what they read, whatever the parameters are: where values come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from lrp_jax.rules import Rules
from lrp_jax.rules.base import average
from lrp_jax.tracing import products


def _dense(x: Array, kernel: Array, bias: Any, *, product: Any = jnp.matmul) -> Array:
    if product is jnp.matmul:
        return jnp.broadcast_to(x.mean(axis=-1, keepdims=True), (*x.shape[:-1], kernel.shape[-1]))
    if isinstance(product, products.Fixed):
        weights = product(jnp.ones_like(x), kernel)
        return product(x, kernel) / jnp.where(weights == 0, 1, weights)
    # Of what there is: a mean with the zeros of a padding would draw rows together in some columns more than in others.
    ones = jnp.ones_like(kernel)
    return product(x, ones) / jnp.maximum(product(jnp.ones_like(x), ones), 1)


def _matmul(a: Array, b: Array) -> Array:
    if a.shape[-1] == a.shape[-2]:  # attention: each token has its own
        return b
    return (a.mean(axis=-1, keepdims=True) + b.mean(axis=-2, keepdims=True)) / 2


def _mean(x: Array, *parameters: Any, function: Callable[..., Array] = average) -> Array:
    if function is average:
        return function(x)
    ones = function(jnp.ones_like(x), *parameters)
    return function(x, *parameters) / jnp.where(ones == 0, 1, ones)


def _of_x(x: Array, *_: Any, **__: Any) -> Array:
    return x


#: Mixtures of what is read.
MIXTURE = Rules(
    name="mixture",
    dense=_dense,
    patch_embed=_dense,
    matmul=_matmul,
    add=lambda a, b: (a + b) / 2,
    multiply=lambda a, b, **_: (a + b) / 2,
    mean=_mean,
    softmax=_of_x,
    layer_norm=_of_x,
    activation=lambda function, x, *_: x,
    rounds=False,
)
