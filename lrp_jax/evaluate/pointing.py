"""Pointing: whether maps lie on the image of the class that is asked, of several images in one picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax import metrics
from lrp_jax.datasets import Composites, disjoint_groups
from lrp_jax.evaluate.base import Option, Protocol, register
from lrp_jax.evaluate.results import batches, check_samples, stacked
from lrp_jax.evaluate.study import Chosen, Figures, Measure, Preparation, Record, Study
from lrp_jax.model import Params
from lrp_jax.walk import classify


def choose(study: Study, batch_size: int, progress: Callable[[int, int], None]) -> Chosen:
    """Classify the images, and group those that are right by different classes."""
    dataset, cells, classes = study.dataset, study.options["cells"], study.labels.num_classes
    if (needed := cells * dataset.labels_per_image) > classes:
        raise ValueError(
            f"{cells} images of {dataset.name} are of {needed} different classes, the model has {classes}."
        )

    @jax.jit
    def all_hit(params: Params, images: Array, labels: Array) -> Array:
        logits = jax.vmap(partial(classify, study.model, params))(images)
        return jax.vmap(metrics.hits)(logits, labels).all(axis=-1)

    right: dict[int, list[int]] = {}
    skipped: dict[str, str] = {}
    total = len(dataset)
    progress(0, total)
    for start, batch, errors in batches(dataset, range(0, total, batch_size), batch_size):
        check_samples(dataset, batch, ["labels"], classes, "pointing")
        if any(batch):
            images, labels, _ = stacked(dataset, batch, batch_size)
            hit = np.asarray(all_hit(study.params, images, labels))
            right |= {start + b: labels[b].tolist() for b, sample in enumerate(batch) if sample and hit[b]}
        skipped |= {dataset.key(start + b): str(errors[b]) for b, sample in enumerate(batch) if not sample}
        progress(start + len(batch), total)
    numbers = list(right)
    groups = disjoint_groups(list(right.values()), cells, seed=study.options["seed"])
    if not groups:
        seen = len(set().union(*right.values()))
        raise ValueError(
            f"pointing needs {cells} images of different classes that the model gets right; of the {total} images of "
            f"{dataset.name}, {len(right)} are right, of {seen} classes, and {len(skipped)} cannot be read."
        )
    return Chosen([[numbers[i] for i in group] for group in groups], skipped)


def measure(study: Study) -> Measure:
    """Shares of each map on its own cell, and of the other cells' maps on that one."""
    if study.labels.num_classes < 2 or study.labels.regression:
        found = "one" if study.labels.num_classes < 2 else "outputs that are numbers"
        raise ValueError(f"pointing compares the maps of different classes, the model has {found}.")
    cells = study.options["cells"]

    @jax.jit
    def compute(params: Params, images: Array, labels: Array, masks: Array) -> dict[str, Array]:
        e = study.explain(params, images, labels)
        each = labels.shape[1] // cells
        own = np.arange(labels.shape[1]) // each  # the cell of each label
        on = metrics.shares(e.relevance, masks[:, ::each])[:, :, own]  # of a label's map, on a label's cell
        others = jnp.asarray(own[:, None] != own, on.dtype)
        positive = jnp.maximum(e.relevance, 0)
        largest = (positive == positive.max(axis=(-2, -1), keepdims=True)).astype(on.dtype)
        pointed = metrics.shares(largest, masks)
        return {
            "labels": labels,
            "asked": jnp.diagonal(on, axis1=1, axis2=2),
            "other": jnp.einsum("bjk,jk->bk", on, others) / others.sum(axis=0)[None],
            "pointed": jnp.diagonal(pointed, axis1=1, axis2=2),
            "clean": jax.vmap(metrics.hits)(e.logits, labels),
        }

    return partial(compute, study.params)


def figures(study: Study) -> Figures:
    """Means over the labels of a picture, in percent."""

    def values(record: Record) -> list[float]:
        asked, other, pointed, clean = (float(np.mean(record[n])) for n in ("asked", "other", "pointed", "clean"))
        return [asked, other, pointed, 1 / study.options["cells"], clean]

    names = ["share asked", "share other", "pointing accuracy", "chance", "clean accuracy"]
    return Figures(names, values, lambda means: 100 * means)


pointing = register(
    Protocol(
        name="pointing",
        summary="whether maps lie on the image of the class, of several images in one picture",
        about="""Whether maps lie on the image of the class that is asked, of several in one picture.

The grid pointing game, after Boehle et al. 2021 (Convolutional Dynamic Alignment Networks for Interpretable
Classifications). The images that the model classifies right are put together, two or four of different classes in a
picture of the model's own size (see lrp_jax.datasets.Composites), each in one picture at most; no masks are needed.
Figures are means over the classes of a picture, then over the pictures, in percent:

- share asked: of the positive relevance of a class's map, the part on the cell of that class;
- share other: the part on that same cell when a class of another cell is asked. A method that is not class-specific has
  the same share for both, which is chance. As the cells make up the picture, asked + (cells - 1) x other is 100;
- pointing accuracy: how often the largest value lies on the cell of the class;
- chance: 1 / cells, of each of these;
- clean accuracy: of the pictures, a hit being a class among as many of the largest logits as the picture has classes.

A patch that a border divides counts by its pixels, equal largest values by their parts, and a map without positive
relevance as one that is the same everywhere. Images of several labels are right if all are hits, and are put together
where they have no class in common; each of their classes is asked, and its cell is that of its image.

Option cells: 2 or 4 images in a picture; option seed: of the draws which images are put together.""",
        needs=("labels",),
        measure=measure,
        figures=figures,
        options={
            "cells": Option(4, "images in a picture", (2, 4)),
            "seed": Option(0, "of the draws which images are put together"),
        },
        prepare=Preparation(choose, Composites),
    )
)
