"""What each primitive is to the rules: one table, open to more.

Of an equation with active inputs the table tells which operation of :class:`lrp_jax.rules.Rules` it is, and how the
operation is applied. What is not in the table is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.primitives import ELEMENTWISE, MOVES, put_beside
from lrp_jax.program import Equation
from lrp_jax.rules import Rules
from lrp_jax.tracing.units import Unit


def _by_itself(*_: Any) -> Any:
    raise AssertionError("the interpreter runs this step by itself")


@dataclasses.dataclass(frozen=True)
class Operation:
    """How an equation is run under a rule set.

    Attributes:
        name: the operation of :class:`lrp_jax.rules.Rules` that it is, for the report; or ``"move"``, where values are
            only moved, chosen or shifted by constants, and relevance goes where they came from.
        run: ``(rules, *inputs) -> outputs``, an array, or a sequence of them for several outputs; left out for
            attention, loops and choices, which the interpreter runs by itself.
    """

    name: str
    run: Callable[..., Any] = _by_itself


Handler = Callable[[Equation], Operation | None]
#: How equations are run, by primitive.
TABLE: dict[str, Handler] = {}


def register(*primitives: str, like: str | None = None) -> Callable[[Handler], Handler]:
    """Make equations of some primitives known.

    The function that is decorated gets an :class:`Equation` that has active inputs (``equation.inputs[i].active``) and
    gives the :class:`Operation` that it is, or None for what it does not know::

        @lrp_jax.tracing.register("cumprod")
        def cumprod(equation):
            return lrp_jax.tracing.Operation("move", lambda rules, x: equation.call(x))

    Args:
        *primitives: names, as in the error that names what is unknown.
        like: a primitive that they are like, as ``"tanh"`` for what is elementwise: what is known of that one, which
            values it moves or mixes, holds of them. Its operation is theirs too, if no function is decorated.

    Returns:
        The decorator. It gives the function back as it is.

    Raises:
        ValueError: ``like`` is not known.
    """
    if like is not None:
        put_beside(primitives, like)
        TABLE.update(dict.fromkeys(primitives, TABLE[like]) if like in TABLE else {})

    def decorate(handler: Handler) -> Handler:
        TABLE.update(dict.fromkeys(primitives, handler))
        return handler

    return decorate


def operation_of(equation: Equation) -> Operation | None:
    """What an equation is to the rules; None: it is not known."""
    if equation.inner:
        return function_of_one("activation", equation)
    handler = TABLE.get(equation.primitive)
    return handler and handler(equation)


def function_of_one(name: str, equation: Any) -> Operation | None:
    """An operation on a function of one active input, with whatever else it reads as parameters."""
    active, shape = equation.active, equation.outputs[0].shape
    if len(active) != 1 or len(equation.outputs) != 1:
        return None
    if active[0].shape != shape and (equation.primitive not in ELEMENTWISE or len(active[0].shape) != len(shape)):
        return None
    return applied(name, [v.active for v in equation.inputs], shape, lambda *values: equation.call(*values)[0])


def applied(name: str, is_active: Sequence[bool], shape: tuple[int, ...], function: Callable[..., Array]) -> Operation:
    """An operation ``name`` on a function of one active variable, which may stand at several places."""

    def run(rules: Rules, *values: Any) -> Array:
        # Arrays are given to the operation, which may then send gradients to them; numbers are part of the function.
        given = [not active and isinstance(v, Array) for active, v in zip(is_active, values, strict=True)]
        x = jnp.broadcast_to(next(v for v, active in zip(values, is_active, strict=True) if active), shape)

        def of_x(x: Array, *parameters: Array) -> Array:
            others = iter(parameters)
            return function(
                *(
                    x if active else next(others) if is_given else v
                    for active, is_given, v in zip(is_active, given, values, strict=True)
                )
            )

        parameters = [v for v, is_given in zip(values, given, strict=True) if is_given]
        if name == "activation":
            return rules.activation(of_x, x, *parameters)
        return getattr(rules, name)(x, *parameters, function=of_x)

    return Operation(name, run)


@register(
    *(MOVES | {"max", "min", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin"}),
    *("sort", "top_k", "approx_top_k", "scatter-max", "scatter-min"),
)
def move(equation: Equation) -> Operation | None:
    """What moves values, sorts them, or lets the largest through: relevance goes where they came from."""
    if equation.primitive in {"max", "min"} and len(equation.active) == 1:
        return function_of_one("activation", equation)
    if equation.primitive in {"scatter-max", "scatter-min"} and not equation.inputs[2].active:
        return function_of_one("activation", equation)
    return Operation("move", lambda rules, *values: equation.call(*values))


@register(*(ELEMENTWISE - {"add", "add_any", "sub", "mul", "div", "max", "min"}))
def elementwise(equation: Equation) -> Operation | None:
    """An elementwise function of one variable."""
    return function_of_one("activation", equation)


@register("add", "add_any", "sub")
def add(equation: Equation) -> Operation | None:
    """A residual addition; with a constant, a shift."""
    sign = -1 if equation.primitive == "sub" else 1
    if len(equation.active) == 2:

        def run(rules: Rules, a: Array, b: Array) -> Array:
            a, b = jnp.broadcast_arrays(a, b)
            return rules.add(a, b if sign == 1 else rules.activation(jnp.negative, b))

        return Operation("add", run)
    first, second = (v.active for v in equation.inputs)
    if first != second and (first or sign == 1):
        return Operation("move", lambda rules, *values: equation.call(*values))
    return function_of_one("activation", equation)


def add_constant(equation: Equation) -> Operation:
    """The addition of what is no bias: positions have a part in the sum, as the other branch of a residual addition."""
    is_active = [v.active for v in equation.inputs]
    sign = -1 if equation.primitive == "sub" else 1

    def run(rules: Rules, *values: Array) -> Array:
        shape = equation.outputs[0].shape
        a, b = (jnp.broadcast_to(v, shape) for v in values)
        return rules.add(a, b if sign == 1 else -b) if is_active[0] else rules.add(b, a)

    return Operation("add", run)


def shift(equation: Equation) -> Operation | None:
    """The addition of a bias that is no product's own: as that of a norm, which keeps its part."""
    return function_of_one("layer_norm", equation)


