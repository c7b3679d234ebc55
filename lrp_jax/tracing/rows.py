"""Which axis of each value of a program is the batch, and where examples of a batch meet.

A program of a batch of B examples is followed from its inputs. Each value either does not depend on the examples, or is
made of one part for each, computed alike: then one axis of it is the batch, alone or merged with others. What computes
of several examples together, or of an example and its place in the batch, ends the search: :class:`CoupledError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.primitives import ALIKE, RANDOM
from lrp_jax.program import Equation, Program, Variable, flatten, parts_of_scan


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the batch is in an array.

    Attributes:
        axis: the axis, of the size outer * B * inner; -1: the value is of one example, inside of a loop over them.
        outer: how many runs of the batch there are along it: 1, where the batch is the axis or its major part.
        placed: of indices, which component is the place in the batch itself; None: none is.
    """

    axis: int
    outer: int = 1
    placed: int | None = None


State = Rows | None


#: Of each input of an equation; which of them are None, its handler knows.
States = list[Any]
Handler = Callable[["Walk", Equation, States], State | list[State]]


class CoupledError(Exception):
    """It cannot be told that examples are apart, and where.

    Attributes:
        equation: where they meet.
    """

    def __init__(self, equation: Equation) -> None:
        super().__init__(str(equation))
        self.equation = equation


def coupled(
    program: Program, examples: Sequence[bool], batch: int, handlers: Mapping[str, Handler]
) -> tuple[Equation | None, list[Equation]]:
    """Where the examples of a batch meet in a program.

    Args:
        program: of a batch; its outputs are ``[batch, ...]``.
        examples: which of its inputs are examples, ``[batch, ...]``.
        batch: how many examples, at least 2.
        handlers: what each primitive does with the batch, :data:`lrp_jax.tracing.axes.HANDLERS`.

    Returns:
        The first equation of which it cannot be told that they are apart, None if there is none; and the equations
        that draw random numbers without an example, up to there.
    """
    walk = Walk(batch, handlers)
    for variable, is_example in zip(program.inputs, examples, strict=True):
        walk.put(variable, Rows(0) if is_example else None)
    try:
        walk.run(program)
        (output,) = program.outputs
        last = program.equations[-1] if program.equations else None
        if last is not None and walk.rows.get(output, Rows(0)) != Rows(0):
            raise CoupledError(last)
    except CoupledError as found:
        return found.equation, walk.random
    return None, walk.random


