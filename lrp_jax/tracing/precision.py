"""Programs that compute in less precision than their parameters have: relevance is not rounded as values are.

An active value of low precision, as one in bfloat16, is kept in an array of the precision of the parameters, float32 at
least. The operations of the rules compute in that precision, and so does all that they send back. The value that an
operation gives is then replaced by the one of the program's own equations, which compute in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.primitives import CASTS, MOVES
from lrp_jax.program import Equation, Program, Variable, activate, flatten
from lrp_jax.rules.base import merge
from lrp_jax.rules.paired import once
from lrp_jax.tracing.steps import Step


def working(variables: Sequence[Variable]) -> Any:
    """The dtype of relevance in a program: the widest real one of some variables, float32 at least."""
    real = (jnp.dtype(v.dtype) for v in variables if jnp.issubdtype(v.dtype, jnp.floating))
    return max((jnp.dtype(jnp.float32), *real), key=lambda dtype: jnp.finfo(dtype).bits)


def lift(program: Program, dtype: Any) -> None:
    """Keep what is active in a program in arrays of a precision, or of more where it has more.

    Args:
        program: changed in place; its active variables are marked.
        dtype: the precision, float32 or float64.
    """
    for variable in program.inputs:
        _lift(variable, dtype)
    for equation in program.equations:
        is_active = any(v.active for v in equation.outputs)
        for variable in equation.outputs:
            _lift(variable, dtype)
        if is_active and equation.programs:
            for inner in equation.programs:
                lift(inner, dtype)
        elif any(v.own is not None for v in (*equation.inputs, *equation.outputs)):
            equation.exact = equation.call
            wider = _whole if equation.inner else _wider
            equation.call = wider(equation, dtype) if is_active else _as_they_are(equation)


def _lift(variable: Variable, dtype: Any) -> None:
    found = _at_least(variable.dtype, dtype)
    if variable.active and found != variable.dtype:
        variable.own, variable.dtype = variable.dtype, found


def _at_least(given: Any, dtype: Any) -> Any:
    """A dtype, or the wider one in which its values are kept."""
    if not jnp.issubdtype(given, jnp.inexact) or jnp.finfo(given).bits >= jnp.finfo(dtype).bits:
        return given
    return jnp.promote_types(given, dtype) if jnp.issubdtype(given, jnp.complexfloating) else dtype


def _as_they_are(equation: Equation) -> Callable[..., Sequence[Any]]:
    """The value of an equation that is not active, in its own dtypes."""
    exact = equation.call
    return lambda *values, **fewer: exact(*map(own_value, equation.inputs, values), **fewer)


#: Parameters of primitives that are dtypes of results.
_DTYPES = ("new_dtype", "preferred_element_type")
#: What has a program of its own in a parameter, of one dtype.
_SCATTERS: dict[str, Callable[..., Array]] = {"scatter": jax.lax.scatter, "scatter-add": jax.lax.scatter_add}


def _wider(equation: Equation, dtype: Any) -> Callable[..., Sequence[Any]]:
    """The value of an equation, in arrays of more precision."""
    exact, params, name = equation.call, equation.params, equation.primitive
    own = [v.own or v.dtype for v in equation.inputs]
    changed = {key: _at_least(params[key], dtype) for key in _DTYPES if params.get(key) is not None}

    def call(*values: Any, **fewer: Any) -> Sequence[Any]:
        wide = [_as(value, _at_least(of_it, dtype)) for value, of_it in zip(values, own, strict=True)]
        if name == "reduce_precision":
            return wide
        if name in _SCATTERS:
            options = ("indices_are_sorted", "unique_indices", "mode")
            return [_SCATTERS[name](*wide, params["dimension_numbers"], **{key: params[key] for key in options})]
        return exact(*wide, **changed, **fewer)

    return call


def _whole(equation: Equation, dtype: Any) -> Callable[..., Sequence[Any]]:
    """The value of a function with a derivative of its own, in arrays of more precision, and that derivative."""
    exact, by_vjp = equation.call, equation.primitive.startswith("custom_vjp")
    shapes = [jax.ShapeDtypeStruct(v.shape, v.own or v.dtype) for v in equation.inputs]
    given = [jnp.issubdtype(shape.dtype, jnp.inexact) for shape in shapes]
    own = [shape for shape, is_given in zip(shapes, given, strict=True) if is_given]
    made = [jax.ShapeDtypeStruct(v.shape, v.own or v.dtype) for v in equation.outputs]

    def call(*values: Any) -> Sequence[Any]:
        def function(*arrays: Array) -> list[Array]:
            return list(exact(*merge(given, arrays, values)))

        def forward(*arrays: Array) -> list[Array]:
            return _run(function, own, arrays, dtype)

        def tangents(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[list[Array], list[Array]]:
            found = _run(
                lambda *both: jax.jvp(function, both[: len(own)], both[len(own) :]),
                own * 2,
                (*primals, *tangents),
                dtype,
            )
            return found[: len(made)], found[len(made) :]

        def cotangents(arrays: Sequence[Array], sent: Sequence[Array]) -> tuple[Array, ...]:
            found = _run(
                lambda *both: jax.vjp(function, *both[: len(own)])[1](list(both[len(own) :])),
                [*own, *made],
                (*arrays, *sent),
                dtype,
            )
            return tuple(found)

        arrays = [
            _as(value, _at_least(shape.dtype, dtype))
            for value, shape, is_given in zip(values, shapes, given, strict=True)
            if is_given
        ]
        if by_vjp:
            with_vjp = jax.custom_vjp(forward)
            with_vjp.defvjp(lambda *arrays: (forward(*arrays), arrays), cotangents)
            return with_vjp(*arrays)
        with_jvp = jax.custom_jvp(forward)
        with_jvp.defjvp(tangents)
        return with_jvp(*arrays)

    return call


def _run(function: Callable[..., Any], own: Sequence[Any], values: Sequence[Array], dtype: Any) -> list[Array]:
    """What a function of arrays of low precision gives, in arrays of more: leaves of its result."""
    program = flatten(jax.make_jaxpr(function)(*own), lambda primitives: False)
    activate(program, [True] * len(own))
    lift(program, dtype)
    return compute(program, values)


def compute(program: Program, values: Sequence[Array]) -> list[Array]:
    """What a program gives, equation by equation.

    Args:
        program: the program.
        values: of its inputs.
    """
    known = dict(zip(program.inputs, values, strict=True))

    def read(variable: Variable) -> Any:
        return variable.constant if variable.constant is not None else known[variable]

    for equation in program.equations:
        found = equation.call(*(read(v) for v in equation.inputs))
        known |= zip(equation.outputs, typed(equation.outputs, found), strict=True)
    return [read(v) for v in program.outputs]


def _as(value: Any, dtype: Any) -> Any:
    return value if getattr(value, "dtype", dtype) == dtype else jnp.asarray(value, dtype)


def typed(variables: Sequence[Variable], values: Sequence[Any]) -> list[Any]:
    """Values in the dtypes of variables."""
    return [_as(value, variable.dtype) for variable, value in zip(variables, values, strict=True)]


def own_value(variable: Variable, value: Any) -> Any:
    """A value of the program in the dtype in which the program has it."""
    return _as(value, variable.own or variable.dtype)


def values_of(step: Step, inputs: Sequence[Any], results: Sequence[Array]) -> Sequence[Array]:
    """The results of an operation with the values of the program's own equations; what is sent back is the operation's.

    Args:
        step: the step that has the operation, of equations of low precision.
        inputs: what it was given.
        results: what it gave.
    """
    alone = len(step.equations) == 1
    if len(results) > 1 or (alone and step.equations[0].primitive in MOVES - CASTS):
        return results
    is_array = [isinstance(x, Array) for x in inputs]

    def exact(*arrays: Array) -> Array:
        values = list(map(own_value, step.given, merge(is_array, arrays, inputs)))
        if step.exact is not None:
            found: Array = step.exact(*values)
            return found
        known = dict(zip(step.given, values, strict=True))
        for equation in step.equations:
            read = [v.constant if v.constant is not None else known[v] for v in equation.inputs]
            known |= zip(equation.outputs, (equation.exact or equation.call)(*read), strict=True)
        return known[step.outputs[0]]

    (result,) = results
    value = once(exact, *(x for x in inputs if isinstance(x, Array)))
    return [_with_value(result, value.astype(result.dtype))]


@jax.custom_jvp
def _with_value(result: Array, value: Array) -> Array:
    """A result that has another value."""
    return value


@_with_value.defjvp
def _derivative(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]
