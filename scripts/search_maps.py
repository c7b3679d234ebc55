"""How gated LRP was found, and what it was chosen from: maps in every column of the tables, beside the best others.

    python scripts/search_maps.py                               # 300 scenes that choices are made on
    python scripts/search_maps.py --model second.safetensors    # another model of digit scenes
    python scripts/search_maps.py --model vit.safetensors --composites composites.npz

A candidate is a registered method with options, a row of ``CANDIDATES``; arrows are paired with the first row.
COMPOSITES has pictures side by side, see ``composites.py``. What is under ``--output`` is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import composites
import numpy as np
from jax import Array
from reproduce_tables import Row, Tables, cell, print_table

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.cli.console import progress
from lrp_jax.datasets import DigitDataset, sees_scenes
from lrp_jax.methods import METHODS, register
from lrp_jax.model import Model, Params
from lrp_jax.signals import Explanation


@register(class_specific=True, resolution="pixel", reference="a candidate")
def squared(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """Transformer attribution, enlarged and squared: what sharper edges alone are worth."""
    found = METHODS["transformer_attribution"].function(model, params, image, targets, start_layer=1)
    return dataclasses.replace(found, relevance=lrp_jax.heatmaps(found.relevance, image.shape[:2]) ** 2)


GAMMA = {"gamma": 0.25}
CANDIDATES = [
    Row("transformer attribution", "transformer_attribution", {"start_layer": 1}),
    Row("generic attention", "generic_attention", {"start_layer": 1}),
    Row("CP-LRP, gamma", "cp_lrp", GAMMA),
    Row("CP-LRP, gamma, over blocks", "cp_lrp", GAMMA | {"at": "blocks"}),
    Row("transformer attribution, squared", "squared"),
    Row("gated LRP", "gated_lrp"),
    Row("gated LRP, at pixels", "gated_lrp", {"at": "pixels"}),
    Row("gated LRP, gamma everywhere", "gated_lrp", {"at": "pixels", "gamma": 0.1, "gamma_at": "all"}),
    Row("gated LRP, two views", "gated_lrp", {"at": "pixels", "two_views": True}),
]
COLUMNS = {
    "perturbation": ("positive AUC", "negative AUC"),
    "segmentation": ("pixel accuracy", "mAP", "mIoU", "share on target"),
    "sanity": ("correlation of two classes",),
}


def of_scenes(tables: Tables, rows: list[Row]) -> None:
    """Print a table of digit scenes."""
    options, first, table = tables.options, {}, []
    for row in rows:
        cells = [row.title]
        for name, kinds in COLUMNS.items():
            images = min(options.images, 100) if name == "sanity" else options.images
            summary = tables.run(evaluate.PROTOCOLS[name], row, DigitDataset(images, seed=options.seed))
            beside = first.setdefault(name, summary)
            cells += [cell(summary, kind, beside) for kind in kinds]
        table.append(cells)
    columns = ["method", *(kind.removesuffix(" AUC") for kinds in COLUMNS.values() for kind in kinds)]
    print_table(f"{options.images} digit scenes, seed {options.seed}, {options.model}", columns, table)


def of_composites(model: Any, params: Params, rows: list[Row], path: Path) -> None:
    """Print a table of the grid pointing game: the share on the picture asked for, and where another is asked."""
    images, labels, masks = composites.read(path, model.config)
    counts = (labels >= 0).sum(axis=1)
    sizes = sorted(set(counts.tolist()))
    table = []
    for row in rows:
        found: dict[int, list[list[float]]] = {size: [] for size in sizes}
        with progress(row.title, len(images)) as (advance, _):
            for i, (image, count) in enumerate(zip(images, counts.tolist(), strict=True)):
                there = labels[i] >= 0
                e = lrp_jax.explain(
                    model, params, image[None], labels[i][None, there], method=row.method, **row.options
                )
                shares = np.asarray(lrp_jax.metrics.shares(e.relevance[0], masks[i, there]))
                asked = np.trace(shares) / count
                found[count].append([asked, (shares.sum() / count - asked) / (count - 1)])
                advance(i + 1)
        table.append([row.title, *(f"{share:.3f}" for size in sizes for share in np.mean(found[size], axis=0))])
    columns = [f"{size} pictures, {which}" for size in sizes for which in ("asked", "other")]
    print_table(f"Share of positive relevance, {len(images)} composites", ["method", *columns], table)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=int, default=300, help="digit scenes")
    parser.add_argument("--seed", type=int, default=7000, help="of the scenes: 7000 to choose on, 1 to confirm")
    parser.add_argument("--composites", type=Path, help="pictures side by side, instead of digit scenes")
    parser.add_argument("--row", action="append", choices=[row.title for row in CANDIDATES], help="only this one")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("lrp_jax_search"))
    options = parser.parse_args(arguments)
    if min(options.images, options.batch_size) < 1:
        parser.error("--images and --batch-size must be at least 1.")
    model, params = lrp_jax.load(options.model)
    if options.composites is None and not sees_scenes(model.config, model.config):
        parser.error("digit scenes are for models of them, such as 'demo': give --composites.")
    rows = [row for row in CANDIDATES if not options.row or row.title in options.row]
    if options.composites is not None:
        of_composites(model, params, rows, options.composites)
    else:
        options.output /= f"{Path(options.model).stem}-{options.seed}-{options.images}"
        of_scenes(Tables(model, params, options), rows)


if __name__ == "__main__":
    main()