def relocated(shape: Sequence[int], rows: Rows, new: Sequence[int], batch: int) -> State:
    """Where the batch is after a reshape; None: it is split, or no axis has it."""
    before = math.prod(shape[: rows.axis]) * rows.outer
    for axis, size in enumerate(new):
        passed = math.prod(new[:axis])
        if before % passed == 0 and size and size % (before // passed * batch) == 0:
            return Rows(axis, before // passed)
    return None


class Walk:
    """The search in one program and what it calls."""

    def __init__(self, batch: int, handlers: Mapping[str, Handler]) -> None:
        self.batch, self.handlers = batch, _CONTROL | dict(handlers)
        self.rows: dict[Variable, Rows] = {}
        self.maker: dict[Variable, Equation] = {}
        self.alias: dict[Variable, Variable] = {}  # in a loop, of the same value outside
        self.values: dict[Variable, Any] = {}
        self.uniform: dict[tuple[Variable, Rows], bool] = {}
        self.random: list[Equation] = []

    def put(self, variable: Variable, state: State) -> None:
        """Say where the batch of a variable is."""
        self.rows.pop(variable, None)
        if state is not None:
            self.rows[variable] = state

    def run(self, program: Program) -> None:
        """Follow the batch through a program."""
        for equation in program.equations:
            self.maker |= dict.fromkeys(equation.outputs, equation)
            states = [self.rows.get(v) for v in equation.inputs]
            if equation.primitive in RANDOM and not any(states) and equation not in self.random:
                self.random.append(equation)
            found = self.of(equation, states) if any(states) else [None] * len(equation.outputs)
            for variable, state in zip(equation.outputs, found, strict=True):
                self.put(variable, state)

    def of(self, equation: Equation, states: States) -> Sequence[State]:
        """Where the batch is in what an equation gives."""
        name = equation.primitive
        single = [state.axis < 0 for state in states if state is not None]
        if all(single):
            return [Rows(-1)] * len(equation.outputs)
        placed = [state for state in states if state is not None and state.placed is not None]
        handler = self.handlers.get(name) or (_alike if name in ALIKE else None)
        if handler is None or any(single) or (placed and not name.startswith(("gather", "scatter"))):
            raise CoupledError(equation)
        found = handler(self, equation, states)
        return found if isinstance(found, list) else [found] * len(equation.outputs)

    def inner(self, rows: Rows, shape: Sequence[int]) -> int:
        """How many values of one example there are in a run of the batch's axis."""
        return shape[rows.axis] // (rows.outer * self.batch)

    # What does not depend on examples may stand beside what does, if it is the same for each.

    def agree(self, equation: Equation, wanted: Sequence[State], states: Sequence[State]) -> None:
        """Refuse inputs that are neither as wanted nor the same for each example; of None, whatever is fixed."""
        for variable, want, state in zip(equation.inputs, wanted, states, strict=True):
            if state is None and (want is None or self.is_uniform(variable, want)):
                continue
            if state is None or state != want:
                raise CoupledError(equation)

    def together(self, equation: Equation, states: Sequence[State]) -> Rows:
        """The one place of the batch in inputs of one rank."""
        rows = next(state for state in states if state is not None)
        rank = max(len(v.shape) for v in equation.inputs)
        self.agree(equation, [rows if len(v.shape) == rank else None for v in equation.inputs], states)
        return rows

    def is_uniform(self, variable: Variable, rows: Rows) -> bool:
        """Whether a value that does not depend on examples is the same for each, its batch where they have theirs."""
        variable = self.outside(variable)
        if rows.axis < 0 or len(variable.shape) <= rows.axis or variable.shape[rows.axis] == 1:
            return True
        if (variable, rows) not in self.uniform:
            self.uniform[variable, rows] = self._is_made_uniform(variable, rows) or self._is_uniform_value(
                variable, rows
            )
        return self.uniform[variable, rows]

    def _is_made_uniform(self, variable: Variable, rows: Rows) -> bool:
        """Whether it is repeated for each example, or made of what is."""
        maker = self.maker.get(variable)
        if maker is None or variable.constant is not None or maker.primitive in _CONTROL or not maker.inputs:
            return False
        (first, *others), inner = maker.inputs, self.inner(rows, variable.shape)
        if maker.primitive == "broadcast_in_dim" and rows.axis not in maker.params["broadcast_dimensions"]:
            return True
        if maker.primitive == "broadcast_in_dim":
            return self.is_uniform(first, Rows(list(maker.params["broadcast_dimensions"]).index(rows.axis), rows.outer))
        if maker.primitive in {"tile", "concatenate"} and inner % first.shape[rows.axis] == 0:
            return all(v is first for v in others)
        if maker.primitive == "stack" and rows.axis == maker.params["axis"]:
            return all(v is first for v in others)
        if maker.primitive == "reshape":
            before = relocated(variable.shape, rows, first.shape, self.batch)
            return before is not None and self.is_uniform(first, before)
        place = maker.outputs.index(variable)
        for i, given in enumerate(maker.inputs):
            for axis in range(len(given.shape)):
                guess = Rows(axis, rows.outer)
                if given.shape[axis] % (rows.outer * self.batch) == 0 and self.is_uniform(given, guess):
                    states: States = [guess if k == i else None for k in range(len(maker.inputs))]
                    with contextlib.suppress(CoupledError):
                        if self.of(maker, states)[place] == rows:
                            return True
        return False

    def _is_uniform_value(self, variable: Variable, rows: Rows) -> bool:
        value = self.value(variable)
        if value is None or rows.axis < 0:
            return False
        shape = (*value.shape[: rows.axis], rows.outer, self.batch, -1, *value.shape[rows.axis + 1 :])
        each = np.moveaxis(np.reshape(value, shape), rows.axis + 1, 0)
        return bool((each == each[:1]).all())

    def outside(self, variable: Variable) -> Variable:
        """Of a constant of a loop, the variable that it is given."""
        while variable in self.alias:
            variable = self.alias[variable]
        return variable

    def value(self, variable: Variable) -> Any:
        """The value of what depends on nothing that is given; None: it depends, or is large."""
        variable = self.outside(variable)
        if variable.constant is not None:
            is_key = jnp.issubdtype(variable.dtype, jax.dtypes.extended)
            is_known = not is_key and not isinstance(variable.constant, jax.core.Tracer)
            return np.asarray(variable.constant) if is_known else None
        if variable not in self.values:
            self.values[variable] = None
            maker = self.maker.get(variable)
            if maker is not None and variable not in self.rows and not maker.programs and variable.size < 1 << 24:
                given = [self.value(v) for v in maker.inputs]
                if not any(v is None for v in given):
                    with jax.ensure_compile_time_eval():
                        made = maker.call(*given)
                    if not any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in made):
                        self.values |= zip(maker.outputs, map(np.asarray, made), strict=True)
        return self.values[variable]

    def is_position(self, indices: Variable, component: int, axis: int) -> bool:
        """Whether a component of the last axis of some indices is the place in the batch along an axis."""
        indices = self.outside(indices)
        maker = self.maker.get(indices)
        while maker is not None and maker.primitive in {"convert_element_type", "copy"}:
            indices = maker.inputs[0]
            maker = self.maker.get(indices)
        is_joined = maker is not None and maker.primitive == "concatenate"
        if maker is not None and is_joined and maker.params["dimension"] == len(indices.shape) - 1:
            for part in maker.inputs:
                if component < part.shape[-1]:
                    return self.is_position(part, component, axis)
                component -= part.shape[-1]
        value = self.value(indices) if self.rows.get(indices) is None else None
        if value is None or value.shape[axis] != self.batch:
            return False
        places = np.arange(self.batch).reshape([-1 if i == axis else 1 for i in range(value.ndim - 1)])
        return bool((value[..., component] == places).all())


def _alike(walk: Walk, equation: Equation, states: States) -> State:
    return walk.together(equation, states)


def _loop(walk: Walk, equation: Equation, states: States) -> list[State]:
    consts, carry = parts_of_scan(equation)
    (body,) = equation.programs
    inside: list[State] = states[: consts + carry]
    for variable, state in zip(equation.inputs[consts + carry :], states[consts + carry :], strict=True):
        if state is None or state.axis:
            inside.append(state and Rows(state.axis - 1, state.outer))
        elif state.axis == 0 and variable.shape[0] == walk.batch:
            inside.append(Rows(-1))  # a loop over the examples
        else:
            raise CoupledError(equation)
    walk.alias |= zip(body.inputs[:consts], equation.inputs[:consts], strict=True)
    given = equation.inputs[consts : consts + carry]
    carried, found = _repeated(walk, equation, body, inside, slice(consts, consts + carry), given)
    stacked: list[State] = [
        None if s is None else Rows(0) if s.axis < 0 else Rows(s.axis + 1, s.outer) for s in found[carry:]
    ]
    return [*carried, *stacked]


def _repeated(
    walk: Walk, equation: Equation, body: Program, inside: list[State], carried: slice, given: Sequence[Variable]
) -> tuple[list[State], list[State]]:
    """Run a body until what it carries has its batch where it is given: what is carried, and all that it gives."""
    first_time = {v: g for v, g, state in zip(body.inputs[carried], given, inside[carried], strict=True) if not state}
    walk.alias |= first_time  # of what is carried, it may turn out that it depends on examples
    while True:
        for variable, state in zip(body.inputs, inside, strict=True):
            walk.put(variable, state)
        walk.run(body)
        found: list[State] = [walk.rows.get(v) for v in body.outputs]
        before, after = inside[carried], found[: len(given)]
        if any(state is not None and state.axis < 0 for state in (*before, *after)):
            raise CoupledError(equation)
        merged = []
        for first, last, old, new in zip(given, body.outputs, before, after, strict=False):
            rows = old or new
            if rows is not None and old != new and ((old and new) or not walk.is_uniform(last if old else first, rows)):
                raise CoupledError(equation)
            merged.append(rows)
        if merged == before and not first_time:
            return merged, found
        inside[carried] = merged
        for variable in first_time:
            del walk.alias[variable]
        first_time = {}
        walk.uniform, walk.values = {}, {}


def _while(walk: Walk, equation: Equation, states: States) -> list[State]:
    p = equation.params
    test, body = (flatten(p[name], lambda primitives: False) for name in ("cond_jaxpr", "body_jaxpr"))
    first, consts = p["cond_nconsts"], p["body_nconsts"]
    given = equation.inputs[first + consts :]
    walk.alias |= zip(body.inputs[:consts], equation.inputs[first : first + consts], strict=True)
    carried, _ = _repeated(walk, equation, body, states[first:], slice(consts, None), given)
    for variable, state in zip(test.inputs, [*states[:first], *carried], strict=True):
        walk.put(variable, state)
    walk.run(test)
    if walk.rows.get(test.outputs[0]) is not None:
        raise CoupledError(equation)
    return carried


def _cond(walk: Walk, equation: Equation, states: States) -> list[State]:
    if states[0] is not None:
        raise CoupledError(equation)
    found: list[list[State]] = []
    for branch in equation.programs:
        walk.alias |= zip(branch.inputs, equation.inputs[1:], strict=True)
        for variable, state in zip(branch.inputs, states[1:], strict=True):
            walk.put(variable, state)
        walk.run(branch)
        found.append([walk.rows.get(v) for v in branch.outputs])
    result: list[State] = []
    for i, options in enumerate(zip(*found, strict=True)):
        rows = next((s for s in options if s is not None), None)
        for branch, state in zip(equation.programs, options, strict=True):
            if rows is not None and state != rows and (state or not walk.is_uniform(branch.outputs[i], rows)):
                raise CoupledError(equation)
        result.append(rows)
    return result


_CONTROL: dict[str, Handler] = {"scan": _loop, "while": _while, "cond": _cond}
