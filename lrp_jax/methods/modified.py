"""Maps by modified gradients, at the tokens or at the pixels: AttnLRP and its kin, and one made of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.maps import centres, heatmaps
from lrp_jax.methods.base import check_block, check_truths, patches, register, rollout
from lrp_jax.model import Model, Params, ask, check_tokens, readout
from lrp_jax.outline import check_attention
from lrp_jax.rules import ALI_LRP, ATTNLRP, CP_LRP, LIBRAGRAD, Rules, with_gamma
from lrp_jax.rules.taps import with_bias_taps, with_sum_tap
from lrp_jax.signals import Explanation, predicted, signals_at_pixels, walk
from lrp_jax.walk import Fold, classify

_PLACES = ("tokens", "blocks", "pixels")
#: The relevance of each token that enters a block, summed over channels.
TOKENS = Fold(lambda state, value, sent, rows: (sent[0].sum(axis=-1),), lambda heads, tokens: ((tokens,),))


@register(class_specific=True, resolution="patch", reference="Achtibat et al. 2024", signed=True)
def attnlrp(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    at: str = "tokens",
    gamma: float = 0.0,
    gamma_at: str = "mlp",
    position: bool = False,
) -> Explanation:
    """Relevance by AttnLRP: attention, layer norm and activations propagate theirs by modified gradients.

    Options:
        at: ``"tokens"``, what enters the first block, positions included; ``"blocks"``, the sum over what enters each;
            ``"pixels"``.
        gamma: of the gamma rule for products with parameters, by which terms of the sign of the sum count more.
        gamma_at: where: ``"mlp"``, not in the products of attention; or ``"all"``.
        position: whether maps of the content and of the position embeddings of the patches are given instead, a tuple
            (PE-LRP: Bakish et al. 2025, arXiv 2506.02138).

    Raises:
        ValueError: an option is none of these, the model does not say where tokens enter its blocks, or, of
            ``position``, has no position embeddings or is not explained at its tokens.
    """
    rules = with_gamma(ATTNLRP, gamma, gamma_at)
    check_truths(position=position)
    if position and at != "tokens":
        raise ValueError(f"position=True is of at='tokens', got at={at!r}.")
    if position:
        return _at_positions(model, params, image, targets, rules)
    return _relevance(model, params, image, targets, rules, at)


@register(class_specific=True, resolution="patch", reference="Achtibat et al. 2024; Ali et al. 2022", signed=True)
def cp_lrp(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    at: str = "tokens",
    gamma: float = 0.0,
    gamma_at: str = "mlp",
) -> Explanation:
    """Relevance by CP-LRP: AttnLRP with the attention held.

    Options:
        at: as of ``attnlrp``.
        gamma: likewise.
        gamma_at: likewise.

    Raises:
        ValueError: an option is none of these, or the model does not say where tokens enter its blocks.
    """
    return _relevance(model, params, image, targets, with_gamma(CP_LRP, gamma, gamma_at), at)


@register(class_specific=True, resolution="patch", reference="Ali et al. 2022", signed=True)
def ali_lrp(model: Model, params: Params, image: Array, targets: Array | None, *, at: str = "tokens") -> Explanation:
    """Gradient times tokens, with attention and the deviation of layer norm held.

    Options:
        at: as of ``attnlrp``.

    Raises:
        ValueError: ``at`` is none of these, or the model does not say where tokens enter its blocks.
    """
    return _relevance(model, params, image, targets, ALI_LRP, at)


@register(class_specific=True, resolution="patch", reference="Mehri et al. 2025", signed=True)
def libragrad(
    model: Model, params: Params, image: Array, targets: Array | None, *, at: str = "tokens", full: bool = False
) -> Explanation:
    """Gradient times tokens by LibraGrad, whose gradients are pruned and scaled so that nothing is lost.

    Options:
        at: as of ``attnlrp``.
        full: whether all biases times their gradients are added, each at its token: FullGrad; with ``at="blocks"``,
            FullGrad+. Those of what the head reads are shared among the tokens that it reads.

    Raises:
        ValueError: an option is none of these, ``full`` is of the pixels, or the model does not say where tokens enter
            its blocks.
    """
    check_truths(full=full)
    if full and at == "pixels":
        raise ValueError("full=True is of at='tokens' or at='blocks', got at='pixels'.")
    found = _relevance(model, params, image, targets, LIBRAGRAD, at)
    if not full:
        return found
    biases = _of_biases(model, params, image, found.targets, LIBRAGRAD)
    return dataclasses.replace(found, relevance=found.relevance + biases)


@register(class_specific=True, resolution="patch", reference="this library, docs/gated-lrp.md", signed=True)
def gated_lrp(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    at: str = "patches",
    two_views: bool = False,
    gamma: float = 0.25,
    gamma_at: str = "mlp",
    start_layer: int = 0,
) -> Explanation:
    """The relevance of tokens by CP-LRP, gated by the rollout of that of attention.

    With S the relevance of the patches, summed over all blocks, N its mean over the 3 x 3 patches around each, R the
    rollout of ``(A * its cotangent)+``, each divided by its largest absolute value, and ``H = (3 S + N) / 4``, the map
    is ``sqrt(H+) * R ** 1.5``, divided by its largest value, plus 0.001 of the part of N below zero.

    Options:
        at: ``"patches"``; or ``"pixels"``, where S, N and R are enlarged before they are combined, so that edges are
            sharper.
        two_views: of the pixels, whether the mean of two maps is given instead, of the image moved by a quarter of a
            patch, to and fro: less noise at twice the cost.
        gamma: as of ``attnlrp``.
        gamma_at: likewise.
        start_layer: the first block that enters the rollout.

    Raises:
        ValueError: an option is out of range, or the model does not say where tokens enter its blocks.
    """
    if at not in ("patches", "pixels") or (at == "pixels" and len(model.grid) != 2):
        raise ValueError(f"at must be 'patches', or of images 'pixels'; got {at!r}.")
    check_truths(two_views=two_views)
    if two_views and at != "pixels":
        raise ValueError(f"two_views=True is of at='pixels', got at={at!r}.")
    check_block(model, params, image, start_layer=start_layer)
    options = with_gamma(CP_LRP, gamma, gamma_at), start_layer, at == "pixels"
    if not two_views:
        return _gated(model, params, image, targets, *options)
    logits = classify(model, params, image)
    targets = predicted(logits, targets)
    rows, cols = (size // n // 4 for size, n in zip(image.shape, model.grid, strict=False))
    maps = [
        jax.vmap(partial(_moved, rows=-sign * rows, cols=-sign * cols))(
            _gated(model, params, _moved(image, sign * rows, sign * cols), targets, *options).relevance
        )
        for sign in (1, -1)
    ]
    return Explanation(logits, targets, (maps[0] + maps[1]) / 2)


def _moved(image: Array, rows: int, cols: int) -> Array:
    """An image ``[H, W, ...]`` whose content is moved up and to the left, its edges repeated."""
    height, width = image.shape[:2]
    image = image[(np.arange(height) + rows).clip(0, height - 1)]
    return image[:, (np.arange(width) + cols).clip(0, width - 1)]


def _gated(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    rules: Rules,
    start_layer: int,
    enlarged: bool,
) -> Explanation:
    """Gated LRP of one view."""
    read = readout(model, params, image)
    check_tokens(model)
    gates = rollout(lambda maps, r: jnp.maximum(r, 0))
    found = walk(model, params, image, targets, rules, attention=gates, tokens=TOKENS, state=read, start=start_layer)
    relevance, gate = ask(model, "arrange")(found.tokens[0].sum(axis=1)), patches(found.attention[0], model)
    maps = [relevance, _around(relevance), gate]
    if enlarged:
        maps = [heatmaps(m, (image.shape[0], image.shape[1]), centres=centres(model)) for m in maps]
    of_it, around, gate = map(_of_largest, maps)
    supports = jnp.maximum(_of_largest(0.75 * of_it + 0.25 * around), 0)
    root = jnp.where(supports > 0, jnp.sqrt(jnp.where(supports > 0, supports, 1)), 0)  # of finite gradient
    gated = _of_largest(root * gate**1.5)
    return Explanation(found.logits, found.targets, gated + 0.001 * jnp.minimum(around, 0))


def _around(maps: Array) -> Array:
    """The mean of maps ``[K, rows, cols]`` over the 3 x 3 places around each, of those that exist."""
    window = (1, *[3] * (maps.ndim - 1))

    def total(x: Array) -> Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * x.ndim, "SAME")

    return total(maps) / total(jnp.ones_like(maps))


def _of_largest(maps: Array) -> Array:
    """Maps ``[K, ...]``, each divided by its largest absolute value."""
    largest = jnp.abs(maps).max(axis=tuple(range(1, maps.ndim)), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1)


def _relevance(model: Model, params: Params, image: Array, targets: Array | None, rules: Rules, at: str) -> Explanation:
    if at not in _PLACES:
        raise ValueError(f"at must be one of {', '.join(_PLACES)}; got {at!r}.")
    if at == "pixels":
        found = signals_at_pixels(model, params, image, targets, rules)
        return dataclasses.replace(found, relevance=found.relevance.sum(axis=-1))
    check_tokens(model)
    walked = walk(model, params, image, targets, rules, tokens=TOKENS)
    of_blocks = walked.tokens[0]
    maps = of_blocks[:, 0] if at == "tokens" else of_blocks.sum(axis=1)
    return Explanation(walked.logits, walked.targets, ask(model, "arrange")(maps))


def _of_biases(model: Model, params: Params, image: Array, targets: Array, rules: Rules) -> Array:
    """All biases behind the first tokens times their modified gradients, ``[K, rows, cols]``.

    Each at the token that it is added to; those of what the head reads are shared by its ``readout``, and those behind
    a pooling attention are left out.
    """
    tokens = check_attention(model, params, image).tokens
    found = readout(model, params, image)
    read = jnp.zeros(tokens) if found is None else found

    def tapped(rules: Rules, taps: Array) -> tuple[Rules, None]:
        return with_bias_taps(rules, taps, read), None

    walked = walk(model, params, image, targets, rules, taps=jnp.zeros(tokens, image.dtype), tapped=tapped)
    return patches(walked.taps[:, 0], model)


def _at_positions(model: Model, params: Params, image: Array, targets: Array | None, rules: Rules) -> Explanation:
    """The relevance of the content of the patches, and of their position embeddings, where they are added."""
    place = ask(model, "content")
    if place is None:
        raise ValueError("the model has no position embeddings that are added to its tokens, and once.")

    def tapped(rules: Rules, taps: Array) -> tuple[Rules, Any]:
        parts: list[tuple[Array, Array]] = []
        return with_sum_tap(rules, taps, parts), parts

    taps = place.zeros().astype(image.dtype)
    found = walk(model, params, image, targets, rules, taps=taps, tapped=tapped)
    sent = found.taps[:, 0]
    maps = (jax.vmap(place.maps)(sent * part.reshape(1, *sent.shape[1:])) for part in found.parts[0])
    return Explanation(found.logits, found.targets, tuple(maps))
