"""Products: with parameters, of two activations, and convolutions, as the rules take them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.primitives import AFFINE, MOVES
from lrp_jax.program import Equation, Program, Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing.operations import Operation, register


@register("dot_general")
def dot_general(equation: Equation) -> Operation | None:
    """A product with parameters; of two activations, their product."""
    if len(equation.active) == 2 or all(v.active for v in equation.inputs):
        return as_matmul(equation)
    return (
        Operation("activation", partial(_scaled, equation))
        if is_scale(equation)
        else Operation("dense", partial(_dense, "dense", equation))
    )


def is_scale(equation: Equation) -> bool:
    """Whether a ``dot_general`` neither sums nor makes new values: a mask of heads, times the attention."""
    if equation.primitive != "dot_general" or len(equation.active) != 1 or all(v.active for v in equation.inputs):
        return False
    side = [v.active for v in equation.inputs].index(False)
    _, contracted, free = axes(equation, side)
    return math.prod(_sizes(equation.inputs[side].shape, [*contracted, *free])) == 1


def _scaled(equation: Equation, rules: Rules, *values: Array) -> Array:
    first = [v.active for v in equation.inputs].index(True)

    def scaled(x: Array, w: Array) -> Array:
        x = jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, w.shape))
        return rules.activation(lambda x, w: x * w, x, w)

    return _product(equation, values, first, scaled)


def as_matmul(equation: Equation) -> Operation:
    """A ``dot_general`` as a product of two activations, though one is none: the scores of a learned query."""
    return Operation("matmul", partial(_matmul, equation))


def as_patch_embed(equation: Equation) -> Operation:
    """The first product with parameters on the way from the pixels."""
    if equation.primitive == "dot_general":
        return Operation("patch_embed", partial(_dense, "patch_embed", equation))
    return Operation("patch_embed", partial(_convolution, "patch_embed", equation))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A product with weights that are no parameters, as those of an interpolation: which are 0 says where it looks."""

    product: Callable[[Array, Array], Array]

    def __call__(self, x: Array, w: Array) -> Array:
        """The product."""
        return self.product(x, w)


def is_fixed(equation: Equation, program: Program, maker: Mapping[Variable, Any]) -> bool:
    """Whether a ``dot_general`` has weights that its program was not given: those of an interpolation."""
    if equation.primitive != "dot_general" or len(equation.active) != 1 or is_scale(equation):
        return False
    waiting, seen = [v for v in equation.inputs if not v.active], set[Variable]()
    while waiting:
        variable = waiting.pop()
        if variable in program.inputs or (variable.constant is not None and variable.shape):
            return False
        made_by = maker.get(variable)
        if isinstance(made_by, Equation) and variable not in seen:
            waiting += made_by.inputs
        seen.add(variable)
    return True


def is_of_product(equation: Equation, maker: Mapping[Variable, Any]) -> bool:
    """Whether a product with parameters is of what another one gives, as the scores of a learned query are of keys."""
    made_by = maker.get(equation.active[0])
    while isinstance(made_by, Equation) and len(made_by.active) == 1 and made_by.primitive in MOVES | AFFINE:
        made_by = maker.get(made_by.active[0])
    return isinstance(made_by, Equation) and is_dense(made_by)


def mixes_heads(equation: Equation) -> bool:
    """Whether a product with parameters mixes heads of attention: a square kernel, of one contracted axis."""
    if equation.primitive != "dot_general" or len(equation.active) != 1:
        return False
    first = [v.active for v in equation.inputs].index(True)
    contracted, batch = equation.params["dimension_numbers"]
    last = len(equation.inputs[first].shape) - 1
    kernel = equation.inputs[1 - first].shape
    return (
        not batch[0]
        and len(contracted[0]) == 1
        and len(kernel) == 2
        and kernel[0] == kernel[1]
        and contracted[first][0] < last  # the last axis is of features, or of keys
    )


def as_fixed(name: str, equation: Equation) -> Operation:
    """A ``dot_general`` with weights that are no parameters, as an operation ``name``."""

    def run(rules: Rules, *values: Array) -> Array:
        first = [v.active for v in equation.inputs].index(True)
        operation = partial(getattr(rules, name), product=Fixed(jnp.matmul))
        return _product(equation, values, first, lambda x, w: operation(x, w, None))

    return Operation(name, run)


def free_axes(equation: Equation, side: int) -> range:
    """The axes of a ``dot_general``'s result that are the free axes of one operand."""
    batch, _, free = axes(equation, side)
    start = len(batch) + (len(axes(equation, 0)[2]) if side else 0)
    return range(start, start + len(free))


def axes(equation: Equation, side: int) -> tuple[list[int], list[int], list[int]]:
    """The batch, contracted and free axes of one operand of a ``dot_general``."""
    contracted, batch = (list(pair[side]) for pair in equation.params["dimension_numbers"])
    used = {*contracted, *batch}
    return batch, contracted, [i for i in range(len(equation.inputs[side].shape)) if i not in used]


