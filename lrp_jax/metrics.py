"""Numbers that tell how good maps are: segmentation, perturbation, rank correlation, and their uncertainty.

Maps and masks are ``[..., H, W]`` on the grid of pixels; :func:`lrp_jax.heatmaps` brings maps there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.files import needs
from lrp_jax.maps import unit_range
from lrp_jax.model import Model, Params
from lrp_jax.walk import classify


class Counts(NamedTuple):
    """Pixels of a segmentation; the last axis of two is background and foreground.

    Attributes:
        correct: pixels of the right side, ``[...]``.
        labeled: pixels, ``[...]``.
        intersection: in the map's and the mask's side, ``[..., 2]``.
        union: in either, ``[..., 2]``.
    """

    correct: Array
    labeled: Array
    intersection: Array
    union: Array


def segmentation_counts(relevance: ArrayLike, mask: ArrayLike) -> Counts:
    """Pixels that maps put where a mask has them: foreground is what lies above the map's mean.

    As the evaluation of Chefer et al. 2021, section 4; pixel accuracy is ``correct / labeled`` and mIoU the mean of
    ``intersection / union`` over the two sides, both of sums over the images.

    Args:
        relevance: ``[..., H, W]``.
        mask: bool ``[..., H, W]``.

    Returns:
        The counts.

    Raises:
        ValueError: the shapes differ.
    """
    relevance, mask = unit_range(relevance), jnp.asarray(mask, bool)
    if relevance.shape != mask.shape:
        raise ValueError(f"relevance and mask must have one shape, got {relevance.shape} and {mask.shape}.")
    found = relevance > relevance.mean(axis=(-2, -1), keepdims=True)
    sides = jnp.stack([~found, found]), jnp.stack([~mask, mask])
    intersection = (sides[0] & sides[1]).sum(axis=(-2, -1))
    union = (sides[0] | sides[1]).sum(axis=(-2, -1))
    labeled = jnp.full(mask.shape[:-2], mask.shape[-2] * mask.shape[-1])
    return Counts(intersection.sum(axis=0), labeled, jnp.moveaxis(intersection, 0, -1), jnp.moveaxis(union, 0, -1))


def average_precision(relevance: ArrayLike, mask: ArrayLike) -> float:
    """Average precision of both sides together, as in the evaluation of Chefer et al. 2021.

    The scores are the map in [0, 1] for the foreground and 1 minus it for the background, the answers mask and its
    complement; precision and recall are scikit-learn's.

    Args:
        relevance: ``[H, W]``.
        mask: bool ``[H, W]``.

    Returns:
        The average precision, 0 to 1.
    """
    metrics = needs("sklearn.metrics", extra="evaluate")
    scores, answers = np.asarray(unit_range(relevance)).ravel(), np.asarray(mask, bool).ravel()
    both = np.concatenate([1 - scores, scores]), np.concatenate([~answers, answers])
    return float(metrics.average_precision_score(both[1], both[0]))


def share_on_target(relevance: ArrayLike, masks: ArrayLike) -> Array:
    """Of the relevance that lies on any class of an image, the part that lies on the map's own: 1 / K for a chance map.

    Negative relevance counts as none. A cell of the map is on a mask where any of its pixels is.

    Args:
        relevance: ``[..., K, rows, cols]``, a map for each class.
        masks: bool ``[..., K, H, W]``, of the same classes; H and W are multiples of rows and cols.

    Returns:
        ``[..., K]``, 0 to 1; 0 where no relevance lies on any.

    Raises:
        ValueError: the shapes do not go together.
    """
    relevance, masks = jnp.maximum(jnp.asarray(relevance), 0), jnp.asarray(masks, bool)
    *batch, rows, cols = relevance.shape
    height, width = masks.shape[-2:]
    if masks.shape[:-2] != tuple(batch) or not batch or height % rows or width % cols:
        raise ValueError(
            f"relevance must be [..., K, rows, cols] and masks [..., K, H, W], multiples of rows and cols; got "
            f"{relevance.shape} and {masks.shape}."
        )
    cells = masks.reshape(*batch, rows, height // rows, cols, width // cols).any(axis=(-3, -1))
    on = jnp.einsum("...krc,...jrc->...kj", relevance, cells.astype(relevance.dtype))  # of map k, on class j
    total = on.sum(axis=-1)
    return jnp.diagonal(on, axis1=-2, axis2=-1) / jnp.where(total > 0, total, 1)


def shares(relevance: ArrayLike, masks: ArrayLike) -> Array:
    """Of the positive relevance of each map, the part that lies on each mask.

    A patch's relevance lies evenly on its pixels, so that a border through a patch divides it. A map without positive
    relevance says nothing of places, and counts as one that is the same everywhere.

    Args:
        relevance: ``[..., K, rows, cols]``.
        masks: bool ``[..., M, H, W]``.

    Returns:
        ``[..., K, M]``, 0 to 1.

    Raises:
        ValueError: the leading axes differ.
    """
    relevance, masks = jnp.asarray(relevance), jnp.asarray(masks, bool)
    if relevance.ndim < 3 or relevance.shape[:-3] != masks.shape[:-3]:
        raise ValueError(
            f"relevance must be [..., K, rows, cols] and masks [..., M, H, W]; got {relevance.shape} and {masks.shape}."
        )
    positive = jnp.maximum(relevance, 0)
    positive = jnp.where(positive.max(axis=(-2, -1), keepdims=True) > 0, positive, 1)
    large = jax.image.resize(positive, (*positive.shape[:-2], *masks.shape[-2:]), "nearest")
    on = jnp.einsum("...khw,...mhw->...km", large, masks.astype(large.dtype))
    return on / large.sum(axis=(-2, -1))[..., None]


def ranks(relevance: Array) -> Array:
    """Each pixel's place in the order from the most to the least relevant, int ``[H, W]``; equals in reading order."""
    order = jnp.argsort(-relevance.ravel(), stable=True)
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(relevance.shape)


