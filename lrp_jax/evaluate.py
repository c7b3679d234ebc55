"""Evaluation of a method over a dataset: segmentation and perturbation, as in the paper, and sanity checks.

A run has a folder. ``settings.json`` says what is run; ``results.jsonl`` has a line for each image, in the order of the
dataset; ``summary.json`` the figures with 95% intervals. A run that was interrupted goes on where it stopped: the
results of whole batches are kept, and are those an uninterrupted run writes.

Letters: B images, m labels an image (1, or 2 for digit scenes), C classes, T steps.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import lrp_jax
from lrp_jax import metrics
from lrp_jax.attribution import explain
from lrp_jax.datasets import Dataset, Sample
from lrp_jax.files import needs, replacing
from lrp_jax.images import heatmaps, panel
from lrp_jax.methods import METHODS
from lrp_jax.model import forward
from lrp_jax.rules import RULES, Rules
from lrp_jax.vit import Params, ViT

Record = dict[str, Any]
Explained = Literal["predicted", "true"]

#: Parts of the pixels that are removed.
FRACTIONS = tuple(step / 10 for step in range(11))
_SERIES = ("positive", "negative", "insertion")


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a summary, with its 95% interval (bootstrap over images)."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run found.

    Attributes:
        settings: what was run.
        figures: by name.
        curves: by name, ``[T]`` for :data:`FRACTIONS`; empty for segmentation.
        images: how many were evaluated.
        skipped: name and reason of those that were not.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, Figure]
    curves: Mapping[str, list[float]]
    images: int
    skipped: Mapping[str, str]


def segmentation(
    model: ViT,
    params: Params,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    correct_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """How well maps find the pixels of the class (Chefer et al. 2021, section 4, table 2).

    The map of each label where every label has its mask, else of the predicted class, is enlarged bilinearly and cut
    at its mean; mAP is of the map itself. Pixel accuracy and mIoU are of sums over the images, mAP and mF1 means over
    them. Where every label has its mask, also the share on the target: see :func:`lrp_jax.metrics.share_on_target`.

    Args:
        model: the model.
        params: its parameters.
        dataset: images with masks.
        folder: where results go.
        method: a name in :data:`lrp_jax.METHODS`.
        options: the method's own.
        batch_size: images at once.
        correct_only: leave images aside that are not classified right.
        progress: called with the number of images done, and of all.

    Returns:
        The summary, which is also written to the folder.

    Raises:
        ValueError: the folder holds a run of other settings, or the dataset has no masks or labels as needed.
    """
    options = dict(options or {})
    needs("sklearn.metrics", extra="evaluate")  # now, not after the first batch

    @jax.jit
    def compute(params: Params, images: Array, labels: Array, masks: Array) -> dict[str, Array]:
        e = explain(model, params, images, labels if dataset.masks_of_labels else None, method=method, **options)
        large = heatmaps(e.relevance, (images.shape[1], images.shape[2]))
        counts = metrics.segmentation_counts(large, masks)
        foreground = counts.intersection[..., 1]
        return {
            "explained": e.targets,
            "clean": jax.vmap(_hits)(e.logits, labels),
            **counts._asdict(),
            "f1": 2 * foreground / jnp.maximum(foreground + counts.union[..., 1], 1),
            "heat": large,
        } | ({"share": metrics.share_on_target(e.relevance, masks)} if dataset.masks_of_labels else {})

    def measure(images: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
        found = compute(params, images, labels, masks)
        heat = np.asarray(found.pop("heat"))
        precision = [list(map(metrics.average_precision, *pair)) for pair in zip(heat, masks, strict=True)]
        return found | {"average_precision": np.array(precision)}

    def values(record: Record) -> list[float]:
        names = "average_precision", "f1", "share", "clean"
        counts = np.array(record["intersection"]).sum(axis=0).tolist() + np.array(record["union"]).sum(axis=0).tolist()
        means = [float(np.mean(record.get(name) or np.nan)) for name in names]
        return [float(sum(record["correct"])), float(sum(record["labeled"])), *counts, *means]

    def figures(means: np.ndarray) -> np.ndarray:
        correct, labeled, i0, i1, u0, u1, *rest = np.moveaxis(means, -1, 0)
        overlap = (i0 / np.maximum(u0, 1e-12) + i1 / np.maximum(u1, 1e-12)) / 2
        return np.stack([correct / labeled, overlap, *rest], axis=-1) * 100

    names = ["pixel accuracy", "mIoU", "mAP", "mF1", "share on target", "clean accuracy"]
    settings = _settings("segmentation", model, params, dataset, method, options, batch_size)
    sums = _Sums(names, values, figures)
    return _run(dataset, folder, settings, model.config.num_classes, measure, sums, correct_only, progress)


def perturbation(
    model: ViT,
    params: Params,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
    explained: Explained = "predicted",
    batch_size: int = 8,
    correct_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """What becomes of a prediction as pixels are removed (Chefer et al. 2021, section 4, table 1).

    Pixels are set to 0 before normalisation, the most relevant first (positive) or the least (negative), 10% to 90%;
    a figure is the area under the curve of accuracy, from that of whole images on, in percent: 90 at most. A hit is a
    label among as many of the largest logits as the image has labels: of a digit scene, among the top two.
    Also the areas under the mean probability of the label; and deletion and insertion (Petsiuk et al. 2018), the areas
    from 0% to 100%, where insertion puts pixels, most relevant first, onto a blurred image.

    Args:
        model: the model.
        params: its parameters.
        dataset: images with labels.
        folder: where results go.
        method: a name in :data:`lrp_jax.METHODS`.
        options: the method's own.
        explained: the map is of the predicted class, or of the true one; with m labels, of the m largest logits, each
            set against the label that it is or, where it is none, against one that was missed.
        batch_size: images at once.
        correct_only: leave images aside that are not classified right.
        progress: called with the number of images done, and of all.

    Returns:
        The summary, which is also written to the folder.

    Raises:
        ValueError: the folder holds a run of other settings, the dataset has no labels, or the model has one output.
    """
    options = dict(options or {})
    if explained not in get_args(Explained):
        raise ValueError(f"explained must be one of {', '.join(get_args(Explained))}; got {explained!r}.")
    config = model.config
    if config.num_classes == 1:
        raise ValueError(
            "perturbation measures accuracy and probability of a class, which mean nothing for a model of one output."
        )
    removed = -jnp.asarray(config.mean, jnp.float32) / jnp.asarray(config.std, jnp.float32)
    counts = jnp.asarray([int(config.image_shape[0] * config.image_shape[1] * f) for f in FRACTIONS])

    @jax.jit
    def compute(params: Params, images: Array, labels: Array, _: Array) -> dict[str, Any]:
        targets = labels
        if explained == "predicted":
            logits, _ = jax.vmap(partial(forward, model, params))(images)
            targets = jax.vmap(_matched)(logits, labels)
        e = explain(model, params, images, targets, method=method, **options)
        large = heatmaps(e.relevance, (images.shape[1], images.shape[2]))

        def one(image: Array, heat: Array, labels: Array, label: Array) -> tuple[Array, Array]:
            blurred, run = _blurred(image), partial(metrics.perturbed_logits, model, params)
            first, last = metrics.ranks(heat), metrics.ranks(-heat)
            logits = jnp.stack(
                [
                    run(image, first, counts, removed),
                    run(image, last, counts, removed),
                    run(blurred, first, counts, image),
                ]
            )  # [series, T, C]
            return _is_hit(logits, label, len(labels)), config.probabilities(logits)[..., label]

        hits, chances = jax.vmap(jax.vmap(one, in_axes=(None, 0, None, 0)))(images, large, labels, labels)
        return {
            "explained": targets,
            "labels": labels,
            "clean": hits[:, :, 0, 0],
            "hits": {name: hits[:, :, s].astype(int) for s, name in enumerate(_SERIES)},
            "probability": {name: chances[:, :, s] for s, name in enumerate(_SERIES)},
        }

    measure = partial(compute, params)

    def values(record: Record) -> list[float]:
        curves = [np.mean(record[kind][name], axis=0) for kind in ("hits", "probability") for name in _SERIES]
        return np.concatenate(curves).tolist()

    def figures(means: np.ndarray) -> np.ndarray:
        curves = means.reshape(*means.shape[:-1], 2, len(_SERIES), len(FRACTIONS))
        until_90 = metrics.area_under_curve(curves[..., :-1])
        whole = metrics.area_under_curve(curves[..., 1, :, :])
        return np.stack(
            [
                until_90[..., 0, 0],
                until_90[..., 0, 1],
                until_90[..., 1, 0],
                until_90[..., 1, 1],
                whole[..., 0],
                whole[..., 2],
                curves[..., 0, 0, 0] * 100,
            ],
            axis=-1,
        )

    names = [
        "positive AUC",
        "negative AUC",
        "positive AUC, probability",
        "negative AUC, probability",
        "deletion",
        "insertion",
        "clean accuracy",
    ]
    settings = _settings("perturbation", model, params, dataset, method, options, batch_size) | {"explained": explained}
    curves = [f"{name} {kind}" for kind in ("accuracy", "probability") for name in _SERIES]
    sums = _Sums(names, values, figures, curves)
    return _run(dataset, folder, settings, model.config.num_classes, measure, sums, correct_only, progress)


def sanity(
    model: ViT,
    params: Params,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    correct_only: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Whether maps depend on the model and on the class (Adebayo et al. 2018, cascading randomisation).

    The parameters are drawn anew from the head down: first what lies above the blocks, then block after block from the
    last, then the embeddings. The figures are Spearman's rank correlations, each a mean over images: of the map of the
    predicted class before and after each stage, and of the maps of the two most probable classes. Near 1, the map does
    not look at the parameters, or at the class.

    Args:
        model: the model.
        params: its parameters.
        dataset: images.
        folder: where results go.
        method: a name in :data:`lrp_jax.METHODS`.
        options: the method's own.
        batch_size: images at once.
        correct_only: leave images aside that are not classified right.
        seed: of the drawn parameters.
        progress: called with the number of images done, and of all.

    Returns:
        The summary, which is also written to the folder.

    Raises:
        ValueError: the folder holds a run of other settings, or the model has one class.
    """
    options, depth = dict(options or {}), model.config.depth
    if model.config.num_classes < 2:
        raise ValueError("sanity compares the maps of two classes, the model has one.")
    needs("scipy.stats", extra="evaluate")
    image = jnp.zeros(model.config.image_shape, jnp.float32)
    drawn = jax.jit(model.init)(jax.random.key(seed), image)["params"]
    params = jax.tree.map(jnp.asarray, params)
    drawn = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn, params)
    below = {"patch_embed", "pos_embed", "cls_token", "norm_pre", "blocks"} & params.keys()
    stages = ["head", *(f"block {layer}" for layer in reversed(range(depth))), "embeddings"]

    def randomised(stage: int) -> Params:
        """The parameters after a stage, 0 being the head's; stage s has drawn the last s blocks."""
        first = depth - min(stage, depth)
        mixed = {name: drawn[name] if name not in below else params[name] for name in params}
        mixed["blocks"] = jax.tree.map(
            lambda new, old: old.at[first:].set(new[first:]), drawn["blocks"], params["blocks"]
        )
        return mixed if stage <= depth else drawn

    @jax.jit
    def two_most_probable(params: Params, images: Array, labels: Array) -> tuple[Array, Array]:
        logits, _ = jax.vmap(partial(forward, model, params))(images)
        return jax.lax.top_k(logits, 2)[1], jax.vmap(_hits)(logits, labels)

    def measure(images: np.ndarray, labels: np.ndarray, _: np.ndarray) -> dict[str, Any]:
        targets, hits = two_most_probable(params, images, labels)

        def maps(params: Params) -> np.ndarray:
            return np.asarray(explain(model, params, images, targets, method=method, **options).relevance)

        before = maps(params)
        after = [metrics.spearman(before[:, 0], maps(randomised(stage))[:, 0]) for stage in range(len(stages))]
        classes = metrics.spearman(before[:, 0], before[:, 1])
        return {"classes": classes, "stages": np.stack(after, axis=1), "clean": hits}

    def values(record: Record) -> list[float]:
        return [record["classes"], *record["stages"], 100 * float(np.mean(record["clean"] or [np.nan]))]

    names = ["correlation of two classes", *(f"correlation after {stage}" for stage in stages), "clean accuracy"]
    settings = _settings("sanity", model, params, dataset, method, options, batch_size) | {"seed": seed}
    sums = _Sums(names, values, lambda means: means)
    return _run(dataset, folder, settings, model.config.num_classes, measure, sums, correct_only, progress)


