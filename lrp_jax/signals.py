"""One image through a model, and back: gradient and relevance of targets, at the attention or at the pixels.

Axis letters: B images (here there is one, and no such axis), K targets an image, C classes, L blocks, h heads, N
tokens. A target is a class, or any direction of the output: weights of the logits, whose sum is explained.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.model import (
    Checked,
    Model,
    Params,
    Place,
    WithBlocks,
    WithTokens,
    check_chain,
    classify,
    number_of_layers,
    readout,
    zero_taps,
)
from lrp_jax.probe import check_patterns, probe
from lrp_jax.rules import GRADIENT, Rules, named
from lrp_jax.rules.paired import vjp
from lrp_jax.rules.taps import with_bias_taps, with_sum_tap


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


def predicted(logits: Array, targets: Array | None) -> Array:
    """The targets ``[K]``, or the class of the largest logit, ``[1]``, if they are None."""
    return jnp.argmax(logits)[None] if targets is None else targets


def directions(targets: Array, logits: Array) -> Array:
    """The weights of the logits whose sum each target is, ``[K, C]``: one-hot for a class."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(logits.dtype)
    return jax.nn.one_hot(targets, logits.size, dtype=logits.dtype)


def _pulled(pull: Callable[[Array], Any], logits: Array, targets: Array | None) -> tuple[Array, Any]:
    """The targets, as :func:`predicted` has them, and what each sends back, ``[K, ...]``."""
    targets = predicted(logits, targets)
    return targets, jax.vmap(pull)(directions(targets, logits))