@register("mul")
def multiply(equation: Equation) -> Operation | None:
    """A gate; with a constant, a scale."""
    return gated(None) if len(equation.active) == 2 else function_of_one("activation", equation)


def gated(gate: int | None) -> Operation:
    """A product of two active values, of which one is the gate, or neither."""

    def run(rules: Rules, *factors: Array) -> Array:
        a, b = jnp.broadcast_arrays(*factors)
        if gate is None:
            return rules.multiply(a, b, gated=False)
        return rules.multiply(b, a) if gate else rules.multiply(a, b)

    return Operation("multiply", run)


@register("div")
def divide(equation: Equation) -> Operation | None:
    """By an active value: times its inverse."""
    if len(equation.active) == 2:

        def run(rules: Rules, a: Array, b: Array) -> Array:
            a, b = jnp.broadcast_arrays(a, b)
            return rules.multiply(rules.activation(lambda b: 1 / b, b), a)

        return Operation("multiply", run)
    return function_of_one("activation", equation)


@register("reduce_sum")
def reduce_sum(equation: Equation) -> Operation:
    """Pooling: a mean, times the number of values."""
    summed, (x,) = equation.params["axes"], equation.inputs
    n = math.prod(x.shape[i] for i in summed)
    if n < 2:
        return Operation("move", lambda rules, x: equation.call(x))

    def run(rules: Rules, x: Array) -> Array:
        rest = [i for i in range(x.ndim) if i not in summed]
        shape = [x.shape[i] for i in rest]
        pooled = rules.mean(x.transpose([*summed, *rest]).reshape(n, -1)).reshape(shape)
        return rules.activation(lambda x: x * n, pooled)

    return Operation("mean", run)


