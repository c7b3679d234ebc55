"""The native checkpoint: one ``.safetensors`` file that describes itself.

Its header holds the configuration (with preprocessing and class names) as JSON; its tensors are the parameters
under dotted names, blocks stacked along the first axis.
"""

from __future__ import annotations

import dataclasses
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
from lrp_jax.files import DATA, replacing
from lrp_jax.vit import Params, ViT
from lrp_jax.vit_config import ViTConfig

_FORMAT = "lrp_jax.vit.1"
_DEMO = DATA / "demo.safetensors"


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
    tensors, metadata = read_tensors(_DEMO if source == "demo" else source)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{source} is not a checkpoint of this version of lrp_jax: its format is {metadata.get('format')!r}, "
            f"expected {_FORMAT!r}. Weights of other libraries go through lrp_jax.convert."
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
    tensors = {k: np.asarray(v) for k, v in flax.traverse_util.flatten_dict(params, sep=".").items()}
    unflatten_params(model, tensors)
    metadata = {"format": _FORMAT, "config": json.dumps(dataclasses.asdict(model.config))}
    with replacing(path) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)


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
    image = jax.ShapeDtypeStruct(model.config.image_shape, jnp.float32)
    expected = flax.traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image)["params"], sep=".")
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name].shape:
            problems.append(f"{name} has the shape {tensors[name].shape}, expected {expected[name].shape}")
        elif not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            problems.append(f"{name} is {tensors[name].dtype}, expected floating point")
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise ValueError("the parameters do not fit the configuration: " + listed(problems))
    return flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in tensors.items()}, sep=".")


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
    with Path(path).open("rb"):  # for the operating system's own words on what cannot be opened
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
