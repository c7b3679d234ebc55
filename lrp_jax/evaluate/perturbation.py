"""Perturbation: what becomes of a prediction as pixels are removed."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax import metrics
from lrp_jax.evaluate.base import Option, Protocol, register
from lrp_jax.evaluate.study import Curves, Figures, Measure, Record, Study
from lrp_jax.maps import heatmaps
from lrp_jax.model import Params
from lrp_jax.walk import classify

#: Parts of the pixels that are removed.
FRACTIONS = tuple(step / 10 for step in range(11))
_SERIES = ("positive", "negative", "insertion")
_KINDS = ("accuracy", "probability")


def measure(study: Study) -> Measure:
    """Hits and probabilities of each label, step by step."""
    model, method_labels = study.model, study.labels
    if method_labels.num_classes == 1 or not method_labels.has_probabilities:
        outputs = "one output" if method_labels.num_classes == 1 else "outputs that are numbers"
        raise ValueError(
            f"perturbation measures accuracy and probability of a class, which mean nothing for a model of {outputs}."
        )
    removed = jnp.asarray(study.preprocessing.normalise(np.zeros(study.preprocessing.channels, np.float32)))

    def one(params: Params, image: Array, heat: Array, labels: Array, label: Array) -> tuple[Array, Array]:
        counts = jnp.asarray([int(heat.size * f) for f in FRACTIONS])
        blurred_image, run = blurred(image), partial(metrics.perturbed_logits, model, params)
        first, last = metrics.ranks(heat), metrics.ranks(-heat)
        series = [
            run(image, first, counts, removed),
            run(image, last, counts, removed),
            run(blurred_image, first, counts, image),
        ]
        logits = jnp.stack(series)  # [series, T, C]
        return metrics.is_hit(logits, label, len(labels)), method_labels.probabilities(logits)[..., label]

    @jax.jit
    def compute(params: Params, images: Array, labels: Array, _: Array) -> dict[str, Any]:
        targets = labels
        if study.options["explained"] == "predicted":
            targets = jax.vmap(matched)(jax.vmap(partial(classify, model, params))(images), labels)
        large = heatmaps(study.explain(params, images, targets).relevance, (images.shape[1], images.shape[2]))
        of_labels = jax.vmap(partial(one, params), in_axes=(None, 0, None, 0))
        hits, chances = jax.vmap(of_labels)(images, large, labels, labels)
        return {
            "explained": targets,
            "labels": labels,
            "clean": hits[:, :, 0, 0],
            "hits": {name: hits[:, :, s].astype(int) for s, name in enumerate(_SERIES)},
            "probability": {name: chances[:, :, s] for s, name in enumerate(_SERIES)},
        }

    return partial(compute, study.params)


def matched(logits: Array, labels: Array) -> Array:
    """The classes of the m largest logits, in the places of the labels ``[m]`` that they are; others fill the rest."""
    _, top = jax.lax.top_k(logits, len(labels))
    right = jnp.isin(labels, top)
    wrong_first = top[jnp.argsort(jnp.isin(top, labels), stable=True)]
    return jnp.where(right, labels, wrong_first[jnp.cumsum(~right) - 1])


def blurred(image: Array) -> Array:
    """The image ``[H, W, channels]`` blurred: a Gaussian of 11 pixels, standard deviation 5, edges repeated."""
    weights = np.exp(-((np.arange(11) - 5) ** 2) / 50)
    kernel = jnp.asarray(weights / weights.sum(), image.dtype)
    for axis in (0, 1):
        widths = [(5, 5) if a == axis else (0, 0) for a in range(3)]
        padded, length = jnp.pad(image, widths, mode="edge"), image.shape[axis]
        shifted = jnp.stack([jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(11)])
        image = jnp.tensordot(kernel, shifted, axes=1)
    return image


def values(record: Record) -> list[float]:
    """The curves of an image, means over its labels."""
    curves = [np.mean(record[kind][name], axis=0) for kind in ("hits", "probability") for name in _SERIES]
    return np.concatenate(curves).tolist()


def of_means(means: np.ndarray) -> np.ndarray:
    """The areas under the curves."""
    curves = means.reshape(*means.shape[:-1], len(_KINDS), len(_SERIES), len(FRACTIONS))
    until_90 = metrics.area_under_curve(curves[..., :-1])
    whole = metrics.area_under_curve(curves[..., 1, :, :])
    areas = [until_90[..., kind, series] for kind in (0, 1) for series in (0, 1)]
    return np.stack([*areas, whole[..., 0], whole[..., 2], curves[..., 0, 0, 0] * 100], axis=-1)


_FIGURES = (
    *("positive AUC", "negative AUC", "positive AUC, probability", "negative AUC, probability"),
    *("deletion", "insertion", "clean accuracy"),
)

perturbation = register(
    Protocol(
        name="perturbation",
        summary="what becomes of a prediction as pixels are removed: areas under curves",
        about="""What becomes of a prediction as pixels are removed (Chefer et al. 2021, section 4, table 1).

Pixels are set to 0 before normalisation, the most relevant first (positive) or the least (negative), 10% to 90%; a
figure is the area under the curve of accuracy, from that of whole images on, in percent: 90 at most. A hit is a label
among as many of the largest logits as the image has labels: of a digit scene, among the top two. Also the areas under
the mean probability of the label; and deletion and insertion (Petsiuk et al. 2018), the areas from 0% to 100%, where
insertion puts pixels, most relevant first, onto a blurred image.

Option explained: the map is of the predicted class, or of the true one; with m labels, of the m largest logits, each
set against the label that it is or, where it is none, against one that was missed.""",
        needs=("labels",),
        measure=measure,
        figures=lambda study: Figures(_FIGURES, values, of_means),
        curves=Curves(
            at=[100 * f for f in FRACTIONS],
            axis="pixels removed or inserted, %",
            panels={kind: f"{kind} of the label" for kind in _KINDS},
            names=[f"{name} {kind}" for kind in _KINDS for name in _SERIES],
        ),
        options={"explained": Option("predicted", "class", ("predicted", "true"))},
    )
)
