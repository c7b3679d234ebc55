"""``lrp-jax convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax

from lrp_jax.checks import listed
from lrp_jax.cli.arguments import check_destination, positive, value
from lrp_jax.cli.console import say
from lrp_jax.labels import Vocabulary, class_names_in, imagenet_classes
from lrp_jax.weights import FAMILIES, PREPROCESSING, Conversion, convert_with_summary, save


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "convert",
        help="turn published weights into a checkpoint",
        description="Turn published weights (timm, Hugging Face, torchvision, Google, the paper's authors) into a "
        "checkpoint for --model. What they are is recognised from their names.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help=".safetensors (or its .index.json), .npz, .msgpack, .bin, .pt, .pth, or a folder that Orbax wrote; "
        "config.json beside it is read too",
    )
    command.add_argument("destination", type=Path, metavar="DEST.safetensors")
    command.add_argument("--force", action="store_true", help="replace DEST if it exists")
    command.add_argument("--family", choices=list(FAMILIES), help="(default: recognised)")
    command.add_argument(
        "--key", metavar="PATH", help="which of several models in SOURCE, such as teacher or checkpoint.model"
    )
    command.add_argument("--num-heads", type=positive, metavar="H", help="where the source does not say")
    command.add_argument(
        "--image-size",
        type=positive,
        nargs="+",
        metavar="PIXELS",
        help="edge, or rows and columns; the position embeddings are resampled (default: as trained)",
    )
    command.add_argument(
        "--preprocessing", choices=list(PREPROCESSING), help="as published there (default: as the source says)"
    )
    command.add_argument("--labels", metavar="FILE", help="the classes' names, one a line, or 'imagenet1k'")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field of lrp_jax.ViTConfig, e.g. gelu=quick, final_norm_epsilon=1e-5 or mean=[0.5,0.5,0.5]",
    )


def run(options: argparse.Namespace) -> int:
    """Convert, save, and print what was found."""
    if options.destination.suffix != ".safetensors":
        raise ValueError(f"DEST must end in .safetensors, got {str(options.destination)!r}.")
    check_destination(options.destination, force=options.force)
    given = {"family": options.family, "preprocessing": options.preprocessing, "key": options.key}
    found = convert_with_summary(options.source, **given, **_fields(options))
    save(options.destination, found.model, found.params)
    _print_summary(options.destination, found)
    return 0


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that are given."""
    fields: dict[str, Any] = {}
    for assignment in options.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set must be FIELD=VALUE, got {assignment!r}.")
        fields[name] = value(text)
    if options.num_heads:
        fields["num_heads"] = options.num_heads
    if options.image_size:
        if len(options.image_size) > 2:
            raise ValueError(f"--image-size must be one or two numbers, got {len(options.image_size)}.")
        fields["image_size"] = (options.image_size[0], options.image_size[-1])
    if options.labels:
        known = options.labels == "imagenet1k"
        fields["class_names"] = tuple(n for _, n in imagenet_classes()) if known else class_names_in(options.labels)
    return fields


def _print_summary(destination: Path, found: Conversion) -> None:
    config = found.model.config
    parameters = sum(p.size for p in jax.tree.leaves(found.params))
    rows, cols, _ = config.image_shape
    say(f"{destination}: weights of {FAMILIES[found.family].title}, {parameters:,} parameters")
    say(
        f"{config.depth} blocks of width {config.width}, {config.num_heads} heads, {rows} x {cols} pixels in "
        f"{config.grid[0]} x {config.grid[1]} patches, readout {config.readout}, {config.num_classes} classes"
    )
    say(f"pixels: mean {config.mean}, std {config.std}, resize {config.resize}, {config.interpolation}")
    for note in found.notes:
        say(f"note: {note}")
    if shared := Vocabulary(config).shared():
        say(f"note: --target takes by index what several classes are called: {listed(shared)}")
    if found.ignored:
        say(f"ignored: {', '.join(found.ignored)}")