@register("reduce_window_sum")
def reduce_window_sum(equation: Equation) -> Operation | None:
    """Average pooling: the mean of a window, times the number of values."""
    p = equation.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    dilation = p["window_dilation"]
    if any(d != 1 for d in p["base_dilation"]):
        return None
    n = math.prod(window)

    def run(rules: Rules, x: Array) -> Array:
        x = jnp.pad(x, padding)
        sizes = equation.outputs[0].shape
        offsets = np.ndindex(*window)
        starts = [tuple(o * d for o, d in zip(offset, dilation, strict=True)) for offset in offsets]
        parts = [
            jax.lax.slice(
                x,
                start,
                tuple(a + (size - 1) * s + 1 for a, size, s in zip(start, sizes, strides, strict=True)),
                strides,
            )
            for start in starts
        ]
        pooled = rules.mean(jnp.stack([part.reshape(-1) for part in parts])).reshape(sizes)
        return rules.activation(lambda x: x * n, pooled)

    return Operation("mean", run)


@register("cumsum")
def running_sum(equation: Equation) -> Operation:
    """Sums of all values up to each: pooling."""
    return applied("mean", [True], equation.inputs[0].shape, lambda x: equation.call(x)[0])


@register("scatter-add")
def scatter_add(equation: Equation) -> Operation | None:
    """Values that are added up where they are sent: pooling; and, to active values, a residual addition."""
    to, _, sent = (v.active for v in equation.inputs)
    if not sent:  # a shift by constants
        return Operation("move", lambda rules, *values: equation.call(*values))

    def run(rules: Rules, operand: Array, indices: Array, updates: Array) -> Array:
        sums = rules.mean(updates, indices, function=partial(_scattered, equation, operand.shape))
        if to:
            return rules.add(operand, sums)
        return sums + operand

    return Operation("add" if to else "mean", run)


def _scattered(equation: Equation, shape: tuple[int, ...], updates: Array, indices: Array) -> Array:
    return equation.call(jnp.zeros(shape, updates.dtype), indices, updates)[0]


def add_scattered(equation: Equation) -> Operation:
    """The addition of positions to some values: as :func:`add_constant`."""

    def run(rules: Rules, operand: Array, indices: Array, updates: Array) -> Array:
        return rules.add(operand, _scattered(equation, operand.shape, updates, indices))

    return Operation("add", run)


@register("scatter-mul")
def scatter_multiply(equation: Equation) -> Operation | None:
    """Values that are multiplied into others: a scale, if they are constants; else a gate."""
    to, _, sent = (v.active for v in equation.inputs)
    if not sent:
        return function_of_one("activation", equation)
    if not to or not equation.params["unique_indices"]:
        return None

    def run(rules: Rules, operand: Array, indices: Array, updates: Array) -> Array:
        (factors,) = equation.call(jnp.ones_like(operand), indices, updates)
        (others,) = equation.call(jnp.ones_like(operand), indices, jnp.zeros_like(updates))
        return jnp.where(others == 0, rules.multiply(factors, operand), operand)

    return Operation("multiply", run)


def of_unit(unit: Unit) -> Operation:
    """A unit as one operation on a function of its one variable."""
    constants = unit.constants

    def function(x: Array, *values: Any) -> Array:
        known = dict(zip(constants, values, strict=True)) | {unit.input: x}
        for equation in unit.equations:
            known |= zip(equation.outputs, equation.call(*(known[v] for v in equation.inputs)), strict=True)
        return known[unit.output]

    # What is linear and no function of each value alone subtracts a mean, or turns pairs of channels by positions.
    kind = "layer_norm" if unit.kind == "linear" else unit.kind
    return applied(kind, [True] + [False] * len(constants), unit.output.shape, function)
