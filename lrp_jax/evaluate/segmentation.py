"""Segmentation: whether maps find the pixels of the class."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax import metrics
from lrp_jax.evaluate.base import Protocol, register
from lrp_jax.evaluate.study import Figures, Measure, Record, Study
from lrp_jax.maps import heatmaps
from lrp_jax.model import Params


def measure(study: Study) -> Measure:
    """Counts of pixels, average precision and F1 of each map, on the host what scikit-learn computes."""
    each = study.dataset.masks_of_labels

    @jax.jit
    def compute(params: Params, images: Array, labels: Array, masks: Array) -> dict[str, Array]:
        e = study.explain(params, images, labels if each else None)
        large = heatmaps(e.relevance, (images.shape[1], images.shape[2]))
        counts = metrics.segmentation_counts(large, masks)
        foreground = counts.intersection[..., 1]
        return {
            "explained": e.targets,
            "clean": jax.vmap(metrics.hits)(e.logits, labels),
            **counts._asdict(),
            "f1": 2 * foreground / jnp.maximum(foreground + counts.union[..., 1], 1),
            "heat": large,
        } | ({"share": metrics.share_on_target(e.relevance, masks)} if each else {})

    def measure(images: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
        found = compute(study.params, images, labels, masks)
        heat = np.asarray(found.pop("heat"))
        precision = [list(map(metrics.average_precision, *pair)) for pair in zip(heat, masks, strict=True)]
        return found | {"average_precision": np.array(precision)}

    return measure


def values(record: Record) -> list[float]:
    """Counts of both sides, and means over the image's maps."""
    counts = np.array(record["intersection"]).sum(axis=0).tolist() + np.array(record["union"]).sum(axis=0).tolist()
    names = "average_precision", "f1", "share", "clean"
    means = [float(np.mean(record.get(name) or np.nan)) for name in names]
    return [float(sum(record["correct"])), float(sum(record["labeled"])), *counts, *means]


def of_means(means: np.ndarray) -> np.ndarray:
    """Pixel accuracy and mIoU of sums over the images, means of the rest."""
    correct, labeled, i0, i1, u0, u1, *rest = np.moveaxis(means, -1, 0)
    overlap = (i0 / np.maximum(u0, 1e-12) + i1 / np.maximum(u1, 1e-12)) / 2
    return np.stack([correct / labeled, overlap, *rest], axis=-1) * 100


segmentation = register(
    Protocol(
        name="segmentation",
        summary="whether maps find the pixels of the class: pixel accuracy, mIoU, mAP, mF1",
        about="""How well maps find the pixels of the class (Chefer et al. 2021, section 4, table 2).

The map of each label where every label has its mask, else of the predicted class, is enlarged bilinearly and cut at its
mean; mAP is of the map itself. Pixel accuracy and mIoU are of sums over the images, mAP and mF1 means over them. Where
every label has its mask, also the share on the target: see lrp_jax.metrics.share_on_target.""",
        needs=("masks",),
        measure=measure,
        figures=lambda study: Figures(
            ["pixel accuracy", "mIoU", "mAP", "mF1", "share on target", "clean accuracy"], values, of_means
        ),
        modules=("sklearn.metrics",),
    )
)
