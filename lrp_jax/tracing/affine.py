"""Scales and shifts that follow a product with parameters, as part of it: a bias, a batch norm, a layer scale.

What relevance sees does not depend on how a program is written: a scale below zero changes the sign of what a product
adds, and a bias keeps a part. So scales go into the kernel, and shifts become the bias, through whatever moves stand
between the product and them, which then are run after. Each feature has its own: a product may be split, and each part
have a bias, or several be joined and have one together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.program import Equation, Program, Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing import products
from lrp_jax.tracing.features import Features, Places, is_affine, varying
from lrp_jax.tracing.operations import Operation, operation_of
from lrp_jax.tracing.units import MOVES

Readers = Mapping[Variable, Sequence[Equation]]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A scale or a shift of some features of a product.

    Attributes:
        equation: what scales or shifts.
        features: which features, by their places among all of the product.
        constants: where each of its constants has the values of these features.
    """

    equation: Equation
    features: np.ndarray
    constants: Mapping[Variable, Places]

    def __call__(self, z: Array, values: Mapping[Variable, Any]) -> Array:
        """The features ``z [F]``, scaled or shifted, in the precision of ``z``."""
        given = [z if v.active else self._values(v, values) for v in self.equation.inputs]
        is_own = self.equation.exact is not None and z.dtype == self.equation.outputs[0].own
        call = self.equation.exact if is_own and self.equation.exact else self.equation.call
        return call(*(x.astype(z.dtype) for x in given))[0]

    def _values(self, constant: Variable, values: Mapping[Variable, Any]) -> Array:
        places = self.constants[constant]
        value = values[constant] if constant.constant is None else constant.constant
        value = jnp.asarray(value)
        if constant.size == 1:
            return jnp.broadcast_to(value.reshape(()), (len(self.features),))
        part = value[
            tuple(cut if size > 1 else slice(None) for cut, size in zip(places.part, value.shape, strict=True))
        ]
        shape = [len(range(*cut.indices(size))) for cut, size in zip(places.part, self._shape, strict=True)]
        whole = jnp.broadcast_to(part, shape).reshape(-1)
        in_order = len(places.at) == whole.size and (places.at == np.arange(whole.size)).all()
        return whole if in_order else whole[places.at]

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.equation.outputs[0].shape


