"""Running a program by the operations of a rule set."""

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

    def all_rules(self, rules: Rules, steps: Sequence[Step], passed: int = 0) -> list[Rules]:
        """The rules of all steps, as often as they are run, after some blocks."""
        found = []
        for step in steps:
            if isinstance(step, Loop):
                for i in range(step.length):
                    found += self.inner(step, i, passed).all_rules(rules, step.body.steps)
            else:
                found.append(self.rules(rules, step))
            passed += sites_of(step)
        return found


@dataclasses.dataclass(frozen=True)
class Points:
    """Variables at which something is added and read.

    Attributes:
        added: what is added, to read gradient and relevance there; to those of a loop, each time.
        seen: where their values go, with what was added.
    """

    added: Mapping[Variable, Array]
    seen: dict[Variable, Array] = dataclasses.field(default_factory=dict)

    def passed(self, variable: Variable, value: Any) -> Any:
        """What a variable is from here on."""
        if variable not in self.added:
            return value
        self.seen[variable] = value + self.added[variable]
        return self.seen[variable]


def run(
    program: Recognised,
    rules: Rules,
    values: Sequence[Any],
    points: Points | None = None,
    turn: Turn | None = None,
) -> list[Any]:
    """What a program gives.

    Args:
        program: the program.
        rules: its operations.
        values: what it is given.
        points: where something is added and read.
        turn: which time it is run; None: it is the whole program.
    """
    points = Points({}) if points is None else points
    turn = Turn(blocks=program.blocks) if turn is None else turn
    known = {v: points.passed(v, value) for v, value in zip(program.inputs, values, strict=True)}
    run_steps(program.steps, rules, known, turn, points=points)
    return [read(v, known) for v in program.outputs]


def read(variable: Variable, known: Mapping[Variable, Any]) -> Any:
    """The value of a variable."""
    return variable.constant if variable.constant is not None else known[variable]


def run_steps(
    steps: Sequence[Step],
    rules: Rules,
    known: dict[Variable, Any],
    turn: Turn,
    *,
    passed: int = 0,
    points: Points | None = None,
) -> None:
    """Run some steps.

    Args:
        steps: the steps, in order.
        rules: their operations.
        known: the values of variables; what steps give is added. Constants that are known are not computed again.
        turn: which time they are run.
        passed: how many blocks of their program are run before.
        points: where something is added and read.
    """
    for step in steps:
        if step.operation is None and all(v in known for v in step.outputs):
            continue
        region = None if points is not None and points.added else step.region
        if region is not None and region.is_cut:
            if step is region.steps[-1]:
                (output,) = step.outputs
                known[output] = region.run(rules, known, partial(run, turn=turn))
            passed += sites_of(step)
            continue
        inputs = [read(v, known) for v in step.inputs]
        if isinstance(step, Site):
            (value,) = inputs
            if rules.see is not None and step.handed_out:
                value = from_map(step, rules.see(to_map(step, value)))
            results: Sequence[Any] = [value]
        elif isinstance(step, Loop):
            turns = [turn.inner(step, i, passed) for i in range(step.length)]
            results = _loop(step, dataclasses.replace(rules, see=None), inputs, points or Points({}), turns)
        elif isinstance(step, Choice):
            branches = [partial(_branch, branch, step, rules, turn) for branch in step.branches]
            results = jax.lax.switch(jnp.asarray(inputs[0], jnp.int32), branches, *inputs[1:])
        else:
            results = by_operation(step, turn.rules(rules, step), inputs)
        passed += sites_of(step)
        if points is not None:
            results = [points.passed(v, result) for v, result in zip(step.outputs, results, strict=True)]
        known |= zip(step.outputs, results, strict=True)


def by_operation(step: Step, rules: Rules, inputs: Sequence[Any]) -> Sequence[Any]:
    """What a step gives that is one operation, or an equation that does not depend on the example."""
    if step.operation is None:
        return step.equations[0].call(*inputs)
    found = step.operation.run(rules, *inputs)
    results = typed(step.outputs, found if isinstance(found, (list, tuple)) else [found])
    is_low = rules.rounds and any(equation.exact is not None for equation in step.equations)
    return values_of(step, inputs, results) if is_low else results


