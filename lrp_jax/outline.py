"""What a model computes of an image, by its shapes: how many classes it has, and its attention maps."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.model import Model, Params, ask, check_chain, depth, full_precision
from lrp_jax.rules import GRADIENT


class Maps(NamedTuple):
    """The attention maps of a model: L of h heads and N tokens, a pooling attention among them.

    Attributes:
        layers: L.
        heads: h.
        tokens: N.
        dtype: their dtype.
        of_blocks: how many of them each block has.
    """

    layers: int
    heads: int
    tokens: int
    dtype: Any
    of_blocks: tuple[int, ...]

    def block(self, layer: int) -> int:
        """The block whose first map has a number, which may be that of a pooling attention; or a ValueError."""
        before = [sum(self.of_blocks[:i]) for i in range(len(self.of_blocks) + 1)]
        if layer not in before:
            raise ValueError(
                f"attention {layer} is not the first of its block, which computes several: give one of {before}."
            )
        return before.index(layer)

    def check_single(self) -> None:
        """Refuse several maps in a block, for what is kept of each block."""
        for i, count in enumerate(self.of_blocks):
            if count > 1:
                raise ValueError(
                    f"block {i} computes {count} attentions, for which there are rollouts; this needs one in each."
                )


class _Shapes:
    """What looks at the shapes of maps, see :class:`lrp_jax.rules.attention.See`."""

    def __init__(self) -> None:
        self.found: list[Array] = []

    def __call__(self, maps: Array) -> Array:
        self.found.append(maps)
        return maps

    def look(self, maps: Array, rows: Array | None) -> tuple[Array, None]:
        return self(maps), None

    def seen(self, found: None) -> None:
        """Nothing."""


class Outline(NamedTuple):
    """The shapes of what a model computes of an image.

    Attributes:
        logits: ``[C]``.
        maps: the attention maps of a block of each run of blocks, see :attr:`Model.depth`.
        pooling: those by which the head reads.
    """

    logits: Any
    maps: list[list[Any]]
    pooling: list[Any]


def outline(model: Model, params: Params, image: Any) -> Outline:
    """The shapes of what a model computes, which is traced once for all that ask.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
    """
    with full_precision():
        found: Outline = _outline.eval_shape(model, params, image)
    return found


@partial(jax.jit, static_argnames="model")
def _outline(model: Model, params: Params, image: Array) -> Outline:
    given = ask(model, "bound")(params, image)
    x, first, maps = model.embed(given, image, GRADIENT), 0, []
    for times in depth(model):
        seen = _Shapes()
        i = jnp.asarray(first) if times > 1 else first
        x = model.block(given, i, x, dataclasses.replace(ask(model, "rules_at")(first, GRADIENT), see=seen))
        first += times
        maps.append(seen.found)
    pooling = _Shapes()
    logits = model.read(given, x, dataclasses.replace(GRADIENT, see=pooling))
    return Outline(logits, maps, pooling.found)


def check_attention(model: Model, params: Params, image: Array) -> Maps:
    """The attention maps of a model.

    Raises:
        ValueError: it has none, or not one in each block.
    """
    why, found, of_blocks = ask(model, "without_attention"), [], []
    if not why:
        check_chain(model)
        shapes = outline(model, params, image)
        for times, maps in zip(depth(model), shapes.maps, strict=True):
            of_blocks += [len(maps)] * times
            found += maps * times
        if all(of_blocks) and model.readout is None:
            found += shapes.pooling
        if not all(of_blocks) or not found:
            why = f"{sum(map(bool, of_blocks))} of its {len(of_blocks)} blocks call rules.attention"
    if why:
        explained = ask(model, "explains")
        raise ValueError(f"the model has no attention maps, {why}: use a method of the {explained}, as full_lrp.")
    first = found[0]
    return Maps(len(found), first.shape[0], first.shape[-1], first.dtype, tuple(of_blocks))
