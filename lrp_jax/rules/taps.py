"""Rule sets that read something beside what they send back: their operations with taps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.rules.base import GRADIENT, Rules


def everywhere(rules: Rules, change: Callable[[Rules, dict[str, Any]], Rules], keys: tuple[str, ...]) -> Rules:
    """Rules with other operations at every place.

    Args:
        rules: the rules.
        change: their operations, of the rules at a place and what is told of it.
        keys: what of a place it asks for, of the keywords of :meth:`Rules.at`.

    Returns:
        The rules, equal where both are.
    """

    @functools.cache
    def of(rules: Rules, told: frozenset[tuple[str, Any]]) -> Rules:
        def at(**place: Any) -> Rules:
            kept = dict(told) | {key: value for key, value in place.items() if key in keys}
            return of(rules.at(**place), frozenset(kept.items()))

        return dataclasses.replace(change(rules, dict(told)), places=at)

    return of(rules, frozenset())


def with_bias_taps(rules: Rules, taps: Array, readout: np.ndarray) -> Rules:
    """Rules whose biases are scaled by ``1 + taps``: the taps' cotangent is the biases times their gradient.

    A bias is what an operation gives for zeros. Those of the embedding are left out, which stand before the tokens.

    Args:
        rules: modified gradients.
        taps: zeros ``[N]``, one for each token; those of what the head reads are weighted by ``readout``.
        readout: ``[N]``.
    """

    def scaled(y: Array, bias: Array) -> Array:
        if y.ndim > 1 and math.prod(y.shape[:-1]) == len(readout):
            weights = taps.reshape(*y.shape[:-1], 1)
        else:
            weights = taps[:, None] if y.shape[-2:-1] == (len(readout),) else taps @ jnp.asarray(readout, taps.dtype)
        return y + weights.astype(y.dtype) * jnp.broadcast_to(bias, y.shape)

    def change(rules: Rules, place: dict[str, Any]) -> Rules:
        def dense(x: Array, kernel: Array, bias: Array | None, **options: Any) -> Array:
            y = rules.dense(x, kernel, bias, **options)
            return y if bias is None else scaled(y, bias)

        def layer_norm(x: Array, *parameters: Any, **options: Any) -> Array:
            bias = GRADIENT.layer_norm(jnp.zeros_like(x), *parameters, **options)
            return scaled(rules.layer_norm(x, *parameters, **options), bias)

        def activation(function: Callable[..., Array], x: Array, *parameters: Any) -> Array:
            bias = function(jnp.zeros_like(x), *parameters)
            return scaled(rules.activation(function, x, *parameters), jnp.where(jnp.isfinite(bias), bias, 0))

        if place.get("part") == "embedding":
            return rules
        return dataclasses.replace(rules, dense=dense, layer_norm=layer_norm, activation=activation)

    return everywhere(rules, change, ("part",))


def with_sum_tap(rules: Rules, tap: Array, parts: list[tuple[Array, Array]]) -> Rules:
    """Rules with a tap at the sum of tokens and position embeddings.

    Args:
        rules: the rules.
        tap: zeros of the size of the sum; their cotangent is that of the sum.
        parts: where both parts of each sum go.
    """

    def change(rules: Rules, place: dict[str, Any]) -> Rules:
        def add(a: Array, b: Array) -> Array:
            parts.append((a, b))
            return rules.add(a, b) + tap.reshape(jnp.shape(a))

        return dataclasses.replace(rules, add=add) if place.get("part") == "embedding" else rules

    return everywhere(rules, change, ("part",))
