"""What commands print: tables, progress, errors."""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.measure import measure_renderables
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from lrp_jax.checks import visible

#: Exit statuses: some of what was asked for could not be done; the command was wrong.
FAILED, MISUSED = 1, 2
_EVERY = 60  # seconds between lines of progress
_FILE = 10_000  # columns of a file or a pipe
_GAP = 2  # between columns of a table


class Advance(Protocol):
    """Says how far the work is."""

    def __call__(self, done: int, note: str = ..., total: int = ...) -> None:
        """So many are done; what else is to be said; and of how many, if it is not what was thought."""


@contextmanager
def progress(
    title: str, total: int, *, unit: str = "images", first: str = "the program is compiled first, which takes a while"
) -> Iterator[tuple[Advance, Console]]:
    """A bar on standard error, with the rate and the time that is left; where that is no terminal, a line a minute.

    Args:
        title: what is done.
        total: how many there are.
        unit: what they are.
        first: what is said at once, before the first is done.

    Yields:
        What to call with the number that is done, and a console for lines beside the bar.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")]
    begun: list[float] = []  # when, with how many, and how many since
    printed = time.monotonic()
    if not errors.is_terminal:
        errors.print(f"{title}: {first}", markup=False)
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=total, said=first)

        def advance(done: int, note: str = "", total: int = total) -> None:
            nonlocal printed
            now = time.monotonic()
            if not begun or done < begun[2]:  # of several passes each is timed by itself
                begun[:] = [now, done, done]
            begun[2] = done
            rate = (done - begun[1]) / max(now - begun[0], 1e-9)
            said = f"{rate:.3g} {unit}/s, {timedelta(seconds=round((total - done) / rate))} left" if rate else ""
            said += f"; {note}" if said and note else note
            bar.update(task, completed=done, total=total, said=said or (first if done < total else ""))
            if not errors.is_terminal and (now - printed >= _EVERY or done == total):
                printed = now
                errors.print(f"{title}: {done:,} of {total:,} {unit}{', ' if said else ''}{said}", markup=False)

        yield advance, errors


def table(*columns: str) -> Table:
    """An empty table."""
    return Table(*map(visible, columns), box=None, pad_edge=False)


def add_row(rows: Table, *cells: str) -> None:
    """Add a row, whatever the names in it."""
    rows.add_row(*map(visible, cells))


def print_table(rows: Table) -> None:
    """Print a table on standard output: as wide as the terminal, or as its longest words, so that none is cut."""
    if sys.stdout is not None:
        # With a height as well, or a terminal that is called dumb has 80 columns.
        wide = Console(width=_FILE, height=100, highlight=False, markup=False)
        if sys.stdout.isatty():
            _fit(rows, Console().width, wide)
        wide.print(rows)


def _fit(rows: Table, width: int, console: Console) -> None:
    """Give columns their width in a terminal: their longest words, and a share of the columns that are left."""
    sizes = [measure_renderables(console, console.options, [c.header, *c.cells]) for c in rows.columns]
    wanted = sum(size.maximum - size.minimum for size in sizes)
    spare = width - sum(size.minimum + _GAP for size in sizes)
    share = min(1, max(0, spare) / max(1, wanted))
    for column, size in zip(rows.columns, sizes, strict=True):
        column.width = size.minimum + int(share * (size.maximum - size.minimum))


def say(text: str) -> None:
    """Print a line on standard output, whatever the names in it."""
    print(visible(text))


def warn(text: str) -> None:
    """Print a line on standard error, with the name of the command before it."""
    print(f"lrp-jax: {visible(text)}", file=sys.stderr)


def one_line(error: Exception) -> str:
    """An error for people, on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return visible(f"{error.filename}: {error.strerror}")
    return visible(" ".join(str(error).split()))


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings as lines on standard error: of those that say the same of many pictures the first, and how many more."""
    kinds: Counter[str] = Counter()

    def tell(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if not issubclass(category, UserWarning):
            print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)
            return
        kind = str(getattr(message, "text", message))
        kinds[kind] += 1
        if kinds[kind] == 1:
            warn(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell
        try:
            yield
        finally:
            for kind, count in kinds.items():
                if count > 1:
                    warn(f"warning: {count - 1:,} more, each of which {kind}")