def _branch(branch: Recognised, step: Choice, rules: Rules, turn: Turn, *given: Any) -> list[Any]:
    return typed(step.outputs, run(branch, rules, typed(branch.inputs, given), turn=turn))


def _loop(step: Loop, rules: Rules, inputs: list[Any], points: Points, turns: Sequence[Turn]) -> list[Any]:
    """A scan; several, where rules change. Going back recomputes all but products."""
    consts, carry = step.consts, step.carry
    inputs = [*typed(step.body.inputs[: consts + carry], inputs[: consts + carry]), *inputs[consts + carry :]]
    fixed, carried, given = inputs[:consts], inputs[consts : consts + carry], inputs[consts + carry :]
    params = step.equations[0].params
    inside = [v for v in points.added if step.body.has(v)]
    before = [points.added[v] for v in inside]

    def body(turn: Turn | None, carried: Any, each: Any) -> tuple[Any, Any]:
        some, here = each
        there = Points(dict(zip(inside, here, strict=True)))
        values = typed(step.body.inputs, [*fixed, *carried, *some])
        outputs = run(step.body, rules, values, there, turn)
        outputs = [*typed(step.body.inputs[consts : consts + carry], outputs[:carry]), *outputs[carry:]]
        return outputs[:carry], (outputs[carry:], [there.seen[v] for v in inside])

    cuts = sorted({0, step.length, *_changes(step, rules, turns)})
    pieces = list(itertools.pairwise(cuts))[:: -1 if params["reverse"] else 1] or [(0, 0)]
    parts, values = [], []
    for start, end in pieces:
        some, here = ([x[start:end] for x in all_of_them] for all_of_them in (given, before))
        once = jax.checkpoint(
            partial(body, turns[start] if turns else None),
            policy=jax.checkpoint_policies.dots_saveable,
            prevent_cse=False,
        )
        carried, (outputs, found) = jax.lax.scan(
            once, carried, (some, here), end - start, reverse=params["reverse"], unroll=params["unroll"]
        )
        parts.append(outputs)
        values.append(found)
    order = slice(None, None, -1 if params["reverse"] else 1)
    outputs, found = (
        of[0] if len(of) == 1 else [jnp.concatenate(pair) for pair in zip(*of[order], strict=True)]
        for of in (parts, values)
    )
    points.seen.update(zip(inside, found, strict=True))
    return typed(step.outputs, [*carried, *outputs])


def _changes(step: Loop, rules: Rules, turns: Sequence[Turn]) -> list[int]:
    """The times of a loop that have other rules than the time before."""
    if rules.places is None:
        return []
    found = [turn.all_rules(rules, step.body.steps) for turn in turns]
    return [i for i in range(1, len(found)) if found[i] != found[i - 1]]


def to_map(site: Site, value: Array) -> Array:
    """Attention as ``[h, n, N]``; where there are queries of some tokens alone, the rows before them are 0."""
    keys = value.shape[site.key]
    value = value.transpose(_order(site)).reshape(math.prod(value.shape[i] for i in site.heads), -1, keys)
    start = _first_row(site, value.shape[1])
    return jnp.pad(value, ((0, 0), (start, 0), (0, 0))) if start else value


def _first_row(site: Site, rows: int) -> int:
    """The token of the first query; 0, if there is one query of no token."""
    return site.rows[0] if site.rows is not None and rows < site.inputs[0].shape[site.key] else 0


def from_map(site: Site, maps: Array) -> Array:
    """The inverse of :func:`to_map`."""
    shape, order = site.inputs[0].shape, _order(site)
    rows = 1 if site.query is None else shape[site.query]
    maps = maps[:, _first_row(site, rows) :]
    return maps.reshape([shape[i] for i in order]).transpose(sorted(range(len(order)), key=order.__getitem__))


def _order(site: Site) -> list[int]:
    return [*site.heads, *(() if site.query is None else (site.query,)), site.key]
