"""The paper's tables 1 to 3 (Chefer et al. 2021), pointing and sanity checks, for every method.

    python scripts/reproduce_tables.py                       # digit scenes and the packaged model
    python scripts/reproduce_tables.py --seed 7000           # other scenes: those that choices are made on
    python scripts/reproduce_tables.py --model vit.safetensors --imagenet VAL --segmentation gtsegs_ijcv.mat

VAL is a folder of ImageNet's validation pictures, a folder a class, or one folder with ``--labels``. Each run has a
folder under ``--output``; what is there is not computed again, so that an interrupted table goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.cli.console import progress
from lrp_jax.datasets import Dataset, DigitDataset, ImageNetFolder, ImageNetSegmentation, sees_scenes
from lrp_jax.evaluate import Protocol, Summary


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
    Row("generic attention", "generic_attention"),
    Row("LeGrad", "legrad"),
    Row("AttnLRP", "attnlrp"),
    Row("AttnLRP, gamma", "attnlrp", {"gamma": 0.25}),
    Row("CP-LRP", "cp_lrp"),
    Row("CP-LRP, over blocks", "cp_lrp", {"at": "blocks"}),
    Row("CP-LRP, gamma", "cp_lrp", {"gamma": 0.25}),
    Row("CP-LRP, gamma everywhere", "cp_lrp", {"gamma": 0.25, "gamma_at": "all"}),
    Row("Ali et al.", "ali_lrp"),
    Row("LibraGrad", "libragrad"),
    Row("LibraGrad, FullGrad+", "libragrad", {"full": True, "at": "blocks"}),
    Row("gated LRP", "gated_lrp"),
    Row("gated LRP, at pixels", "gated_lrp", {"at": "pixels"}),
    Row("gated LRP, two views", "gated_lrp", {"at": "pixels", "two_views": True}),
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
SEGMENTATION = ("pixel accuracy", "mAP", "mIoU")


def cell(summary: Summary, name: str, first: Summary | None = None) -> str:
    """A figure, half the width of its interval, and whether it is above or below another's, paired."""
    figure = summary.figures[name]
    text = f"{figure.value:.2f} ± {(figure.high - figure.low) / 2:.2f}"
    if first is None or first is summary:
        return text
    apart = evaluate.difference(summary, first)[name]
    return text + (" ↑" if apart.low > 0 else " ↓" if apart.high < 0 else "")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n**{title}**\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


