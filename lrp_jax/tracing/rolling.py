"""Repeated blocks, written one after the other, as one loop: compiled once, and its backward pass recomputes.

A run of equations that is repeated, with parameters of its own each time, becomes a scan over the stacked parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrp_jax.primitives import SELECTIONS
from lrp_jax.program import Equation, Program, Variable
from lrp_jax.tracing.derivatives import derivative


@dataclasses.dataclass(frozen=True)
class _Wiring:
    """What the repeated equations read, by the variables of the first time.

    Attributes:
        carried: read the first time from before, afterwards from the time before; and what gives it, of the first time.
        given: another each time.
        fixed: the same each time.
    """

    carried: dict[Variable, Variable]
    given: dict[Variable, list[Variable]]
    fixed: list[Variable]


def roll(program: Program, spans: Iterable[tuple[int, int]]) -> bool:
    """Make a loop of the longest run of repeated blocks.

    Args:
        program: changed in place, if there is one.
        spans: first and last of equations that must not be parted: what is recognised as one operation.

    Returns:
        Whether there is one.
    """
    parted = {i for start, end in spans for i in range(start + 1, end + 1)}
    for first, period, slack, times in _runs(program.equations):
        best: tuple[int, int, _Wiring] | None = None
        for start in range(first, first + slack + 1):
            if start in parted or start + times * period in parted:
                continue
            wiring = _wiring(program, start, period, times)
            if wiring is None:
                continue
            size = sum(v.size for v in wiring.carried)
            if best is None or size < best[0]:
                best = size, start, wiring
        if best is not None:
            _replace(program, best[1], period, times, best[2])
            return True
    return False


#: What takes parameters of one block from those of all.


def select_first(program: Program) -> None:
    """Put first what takes parameters of one block from those of all, which is different from block to block."""
    known = set(program.inputs)
    first, rest = [], []
    for equation in program.equations:
        constant = not any(v.active for v in equation.outputs)
        if (
            constant
            and equation.primitive in SELECTIONS
            and all(v in known or v.constant is not None for v in equation.inputs)
        ):
            known.update(equation.outputs)
            first.append(equation)
        else:
            rest.append(equation)
    program.equations = first + rest


def _runs(equations: Sequence[Equation]) -> list[tuple[int, int, int, int]]:
    """Start, period, slack of the start, and times of runs, those that cover most equations first; at most 16."""
    numbers: dict[Any, int] = {}
    code = np.array([numbers.setdefault(_signature(e), len(numbers)) for e in equations])
    runs: list[tuple[int, int, int, int]] = []
    for period in range(4, len(code) // 2 + 1):
        same = np.concatenate([[False], code[:-period] == code[period:], [False]])
        edges = np.flatnonzero(np.diff(same.astype(int)))
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            times = (end - start) // period + 1
            if times >= 2:
                runs.append((int(start), period, int((end - start) - (times - 1) * period), int(times)))
    return sorted(runs, key=lambda run: -run[1] * run[3])[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """A constant, told by identity: that of an object holds as long as the object is held, as it is here."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _signature(equation: Equation) -> Any:
    """What two equations have in common that compute the same of other variables."""
    described: Any = repr(equation.params)
    if equation.inner or equation.programs:  # functions among the parameters have other addresses each time
        programs = list(_programs(equation.params.values()))
        programs += [derivative(equation)] if equation.inner and equation.active else []
        plain = {name: value for name, value in equation.params.items() if name != "name" and _is_plain(value)}
        constants = [_Kept(constant) for called in programs for constant in getattr(called, "consts", ())]
        described = str(programs), repr(plain), tuple(constants)
    inputs = tuple((str(v), repr(v.constant) if not v.shape else "") for v in equation.inputs)
    outputs = tuple(map(str, equation.outputs))
    return equation.primitive, described, inputs, outputs, equation.exact is None, equation.attends


