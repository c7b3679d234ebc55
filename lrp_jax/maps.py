"""Maps of relevance on the grid of pixels: enlarged, and scaled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def heatmaps(relevance: ArrayLike, size: tuple[int, int]) -> Array:
    """Enlarge maps bilinearly, as the paper's evaluation does.

    Args:
        relevance: ``[..., rows, cols]``.
        size: (H, W) in pixels.

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
    return jax.image.resize(relevance, (*relevance.shape[:-2], *size), "bilinear", antialias=False)


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
