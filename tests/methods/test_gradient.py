"""Methods of the gradient, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import logit, small_images, small_model

import lrp_jax


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_smoothgrad_is_a_loop_over_noisy_copies(chunk):
    model, params = small_model()
    image = small_images(1)[0]
    gradient = jax.grad(logit(model, params, 3))
    total = np.zeros(image.shape)
    for i in range(5):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(4), i), image.shape, image.dtype)
        total += gradient(image + 0.2 * (image.max() - image.min()) * noise)
    options = {"samples": 5, "noise": 0.2, "seed": 4, "chunk": chunk}
    maps = lrp_jax.explain(model, params, image[None], [3], method="smoothgrad", **options).relevance
    np.testing.assert_allclose(maps[0, 0], np.abs(total / 5).max(axis=-1), rtol=1e-9)


def test_integrated_gradients_sum_up_to_the_difference():
    model, params = small_model()
    params = jax.tree.map(lambda p: p / 4, params)  # few steps are enough for a smooth model
    image, baseline = small_images(1)[0], jnp.array([0.3, -0.2, 0.1], jnp.float64)
    maps = lrp_jax.explain(
        model, params, image[None], [2], method="integrated_gradients", baseline=(0.3, -0.2, 0.1)
    ).relevance
    of_target = logit(model, params, 2)
    difference = of_target(image) - of_target(jnp.broadcast_to(baseline, image.shape))
    np.testing.assert_allclose(maps.sum(), difference, rtol=1e-4)
