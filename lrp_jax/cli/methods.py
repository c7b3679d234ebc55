"""``lrp-jax methods``."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from lrp_jax.cli.console import print_table, table
from lrp_jax.methods import METHODS


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "methods",
        help="list the methods and their options",
        description="List the attribution methods, or tell all about one.",
    )
    command.set_defaults(run=run)
    command.add_argument("name", nargs="?", choices=list(METHODS), metavar="METHOD")


def run(options: argparse.Namespace) -> int:
    """Print the list, or what one method says of itself."""
    if options.name:
        method = METHODS[options.name]
        print(f"{method.name}: {inspect.getdoc(method.function)}\n\nReference: {method.reference}")
        return 0
    rows = table("method", "resolution", "classes", "options", "what", "reference")
    for method in METHODS.values():
        taken = " ".join(f"{name}={default}" for name, default in method.options.items())
        classes = "differ" if method.class_specific else "share one"
        rows.add_row(method.name, method.resolution, classes, taken, method.summary, method.reference)
    print_table(rows)
    return 0
