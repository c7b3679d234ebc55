"""``lrp-jax attribute``."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

import jax
import numpy as np

from lrp_jax.cli.arguments import add_batch_size, add_levels, add_method, add_model, positive
from lrp_jax.cli.console import FAILED, one_line, progress, say, warn
from lrp_jax.cli.models import load_model
from lrp_jax.files import needs
from lrp_jax.jobs import DTYPES, Progress, Report, StoreError, attribute, join, open_source
from lrp_jax.labels import Vocabulary

_NAMED = 10  # failures that are printed: the store has all


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "attribute",
        help="write the maps of a whole dataset to a zarr store, on all devices",
        description="Write the maps of a whole dataset to a zarr store, on all devices of this machine, or of many "
        "(--distributed). The same command goes on where it stopped. Needs the extra jobs.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="a folder of pictures (with its folders) or of tar shards; a .txt with a picture's path on each line; a "
        ".npy or .npz of pictures (bytes) or of images normalised for the model (floating-point); or any number of "
        "pictures, or of .tar; for a model of other than 1 or 3 channels pictures are TIFF and .npy of as many bands",
    )
    command.add_argument(
        "--member",
        metavar="EXT",
        help="of tar shards: which member of each sample is explained, what follows the first dot of its name, such as "
        "jpg or rgb.png; '*': every picture is an image of its own (default: the one picture of each sample)",
    )
    command.add_argument("--out", required=True, metavar="MAPS.zarr", help="the store: a folder, or gs:// or s3://")
    add_levels(command)
    add_model(command)
    command.add_argument(
        "--target",
        action="append",
        metavar="CLASS",
        help="explain this class of every image, by name or index; may be given several times (default: the most "
        "probable one)",
    )
    command.add_argument("--top-k", type=positive, metavar="K", help="explain the K most probable classes (default: 1)")
    add_method(command)
    command.add_argument("--upsample", action="store_true", help="maps of the size of the image, not of its patches")
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the maps; float16: scaled, see the array scale; float64 is computed in as well (default: float32)",
    )
    add_batch_size(command, "explained on each device")
    command.add_argument(
        "--shard-size", type=positive, metavar="N", help="images written together, a power of two (default: up to 256)"
    )
    command.add_argument(
        "--allow-failures", action="store_true", help="end with status 0 although images could not be read"
    )
    group = command.add_argument_group("many processes, each with devices of its own")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="share the images with others; on TPU pods, SLURM and Kubernetes the environment says with which",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where the environment does not say it")
    group.add_argument("--process-count", type=positive, metavar="N", help="likewise: how many there are")
    group.add_argument("--process-index", type=int, metavar="I", help="likewise: which of them this is, from 0")


def run(options: argparse.Namespace) -> int:
    """Explain, and say what failed."""
    needs("tensorstore", extra="jobs")
    if options.target and options.top_k:
        raise ValueError("--target and --top-k exclude each other: the classes are given, or the most probable ones.")
    index, count = _processes(options)
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    model, params, preprocessing, labels = load_model(options.model)
    source = open_source(options.input, member=options.member, levels=options.levels, channels=preprocessing.channels)
    vocabulary = Vocabulary(labels)
    targets = np.array([vocabulary.index(word) for word in options.target]) if options.target else None
    begun = False
    try:
        with progress("explaining" if count == 1 else f"process {index} of {count}", len(source.names)) as (advance, _):

            def follow(state: Progress) -> None:
                nonlocal begun
                begun = True
                advance(state.done, _waits(state), state.total)

            report = attribute(
                model,
                params,
                source,
                options.out,
                preprocessing=preprocessing,
                labels=labels,
                method=options.method,
                options=options.method_options,
                targets=targets,
                top_k=options.top_k or 1,
                dtype=options.dtype,
                upsample=options.upsample,
                batch_size=options.batch_size,
                shard_size=options.shard_size,
                process=(index, count),
                progress=follow,
            )
    except StoreError as error:
        print(f"lrp-jax: error: {one_line(error)}", file=sys.stderr)
        if begun:
            print("lrp-jax: what is in the store is whole: the same command goes on there.", file=sys.stderr)
        return FAILED
    _print_report(options.out, report)
    return FAILED if report.failures and not options.allow_failures else 0


def _processes(options: argparse.Namespace) -> tuple[int, int]:
    """Which process this is, and of how many."""
    given = (options.coordinator, options.process_count, options.process_index)
    if not options.distributed:
        if any(value is not None for value in given):
            raise ValueError("--coordinator, --process-count and --process-index go with --distributed.")
        return 0, 1
    if options.coordinator and not re.fullmatch(r".+:\d+", options.coordinator):
        raise ValueError(f"--coordinator must be HOST:PORT, got {options.coordinator!r}.")
    print("lrp-jax: waiting for the other processes, five minutes at most.", file=sys.stderr)
    try:
        return join(*given)
    except ValueError as error:
        raise ValueError(
            f"--distributed: {error} Where no TPU pod, SLURM or Kubernetes says it, give --coordinator, "
            "--process-count and --process-index."
        ) from error


def _waits(state: Progress) -> str:
    """Shares of the time that went into waiting: which of input, device and store is the limit."""
    if not state.seconds:
        return ""
    shares = ", ".join(f"{what} {seconds / state.seconds:.0%}" for what, seconds in state.waited.items())
    return f"waiting for {shares}" + (f"; {state.failed} failed" if state.failed else "")


def _print_report(out: str, report: Report) -> None:
    state = report.progress
    rate = f" in {state.seconds:.1f} s, {state.explained / state.seconds:.3g} images/s; " if state.seconds else ""
    say(f"{out}: {state.explained:,} images explained{rate}{_waits(state)}")
    print(f"{state.done:,} of {state.total:,} images are done", end="")
    print(f", {report.remaining:,} are left to other processes" if report.remaining else "")
    print(f"read: zarr.open_group({out!r}, mode='r') after pip install zarr, or xarray.open_zarr({out!r})")
    for name, reason in report.failures[:_NAMED]:
        warn(f"failed: {name}: {reason}")
    if report.failures:
        warn(f"{len(report.failures)} of {state.total} images failed.")
