"""The folder of a run: settings, a line of results for each image, and a summary; kept whole, and taken up again.

``settings.json`` says what is run; ``chosen.json`` what a protocol chose of the dataset, if it does; ``results.jsonl``
has a line for each image, in the order of the dataset; ``summary.json`` the figures. The results of whole batches are
kept, and are those an uninterrupted run writes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.checks import changed
from lrp_jax.datasets import Dataset, Sample
from lrp_jax.evaluate.study import Chosen, Record, Summary
from lrp_jax.files import naming, replacing


def append(folder: Path, settings: Mapping[str, Any], lines: Sequence[Record]) -> None:
    """Write the results of a batch; before the first, what is run."""
    _begin(folder, settings)
    results = folder / "results.jsonl"
    with naming(results), results.open("a") as file:
        file.write(_json_lines(lines))


def _begin(folder: Path, settings: Mapping[str, Any]) -> None:
    known = folder / "settings.json"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(known) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")


def _json_lines(lines: Sequence[Record]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _begun(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run of these settings was begun in a folder; a ValueError if one of others was."""
    known = folder / "settings.json"
    if not known.exists():
        if (folder / "results.jsonl").exists():
            raise ValueError(f"{folder} holds results without settings.json: give another folder.")
        return False
    try:
        before = dict(json.loads(known.read_text()))
    except (TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    if difference := changed(before, settings):
        raise ValueError(f"{folder} holds a run of other settings ({difference}): give it another folder.")
    return True


def _damaged(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder} holds damaged results ({error}): give another folder.")


def chosen(folder: Path, settings: Mapping[str, Any], choose: Callable[[], Chosen]) -> Chosen:
    """What was chosen of the dataset by an earlier run of the same settings; or else now, and kept."""
    if _begun(folder, settings):
        return read_chosen(folder)
    found = choose()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "chosen.json") as temporary:
        temporary.write_text(json.dumps(found._asdict()) + "\n")
    _begin(folder, settings)  # after it: settings say that what was chosen is theirs
    return found


def read_chosen(folder: Path) -> Chosen:
    """What a run chose of its dataset."""
    try:
        return Chosen(**json.loads((folder / "chosen.json").read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error


def resumed(folder: Path, settings: Mapping[str, Any], dataset: Dataset) -> list[Record]:
    """The results of whole batches of an earlier run of the same settings; everything after them is cut off."""
    if not _begun(folder, settings):
        return []
    results = folder / "results.jsonl"
    try:
        text = results.read_text() if results.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        images = [line["image"] for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    if images != [dataset.key(i) for i in range(min(len(images), len(dataset)))]:
        raise ValueError(f"{folder} holds results of other images: give another folder.")
    if len(lines) < len(dataset):
        lines = lines[: len(lines) // settings["batch_size"] * settings["batch_size"]]
    if _json_lines(lines) != text:
        with replacing(results) as temporary:
            temporary.write_text(_json_lines(lines))
    return lines


def batches(dataset: Dataset, starts: range, size: int) -> Iterator[tuple[int, list[Sample | None], list[str | None]]]:
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


def check_samples(
    dataset: Dataset, batch: Sequence[Sample | None], needed: Sequence[str], classes: int, protocol: str
) -> None:
    """Refuse samples that lack what is needed, or are of classes that the model does not have."""
    for sample in filter(None, batch):
        for name in needed:
            if getattr(sample, name) is None:
                raise ValueError(lacks(dataset, name, protocol))
        if sample.labels is not None and not 0 <= min(sample.labels) <= max(sample.labels) < classes:
            raise ValueError(f"{dataset.name} has the classes {sample.labels}, the model 0 to {classes - 1}.")


def lacks(dataset: Dataset, name: str, protocol: str) -> str:
    """That a dataset lacks what a protocol needs."""
    return f"{protocol} needs {name} here, {dataset.name} has none."


def stacked(dataset: Dataset, batch: Sequence[Sample | None], size: int) -> tuple[np.ndarray, ...]:
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


def write_summary(folder: Path, summary: Summary) -> None:
    """Write the figures of a run."""
    with replacing(folder / "summary.json") as temporary:
        told = {f.name: getattr(summary, f.name) for f in dataclasses.fields(summary) if f.name != "measured"}
        figures = {name: dataclasses.asdict(figure) for name, figure in summary.figures.items()}
        temporary.write_text(json.dumps(told | {"figures": figures}, indent=1) + "\n")
