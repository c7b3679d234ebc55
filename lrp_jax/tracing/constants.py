"""What a program computes that depends on no activations, also in a turn of its loops, beside which it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.program import Variable
from lrp_jax.tracing.interpret import read
from lrp_jax.tracing.precision import typed
from lrp_jax.tracing.steps import Loop, Recognised, Step


def constants(program: Recognised, values: Sequence[Any]) -> dict[Variable, Any]:
    """What is known of a program before activations are: its inputs, but those that are None, and what they make."""
    known = {v: x for v, x in zip(program.inputs, values, strict=True) if x is not None}
    for step in program.steps:
        if step.operation is None:
            _constant(step, known)
        elif isinstance(step, Loop):
            known |= _constants_of(step, known)
    return known


def _constant(step: Step, known: dict[Variable, Any]) -> None:
    """Compute what does not depend on the example, if all is known that it reads: it may be a choice by activations."""
    if all(v.constant is not None or v in known for v in step.inputs):
        known |= zip(step.outputs, step.equations[0].call(*(read(v, known) for v in step.inputs)), strict=True)


def fixed_of(steps: Sequence[Step], given: set[Variable]) -> set[Variable]:
    """What depends on no activations, of what is given."""
    found = set(given)
    for step in steps:
        if step.operation is None and all(v.constant is not None or v in found for v in step.inputs):
            found.update(step.outputs)
        elif isinstance(step, Loop):
            inner = fixed_inside(step, found)
            found.update(o for o, v in zip(step.outputs, step.body.outputs, strict=True) if v in inner and not o.active)
    return found


def fixed_inside(loop: Loop, fixed: set[Variable]) -> set[Variable]:
    """What depends on no activations in the body of a loop."""
    given = zip(loop.body.inputs, loop.inputs, strict=True)
    found = {i for i, o in given if not i.active and (o in fixed or o.constant is not None)}
    while True:
        inner = fixed_of(loop.body.steps, found)
        turned = {i for _, i, after in carried_of(loop) if after not in inner and after.constant is None}
        if not turned & found:
            return inner
        found -= turned  # what is carried may depend on activations from the second turn on


def carried_of(loop: Loop) -> list[tuple[Variable, Variable, Variable]]:
    """What a loop carries that does not depend on the example, as a counter: given, inside, and after a turn."""
    carry = slice(loop.consts, loop.consts + loop.carry)
    triples = zip(loop.inputs[carry], loop.body.inputs[carry], loop.body.outputs[: loop.carry], strict=True)
    return [triple for triple in triples if not triple[1].active]


def _inactive(loop: Loop) -> list[Step]:
    return [step for step in loop.body.steps if step.operation is None]


def _constants_of(loop: Loop, known: Mapping[Variable, Any]) -> dict[Variable, Any]:
    """What a loop gives that does not depend on the example, and what it carries of it before each turn."""
    inside = fixed_inside(loop, set(known))
    carried = carried_of(loop)
    if not all(v in inside or v.constant is not None for *_, v in carried):
        return {}
    made = [(o, v) for o, v in zip(loop.outputs, loop.body.outputs, strict=True) if v in inside and not o.active]
    if not carried and not made:
        return {}
    params = loop.equations[0].params
    fixed = dict(zip(loop.body.inputs[: loop.consts], loop.inputs[: loop.consts], strict=True))
    given = _given(loop, known)

    def turn(state: list[Any], each: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
        inner = {i: read(o, known) for i, o in fixed.items() if o.constant is not None or o in known}
        inner |= zip((i for _, i, _ in carried), state, strict=True)
        inner |= zip((v for v, _ in given), each, strict=True)
        for step in _inactive(loop):
            _constant(step, inner)
        after = typed([i for _, i, _ in carried], [read(v, inner) for *_, v in carried])
        return after, (state, [read(v, inner) for _, v in made])

    first = typed([i for _, i, _ in carried], [read(o, known) for o, *_ in carried])
    last, (states, stacked) = jax.lax.scan(turn, first, [x for _, x in given], loop.length, reverse=params["reverse"])
    found: dict[Variable, Any] = dict(zip((i for _, i, _ in carried), states, strict=True))
    ends = dict(zip((v for *_, v in carried), last, strict=True))
    for (outer, inner), values in zip(made, stacked, strict=True):
        found[outer] = ends[inner] if outer in loop.outputs[: loop.carry] else values
    return found


def _given(loop: Loop, known: Mapping[Variable, Any]) -> list[tuple[Variable, Any]]:
    fixed = loop.consts + loop.carry
    pairs = zip(loop.body.inputs[fixed:], loop.inputs[fixed:], strict=True)
    return [(i, read(o, known)) for i, o in pairs if o.constant is not None or o in known]


def in_turn(loop: Loop, turn: Any, known: Mapping[Variable, Any]) -> dict[Variable, Any]:
    """What is known within a turn of a loop, an integer or traced, beside what it carries of the example."""
    number = loop.length - 1 - turn if loop.equations[0].params["reverse"] else turn
    pairs = zip(loop.body.inputs[: loop.consts], loop.inputs[: loop.consts], strict=True)
    inner = {i: read(o, known) for i, o in pairs}
    inner |= _each(loop, number, known)
    inner |= {i: x[number] for i, x in _given(loop, known) if i not in inner}
    inner |= {i: known[i][number] for _, i, _ in carried_of(loop)}
    for step in _inactive(loop):
        _constant(step, inner)
    return inner


def _each(loop: Loop, number: Any, known: Mapping[Variable, Any]) -> dict[Variable, Any]:
    """Of what is given stacked, what a turn is given: chosen, as the stack would be a copy of all parameters."""
    pairs = zip(loop.body.inputs[loop.consts + loop.carry :], loop.inputs[loop.consts + loop.carry :], strict=True)
    parts = {i: [read(v, known) for v in loop.each[o]] for i, o in pairs if o in loop.each}
    if isinstance(number, int):
        return {i: jnp.asarray(each[number]) for i, each in parts.items()}
    turns = [lambda turn=turn: turn for turn in zip(*parts.values(), strict=True)]
    return dict(zip(parts, jax.lax.switch(number, turns), strict=True)) if parts else {}