def is_of_each(equation: Equation, n: int) -> bool:
    """Whether a product of two activations is of each of n tokens by itself, as what experts give is weighted."""
    batch, contracted, _ = axes(equation, 0)
    shape = equation.inputs[0].shape
    return n in _sizes(shape, batch) and n not in _sizes(shape, contracted)


def _sizes(shape: Sequence[int], places: Sequence[int]) -> list[int]:
    return [shape[i] for i in places]


def _operands(equation: Equation, values: Sequence[Array], first: int) -> tuple[Array, Array, list[int], list[int]]:
    """Both operands as ``[..., n, k]`` and ``[..., k, m]``, the batch's one axis only where there is one."""
    dtype = equation.outputs[0].dtype
    results, sizes = [], []
    for side in (first, 1 - first):
        x = values[side].astype(dtype)
        batch, contracted, free = axes(equation, side)
        order = [*batch, *free, *contracted] if side == first else [*batch, *contracted, *free]
        merged = [math.prod(_sizes(x.shape, some)) for some in (batch, free, contracted)]
        shape = [merged[0]] * bool(batch) + (merged[1:] if side == first else merged[:0:-1])
        sizes.append((_sizes(x.shape, batch), _sizes(x.shape, free)))
        results.append(x.transpose(order).reshape(shape))
    (batch_sizes, free_first), (_, free_second) = sizes
    return results[0], results[1], batch_sizes, [*free_first, -1, *free_second]


def _product(equation: Equation, values: Sequence[Array], first: int, apply: Callable[[Array, Array], Array]) -> Array:
    """The product by ``apply``, whose left operand is the input ``first``, in the order of axes of the equation."""
    a, b, batch, free = _operands(equation, values, first)
    cut = free.index(-1)
    left, right = free[:cut], free[cut + 1 :]
    z = apply(a, b).reshape([*batch, *left, *right])
    if first == 0:
        return z
    n, m = len(batch), len(batch) + len(left)
    return z.transpose([*range(n), *range(m, z.ndim), *range(n, m)])


def _matmul(equation: Equation, rules: Rules, *values: Array) -> Array:
    return _product(equation, values, 0, rules.matmul)


def _dense(name: str, equation: Equation, rules: Rules, *values: Array, bias: Array | None = None) -> Array:
    first = [v.active for v in equation.inputs].index(True)
    operation = getattr(rules, name)
    batch, _, _ = axes(equation, first)
    if bias is not None and batch:  # a bias of each
        bias = bias.reshape(math.prod(_sizes(equation.outputs[0].shape, range(len(batch)))), 1, -1)
    return _product(equation, values, first, lambda x, w: operation(x, w, bias))


@register("conv_general_dilated")
def convolution(equation: Equation) -> Operation | None:
    """A convolution with parameters."""
    if [v.active for v in equation.inputs] != [True, False]:
        return None
    return Operation("dense", partial(_convolution, "dense", equation))


def _convolution(
    name: str, equation: Equation, rules: Rules, x: Array, w: Array, *, bias: Array | None = None
) -> Array:
    dtype = equation.outputs[0].dtype
    params = equation.params | {"preferred_element_type": None}
    if bias is not None:
        _, (axis,) = kernel_to_output(equation)
        bias = bias.reshape([-1 if i == axis else 1 for i in range(len(equation.outputs[0].shape))])

    def product(x: Array, w: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            w,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            params["dimension_numbers"],
            params["feature_group_count"],
            params["batch_group_count"],
        )

    return getattr(rules, name)(x.astype(dtype), w.astype(dtype), bias, product=product)


def kernel_to_output(product: Equation) -> tuple[list[int], list[int]]:
    """The axes of a product's kernel that are axes of its result, those that it has one of each for; and these."""
    if product.primitive == "conv_general_dilated":
        numbers = product.params["dimension_numbers"]
        return [numbers.rhs_spec[0]], [numbers.out_spec[1]]
    side = [v.active for v in product.inputs].index(False)
    batch, _, free = axes(product, side)
    return [*batch, *free], [*range(len(batch)), *free_axes(product, side)]


def kernel_size(product: Equation) -> int:
    """How many features a product gives."""
    _, out_axes = kernel_to_output(product)
    return math.prod(_sizes(product.outputs[0].shape, out_axes))


def is_dense(equation: Equation) -> bool:
    """Whether it is a product of an activation with parameters."""
    if equation.primitive == "dot_general":
        return [v.active for v in equation.inputs].count(True) == 1 and not is_scale(equation)
    if equation.primitive != "conv_general_dilated" or equation.params["batch_group_count"] != 1:
        return False
    return [v.active for v in equation.inputs] == [True, False]
