"""Weight files of other libraries, read without those libraries: trees of names and arrays."""

from __future__ import annotations

import json
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore

from lrp_jax.checks import listed
from lrp_jax.files import read_text
from lrp_jax.weights.native import read_tensors
from lrp_jax.weights.pickles import read_torch_legacy, read_torch_zip


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of weights holds; :func:`lrp_jax.weights.nests.find` finds the model in it.

    Args:
        path: ``.safetensors``, or the ``.safetensors.index.json`` of a sharded one; ``.npz``; ``.msgpack`` of Flax; or
            what ``torch.save`` wrote (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), in its zip or its older form.

    Returns:
        Names to arrays in the file's dtypes, bfloat16 included, or to mappings of them, or to whatever else there is.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged or of another format, or a pickle of something else than a mapping.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights in it.")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    with path.open("rb") as file:
        try:
            return _read(file)
        except Exception as error:  # a damaged pickle or archive fails in any way
            reason = error if isinstance(error, ValueError) else f"it is damaged ({error or type(error).__name__})."
            raise ValueError(f"{path}: {reason}") from error


def _read(file: IO[bytes]) -> dict[str, Any]:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith(".npy") for name in names):
                return _read_npz(archive)
            return read_torch_zip(archive, names)
    if start[:1] == b"\x80" and file.read(2)[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        file.seek(0)
        return read_torch_legacy(file)
    if start and (0x80 < start[0] < 0x90 or start[0] in (0xDE, 0xDF)):  # a map that is not empty
        file.seek(0)
        tree = msgpack_restore(file.read())
        return dict(tree)
    raise ValueError("this is neither .safetensors nor .npz nor .msgpack nor a PyTorch file.")


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    try:
        files: dict[str, str] = json.loads(read_text(path))["weight_map"]
        shards = sorted(set(files.values()))
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("a shard lies outside of the folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not an index of .safetensors files: {error}.") from error
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        arrays |= read_tensors(path.parent / shard)[0]
    differences = sorted(files.keys() ^ arrays.keys())
    if differences:
        raise ValueError(f"{path} and its shards do not hold the same names: {listed(differences)}.")
    return arrays


def _read_npz(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    arrays = {}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise ValueError(f"{entry.filename} holds Python objects, which are not read.")
            size = math.prod(shape) * dtype.itemsize
            if size > entry.file_size:
                raise ValueError(f"{entry.filename} is cut short: {entry.file_size} bytes for {size}.")
            array = np.frombuffer(file.read(size), dtype).reshape(shape, order="F" if fortran else "C")
        # NumPy has no name for bfloat16, and stores it as two bytes of no type.
        arrays[entry.filename.removesuffix(".npy")] = array.view(jnp.bfloat16) if dtype == np.dtype("V2") else array
    return arrays
