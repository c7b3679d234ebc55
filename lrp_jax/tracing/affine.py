"""Scales and shifts as part of the product that they follow: in its kernel, and as its bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.program import Equation, Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing import products
from lrp_jax.tracing.features import Places
from lrp_jax.tracing.operations import Operation, operation_of


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A scale or a shift of some features of a product, or a cast of them on the way to one.

    Attributes:
        equation: what scales, shifts or casts.
        features: which features, by their places among all of the product.
        constants: where each of its constants has the values of these features.
        dtypes: of what it reads, in the program.
    """

    equation: Equation
    features: np.ndarray
    constants: Mapping[Variable, Places]
    dtypes: tuple[Any, ...]

    def __call__(self, z: Array, values: Mapping[Variable, Any]) -> Array:
        """The features ``z [F]``, scaled or shifted, in the precision of ``z``."""
        given = [z if v.active else self._values(v, values) for v in self.equation.inputs]
        return self.equation.call(*(x.astype(z.dtype) for x in given))[0]

    def exact(self, z: Array, values: Mapping[Variable, Any]) -> Array:
        """The same in the dtypes of the program."""
        given = [z if v.active else self._values(v, values) for v in self.equation.inputs]
        own = [x.astype(dtype) for x, dtype in zip(given, self.dtypes, strict=True)]
        return (self.equation.exact or self.equation.call)(*own)[0].astype(z.dtype)

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
    features = moved.reshape(-1, products.kernel_size(product)).astype(product.outputs[0].dtype)
    for part in parts:
        found = jax.vmap(lambda z, part=part: part.exact(z, known))(features[:, part.features])
        features = features.at[:, part.features].set(found)
    return features.reshape(moved.shape).transpose(np.argsort(order))