class Sent(NamedTuple):
    """What rule sets sent back from the targets.

    Attributes:
        logits: ``[C]``.
        targets: int ``[K]`` or float ``[K, C]``.
        attention: probabilities ``[L, h, N, N]``.
        to_image: ``[K, sets, H, W, channels]``.
        to_taps: ``[K, sets, l, h, N, N]``, at the attention of the last l blocks; None without taps.
    """

    logits: Array
    targets: Array
    attention: Array
    to_image: Array
    to_taps: Any


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
        ValueError: ``rules`` is unknown, or ``forward`` computes something of the image without its operations.
    """
    sent = _sent(model, params, image, targets, None, rules)
    return Explanation(sent.logits, sent.targets, relevance_of(sent.to_image[:, 0], image, named(rules)))


def signals_at_stages(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> Explanation:
    """The relevance of each target at every stage of a traced model; arguments as of :func:`signals_at_pixels`.

    Returns:
        Logits, targets, and a map ``[K, rows, cols]`` for each stage, a tuple.

    Raises:
        ValueError: ``rules`` is unknown, or the model is not traced.
    """
    if not isinstance(model, Checked) or not model.stages:
        raise ValueError("stages are those of a traced model of images (lrp_jax.trace).")
    found, _ = _at_places(model, params, image, targets, rules, model.stages)
    return dataclasses.replace(found, relevance=tuple(maps[:, 0] for maps in found.relevance))


def signals_at_blocks(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> Explanation:
    """The relevance of each target at the tokens that enter each block; arguments as of :func:`signals_at_pixels`.

    Returns:
        Logits, targets, and relevance of the patches, summed over channels, ``[K, L, rows, cols]``.

    Raises:
        ValueError: ``rules`` is unknown, or the model does not say where tokens enter its blocks.
    """
    return _at_blocks(model, params, image, targets, rules, None)[0]


def signals_at_blocks_and_attention(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, *, start_layer: int = 0
) -> tuple[Explanation, Array]:
    """In one pass, :func:`signals_at_blocks` and the relevance of :func:`signals_at_attention`."""
    return _at_blocks(model, params, image, targets, rules, zero_taps(model, params, image, start_layer))


def signals_at_biases(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> Explanation:
    """All biases behind the first tokens times their modified gradients; arguments as of :func:`signals_at_pixels`.

    Returns:
        Logits, targets, and these products at the patch that a bias is added to, ``[K, rows, cols]``. Those of what the
        head reads are shared by its ``readout``; those behind a pooling attention are left out.

    Raises:
        ValueError: ``rules`` is unknown or of relevance, or the model does not say where tokens enter its blocks.
    """
    rules = _modified(rules, "biases")
    _blocks(model)
    number_of_layers(model, params, image)  # biases are given to its tokens
    check_rules(model, params, image, None, rules)
    tokens = classify.eval_shape(model, params, image).attention.shape[-1]
    order = model.order if isinstance(model, Checked) and model.order is not None else np.arange(tokens)
    found = readout(model, params, image)
    read = jnp.zeros(tokens) if found is None else found[np.argsort(order)]

    def run(rules: Rules, taps: Array) -> tuple[Array, None]:
        return model.forward(params, image, None, with_bias_taps(rules, taps, read))[0], None

    logits, pull, _ = vjp(run, [rules], jnp.zeros(tokens, image.dtype))
    targets, (sent,) = _pulled(pull, logits, targets)
    patches = sent[:, 0, order][:, tokens - math.prod(model.grid) :]
    return Explanation(logits, targets, patches.reshape(-1, *model.grid))


def signals_at_positions(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> Explanation:
    """The relevance of content and of positions, where they are added; arguments as of :func:`signals_at_pixels`.

    Returns:
        Logits, targets, and relevance ``[K, rows, cols]`` of the content of the patches, and of their position
        embeddings, a tuple.

    Raises:
        ValueError: ``rules`` is unknown or of relevance, or the model has no position embeddings that are added once.
    """
    rules = _modified(rules, "positions")
    if not isinstance(model, WithTokens) or model.content is None:
        raise ValueError("the model has no position embeddings that are added to its tokens, and once.")
    place = model.content
    check_rules(model, params, image, None, rules)

    def run(rules: Rules, tap: Array) -> tuple[Array, tuple[Array, Array]]:
        parts: list[tuple[Array, Array]] = []
        logits, _ = model.forward(params, image, None, with_sum_tap(rules, tap, parts))
        return logits, parts[0]

    logits, pull, parts = vjp(run, [rules], place.zeros().astype(image.dtype))
    targets, (sent,) = _pulled(pull, logits, targets)
    maps = (jax.vmap(place.maps)(sent[:, 0] * part.reshape(1, *sent.shape[2:]))[:, 0] for part in parts)
    return Explanation(logits, targets, tuple(maps))


def gradients_of_blocks(
    model: Model, params: Params, image: Array, targets: Array | None, *, start_layer: int, cosine: bool
) -> Explanation:
    """The gradient by each attention of what the head says of the mean of the tokens that leave its own block.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        start_layer: s, the first block.
        cosine: whether the logits of a block are scaled to length 1.

    Returns:
        Logits, targets, and gradients ``[K, L - s, h, N, N]``; a pooling attention is no block.

    Raises:
        ValueError: the model does not say where its blocks are.
    """
    check_chain(model)
    _blocks(model)
    if not isinstance(model, WithTokens):
        raise ValueError("the model does not say what leaves its blocks, see lrp_jax.model.WithTokens.")
    taps = zero_taps(model, params, image, start_layer)
    taps = taps if model.readout is not None else taps[:-1]

    def read(tokens: Array) -> Array:
        logits = model.read(params, image, jnp.broadcast_to(tokens.mean(axis=0), tokens.shape))
        if not cosine:
            return logits
        square = (logits * logits).sum()
        return jnp.where(square > 0, logits * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), logits)

    def run(taps: Array) -> Array:
        return jax.vmap(read)(model.forward_apart(params, image, entering, taps)).sum(axis=0)

    zeros = [place.zeros() for place in model.blocks]
    logits, _, entering = model.forward_through(params, image, None, GRADIENT, model.blocks, zeros)
    targets = predicted(logits, targets)
    _, pull = jax.vjp(run, taps)
    (sent,) = jax.vmap(pull)(directions(targets, logits))
    return Explanation(logits, targets, sent)


def _modified(rules: str | Rules, what: str) -> Rules:
    """The rules, which must be modified gradients."""
    rules = named(rules)
    if not rules.times_values:
        raise ValueError(f"{what} are multiplied by modified gradients; {rules.name} sends relevance back.")
    return rules


def _blocks(model: Any) -> Sequence[Place]:
    """What enters the blocks, or a ValueError."""
    if not isinstance(model, WithBlocks) or not model.blocks:
        why = getattr(model, "without_attention", "") or "where they enter its blocks cannot be told"
        raise ValueError(f"the model has no tokens to read relevance at, {why}; attnlrp and its kin have at='pixels'.")
    return model.blocks


def check_rules(model: Model, params: Params, image: Array, taps: Array | None, *sets: Rules) -> None:
    """Refuse a model that relevance passes through beside the operations of rules, and rules for what it has not."""
    if any(rules != GRADIENT for rules in sets):
        probe(model, params, image, taps)
    for rules in sets:
        check_patterns(model, params, image, rules)


def _at_blocks(
    model: Any, params: Params, image: Array, targets: Array | None, rules: str | Rules, taps: Array | None
) -> tuple[Explanation, Any]:
    """Maps ``[K, L, rows, cols]`` of what enters the blocks; relevance at the taps."""
    found, at_taps = _at_places(model, params, image, targets, rules, _blocks(model), taps)
    return dataclasses.replace(found, relevance=jnp.concatenate(found.relevance, axis=1)), at_taps


def _at_places(
    model: Any,
    params: Params,
    image: Array,
    targets: Array | None,
    rules: str | Rules,
    places: Sequence[Place],
    taps: Array | None = None,
) -> tuple[Explanation, Any]:
    """Maps ``[K, times, rows, cols]`` of relevance at some places, a tuple; relevance at the taps, or None."""
    rules = named(rules)

    def run(rules: Rules, taps: Array | None, added: Sequence[Array]) -> tuple[Array, tuple[Array, Sequence[Array]]]:
        logits, attention, there = model.forward_through(params, image, taps, rules, places, added)
        return logits, (attention, there)

    check_rules(model, params, image, taps, rules)
    _, (_, there) = jax.eval_shape(partial(run, GRADIENT), taps, [place.zeros() for place in places])
    added = [jnp.zeros(x.shape, x.dtype) for x in there]
    logits, pull, (attention, values) = vjp(run, [rules], taps, added)
    targets, (to_taps, to_places) = _pulled(pull, logits, targets)
    sent = [relevance_of(at[:, 0], value, rules) for at, value in zip(to_places, values, strict=True)]
    maps = tuple(jax.vmap(place.maps)(at) for place, at in zip(places, sent, strict=True))
    if taps is not None:
        to_taps = relevance_of(to_taps[:, 0], attention[len(attention) - len(taps) :], rules)
    return Explanation(logits, targets, maps), to_taps


def signals_at_attention(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    rules: str | Rules | None,
    *,
    gradient: bool = True,
    start_layer: int = 0,
) -> AttentionSignals:
    """The gradient, the relevance, or both of each target at the attention.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: of the relevance, a set or a name; None: no relevance.
        gradient: whether the gradient is asked for.
        start_layer: s, the first block of gradient and relevance, ``[K, L - s, h, N, N]``; below its attention nothing
            is propagated. Negative: counted from the end.

    Returns:
        The signals; what was not asked for is None.

    Raises:
        ValueError: ``rules`` is unknown, or ``forward`` computes something of the image without its operations.
    """
    asked = {"gradient": GRADIENT if gradient else None, "relevance": rules}
    sets = {name: of_it for name, of_it in asked.items() if of_it is not None}
    taps = zero_taps(model, params, image, start_layer)
    sent = _sent(model, params, image, targets, taps, *sets.values())
    found: dict[str, Any] = dict.fromkeys(asked)
    for i, (name, of_it) in enumerate(sets.items()):
        found[name] = relevance_of(sent.to_taps[:, i], sent.attention[start_layer:], named(of_it))
    return AttentionSignals(sent.logits, sent.targets, sent.attention, **found)


def relevance_of(sent: Array, value: Array, rules: Rules) -> Array:
    """What a set means by the cotangents ``[K, ...]`` that it sent to a value."""
    return sent * value[None] if rules.times_values else sent


def _sent(
    model: Model, params: Params, image: Array, targets: Array | None, taps: Array | None, *rules: str | Rules
) -> Sent:
    """What each set sends back from the targets.

    To the image in any case: every operation on it is then linearised here, and what the caller differentiates are
    ordinary operations. Where nobody asks for the pixels, XLA drops their part.
    """

    def run(rules: Rules, image: Array, taps: Array | None) -> tuple[Array, Array]:
        return model.forward(params, image, taps, rules)

    sets: Sequence[Rules] = [named(r) for r in rules]
    check_rules(model, params, image, taps, *sets)
    logits, pull, attention = vjp(run, sets, image, taps)
    targets, (to_image, to_taps) = _pulled(pull, logits, targets)
    return Sent(logits, targets, attention, to_image, to_taps)
