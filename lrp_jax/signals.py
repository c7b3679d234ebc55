"""What rule sets send back from the targets of one image: to the image, and to what is read of each block.

Axis letters: B images (here there is one, and no such axis), K targets an image, C classes, L blocks, h heads, N
tokens. A target is a class, or any direction of the output: weights of the logits, whose sum is explained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.model import Model, Params, ask
from lrp_jax.probe import check_rules
from lrp_jax.rules import GRADIENT, Rules, named
from lrp_jax.rules.paired import vjp
from lrp_jax.walk import Fold, links_of, relevance_of, run


@partial(jax.tree_util.register_dataclass, data_fields=("logits", "targets", "relevance"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Explanation:
    """Maps of a batch, a pytree; of one image, without the axis B.

    Attributes:
        logits: ``[B, C]``.
        targets: int ``[B, K]``, the classes explained; float ``[B, K, C]``, weights of the logits.
        relevance: ``[B, K, rows, cols]``: patch grid for token methods, image grid for pixel methods; of tokens,
            ``[B, K, N]``; of the stages of a traced model, a tuple of maps.
    """

    logits: Array
    targets: Array
    relevance: Any


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("logits", "targets", "attention", "gradient", "relevance"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class AttentionSignals:
    """What transformer attribution is made of, a pytree; of one image, without the axis B.

    Attributes:
        logits: ``[B, C]``.
        targets: int ``[B, K]``, the classes explained; float ``[B, K, C]``, weights of the logits.
        attention: probabilities ``[B, L, h, N, N]``.
        gradient: of each target's logit by the attention, ``[B, K, L, h, N, N]``.
        relevance: of each target at the attention, ``[B, K, L, h, N, N]``.
    """

    logits: Array
    targets: Array
    attention: Array
    gradient: Array
    relevance: Array


class Walked(NamedTuple):
    """What rule sets sent back from the targets, and what folds found.

    Attributes:
        logits: ``[C]``.
        targets: int ``[K]`` or float ``[K, C]``.
        image: sent to the image, ``[K, sets, H, W, channels]``.
        attention: what the fold of attention found, a tuple: of what is carried, ``[K, ...]``; else ``[K, l, ...]``.
        tokens: what the fold of tokens found, a tuple of ``[K, L, ...]``.
        taps: sent to the taps, with axes K and sets.
        parts: what ``tapped`` gave beside.
    """

    logits: Array
    targets: Array
    image: Array
    attention: tuple[Array, ...]
    tokens: tuple[Array, ...]
    taps: Any
    parts: Any


def predicted(logits: Array, targets: Array | None) -> Array:
    """The targets ``[K]``, or the class of the largest logit, ``[1]``, if they are None."""
    return jnp.argmax(logits)[None] if targets is None else targets


def directions(targets: Array, logits: Array) -> Array:
    """The weights of the logits whose sum each target is, ``[K, C]``: one-hot for a class."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(logits.dtype)
    return jax.nn.one_hot(targets, logits.size, dtype=logits.dtype)


def walk(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *rules: str | Rules,
    attention: Fold | None = None,
    tokens: Fold | None = None,
    state: Array | None = None,
    start: int = 0,
    taps: Any = None,
    tapped: Callable[[Rules, Any], tuple[Rules, Any]] | None = None,
) -> Walked:
    """Send relevance back through a model, from the last block to the first, and read each on the way.

    Every operation on the image is linearised here, so that what the caller differentiates are ordinary operations.
    Where nobody asks for the pixels, XLA drops their part.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        *rules: how relevance is sent back, rule sets or names; all on one forward pass.
        attention: what is read of the attention of each block. It gets what rule sets mean by what they send.
        tokens: likewise, of the tokens that enter each block.
        state: what a carried fold of attention begins with, ``[N]``; None: the pooling attention gives it.
        start: the first block whose attention is read. Negative: counted from the end.
        taps: zeros to differentiate by, for ``tapped``.
        tapped: ``(rules, taps) -> rules`` that read something beside, and what they leave, a pytree.

    Raises:
        ValueError: rules are unknown, the model computes something of the image without its operations, or it has no
            attention to be read.
    """
    sets = [named(r) for r in rules]
    check_rules(model, params, image, *sets)
    links = links_of(model, params, image, sets, attention=attention, tokens=tokens, start=start)

    def of_image(rules: Rules, image: Array, given: Any, taps: Any) -> tuple[Any, Any]:
        rules, parts = (rules, None) if tapped is None else tapped(rules, taps)
        return run(model, params, image, rules, links._replace(**given)), parts

    given = {"attention": links.attention, "tokens": links.tokens}
    (logits, leaving), pull, parts = vjp(of_image, sets, image, given, taps, copies=bool(attention or tokens or tapped))
    targets = predicted(logits, targets)
    seed = _seed(leaving, state)
    to_image, found, to_taps = jax.vmap(lambda weights: pull((weights, seed)))(directions(targets, logits))
    found = {name: tuple(x[:, 0] for x in of) for name, of in found.items()}
    return Walked(logits, targets, to_image, found["attention"], found["tokens"], to_taps, parts)


