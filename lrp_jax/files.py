"""Files whole or not at all, arrays as files hold them, text of any writer, and modules that are there or not."""

from __future__ import annotations

import codecs
import contextlib
import errno
import importlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: The files that come with the package.
DATA = Path(__file__).parent / "data"

# The mark that a text begins with, and its encoding.
_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


# What is being written, in any thread, and the folders that were made for it.
_temporary: set[Path] = set()
_made: set[Path] = set()
_changing = threading.Lock()


def plain(array: Any) -> np.ndarray:
    """Give an array in C order and native byte order, as files hold it.

    Formats that keep the memory under an array, as safetensors 0.8 does, would scramble any other: transposed, strided,
    broadcast, in Fortran order or of the other byte order.

    Args:
        array: of NumPy, of JAX, or a number.

    Returns:
        The same values; the array itself, where it is plain already.
    """
    values = np.asarray(array)
    return values.astype(values.dtype.newbyteorder("="), order="C", copy=False)


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
    with naming(target):
        with _changing:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
            temporary = Path(name)
            _temporary.add(temporary)
        os.close(handle)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
            _temporary.discard(temporary)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; move it there on success, remove it on any error: :func:`replacing`.

    Args:
        path: the folder to write, in an existing one. What it held before goes on success.

    Yields:
        The folder to write into.

    Raises:
        OSError: the folder around it does not exist or cannot be written to.
    """
    target = Path(path)
    with naming(target):
        with _changing:
            temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.stem}-"))
            _temporary.add(temporary)
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _temporary.discard(temporary)


@contextlib.contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Make a folder, and those around it; those that were made go again if they are empty in the end.

    Args:
        folder: the folder, which may be there.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(folder)
    made = [it for it in (folder, *folder.parents) if not it.exists()]
    _made.update(made)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        _remove_empty(made)
        _made.difference_update(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, reverse=True):  # those within others first
        with contextlib.suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of what is written say which file it is: those of a full disk name none.

    Args:
        path: the file.

    Raises:
        OSError: as it was raised, with the name, unless it names another file already.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if named is not None and not Path(os.fsdecode(named)).name.startswith(f".{path.stem}-"):  # a temporary file
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def abandon() -> None:
    """Remove the temporary files and empty folders of this process, and let it make no more: it is about to end."""
    _changing.acquire()
    for path in list(_temporary):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    _remove_empty(list(_made))


def regular(path: str | os.PathLike[str], called: str | None = None) -> Path:
    """Give the path of a file that can be read to its end.

    Args:
        path: the path.
        called: how messages name the file; None: by its path.

    Raises:
        OSError: there is no such file, or it is a folder.
        ValueError: it is a pipe, which would be waited for, a socket or a device.
    """
    kind = os.stat(path).st_mode
    name = os.fspath(path) if called is None else called
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(kind):
        raise ValueError(f"{name} is a pipe, a socket or a device, expected a file.")
    return Path(path)


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Read a text as editors and spreadsheets save it: UTF-8, with or without a mark, or UTF-16 with one.

    Args:
        path: the file.

    Returns:
        The text, its lines ended by ``\n``.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no file or no text, or of another encoding.
    """
    data = regular(path).read_bytes()
    try:
        text = data.decode(_MARKS.get(data[:2], "utf-8-sig"))
    except UnicodeError as error:
        raise ValueError(f"{path} is no text in UTF-8, or UTF-16 with its mark: {error}.") from error
    if "\0" in text:
        raise ValueError(f"{path} is no text in UTF-8, or UTF-16 with its mark: it holds zeros.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
