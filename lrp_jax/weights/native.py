"""The native checkpoint: one ``.safetensors`` file that describes itself.

Its header holds the configuration (with preprocessing and class names) as JSON; its tensors are the parameters
under dotted names, blocks stacked along the first axis.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from lrp_jax.checks import check_model, listed
from lrp_jax.files import DATA, plain, regular, replacing
from lrp_jax.model import Params
from lrp_jax.vit import ViT
from lrp_jax.vit_config import ViTConfig

_FORMAT = "lrp_jax.vit.1"
_CONVERTED = "Weights of other libraries become one by lrp_jax.convert and lrp_jax.save, or lrp-jax convert."
_DEMO = DATA / "demo.safetensors"
# safetensors gives NumPy no float8. F4 and F6, several numbers in the bytes of one, are not read.
_DTYPES: dict[str, Any] = {
    **{"BOOL": np.bool_, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64},
    **{"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64},
    **{"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "C64": np.complex64},
    **{"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "F8_E8M0": jnp.float8_e8m0fnu},
    **{"F8_E4M3FNUZ": jnp.float8_e4m3fnuz, "F8_E5M2FNUZ": jnp.float8_e5m2fnuz},
}


def load(source: str | os.PathLike[str]) -> tuple[ViT, Params]:
    """Load a model and its parameters.

    Args:
        source: ``"demo"``, the model that comes with the package, or the path of a native checkpoint.

    Returns:
        The model and its parameters.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is not a native checkpoint, is damaged, or its parameters are not its configuration's.
    """
    if source != "demo" and Path(source).is_dir():
        raise IsADirectoryError(errno.EISDIR, f"is a folder, expected a checkpoint. {_CONVERTED}", os.fspath(source))
    try:
        tensors, metadata = read_tensors(_DEMO if source == "demo" else source)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}. {_CONVERTED}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{source} is not a checkpoint of this version of lrp_jax: its format is {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}. {_CONVERTED}"
        )
    try:
        fields: dict[str, Any] = json.loads(metadata["config"])
        model = ViT(ViTConfig(**fields))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} has a damaged configuration: {error}") from error
    try:
        return model, unflatten_params(model, tensors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def save(path: str | os.PathLike[str], model: ViT, params: Params) -> None:
    """Save a model and its parameters, whole or not at all.

    Args:
        path: the file to write, ending in ``.safetensors``; an existing one is replaced.
        model: the model.
        params: its parameters.

    Raises:
        OSError: the file cannot be written.
        ValueError: the suffix is another, or the parameters are not the model's.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {str(path)!r}.")
    check_model(model)
    if not isinstance(model, ViT):
        raise ValueError(f"only a lrp_jax.ViT is saved, with its parameters; got a {type(model).__name__}.")
    tensors = {k: plain(v) for k, v in flax.traverse_util.flatten_dict(params, sep=".").items()}
    unflatten_params(model, tensors)
    metadata = {"format": _FORMAT, "config": json.dumps(dataclasses.asdict(model.config))}
    with replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # a full disk too
            raise OSError(f"{path} cannot be written: {error}.") from error


def unflatten_params(model: ViT, tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from arrays under dotted names.

    Args:
        model: the model they are for.
        tensors: name to array.

    Returns:
        The parameters, as ``jax.Array``.

    Raises:
        ValueError: names are missing or unexpected, or an array has the wrong shape, is not floating or not finite.
    """
    expected = _expected(model)
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    for name in (name for name in expected if name in tensors):
        if tensors[name].shape != expected[name]:
            problems.append(f"{name} has the shape {tensors[name].shape}, expected {expected[name]}")
        elif not jnp.issubdtype(tensors[name].dtype, jnp.floating) or tensors[name].dtype.itemsize < 2:
            problems.append(f"{name} is {tensors[name].dtype}, expected floating point of 16 bits or more")
        elif not _is_finite(tensors[name]):
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise ValueError("the parameters do not fit the configuration: " + listed(problems))
    return flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in tensors.items()}, sep=".")


def _is_finite(array: np.ndarray) -> bool:
    """Whether an array is finite as JAX keeps it: of 64 bits in 32, unless ``jax_enable_x64`` is set."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)).all())


def _expected(model: ViT) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters, at the cost of one block: a header may promise a billion."""
    config = model.config
    one = model.clone(config=dataclasses.replace(config, depth=1))
    image = jax.ShapeDtypeStruct(config.image_shape, jnp.float32)
    try:
        found = jax.eval_shape(one.init, jax.random.key(0), image)["params"]
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the configuration has sizes that no array has: {config}.") from error
    shapes = {name: found.shape for name, found in flax.traverse_util.flatten_dict(found, sep=".").items()}
    return {k: (config.depth, *v[1:]) if k.startswith("blocks.") else v for k, v in shapes.items()}


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a ``.safetensors`` file.

    Args:
        path: the file.

    Returns:
        Name to array, and the header's metadata.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged or of another format.
    """
    with regular(path).open("rb") as file:
        try:
            with safetensors.safe_open(path, framework="numpy") as checked:  # that all is there, and nothing twice
                metadata = checked.metadata() or {}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
        start = 8 + int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        tensors = {}
        for name, said in header.items():
            if said["dtype"] not in _DTYPES:
                raise ValueError(f"{path}: {name} is {said['dtype']}, expected one of {', '.join(_DTYPES)}.")
            begin, end = said["data_offsets"]
            file.seek(start + begin)
            tensors[name] = np.frombuffer(file.read(end - begin), _DTYPES[said["dtype"]]).reshape(said["shape"])
    return tensors, metadata
