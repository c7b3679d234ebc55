"""The walk over a model: embed, block after block, read; and going back, what a method reads of each block.

A method is a *fold* over the blocks, from the last to the first: the order in which the backward pass gives what rule
sets send to an attention. The row of a rollout, ``v <- v + v A_l`` for l from the last block to the first, is carried
from block to block as cotangents are (:mod:`lrp_jax.rules.readers`), and nothing of another block is kept.

Axis letters: C classes, L blocks, h heads, N tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.meshes import automatic
from lrp_jax.model import Model, Params, ask, depth, full_precision, prepared
from lrp_jax.outline import check_attention, outline
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.rules.base import PRODUCT
from lrp_jax.rules.paired import joined, parted
from lrp_jax.rules.readers import Read, Reader

#: Up to how many values the tokens of all blocks have for products to be kept; beyond, what enters blocks alone is.
KEPT = 1 << 22


class Fold(NamedTuple):
    """What a method reads of the attention of each block, or of the tokens that enter it.

    Attributes:
        read: see :data:`lrp_jax.rules.readers.Read`.
        shapes: ``(heads, tokens) ->`` the shapes of what it finds.
        carried: whether what it finds is added to its state, which goes to the block before; else it is kept of each.
        given: arrays that ``read`` needs.
    """

    read: Read
    shapes: Callable[[int, int], tuple[tuple[int, ...], ...]]
    carried: bool = False
    given: tuple[Array, ...] = ()


class Links(NamedTuple):
    """Folds, and the zeros by which a walk is differentiated to find what they find.

    Attributes:
        of_attention: the fold of attention.
        of_tokens: the fold of the tokens that enter blocks, which is not carried.
        start: the first block whose attention is read.
        attention: zeros; of a fold that is not carried, of each block.
        tokens: zeros, of each block.
        pooling: whether ``read`` pools by attention that is read.
        whole: whether the last block computes all tokens, though the head may read some.
        alone: whether nothing but what folds find is asked for.
        apart: what is said of the tokens that leave a block, ``[C]``, if blocks are apart: no cotangents go from one to
            another, and what is carried is the sum of what is said of each.
        entering: the tokens that enter blocks that are apart, ``[L, N, D]``.
    """

    of_attention: Fold | None = None
    of_tokens: Fold | None = None
    start: int = 0
    attention: tuple[Array, ...] = ()
    tokens: tuple[Array, ...] = ()
    pooling: bool = False
    whole: bool = False
    alone: bool = False
    apart: Callable[[Array], Array] | None = None
    entering: Array | None = None

    @property
    def is_carried(self) -> bool:
        """Whether the fold of attention is carried."""
        return self.of_attention is not None and self.of_attention.carried

    def state(self, tokens: Array) -> tuple[Array, ...]:
        """What is carried into the first block, which computes some tokens."""
        if self.is_carried:
            return self.attention
        said = jax.ShapeDtypeStruct((), tokens.dtype) if self.apart is None else jax.eval_shape(self.apart, tokens)
        return (jnp.zeros(said.shape, said.dtype),) if self.alone or self.apart is not None else ()

    def reader(self, state: tuple[Array, ...], kept: Sequence[Array], *, is_pooling: bool = False) -> Reader:
        """What reads the attention of a block, of what is carried into the block, and the links that are its own."""
        fold = self.of_attention
        assert fold is not None
        if not fold.carried:
            return Reader(fold.read, tuple(kept), ((),) * self.alone, fold.given, self.alone, left=[])
        shapes = ((1,),) * len(state) if is_pooling else tuple(x.shape for x in state)
        return Reader(fold.read, state, shapes, fold.given, self.alone, passes=not is_pooling)

    def after(self, state: tuple[Array, ...], reader: Reader) -> tuple[Array, ...]:
        """What is carried from a block whose attention was read."""
        if self.is_carried:
            return reader.links
        return (sum(reader.left or (), state[0]),) if self.alone else state


def links_of(
    model: Model,
    params: Params,
    image: Array,
    sets: Sequence[Rules],
    *,
    attention: Fold | None = None,
    tokens: Fold | None = None,
    start: int = 0,
    whole: bool = False,
) -> Links:
    """The links of some folds, whose ``read`` gets what rule sets mean by what they send.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        sets: the rule sets.
        attention: the fold of attention.
        tokens: the fold of tokens.
        start: the first block whose attention is read. Negative: counted from the end.
        whole: see :class:`Links`.

    Raises:
        ValueError: the model has no attention to be read.
    """
    links, blocks = Links(whole=whole), sum(depth(model))
    if attention is not None:
        maps = check_attention(model, params, image)
        start = range(maps.layers)[start]
        if not attention.carried:
            maps.check_single()
        pooling, start = maps.layers > sum(maps.of_blocks), maps.block(start)
        each = () if attention.carried else (maps.layers - start,)
        zeros = tuple(jnp.zeros((*each, *shape), maps.dtype) for shape in attention.shapes(maps.heads, maps.tokens))
        attention = attention._replace(read=_of_relevance(attention.read, sets))
        links = links._replace(of_attention=attention, attention=zeros, start=start, pooling=pooling)
    if tokens is not None:
        entering = jax.eval_shape(lambda image: model.embed(params, image, GRADIENT), image)
        zeros = tuple(jnp.zeros((blocks, *s), entering.dtype) for s in tokens.shapes(1, entering.shape[0]))
        links = links._replace(of_tokens=tokens._replace(read=_of_relevance(tokens.read, sets)), tokens=zeros)
    return links


def relevance_of(sent: Array, value: Array, rules: Rules) -> Array:
    """What a set means by the cotangents that it sent to a value."""
    return sent * value if rules.times_values else sent


def _of_relevance(read: Read, sets: Sequence[Rules]) -> Read:
    def of_sent(state: Any, value: Array, sent: tuple[Array, ...], *others: Any) -> tuple[Array, ...]:
        return read(state, value, tuple(map(relevance_of, sent, itertools.repeat(value), sets)), *others)

    return of_sent


def run(model: Model, params: Params, image: Array, rules: Rules, links: Links) -> tuple[Array, tuple[Array, ...]]:
    """One image through a model.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        rules: the operations to use.
        links: what is read on the way back.

    Returns:
        Logits ``[C]``, and the links of what is carried, as they leave.
    """
    params = ask(model, "bound")(params, image)
    tokens = model.embed(params, image, rules)
    state = links.state(tokens)
    for first, last in _pieces(model, rules, links):
        tokens, state = _blocks(model, params, rules, links, first, last, tokens, state)
    if not links.pooling:
        return model.read(params, tokens, rules), state
    reader = links.reader(state, [x[-1] for x in links.attention], is_pooling=True)
    logits = model.read(params, tokens, dataclasses.replace(rules, see=reader))
    return logits, links.after(state, reader)


def _blocks(
    model: Model,
    params: Params,
    rules: Rules,
    links: Links,
    first: int,
    last: int,
    tokens: Array,
    state: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """Some blocks, in a loop: the tokens and what is carried after the last of them."""
    blocks = sum(depth(model))
    here = ask(model, "rules_at")(first, rules)
    fold = links.of_attention if first >= links.start else None

    def step(carried: Any, each: Any) -> tuple[Any, None]:
        x, state = carried
        return again(block)((*parted(x), state), each)

    def block(carried: Any, each: Any) -> tuple[Any, None]:
        (value, link, state), (i, of_tokens, of_attention, entering) = carried, each
        x = joined(value, link)
        if links.of_tokens is not None:
            x = Reader(links.of_tokens.read, tuple(of_tokens), given=links.of_tokens.given, left=[])(x)
        if links.apart is not None:
            (x,) = entering
        if fold is None:
            return (model.block(params, i, x, here), state), None
        reader = links.reader(state, of_attention)
        x = model.block(params, i, x, dataclasses.replace(here, see=reader))
        if links.apart is not None:
            return (x, (state[0] + links.apart(x),)), None
        return (x, links.after(state, reader)), None

    of_each = () if fold is None or fold.carried else links.attention
    each = (
        [x[first:last] for x in links.tokens],
        [x[first - links.start : last - links.start] for x in of_each],
        [] if links.entering is None else [links.entering[first:last]],
    )
    is_small = blocks * tokens.size <= KEPT
    policy = jax.checkpoint_policies.save_only_these_names(PRODUCT) if is_small else None
    again = partial(jax.checkpoint, policy=policy, prevent_cse=False)
    if last - first > 1:
        return jax.lax.scan(step, (tokens, state), (jnp.arange(first, last), *each))[0]
    i: Any = jnp.asarray(first) if links.whole else first
    alone = jax.tree.map(lambda x: x[0], each)
    return again(lambda carried, each: block(carried, (i, *each))[0])((*parted(tokens), state), alone)


def entering(model: Model, params: Params, image: Array) -> Array:
    """The tokens that enter each block, ``[L, N, D]``."""
    params = ask(model, "bound")(params, image)
    x, found = model.embed(params, image, GRADIENT), []
    for first, last in _pieces(model, GRADIENT, Links()):
        here = ask(model, "rules_at")(first, GRADIENT)

        def step(x: Array, i: Array, here: Rules = here) -> tuple[Array, Array]:
            return model.block(params, i, x, here), x

        if last - first > 1:
            x, each = jax.lax.scan(step, x, jnp.arange(first, last))
            found.append(each)
        else:
            found.append(x[None])
            x = model.block(params, jnp.asarray(first), x, here)
    return jnp.concatenate(found)


def _pieces(model: Model, rules: Rules, links: Links) -> Iterator[tuple[int, int]]:
    """First and last of blocks that one loop runs: of the same shapes, rules and readers."""
    runs = depth(model)
    blocks = sum(runs)
    cuts = {0, min(links.start, blocks), *itertools.accumulate(runs)}
    if rules.places is not None:
        of_each = [ask(model, "rules_at")(i, rules) for i in range(blocks)]
        cuts |= {i for i in range(1, blocks) if of_each[i] != of_each[i - 1]}
    return itertools.pairwise(sorted(cuts))


def forward(model: Model, params: Params, image: Array, rules: Rules = GRADIENT) -> Array:
    """The logits ``[C]`` of an image, by the operations of a rule set.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        rules: the operations.
    """
    return run(model, params, image, rules, Links())[0]


@partial(jax.jit, static_argnames="model")
def classify(model: Model, params: Params, image: Array) -> Array:
    """The logits ``[C]`` of an image ``[H, W, channels]``, in full precision as maps are."""
    with full_precision():
        found: Array = automatic(lambda given: forward(model, *given))((params, image))
        return found


def number_of_classes(model: Model, params: Params, example: Any) -> int:
    """C, how many logits a model has."""
    of_one = automatic(lambda given: outline(model, *prepared(model, *given)).logits)
    return jax.eval_shape(of_one, (params, example)).shape[0]
