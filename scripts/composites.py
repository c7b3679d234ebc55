"""Pictures made of several side by side, each of a class of its own, in a file of NumPy's: for measuring scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import lrp_jax


def read(path: Path, config: lrp_jax.ViTConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, as the model takes them, with the label and the mask of each part.

    Args:
        path: a file with ``images`` uint8 ``[n, H, W, channels]``, ``labels`` int ``[n, m]``, -1 for none, and
            ``masks`` of each of the m, ``[n, m, H, W]``, packed by ``np.packbits`` along the last axis.
        config: the model's.

    Returns:
        Images float32 ``[n, H, W, channels]``, labels ``[n, m]`` and masks, bool ``[n, m, H, W]``.

    Raises:
        SystemExit: shapes or labels are not the model's, or an image has fewer than two labels.
    """
    with np.load(path) as file:
        pixels, labels = file["images"], file["labels"]
        masks = np.unpackbits(file["masks"], axis=-1).astype(bool)[..., : pixels.shape[2]]
    if pixels.shape[1:] != config.image_shape or masks.shape != (*labels.shape, *pixels.shape[1:3]):
        raise SystemExit(
            f"{path}: images must be [n, *{config.image_shape}] and masks of each label; got {pixels.shape}, labels "
            f"{labels.shape} and masks {masks.shape}."
        )
    if (labels >= 0).sum(axis=1).min() < 2 or labels.max() >= config.num_classes:
        raise SystemExit(f"{path}: labels must be two or more an image, of {config.num_classes} classes; got\n{labels}")
    return config.normalise(pixels.astype(np.float32) / 255), labels, masks
