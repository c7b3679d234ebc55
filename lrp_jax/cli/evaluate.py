"""``lrp-jax evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrp_jax.cli.arguments import Collect, add_batch_size, add_levels, add_method, add_model, flag, positive
from lrp_jax.cli.console import FAILED, print_table, progress, say, table, warn
from lrp_jax.cli.models import load_model
from lrp_jax.datasets import Dataset, DigitDataset, ImageNetFolder, ImageNetSegmentation, MaskFolder, sees_scenes
from lrp_jax.evaluate import PROTOCOLS, Protocol, Summary, draw_curves, draw_maps
from lrp_jax.files import needs
from lrp_jax.labels import Labels
from lrp_jax.methods import METHODS
from lrp_jax.pictures import Preprocessing


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "evaluate",
        help="measure how good a method's maps are over a dataset",
        description="Measure how good a method's maps are over a dataset. Results go to a folder; an interrupted run "
        "goes on where it stopped.",
    )
    protocols = command.add_subparsers(metavar="PROTOCOL", required=True)
    for protocol in PROTOCOLS.values():
        _add_protocol(protocols, protocol)


def _add_protocol(protocols: Any, protocol: Protocol) -> None:
    command = protocols.add_parser(protocol.name, help=protocol.summary, description=f"Measure {protocol.summary}.")
    command.set_defaults(run=run, protocol=protocol)
    masked = "masks" in protocol.needs
    pictures = (
        "gtsegs_ijcv.mat of ImageNet-Segmentation, or a folder with images/ and masks/"
        if masked
        else "or a folder of pictures: a folder a class, or with --labels"
    )
    command.add_argument(
        "--dataset", default="digits", metavar="DATASET", help=f"'digits', {pictures} (default: digits)"
    )
    add_levels(command)
    add_model(command)
    add_method(command)
    command.add_argument(
        "--images", type=positive, metavar="N", help="at most N, evenly spaced; digits: N scenes (1000)"
    )
    add_batch_size(command, "evaluated")
    command.add_argument("--correct-only", action="store_true", help="only images that are classified right")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="(default: lrp_jax_results/PROTOCOL-METHOD)")
    command.set_defaults(protocol_options={})
    of_methods = {option for method in METHODS.values() for option in method.options}
    for name, option in protocol.options.items():
        command.add_argument(
            flag(f"{protocol.name}_{name}" if name in of_methods else name),
            action=Collect,
            dest="protocol_options",
            const=name,
            type=type(option.default),
            choices=option.choices or None,
            metavar=None if option.choices else "VALUE",
            help=f"{option.what} (default: {option.default})",
        )
    if masked:
        command.set_defaults(labels=None, crop=False)
        return
    command.add_argument("--labels", type=Path, metavar="FILE", help="the class of each picture of one folder")
    command.add_argument(
        "--crop",
        action="store_true",
        help="prepare pictures as for the model, to compare the clean accuracy with a published one; without, "
        "they are resized to the model's size as in the paper",
    )


def run(options: argparse.Namespace) -> int:
    """Evaluate, print the figures, draw."""
    protocol: Protocol = options.protocol
    model, params, preprocessing, labels = load_model(options.model)
    dataset = _dataset(options, preprocessing, labels)
    told: dict[str, Any] = {"preprocessing": preprocessing, "labels": labels}
    folder = options.output or Path("lrp_jax_results") / f"{protocol.name}-{options.method}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder, {folder} is a file.")
    if protocol.curves:
        needs("matplotlib.figure", extra="evaluate")  # now, not at the end
    begun = (folder / "settings.json").exists()
    explained: dict[str, Any] = {"method": options.method, "options": options.method_options}
    with progress(protocol.name, len(dataset)) as (advance, _):
        summary = protocol(
            model,
            params,
            dataset,
            folder,
            **explained,
            **told,
            batch_size=min(options.batch_size, len(dataset)),
            correct_only=options.correct_only,
            progress=lambda done, total: advance(done, total=total),
            **options.protocol_options,
        )
    measured = protocol.measured(dataset, folder)
    _print_summary(summary, measured, labels)
    if protocol.curves:
        draw_curves(summary, folder / "curves.png")
    maps = folder / "maps.png"
    if not begun or not maps.exists():
        draw_maps(model, params, measured, maps, **explained, **told)
    say(f"{summary.images} images, {options.method}: {folder}")
    return _tell_skipped(summary, len(dataset))


def _print_summary(summary: Summary, dataset: Dataset, labels: Labels) -> None:
    rows = table("figure", "value", "95% interval")
    for name, figure in summary.figures.items():
        rows.add_row(name, f"{figure.value:.2f}", f"{figure.low:.2f} to {figure.high:.2f}")
    print_table(rows)
    if dataset.labels_per_image > 1:
        print(f"An image has {dataset.labels_per_image} labels: a hit is a label among as many of the largest logits.")
    if "clean accuracy" not in summary.figures:
        outputs = "The model's outputs are numbers" if labels.regression else "The model has one output"
        why = outputs if labels.regression or labels.num_classes == 1 else "The dataset has no labels"
        print(f"{why}: no clean accuracy.")


def _tell_skipped(summary: Summary, total: int) -> int:
    """Name the images that were skipped; the exit status."""
    for image, reason in summary.skipped.items():
        warn(f"skipped: {image}: {reason}")
    if summary.skipped:
        warn(f"{len(summary.skipped)} of {total} images were skipped; to try them again, give another --output.")
    return FAILED if summary.skipped else 0


def _dataset(options: argparse.Namespace, preprocessing: Preprocessing, labels: Labels) -> Dataset:
    if options.dataset == "digits":
        if not sees_scenes(preprocessing, labels):
            raise ValueError("--dataset digits is for models of digit scenes, such as 'demo'; give another --dataset.")
        if options.labels or options.crop or options.levels:
            raise ValueError("--labels, --crop and --levels are for folders of pictures; give a --dataset.")
        return DigitDataset(options.images or 1000)
    path = Path(options.dataset)
    if "masks" in options.protocol.needs:
        if path.suffix == ".mat":
            if options.levels:
                raise ValueError("--levels is for folders of pictures; those of a .mat have 8 bits.")
            return ImageNetSegmentation(path, preprocessing, images=options.images)
        return MaskFolder(path, preprocessing, images=options.images, levels=options.levels)
    folder = ImageNetFolder(
        path,
        preprocessing,
        labels,
        labels=options.labels,
        images=options.images,
        squash=not options.crop,
        levels=options.levels,
    )
    say(folder.note)
    return folder