class Finder:
    """The search for the scales and shifts of one program.

    Args:
        program: the program.
        channels: which features its values are of.
        readers: what reads each variable.
        alone: the equations that may be part of a product or a norm: those that are no part of anything.
    """

    def __init__(self, program: Program, channels: Features, readers: Readers, alone: Collection[Equation]) -> None:
        self.program, self.channels, self.readers, self.alone = program, channels, readers, alone
        self.maker = {v: e for e in program.equations for v in e.outputs}
        # Variables that are products after moves, and the scales on the way that make no difference so far.
        self.open: dict[Variable, tuple[Equation, ...]] = {}
        self.parts: dict[Equation, list[Part]] = {}
        self.taken: set[Equation] = set()

    def after(self, variable: Variable) -> list[Equation]:
        """The scales and shifts of features alone that follow a norm, up to the last that makes a difference."""
        features = set(self.channels.axes(variable) or {len(variable.shape) - 1})
        chain: list[Equation] = []
        changed, shape = 0, variable.shape
        while variable not in self.program.outputs and len(self.readers.get(variable, ())) == 1:
            (equation,) = self.readers[variable]
            casts = equation.primitive == "convert_element_type"
            if equation not in self.alone or not (casts or is_affine(equation)):
                break
            constants = [self.channels.constant(v) for v in equation.inputs if v is not variable]
            if equation.outputs[0].shape != shape or not features.issuperset(i for c in constants for i in varying(c)):
                break
            chain.append(equation)
            if not casts and changes(equation, variable):
                changed = len(chain)
            (variable,) = equation.outputs
        return chain[:changed]

    def of_products(self, whole: Collection[Equation]) -> dict[Equation, list[Part]]:
        """The scales and shifts of products, in order, up to the last that makes a difference.

        Args:
            whole: the products that take none.

        Returns:
            The parts by product, of those that have any.
        """
        for equation in self.program.equations:
            if equation not in self.alone:
                continue
            if equation in self.channels.starts and equation not in whole:
                self.open[equation.outputs[0]] = ()
            elif equation.primitive in MOVES:
                active = equation.active
                if active and all(v in self.open for v in active):
                    waiting = tuple(dict.fromkeys(e for v in active for e in self.open[v]))
                    self.open |= {v: waiting for v in equation.outputs if v in self.channels.of}
            elif is_affine(equation):
                self.look_at(equation)
        place = {equation: i for i, equation in enumerate(self.program.equations)}
        return {product: sorted(parts, key=lambda part: place[part.equation]) for product, parts in self.parts.items()}

    def look_at(self, equation: Equation) -> None:
        """See whether an equation scales or shifts features of products alone, whose values nothing else reads."""
        (variable,), (output,) = equation.active, equation.outputs
        if variable not in self.open or output.shape != variable.shape or not self.fits(equation, variable):
            return
        waiting = (*self.open[variable], equation)
        if changes(equation, variable):
            for each in waiting:
                self.take(each)
            waiting = ()
        self.open[output] = waiting

    def fits(self, equation: Equation, variable: Variable) -> bool:
        """Whether the features of a variable may be scaled or shifted where they are made."""
        if self.channels.features(variable)[0] < 0:  # some of it is beside them
            return False
        sources = self.sources(variable)
        above = above_of(variable, self.maker, self.channels.starts)
        if len({v.own or v.dtype for v in (variable, *above, *equation.outputs)}) > 1:  # values are rounded in between
            return False
        constants = [v for v in equation.inputs if not v.active]
        if any(self.channels.places(variable, constant) is None for constant in constants):
            return False
        return self.is_all(equation, variable) and not self.depend(constants, {s.outputs[0] for s in sources})

    def sources(self, variable: Variable) -> list[Equation]:
        """The products that a variable has features of."""
        return [product for product, _ in self.ranges(self.channels.features(variable))]

    def ranges(self, features: np.ndarray) -> Iterator[tuple[Equation, np.ndarray]]:
        """Some features by product, by their places among all of it."""
        for product, start in self.channels.starts.items():
            count = products.kernel_size(product)
            own = (features >= start) & (features < start + count)
            if own.any():
                yield product, features[own] - start

    def take(self, equation: Equation) -> None:
        """Make an equation part of the products that it scales or shifts."""
        if equation in self.taken:
            return
        self.taken.add(equation)
        (variable,) = equation.active
        places = {v: self.channels.places(variable, v) for v in equation.inputs if not v.active}
        features = self.channels.features(variable)
        for product, own in self.ranges(features):
            chosen = np.searchsorted(features, own + self.channels.starts[product])
            here = {v: p._replace(features=own, at=p.at[chosen]) for v, p in places.items() if p is not None}
            self.parts.setdefault(product, []).append(Part(equation, own, here))

    def is_all(self, equation: Equation, variable: Variable) -> bool:
        """Whether nothing else reads the features of a variable than the equation."""
        features = self.channels.features(variable)
        above = above_of(variable, self.maker, self.channels.starts)
        for v in above:
            if not self.has(v, features):
                continue
            if v in self.program.outputs:
                return False
            for reader in self.readers.get(v, ()):
                if reader is equation:
                    continue
                moves = reader in self.alone and (reader.primitive in MOVES or is_affine(reader))
                others = [
                    o for o in reader.outputs if o not in above and (o in self.program.outputs or o in self.readers)
                ]
                if any(not moves or self.has(o, features) for o in others):
                    return False
        return True

    def has(self, variable: Variable, features: np.ndarray) -> bool:
        """Whether a variable may have some of these features."""
        if variable not in self.channels.of:
            return True
        own = self.channels.features(variable)
        return bool(np.isin(np.where(own < 0, ~own, own), features).any())

    def depend(self, constants: Iterable[Variable], results: Collection[Variable]) -> bool:
        """Whether constants are computed of the results of products, though not differentiably."""
        waiting, seen = list(constants), set()
        while waiting:
            variable = waiting.pop()
            if variable in results:
                return True
            if variable not in seen and variable in self.maker:
                waiting += self.maker[variable].inputs
            seen.add(variable)
        return False


