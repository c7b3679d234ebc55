"""Methods of masking, against plain loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import logit, small_images, small_model
from PIL import Image

import lrp_jax
from lrp_jax.methods.masking import rise_mask
from lrp_jax.walk import forward


def test_occlusion_of_an_image_one_patch_high():
    model, params = small_model(image_size=(4, 16))
    relevance = lrp_jax.explain(model, params, small_images(1)[:, :4], method="occlusion").relevance
    assert relevance.shape == (1, 1, 4, 16)
    chex.assert_tree_all_finite(relevance)


@pytest.mark.parametrize(
    ("window", "stride", "chunk"), [(None, None, 16), (4, 4, 1), ((5, 3), (4, 2), 7), (16, 1, 16), (7, 5, 3)]
)
def test_occlusion_is_a_loop_over_windows(window, stride, chunk):
    model, params = small_model()
    image = np.asarray(small_images(1)[0])
    of_target = logit(model, params, 1)
    height, width = (8, 8) if window is None else np.broadcast_to(window, 2)
    down, right = (4, 4) if stride is None else np.broadcast_to(stride, 2)
    total, count = np.zeros((2, 16, 16))
    for top in range(0, 16 - height + down, down):
        for left in range(0, 16 - width + right, right):
            covered = image.copy()
            covered[top : top + height, left : left + width] = 0.25
            fall = of_target(image) - of_target(covered)
            total[top : top + height, left : left + width] += fall
            count[top : top + height, left : left + width] += 1
    options = {"window": window, "stride": stride, "baseline": 0.25, "chunk": chunk}
    maps = lrp_jax.explain(model, params, image[None], [1], method="occlusion", **options).relevance
    np.testing.assert_allclose(maps[0, 0], total / count, atol=1e-9)


@pytest.mark.parametrize("score", ["logit", "softmax", "sigmoid"])
def test_rise_is_a_loop_over_masks(score):
    model, params = small_model()
    image = small_images(1)[0]
    squash = {"logit": lambda x: x, "softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[score]
    total = np.zeros((16, 16))
    for i in range(9):
        mask = rise_mask(jax.random.fold_in(jax.random.key(1), i), (16, 16), 3, 0.4).astype(jnp.float64)
        logits = forward(model, params, image * mask[..., None], lrp_jax.GRADIENT)
        total += np.asarray(squash(logits)[2] * mask)
    options = {"masks": 9, "cells": 3, "keep": 0.4, "seed": 1, "chunk": 4, "score": score}
    maps = lrp_jax.explain(model, params, image[None], [2], method="rise", **options).relevance
    np.testing.assert_allclose(maps[0, 0], total / 9 / 0.4, rtol=1e-9)


def test_rise_masks_are_as_defined():
    masks = jax.vmap(lambda key: rise_mask(key, (21, 30), 5, 0.3))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(masks.mean(axis=0), 0.3, atol=0.03)
    # Each is its grid, enlarged by Pillow, from any corner within the first cell on.
    corners = set()
    for key in jax.random.split(jax.random.key(1), 30):
        grid = np.asarray(jax.random.bernoulli(jax.random.split(key)[0], 0.3, (5, 5)), np.float32)
        large = np.asarray(Image.fromarray(grid).resize((6 * 6, 6 * 5), Image.Resampling.BILINEAR))
        mask = rise_mask(key, (21, 30), 5, 0.3)
        found = [c for c in np.ndindex(5, 6) if np.allclose(large[c[0] :, c[1] :][:21, :30], mask, atol=1e-5)]
        assert found
        corners.add(found[0])
    assert len(corners) > 10
