"""Which tokens the head reads, and how much of each: for every input, where that depends on the input.

What follows the last attention is run on means, as in :mod:`lrp_jax.tracing.layout`, but with its own constants: a
mask, a chosen position, the weights of an enlargement count as they are. Parameters that mix features count alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.program import Variable, flatten, prune
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.tracing import products
from lrp_jax.tracing.interpret import by_operation
from lrp_jax.tracing.layout import UnclearError, compiled
from lrp_jax.tracing.mixture import MIXTURE
from lrp_jax.tracing.places import cut_points
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site, Step


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """How much of the output comes from each token, in the order of the program's tokens.

    Attributes:
        weights: ``[N]``, the same for every input; None: they depend on the input, cannot be told, or the last
            attention is a pooling attention.
        of_inputs: from the values of the program's inputs to weights ``[N]``, where they depend on these.
        unclear: why they cannot be told; empty if they can.
    """

    weights: np.ndarray | None = None
    of_inputs: Callable[[Sequence[Any]], Array] | None = None
    unclear: str = ""


def reading(program: Recognised, site: Site, parameters: int) -> Reading:
    """What the head reads.

    Args:
        program: the program.
        site: its last attention.
        parameters: how many of the program's inputs are parameters, the first ones.
    """
    attention, product = site.inputs[0], site.product.outputs[0]
    n, queries = attention.shape[site.key], 1 if site.query is None else attention.shape[site.query]
    if site.learned and queries == 1:
        if product in cut_points(program):
            return Reading()
        return Reading(unclear=f"the head reads tokens beside the pooling attention, {site.product}")
    if site.query is None or (queries != n and site.rows is None):
        return Reading(unclear=f"the last attention is of {queries} queries over {n} tokens")
    try:
        return _Tail(program, site, parameters).reading(n)
    except UnclearError as unclear:
        return Reading(unclear=str(unclear))


def wanted(n: int) -> str:
    """Which readout of n tokens to give."""
    return (
        f"give readout= to lrp_jax.trace, {n} weights that sum to 1, of tokens that are no patches first: "
        f"[1] + [0] * {n - 1} if the head reads the first token, [1 / {n}] * {n} if it reads the mean of all"
    )


def query_axis(site: Site) -> int:
    """The axis of queries of what the product of attention and values gives."""
    assert site.query is not None
    side = 1 - site.values
    return products.free_axes(site.product, side)[products.axes(site.product, side)[2].index(site.query)]


class _Values(dict[Variable, Any]):
    """Values of variables; what is not known is made when it is read."""

    def __init__(self, known: Mapping[Variable, Any], held: Callable[[Variable], Any]) -> None:
        super().__init__(known)
        self.held = held

    def read(self, variable: Variable) -> Any:
        if variable.constant is not None:
            return variable.constant
        if variable not in self:
            self[variable] = self.held(variable)
        return self[variable]


class _Tail:
    """What follows the last attention, run on means of what it gives."""

    def __init__(self, program: Recognised, site: Site, parameters: int) -> None:
        self.program, self.parameters, self.rows = program, parameters, site.rows
        self.start = site.product.outputs[0]
        self.axis = query_axis(site)
        self.learned: set[Variable] = set()
        _computed_from(program, program.inputs[:parameters], self.learned)
        # The axes of what products with parameters and scales read along which each place is of another token.
        self.apart: dict[Step, list[int]] = {}
        self.looking: list[tuple[Step, Array]] | None = None
        self.poisoned: Step | None = None

    def reading(self, n: int) -> Reading:
        """The weights of n tokens."""
        found = self.counted(n)
        if found.weights is not None and np.count_nonzero(found.weights) == 1:
            return found
        self.find_tokens()
        learned = {step: apart for step, apart in self.apart.items() if not self.learned.isdisjoint(step.inputs)}
        return self.counted(n) if any(apart or _scales(step) for step, apart in learned.items()) else found

    def counted(self, n: int) -> Reading:
        """The weights of n tokens; parameters count as they are where it is known to be along tokens, else alike."""
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self.program.inputs]
        poison, *used = _reads(self.weights, jax.ShapeDtypeStruct((), jnp.float32), *shapes)
        if poison:
            raise UnclearError(f"which tokens the head reads depends on what they hold{self.culprit(shapes)}")
        zero = np.zeros((), np.float32)
        # Of parameters, scales of whole branches may be the same for all tokens: told by drawing them twice.
        if not any(used[self.parameters :]):
            draws = range(1 + any(used))
            found = compiled(lambda: [self.weights(zero, *_drawn(self.program.inputs, i)) for i in draws])
            first, last = (_scaled(found[i], n, self.rows) for i in (0, -1))
            if np.abs(first - last).max() < 1e-5:
                return Reading(_quotients(first, n, float(jnp.finfo(self.start.dtype).eps)))

        def of_inputs(values: Sequence[Any]) -> Array:
            found = self.weights(zero, *values)
            return (jnp.pad(found, (self.rows[0], n - self.rows[1])) if self.rows else found) / found.sum()

        return Reading(of_inputs=of_inputs)

    def weights(self, poison: Any, *inputs: Any) -> Array:
        """How much of the output comes from each row, not yet scaled.

        Args:
            poison: 0, in the place of all activations. What does not depend on it does not depend on them.
            inputs: the values of the program's inputs.
        """
        of_all = poison if self.poisoned is None else jnp.zeros(())

        def held(variable: Variable) -> Any:
            return jnp.broadcast_to(of_all, variable.shape).astype(variable.dtype)

        def outputs(x: Array) -> Any:
            values = _Values(dict(zip(self.program.inputs, inputs, strict=True)), held)
            return self.after(self.program, values, x, poison)[0]

        found, pull = jax.vjp(outputs, held(self.start))
        (sent,) = pull(jnp.ones_like(found))
        return jnp.abs(sent).sum(axis=tuple(i for i in range(sent.ndim) if i != self.axis))

    def culprit(self, shapes: Sequence[Any]) -> str:
        """The step that chooses by activations: the last one that has them from others."""
        for step, _ in reversed(list(self.program.walk())):
            self.poisoned = step
            if _reads(self.weights, jax.ShapeDtypeStruct((), jnp.float32), *shapes)[0]:
                return f", {step.equations[0]}"
        return ""

    def find_tokens(self) -> None:
        """Give every token a number of its own, and look where they are apart."""
        shape, rows = self.start.shape, self.start.shape[self.axis]
        rng = np.random.default_rng(0)
        numbers = rng.permutation(np.cumsum(rng.uniform(1, 2, rows))) / rows
        numbers = numbers.reshape([-1 if i == self.axis else 1 for i in range(len(shape))])
        steps: list[Step] = []

        def look() -> list[Array]:
            self.looking = []
            values = _Values({}, lambda v: jnp.zeros(v.shape, v.dtype))
            self.after(self.program, values, jnp.broadcast_to(numbers, shape).astype(self.start.dtype), None)
            steps[:] = [step for step, _ in self.looking]
            return [x for _, x in self.looking]

        found = compiled(look)
        self.looking = None
        for step, x in zip(steps, found, strict=True):
            self.apart[step] = [i for i in range(x.ndim) if _are_apart(np.moveaxis(np.asarray(x, np.float64), i, 0))]
            if step.operation is not None and step.operation.name == "mean" and self.apart[step]:
                self.check_gates(step)

    def check_gates(self, pooling: Step) -> None:
        """Refuse a sum over tokens that are weighted by what they hold."""
        maker = {v: step for step, _ in self.program.walk() for v in step.outputs}
        step = maker.get(pooling.active[0])
        while step is not None and step.operation is not None and len(step.active) == 1:
            if step.operation.name not in {"move", "activation"}:
                return
            step = maker.get(step.active[0])
        if step is None or step.operation is None or step.operation.name != "multiply":
            return
        summed = {*pooling.equations[0].params.get("axes", range(len(pooling.active[0].shape)))}
        for factor in step.active:
            small, axes, made = factor, range(len(factor.shape)), maker.get(factor)
            if made is not None and made.equations[0].primitive == "broadcast_in_dim":
                (small,), axes = made.active, made.equations[0].params["broadcast_dimensions"]
            wide = {axis for axis, size in zip(axes, small.shape, strict=True) if size > 1}
            if small.size < step.outputs[0].size and not summed.isdisjoint(wide):
                raise UnclearError(f"the head weighs tokens by what they hold, {step.equations[0]}")

    # Running it. Every step gets rules that know the step.

    def after(self, program: Recognised, values: _Values, x: Any, poison: Any) -> list[Any]:
        """What a program gives for a value of the variable it starts from, the last time that this is computed."""
        place, step = next((i, s) for i, s in enumerate(program.steps) if self.start in s.outputs or self.is_in(s))
        for before in program.steps[:place]:
            moves = before.operation is not None and before.operation.name == "move"
            if before.operation is None or (moves and all(v in values for v in before.active)):
                self.run(before, values, poison)
        if isinstance(step, Loop):
            last = 0 if step.equations[0].params["reverse"] else step.length - 1
            given = [values.read(v) for v in step.inputs]
            split = step.consts + step.carry
            known = dict(zip(step.body.inputs[: step.consts], given[: step.consts], strict=True))
            known |= zip(step.body.inputs[split:], (each[last] for each in given[split:]), strict=True)
            outputs = self.after(step.body, _Values(known, values.held), x, poison)
            values.update(zip(step.outputs[: step.carry], outputs, strict=False))
            for v, output in zip(step.outputs[step.carry :], outputs[step.carry :], strict=True):
                values[v] = values.held(v).at[last].set(output)
        else:
            values[self.start] = x
        for behind in program.steps[place + 1 :]:
            self.run(behind, values, poison)
        return [values.read(v) for v in program.outputs]

    def is_in(self, step: Step) -> bool:
        return isinstance(step, Loop) and step.body.has(self.start)

    def run(self, step: Step, values: _Values, poison: Any) -> None:
        inputs = [values.read(v) for v in step.inputs]
        if step is self.poisoned:
            inputs = [x + poison.astype(x.dtype) if v.active else x for v, x in zip(step.inputs, inputs, strict=True)]
        results: Sequence[Any]
        if isinstance(step, Site):
            results = inputs
        elif self.looking is not None and step.active and step.equations[0].primitive == "select_n":
            results = [sum(x for v, x in zip(step.inputs, inputs, strict=True) if v.active)]  # whatever is chosen
        elif isinstance(step, Loop):
            results = self.unrolled(step, inputs, values.held, poison)
        elif isinstance(step, Choice):
            branches = [
                lambda *given, branch=branch: self.whole(branch, given, values.held, poison) for branch in step.branches
            ]
            results = jax.lax.switch(jnp.asarray(inputs[0], jnp.int32), branches, *inputs[1:])
        else:
            results = by_operation(step, self.rules(step), inputs)
        values.update(zip(step.outputs, results, strict=True))

    def whole(self, program: Recognised, given: Sequence[Any], held: Callable[..., Any], poison: Any) -> list[Any]:
        inner = _Values(dict(zip(program.inputs, given, strict=True)), held)
        for step in program.steps:
            self.run(step, inner, poison)
        return [inner.read(v) for v in program.outputs]

    def unrolled(self, step: Loop, inputs: Sequence[Any], held: Callable[..., Any], poison: Any) -> list[Any]:
        """A loop without attention."""
        split = step.consts + step.carry
        carried, parts = list(inputs[step.consts : split]), []
        times = range(step.length)[:: -1 if step.equations[0].params["reverse"] else 1]
        for i in times:
            given = [*inputs[: step.consts], *carried, *(x[i] for x in inputs[split:])]
            found = self.whole(step.body, given, held, poison)
            carried, rest = found[: step.carry], found[step.carry :]
            parts.append(rest)
        ordered = parts if times.step == 1 else parts[::-1]
        return [*carried, *(jnp.stack(each) for each in zip(*ordered, strict=True))]

    def rules(self, step: Step) -> Rules:
        """Means, in which a constant counts as it is; one of parameters, along tokens alone."""
        learned = any(v in self.learned for v in step.inputs)
        look = self.looking
        counts = look is None and (not learned or bool(self.apart.get(step)))

        def dense(x: Array, kernel: Array, bias: Any, *, product: Any = jnp.matmul) -> Array:
            if look is not None and learned and product is jnp.matmul:
                look.append((step, x.reshape(-1, x.shape[-1]).T))
            if counts and (not learned or 0 in self.apart[step]):
                return product(x, jnp.abs(kernel))
            return MIXTURE.dense(x, kernel, bias, product=product)

        def activation(function: Callable[..., Array], x: Array, *parameters: Any) -> Array:
            if not _scales(step):
                return x
            if look is not None:
                look.extend([(step, x)] * learned)
                return x
            scale = jnp.abs(function(jnp.ones_like(x), *parameters))
            if learned and step not in self.apart:
                return x
            if learned:
                scale = scale.mean([i for i in range(x.ndim) if i not in self.apart[step]], keepdims=True)
            return x * scale

        def mean(x: Array, *parameters: Any, **options: Any) -> Array:
            if look is not None:
                look.append((step, x))
                return MIXTURE.mean(x, *parameters, **options)
            return GRADIENT.mean(x, *parameters, **options)

        return dataclasses.replace(MIXTURE, dense=dense, patch_embed=dense, activation=activation, mean=mean)


def _computed_from(program: Recognised, variables: Sequence[Variable], found: set[Variable]) -> None:
    """Add to ``found`` some variables, and the constants that are computed of them."""
    found.update(variables)
    for step in program.steps:
        if isinstance(step, (Loop, Choice)):
            programs = [(step.body, step.inputs)] if isinstance(step, Loop) else []
            programs += [(branch, step.inputs[1:]) for branch in getattr(step, "branches", ())]
            for inner, given in programs:
                _computed_from(inner, [i for i, o in zip(inner.inputs, given, strict=True) if o in found], found)
        elif not found.isdisjoint(step.inputs):
            found.update(v for v in step.outputs if not v.active)


def _scales(step: Step) -> bool:
    """Whether a step multiplies what it reads by constants."""
    (equation, *others), active = step.equations, step.active
    if others or len(active) != 1 or equation.inputs.count(active[0]) != 1:
        return False
    if equation.primitive == "div":
        return equation.inputs[0].active
    return equation.primitive in {"mul", "reduce_sum", "reduce_window_sum"} or products.is_scale(equation)


def _are_apart(numbers: np.ndarray) -> bool:
    """Whether numbers ``[k, ...]`` differ from place to place along the first axis."""
    if len(numbers) < 2:
        return False
    each = np.sort(numbers.reshape(len(numbers), -1).sum(axis=1))
    return bool(np.diff(each).min() > max(1e-6, 1e-3 / len(each)) * np.ptp(each))


def _reads(function: Callable[..., Any], *shapes: Any) -> list[bool]:
    """Which of its arguments a function reads, for what it gives."""
    program = flatten(jax.make_jaxpr(function)(*shapes), lambda primitives: False)
    prune(program)
    read = {v for equation in program.equations for v in equation.inputs} | {*program.outputs}
    return [v in read for v in program.inputs]


def _drawn(variables: Sequence[Variable], seed: int) -> list[Any]:
    """Values of variables, others for each seed; of what is no number, zeros."""

    def draw(variable: Variable) -> Any:
        if not jnp.issubdtype(variable.dtype, jnp.floating):
            return jnp.zeros(variable.shape, variable.dtype)
        waves = 1.5 + jnp.sin((1.3 + seed) * jnp.arange(1.0, variable.size + 1))
        return waves.reshape(variable.shape).astype(variable.dtype)

    return list(map(draw, variables))


def _scaled(found: Any, n: int, rows: tuple[int, int] | None) -> np.ndarray:
    """Weights of n tokens, those of some rows given, of which the largest is 1."""
    found = np.asarray(found, np.float64)
    if not found.max() > 0:
        raise UnclearError("no token of the last attention is read")
    return np.pad(found / found.max(), (rows[0], n - rows[1]) if rows else 0)


def _quotients(weights: np.ndarray, n: int, epsilon: float) -> np.ndarray:
    """Weights whose sum is 1. Most are quotients of numbers of tokens, but for rounding."""
    exact = np.array([float(Fraction(w).limit_denominator(20 * n)) for w in weights])
    weights = np.where(np.abs(exact - weights) < 16 * epsilon, exact, weights)
    return weights / weights.sum()
