"""Protocols of evaluation: what one is, the table of them, and a run of one over a dataset."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import metrics
from lrp_jax.attribution import explain
from lrp_jax.checks import set_field
from lrp_jax.datasets import Dataset
from lrp_jax.evaluate.results import (
    append,
    batches,
    check_samples,
    chosen,
    lacks,
    read_chosen,
    resumed,
    stacked,
    write_summary,
)
from lrp_jax.evaluate.study import Curves, Figure, Figures, Measure, Measured, Preparation, Record, Study, Summary
from lrp_jax.files import needs
from lrp_jax.labels import Labels
from lrp_jax.methods import METHODS
from lrp_jax.model import Model, Params, digest, of_pictures
from lrp_jax.pictures import Preprocessing, described
from lrp_jax.version import __version__
from lrp_jax.walk import number_of_classes


class Option(NamedTuple):
    """An option of a protocol.

    Attributes:
        default: its value where none is given.
        what: what it is, for help.
        choices: the values that it may have, of one type; empty: an integer of at least 0.
    """

    default: Any
    what: str
    choices: Sequence[Any] = ()


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to evaluate a method, which can be called.

    Attributes:
        name: in :data:`PROTOCOLS`.
        summary: what it measures, a line for help.
        about: what its figures are and where they come from; its ``__doc__``.
        needs: what of a sample there must be, of ``"labels"`` and ``"masks"``.
        measure: what measures batches; refuses by a ValueError what it cannot measure.
        figures: what is reported.
        curves: what is drawn, if anything.
        options: its own.
        modules: of the extra ``evaluate``, that it needs.
        prepare: how it makes what it measures of the dataset that it is given; None: it measures that.
    """

    name: str
    summary: str
    about: str
    needs: Sequence[str]
    measure: Callable[[Study], Measure]
    figures: Callable[[Study], Figures]
    curves: Curves | None = None
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    modules: Sequence[str] = ()
    prepare: Preparation | None = None

    def __post_init__(self) -> None:
        set_field(self, "__doc__", self.about)

    def __call__(
        self,
        model: Model,
        params: Params,
        dataset: Dataset,
        folder: str | os.PathLike[str],
        *,
        method: str = "transformer_attribution",
        options: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Labels | None = None,
        batch_size: int = 8,
        correct_only: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **own: Any,
    ) -> Summary:
        """Evaluate a method.

        Args:
            model: any model.
            params: its parameters.
            dataset: images, with what the protocol needs of them.
            folder: where results go. ``settings.json`` says what is run; ``results.jsonl`` has a line for each image,
                in the order of the dataset; ``summary.json`` the figures with 95% intervals. A run that was interrupted
                goes on where it stopped.
            method: a name in :data:`lrp_jax.METHODS`.
            options: the method's own.
            preprocessing: how the images were made of pictures; None: as ``model.config`` says, of a
                :class:`lrp_jax.ViT`.
            labels: what the logits stand for; None: likewise.
            batch_size: images at once.
            correct_only: leave images aside that are not classified right.
            progress: called with the number of images done, and of all; before, where a protocol chooses of the
                dataset, with the number of those looked at.
            **own: the protocol's, see its ``options``.

        Returns:
            The summary, which is also written to the folder.

        Raises:
            ValueError: an option is wrong, the folder holds a run of other settings, the dataset lacks what is needed,
                or the protocol means nothing for the model.
            ImportError: the extra ``evaluate`` is not installed.
        """
        told = described(model, preprocessing, labels)
        study = Study(of_pictures(model), params, dataset, method, dict(options or {}), *told, self._taken(own))
        measure = self.measure(study)
        settings = _settings(self, study, batch_size)
        for module in self.modules:
            needs(module, extra="evaluate")  # now, not after the first batch
        skipped: Mapping[str, str] = {}
        if self.prepare:
            choose = partial(self.prepare.choose, study, batch_size, progress)
            what, skipped = chosen(Path(folder), settings, choose)
            study = dataclasses.replace(study, dataset=self.prepare.compose(dataset, what))
            measure = self.measure(study)
        lines = _run(study, self.needs, measure, Path(folder), settings, correct_only, progress)
        summary = _summed_up(self, study, settings | {"correct_only": correct_only}, lines, skipped)
        write_summary(Path(folder), summary)
        return summary

    def measured(self, dataset: Dataset, folder: str | os.PathLike[str]) -> Dataset:
        """What a run measured: the dataset that it was given, or what it made of that.

        Args:
            dataset: that the run was given.
            folder: of the run.

        Raises:
            ValueError: the folder does not say what was chosen of the dataset.
        """
        return self.prepare.compose(dataset, read_chosen(Path(folder)).what) if self.prepare else dataset

    def _taken(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its options, those given and the defaults of the others."""
        for name, value in given.items():
            if name not in self.options:
                takes = (
                    f"takes the options {', '.join(self.options)}" if self.options else "takes no options of its own"
                )
                raise ValueError(f"{self.name} {takes}; got {name!r}.")
            choices = self.options[name].choices
            if choices and (value not in choices or type(value) is not type(choices[0])):
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}.")
            if not choices and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32):
                raise ValueError(f"{name} must be an integer of at least 0 and below 2**32, got {value!r}.")
        return {name: given.get(name, option.default) for name, option in self.options.items()}


#: The protocols by name.
PROTOCOLS: dict[str, Protocol] = {}


def register(protocol: Protocol) -> Protocol:
    """Make a protocol known by its name, and give it back."""
    PROTOCOLS[protocol.name] = protocol
    return protocol


def _settings(protocol: Protocol, study: Study, batch_size: int) -> dict[str, Any]:
    """What a run depends on; a ValueError if it cannot be."""
    dataset, method, options = study.dataset, study.method, study.method_options
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    shape = study.preprocessing.image_shape
    classes = number_of_classes(study.model, study.params, jax.ShapeDtypeStruct(shape, jnp.float32))
    if study.labels.num_classes != classes:
        raise ValueError(f"labels are of {study.labels.num_classes} classes, the model has {classes}.")
    if dataset.labels_per_image > classes:
        raise ValueError(f"{dataset.name} has {dataset.labels_per_image} classes an image, the model one in all.")
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # What the method itself says of its options, before the first image is read.
    found = jax.eval_shape(partial(explain, study.model, method=method, **options), study.params, one)
    if isinstance(found.relevance, tuple):
        raise ValueError(f"{method} gives several maps for a class with these options: one is evaluated.")
    return {
        "protocol": protocol.name,
        "dataset": dataset.name,
        "images": len(dataset),
        "model": digest(study.params, study.model, study.preprocessing, study.labels),
        "method": method,
        "options": METHODS[method].recorded(options),
        "batch_size": batch_size,
        "lrp_jax": __version__,
        "jax": jax.__version__,
        **study.options,
    }


def _run(
    study: Study,
    needed: Sequence[str],
    measure: Measure,
    folder: Path,
    settings: Mapping[str, Any],
    correct_only: bool,
    progress: Callable[[int, int], None],
) -> list[Record]:
    """Evaluate the images that a folder has no results of; the records of all."""
    dataset, classes = study.dataset, study.labels.num_classes
    classifies = classes > 1 and not study.labels.regression
    if correct_only and not classifies:
        outputs = "outputs that are numbers" if classes > 1 else "one output"
        raise ValueError(f"correct_only means nothing for a model of {outputs}: it classifies nothing.")
    lines = resumed(folder, settings, dataset)
    if correct_only and any(line.get("clean", ()) is None for line in lines):
        raise ValueError(lacks(dataset, "labels", settings["protocol"]))
    size, total = settings["batch_size"], len(dataset)
    progress(len(lines), total)
    for start, batch, errors in batches(dataset, range(len(lines), total, size), size):
        check_samples(dataset, batch, [*needed, *["labels"] * correct_only], classes, settings["protocol"])
        found = jax.tree.map(np.asarray, measure(*stacked(dataset, batch, size)) if any(batch) else {})
        new = [
            {"image": dataset.key(start + b)}
            | (_record(found, b, sample.labels is None or not classifies) if sample else {"skipped": errors[b]})
            for b, sample in enumerate(batch)
        ]
        append(folder, settings, new)
        lines += new
        progress(len(lines), total)
    return lines


def _record(found: Mapping[str, Any], b: int, unclassified: bool) -> Record:
    """What was found of image b of a batch; where nothing says whether it is classified right, that is None."""
    record: Record = jax.tree.map(lambda values: values[b].tolist(), found)
    return record | ({"clean": None} if unclassified else {})


def _summed_up(
    protocol: Protocol,
    study: Study,
    settings: Mapping[str, Any],
    lines: Sequence[Record],
    skipped: Mapping[str, str],
) -> Summary:
    skipped = {**skipped, **{line["image"]: line["skipped"] for line in lines if "skipped" in line}}
    kept = [
        line
        for line in lines
        if "skipped" not in line and (not settings["correct_only"] or all(line["clean"] or [False]))
    ]
    if not kept:
        first = next(iter(skipped.values()), "").rstrip(".")
        why = f"the first because {first}" if skipped else "none is classified right"
        raise ValueError(f"no image is left to evaluate: {len(skipped)} of {len(lines)} were skipped, {why}.")
    figures = protocol.figures(study)
    table = np.array([figures.values(line) for line in kept])
    mean = table.mean(axis=0)
    ends = metrics.bootstrap_interval(figures.of_means, table)
    found = {
        name: Figure(*map(float, triple))
        for name, *triple in zip(figures.names, figures.of_means(mean), *ends, strict=True)
        if not np.isnan(triple[0])
    }
    names = protocol.curves.names if protocol.curves else ()
    drawn = dict(zip(names, mean.reshape(len(names), -1).tolist(), strict=True)) if names else {}
    measured = Measured([line["image"] for line in kept], table, figures, list(protocol.options))
    return Summary(settings, found, drawn, len(kept), skipped, measured)
