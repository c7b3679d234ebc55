"""``lrp-jax export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.cli.arguments import add_method, add_model, check_destination, positive
from lrp_jax.cli.console import progress, say
from lrp_jax.cli.models import load_model
from lrp_jax.exporting import PLATFORMS, export
from lrp_jax.files import needs, replacing


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "export",
        help="write model and method as one function that runs without this library",
        description="Write model and method as one function of images, in StableHLO, for any batch, that JAX loads "
        "without this library: jax.export.deserialize, which needs flatbuffers (pip install jax flatbuffers). This JAX "
        "and newer ones read the file for six months; older ones may not read it, and JAX cannot write for an older "
        "one: export with the oldest that is to read it. Needs the extra export.",
    )
    command.set_defaults(run=run)
    command.add_argument("destination", type=Path, metavar="DEST", help="the file to write")
    command.add_argument("--force", action="store_true", help="replace DEST if it exists")
    add_model(command)
    command.add_argument("--takes-targets", action="store_true", help="a function of images and classes [B, K]")
    command.add_argument("--top-k", type=positive, metavar="K", help="explain the K most probable classes (default: 1)")
    command.add_argument("--upsample", action="store_true", help="maps of the size of the image, not of its patches")
    command.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        default=["cpu", "cuda", "tpu"],
        help="where it shall run (default: cpu cuda tpu)",
    )
    add_method(command)


def run(options: argparse.Namespace) -> int:
    """Export, and say how it is used."""
    needs("flatbuffers", extra="export")
    path = options.destination
    check_destination(path, force=options.force)
    if options.takes_targets and options.top_k:
        raise ValueError("--takes-targets and --top-k exclude each other.")
    model, params, preprocessing, _ = load_model(options.model)
    platforms = list(dict.fromkeys(options.platforms))
    said = "the program is lowered, which takes a while"
    with progress("exporting", len(platforms), unit="platforms", first=said) as (advance, _):
        exported = export(
            model,
            params,
            method=options.method,
            takes_targets=options.takes_targets,
            top_k=options.top_k or 1,
            upsample=options.upsample,
            platforms=platforms,
            example=jax.ShapeDtypeStruct((1, *preprocessing.image_shape), jnp.float32),
            **options.method_options,
        )
        advance(len(platforms))
    with replacing(path) as temporary:
        temporary.write_bytes(exported.serialize())
    shape = ", ".join(map(str, preprocessing.image_shape))
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {', '.join(platforms)}")
    say(f"images: float32 [B, {shape}], pixels in [0, 1] less mean {preprocessing.mean}, over std {preprocessing.std}")
    say(
        f"use (pip install jax flatbuffers): jax.export.deserialize(open({str(path)!r}, 'rb').read()).call(images"
        f"{', targets' if options.takes_targets else ''})"
    )
    return 0
