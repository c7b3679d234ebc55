"""The command line: ``lrp-jax``, a file a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import jax

from lrp_jax.checks import visible
from lrp_jax.cli import attribute, compare, conservation, convert, evaluate, explain, export, gallery, methods
from lrp_jax.cli.console import FAILED, MISUSED, one_line, warnings_told
from lrp_jax.cli.interrupts import Watch
from lrp_jax.version import __version__

_COMMANDS = (explain, compare, conservation, attribute, gallery, methods, evaluate, convert, export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after ``lrp-jax``; None: those of the process.

    Returns:
        The exit status: 0, everything asked for was done; 1, some images could not be explained (they are named on
        standard error), or the device failed; 2, the command was wrong and nothing was done, or no image could be
        evaluated; 130, interrupted; 143, terminated.
    """
    options = _parser().parse_args(arguments)
    watch = Watch()
    try:
        with watch, warnings_told():
            return options.run(options)
    except KeyboardInterrupt as error:
        return watch.end(error)
    except (ImportError, OSError, ValueError) as error:
        print(f"lrp-jax: error: {one_line(error)}", file=sys.stderr)
        return MISUSED
    except jax.errors.JaxRuntimeError as error:
        hint = " Try a smaller --batch-size." if "RESOURCE_EXHAUSTED" in str(error) else ""
        print(f"lrp-jax: error: {one_line(error)}{hint}", file=sys.stderr)
        return FAILED


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong: the usage has a dozen, and is in the help."""

    def error(self, message: str) -> NoReturn:
        """End with the line."""
        self.exit(MISUSED, f"{self.prog}: error: {visible(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lrp-jax", description="Class-specific relevance maps for Vision Transformers.")
    parser.add_argument("--version", action="version", version=f"lrp-jax {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
