"""Units: functions of one activation that are written as several equations, as layer norm, softmax and GELU are.

They are no primitives, and only some carry a name; what they share is shape. A join (an equation with two or more
active inputs) whose immediate dominator is one variable of its own shape, with only local equations between, and
nothing used elsewhere, is one operation of one variable.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Sequence

import jax

from lrp_jax.primitives import CHOICES, DISPLACING, ELEMENTWISE, MOVES, REDUCTIONS
from lrp_jax.program import Equation, Program, Variable, dominators, flatten

#: What is no part of a function of one value.
_ELSEWHERE = {"argmax", "argmin", "nextafter"}


@dataclasses.dataclass(eq=False)
class Unit:
    """A function of one variable.

    Attributes:
        kind: ``"softmax"``, ``"layer_norm"``, ``"linear"`` or ``"activation"``.
        input: the variable.
        output: what the function gives, of the same shape.
        equations: what it is made of, in order.
    """

    kind: str
    input: Variable
    output: Variable
    equations: list[Equation]

    @property
    def constants(self) -> list[Variable]:
        """What else it reads."""
        inside = {v for equation in self.equations for v in equation.outputs} | {self.input}
        read = dict.fromkeys(v for equation in self.equations for v in equation.inputs)
        return [v for v in read if v not in inside]

    @property
    def reduced(self) -> frozenset[int]:
        """How many values its sums are of."""
        equations = [inner for equation in self.equations for inner in _opened(equation)]
        sums = [equation for equation in equations if equation.primitive == "reduce_sum"]
        return frozenset(math.prod(e.inputs[0].shape[axis] for axis in e.params["axes"]) for e in sums)


def _opened(equation: Equation) -> list[Equation]:
    """An equation, or those that it is made of, if it is a function that was kept whole."""
    if not equation.inner:
        return [equation]
    given = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.inputs]
    return flatten(jax.make_jaxpr(equation.call)(*given), lambda primitives: False).equations


def is_local(equation: Equation) -> bool:
    """Whether an equation may be inside of a unit."""
    return any(equation.primitive in group for group in (ELEMENTWISE, MOVES, REDUCTIONS)) or is_whole(equation)


def is_whole(equation: Equation) -> bool:
    """Whether it is a function of one variable with a derivative of its own, of local equations."""
    return bool(equation.inner) and len(equation.outputs) == 1


def may_be_whole(primitives: Collection[str]) -> bool:
    """Whether functions with a derivative of their own are kept whole if they are made of these primitives.

    These are functions of each value by itself, and softmax: one operation, whatever its derivative.
    """
    names = set(primitives)
    is_softmax = "exp" in names and "reduce_sum" in names
    return names <= (ELEMENTWISE | MOVES | CHOICES | {"iota"}) - DISPLACING - _ELSEWHERE | (
        REDUCTIONS if is_softmax else set()
    )


def find(program: Program) -> list[Unit]:
    """The units of a program, none inside of another.

    Args:
        program: the program, active variables marked.

    Returns:
        The units.
    """
    return _Finder(program).run()


class _Finder:
    """The search for the units of one program."""

    def __init__(self, program: Program) -> None:
        self.equations = program.equations
        self.places = {v: i for i, e in enumerate(self.equations) for v in e.outputs}
        self.users: dict[Variable, set[int]] = {}
        for i, equation in enumerate(self.equations):
            for variable in equation.inputs:
                self.users.setdefault(variable, set()).add(i)
        self.given = set(program.outputs)
        self.dominators = dominators(program.inputs, program.equations)
        self.taken: set[int] = set()

    def run(self) -> list[Unit]:
        """The units, the larger before the smaller."""
        units = []
        for last in reversed(range(len(self.equations))):
            found = None if last in self.taken else self.joined(last)
            if found is None:
                continue
            start, region = self.with_exponential(*found)
            region = self.with_exponential_after(last, region)
            equations = [self.equations[i] for i in sorted(region)]
            kind = _kind(start, equations)
            if kind is not None:
                self.taken |= region
                units.append(Unit(kind, start, equations[-1].outputs[0], equations))
        return units

    def joined(self, last: int) -> tuple[Variable, set[int]] | None:
        """The dominator of a join, and the equations between, if they are local and nothing else reads them."""
        join = self.equations[last]
        if len(join.active) < 2 or len(join.outputs) != 1 or not join.outputs[0].active:
            return None
        start = self.dominators[join.outputs[0]]
        if start is None or start.shape != join.outputs[0].shape:
            return None
        region: set[int] = set()
        waiting = [last]
        while waiting:
            i = waiting.pop()
            if i in self.taken or not is_local(self.equations[i]):
                return None
            region.add(i)
            waiting += [self.places[v] for v in self.equations[i].active if v is not start]
            waiting = [j for j in waiting if j not in region]
        region = self.with_constants(start, region)
        inside = [v for i in region for v in self.equations[i].outputs if i != last]
        if any(v in self.given or not self.users.get(v, set()) <= region for v in inside):
            return None
        return start, region

    def with_constants(self, start: Variable, region: set[int]) -> set[int]:
        """With what has no derivative and is read here alone, as the maximum that a softmax subtracts."""
        more: set[int] = set()
        waiting = [start, *(v for i in region for v in self.equations[i].outputs)]
        while waiting:
            for i in self.users.get(waiting.pop(), ()):
                outputs = self.equations[i].outputs
                if i not in more and i not in region | self.taken and not any(v.active for v in outputs):
                    more.add(i)
                    waiting += outputs
        while True:
            elsewhere = {
                i
                for i in more
                if any(
                    v in self.given or not self.users.get(v, set()) <= region | more for v in self.equations[i].outputs
                )
            }
            if not elsewhere:
                return region | more
            more -= elsewhere

    def with_exponential(self, start: Variable, region: set[int]) -> tuple[Variable, set[int]]:
        """A quotient by a sum together with the exponential before it, its scale and its mask: a softmax."""
        names = self.names(region)
        if "reduce_sum" not in names or not names & {"div", "log"} or names & {"rsqrt", "sqrt"}:
            return start, region
        first, all_of_it = start, set(region)
        while first in self.places and first not in self.given and self.users[first] <= all_of_it:
            place = self.places[first]
            equation = self.equations[place]
            if place in self.taken:
                break
            if len(equation.active) > 1:
                found = self.joined(place)
                if found is None:
                    break
                first, more = found
            elif is_local(equation) and equation.active[0].shape == first.shape and len(equation.outputs) == 1:
                if equation.primitive in DISPLACING:
                    break
                first, more = equation.active[0], {place}
            else:
                break
            all_of_it = self.with_constants(first, all_of_it | more)
        if self.names(all_of_it) & {"exp", "exp2"}:
            return first, all_of_it
        return start, region

    def with_exponential_after(self, last: int, region: set[int]) -> set[int]:
        """A difference to the logarithm of a sum of exponentials together with the exponential of it: a softmax."""
        if not {"log", "reduce_sum"} <= self.names(region) or not self.names(region) & {"exp", "exp2"}:
            return region
        (output,) = self.equations[last].outputs
        after = self.users.get(output, set())
        if output in self.given or len(after) != 1 or not self.names(after) <= {"exp", "exp2"}:
            return region
        return region | after

    def names(self, places: set[int]) -> set[str]:
        """The primitives of some equations."""
        return _names(self.equations[i] for i in places)


def _names(equations: Iterable[Equation]) -> set[str]:
    return {name for e in equations for name in (e.inner or {e.primitive})}


def _kind(start: Variable, equations: Sequence[Equation]) -> str | None:
    """What function of ``start`` the equations are; None: none of one variable, as they take values elsewhere."""
    names = _names(equations)
    displaced = _displaced(equations)
    if names & {"exp", "exp2"} and "reduce_sum" in names and names & {"div", "log"}:
        return None if displaced else "softmax"
    if "reduce_sum" in names and (names & {"rsqrt", "sqrt"} or any(_is_inverse_power(e) for e in equations)):
        return None if displaced else "layer_norm"
    if all(_is_linear(e) for e in equations):
        if all(e.primitive in MOVES or (len(e.active) == 1 and e.primitive not in REDUCTIONS) for e in equations):
            return None  # parts with scales and shifts of their own, put together again
        return "linear" if all(_is_along_last(e, start) for e in displaced) else None
    return None if displaced else "activation"


def _displaced(equations: Sequence[Equation]) -> list[Equation]:
    """Those that take values of the variable to another place, not of what it is reduced to, as a mean."""
    reduced: set[Variable] = set()
    displaced = []
    for equation in equations:
        if equation.primitive in REDUCTIONS or all(v in reduced for v in equation.active):
            reduced.update(equation.outputs)
        elif equation.primitive in DISPLACING:
            displaced.append(equation)
    return displaced


def _is_inverse_power(equation: Equation) -> bool:
    exponent = equation.inputs[-1].constant
    return equation.primitive == "pow" and exponent is not None and exponent < 0


def _is_linear(equation: Equation) -> bool:
    """Whether it is linear in all its active inputs together."""
    if (
        not equation.active
        or equation.primitive in MOVES
        or equation.primitive in {"add", "add_any", "sub", "neg", "reduce_sum"}
    ):
        return True
    if equation.primitive == "mul":
        return len(equation.active) == 1 and equation.inputs.count(equation.active[0]) == 1
    return equation.primitive == "div" and not equation.inputs[1].active


def _is_along_last(equation: Equation, start: Variable) -> bool:
    """Whether a move takes values along the last axis of ``start`` only."""
    leading = start.shape[:-1]
    shapes = [v.shape for v in (*equation.active, *equation.outputs)]
    params, last = equation.params, {len(leading)}
    along = last
    if equation.primitive == "rev":
        along = set(params["dimensions"])
    elif equation.primitive == "gather":
        along = set(params["dimension_numbers"].start_index_map)
    elif equation.primitive == "scatter":
        along = set(params["dimension_numbers"].scatter_dims_to_operand_dims)
    kept = all(shape[: len(leading)] == leading for shape in shapes) and equation.primitive != "transpose"
    return kept and along <= last
