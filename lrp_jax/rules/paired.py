"""Gradient and relevance in one pass: each rule set sends a cotangent of its own back, every value is computed once.

It exists because XLA does not share a forward pass through a scan. One run of a model for each set gives the same, but
XLA merges only what it can see to be equal, which it cannot through a loop, and blocks are a loop. So the model runs
once, under a ``jax.vmap`` over as many equal copies of the example as there are sets, and its operations know what that
axis means: they compute one copy, and send the i-th cotangent back by the i-th set.

What does not depend on the example, as a product of parameters, has no such axis and is an ordinary operation. So the
backward pass is made of ordinary operations alone, and can be differentiated again, by the parameters and the example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lrp_jax.rules.base import GRADIENT, OPERATIONS, Operation, Rules, merge, of_arrays

#: The axis of the copies of an example.
AXIS = "copies of the example, one for each rule set"


def vjp(
    function: Callable[..., tuple[Any, Any]], sets: Sequence[Rules], *example: Any, copies: bool = False
) -> tuple[Any, Any, Any]:
    """The vector-Jacobian product of a model by each of several rule sets, on one forward pass.

    Args:
        function: ``(rules, *example) -> (value, auxiliary)``, made of the operations of ``rules``.
        sets: how cotangents are sent back, at least one.
        *example: pytrees of arrays.
        copies: whether there are copies for a single set as well, as readers need.

    Returns:
        The value, the function from its cotangent to those of the example, each with a first axis for ``sets``, and
        the auxiliary.
    """
    if tuple(sets) == (GRADIENT,) and not copies:  # nothing to share
        value, pull, auxiliary = jax.vjp(partial(function, GRADIENT), *example, has_aux=True)
        return value, lambda cotangent: jax.tree.map(lambda x: x[None], pull(cotangent)), auxiliary

    def copied(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(sets), *x.shape)), tree)

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    run = jax.vmap(partial(function, operations(sets)), axis_name=AXIS)
    value, pull, auxiliary = jax.vjp(run, *copied(example), has_aux=True)
    return first(value), lambda cotangent: pull(copied(cotangent)), first(auxiliary)


def operations(sets: Sequence[Rules], tag: str = "") -> Rules:
    """The operations with which :func:`vjp` runs a model: each an equation of its own in the model's program.

    Without sets, they refuse to stand under a ``jax.vmap``. ``tag`` stands before their names there.
    """
    sets = tuple(sets)
    bound: Any = {name: _Bound(name, tuple(getattr(r, name) for r in sets), tag) for name in OPERATIONS}
    places = _Places(sets, tag) if any(rules.places is not None for rules in sets) else None
    times_values = bool(sets) and all(rules.times_values for rules in sets)
    return Rules(" and ".join(rules.name for rules in sets), **bound, times_values=times_values, places=places)


def once(function: Operation, *arrays: Array) -> Array:
    """A function of the example that nothing is sent back through, computed for one of the copies."""
    held = [jax.lax.stop_gradient(x) for x in arrays]
    return operation.bind(*held, name="value", ordinary=function, rules=(None,))


@dataclasses.dataclass(frozen=True)
class _Places:
    """The operations at a place."""

    sets: tuple[Rules, ...]
    tag: str

    def __call__(self, **place: Any) -> Rules:
        return operations([rules.at(**place) for rules in self.sets], self.tag)


#: The primitive that operations are. Parameters: ``name``, the member of :class:`Rules`, after a tag; ``ordinary``, its
#: operation in :data:`GRADIENT`; ``rules``, those of the sets, None for the ordinary one; both as functions of arrays.
operation = Primitive("operation")


@dataclasses.dataclass(frozen=True)
class _Bound:
    """An operation of some sets: equal where they are."""

    name: str
    rules: tuple[Operation, ...]
    tag: str

    def __call__(self, *arguments: Any, **options: Any) -> Array:
        ordinary = getattr(GRADIENT, self.name)
        return operation.bind(
            *(argument for argument in arguments if isinstance(argument, Array)),
            name=self.tag + self.name,
            ordinary=of_arrays(ordinary, arguments, options),
            rules=tuple(None if rule is ordinary else of_arrays(rule, arguments, options) for rule in self.rules),
        )


def _ordinary(*arrays: Array, name: str, ordinary: Operation, rules: tuple[Operation | None, ...]) -> Array:
    return ordinary(*arrays)


def _differentiated(primals: Sequence[Array], tangents: Sequence[Any], **parameters: Any) -> tuple[Array, Array]:
    return _pushed(partial(_ordinary, **parameters), primals, tangents)


def _pushed(function: Callable[..., Any], primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Any, Any]:
    return jax.jvp(function, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batched(axis: Any, arrays: Sequence[Array], axes: Sequence[int | None], **parameters: Any) -> tuple[Array, Any]:
    if all(a is None for a in axes):
        return operation.bind(*arrays, **parameters), None
    name, ordinary, rules = (parameters[key] for key in ("name", "ordinary", "rules"))
    if axis.name == AXIS:
        arrays = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arrays, axes, strict=True)]
        rules = rules if len(rules) == axis.size else rules * axis.size  # of :func:`once`
        return _carry(ordinary, rules, tuple(a is not None for a in axes), *arrays), 0

    if not rules:  # the probe of lrp_jax.model
        raise ValueError(
            f"the model applies rules.{name} under a jax.vmap, where its relevance would be wrong: operations take "
            "leading axes of their own accord, so apply it once to the whole array."
        )

    # An axis of the caller's, as of many models' parameters.
    def over_axis(function: Operation) -> Operation:
        return jax.vmap(function, in_axes=tuple(axes))

    rules = tuple(rule and over_axis(rule) for rule in rules)
    return operation.bind(*arrays, name=name, ordinary=over_axis(ordinary), rules=rules), 0


operation.def_impl(_ordinary)
operation.def_abstract_eval(lambda *avals, **parameters: _shaped(partial(_ordinary, **parameters), *avals))
mlir.register_lowering(operation, mlir.lower_fun(_ordinary, multiple_results=False))
ad.primitive_jvps[operation] = _differentiated
batching.fancy_primitive_batchers[operation] = _batched


# What a checkpoint keeps of copies of an example: their value once. What is sent back goes through a link beside it,
# whose value nothing needs.


def parted(x: Array) -> tuple[Array, Array]:
    """A value, once for all copies of an example, and a link through which all is sent back: for :func:`joined`."""
    value, link = _parted.bind(x)
    return value, link


def joined(value: Array, link: Array) -> Array:
    """The inverse of :func:`parted`."""
    found: Array = _joined.bind(value, link)
    return found


@jax.custom_jvp
def _part(x: Array) -> tuple[Array, Array]:
    return x, x


@_part.defjvp
def _part_jvp(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Any, Any]:
    return _part(*primals), (jnp.zeros_like(primals[0]), tangents[0])


@jax.custom_jvp
def _join(value: Array, link: Array) -> Array:
    return value


@_join.defjvp
def _join_jvp(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    return _join(*primals), tangents[0] + tangents[1]


def _parted_copies(axis: Any, arrays: Sequence[Array], axes: Sequence[int | None]) -> tuple[Any, Any]:
    if axes[0] is None:
        return _parted.bind(*arrays), (None, None)
    value, link = _part(jnp.moveaxis(arrays[0], axes[0], 0))
    return ((value[0], link), (None, 0)) if axis.name == AXIS else ((value, link), (0, 0))


def _joined_copies(axis: Any, arrays: Sequence[Array], axes: Sequence[int | None]) -> tuple[Any, Any]:
    if axes[0] is None and axes[1] is None:
        return _joined.bind(*arrays), None
    # Both get the axis: under a checkpoint, JAX (to 0.12) gives a value without, whose tangent has one, another shape.
    shape = (
        axis.size,
        *next(x.shape[:a] + x.shape[a + 1 :] for x, a in zip(arrays, axes, strict=True) if a is not None),
    )
    both = (
        jnp.broadcast_to(x if a is None else jnp.moveaxis(x, a, 0), shape) for x, a in zip(arrays, axes, strict=True)
    )
    return _join(*both), 0


_parted, _joined = Primitive("parted"), Primitive("joined")
_parted.multiple_results = True
for _primitive, _function, _copied in ((_parted, _part, _parted_copies), (_joined, _join, _joined_copies)):
    _primitive.def_impl(_function)
    batching.fancy_primitive_batchers[_primitive] = _copied
    mlir.register_lowering(_primitive, mlir.lower_fun(_function, multiple_results=_primitive.multiple_results))
    ad.primitive_jvps[_primitive] = partial(_pushed, _function)
_parted.def_abstract_eval(lambda x: [x, x])
_joined.def_abstract_eval(lambda value, link: link)


def _shaped(function: Operation, *avals: Any) -> Any:
    shape = jax.eval_shape(function, *avals)
    return jax.core.ShapedArray(shape.shape, shape.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _carry(ordinary: Operation, rules: tuple[Operation | None, ...], copied: tuple[bool, ...], *arrays: Array) -> Array:
    """The operation on copies of an example, of which the first is computed."""
    value = ordinary(*(a[0] if c else a for a, c in zip(arrays, copied, strict=True)))
    return jnp.broadcast_to(value, (len(rules), *value.shape))


def _carry_forward(
    ordinary: Operation, rules: tuple[Operation | None, ...], copied: tuple[bool, ...], *arrays: Array
) -> tuple[Array, tuple[list[Any], tuple[Array, ...]]]:
    arrays = tuple(a[0] if c else a for a, c in zip(arrays, copied, strict=True))
    first = [a for a, c in zip(arrays, copied, strict=True) if c]
    results = [rule and jax.vjp(lambda *x, rule=rule: rule(*merge(copied, x, arrays)), *first) for rule in rules]
    value = next((result[0] for result in results if result), None)
    value = ordinary(*arrays) if value is None else value
    return jnp.broadcast_to(value, (len(rules), *value.shape)), ([result and result[1] for result in results], arrays)


def _carry_backward(
    ordinary: Operation,
    rules: tuple[Operation | None, ...],
    copied: tuple[bool, ...],
    residuals: tuple[list[Any], tuple[Array, ...]],
    cotangents: Array,
) -> tuple[Array | None, ...]:
    pulls, arrays = residuals
    first = [a for a, c in zip(arrays, copied, strict=True) if c]

    def gradient(cotangent: Array) -> tuple[Array, ...]:
        # Linearised here, not in the forward pass, which would keep every product twice: what the gradient needs of a
        # product are its operands, and XLA drops the product.
        return jax.vjp(lambda *x: ordinary(*merge(copied, x, arrays)), *first)[1](cotangent)

    of_sets = [(pull or gradient)(cotangent) for pull, cotangent in zip(pulls, cotangents, strict=True)]
    # Integers that are computed of an example, as an order of its values, have no cotangent.
    sent = [
        jnp.stack(of_array) if jnp.issubdtype(array.dtype, jnp.inexact) else None
        for of_array, array in zip(zip(*of_sets, strict=True), first, strict=True)
    ]
    return tuple(merge(copied, sent, (None,) * len(copied)))


_carry.defvjp(_carry_forward, _carry_backward)
