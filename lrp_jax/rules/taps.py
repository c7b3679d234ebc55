"""Rule sets that read something beside what they send back: their operations with taps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.rules.base import GRADIENT, OPERATIONS, Operation, Rules, merge
from lrp_jax.rules.readers import Reader


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


def with_bias_taps(rules: Rules, taps: Array, readout: Array) -> Rules:
    """Rules whose biases are scaled by ``1 + taps``: the taps' cotangent is the biases times their gradient.

    A bias is what an operation gives for zeros. Those of the embedding are left out, which stand before the tokens.

    Args:
        rules: modified gradients.
        taps: zeros ``[N]``, one for each token; those of what the head reads are weighted by ``readout``.
        readout: ``[N]``.
    """

    def scaled(y: Array, bias: Array, tokens: tuple[int, ...] | None) -> Array:
        shape = (*y.shape[:-1], 1)
        if tokens is not None:
            shape = tuple(size if i in tokens else 1 for i, size in enumerate(y.shape))
        if y.ndim > 1 and math.prod(shape) == len(readout):
            weights = taps.reshape(shape)
        else:
            is_second = tokens is None and y.shape[-2:-1] == (len(readout),)
            weights = taps[:, None] if is_second else taps @ readout.astype(taps.dtype)
        return y + weights.astype(y.dtype) * jnp.broadcast_to(bias, y.shape)

    def change(rules: Rules, place: dict[str, Any]) -> Rules:
        def with_tap(y: Array, bias: Array) -> Array:
            return scaled(y, bias, place.get("tokens"))

        def dense(x: Array, kernel: Array, bias: Array | None, **options: Any) -> Array:
            y = rules.dense(x, kernel, bias, **options)
            return y if bias is None else with_tap(y, bias)

        def layer_norm(x: Array, *parameters: Any, **options: Any) -> Array:
            bias = GRADIENT.layer_norm(jnp.zeros_like(x), *parameters, **options)
            return with_tap(rules.layer_norm(x, *parameters, **options), bias)

        def activation(function: Callable[..., Array], x: Array, *parameters: Any) -> Array:
            bias = function(jnp.zeros_like(x), *parameters)
            return with_tap(rules.activation(function, x, *parameters), jnp.where(jnp.isfinite(bias), bias, 0))

        if place.get("part") == "embedding":
            return rules
        return dataclasses.replace(rules, dense=dense, layer_norm=layer_norm, activation=activation)

    return everywhere(rules, change, ("part", "tokens"))


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


class Entry(NamedTuple):
    """What is counted together: operations of one kind in one part of a block.

    Attributes:
        depth: the number of the block; None: none.
        part: of :data:`lrp_jax.rules.PARTS`; None: not told.
        kind: the operation.
    """

    depth: int | None
    part: str | None
    kind: str


def with_accounts(rules: Rules, account: Callable[[Entry], Array]) -> Rules:
    """Rules that count the relevance which operations receive and send back.

    Args:
        rules: the rules.
        account: zeros ``[2]`` for an entry: their cotangent is the relevance that its operations receive, and the one
            that they send back.

    Returns:
        The rules, for a model that runs every block by itself.
    """

    def reader(entry: Entry, column: int) -> Reader:
        def read(state: Any, value: Array, sent: tuple[Array, ...], rows: None) -> tuple[Array, ...]:
            total = (sent[0] * value if rules.times_values else sent[0]).sum()
            return (jnp.zeros(2, total.dtype).at[column].set(total),)

        return Reader(read, (account(entry),), left=[])

    def change(rules: Rules, place: dict[str, Any]) -> Rules:
        def counted(kind: str) -> Operation:
            operation, entry = getattr(rules, kind), Entry(place.get("depth"), place.get("part"), kind)
            count = 2 if kind in ("matmul", "add", "multiply") else 1  # activations; what follows are parameters

            def run(*arguments: Any, **options: Any) -> Array:
                is_array = [isinstance(x, Array) for x in arguments]
                arrays = [x for x in arguments if isinstance(x, Array)]
                zero = jax.lax.stop_gradient(account(entry)[0])  # makes a copy of parameters for each rule set as well
                read = [reader(entry, 1)(x + zero.astype(x.dtype)) for x in arrays[:count]] + arrays[count:]
                return reader(entry, 0)(operation(*merge(is_array, read, arguments), **options))

            return run

        operations: Any = {kind: counted(kind) for kind in OPERATIONS}
        return dataclasses.replace(rules, **operations)

    return everywhere(rules, change, ("part", "depth"))
