"""Running a program by the operations of a rule set, its attention tapped and handed out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.program import Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site


def run(
    program: Recognised,
    rules: Rules,
    values: Sequence[Any],
    taps: Array | None,
    added: Mapping[Variable, Array] | None = None,
) -> tuple[list[Any], list[Array]]:
    """What a program gives, and its attention.

    Args:
        program: the program.
        rules: its operations.
        values: what it is given.
        taps: ``[l, h, N, N]``, to be added to the last l of its attention, or None.
        added: what is added to variables, to read gradient and relevance there.

    Returns:
        What it gives, and attention in parts, ``[some, h, N, N]`` each.
    """
    known: dict[Variable, Any] = dict(zip(program.inputs, values, strict=True))
    untapped = program.sites - (0 if taps is None else len(taps))
    attention: list[Array] = []
    passed = 0

    def read(variable: Variable) -> Any:
        return variable.constant if variable.constant is not None else known[variable]

    for step in program.steps:
        inputs = [read(v) for v in step.inputs]
        if isinstance(step, Site):
            (value,) = inputs
            if taps is not None and passed >= untapped:
                value = value + from_map(step, taps[passed - untapped]).astype(value.dtype)
            attention.append(to_map(step, value)[None])
            results: Sequence[Any] = [value]
            passed += 1
        elif isinstance(step, Loop):
            sites = step.body.sites * step.length
            here = None if taps is None else taps[max(passed - untapped, 0) : max(passed + sites - untapped, 0)]
            results, parts = _loop(step, rules, inputs, here)
            attention += parts
            passed += sites
        elif isinstance(step, Choice):
            branches = [lambda *given, branch=branch: run(branch, rules, given, None)[0] for branch in step.branches]
            results = jax.lax.switch(jnp.asarray(inputs[0], jnp.int32), branches, *inputs[1:])
        elif step.operation is None:
            results = step.equations[0].call(*inputs)
        else:
            found = step.operation.run(rules, *inputs)
            results = found if isinstance(found, (list, tuple)) else [found]
            results = [
                r if r.dtype == v.dtype else r.astype(v.dtype) for r, v in zip(results, step.outputs, strict=True)
            ]
        known |= zip(step.outputs, results, strict=True)
        if added:
            known |= {v: known[v] + added[v] for v in step.outputs if v in added}
    return [read(v) for v in program.outputs], attention


def _loop(step: Loop, rules: Rules, inputs: list[Any], taps: Array | None) -> tuple[list[Any], list[Array]]:
    """A scan; the first times without taps, if only the last have them. Going back recomputes all but products."""
    consts, carry = step.consts, step.carry
    fixed, carried, given = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]
    sites = step.body.sites
    tapped = 0 if taps is None else -(-len(taps) // sites) if sites else 0
    params = step.equations[0].params

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    def body(carried: Any, each: Any) -> tuple[Any, Any]:
        some, tap = each
        outputs, attention = run(step.body, rules, [*fixed, *carried, *some], tap)
        return outputs[:carry], (outputs[carry:], jnp.concatenate(attention) if attention else None)

    if taps is not None and tapped:
        missing = tapped * sites - len(taps)
        taps = jnp.pad(taps, ((missing, 0),) + ((0, 0),) * (taps.ndim - 1)) if missing else taps
        taps = taps.reshape(tapped, sites, *taps.shape[1:])
    parts, attention = [], []
    for start, end, some_taps in ((0, step.length - tapped, None), (step.length - tapped, step.length, taps)):
        if start < end:
            some = given if end - start == step.length else [x[start:end] for x in given]
            carried, (outputs, maps) = jax.lax.scan(
                body, carried, (some, some_taps), end - start, reverse=params["reverse"], unroll=params["unroll"]
            )
            parts.append(outputs)
            if maps is not None:
                attention.append(maps.reshape(-1, *maps.shape[2:]))
    outputs = parts[0] if len(parts) == 1 else [jnp.concatenate(pair) for pair in zip(*parts, strict=True)]
    return [*carried, *outputs], attention


def to_map(site: Site, value: Array) -> Array:
    """Attention as ``[h, N, N]``; of fewer queries than keys, the rest are 0."""
    queries = () if site.query is None else (site.query,)
    order = [*site.heads, *queries, site.key]
    keys = value.shape[site.key]
    value = value.transpose(order).reshape(math.prod(value.shape[i] for i in site.heads), -1, keys)
    return jnp.pad(value, ((0, 0), (0, keys - value.shape[1]), (0, 0)))


def from_map(site: Site, tap: Array) -> Array:
    """The inverse of :func:`to_map`, without the padding."""
    shape = site.inputs[0].shape
    queries = () if site.query is None else (site.query,)
    order = [*site.heads, *queries, site.key]
    rows = 1 if site.query is None else shape[site.query]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tap[:, :rows].reshape([shape[i] for i in order]).transpose(inverse)
