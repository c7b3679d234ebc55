"""Attention of a traced program cut along its queries: the same equations, with another size of that axis.

Between the product of queries and keys and the product with the values a program computes each query by itself: that is
followed as a batch is (:mod:`lrp_jax.tracing.rows`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.primitives import ALIKE
from lrp_jax.program import Equation, Program, Variable, flatten, prune
from lrp_jax.tracing import products
from lrp_jax.tracing.axes import HANDLERS
from lrp_jax.tracing.precision import compute
from lrp_jax.tracing.rows import CoupledError, Rows, State, States, Walk

#: Parameters of primitives that are shapes: of what an equation gives, or of what is taken from its first input.
_SHAPES = {
    "reshape": ("new_sizes", True),
    "broadcast_in_dim": ("shape", True),
    "slice": ("limit_indices", False),
    "dynamic_slice": ("slice_sizes", False),
    "gather": ("slice_sizes", False),
}
#: What is computed of each query, and has no other shape in a parameter.
_KNOWN = {
    name: handler
    for name, handler in HANDLERS.items()
    if not name.startswith(("conv_", "random", "scatter", "reduce_window", "bitcast"))
}


@dataclasses.dataclass(frozen=True)
class Cut:
    """A region with an axis of queries.

    Attributes:
        equations: in order, each with what it reads from outside as variables of its own.
        outside: these variables, and those of the program that they stand for.
        rows: where the queries are, of all that has an axis of them.
        outputs: what the region gives.
    """

    equations: list[Equation]
    outside: dict[Variable, Variable]
    rows: dict[Variable, Rows]
    outputs: list[Variable]

    def of(self, size: int, queries: int) -> tuple[Program, dict[Variable, Variable]]:
        """The program of some queries, and its variables by those of all queries.

        Args:
            size: how many queries.
            queries: how many there are.
        """
        fewer: dict[Variable, Variable] = {}

        def of(variable: Variable) -> Variable:
            if variable.constant is not None:
                return variable
            if variable not in fewer:
                shape = _shape(variable, self.rows.get(variable), size, queries)
                fewer[variable] = Variable(shape, variable.dtype, variable.active, own=variable.own)
            return fewer[variable]

        equations = []
        for equation in self.equations:
            made = dataclasses.replace(
                equation, inputs=tuple(map(of, equation.inputs)), outputs=tuple(map(of, equation.outputs))
            )
            states = [self.rows.get(v) for v in equation.inputs]
            made.call = _resized(equation, made, equation.call, states, (size, queries), own=False)
            if equation.exact is not None:
                made.exact = _resized(equation, made, equation.exact, states, (size, queries), own=True)
            made.params = equation.params | _changed(equation, made)
            equations.append(made)
        program = Program([of(v) for v in self.outside], [of(v) for v in self.outputs], equations)
        prune(program)
        return program, fewer


def cut(equations: Sequence[Equation], side: int, query: int, makers: Mapping[Variable, Equation]) -> Cut:
    """A region, cut along its queries.

    Args:
        equations: see :class:`Region`, as the others.
        side: see there.
        query: see there.
        makers: see there.

    Raises:
        CoupledError: it cannot be told that each query is computed by itself.
    """
    scores, product = equations[0], equations[-1]
    queries = product.inputs[side].shape[query]
    first = CoupledError(scores)
    for start in (0, 1):
        for axis in products.axes(scores, start)[2]:
            if scores.inputs[start].shape[axis] == queries:
                walk = _Queries(queries, makers)
                try:
                    found = walk.cut(equations, start, axis)
                    if walk.rows.get(walk.copies[product].inputs[side]) == Rows(query):
                        return found
                except CoupledError as coupled:
                    first = coupled if first.equation is scores else first
    raise first


class _Queries(Walk):
    """Which axis of each value is of queries. What does not depend on the example is cut where it has to be."""

    def __init__(self, queries: int, makers: Mapping[Variable, Equation]) -> None:
        super().__init__(queries, {})
        self.handlers = dict(_KNOWN)
        self.makers = makers
        self.given: dict[Variable, Variable] = {}
        self.before: list[Equation] = []
        self.copies: dict[Equation, Equation] = {}

    def cut(self, equations: Sequence[Equation], start: int, axis: int) -> Cut:
        """A region whose queries are an axis of an operand of the scores."""
        of: dict[Variable, Variable] = {}
        done: list[Equation] = []
        for equation in equations:
            inputs = tuple(of[v] if v in of else self.stands_for(v) for v in equation.inputs)
            outputs = tuple(Variable(v.shape, v.dtype, v.active, own=v.own) for v in equation.outputs)
            of |= zip(equation.outputs, outputs, strict=True)
            made = self.copies[equation] = dataclasses.replace(equation, inputs=inputs, outputs=outputs)
            self.maker |= dict.fromkeys(outputs, made)
            if equation is equations[0]:
                self.put(inputs[start], Rows(axis))
            states = [self.rows.get(v) for v in inputs]
            found = self.of(made, states) if any(states) else [None] * len(outputs)
            for variable, state in zip(outputs, found, strict=True):
                self.put(variable, state)
            done += [*self.before, made]
            self.before = []
        (output,) = done[-1].outputs
        rows = self.rows.get(output)
        if rows != Rows(rows.axis if rows else 0) or output.shape[rows.axis] != self.batch:
            raise CoupledError(equations[-1])
        read = {v for equation in done for v in equation.inputs}
        outside = {v: outer for v, outer in self.given.items() if v in read}
        return Cut(done, outside, self.rows, [output])

    def stands_for(self, outer: Variable) -> Variable:
        """A variable of the region for one that it reads; numbers stand for themselves."""
        if outer.constant is not None and not outer.shape:
            return outer
        found = Variable(outer.shape, outer.dtype, outer.active, own=outer.own)
        self.given[found] = outer
        return found

    def of(self, equation: Equation, states: States) -> Sequence[State]:
        if not equation.inner:
            if equation.primitive in _SHAPES and _SHAPES[equation.primitive][0] not in equation.params:
                raise CoupledError(equation)
            return super().of(equation, states)
        own = [v.own or v.dtype for v in (*equation.inputs, *equation.outputs)]
        if equation.primitive.startswith("custom_vjp") or not all(jnp.issubdtype(d, jnp.floating) for d in own):
            raise CoupledError(equation)
        program = _program(equation.call, equation.inputs)
        for variable, state in zip(program.inputs, states, strict=True):
            self.put(variable, state)
        self.run(program)
        return [self.rows.get(v) for v in program.outputs]

    def is_uniform(self, variable: Variable, rows: Rows) -> bool:
        """Whether a value that does not depend on the queries is the same for each; or can be cut, which it then is."""
        if len(variable.shape) <= rows.axis or variable.shape[rows.axis] == 1 or variable in self.rows:
            return self.rows.get(variable, rows) == rows
        outer = self.given.get(variable)
        maker = self.maker.get(variable) if outer is None else self.makers.get(outer)
        is_cheap = maker is not None and (maker.primitive == "broadcast_in_dim" or maker.primitive in ALIKE)
        if maker is not None and is_cheap and not maker.outputs[0].active and not maker.inner:
            inputs = maker.inputs if outer is None else tuple(map(self.stands_for, maker.inputs))
            if all(self._is_cut(maker, v, rows) for v in inputs):
                if outer is not None:
                    self.before.append(dataclasses.replace(maker, inputs=inputs, outputs=(variable,)))
                    del self.given[variable]
                self.put(variable, rows)
                return True
        if outer is None or rows != Rows(rows.axis) or variable.shape[rows.axis] != self.batch:
            return False
        self.put(variable, rows)
        return True

    def _is_cut(self, maker: Equation, read: Variable, rows: Rows) -> bool:
        if maker.primitive != "broadcast_in_dim":
            return self.is_uniform(read, rows)
        along = list(maker.params["broadcast_dimensions"])
        return rows.axis not in along or self.is_uniform(read, Rows(along.index(rows.axis), rows.outer))


def _shape(variable: Variable, rows: State, size: int, queries: int) -> tuple[int, ...]:
    """The shape of a variable of fewer queries."""
    axis = -1 if rows is None else rows.axis
    return tuple(n // queries * size if i == axis else n for i, n in enumerate(variable.shape))


def _changed(equation: Equation, fewer: Equation) -> dict[str, Any]:
    """The parameters that are others with fewer queries."""
    if equation.primitive not in _SHAPES or equation.inner:
        return {}
    name, is_of_result = _SHAPES[equation.primitive]
    if is_of_result:
        return {name: fewer.outputs[0].shape}
    was, shape, given = equation.inputs[0].shape, fewer.inputs[0].shape, equation.params[name]
    return {name: tuple(b if a != b else n for a, b, n in zip(was, shape, given, strict=True))}


def _resized(
    equation: Equation,
    fewer: Equation,
    call: Callable[..., Sequence[Any]],
    states: States,
    sizes: tuple[int, int],
    *,
    own: bool,
) -> Callable[..., Sequence[Any]]:
    """The value of an equation of fewer queries."""
    if not equation.inner:
        changed = _changed(equation, fewer)
        return functools.partial(call, **changed) if changed else call

    def function(*values: Array) -> list[Array]:
        return list(call(*values))

    def derivative(*both: Array) -> tuple[list[Array], list[Array]]:
        n = len(equation.inputs)
        found: tuple[list[Array], list[Array]] = jax.jvp(function, both[:n], both[n:])
        return found

    with_jvp = jax.custom_jvp(_fewer(function, equation.inputs, states, sizes, own=own))
    of_both = _fewer(derivative, equation.inputs * 2, states * 2, sizes, own=own)

    @with_jvp.defjvp
    def _(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        found = of_both(*primals, *tangents)
        return found[: len(found) // 2], found[len(found) // 2 :]

    return with_jvp


def _program(function: Callable[..., Any], inputs: Sequence[Variable], *, own: bool = False) -> Program:
    shapes = [jax.ShapeDtypeStruct(v.shape, (v.own if own else None) or v.dtype) for v in inputs]
    return flatten(jax.make_jaxpr(function)(*shapes), lambda primitives: False)


def _fewer(
    function: Callable[..., Any], inputs: Sequence[Variable], states: States, sizes: tuple[int, int], *, own: bool
) -> Callable[..., list[Array]]:
    """A function of all queries as one of fewer."""
    program = _program(function, inputs, own=own)
    size, queries = sizes
    walk = _Queries(queries, {})
    for variable, state in zip(program.inputs, states, strict=True):
        walk.put(variable, state)
    walk.run(program)
    whole = Cut(program.equations, {v: v for v in program.inputs}, walk.rows, program.outputs)
    fewer, _ = whole.of(size, queries)
    return lambda *values: compute(fewer, values)
