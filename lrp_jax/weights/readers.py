"""Weight files of other libraries, read without those libraries: trees of names and arrays."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore

from lrp_jax.checks import listed
from lrp_jax.files import read_text, regular
from lrp_jax.weights.folders import read_folder
from lrp_jax.weights.native import read_tensors
from lrp_jax.weights.pickles import read_torch_legacy, read_torch_zip

_KERAS = (
    "its names are those of its own layers. Load the model in Keras, with JAX as the backend, and explain it with "
    "lrp_jax.trace."
)
# What else people have for weights: how it begins, what it is, and the way in.
_OTHERS = {
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras writes weights (.weights.h5, .h5): {_KERAS}",
    b"\x93NUMPY": "an array of NumPy (.npy), or what Equinox writes (.eqx), without names: read it with its library, "
    "and give lrp_jax.convert a mapping of names to arrays, or explain the model of that library: lrp_jax.trace.",
    b"GGUF": "a GGUF file, of quantised weights: give those that it was made from, as .safetensors.",
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of weights holds; :func:`lrp_jax.weights.nests.find` finds the model in it.

    Args:
        path: ``.safetensors``, or the ``.safetensors.index.json`` of a sharded one; ``.npz``; ``.msgpack`` of Flax;
            what ``torch.save`` wrote (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), in its zip or its older form; or a
            folder that Orbax wrote.

    Returns:
        Names to arrays in the file's dtypes, bfloat16 included, or to mappings of them, or to whatever else there is.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged or of another format, or a pickle of something else than a mapping.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    with regular(path).open("rb") as file:
        start = file.read(9)
        if path.suffix.lower() == ".safetensors" or start[4:] == b"\0\0\0\0{":
            return read_tensors(path)[0]
        file.seek(0)
        try:
            return _read(file, start)
        except Exception as error:  # a damaged pickle or archive fails in any way
            reason = error if isinstance(error, ValueError) else f"it is damaged ({error or type(error).__name__})."
            raise ValueError(f"{path}: {reason}") from error


def _read(file: IO[bytes], start: bytes) -> dict[str, Any]:
    for beginning, name in _OTHERS.items():
        if start.startswith(beginning):
            raise ValueError(f"this is {name}")
    if start[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"the archive holds {listed(twice, 3)} more than once.")
            if "model.weights.h5" in names:
                raise ValueError(f"this is a model of Keras (.keras): {_KERAS}")
            if any(name.endswith(".npy") for name in names):
                return _read_npz(archive)
            return read_torch_zip(archive, names)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return read_torch_legacy(file)
    if start and (0x80 < start[0] < 0x90 or start[0] in (0xDE, 0xDF)):  # a map that is not empty
        try:
            return dict(msgpack_restore(file.read()))
        except Exception as error:
            raise ValueError(f"this is no .msgpack of Flax, or a damaged one: {error}") from error
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
        found = read_tensors(path.parent / shard)[0]
        differences = sorted({name for name, file in files.items() if file == shard} ^ found.keys())
        if differences:
            raise ValueError(f"{path} and {shard} do not hold the same names: {listed(differences)}.")
        arrays |= found
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
        name = entry.filename.removesuffix(".npy")
        if name in arrays:
            raise ValueError(f"the archive holds {name} twice.")
        # NumPy has no name for bfloat16, and stores it as two bytes of no type.
        arrays[name] = array.view(jnp.bfloat16) if dtype == np.dtype("V2") else array
    return arrays