@dataclasses.dataclass(frozen=True)
class Tables:
    """Rows of the tables, each run unless its results are there.

    Attributes:
        model: the model.
        params: its parameters.
        options: of the command line.
    """

    model: lrp_jax.ViT
    params: Any
    options: argparse.Namespace

    def asked(self, rows: list[Row]) -> list[Row]:
        """The rows of the methods asked for."""
        return [row for row in rows if not self.options.method or row.method in self.options.method]

    def run(self, protocol: Protocol, row: Row, dataset: Dataset, **settings: Any) -> Summary:
        """The summary of a row."""
        taken = lrp_jax.METHODS[row.method].options
        score = {"score": "sigmoid"} if "score" in taken and self.model.config.multi_label else {}
        name = "-".join(map(str, [protocol.name, *settings.values(), row.method, *row.options.values()]))
        with progress(name, len(dataset)) as (advance, _):
            return protocol(
                self.model,
                self.params,
                dataset,
                self.options.output / name,
                method=row.method,
                options=row.options | score,
                batch_size=min(self.options.batch_size, len(dataset)),
                progress=lambda done, _: advance(done),
                **settings,
            )

    def perturbation(self, dataset: Dataset) -> None:
        """Print table 1."""
        rows, kinds, clean = [], ("positive AUC", "negative AUC"), ""
        first: dict[str, Summary | None] = {}
        for row in self.asked(ROWS):
            cells = []
            for explained in ("predicted", "true"):
                if explained == "true" and not lrp_jax.METHODS[row.method].class_specific:
                    cells += ["", ""]  # one map for all classes
                    continue
                summary = self.run(evaluate.perturbation, row, dataset, explained=explained)
                beside = first.setdefault(explained, summary if row == ROWS[0] else None)
                cells += [cell(summary, kind, beside) for kind in kinds]
            rows.append([row.title, *cells])
            clean = f", clean accuracy {cell(summary, 'clean accuracy')} %"
        columns = ["method", *(f"{kind.split()[0]}, {which}" for which in ("predicted", "true") for kind in kinds)]
        title = f"Table 1: perturbation, area under the curve of accuracy; {len(dataset)} images"
        print_table(title + clean, columns, rows)

    def segmentation(self, dataset: Dataset) -> None:
        """Print table 2."""
        kinds = [*SEGMENTATION, *["share on target"] * dataset.masks_of_labels]
        self.table(f"Table 2: segmentation, {len(dataset)} images", evaluate.segmentation, dataset, kinds)

    def pointing(self, dataset: Dataset) -> None:
        """Print the table of pointing."""
        kinds = ["share asked", "share other", "pointing accuracy", "clean accuracy"]
        try:
            self.table(f"Pointing: four of {len(dataset)} images in a picture", evaluate.pointing, dataset, kinds)
        except ValueError as error:  # the other tables can be made of images that the model gets wrong
            print(f"\nNo table of pointing: {error}")

    def table(self, title: str, protocol: Protocol, dataset: Dataset, kinds: list[str]) -> None:
        """Print some figures of every method."""
        runs = [(row.title, self.run(protocol, row, dataset)) for row in self.asked(ROWS)]
        beside = runs[0][1] if runs and runs[0][0] == ROWS[0].title else None
        rows = [[called, *(cell(summary, kind, beside) for kind in kinds)] for called, summary in runs]
        print_table(title, ["method", *kinds], rows)

    def ablations(self, masked: Dataset, perturbed: Dataset) -> None:
        """Print table 3."""
        pools, rows = self.model.config.readout == "attention", []
        for row in self.asked(ABLATIONS):
            if pools and "block" in row.options:  # no block but the last has a row that is read
                continue
            segmented = self.run(evaluate.segmentation, row, masked)
            removed = self.run(evaluate.perturbation, row, perturbed, explained="predicted")
            rows.append([row.title, *(cell(segmented, kind) for kind in SEGMENTATION)])
            rows[-1] += [cell(removed, kind) for kind in ("positive AUC", "negative AUC")]
        columns = ["of transformer attribution", *SEGMENTATION, "positive", "negative"]
        print_table("Table 3: ablations", columns, rows)

    def sanity(self, dataset: Dataset) -> None:
        """Print the table of sanity checks."""
        middle = f"block {self.model.config.depth // 2}"
        kinds = ["correlation of two classes", *(f"correlation after {s}" for s in ("head", middle, "embeddings"))]
        title = f"Sanity checks: rank correlation of maps, {len(dataset)} images"
        self.table(title, evaluate.sanity, dataset, kinds)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--imagenet", type=Path, help="pictures of known classes, for perturbation and sanity checks")
    parser.add_argument("--labels", type=Path, help="the class of each picture, if they are in one folder")
    parser.add_argument("--segmentation", type=Path, help="gtsegs_ijcv.mat")
    parser.add_argument("--images", type=int, help="of each dataset (default: all; 1,000 digit scenes)")
    parser.add_argument("--seed", type=int, default=1, help="of the digit scenes: 1 for the tables of the docs")
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
    if options.imagenet is None and not sees_scenes(config, config):
        parser.error("digit scenes are for models of them, such as 'demo': give --imagenet and --segmentation.")

    def pictures(images: int | None) -> Dataset:
        if options.imagenet is None:
            return DigitDataset(images or 1000, seed=options.seed)
        return ImageNetFolder(options.imagenet, config, labels=options.labels, images=images)

    perturbed, checked = pictures(options.images), pictures(min(options.sanity_images, options.images or 10**9))
    masked: Dataset = perturbed
    if options.segmentation is not None:
        masked = ImageNetSegmentation(options.segmentation, config, images=options.images)
    tables = Tables(model, params, options)
    if tables.asked(ROWS[:1]):
        print(f"\n↑ and ↓: above and below {ROWS[0].title}, where the paired difference's interval leaves 0 out.")
    tables.perturbation(perturbed)
    tables.segmentation(masked)
    tables.pointing(perturbed)
    tables.ablations(masked, perturbed)
    tables.sanity(checked)


if __name__ == "__main__":
    main()
