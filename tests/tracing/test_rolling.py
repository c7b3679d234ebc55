"""Blocks are one loop only where they compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax


def scan(y, second, reverse):
    step = lambda c, v: (c / 2 + v, c / 2 + v)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros_like(y[:, 0]), y.swapaxes(0, 1), reverse=second and reverse)[1].swapaxes(0, 1)


def choice(y, second, other):
    factor = 3.0 if second and other else 2.0
    return jax.lax.cond(jnp.array(True), lambda y: y * factor, lambda y: y, y)


def nested(y, second, other):
    """A constant of a function within a function."""
    weights = np.arange(8.0)[None] * (-1 if second and other else 1)
    inner = lambda c, v: (c / 2 + v * weights, c / 2 + v)  # noqa: E731
    outer = lambda c, v: (c, jax.lax.scan(inner, c, v)[1])  # noqa: E731
    return jax.lax.scan(outer, jnp.zeros((len(y), 8)), y.swapaxes(0, 1)[None])[1][0].swapaxes(0, 1)


@pytest.mark.parametrize("differ", [False, True])
@pytest.mark.parametrize("part", [scan, choice, nested])
def test_blocks_that_differ_inside_are_not_one_loop(part, differ):
    rng = np.random.default_rng(0)
    blocks = [{name: rng.normal(size=(8, 8)) / 3 for name in "abcd"} for _ in range(2)]
    params = {"embed": rng.normal(size=(12, 8)), "blocks": blocks, "head": rng.normal(size=(8, 3))}

    def apply(params, images):
        x = images.reshape(len(images), 4, 12) @ params["embed"]
        for i, block in enumerate(params["blocks"]):
            x = x + jax.nn.relu(x @ block["a"]) @ block["b"]
            x = x + part(jnp.tanh(x @ block["c"]), i == 1, differ) @ block["d"]
        return x.mean(1) @ params["head"]

    images = rng.normal(size=(2, 4, 4, 3))
    model = lrp_jax.trace(apply, params, images)
    found = lrp_jax.explain(model, params, images, method="saliency")
    np.testing.assert_allclose(found.logits, apply(params, images), rtol=1e-12)
