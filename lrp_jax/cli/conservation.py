"""``lrp-jax conservation``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrp_jax.attribution import most_probable
from lrp_jax.cli.arguments import (
    add_classes,
    add_images,
    add_levels,
    add_model,
    check_destination,
    image_in,
    pictures_named,
    targets_in,
)
from lrp_jax.cli.console import progress
from lrp_jax.cli.models import load_model
from lrp_jax.conservation import conservation
from lrp_jax.files import needs
from lrp_jax.labels import Vocabulary
from lrp_jax.rules import RULES


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "conservation",
        help="tell where relevance stands in a model, and which operations make or lose it",
        description="Tell how much relevance stands at every residual sum of a model, from the logit down, and how "
        "much of it biases, softmax and the rest make or lose: means over the images and classes. Without images, of "
        "the example scenes that come with the package. JAX_ENABLE_X64=1 computes in float64.",
    )
    command.set_defaults(run=run)
    add_images(command)
    add_levels(command)
    add_model(command)
    add_classes(command)
    command.add_argument(
        "--rules",
        choices=list(RULES),
        default="libragrad",
        metavar="RULES",
        help=f"{', '.join(RULES)} (default: libragrad)",
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="also draw it (needs the extra evaluate)")
    command.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> int:
    """Print the report of all pictures at once."""
    if options.plot is not None:
        check_destination(options.plot, force=options.force, called="--plot")
        needs("matplotlib.figure", extra="evaluate")
    model, params, preprocessing, labels = load_model(options.model)
    asked, count = targets_in(options, labels, Vocabulary(labels))
    paths = pictures_named(options.images, preprocessing.channels)
    found = np.stack([image_in(path, preprocessing, options.levels)[1] for path in paths])
    images = jnp.asarray(found, jnp.result_type(float))
    targets = jnp.broadcast_to(jnp.asarray(asked, jnp.int32), (len(images), len(asked)))
    with progress("accounting for relevance", len(images)) as (advance, _):
        targets = targets if asked else most_probable(model, params, images, count)
        report = conservation(model, params, images, targets, rules=options.rules)
        advance(len(images))
    print(report)
    if options.plot is not None:
        report.plot(options.plot)
    return 0
