"""Files whole or not at all, and modules that are there or not."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it there on success, remove it on any error.

    Args:
        path: the file to write, in an existing folder.

    Yields:
        The path to write to, with the suffix of ``path``.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def needs(module: str, *, extra: str) -> Any:
    """Import a module of an optional extra.

    Args:
        module: its name.
        extra: the extra of lrp-jax that brings it.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is needed here: pip install "lrp-jax[{extra}]".') from error
