"""Reading a model on the way back: values pass a reader unchanged, and what rule sets send to them is folded.

A reader has *links*, zeros that a caller differentiates by. The cotangents of the links are what the reader found. Of a
reader that is carried, the links of one block are what leaves it for the next, so that their cotangents, its *state*,
go from the last block to the first: a rollout needs no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from lrp_jax.rules.paired import AXIS

#: ``(state, value, sent, rows, *given) -> found``. The state of what is carried, a tuple of arrays; a value, as the
#: maps ``[h, c, N]`` of c queries; what each rule set sends to it, a tuple; which queries these are, ``[c]``, or None
#: for the first c; and what else it needs. It gives arrays of the shapes of the links, which are added up.
Read = Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(eq=False)
class Reader:
    """What reads a value; for a model that :func:`lrp_jax.rules.paired.vjp` runs, with ``copies``.

    Attributes:
        read: what it finds.
        links: zeros, by which the caller differentiates.
        leaving: the shapes of its state.
        given: arrays that ``read`` needs.
        alone: whether nothing is sent to the values that are read.
        passes: whether the links are carried on beside what is found.
        left: zeros that make what is found depend on what leaves; None: the links are carried.
    """

    read: Read
    links: tuple[Array, ...]
    leaving: tuple[tuple[int, ...], ...] = ()
    given: tuple[Array, ...] = ()
    alone: bool = False
    passes: bool = True
    left: list[Array] | None = None

    def __call__(self, value: Array) -> Array:
        """The value, unchanged."""
        value, found = self.look(value, None)
        self.seen(found)
        return value

    def look(self, value: Array, rows: Array | None) -> tuple[Array, list[Array]]:
        """See :class:`lrp_jax.rules.attention.See`."""
        others = (*self.given, *(() if rows is None else (rows,)))
        read = _Read(self.read, len(self.given))
        passed, *found = looked.bind(
            value, *self.links, *others, read=read, links=len(self.links), leaving=self.leaving
        )
        return value if self.alone else passed, found

    def seen(self, found: Sequence[Array]) -> None:
        """See :class:`lrp_jax.rules.attention.See`."""
        if self.left is None:
            self.links = tuple(map(jnp.add, self.links, found)) if self.passes else tuple(found)
        else:
            self.left += found


class _Read(NamedTuple):
    """A ``read`` and how many arrays it is given, before the rows."""

    read: Read
    given: int

    def __call__(self, state: tuple[Array, ...], value: Array, sent: tuple[Array, ...], *others: Array) -> Any:
        rows = others[self.given] if len(others) > self.given else None
        return self.read(state, value, sent, rows, *others[: self.given])


#: A value that is read. Inputs: the value, links, what is given, and rows or not; outputs: the value, and zeros whose
#: cotangents are the state.
looked = Primitive("looked")
looked.multiple_results = True


def _plain(value: Array, *others: Array, leaving: Sequence[tuple[int, ...]], **_: Any) -> list[Array]:
    return [value, *(jnp.zeros(shape, value.dtype) for shape in leaving)]


def _shapes(value: Any, *others: Any, leaving: Sequence[tuple[int, ...]], **_: Any) -> list[Any]:
    return [jax.core.ShapedArray(shape, value.dtype) for shape in (value.shape, *leaving)]


def _batched(axis: Any, arrays: Sequence[Array], axes: Sequence[int | None], **parameters: Any) -> tuple[Any, Any]:
    if axis.name != AXIS:
        raise ValueError("the model applies rules.attention under a jax.vmap: apply it once to the whole array.")
    value, *others = (x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arrays, axes, strict=True))
    links = parameters["links"]
    given = [x if a is None else x[0] for x, a in zip(others[links:], axes[1 + links :], strict=True)]
    others = [
        jnp.broadcast_to(x, (axis.size, *x.shape)) if a is None else x
        for x, a in zip(others[:links], axes[1:], strict=False)
    ]
    found = _copies(
        parameters["read"],
        (parameters["leaving"], tuple((x.shape, x.dtype) for x in others)),
        axes[0] is not None,
        value,
        tuple(others),
        tuple(given),
    )
    return found, [None if axes[0] is None else 0, *[0] * (len(found) - 1)]


looked.def_impl(_plain)
looked.def_abstract_eval(_shapes)
mlir.register_lowering(looked, mlir.lower_fun(_plain, multiple_results=True))
batching.fancy_primitive_batchers[looked] = _batched


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _copies(
    read: Read, shapes: Any, copied: bool, value: Array, links: tuple[Array, ...], given: tuple[Array, ...]
) -> list[Array]:
    """A value that is copied for each rule set, and zeros for the state; ``shapes`` are of the state and the links."""
    return _forward(read, shapes, copied, value, links, given)[0]


def _forward(
    read: Read, shapes: Any, copied: bool, value: Array, links: tuple[Array, ...], given: tuple[Array, ...]
) -> tuple[list[Array], Any]:
    found = [value, *(jnp.zeros((len(links[0]), *shape), value.dtype) for shape in shapes[0])]
    return found, (value[0] if copied else value, given)


def _backward(read: Read, shapes: Any, copied: bool, residuals: Any, cotangents: Sequence[Array]) -> Any:
    (value, given), (_, links) = residuals, shapes
    sent, *state = cotangents
    found = read(tuple(x[0] for x in state), value, tuple(sent) if copied else (sent,), *given)
    of_links = tuple(
        jnp.zeros(shape, dtype).at[0].set(x.astype(dtype)) for (shape, dtype), x in zip(links, found, strict=True)
    )
    return sent, of_links, None


_copies.defvjp(_forward, _backward)
