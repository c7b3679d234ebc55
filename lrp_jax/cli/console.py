"""What commands print: tables, progress, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

#: Exit statuses: some of what was asked for could not be done; the command was wrong; the user ended it.
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


@contextmanager
def progress(title: str, total: int, *, hidden: bool = False) -> Iterator[tuple[Callable[[int], None], Console]]:
    """A bar on standard error.

    Args:
        title: what is done.
        total: how many images there are.
        hidden: whether there is nothing to wait for.

    Yields:
        What to call with the number of images done, and a console for lines beside the bar.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done), errors


def table(*columns: str) -> Table:
    """An empty table."""
    return Table(*columns, box=None, pad_edge=False)


def print_table(rows: Table) -> None:
    """Print a table on standard output, in full width where that is a file or a pipe."""
    if sys.stdout is not None:
        Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False).print(rows)


def one_line(error: Exception) -> str:
    """An error for people, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
