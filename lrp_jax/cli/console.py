"""What commands print: tables, progress, errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

#: Exit statuses: some of what was asked for could not be done; the command was wrong.
FAILED, MISUSED = 1, 2
_EVERY = 60  # seconds between lines of progress


class Advance(Protocol):
    """Says how far the work is."""

    def __call__(self, done: int, note: str = ..., total: int = ...) -> None:
        """So many are done; what else is to be said; and of how many, if it is not what was thought."""


@contextmanager
def progress(
    title: str, total: int, *, hidden: bool = False, unit: str = "images"
) -> Iterator[tuple[Advance, Console]]:
    """A bar on standard error, with the rate and the time that is left; where that is no terminal, a line a minute.

    Args:
        title: what is done.
        total: how many there are.
        hidden: whether there is nothing to wait for.
        unit: what they are.

    Yields:
        What to call with the number that is done, and a console for lines beside the bar.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")]
    begun: list[float] = []  # when, with how many, and how many since
    printed = time.monotonic()
    with Progress(*columns, console=errors, disable=hidden or not errors.is_terminal) as bar:
        task = bar.add_task("", total=total, said="")

        def advance(done: int, note: str = "", total: int = total) -> None:
            nonlocal printed
            now = time.monotonic()
            if not begun or done < begun[2]:  # of several passes each is timed by itself
                begun[:] = [now, done, done]
            begun[2] = done
            rate = (done - begun[1]) / max(now - begun[0], 1e-9)
            said = f"{rate:.3g} {unit}/s, {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
            said += f"; {note}" if said and note else note
            bar.update(task, completed=done, total=total, said=said)
            if not (hidden or errors.is_terminal) and (now - printed >= _EVERY or done == total):
                printed = now
                errors.print(f"{title}: {done:,} of {total:,} {unit}{', ' if said else ''}{said}", markup=False)

        yield advance, errors


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
