"""Attention over chunks of queries: the one place where its maps are seen.

Scores and softmax of a query need no other query, so a map is computed for some queries at a time, and again on the way
back. What is kept is linear in the number of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from lrp_jax.rules.base import Rules

#: How many values of a map, of all heads, are computed at once.
CHUNK = 1 << 21


class See(Protocol):
    """What looks at attention maps, see :class:`lrp_jax.rules.readers.Reader`."""

    def __call__(self, maps: Array, /) -> Array:
        """The maps ``[h, n, N]`` of all queries, unchanged."""
        ...

    def look(self, maps: Array, rows: Array | None, /) -> tuple[Array, Any]:
        """The maps of some queries, unchanged, and what was seen, to be summed over the queries.

        Args:
            maps: ``[h, c, N]``.
            rows: which queries these are, ``[c]``; those beyond the last are to be left out. None: the first c.
        """
        ...

    def seen(self, found: Any, /) -> None:
        """Take what was seen."""
        ...


class _Once:
    """What looks at the maps of some queries, and keeps what it saw."""

    def __init__(self, see: See, rows: Array | None) -> None:
        self.see, self.rows = see, rows
        self.found: list[Any] = []

    def __call__(self, maps: Array) -> Array:
        maps, found = self.look(maps, self.rows)
        self.seen(found)
        return maps

    def look(self, maps: Array, rows: Array | None) -> tuple[Array, Any]:
        return self.see.look(maps, rows)

    def seen(self, found: Any) -> None:
        self.found.append(found)


def over_queries(
    rules: Rules,
    function: Callable[..., Array],
    sliced: Sequence[Array],
    chunk: int | None,
    *,
    width: int,
    axes: Sequence[int] = (-2,),
    axis: int = -2,
    first: int = 0,
) -> Array:
    """A function of queries, computed for some of them at a time.

    Args:
        rules: its operations.
        function: ``(rules, *sliced) -> values``, which gives each query's values by itself.
        sliced: arrays with an axis of queries.
        chunk: how many queries at once; None: by size.
        width: how many values the maps of a query have, of all heads.
        axes: the axes of queries in ``sliced``.
        axis: the axis of queries in the values.
        first: which query of all is the first of these.
    """
    queries = sliced[0].shape[axes[0]]
    size = max(1, CHUNK // width) if chunk is None else chunk
    chunks = -(-queries // size)

    def of_some(rows: Array | None, parts: Sequence[Array]) -> tuple[Array, list[Any]]:
        if rules.see is None:
            return function(rules, *parts), []
        once = _Once(rules.see, rows)
        return function(dataclasses.replace(rules, see=once), *parts), once.found

    if chunks == 1:
        values, found = of_some(None, sliced)
    else:
        size = -(-queries // chunks)
        missing = chunks * size - queries

        def cut(x: Array, along: int) -> Array:
            along %= x.ndim
            padded = jnp.pad(x, [(0, missing if i == along else 0) for i in range(x.ndim)], mode="edge")
            return jnp.moveaxis(padded.reshape(*x.shape[:along], chunks, size, *x.shape[along + 1 :]), along, 0)

        def step(_: None, part: tuple[Array, list[Array]]) -> tuple[None, tuple[Array, list[Any]]]:
            return None, of_some(*part)

        rows = jnp.arange(chunks * size, dtype=jnp.int32)
        rows = jnp.where(rows < queries, first + rows, jnp.iinfo(jnp.int32).max).reshape(chunks, size)
        parts = (rows, [cut(x, along) for x, along in zip(sliced, axes, strict=True)])
        _, (values, found) = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), None, parts)
        axis %= values.ndim - 1
        values = jnp.moveaxis(values, 0, axis)
        values = values.reshape(*values.shape[:axis], chunks * size, *values.shape[axis + 2 :])
        values = jax.lax.slice_in_dim(values, 0, queries, axis=axis)
        found = jax.tree.map(lambda x: x.sum(axis=0), found)
    if rules.see is not None:
        for each in found:
            rules.see.seen(each)
    return values