def _hits(logits: Array, labels: Array) -> Array:
    """Whether each label is among as many of the largest logits as there are labels, ``[m]``."""
    return jax.vmap(_is_hit, in_axes=(None, 0, None))(logits, labels, len(labels))


def _is_hit(logits: Array, label: Array, among: int) -> Array:
    """Whether a label is among so many of the largest of the logits ``[..., C]``."""
    return (logits > logits[..., label, None]).sum(axis=-1) < among


def _matched(logits: Array, labels: Array) -> Array:
    """The classes of the m largest logits, in the places of the labels ``[m]`` that they are; others fill the rest."""
    _, top = jax.lax.top_k(logits, len(labels))
    right = jnp.isin(labels, top)
    wrong_first = top[jnp.argsort(jnp.isin(top, labels), stable=True)]
    return jnp.where(right, labels, wrong_first[jnp.cumsum(~right) - 1])


def _blurred(image: Array) -> Array:
    """The image ``[H, W, channels]`` blurred: a Gaussian of 11 pixels, standard deviation 5, edges repeated."""
    weights = np.exp(-((np.arange(11) - 5) ** 2) / 50)
    kernel = jnp.asarray(weights / weights.sum(), image.dtype)
    for axis in (0, 1):
        widths = [(5, 5) if a == axis else (0, 0) for a in range(3)]
        padded, length = jnp.pad(image, widths, mode="edge"), image.shape[axis]
        shifted = jnp.stack([jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(11)])
        image = jnp.tensordot(kernel, shifted, axes=1)
    return image


