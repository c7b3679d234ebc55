"""Our parameters from weights under timm's names: one table, and the position embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from lrp_jax.checks import listed
from lrp_jax.vit_config import ViTConfig
from lrp_jax.weights.configure import Grid, Weights, prefixes, square

# Our name, timm's name, from timm's (torch's) layout to ours. Blocks are stacked: {} is the block's number.


def _as_is(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    """``[D, channels, rows, cols]`` to ``[rows * cols * channels, D]``."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


_LAYERS: tuple[tuple[str, str, str], ...] = (
    ("dense", "blocks.attn.qkv", "blocks.{}.attn.qkv"),
    ("dense", "blocks.attn.proj", "blocks.{}.attn.proj"),
    ("dense", "blocks.mlp.fc1", "blocks.{}.mlp.fc1"),
    ("dense", "blocks.mlp.fc2", "blocks.{}.mlp.fc2"),
    ("norm", "blocks.norm1", "blocks.{}.norm1"),
    ("norm", "blocks.norm2", "blocks.{}.norm2"),
    ("norm", "norm_pre", "norm_pre"),
    ("norm", "norm", "norm"),
    ("norm", "norm", "norm_after"),
    ("dense", "head", "head"),
    ("dense", "head", "distilled_head"),
    ("dense", "attn_pool.q", "attn_pool.q"),
    ("dense", "attn_pool.kv", "attn_pool.kv"),
    ("dense", "attn_pool.proj", "attn_pool.proj"),
    ("norm", "attn_pool.norm", "attn_pool.norm"),
    ("dense", "attn_pool.mlp.fc1", "attn_pool.mlp.fc1"),
    ("dense", "attn_pool.mlp.fc2", "attn_pool.mlp.fc2"),
)
_TABLE: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("patch_embed.kernel", "patch_embed.proj.weight", _patch_kernel),
    ("patch_embed.bias", "patch_embed.proj.bias", _as_is),
    ("attn_pool.latent", "attn_pool.latent", lambda x: x.reshape(1, -1)),
    *((f"{ours}.kernel", f"{theirs}.weight", _transposed) for kind, ours, theirs in _LAYERS if kind == "dense"),
    *((f"{ours}.scale", f"{theirs}.weight", _as_is) for kind, ours, theirs in _LAYERS if kind == "norm"),
    *((f"{ours}.bias", f"{theirs}.bias", _as_is) for _, ours, theirs in _LAYERS),
)


def parameters_of(config: ViTConfig, grid: Grid | None, weights: Weights, notes: list[str]) -> Weights:
    """Our parameters by dotted name; what is missing shows when they are put together."""
    parameters: Weights = {"pos_embed": _positions(config, grid, weights, notes)}
    prefix = [weights.pop(name) for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    if prefix:
        parameters["cls_token"] = np.concatenate([x.reshape(-1, x.shape[-1]) for x in prefix])
    for ours, theirs, transform in _TABLE:
        names = [theirs.format(i) for i in range(config.depth)] if "{}" in theirs else [theirs]
        missing = [name for name in names if name not in weights]
        if len(missing) == len(names):
            continue
        if missing:
            raise ValueError(f"source does not hold the same in every block: missing {listed(missing)} (timm's names).")
        arrays = [weights.pop(name) for name in names]
        if len({array.shape for array in arrays}) > 1:
            shapes = listed([f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True)])
            raise ValueError(f"source holds arrays of unexpected shapes: {shapes} (timm's names).")
        arrays = [transform(array) for array in arrays]
        parameters[ours] = np.stack(arrays) if "{}" in theirs else arrays[0]
    if weights:
        raise ValueError(f"source holds what this model has no place for: unexpected {listed(sorted(weights))}.")
    dtype = parameters["patch_embed.kernel"].dtype
    for name, size in (("patch_embed.bias", config.width), ("head.bias", config.num_classes)):
        parameters.setdefault(name, np.zeros(size, dtype))
    if "head.kernel" not in parameters:
        parameters["head.kernel"] = np.eye(config.width, dtype=dtype)
    return parameters


def _positions(config: ViTConfig, grid: Grid | None, weights: Weights, notes: list[str]) -> np.ndarray:
    """Position embeddings ``[N, D]`` of the whole prefix (zeros where there are none) and of the configured grid.

    The grid of those that there are is the given one, or else the configured one or a square, whichever fits.
    """
    rows, cols = config.grid
    options, embedding = prefixes(weights), weights.pop("pos_embed")[0]
    counts = [len(embedding) - prefix for prefix in options]
    grids = [grid] if grid else [config.grid, *filter(None, map(square, counts))]
    fits = [(prefix, g) for g in grids for prefix, count in zip(options, counts, strict=True) if count == math.prod(g)]
    if not fits:
        raise ValueError(
            f"the {len(embedding)} positions of pos_embed fit neither {rows} x {cols} patches nor a square."
        )
    covered, (old_rows, old_cols) = fits[0]
    patches = embedding[covered:]
    if (old_rows, old_cols) != config.grid:
        notes.append(f"position embeddings were resampled from {old_rows} x {old_cols} to {rows} x {cols}")
        trained = patches.reshape(old_rows, old_cols, -1).astype(np.float32)
        # Antialiased bicubic, as timm's resample_abs_pos_embed.
        resized = jax.image.resize(trained, (rows, cols, trained.shape[-1]), "bicubic", antialias=True)
        patches = np.asarray(resized).astype(embedding.dtype).reshape(rows * cols, -1)
    blank = np.zeros((config.prefix_tokens - covered, embedding.shape[-1]), embedding.dtype)
    return np.concatenate([embedding[:covered], blank, patches])
