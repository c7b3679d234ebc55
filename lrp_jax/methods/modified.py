"""Maps by modified gradients, at the tokens or at the pixels: AttnLRP and its kin."""

from __future__ import annotations

import dataclasses

from jax import Array

from lrp_jax.methods.base import check_truths, register
from lrp_jax.model import Model, Params
from lrp_jax.rules import ALI_LRP, ATTNLRP, CP_LRP, LIBRAGRAD, Rules, with_gamma
from lrp_jax.signals import (
    Explanation,
    signals_at_biases,
    signals_at_blocks,
    signals_at_pixels,
    signals_at_positions,
)

_PLACES = ("tokens", "blocks", "pixels")


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
        return signals_at_positions(model, params, image, targets, rules)
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
    biases = signals_at_biases(model, params, image, found.targets, LIBRAGRAD).relevance
    return dataclasses.replace(found, relevance=found.relevance + biases)


def _relevance(model: Model, params: Params, image: Array, targets: Array | None, rules: Rules, at: str) -> Explanation:
    if at not in _PLACES:
        raise ValueError(f"at must be one of {', '.join(_PLACES)}; got {at!r}.")
    if at == "pixels":
        found = signals_at_pixels(model, params, image, targets, rules)
        return dataclasses.replace(found, relevance=found.relevance.sum(axis=-1))
    found = signals_at_blocks(model, params, image, targets, rules)
    maps = found.relevance[:, 0] if at == "tokens" else found.relevance.sum(axis=1)
    return dataclasses.replace(found, relevance=maps)