def _programs(values: Iterable[Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters, in tuples of them, as the branches of a ``cond``, and within them."""
    for value in values:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield value
            for equation in getattr(value, "jaxpr", value).eqns:
                yield from _programs(equation.params.values())
        elif isinstance(value, list | tuple):
            yield from _programs(value)


def _is_plain(value: Any) -> bool:
    """Whether a parameter is a number, a text, or a tuple of them: the direction of a scan, its length."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _wiring(program: Program, start: int, period: int, times: int) -> _Wiring | None:
    """What repeated equations read; None: they are no loop."""
    blocks = [program.equations[start + j * period : start + (j + 1) * period] for j in range(times)]
    place = {v: (j, i, o) for j, b in enumerate(blocks) for i, e in enumerate(b) for o, v in enumerate(e.outputs)}
    wiring = _Wiring({}, {}, [])
    for i in range(period):
        for slot, variable in enumerate(blocks[0][i].inputs):
            read = [block[i].inputs[slot] for block in blocks]
            at = [place.get(v) for v in read]
            if at[0] is not None:  # of its own time
                if any(a is None or a != (j, *at[0][1:]) for j, a in enumerate(at)):
                    return None
            elif any(a is not None for a in at):  # of the time before
                if any(a is None or a != (j, *at[1][1:]) for j, a in enumerate(at[1:])):  # type: ignore[index]
                    return None
                _, k, o = at[1]  # type: ignore[misc]
                source = blocks[0][k].outputs[o]
                if wiring.carried.setdefault(variable, source) is not source or not variable.active:
                    return None
            elif all(v is variable for v in read):
                wiring.fixed.append(variable)
            elif all(v.constant is not None and not v.shape for v in read):
                continue  # equal numbers
            elif any(v.active for v in read) or wiring.given.setdefault(variable, read) != read:
                return None
    if not wiring.carried or any(v in wiring.fixed or v in wiring.given for v in wiring.carried):
        return None
    return wiring if set(wiring.fixed).isdisjoint(wiring.given) else None


def _replace(program: Program, start: int, period: int, times: int, wiring: _Wiring) -> None:
    equations = program.equations
    blocks = [equations[start + j * period : start + (j + 1) * period] for j in range(times)]
    end = start + times * period
    fixed = [v for v in dict.fromkeys(wiring.fixed) if v.constant is None or v.shape]
    inner = {v: _copy(v) for v in (*fixed, *wiring.carried, *wiring.given)}
    body = [dataclasses.replace(e, inputs=tuple(inner.get(v, v) for v in e.inputs)) for e in blocks[0]]
    place = {v: (j, i, o) for j, b in enumerate(blocks) for i, e in enumerate(b) for o, v in enumerate(e.outputs)}
    read_later = dict.fromkeys(v for e in equations[end:] for v in e.inputs) | dict.fromkeys(program.outputs)
    carried_places: dict[tuple[int, ...], int] = {
        tuple(place[source][1:]): n for n, source in enumerate(wiring.carried.values())
    }
    results = [_copy(source) for source in wiring.carried.values()]
    stacked: dict[tuple[int, int], Variable] = {}
    after: list[Equation] = []
    source = blocks[0][-1].source
    for variable in read_later:
        if variable not in place:
            continue
        j, *at = place[variable]
        if j == times - 1 and tuple(at) in carried_places:
            results[carried_places[tuple(at)]] = variable
            continue
        whole = stacked.setdefault(tuple(at), Variable((times, *variable.shape), variable.dtype, own=variable.own))  # type: ignore[arg-type]
        pick = _written("squeeze", (whole,), variable, lambda x, j=j: [x[j]], source)
        after.append(pick)
    parameters, before = [], []
    for read in wiring.given.values():
        whole = Variable((times, *read[0].shape), read[0].dtype)
        before.append(_written("stack", tuple(read), whole, lambda *values: [jnp.stack(values)], source))
        parameters.append(whole)
    outputs = [*wiring.carried.values(), *(blocks[0][i].outputs[o] for i, o in stacked)]
    loop = Equation(
        "scan",
        (*fixed, *wiring.carried, *parameters),
        (*results, *stacked.values()),
        {"length": times, "reverse": False, "unroll": 1},
        _not_run,
        source,
        (Program([inner[v] for v in (*fixed, *wiring.carried, *wiring.given)], outputs, body),),
    )
    program.equations = [*equations[:start], *before, loop, *after, *equations[end:]]


def is_stack(equation: Equation) -> bool:
    """Whether an equation stacks what a loop of repeated blocks is given each time."""
    return equation.primitive == "stack" and not equation.params


def _copy(variable: Variable) -> Variable:
    return Variable(variable.shape, variable.dtype, own=variable.own)


def _written(
    primitive: str, inputs: tuple[Variable, ...], output: Variable, call: Callable[..., Any], source: Any
) -> Equation:
    return Equation(primitive, inputs, (output,), {}, call, source)


def _not_run(*_: Any) -> Any:
    raise AssertionError("a loop of active values is run by its body")