def look(
    model: Model,
    params: Params,
    image: Array,
    attention: Fold,
    *,
    state: Array | None = None,
    start: int = 0,
    whole: bool = False,
) -> tuple[Array, tuple[Array, ...]]:
    """Read the attention of each block, from the last to the first, without sending anything back.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        attention: what is read; nothing was sent.
        state: as of :func:`walk`.
        start: likewise.
        whole: whether the last block computes all tokens, though the head may read some.

    Returns:
        Logits ``[C]``, and what was found, as of :func:`walk` without the axis K.
    """
    links = links_of(model, params, image, [], attention=attention, start=start, whole=whole)
    links = links._replace(alone=True)

    def of_links(rules: Rules, given: tuple[Array, ...]) -> tuple[Any, Any]:
        logits, leaving = run(model, params, image, rules, links._replace(attention=given))
        return (leaving, logits)

    leaving, pull, logits = vjp(of_links, [GRADIENT], links.attention, copies=True)
    (found,) = pull(_seed(leaving, state))
    return logits, tuple(x[0] for x in found)


def _seed(leaving: tuple[Array, ...], state: Array | None) -> tuple[Array, ...]:
    return tuple(jnp.ones_like(x) if state is None else state.astype(x.dtype) for x in leaving)


def signals_at_pixels(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> Explanation:
    """The gradient or the relevance of each target at the pixels.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: :data:`lrp_jax.rules.GRADIENT` for the gradient; or of relevance, a set or a name.

    Returns:
        Logits, targets, and the gradient or relevance ``[K, H, W, channels]``.

    Raises:
        ValueError: ``rules`` is unknown, or the model computes something of the image without its operations.
    """
    found = walk(model, params, image, targets, rules)
    return Explanation(found.logits, found.targets, relevance_of(found.image[:, 0], image[None], named(rules)))


def _maps(state: tuple[Array, ...], maps: Array, sent: tuple[Array, ...], rows: Array | None) -> tuple[Array, ...]:
    """Whole maps ``[h, N, N]``, of some queries: those of each rule set, or without any the attention itself."""

    def whole(x: Array) -> Array:
        places = jnp.arange(x.shape[-2]) if rows is None else rows
        return jnp.zeros((*x.shape[:-2], x.shape[-1], x.shape[-1]), x.dtype).at[..., places, :].set(x, mode="drop")

    return tuple(map(whole, sent or (maps,)))


def signals_at_attention(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    rules: str | Rules | None,
    *,
    gradient: bool = True,
) -> AttentionSignals:
    """The gradient, the relevance, or both of each target at all attention, stacked: memory of ``(2 K + 1) L h N^2``.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: of the relevance, a set or a name; None: no relevance.
        gradient: whether the gradient is asked for.

    Returns:
        The signals; what was not asked for is None.

    Raises:
        ValueError: ``rules`` is unknown, or the model computes something of the image without its operations.
    """
    asked = {"gradient": GRADIENT if gradient else None, "relevance": rules}
    sets = {name: of_it for name, of_it in asked.items() if of_it is not None}
    order = ask(model, "order")

    def ordered(x: Array) -> Array:
        return x if order is None else x[..., order[:, None], order]

    fold = Fold(_maps, lambda heads, tokens: ((heads, tokens, tokens),) * max(1, len(sets)))
    _, (attention,) = look(model, params, image, fold._replace(shapes=lambda h, n: ((h, n, n),)), whole=True)
    walked = walk(model, params, image, targets, *sets.values(), attention=fold)
    found: dict[str, Any] = dict.fromkeys(asked) | dict(zip(sets, map(ordered, walked.attention), strict=True))
    return AttentionSignals(walked.logits, walked.targets, ordered(attention), **found)
