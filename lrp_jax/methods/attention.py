"""Maps that are made of attention, without relevance."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.maps import unit_range
from lrp_jax.methods.base import check_block, check_truths, for_each, patches, register, rollout, row
from lrp_jax.model import Model, Params, ask, check_tokens, readout
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.rules.paired import vjp
from lrp_jax.signals import Explanation, directions, look, predicted, walk
from lrp_jax.walk import Fold, entering, links_of, run


@register(class_specific=False, resolution="patch", reference="Chefer et al. 2021, section 4")
def raw_attention(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """The row of the last block's attention, mean over heads."""
    read = readout(model, params, image)
    fold = row(lambda maps: maps, read=read)
    logits, (found,) = look(model, params, image, fold, start=-1)
    targets = predicted(logits, targets)
    return Explanation(logits, targets, for_each(targets, patches(found[0].mean(axis=0), model)))


@register(class_specific=False, resolution="patch", reference="Abnar and Zuidema 2020, section 3")
def attention_rollout(
    model: Model, params: Params, image: Array, targets: Array | None, *, start_layer: int = 0
) -> Explanation:
    """The row of the product of all blocks' attention, mean over heads plus identity, rows scaled to sum 1.

    Options:
        start_layer: the first block that enters the product; 1 in the evaluation of Chefer et al.

    Raises:
        ValueError: ``start_layer`` is not a block.
    """
    check_block(model, params, image, start_layer=start_layer)
    read = readout(model, params, image)
    fold = rollout(lambda maps: maps, scaled=True)
    logits, (found,) = look(model, params, image, fold, state=read, start=start_layer)
    targets = predicted(logits, targets)
    return Explanation(logits, targets, for_each(targets, patches(found, model)))


@register(class_specific=True, resolution="patch", reference="Selvaraju et al. 2017, on attention: Chefer et al. 2021")
def attention_gradcam(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """GradCAM with the last block's heads for channels: their rows, weighted by the gradient's mean.

    With a and g the rows of A and G at the patches, the map is ``(mean over heads of (mean g) a)+``, scaled to [0, 1].
    """
    fold = row(lambda maps, g: g, lambda maps, g: maps, read=readout(model, params, image))
    found = walk(model, params, image, targets, GRADIENT, attention=fold, start=-1)
    gradient, attention = (patches(x[:, 0], model) for x in found.attention)
    weight = gradient.mean(axis=tuple(range(2, gradient.ndim)), keepdims=True)  # [K, h, 1, 1]
    cam = jnp.maximum((weight * attention).mean(axis=1), 0)
    return Explanation(found.logits, found.targets, unit_range(cam.reshape(len(cam), 1, -1)).reshape(cam.shape))


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021b, equations 5 and 6")
def generic_attention(
    model: Model, params: Params, image: Array, targets: Array | None, *, start_layer: int = 0
) -> Explanation:
    """Rollout of (G * A)+, the gradient times the attention: transformer attribution without relevance.

    *Generic Attention-Model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers*, for
    self-attention.

    Options:
        start_layer: the first block that enters the product.

    Raises:
        ValueError: ``start_layer`` is not a block.
    """
    check_block(model, params, image, start_layer=start_layer)
    read = readout(model, params, image)
    fold = rollout(lambda maps, g: jnp.maximum(g * maps, 0))
    found = walk(model, params, image, targets, GRADIENT, attention=fold, state=read, start=start_layer)
    return Explanation(found.logits, found.targets, patches(found.attention[0], model))


@register(class_specific=True, resolution="patch", reference="Bousselham et al. 2025, section 3")
def legrad(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    cosine: bool = False,
) -> Explanation:
    """LeGrad: the gradient by each block's attention of what the head says of that block's mean token.

    With s_l the logit of the target where all tokens are the mean of those that leave block l, the map is the sum over
    blocks of the mean over heads and queries of ``(d s_l / d A_l)+``.

    Options:
        start_layer: the first block that enters the sum.
        cosine: whether the logits of a block are scaled to length 1, as the authors do for CLIP.

    Raises:
        ValueError: an option is out of range, or the model does not say where its blocks are.
    """
    check_truths(cosine=cosine)
    check_block(model, params, image, start_layer=start_layer)
    check_tokens(model)
    params = ask(model, "bound")(params, image)

    def read(tokens: Array) -> Array:
        logits = model.read(params, jnp.broadcast_to(tokens.mean(axis=0), tokens.shape), GRADIENT)
        if not cosine:
            return logits
        square = (logits * logits).sum()
        return jnp.where(square > 0, logits * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), logits)

    def of_keys(state: Any, maps: Array, sent: tuple[Array, ...], rows: Array | None) -> tuple[Array, ...]:
        return (jnp.maximum(sent[0], 0).mean(axis=0).sum(axis=0) / maps.shape[-1],)

    fold = Fold(of_keys, lambda heads, tokens: ((tokens,),))
    links = links_of(model, params, image, [GRADIENT], attention=fold, start=start_layer, whole=True)
    links = links._replace(pooling=False, apart=read, entering=entering(model, params, image))

    def said(rules: Rules, given: tuple[Array, ...]) -> tuple[Array, Array]:
        logits, (total,) = run(model, params, image, rules, links._replace(attention=given))
        return total, logits

    _, pull, logits = vjp(said, [GRADIENT], links.attention, copies=True)
    targets = predicted(logits, targets)
    ((found,),) = jax.vmap(pull)(directions(targets, logits))
    return Explanation(logits, targets, patches(found[:, 0].sum(axis=1), model))
