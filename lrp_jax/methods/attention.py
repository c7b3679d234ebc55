"""Maps that are made of attention, without relevance."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lrp_jax.maps import unit_range
from lrp_jax.methods.base import check_block, check_truths, for_each, patches, register, rollout, row
from lrp_jax.model import Model, Params, classify, number_of_layers, readout
from lrp_jax.signals import Explanation, gradients_of_blocks, predicted, signals_at_attention


@register(class_specific=False, resolution="patch", reference="Chefer et al. 2021, section 4")
def raw_attention(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """The row of the last block's attention, mean over heads."""
    number_of_layers(model, params, image)
    read = readout(model, params, image)
    logits, attention = classify(model, params, image)
    targets = predicted(logits, targets)
    return Explanation(logits, targets, for_each(targets, patches(row(attention[-1].mean(axis=0), read), model)))


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
    logits, attention = classify(model, params, image)
    targets = predicted(logits, targets)
    relevance = patches(rollout(attention[None, start_layer:].mean(axis=2), read, scaled=True), model)
    return Explanation(logits, targets, for_each(targets, relevance[0]))


@register(class_specific=True, resolution="patch", reference="Selvaraju et al. 2017, on attention: Chefer et al. 2021")
def attention_gradcam(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """GradCAM with the last block's heads for channels: their rows, weighted by the gradient's mean.

    With a and g the rows of A and G at the patches, the map is ``(mean over heads of (mean g) a)+``, scaled to [0, 1].
    """
    number_of_layers(model, params, image)
    read = readout(model, params, image)
    signals = signals_at_attention(model, params, image, targets, None, start_layer=-1)
    gradient = patches(row(signals.gradient[:, 0], read), model)
    weight = gradient.mean(axis=tuple(range(2, gradient.ndim)), keepdims=True)  # [K, h, 1, 1]
    cam = jnp.maximum((weight * patches(row(signals.attention[-1], read), model)[None]).mean(axis=1), 0)
    return Explanation(signals.logits, signals.targets, unit_range(cam.reshape(len(cam), 1, -1)).reshape(cam.shape))


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
    signals = signals_at_attention(model, params, image, targets, None, start_layer=start_layer)
    matrices = jnp.maximum(signals.gradient * signals.attention[None, start_layer:], 0).mean(axis=2)
    return Explanation(signals.logits, signals.targets, patches(rollout(matrices, read), model))


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
    found = gradients_of_blocks(model, params, image, targets, start_layer=start_layer, cosine=cosine)
    relevance = jnp.maximum(found.relevance, 0).mean(axis=(2, 3)).sum(axis=1)
    return Explanation(found.logits, found.targets, patches(relevance, model))
