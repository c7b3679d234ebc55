"""Other people's weights, from explicit tables of names.

A table says for each parameter of :class:`lrp_jax.ViT` what the source calls it and how its array is laid out
there. Every name of the source and of the model is accounted for.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from lrp_jax.checkpoint import listed, read_tensors, unflatten_params
from lrp_jax.vit import Params, ViT, ViTConfig


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    """``[D, channels, rows, cols]`` to ``[rows * cols * channels, D]``."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _unbatched(x: np.ndarray) -> np.ndarray:
    return x[0]


# Our name, timm's name, from timm's layout to ours. Blocks are stacked: {} is the block's number.
_TIMM: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("cls_token", "cls_token", _unbatched),
    ("pos_embed", "pos_embed", _unbatched),
    ("patch_embed.kernel", "patch_embed.proj.weight", _patch_kernel),
    ("patch_embed.bias", "patch_embed.proj.bias", _same),
    ("blocks.norm1.scale", "blocks.{}.norm1.weight", _same),
    ("blocks.norm1.bias", "blocks.{}.norm1.bias", _same),
    ("blocks.attn.qkv.kernel", "blocks.{}.attn.qkv.weight", _transposed),
    ("blocks.attn.qkv.bias", "blocks.{}.attn.qkv.bias", _same),
    ("blocks.attn.proj.kernel", "blocks.{}.attn.proj.weight", _transposed),
    ("blocks.attn.proj.bias", "blocks.{}.attn.proj.bias", _same),
    ("blocks.norm2.scale", "blocks.{}.norm2.weight", _same),
    ("blocks.norm2.bias", "blocks.{}.norm2.bias", _same),
    ("blocks.mlp.fc1.kernel", "blocks.{}.mlp.fc1.weight", _transposed),
    ("blocks.mlp.fc1.bias", "blocks.{}.mlp.fc1.bias", _same),
    ("blocks.mlp.fc2.kernel", "blocks.{}.mlp.fc2.weight", _transposed),
    ("blocks.mlp.fc2.bias", "blocks.{}.mlp.fc2.bias", _same),
    ("norm.scale", "norm.weight", _same),
    ("norm.bias", "norm.bias", _same),
    ("head.kernel", "head.weight", _transposed),
    ("head.bias", "head.bias", _same),
)

# Heads of the published widths: see the variants of ViTConfig.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def convert(source: str | os.PathLike[str] | Mapping[str, ArrayLike], **fields: Any) -> tuple[ViT, Params]:
    """Turn weights under timm's names into a model and its parameters.

    Args:
        source: a mapping of timm's names to arrays in torch's layout (dense ``[out, in]``, patch embedding
            ``[D, channels, rows, cols]``), or the path of a ``.safetensors`` file that holds it.
        **fields: fields of :class:`lrp_jax.ViTConfig`: what the weights cannot tell (``num_heads`` where the width
            is not a published one, ``image_size`` where it is not square, epsilons, GELU, preprocessing, class
            names); they override what is read from the weights.

    Returns:
        The model and its parameters, in the dtype of the source.

    Raises:
        OSError: the file cannot be read.
        ValueError: names are missing, unexpected or of the wrong shape, or a field is unknown or wrong.
    """
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    for name in fields:
        if name not in known:
            raise ValueError(f"fields must be among {', '.join(sorted(known))}; got {name!r}.")
    if isinstance(source, Mapping):
        weights = {name: np.asarray(array) for name, array in source.items()}
    else:
        if Path(source).suffix != ".safetensors":
            raise ValueError(f"source must be a mapping of arrays or a .safetensors file, got {str(source)!r}.")
        weights, _ = read_tensors(source)
    config = ViTConfig(**(_read_config(weights, fields) | fields))

    table = [
        (ours, [theirs.format(i) for i in range(config.depth)] if "{}" in theirs else [theirs], transform)
        for ours, theirs, transform in _TIMM
        if config.qkv_bias or ours != "blocks.attn.qkv.bias"
    ]
    names = {name for _, theirs, _ in table for name in theirs}
    problems = [f"missing {name}" for name in sorted(names - weights.keys())]
    problems += [f"unexpected {name}" for name in sorted(weights.keys() - names)]
    if problems:
        raise ValueError("source does not hold a Vision Transformer under timm's names: " + listed(problems))
    parameters = {}
    for ours, theirs, transform in table:
        try:
            arrays = [transform(weights[name]) for name in theirs]
            parameters[ours] = np.stack(arrays) if ours.startswith("blocks.") else arrays[0]
        except (ValueError, IndexError) as error:
            shapes = listed([f"{name} {weights[name].shape}" for name in theirs])
            raise ValueError(f"source holds arrays of unexpected shapes: {shapes}") from error
    model = ViT(config)
    return model, unflatten_params(model, parameters)


def _read_config(weights: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the configuration that the weights tell."""
    shapes = {}
    ranks = {"patch_embed.proj.weight": 4, "pos_embed": 3, "head.weight": 2, "blocks.0.mlp.fc1.weight": 2}
    for name, rank in ranks.items():
        if name not in weights or weights[name].ndim != rank:
            found = f"of the shape {weights[name].shape}" if name in weights else "missing"
            raise ValueError(
                f"source does not hold a Vision Transformer under timm's names: {name} is {found}, "
                f"expected rank {rank}."
            )
        shapes[name] = weights[name].shape
    width, channels, *patch_size = shapes["patch_embed.proj.weight"]
    patches = shapes["pos_embed"][1] - 1
    side = math.isqrt(patches)
    if side * side != patches and "image_size" not in fields:
        raise ValueError(f"the {patches} patches of pos_embed are no square: image_size= must be given.")
    if width not in _HEADS and "num_heads" not in fields:
        raise ValueError(f"the weights do not tell the number of heads of a model of width {width}: give num_heads=.")
    return {
        "image_size": (side * patch_size[0], side * patch_size[1]),
        "patch_size": tuple(patch_size),
        "channels": channels,
        "width": width,
        "depth": sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in weights),
        "num_heads": _HEADS.get(width),
        "mlp_dim": shapes["blocks.0.mlp.fc1.weight"][0],
        "num_classes": shapes["head.weight"][0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
    }
