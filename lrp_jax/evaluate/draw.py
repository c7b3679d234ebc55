"""Pictures of what a run found, and of the maps that it measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lrp_jax.attribution import explain
from lrp_jax.datasets import Dataset, Sample
from lrp_jax.evaluate.base import PROTOCOLS
from lrp_jax.evaluate.study import Summary
from lrp_jax.files import needs, replacing
from lrp_jax.labels import Labels
from lrp_jax.maps import centres, placed
from lrp_jax.methods import METHODS
from lrp_jax.model import Model, Params
from lrp_jax.pictures import MARK, Preprocessing, described, panel, save


def draw_curves(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Draw the curves of a run.

    Args:
        summary: of a run that has curves.
        path: the picture to write.

    Raises:
        ValueError: it has none.
        ImportError: the extra ``evaluate`` is not installed.
    """
    protocol = PROTOCOLS[summary.settings["protocol"]]
    curves = protocol.curves
    if curves is None:
        raise ValueError(f"{protocol.name} has no curves.")
    figure = needs("matplotlib.figure", extra="evaluate").Figure(figsize=(9, 3.5), layout="constrained")
    for (ending, title), axes in zip(
        curves.panels.items(), figure.subplots(1, len(curves.panels), sharey=True, squeeze=False)[0], strict=True
    ):
        for name in (name for name in curves.names if name.endswith(ending)):
            axes.plot(curves.at, summary.curves[name], marker=".", label=name.removesuffix(ending).strip())
        axes.set(title=title, xlabel=curves.axis, ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{summary.settings['method']}, {summary.settings['dataset']}, {summary.images} images")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata=MARK)


def draw_maps(
    model: Model,
    params: Params,
    dataset: Dataset,
    path: str | os.PathLike[str],
    *,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: Labels | None = None,
    images: int = 4,
) -> None:
    """Draw the first images that can be read, a row each, with the maps of their labels or of the predicted class.

    Args:
        model: the model.
        params: its parameters.
        dataset: images.
        path: the picture to write.
        method: a name in :data:`lrp_jax.METHODS`.
        options: the method's own.
        preprocessing: how the images were made of pictures; None: as ``model.config`` says, of a :class:`lrp_jax.ViT`.
        labels: what the logits stand for; None: likewise.
        images: how many rows; they are explained one by one.

    Raises:
        ValueError: no image can be read.
    """
    preprocessing, labels = described(model, preprocessing, labels)
    samples: list[Sample] = []
    for i in range(len(dataset)):
        with contextlib.suppress(OSError, ValueError):
            samples.append(dataset.sample(i))
        if len(samples) == images:
            break
    if not samples:
        raise ValueError(f"no image of {dataset.name} can be read.")
    rows = []
    for sample in samples:
        targets = None if sample.labels is None else np.asarray(sample.labels)[None]
        e = explain(model, params, sample.image[None], targets, method=method, **dict(options or {}))
        captions = [str(labels.caption(target, np.asarray(e.logits[0]))) for target in np.asarray(e.targets[0])]
        maps = placed(e.relevance[0], preprocessing.image_shape[:2], centres(model))
        picture, signed = preprocessing.picture(sample.image), METHODS[method].signed
        rows.append(panel(picture, maps, captions, signed=signed, title=method))
    out = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for b, row in enumerate(rows):
        out.paste(row, (0, b * row.height))
    with replacing(path) as temporary:
        save(out, temporary)
