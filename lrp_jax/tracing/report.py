"""What was recognised, for people: operation by operation, with the line of the user's code."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from lrp_jax.tracing.steps import Recognised, Site


@dataclasses.dataclass(frozen=True)
class Line:
    """One operation of a traced model.

    Attributes:
        operation: of :class:`lrp_jax.rules.Rules`; ``"move"`` where values only move, ``"attention"`` where attention
            is read.
        primitives: what it is made of.
        inputs: shapes and dtypes of what it reads, of what depends on the example.
        output: shape and dtype of what it gives.
        times: how often it is run, in loops.
        line: where it is written.
    """

    operation: str
    primitives: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    times: int
    line: str


def lines(program: Recognised) -> list[Line]:
    """The operations of a program, in the order in which they are run."""
    found = []
    for step, times in program.walk():
        if step.operation is None:
            continue
        primitives = () if isinstance(step, Site) else tuple(e.primitive for e in step.equations)
        inputs = tuple(map(str, step.active))
        found.append(
            Line(step.operation.name, primitives, inputs, str(step.outputs[0]), times, step.equations[-1].line)
        )
    return found


def table(program: Recognised) -> str:
    """How often each operation is run, of which primitives, and where first."""
    counts: collections.Counter[str] = collections.Counter()
    primitives: dict[str, dict[str, None]] = {}
    places: dict[str, str] = {}
    for line in lines(program):
        counts[line.operation] += line.times
        primitives.setdefault(line.operation, {}).update(dict.fromkeys(line.primitives))
        places.setdefault(line.operation, line.line)
    rows = [("operation", "times", "of", "first at")]
    for name, times in counts.most_common():
        of = ", ".join(primitives[name])
        rows.append((name, str(times), of if len(of) < 60 else of[:57] + "...", places[name]))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def described(model: Any) -> str:
    """What was recognised of a :class:`lrp_jax.tracing.Traced`: its input, its attention, and its operations."""
    sites = [(step, n) for step, n in model.program.walk() if isinstance(step, Site)]
    lines = []
    if model.channels is not None:
        rows, columns, channels = jax.tree.leaves(model.example)[model.explained].shape[1:]
        if model.channels == "first":
            channels, rows, columns = rows, columns, channels
        lines.append(f"images of {rows} x {columns} pixels and {channels} channels, channels {model.channels}")
    if rounded := model.rounded():
        names = sorted({v.own.name for v in rounded})
        lines.append(f"values in {', '.join(names)}, relevance in {rounded[0].dtype.name}")
    if model.without_attention:
        lines.append(f"no attention maps: {model.without_attention}")
    else:
        site, _ = sites[0]
        heads, n = math.prod(site.inputs[0].shape[i] for i in site.heads), model.tokens
        prefix = n - math.prod(model.grid)
        lines.append(f"{sum(n for _, n in sites)} blocks of attention, {heads} heads, {n} tokens")
        grid = " x ".join(map(str, model.grid))
        lines.append(f"grid {grid}, {prefix} other tokens, readout: {_read(model.readout, model.reading.unclear)}")
        if model.without_chain:
            lines.append(f"no rollouts: {model.without_chain}")
    whole = [site.region.why_whole for site, _ in sites if site.region and site.region.is_large]
    if any(whole):
        lines.append(f"attention is whole, of all queries at once: {max(whole)}")
    return "\n".join([*lines, "", table(model.program)])


def _read(readout: Any, unclear: str) -> str:
    """What the head reads."""
    if readout is None:
        return "a pooling attention"
    if callable(readout):
        return f"unclear, {unclear}" if unclear else "another for each input"
    read = np.flatnonzero(readout)
    if len(read) == 1:
        return f"token {read[0]}"
    return f"the mean of {len(read)} tokens" if np.ptp(readout[read]) < 1e-9 else "weights of the tokens"
