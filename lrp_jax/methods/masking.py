"""Maps that are made of forward passes on covered images: of any model, which stays a black box."""

from __future__ import annotations

import functools
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.methods.base import check_counts, check_seed, colour, is_real, register, sizes, weighted_sum
from lrp_jax.model import Model, Params
from lrp_jax.signals import Explanation, directions, predicted
from lrp_jax.walk import classify

Score = Literal["logit", "softmax", "sigmoid"]


@register(class_specific=True, resolution="pixel", reference="Zeiler and Fergus 2014, section 4.2", signed=True)
def occlusion(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    baseline: float | tuple[float, ...] = 0.0,
    chunk: int = 16,
) -> Explanation:
    """By how much the logit falls when a window is covered, mean over the windows that cover a pixel.

    Options:
        window: edge of the window, or its rows and columns, in pixels; None: two patches, or the image.
        stride: step of the window, or its rows and columns, in pixels; None: one patch.
        baseline: what the window is filled with, one value or one for each channel, in the normalised scale: 0 is the
            mean colour.
        chunk: how many windows of an image are run at once; memory grows with it.

    Raises:
        ValueError: an option is out of range.
    """
    check_counts(chunk=chunk)
    size = image.shape[:-1]
    patch = tuple(max(s // g, 1) for s, g in zip(size, model.grid, strict=True))
    default = patch if len(size) == 1 else tuple(min(2 * p, s) for p, s in zip(patch, size, strict=True))
    windows, strides = sizes("window", window, default), sizes("stride", stride, patch)  # a token is a patch already
    if any(w > s or w < d for w, s, d in zip(windows, size, strides, strict=True)):
        raise ValueError(
            f"window must be at most the image, {size}, and at least the stride, {strides}; got {windows}."
        )
    base = colour(baseline, image)
    logits = classify(model, params, image)
    targets = predicted(logits, targets)
    weights = directions(targets, logits)
    # Windows that reach over the edge are cut there.
    starts = [np.arange(math.ceil((s - w) / d) + 1) * d for s, w, d in zip(size, windows, strides, strict=True)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, len(size))

    def fall(corner: Array) -> Array:
        inside = [(jnp.arange(s) >= c) & (jnp.arange(s) < c + w) for s, c, w in zip(size, corner, windows, strict=True)]
        covered = functools.reduce(jnp.logical_and, jnp.meshgrid(*inside, indexing="ij"))
        difference = weights @ (logits - classify(model, params, jnp.where(covered[..., None], base, image)))
        # The last map counts the windows.
        return jnp.multiply.outer(jnp.append(difference, jnp.ones((), logits.dtype)), covered.astype(logits.dtype))

    *falls, covering = weighted_sum(fall, jnp.asarray(corners), np.ones(len(corners)), chunk)
    return Explanation(logits, targets, jnp.stack(falls) / covering[None])


@register(class_specific=True, resolution="pixel", reference="Petsiuk et al. 2018, equation 6")
def rise(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    score: Score = "softmax",
    seed: int = 0,
    chunk: int = 16,
) -> Explanation:
    """Mean of random masks, weighted by the target's score under the mask.

    A mask is a grid of ``cells * cells`` zeros and ones, enlarged bilinearly and shifted at random by up to a cell
    (:func:`rise_mask`); the image is multiplied by it.

    Options:
        masks: number of masks, the same for every image.
        cells: edge of the grid.
        keep: probability that a cell is kept.
        score: ``"softmax"`` (the paper's) or ``"sigmoid"`` of the logits, or the logit itself.
        seed: of the masks.
        chunk: how many masks of an image are run at once; memory grows with it.

    Raises:
        ValueError: an option is out of range.
    """
    check_counts(masks=masks, cells=cells, chunk=chunk)
    check_seed(seed)
    if not is_real(keep) or not 0 < keep < 1:
        raise ValueError(f"keep must be a probability between 0 and 1, got {keep!r}.")
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}; got {score!r}.")
    squash = {"logit": lambda x: x, "softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[score]
    logits = classify(model, params, image)
    if score == "softmax" and logits.size == 1:
        raise ValueError("score must be 'logit' or 'sigmoid' for a model of one output, whose softmax is always 1.")
    targets = predicted(logits, targets)
    weights = directions(targets, logits)

    def weighted(i: Array) -> Array:
        mask = rise_mask(jax.random.fold_in(jax.random.key(seed), i), image.shape[:-1], cells, keep).astype(image.dtype)
        scores = weights @ squash(classify(model, params, image * mask[..., None]))
        return jnp.multiply.outer(scores, mask)

    return Explanation(
        logits, targets, weighted_sum(weighted, jnp.arange(masks), np.full(masks, 1 / (masks * keep)), chunk)
    )


def rise_mask(key: Array, size: tuple[int, ...], cells: int, keep: float) -> Array:
    """A random mask of RISE, ``[H, W]`` in [0, 1], or of tokens, ``[N]``.

    Args:
        key: of the draws.
        size: (H, W), or (N,).
        cells: edge of the grid of zeros and ones.
        keep: probability of a one.

    Returns:
        The mask.
    """
    cell = tuple(math.ceil(s / cells) for s in size)
    of_cells, of_shift = jax.random.split(key)
    grid = jax.random.bernoulli(of_cells, keep, (cells,) * len(size)).astype(jnp.float32)
    large = jax.image.resize(grid, tuple((cells + 1) * c for c in cell), "bilinear")
    shift = jax.random.randint(of_shift, (len(size),), 0, jnp.asarray(cell))
    return jax.lax.dynamic_slice(large, shift, size)
