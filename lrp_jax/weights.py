"""Weight files of other libraries, read without those libraries: name to array.

A PyTorch pickle is a program. Of what it can name, this reader knows tensors and plain containers, and refuses the
rest: opening a file never runs code of its own. Memory is bounded by the size of the file.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lrp_jax.checkpoint import listed, read_tensors

_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_PICKLE_BYTES = 2**26
# Where training scripts put the weights, in order of preference.
_NESTS = ("state_dict", "model", "model_ema", "state_dict_ema", "module", "model_state_dict", "net", "weights")


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a file of weights.

    Args:
        path: ``.safetensors``, or the ``.safetensors.index.json`` of a sharded one; ``.npz``; or what ``torch.save``
            wrote (``.bin``, ``.pt``, ``.pth``), in its zip or its older form, at the top or under ``state_dict``,
            ``model``, ``model_ema`` and the like.

    Returns:
        Name to array, in the file's dtypes, bfloat16 included.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, of another format, or a pickle that names anything but tensors and containers.
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


def _read(file: IO[bytes]) -> dict[str, np.ndarray]:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith(".npy") for name in names):
                return _read_npz(archive)
            return _unprefixed(_read_torch_zip(archive, names))
    if start[:1] == b"\x80":
        return _unprefixed(_read_torch_legacy(file))
    raise ValueError("this is neither .safetensors nor .npz nor a PyTorch file.")


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    try:
        files: dict[str, str] = json.loads(path.read_text())["weight_map"]
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


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", kind): kind for kind in _DTYPES},
}


class _Unpickler(pickle._Unpickler):
    """In Python, as the one in C allots what a memo index says, and there are few things in the pickle of a model."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(
                f"the pickle asks for {module}.{name}, and only tensors and plain containers are read from a pickle. "
                "If the file is trusted, save its state_dict alone, with torch or as .safetensors."
            )
        return _KNOWN[module, name]

    def get_extension(self, code: int) -> Any:
        raise ValueError(f"the pickle asks for extension {code}, and only tensors and containers are read.")

    def persistent_load(self, identity: Any) -> _Storage:
        name, kind, key, _, size, *_ = identity
        if name != "storage" or kind not in _DTYPES or not isinstance(size, int):
            raise ValueError(f"the pickle refers to {identity!r}, which is no storage of a tensor.")
        return _Storage(kind, str(key), size)


def _read_torch_zip(archive: zipfile.ZipFile, names: list[str]) -> Any:
    found = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise ValueError("the archive holds neither arrays (.npz) nor one data.pkl of PyTorch.")
    folder = found[0].removesuffix("data.pkl")

    def read(name: str) -> bytes:
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which PyTorch never does.")
        return archive.read(entry)

    if archive.getinfo(found[0]).file_size > _MOST_PICKLE_BYTES:
        raise ValueError(f"{found[0]} has more than {_MOST_PICKLE_BYTES} bytes, too much for the names of a model.")
    order = ">" if folder + "byteorder" in names and read(folder + "byteorder") == b"big" else "<"
    loaded: dict[str, np.ndarray] = {}

    def storage(wanted: _Storage) -> np.ndarray:
        if wanted.key not in loaded:
            dtype = np.dtype(_DTYPES[wanted.kind])
            data = np.frombuffer(read(f"{folder}data/{wanted.key}"), f"{order}u{dtype.itemsize}")
            loaded[wanted.key] = data.astype(f"=u{dtype.itemsize}", copy=False)
        return loaded[wanted.key].view(_DTYPES[wanted.kind])

    return _materialise(_Unpickler(io.BytesIO(read(found[0]))).load(), storage)


def _read_torch_legacy(file: IO[bytes]) -> Any:
    magic, _, _ = (_Unpickler(file).load() for _ in range(3))
    if magic != _LEGACY_MAGIC:
        raise ValueError("the pickle was not written by torch.save.")
    tree = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    sizes = {wanted.key: wanted for wanted in _storages(tree)}
    loaded: dict[str, np.ndarray] = {}
    for key in keys:
        wanted = sizes[str(key)]
        dtype = np.dtype(_DTYPES[wanted.kind])
        (stored,) = np.frombuffer(file.read(8), "<i8")
        data = file.read(int(stored) * dtype.itemsize) if 0 <= stored <= wanted.size else b""
        if len(data) != wanted.size * dtype.itemsize:
            raise ValueError(f"the storage {key} is cut short: {len(data)} bytes for {wanted.size} numbers.")
        loaded[wanted.key] = np.frombuffer(data, dtype)
    return _materialise(tree, lambda wanted: loaded[wanted.key])


def _nested(tree: Any) -> Mapping[str, Any]:
    """The mapping of names to tensors, wherever in the tree it is."""
    for _ in range(4):
        if not isinstance(tree, Mapping):
            break
        if any(isinstance(value, _Tensor) for value in tree.values()):
            return tree
        tree = next((tree[name] for name in _NESTS if isinstance(tree.get(name), Mapping)), None)
    raise ValueError(f"the file holds no tensors by name, neither at its top nor under {', '.join(_NESTS)}.")


def _storages(tree: Any) -> list[_Storage]:
    found: list[_Storage] = []
    seen: set[int] = set()
    stack = [tree]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _Storage):
            found.append(value)
        elif isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return found


def _materialise(tree: Any, storage: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, tensor in _nested(tree).items():
        if not isinstance(tensor, _Tensor):
            continue  # a number or a container of the training script
        data = storage(tensor.storage)
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        whole = len(tensor.shape) == len(tensor.strides) and all(isinstance(n, int) and n >= 0 for n in numbers)
        count = math.prod(tensor.shape) if whole else 0
        last = (
            tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) if whole else 0
        )
        if not whole or count > data.size or (count and last >= data.size):
            raise ValueError(f"{name} does not lie within its storage: {tensor}.")
        strides = tuple(s * data.itemsize for s in tensor.strides)
        arrays[str(name)] = (
            np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
            if count
            else np.zeros(tensor.shape, data.dtype)
        )
    return arrays


def _unprefixed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the prefix that parallel training puts before every name."""
    if all(name.startswith("module.") for name in arrays):
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays
