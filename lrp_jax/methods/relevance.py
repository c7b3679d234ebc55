"""Maps that are made of relevance: at the attention, combined with its gradient or not, and at the pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.methods.base import check_block, check_truths, patches, register, rollout, row
from lrp_jax.model import Model, Params, ask, readout
from lrp_jax.probe import check_rules
from lrp_jax.rules import GRADIENT, Rules, named
from lrp_jax.rules.paired import vjp
from lrp_jax.signals import Explanation, directions, predicted, signals_at_pixels, walk
from lrp_jax.walk import relevance_of


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, equations 13 and 14")
def transformer_attribution(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    rules: str | Rules = "stable",
) -> Explanation:
    """Rollout of (G * R)+, the gradient times the relevance of the attention.

    With ``A_l = mean over heads of (G_l * R_l)+``, the map is the row of ``(I + A_{L-1}) ... (I + A_s)``.

    Options:
        start_layer: s, the first block that enters the product: 0 in the paper's definition, 1 in its evaluation.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set: ``"stable"``, the paper's but for
            divisions that float32 does not blur, or ``"chefer"``, the paper's to the letter.

    Raises:
        ValueError: ``start_layer`` is not a block, or ``rules`` is unknown.
    """
    check_block(model, params, image, start_layer=start_layer)
    read = readout(model, params, image)
    fold = rollout(lambda maps, g, r: jnp.maximum(g * r, 0))
    found = walk(model, params, image, targets, GRADIENT, rules, attention=fold, state=read, start=start_layer)
    return Explanation(found.logits, found.targets, patches(found.attention[0], model))


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, section 4; Voita et al. 2019")
def partial_lrp(
    model: Model, params: Params, image: Array, targets: Array | None, *, rules: str | Rules = "baseline"
) -> Explanation:
    """The row of R+, the relevance of the last block's attention, mean over heads.

    Options:
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Raises:
        ValueError: ``rules`` is unknown.
    """
    return single_block(model, params, image, targets, gradient=False, rules=rules)


@register(
    class_specific=True, resolution="pixel", reference="Bach et al. 2015; z-B rule: Montavon et al. 2017", signed=True
)
def full_lrp(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    rules: str | Rules = "baseline",
    stages: bool = False,
) -> Explanation:
    """Relevance propagated through all blocks to the pixels, summed over channels.

    Options:
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.
        stages: of a traced model, the maps at each resolution of its tokens or feature maps instead, a tuple.

    Raises:
        ValueError: ``rules`` is unknown, ``stages`` is no truth value, or the model is not traced.
    """
    check_truths(stages=stages)
    if stages:
        return _at_stages(model, params, image, targets, rules)
    pixels = signals_at_pixels(model, params, image, targets, rules)
    return dataclasses.replace(pixels, relevance=pixels.relevance.sum(axis=-1))


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, table 3 (without gradient)")
def lrp_rollout(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    rules: str | Rules = "baseline",
) -> Explanation:
    """Rollout of R+, the relevance of the attention: transformer attribution without the gradient.

    Options:
        start_layer: the first block that enters the product.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set. The ablation of the paper's
            table 3 has those of transformer attribution.

    Raises:
        ValueError: ``start_layer`` is not a block, or ``rules`` is unknown.
    """
    check_block(model, params, image, start_layer=start_layer)
    read = readout(model, params, image)
    fold = rollout(lambda maps, r: jnp.maximum(r, 0))
    found = walk(model, params, image, targets, rules, attention=fold, state=read, start=start_layer)
    return Explanation(found.logits, found.targets, patches(found.attention[0], model))


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, table 3 (one block)")
def single_block(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    block: int = -1,
    gradient: bool = True,
    rules: str | Rules = "stable",
) -> Explanation:
    """The row of one block's (G * R)+, mean over heads: transformer attribution without the rollout.

    Options:
        block: which block; negative: counted from the end. The paper has 1 and the last.
        gradient: whether the relevance is multiplied by the gradient.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Raises:
        ValueError: ``block`` is not a block, or not the last of a model that pools by attention, whose other blocks
            have no row that the head reads; ``gradient`` is not a truth value; or ``rules`` is unknown.
    """
    check_truths(gradient=gradient)
    layers = check_block(model, params, image, negative=True, block=block)
    read = readout(model, params, image)
    if read is None and block not in (-1, layers - 1):
        raise ValueError(f"block must be the last, {layers - 1}, of a model that pools by attention; got {block}.")
    sets = (GRADIENT, rules) if gradient else (rules,)
    fold = row(lambda maps, *sent: jnp.maximum(math.prod(sent), 0), read=read)
    found = walk(model, params, image, targets, *sets, attention=fold, start=block)
    return Explanation(found.logits, found.targets, patches(found.attention[0][:, 0].mean(axis=1), model))


def _at_stages(model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules) -> Explanation:
    """The relevance of each target at every stage of a traced model.

    Returns:
        Logits, targets, and a map ``[K, rows, cols]`` for each stage, a tuple.

    Raises:
        ValueError: ``rules`` is unknown, or the model is not traced.
    """
    segments, rules = ask(model, "segments"), named(rules)
    if not segments:
        raise ValueError("stages are those of a traced model of images (lrp_jax.trace).")
    places = [place for _, place in segments[:-1]]

    def run(rules: Rules, image: Array, added: Sequence[Array]) -> tuple[Array, list[Array]]:
        value, seen = image, []
        for (segment, _), more in itertools.zip_longest(segments, added):
            value = segment(params, image, value, rules)
            if more is not None:
                value = value + more
                seen.append(value)
        return value.reshape(-1), seen

    check_rules(model, params, image, rules)
    added = [place.zeros() for place in places]
    logits, pull, seen = vjp(run, [rules], image, added)
    targets = predicted(logits, targets)
    _, to_places = jax.vmap(pull)(directions(targets, logits))
    sent = [relevance_of(at[:, 0], value[None], rules) for at, value in zip(to_places, seen, strict=True)]
    maps = tuple(jax.vmap(place.maps)(at) for place, at in zip(places, sent, strict=True))
    return Explanation(logits, targets, maps)
