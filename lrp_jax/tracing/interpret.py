"""Running a program by the operations of a rule set, its attention tapped and handed out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.program import Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing.precision import typed, values_of
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site, Step, sites_of


@dataclasses.dataclass(frozen=True)
class Turn:
    """Which time a program is run.

    Attributes:
        number: of the loop.
        before: how many blocks are run before.
        blocks: how many blocks there are in all.
    """

    number: int = 0
    before: int = 0
    blocks: int = 0

    def rules(self, rules: Rules, step: Step) -> Rules:
        """The rules where a step stands."""
        place = step.place
        if rules.places is None:
            return rules
        told: dict[str, Any] = {"parameters": place.names[self.number % len(place.names)], "line": place.line}
        if place.part is not None:
            told["part"] = place.part
        if step.tokens is not None:
            told["tokens"] = step.tokens
        if place.block is not None:
            told |= {"depth": self.before + place.block, "blocks": self.blocks}
        return rules.at(**told)

    def inner(self, loop: Loop, number: int, passed: int) -> Turn:
        """Of the body of a loop, after some blocks of this program."""
        return Turn(number, self.before + passed + number * loop.body.sites, self.blocks)

    def all_rules(self, rules: Rules, program: Recognised) -> list[Rules]:
        """The rules of all steps, as often as they are run."""
        found, passed = [], 0
        for step in program.steps:
            if isinstance(step, Loop):
                for i in range(step.length):
                    found += self.inner(step, i, passed).all_rules(rules, step.body)
            else:
                found.append(self.rules(rules, step))
            passed += sites_of(step)
        return found


@dataclasses.dataclass(frozen=True)
class Points:
    """Variables at which something is added and read.

    Attributes:
        added: what is added, to read gradient and relevance there; to those of a loop, each time.
        apart: whether it is put in their place instead.
        seen: where their values go, with what was added.
    """

    added: Mapping[Variable, Array]
    apart: bool = False
    seen: dict[Variable, Array] = dataclasses.field(default_factory=dict)

    def passed(self, variable: Variable, value: Any) -> Any:
        """What a variable is from here on."""
        if variable not in self.added:
            return value
        added = self.added[variable]
        self.seen[variable] = value if self.apart else value + added
        return added if self.apart else self.seen[variable]


def run(
    program: Recognised,
    rules: Rules,
    values: Sequence[Any],
    taps: Array | None,
    points: Points | None = None,
    turn: Turn | None = None,
) -> tuple[list[Any], list[Array]]:
    """What a program gives, and its attention.

    Args:
        program: the program.
        rules: its operations.
        values: what it is given.
        taps: ``[l, h, N, N]``, to be added to the last l of its attention, or None.
        points: where else something is added and read.
        turn: which time it is run; None: it is the whole program.

    Returns:
        What it gives, and attention in parts, ``[some, h, N, N]`` each.
    """
    points = Points({}) if points is None else points
    turn = Turn(blocks=program.blocks) if turn is None else turn
    known = {v: points.passed(v, value) for v, value in zip(program.inputs, values, strict=True)}
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
            if step.handed_out:
                attention.append(to_map(step, value)[None])
            results: Sequence[Any] = [value]
            passed += 1
        elif isinstance(step, Loop):
            sites = step.body.sites * step.length
            here = None if taps is None else taps[max(passed - untapped, 0) : max(passed + sites - untapped, 0)]
            turns = [turn.inner(step, i, passed) for i in range(step.length)]
            results, parts = _loop(step, rules, inputs, here, points, turns)
            attention += parts
            passed += sites
        elif isinstance(step, Choice):
            branches = [partial(_branch, branch, step, rules, turn) for branch in step.branches]
            results = jax.lax.switch(jnp.asarray(inputs[0], jnp.int32), branches, *inputs[1:])
        else:
            results = by_operation(step, turn.rules(rules, step), inputs)
        known |= {v: points.passed(v, result) for v, result in zip(step.outputs, results, strict=True)}
    return [read(v) for v in program.outputs], attention


def by_operation(step: Step, rules: Rules, inputs: Sequence[Any]) -> Sequence[Any]:
    """What a step gives that is one operation, or an equation that does not depend on the example."""
    if step.operation is None:
        return step.equations[0].call(*inputs)
    found = step.operation.run(rules, *inputs)
    results = typed(step.outputs, found if isinstance(found, (list, tuple)) else [found])
    is_low = rules.rounds and any(equation.exact is not None for equation in step.equations)
    return values_of(step, inputs, results) if is_low else results


def _branch(branch: Recognised, step: Choice, rules: Rules, turn: Turn, *given: Any) -> list[Any]:
    return typed(step.outputs, run(branch, rules, typed(branch.inputs, given), None, turn=turn)[0])


def _loop(
    step: Loop,
    rules: Rules,
    inputs: list[Any],
    taps: Array | None,
    points: Points,
    turns: Sequence[Turn],
) -> tuple[list[Any], list[Array]]:
    """A scan; several, where only the last times have taps, or rules change. Going back recomputes all but products."""
    consts, carry = step.consts, step.carry
    inputs = [*typed(step.body.inputs[: consts + carry], inputs[: consts + carry]), *inputs[consts + carry :]]
    fixed, carried, given = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]
    sites = step.body.sites
    tapped = 0 if taps is None else -(-len(taps) // sites) if sites else 0
    params = step.equations[0].params
    inside = [v for v in points.added if step.body.has(v)]
    before = [points.added[v] for v in inside]

    def body(turn: Turn | None, carried: Any, each: Any) -> tuple[Any, Any]:
        some, tap, here = each
        there = Points(dict(zip(inside, here, strict=True)), points.apart)
        values = typed(step.body.inputs, [*fixed, *carried, *some])
        outputs, attention = run(step.body, rules, values, tap, there, turn)
        outputs = [*typed(step.body.inputs[consts : consts + carry], outputs[:carry]), *outputs[carry:]]
        maps = jnp.concatenate(attention) if attention else None
        return outputs[:carry], (outputs[carry:], maps, [there.seen[v] for v in inside])

    if taps is not None and tapped:
        missing = tapped * sites - len(taps)
        taps = jnp.pad(taps, ((missing, 0),) + ((0, 0),) * (taps.ndim - 1)) if missing else taps
        taps = taps.reshape(tapped, sites, *taps.shape[1:])
    cuts = sorted({0, step.length - tapped, step.length, *_changes(step, rules, turns)})
    pieces = list(itertools.pairwise(cuts))[:: -1 if params["reverse"] else 1] or [(0, 0)]
    parts, attention, values = [], [], []
    for start, end in pieces:
        some, here = ([x[start:end] for x in all_of_them] for all_of_them in (given, before))
        first_tap = step.length - tapped
        tap = None if taps is None or start < first_tap else taps[start - first_tap : end - first_tap]
        once = jax.checkpoint(
            partial(body, turns[start] if turns else None),
            policy=jax.checkpoint_policies.dots_saveable,
            prevent_cse=False,
        )
        carried, (outputs, maps, found) = jax.lax.scan(
            once, carried, (some, tap, here), end - start, reverse=params["reverse"], unroll=params["unroll"]
        )
        parts.append(outputs)
        values.append(found)
        if maps is not None:
            attention.append(maps.reshape(-1, *maps.shape[2:]))
    order = slice(None, None, -1 if params["reverse"] else 1)
    outputs, found = (
        of[0] if len(of) == 1 else [jnp.concatenate(pair) for pair in zip(*of[order], strict=True)]
        for of in (parts, values)
    )
    points.seen.update(zip(inside, found, strict=True))
    return typed(step.outputs, [*carried, *outputs]), attention


def _changes(step: Loop, rules: Rules, turns: Sequence[Turn]) -> list[int]:
    """The times of a loop that have other rules than the time before."""
    if rules.places is None:
        return []
    found = [turn.all_rules(rules, step.body) for turn in turns]
    return [i for i in range(1, len(found)) if found[i] != found[i - 1]]


def to_map(site: Site, value: Array) -> Array:
    """Attention as ``[h, N, N]``; where there are queries of some tokens alone, the rows of others are 0."""
    queries = () if site.query is None else (site.query,)
    order = [*site.heads, *queries, site.key]
    keys = value.shape[site.key]
    value = value.transpose(order).reshape(math.prod(value.shape[i] for i in site.heads), -1, keys)
    start = _first_row(site, value.shape[1])
    return jnp.pad(value, ((0, 0), (start, keys - start - value.shape[1]), (0, 0)))


def _first_row(site: Site, rows: int) -> int:
    """The token of the first query; 0, if there is one query of no token."""
    return site.rows[0] if site.rows is not None and rows < site.inputs[0].shape[site.key] else 0


def from_map(site: Site, tap: Array) -> Array:
    """The inverse of :func:`to_map`, without the padding."""
    shape = site.inputs[0].shape
    queries = () if site.query is None else (site.query,)
    order = [*site.heads, *queries, site.key]
    rows = 1 if site.query is None else shape[site.query]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    start = _first_row(site, rows)
    return tap[:, start : start + rows].reshape([shape[i] for i in order]).transpose(inverse)