def above_of(variable: Variable, maker: Mapping[Variable, Equation], ends: Collection[Equation]) -> list[Variable]:
    """A variable and what it is made of, up to the results of some equations."""
    found = {variable: None}
    waiting = [variable]
    while waiting:
        equation = maker.get(waiting.pop())
        if equation is not None and equation not in ends:
            waiting += [v for v in equation.active if v not in found]
            found |= dict.fromkeys(equation.active)
    return list(found)


def changes(equation: Equation, variable: Variable) -> bool:
    """Whether an equation shifts, may change a sign, or scales features differently."""
    if equation.primitive in {"add", "add_any", "sub", "neg"}:
        return True
    others = [v for v in equation.inputs if v is not variable]
    return any(v.constant is None or bool(v.shape) or float(v.constant) < 0 for v in others)


def folded(product: Equation, parts: Sequence[Part], constants: Sequence[Variable], of_pixels: bool) -> Operation:
    """A product with parameters, with scales and shifts of its features: in its kernel, and as its bias.

    Args:
        product: the product.
        parts: the scales and shifts.
        constants: what they read; the operation takes it after the activation and the kernel.
        of_pixels: whether it is a product of pixels.
    """
    first = [v.active for v in product.inputs].index(True)
    kernel_axes, _ = products.kernel_to_output(product)
    operation = products.as_patch_embed(product) if of_pixels else operation_of(product)
    assert operation is not None
    dtype = product.outputs[0].dtype

    def run(rules: Rules, x: Array, kernel: Array, *values: Any) -> Any:
        known = dict(zip(constants, values, strict=True))
        count = products.kernel_size(product)
        shift, scale = jnp.zeros(count, dtype), jnp.ones(count, dtype)
        for part in parts:
            some = slice(None) if len(part.features) == count else part.features
            found = jax.jvp(lambda z, part=part: part(z, known), (shift[some],), (scale[some],))
            shift, scale = (
                found
                if len(part.features) == count
                else (whole.at[some].set(new) for whole, new in zip((shift, scale), found, strict=True))
            )
        scale = scale.reshape([kernel.shape[i] for i in kernel_axes]).transpose(np.argsort(kernel_axes))
        scale = jnp.expand_dims(scale, [i for i in range(kernel.ndim) if i not in kernel_axes])
        inputs = [x, kernel * scale.astype(kernel.dtype)]
        return operation.run(rules, *(inputs if first == 0 else inputs[::-1]), bias=shift)

    return Operation(operation.name, run)


def value(
    product: Equation, parts: Sequence[Part], constants: Sequence[Variable], x: Array, kernel: Array, *values: Any
) -> Array:
    """A product with its scales and shifts as their own equations compute it; arguments as of :func:`folded`."""
    known = dict(zip(constants, values, strict=True))
    inputs = [x, kernel] if product.inputs[0].active else [kernel, x]
    (z,) = (product.exact or product.call)(*inputs)
    _, axes = products.kernel_to_output(product)
    order = [*(i for i in range(z.ndim) if i not in axes), *axes]
    moved = z.transpose(order)
    features = moved.reshape(-1, products.kernel_size(product))
    for part in parts:
        found = jax.vmap(lambda z, part=part: part(z, known))(features[:, part.features])
        features = features.at[:, part.features].set(found)
    return features.reshape(moved.shape).transpose(np.argsort(order))
