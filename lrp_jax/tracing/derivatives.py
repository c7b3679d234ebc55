"""Where derivatives do not say what values do: functions with a derivative of their own, and rounding.

A function with a derivative of its own is opened where that is the derivative of what it computes, as of fused norms:
then gradients and relevance both follow what is inside. Where it is another one, as of products that are quantised
with a straight-through estimator, the two would part, and it is refused. Rounding has no derivative; where its values
reach the logits, and do not only choose, relevance would be lost there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lrp_jax.model import full_precision
from lrp_jax.primitives import ELEMENTWISE, ENDS, MOVES, ROUNDINGS, SHIFTS
from lrp_jax.program import Equation, Program, Variable, called, parts_of_scan


class UnsupportedError(ValueError):
    """A model has equations of which no operation is known."""


def check(program: Program) -> None:
    """Refuse a program where relevance and gradient would part, or be lost.

    Args:
        program: active variables are marked.

    Raises:
        UnsupportedError: it has such equations; all are named.
    """
    of_their_own, rounded = foreign(program), lost(program)
    if of_their_own:
        raise UnsupportedError(
            "functions have a derivative of their own that is not that of what they compute (of quantisation with a "
            "straight-through estimator, of clipped gradients), or that closes over values and does not take them as "
            f"arguments:{_listed(of_their_own)}\nTheir relevance is not known. Trace the model without them, as the "
            "one that is not quantised."
        )
    if rounded:
        raise UnsupportedError(
            "values that are rounded, or made integers, have no derivative, but reach the logits (as of quantised "
            f"activations): relevance would be lost there:{_listed(rounded)}\nTrace the model that is not quantised, "
            "or round as x + jax.lax.stop_gradient(jnp.round(x) - x), through which relevance passes."
        )


def _listed(equations: Sequence[Equation]) -> str:
    return "".join(f"\n  {line}" for line in dict.fromkeys(map(str, equations)))


def foreign(program: Program) -> list[Equation]:
    """The functions that were inlined though their derivative by the example is another one than that of their inside.

    And those whose derivative is of this program alone, as it closes over values of it.

    Args:
        program: active variables are marked.

    Returns:
        The functions, those of loops and choices as well.
    """
    read = {v for equation in program.equations for v in equation.inputs} | set(program.outputs)
    found = [e for e in program.opened if e.active and not read.isdisjoint(e.outputs) and not _agrees(e)]
    found += [e for e in program.equations if e.inner and e.active and not _is_closed(e)]
    return found + [e for equation in program.equations for inner in equation.programs for e in foreign(inner)]


#: How far two ways to compute one derivative may differ.
_TOLERANCES = {"float64": 1e-9, "float32": 3e-5}


def _is_closed(equation: Equation) -> bool:
    """Whether its derivative can be computed outside of the program that it was found in."""
    try:
        program = derivative(equation)
    except jax.errors.UnexpectedTracerError:
        return False
    return not any(isinstance(constant, jax.core.Tracer) for constant in program.consts)


def _agrees(equation: Equation) -> bool:
    """Whether the derivative of a function by active inputs is that of its inside, at random values."""
    if not _is_closed(equation):
        return False
    rng = np.random.default_rng(0)
    places = [i for i, v in enumerate(equation.inputs) if v.active]
    kept = [i for i, v in enumerate(equation.outputs) if jnp.issubdtype(v.dtype, jnp.inexact)]
    inside = core.jaxpr_as_fun(called(equation))
    tolerance = max(_TOLERANCES.get(str(equation.outputs[i].dtype), 0.03) for i in kept)
    values = [_value(v, rng) for v in equation.inputs]

    def pulled(function: Any) -> Any:
        def run(values: list[Any], cotangents: list[Any]) -> Any:
            def of_active(*active: Any) -> list[Any]:
                given = dict(zip(places, active, strict=True))
                results = function(*(given.get(i, x) for i, x in enumerate(values)))
                return [results[i] for i in kept]

            return jax.vjp(of_active, *(values[i] for i in places))[1](cotangents)

        return jax.jit(run)

    with jax.ensure_compile_time_eval(), full_precision():
        functions = [pulled(equation.call), pulled(inside)]
        told = False
        for scale, size in ((1, 1), (0.3, 1e-4), (3, 1e4), (1, 1e4)):
            given = [x * jnp.asarray(scale, x.dtype) if i in places else x for i, x in enumerate(values)]
            sent = [_value(equation.outputs[i], rng) * jnp.asarray(size, equation.outputs[i].dtype) for i in kept]
            own, other = ([np.asarray(g, np.float64) for g in f(given, sent)] for f in functions)
            for a, b in zip(own, other, strict=True):
                largest = max(np.linalg.norm(a), np.linalg.norm(b))
                if np.isfinite(b).all():
                    told = True
                    if not np.linalg.norm(a - b) <= tolerance * (30 if scale > 1 else 1) * largest:
                        return False
    return told


def _value(variable: Variable, rng: np.random.Generator) -> Any:
    if variable.constant is not None:
        return jnp.asarray(variable.constant)
    if jnp.issubdtype(variable.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), variable.shape)
    if not jnp.issubdtype(variable.dtype, jnp.inexact):
        return jnp.zeros(variable.shape, variable.dtype)
    return jnp.asarray(rng.normal(size=variable.shape), variable.dtype)


def derivative(equation: Equation) -> Any:
    """The program of the derivative of a function by active inputs: its own, which its parameters do not tell."""

    def pulled(*values: Any) -> Any:
        def of_active(*active: Any) -> Any:
            given = iter(active)
            return equation.call(
                *(next(given) if v.active else x for v, x in zip(equation.inputs, values, strict=True))
            )

        results, pull = jax.vjp(of_active, *(x for v, x in zip(equation.inputs, values, strict=True) if v.active))
        return pull(results)

    return jax.make_jaxpr(pulled)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.inputs))


# Rounding.


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """What has the values of something rounded.

    Attributes:
        source: where it was rounded.
        of: what, as long as it is only moved and computed with one by one.
    """

    source: Equation
    of: Variable | None


#: Which inputs only say where.
_PLACES = {"gather": (1,), "select_n": (0,), "cond": (0,), "scatter": (1,), "scatter-add": (1,), "scatter_add": (1,)}


def lost(program: Program) -> list[Equation]:
    """The roundings, also to integers, whose values reach the output and not only choose: no derivative tells of them.

    Args:
        program: active variables are marked.

    Returns:
        The roundings, each once.
    """
    search = _Search()
    outputs = search.follow(program, [None] * len(program.inputs))
    return list(dict.fromkeys([*search.found, *(rounded.source for rounded in outputs if rounded)]))


class _Search:
    """The search for roundings whose values go on."""

    def __init__(self) -> None:
        self.found: list[Equation] = []
        self.maker: dict[Variable, Equation] = {}

    def follow(self, program: Program, inputs: Sequence[_Rounded | None]) -> list[_Rounded | None]:
        """What of a program's outputs is rounded, if this is of its inputs."""
        known = {v: r for v, r in zip(program.inputs, inputs, strict=True) if r}
        for equation in program.equations:
            self.maker |= dict.fromkeys(equation.outputs, equation)
            given = [known.get(v) for v in equation.inputs]
            if _rounds(equation):
                made: Sequence[_Rounded | None] = [_Rounded(equation, equation.active[0])] * len(equation.outputs)
            elif (any(given) or equation.programs) and equation.primitive not in ENDS:
                made = self.passed(equation, given)
            else:
                continue
            known |= {v: r for v, r in zip(equation.outputs, made, strict=True) if r and v.dtype != bool}
        return [known.get(v) for v in program.outputs]

    def passed(self, equation: Equation, given: list[_Rounded | None]) -> Sequence[_Rounded | None]:
        """What of an equation's outputs has rounded values."""
        name, places = equation.primitive, _PLACES.get(equation.primitive, ())
        if name == "scan":
            return self.around(equation, given)
        if name == "cond":
            branches = [self.follow(branch, given[1:]) for branch in equation.programs]
            return [next(filter(None, options), None) for options in zip(*branches, strict=True)]
        if name == "sort":
            return given
        if name in {"dynamic_slice", "dynamic_update_slice"}:
            given = given[: 1 + (name == "dynamic_update_slice")]
        values = [r for i, r in enumerate(given) if r and i not in places]
        if not values:
            return [None] * len(equation.outputs)
        if any(v.active for v in equation.outputs):
            beside = name in {"add", "sub", "mul", "div"} and all(self.is_beside(r, equation.active) for r in values)
            self.found += [] if beside else [r.source for r in values]
            return [None] * len(equation.outputs)
        is_alike = name in SHIFTS | MOVES | ROUNDINGS and len(values) == 1
        return [values[0] if is_alike else _Rounded(values[0].source, None)] * len(equation.outputs)

    def around(self, equation: Equation, given: list[_Rounded | None]) -> Sequence[_Rounded | None]:
        """What a loop gives that is rounded."""
        consts, carry = parts_of_scan(equation)
        inside = list(given)
        while True:
            found = self.follow(equation.programs[0], inside)
            carried = [a or b for a, b in zip(inside[consts : consts + carry], found[:carry], strict=True)]
            if list(map(bool, carried)) == list(map(bool, inside[consts : consts + carry])):
                return found
            inside[consts : consts + carry] = carried

    def is_beside(self, rounded: _Rounded, active: Sequence[Variable]) -> bool:
        """Whether it meets the very value that was rounded, as in ``x - floor(x)``, not a scale of all of them."""
        if rounded.of is None:
            return False
        of = {v for v in self.ancestors(rounded.of) if v.size >= rounded.of.size}
        return any(not of.isdisjoint(self.ancestors(v)) for v in active)

    def ancestors(self, variable: Variable) -> set[Variable]:
        """What a value is made of by moves and one by one, and it itself unless it is of fewer values, repeated."""
        maker = self.maker.get(variable)
        if maker is None or maker.primitive not in ELEMENTWISE | MOVES:
            return {variable}
        found = set().union(*(self.ancestors(v) for v in maker.active))
        return found | {variable} if any(v.size >= variable.size for v in found) else found


def _rounds(equation: Equation) -> bool:
    """Whether the values of what is active go on without a derivative."""
    if not equation.active or any(v.active for v in equation.outputs):
        return False
    to_integers = any(jnp.issubdtype(v.dtype, jnp.integer) for v in equation.outputs)
    is_cast = equation.primitive in {"convert_element_type", "bitcast_convert_type"} or bool(equation.inner)
    return equation.primitive in ROUNDINGS or (is_cast and to_integers)
