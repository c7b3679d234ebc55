"""What ``torch.save`` wrote, without PyTorch.

A PyTorch pickle is a program. Of what it can name, this reader knows tensors and plain containers; anything else
becomes a placeholder that does nothing: opening a file never runs code of its own. Memory is bounded by the size of
the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

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
_MOST_KINDS = 10_000  # each becomes a class, which takes far more memory than its name in the file


class Placeholder:
    """What a pickle asked for that builds no tensor, as a training script's settings: it does, and keeps, nothing."""

    origin = "Python object"

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _nothing(self, *_: Any, **__: Any) -> None:
        pass

    __setitem__ = __call__ = append = extend = add = update = _nothing


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, Placeholder):
        return storage
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_type(build: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor of a class derived from PyTorch's."""
    return build(*arguments)


def _key(key: Any) -> Any:
    """A key of a dictionary, or a placeholder for what is no name or number."""
    return key if isinstance(key, (str, bytes, int, float)) else Placeholder()


def _ordered_dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _defaultdict(*_: Any) -> dict[Any, Any]:
    return {}


def _reconstructed(kind: Any, *_: Any) -> Any:
    """How old protocols make an instance."""
    return kind() if isinstance(kind, type) and issubclass(kind, Placeholder) else Placeholder()


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _defaultdict,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    **{("torch", kind): kind for kind in _DTYPES},
}


class _Unpickler(pickle._Unpickler):
    """In Python, as the one in C allots what a memo index says, and there are few things in the pickle of a model.

    What the file puts on the stack is never hashed, as deep tuples crash the interpreter, and given no attributes.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.placeholders: dict[str, type[Placeholder]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        origin = f"{module}.{name}"
        if origin not in self.placeholders:
            if len(self.placeholders) == _MOST_KINDS:
                raise ValueError(f"the pickle asks for more than {_MOST_KINDS} things that are no tensors.")
            self.placeholders[origin] = type("Placeholder", (Placeholder,), {"origin": origin})
        return self.placeholders[origin]

    def _drop_state(self) -> None:
        self.stack.pop()

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def _append_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _append_set(self) -> None:
        self.append(Placeholder())

    def _append_frozen_set(self) -> None:
        self.pop_mark()
        self.append(Placeholder())

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _drop_state,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _append_dict,
        pickle.EMPTY_SET[0]: _append_set,
        pickle.FROZENSET[0]: _append_frozen_set,
    }

    def get_extension(self, code: int) -> Any:
        raise ValueError(f"the pickle asks for extension {code}, and only tensors and containers are read.")

    def persistent_load(self, identity: Any) -> Any:
        name, kind, key, _, size, *_ = identity
        if name != "storage" or not isinstance(size, int):
            raise ValueError(f"the pickle refers to {identity!r}, which is no storage of a tensor.")
        if not isinstance(kind, str):
            return kind() if isinstance(kind, type) and issubclass(kind, Placeholder) else Placeholder()
        return _Storage(kind, str(key), size)


def read_torch_zip(archive: zipfile.ZipFile, names: list[str]) -> Any:
    """What a file of PyTorch 1.6 or newer holds: an archive of a pickle and its storages."""
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


def read_torch_legacy(file: IO[bytes]) -> Any:
    """What a file of older PyTorch holds: pickles, and the storages after them."""
    try:
        magic = _Unpickler(file).load()
    except Exception:
        magic = None
    if magic != _LEGACY_MAGIC:
        raise ValueError(
            "this is a pickle that torch.save did not write, or a damaged one. If you trust it, read it with pickle, "
            "which runs its code, and give lrp_jax.convert the mapping of names to arrays, or save that as .npz."
        )
    for _ in range(2):  # the protocol's version, and facts of the machine
        _Unpickler(file).load()
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


def _materialise(tree: Any, storage: Callable[[_Storage], np.ndarray]) -> dict[str, Any]:
    """The tree with arrays for tensors, and names for keys."""
    if isinstance(tree, Placeholder):
        raise ValueError(
            f"the file holds a {tree.origin}, which is not read: save a state_dict, with torch or as .safetensors."
        )
    if not isinstance(tree, Mapping):
        raise ValueError(f"the file holds a {type(tree).__name__}, expected tensors by name, as of a state_dict.")
    whole: dict[str, Any] = {}
    copies = {id(tree): whole}  # of nests that the tree keeps: a file may name one twice, or within itself
    stack: list[Any] = [tree]
    while stack:
        mapping = stack.pop()
        copy = copies[id(mapping)]
        for key, value in mapping.items() if isinstance(mapping, Mapping) else enumerate(mapping):
            name = str(key)
            if name in copy:
                raise ValueError(f"the file holds {name} twice, as text and as a number.")
            if isinstance(value, _Tensor):
                copy[name] = _array(name, value, storage)
            elif not _is_nest(value):
                copy[name] = value
            else:
                if id(value) not in copies:
                    copies[id(value)] = {}
                    stack.append(value)
                copy[name] = copies[id(value)]
    return whole


def _is_nest(value: Any) -> bool:
    is_list = isinstance(value, list | tuple) and not isinstance(value, _Storage)
    return isinstance(value, Mapping) or (is_list and any(isinstance(v, (Mapping, _Tensor)) for v in value))


def _array(name: str, tensor: _Tensor, storage: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    data = storage(tensor.storage)
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    whole = len(tensor.shape) == len(tensor.strides) and all(isinstance(n, int) and n >= 0 for n in numbers)
    count = math.prod(tensor.shape) if whole else 0
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) if whole else 0
    if not whole or count > data.size or (count and last >= data.size):
        raise ValueError(f"{name} does not lie within its storage: {tensor}.")
    if not count:
        return np.zeros(tensor.shape, data.dtype)
    strides = tuple(s * data.itemsize for s in tensor.strides)
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
