"""The paper's tables 1 to 3 (Chefer et al. 2021), and sanity checks, for every method.

    python scripts/reproduce_tables.py                       # digit scenes and the packaged model
    python scripts/reproduce_tables.py --model vit.safetensors --imagenet VAL --segmentation gtsegs_ijcv.mat

VAL is a folder of ImageNet's validation pictures, a folder a class, or one folder with ``--labels``. Each run has a
folder under ``--output``; what is there is not computed again, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.datasets import Dataset, DigitDataset, ImageNetFolder, ImageNetSegmentation, sees_scenes
from lrp_jax.evaluate import Summary


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with options, as a row of the tables."""

    title: str
    method: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


#: Rollouts start from the second block, as in the authors' evaluation.
ROWS = [
    Row("transformer attribution", "transformer_attribution", {"start_layer": 1}),
    Row("transformer attribution, exact rules", "transformer_attribution", {"start_layer": 1, "rules": "chefer"}),
    Row("transformer attribution, every block", "transformer_attribution"),
    Row("attention rollout", "attention_rollout", {"start_layer": 1}),
    Row("raw attention", "raw_attention"),
    Row("attention GradCAM", "attention_gradcam"),
    Row("LRP", "full_lrp"),
    Row("partial LRP", "partial_lrp"),
    Row("LRP rollout", "lrp_rollout", {"start_layer": 1}),
    Row("saliency", "saliency"),
    Row("input x gradient", "input_x_gradient"),
    Row("SmoothGrad", "smoothgrad", {"samples": 20}),
    Row("integrated gradients", "integrated_gradients", {"steps": 20}),
    Row("occlusion", "occlusion"),
    Row("RISE", "rise", {"masks": 500}),
]
ABLATIONS = [
    Row("without the gradient", "lrp_rollout", {"start_layer": 1, "rules": "stable"}),
    Row("the second block alone", "single_block", {"block": 1}),
    Row("the last block alone", "single_block"),
    ROWS[0],
]


def cell(summary: Summary, name: str) -> str:
    """A figure and half the width of its interval."""
    figure = summary.figures[name]
    return f"{figure.value:.2f} ± {(figure.high - figure.low) / 2:.2f}"


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n**{title}**\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--imagenet", type=Path, help="pictures of known classes, for perturbation and sanity checks")
    parser.add_argument("--labels", type=Path, help="the class of each picture, if they are in one folder")
    parser.add_argument("--segmentation", type=Path, help="gtsegs_ijcv.mat")
    parser.add_argument("--images", type=int, help="of each dataset (default: all; 1,000 digit scenes)")
    parser.add_argument("--sanity-images", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--method", action="append", choices=list(lrp_jax.METHODS), help="only this method; may be given several times"
    )
    parser.add_argument("--output", type=Path, default=Path("lrp_jax_tables"))
    options = parser.parse_args(arguments)
    if (options.imagenet is None) != (options.segmentation is None):
        parser.error("--imagenet and --segmentation go together; without them, digit scenes are used.")
    if min(1 if options.images is None else options.images, options.sanity_images, options.batch_size) < 1:
        parser.error("--images, --sanity-images and --batch-size must be at least 1.")
    model, params = lrp_jax.load(options.model)
    config = model.config
    if options.imagenet is None and not sees_scenes(config):
        parser.error("digit scenes are for models of them, such as 'demo': give --imagenet and --segmentation.")

    def pictures(images: int | None) -> Dataset:
        if options.imagenet is None:
            return DigitDataset(images or 1000)
        return ImageNetFolder(options.imagenet, config, labels=options.labels, images=images)

    perturbed, checked = pictures(options.images), pictures(min(options.sanity_images, options.images or 10**9))
    masked: Dataset = perturbed
    if options.segmentation is not None:
        masked = ImageNetSegmentation(options.segmentation, config, images=options.images)

    def run(protocol: Callable[..., Summary], row: Row, dataset: Dataset, **settings: Any) -> Summary:
        taken = lrp_jax.METHODS[row.method].options
        score = {"score": "sigmoid"} if "score" in taken and config.multi_label else {}
        name = "-".join(map(str, [protocol.__name__, *settings.values(), row.method, *row.options.values()]))
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(dataset))
            return protocol(
                model,
                params,
                dataset,
                options.output / name,
                method=row.method,
                options=row.options | score,
                batch_size=min(options.batch_size, len(dataset)),
                progress=lambda done, _: progress.update(task, completed=done),
                **settings,
            )

    def asked(rows: list[Row]) -> list[Row]:
        return [row for row in rows if not options.method or row.method in options.method]

    rows, kinds = [], ("positive AUC", "negative AUC")
    for row in asked(ROWS):
        cells = []
        for explained in ("predicted", "true"):
            if explained == "true" and not lrp_jax.METHODS[row.method].class_specific:
                cells += ["", ""]  # one map for all classes
                continue
            summary = run(evaluate.perturbation, row, perturbed, explained=explained)
            cells += [cell(summary, kind) for kind in kinds]
        rows.append([row.title, *cells])
        clean = cell(summary, "clean accuracy")
    columns = ["method", *(f"{kind.split()[0]}, {which}" for which in ("predicted", "true") for kind in kinds)]
    title = f"Table 1: perturbation, area under the curve of accuracy; {len(perturbed)} images"
    print_table(f"{title}, clean accuracy {clean} %" if rows else title, columns, rows)

    kinds = ("pixel accuracy", "mAP", "mIoU")
    more = ("share on target",) if masked.masks_of_labels else ()
    rows = []
    for row in asked(ROWS):
        summary = run(evaluate.segmentation, row, masked)
        rows.append([row.title, *(cell(summary, kind) for kind in (*kinds, *more))])
    print_table(f"Table 2: segmentation, {len(masked)} images", ["method", *kinds, *more], rows)

    rows = []
    ablations = [row for row in asked(ABLATIONS) if config.readout != "attention" or "block" not in row.options]
    for row in ablations:  # of a model that pools by attention, no block but the last has a row that is read
        segmented = run(evaluate.segmentation, row, masked)
        removed = run(evaluate.perturbation, row, perturbed, explained="predicted")
        rows.append([row.title, *(cell(segmented, k) for k in kinds)])
        rows[-1] += [cell(removed, kind) for kind in ("positive AUC", "negative AUC")]
    columns = ["of transformer attribution", *kinds, "positive", "negative"]
    print_table("Table 3: ablations", columns, rows)

    rows, stages = [], [f"correlation after {stage}" for stage in ("head", f"block {config.depth // 2}", "embeddings")]
    for row in asked(ROWS):
        summary = run(evaluate.sanity, row, checked)
        rows.append([row.title, *(cell(summary, name) for name in ("correlation of two classes", *stages))])
    columns = ["method", "two classes", *(stage.removeprefix("correlation ") for stage in stages)]
    print_table(f"Sanity checks: rank correlation of maps, {len(checked)} images", columns, rows)


if __name__ == "__main__":
    main()
