"""Maps of relevance on the grid of pixels: enlarged, and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

#: Where the rows and the columns of a grid have their centres, in parts of the image's height and width.
Centres = Sequence[Sequence[float]]


def heatmaps(relevance: ArrayLike, size: tuple[int, int], *, centres: Centres | None = None) -> Array:
    """Enlarge maps bilinearly, as the paper's evaluation does.

    Args:
        relevance: ``[..., rows, cols]``.
        size: (H, W) in pixels.
        centres: where the centres of rows and columns are, in parts of the height and width: ``model.centres`` of a
            traced model, whose patches may overlap or leave a margin. None: patches fill the image. Maps of another
            grid, as those of the pixels, are enlarged as if there were none.

    Returns:
        ``[..., H, W]``.

    Raises:
        ValueError: ``relevance`` has fewer than two axes, or ``size`` is not two positive numbers.
    """
    relevance = jnp.asarray(relevance)
    if relevance.ndim < 2:
        raise ValueError(f"relevance must be [..., rows, cols], got the shape {relevance.shape}.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (H, W), both at least 1, got {size}.")
    if not _are_of(centres, relevance):
        return jax.image.resize(relevance, (*relevance.shape[:-2], *size), "bilinear", antialias=False)
    dtype = relevance.dtype if jnp.issubdtype(relevance.dtype, jnp.inexact) else jnp.float32
    rows, cols = (
        jnp.asarray(_weights(np.asarray(at, np.float64), n), dtype) for at, n in zip(centres or (), size, strict=True)
    )
    return jnp.einsum("hr,...rc,wc->...hw", rows, relevance.astype(dtype), cols, precision="highest")


def centres(model: Any) -> Centres | None:
    """Where the centres of a model's patches are; None: they fill the image."""
    found: Centres | None = getattr(model, "centres", None)
    return found


def placed(relevance: Any, size: tuple[int, int], centres: Centres | None) -> Any:
    """Maps as they are, if their cells fill the image of a size (H, W); else enlarged to it by their ``centres``."""
    return heatmaps(relevance, size, centres=centres) if _are_of(centres, relevance) else relevance


def _are_of(centres: Centres | None, relevance: Any) -> bool:
    return centres is not None and relevance.shape[-2:] == tuple(map(len, centres))


def _weights(centres: np.ndarray, size: int) -> np.ndarray:
    """How much of each cell a pixel is, ``[size, cells]``: beyond the first and last centre, all of these cells."""
    pixels = (np.arange(size) + 0.5) / size
    return np.stack([np.interp(pixels, centres, cell) for cell in np.eye(len(centres))], axis=1)


def unit_range(relevance: ArrayLike) -> Array:
    """Maps scaled to [0, 1], each by its smallest and largest value; 0 where constant.

    Args:
        relevance: ``[..., H, W]``.

    Returns:
        ``[..., H, W]``.
    """
    relevance = jnp.asarray(relevance)
    low, high = relevance.min(axis=(-2, -1), keepdims=True), relevance.max(axis=(-2, -1), keepdims=True)
    return (relevance - low) / jnp.where(high > low, high - low, 1)


def correlations(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Correlations of maps with others.

    Args:
        first: ``[B, K, ...]``.
        second: of the same shape.

    Returns:
        Of each pair that is finite and of which one at least is not constant, float64; 0 if the other is.
    """
    pairs = (
        np.asarray(maps, np.float64).reshape(np.shape(maps)[0] * np.shape(maps)[1], -1) for maps in (first, second)
    )
    a, b = (maps - maps.mean(axis=1, keepdims=True) for maps in pairs)
    scales = np.stack([np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)])
    told = np.isfinite(scales).all(axis=0) & (scales > 0).any(axis=0)
    product = scales.prod(axis=0)
    return np.where(product > 0, (a * b).sum(axis=1) / np.where(product > 0, product, 1), 0)[told]
