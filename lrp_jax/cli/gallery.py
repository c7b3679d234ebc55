"""``lrp-jax gallery``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lrp_jax.cli.arguments import positive
from lrp_jax.cli.console import progress, say, warn
from lrp_jax.jobs import Store
from lrp_jax.jobs.page import LIMIT, gallery, reopened


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "gallery",
        help="write a page of the maps of a store, to be looked through in a browser",
        description="Write a page of the maps of a store: thumbnails by class, by failure, and by how unlike the "
        "others they are. It needs no server: open OUT/index.html. Needs the extra jobs.",
    )
    command.set_defaults(run=run)
    command.add_argument("store", metavar="MAPS.zarr")
    command.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    command.add_argument(
        "--input", nargs="+", metavar="INPUT", help="the images, if they are no longer where the store says"
    )
    command.add_argument(
        "--images", type=positive, default=LIMIT, metavar="N", help="at most N, evenly spaced (default: %(default)s)"
    )
    command.add_argument("--force", action="store_true", help="write into OUT although it holds something")


def run(options: argparse.Namespace) -> int:
    """Write the page, and say what it shows."""
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"OUT must be a folder, {options.out} is a file.")
    if options.out.is_dir() and any(options.out.iterdir()) and not options.force:
        raise ValueError(f"{options.out} is not empty: --force writes into it.")
    source = reopened(Store(options.store), options.input) if options.input else None
    with progress("drawing", options.images, first="the store is read") as (advance, _):
        page = gallery(
            options.store,
            options.out,
            source=source,
            limit=options.images,
            progress=lambda done, total: advance(done, total=total),
        )
    if page.missing:
        warn(f"warning: {len(page.missing)} pictures are not there: {page.missing[0]}, ...")
    some = "" if page.images == page.explained else f" of {page.explained:,}, evenly spaced"
    say(f"{options.out / 'index.html'}: {page.images:,} images{some}, {page.failed:,} failures")
    return 0