def _settings(
    protocol: str,
    model: ViT,
    params: Params,
    dataset: Dataset,
    method: str,
    options: Mapping[str, Any],
    batch_size: int,
) -> dict[str, Any]:
    """What a run depends on."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if dataset.labels_per_image > model.config.num_classes:
        raise ValueError(f"{dataset.name} has {dataset.labels_per_image} classes an image, the model one in all.")
    one = jax.ShapeDtypeStruct((1, *model.config.image_shape), jnp.float32)
    jax.eval_shape(partial(explain, model, method=method, **options), params, one)  # the method's word on its options
    rules = options.get("rules")
    if isinstance(rules, Rules) and RULES.get(rules.name, rules) != rules:
        raise ValueError(
            f"rules are recorded by name, and {rules.name!r} names others: give yours a name of their own."
        )
    digest = hashlib.sha256(repr(model.config).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(value).tobytes())
    return {
        "protocol": protocol,
        "dataset": dataset.name,
        "images": len(dataset),
        "model": digest.hexdigest()[:16],
        "method": method,
        "options": {k: getattr(v, "name", str(v)) for k, v in {**METHODS[method].options, **options}.items()},
        "batch_size": batch_size,
        "lrp_jax": lrp_jax.__version__,
        "jax": jax.__version__,
    }


class _Sums(NamedTuple):
    """How a protocol's figures come from its records.

    Attributes:
        names: of the figures.
        values: the numbers of a record that are averaged over the images.
        figures: what of their means ``[..., values]`` is reported, ``[..., names]``.
        curves: names of the curves that the means are made of, if they are curves.
    """

    names: Sequence[str]
    values: Callable[[Record], list[float]]
    figures: Callable[[np.ndarray], np.ndarray]
    curves: Sequence[str] = ()


def _run(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    classes: int,
    measure: Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, Any]],
    sums: _Sums,
    correct_only: bool,
    progress: Callable[[int, int], None],
) -> Summary:
    """Evaluate the images that a folder has no results of, and sum up."""
    folder = Path(folder)
    if correct_only and classes == 1:
        raise ValueError("correct_only means nothing for a model of one output: it classifies nothing.")
    lines = _resumed(folder, settings, dataset)
    needed = {"segmentation": ["masks"], "perturbation": ["labels"]}.get(settings["protocol"], [])
    size, total = settings["batch_size"], len(dataset)
    if correct_only and any(line.get("clean", ()) is None for line in lines):
        raise ValueError(_lacks(settings, dataset, "labels"))
    progress(len(lines), total)
    for start, batch, errors in _batches(dataset, range(len(lines), total, size), size):
        for sample in filter(None, batch):
            for name in needed + ["labels"] * correct_only:
                if getattr(sample, name) is None:
                    raise ValueError(_lacks(settings, dataset, name))
            if sample.labels is not None and not 0 <= min(sample.labels) <= max(sample.labels) < classes:
                raise ValueError(f"{dataset.name} has the classes {sample.labels}, the model 0 to {classes - 1}.")
        found = jax.tree.map(np.asarray, measure(*_stacked(dataset, batch, size)) if any(batch) else {})
        new = [
            {"image": dataset.key(start + b)}
            | (_record(found, b, sample.labels is None or classes == 1) if sample else {"skipped": errors[b]})
            for b, sample in enumerate(batch)
        ]
        _append(folder, settings, new)
        lines += new
        progress(len(lines), total)
    return _summed_up(folder, settings, lines, sums, correct_only)


def _lacks(settings: Mapping[str, Any], dataset: Dataset, name: str) -> str:
    return f"{settings['protocol']} needs {name} here, {dataset.name} has none."


def _record(found: Mapping[str, Any], b: int, unclassified: bool) -> Record:
    """What was found of image b of a batch; where nothing says whether it is classified right, that is None."""
    record: Record = jax.tree.map(lambda values: values[b].tolist(), found)
    return record | ({"clean": None} if unclassified else {})


def _append(folder: Path, settings: Mapping[str, Any], lines: Sequence[Record]) -> None:
    """Write the results of a batch; before the first, what is run."""
    known = folder / "settings.json"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(known) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")
    with (folder / "results.jsonl").open("a") as file:
        file.write(_json_lines(lines))


def _json_lines(lines: Sequence[Record]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _resumed(folder: Path, settings: Mapping[str, Any], dataset: Dataset) -> list[Record]:
    """The results of whole batches of an earlier run of the same settings; everything after them is cut off."""
    known, results = folder / "settings.json", folder / "results.jsonl"
    if not known.exists():
        if results.exists():
            raise ValueError(f"{folder} holds results without settings.json: give another folder.")
        return []
    try:
        before = dict(json.loads(known.read_text()))
        text = results.read_text() if results.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        images = [line["image"] for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds damaged results ({error}): give another folder.") from error
    changed = [k for k in settings if before.get(k) != settings[k]]
    if changed:
        was = ", ".join(f"{k} {before.get(k)!r}, not {settings[k]!r}" for k in changed)
        raise ValueError(f"{folder} holds a run of other settings ({was}): give it another folder.")
    if images != [dataset.key(i) for i in range(min(len(images), len(dataset)))]:
        raise ValueError(f"{folder} holds results of other images: give another folder.")
    if len(lines) < len(dataset):
        lines = lines[: len(lines) // settings["batch_size"] * settings["batch_size"]]
    if _json_lines(lines) != text:
        with replacing(results) as temporary:
            temporary.write_text(_json_lines(lines))
    return lines


def _batches(dataset: Dataset, starts: range, size: int) -> Iterator[tuple[int, list[Sample | None], list[str | None]]]:
    """Samples of each batch, the next one read while this is computed; None, and why, for what cannot be read."""

    def read(i: int) -> tuple[Sample | None, str | None]:
        try:
            return dataset.sample(i), None
        except (OSError, ValueError) as error:
            return None, " ".join(str(error).split())

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

        def ask(start: int) -> list[concurrent.futures.Future[tuple[Sample | None, str | None]]]:
            return [pool.submit(read, i) for i in range(start, min(start + size, len(dataset)))]

        upcoming = ask(starts[0]) if starts else []
        for start in starts:
            answers = [future.result() for future in upcoming]
            upcoming = ask(start + size) if start + size < len(dataset) else []
            yield start, [sample for sample, _ in answers], [error for _, error in answers]


def _stacked(dataset: Dataset, batch: Sequence[Sample | None], size: int) -> tuple[np.ndarray, ...]:
    """Images, labels and masks of a batch, zeros where there are none: every batch has one shape."""
    example = next(sample for sample in batch if sample is not None)
    images = np.zeros((size, *example.image.shape), np.float32)
    labels = np.zeros((size, dataset.labels_per_image), np.int32)
    labels += np.arange(dataset.labels_per_image, dtype=np.int32)
    masks = np.zeros((size, *(example.masks.shape if example.masks is not None else (1, 1, 1))), bool)
    for b, sample in enumerate(batch):
        if sample is not None:
            images[b] = sample.image
            labels[b] = sample.labels if sample.labels is not None else labels[b]
            masks[b] = sample.masks if sample.masks is not None else masks[b]
    return images, labels, masks


def _summed_up(
    folder: Path,
    settings: Mapping[str, Any],
    lines: Sequence[Record],
    sums: _Sums,
    correct_only: bool,
) -> Summary:
    skipped = {line["image"]: line["skipped"] for line in lines if "skipped" in line}
    kept = [line for line in lines if "skipped" not in line and (not correct_only or all(line["clean"] or [False]))]
    if not kept:
        first = next(iter(skipped.values()), "").rstrip(".")
        why = f"the first because {first}" if skipped else "none is classified right"
        raise ValueError(f"no image is left to evaluate: {len(skipped)} of {len(lines)} were skipped, {why}.")
    table = np.array([sums.values(line) for line in kept])
    mean = table.mean(axis=0)
    ends = metrics.bootstrap_interval(sums.figures, table)
    found = {
        name: Figure(*map(float, triple))
        for name, *triple in zip(sums.names, sums.figures(mean), *ends, strict=True)
        if not np.isnan(triple[0])
    }
    drawn = dict(zip(sums.curves, mean.reshape(len(sums.curves), -1).tolist(), strict=True)) if sums.curves else {}
    summary = Summary({**settings, "correct_only": correct_only}, found, drawn, len(kept), skipped)
    with replacing(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    return summary


def draw_curves(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Draw accuracy and probability as pixels are removed or inserted.

    Args:
        summary: of a perturbation run.
        path: the picture to write.

    Raises:
        ImportError: the extra ``evaluate`` is not installed.
    """
    figure = needs("matplotlib.figure", extra="evaluate").Figure(figsize=(9, 3.5), layout="constrained")
    for kind, axes in zip(("accuracy", "probability"), figure.subplots(1, 2, sharey=True), strict=True):
        for name in _SERIES:
            axes.plot([100 * f for f in FRACTIONS], summary.curves[f"{name} {kind}"], marker=".", label=name)
        axes.set(title=f"{kind} of the label", xlabel="pixels removed or inserted, %", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(f"{summary.settings['method']}, {summary.settings['dataset']}, {summary.images} images")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_maps(
    model: ViT,
    params: Params,
    dataset: Dataset,
    path: str | os.PathLike[str],
    *,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
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
        images: how many rows; they are explained one by one.

    Raises:
        ValueError: no image can be read.
    """
    samples: list[Sample] = []
    for i in range(len(dataset)):
        with contextlib.suppress(OSError, ValueError):
            samples.append(dataset.sample(i))
        if len(samples) == images:
            break
    if not samples:
        raise ValueError(f"no image of {dataset.name} can be read.")
    config, rows = model.config, []
    for sample in samples:
        targets = None if sample.labels is None else np.asarray(sample.labels)[None]
        e = explain(model, params, sample.image[None], targets, method=method, **dict(options or {}))
        pixels = (sample.image * np.asarray(config.std) + np.asarray(config.mean)).clip(0, 1) * 255
        picture = Image.fromarray(pixels.round().astype(np.uint8).squeeze())
        captions = [config.caption(target, np.asarray(e.logits[0])) for target in np.asarray(e.targets[0])]
        rows.append(panel(picture, e.relevance[0], captions, signed=METHODS[method].signed))
    out = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for b, row in enumerate(rows):
        out.paste(row, (0, b * row.height))
    with replacing(path) as temporary:
        out.save(temporary)