@partial(jax.jit, static_argnames="model")
def perturbed_logits(
    model: Model, params: Params, image: Array, ranks: Array, counts: ArrayLike, replacement: Array
) -> Array:
    """Logits of an image whose first pixels, in some order, are replaced.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``, normalised.
        ranks: int ``[H, W]``, the order.
        counts: int ``[T]``, how many are replaced at each step.
        replacement: what they are replaced with, an image or one colour ``[channels]``, normalised.

    Returns:
        ``[T, C]``.
    """

    def step(count: Array) -> Array:
        return classify(model, params, jnp.where((ranks < count)[..., None], replacement, image))

    return jax.lax.map(step, jnp.asarray(counts))


def hits(logits: Array, labels: Array) -> Array:
    """Whether each label of an image is among as many of the largest logits as it has labels.

    Args:
        logits: ``[C]``.
        labels: int ``[m]``.

    Returns:
        bool ``[m]``.
    """
    return jax.vmap(is_hit, in_axes=(None, 0, None))(logits, labels, len(labels))


def is_hit(logits: Array, label: Array, among: int) -> Array:
    """Whether a label is among so many of the largest logits.

    Args:
        logits: ``[..., C]``.
        label: int, a class.
        among: how many.

    Returns:
        bool ``[...]``.
    """
    return (logits > logits[..., label, None]).sum(axis=-1) < among


def area_under_curve(values: ArrayLike, *, step: float = 0.1) -> np.ndarray:
    """Area by the trapezoid rule, in percent.

    Args:
        values: ``[..., T]``, from the untouched image on, each in [0, 1].
        step: distance of two values.

    Returns:
        ``[...]``: 100 times the area.
    """
    return np.asarray(np.trapezoid(np.asarray(values), dx=step, axis=-1) * 100)


def spearman(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Spearman's rank correlation of maps; 0 where one is constant.

    Args:
        a: ``[..., rows, cols]``.
        b: the same shape.

    Returns:
        ``[...]``.
    """
    stats = needs("scipy.stats", extra="evaluate")

    def centred(x: ArrayLike) -> np.ndarray:
        places = stats.rankdata(np.reshape(x, (*np.shape(x)[:-2], -1)), axis=-1)
        return places - places.mean(axis=-1, keepdims=True)

    x, y = centred(a), centred(b)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.asarray((x * y).sum(axis=-1) / np.where(scale == 0, 1, scale))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of figures of a mean over images, by drawing the images anew (Efron 1979, percentile method).

    Args:
        statistic: from means ``[..., D]`` to figures ``[..., F]``.
        values: ``[n, D]``, of each image.
        draws: how many times.
        seed: of the draws.

    Returns:
        Lower and upper ends, ``[F]`` each.
    """
    n, rng = len(values), np.random.default_rng(seed)
    means = np.stack([rng.multinomial(n, np.full(n, 1 / n)) @ values / n for _ in range(draws)])
    low, high = np.quantile(statistic(means), [0.025, 0.975], axis=0)
    return low, high
