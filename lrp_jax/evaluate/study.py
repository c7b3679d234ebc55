"""What a protocol of evaluation is given, and what comes of it.

Letters: B images, m labels an image (1, or 2 for digit scenes), C classes, T steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrp_jax.attribution import explain
from lrp_jax.datasets import Dataset
from lrp_jax.labels import Labels
from lrp_jax.maps import centres, placed
from lrp_jax.model import Model, Params
from lrp_jax.pictures import Preprocessing
from lrp_jax.signals import Explanation

#: What was found of an image, as JSON has it.
Record = dict[str, Any]
#: ``(images [B, H, W, channels], labels [B, m], masks [B, k, H, W])`` to a mapping of arrays ``[B, ...]``, or
#: of mappings of them. Under ``"clean"`` it has whether each label is a hit, ``[B, m]``.
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a summary, with its 95% interval (bootstrap over images)."""

    value: float
    low: float
    high: float


class Measured(NamedTuple):
    """What figures are made of.

    Attributes:
        images: the keys of the images.
        numbers: ``[n, D]``, of each image.
        figures: how figures come from their means.
        options: the names of the protocol's options.
    """

    images: Sequence[str]
    numbers: np.ndarray
    figures: Figures
    options: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run found.

    Attributes:
        settings: what was run.
        figures: by name.
        curves: by name; empty where a protocol has none.
        images: how many were evaluated.
        skipped: name and reason of those that were not.
        measured: what the figures are made of, to be compared with another run by :func:`difference`.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, Figure]
    curves: Mapping[str, list[float]]
    images: int
    skipped: Mapping[str, str]
    measured: Measured = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Study:
    """What a protocol measures: a model, and a method that explains it, over a dataset.

    Attributes:
        model: the model.
        params: its parameters.
        dataset: the images.
        method: a name in :data:`lrp_jax.METHODS`.
        method_options: the method's own.
        preprocessing: how images were made of pictures.
        labels: what the logits stand for.
        options: the protocol's own.
    """

    model: Model
    params: Params
    dataset: Dataset
    method: str
    method_options: Mapping[str, Any]
    preprocessing: Preprocessing
    labels: Labels
    options: Mapping[str, Any]

    def explain(self, params: Params, images: ArrayLike, targets: ArrayLike | None) -> Explanation:
        """Explain images by the method that is evaluated, with some parameters of the model.

        Maps of patches that do not fill the image are enlarged to it.
        """
        found = explain(self.model, params, images, targets, method=self.method, **self.method_options)
        height, width = jnp.shape(images)[1:3]
        return dataclasses.replace(found, relevance=placed(found.relevance, (height, width), centres(self.model)))


class Chosen(NamedTuple):
    """What a protocol chose of the dataset that it was given.

    Attributes:
        what: of it, as JSON has it.
        skipped: name and reason of the images that could not be read.
    """

    what: Any
    skipped: Mapping[str, str]


class Preparation(NamedTuple):
    """How a protocol makes what it measures of the dataset that it is given.

    Attributes:
        choose: ``(study, batch_size, progress)`` to what is chosen; kept in the folder, so that it is done once.
        compose: the dataset and ``Chosen.what`` to the dataset that is measured.
    """

    choose: Callable[[Study, int, Callable[[int, int], None]], Chosen]
    compose: Callable[[Dataset, Any], Dataset]


class Figures(NamedTuple):
    """How figures come from the records of a run.

    Attributes:
        names: of the figures.
        values: the numbers of a record that are averaged over the images.
        of_means: what of their means ``[..., values]`` is reported, ``[..., names]``.
    """

    names: Sequence[str]
    values: Callable[[Record], list[float]]
    of_means: Callable[[np.ndarray], np.ndarray]


class Curves(NamedTuple):
    """The curves that the means of a run are made of, one after the other, and how they are drawn.

    Attributes:
        at: where on the axis their values stand.
        axis: its title.
        panels: titles of the pictures, by what the names of their curves end in.
        names: of the curves.
    """

    at: Sequence[float]
    axis: str
    panels: Mapping[str, str]
    names: Sequence[str]
