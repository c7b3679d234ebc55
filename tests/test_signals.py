"""Maps can be differentiated: by every parameter and by the pixels, for a loss on maps as in training with guidance."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import drawn, small_model

import lrp_jax

SMALL = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 2, "mlp_dim": 16, "num_classes": 3}
POOLING = {"readout": "attention", "prefix_tokens": 0}
GATED = {"readout": "class_mean", "swiglu": True, "pre_norm": True}
OPTIONS = {
    "gated_lrp": {"gamma": 0.2},
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "occlusion": {"chunk": 2},
    "rise": {"masks": 3, "cells": 2},
}
CASES = [(method, OPTIONS.get(method, {}), {}) for method in lrp_jax.METHODS]
CASES += [  # of one block: that there is a loop over blocks has no part in what a rule does
    (method, {"rules": rules}, {"depth": 1})
    for method, own in lrp_jax.METHODS.items()
    for rules in lrp_jax.RULES
    if own.options.get("rules", rules) != rules
]
CASES += [
    (method, options, fields)
    for method, options in (("transformer_attribution", {"start_layer": 1}), ("full_lrp", {}))
    for fields in (POOLING, GATED)
]
CASES += [
    ("cp_lrp", {"gamma": 0.2, "at": "blocks"}, {}),
    ("attnlrp", {"gamma": 0.2, "gamma_at": "all", "at": "pixels"}, GATED),
    ("libragrad", {"full": True}, GATED),
    ("legrad", {"cosine": True}, POOLING),
    ("gated_lrp", {"gamma": 0.2, "at": "pixels", "two_views": True}, GATED),
]


def derivative(function):
    """At 0, by central differences of two steps, extrapolated; of several sizes, the two that agree best."""

    def estimate(h):
        return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)

    # The exact rules are steep, where they divide by what is nearly 0; and a logit may hardly depend on a parameter.
    found = [estimate(h) for h in (1e-5, 1e-6, 1e-7, 1e-8)]
    return min(itertools.pairwise(found), key=lambda pair: abs(pair[0] - pair[1]))[0]


@pytest.mark.parametrize(("method", "options", "fields"), CASES)
def test_the_gradient_of_a_map_equals_finite_differences(method, options, fields):
    """In float64, under jit, vmap and remat together."""
    model, params = small_model(**SMALL | fields)
    if "gamma" in options:  # which has a kink where a bias is 0
        params = jax.tree.map(lambda p: p + 0.05, params)
    images = jax.random.normal(jax.random.key(2), (2, 8, 8, 3), jnp.float64)
    weights = jax.random.normal(jax.random.key(3), (2, 2, 8, 8), jnp.float64)

    def loss(params, images, weights):
        e = lrp_jax.explain(model, params, images, jnp.array([[0, 2]] * len(images)), method=method, **options)
        rows, cols = e.relevance.shape[2:]
        return (e.relevance * weights[:, :, :rows, :cols]).sum()

    def of_all(function):
        return jax.vmap(lambda params, image, w: function(params, image[None], w[None]), (None, 0, 0))

    @jax.jit
    def value_and_gradient(params, images):
        value, (by_params, by_images) = of_all(jax.value_and_grad(jax.checkpoint(loss), (0, 1)))(
            params, images, weights
        )
        return value.sum(), (jax.tree.map(lambda g: g.sum(axis=0), by_params), by_images[:, 0])

    def value(arguments):
        return value_and_gradient(*arguments)[0]

    arguments = (params, images)
    leaves, structure = jax.tree.flatten(arguments)
    rng = np.random.default_rng(0)
    directions = [rng.standard_normal(leaf.shape) for leaf in leaves]
    expected = [
        derivative(
            lambda t, i=i, d=d: value(jax.tree.unflatten(structure, [*leaves[:i], leaves[i] + t * d, *leaves[i + 1 :]]))
        )
        for i, d in enumerate(directions)
    ]
    assert max(map(abs, expected)) > 0
    gradient = value_and_gradient(*arguments)[1]
    below = {"kernel": gradient[0]["patch_embed"]["kernel"], **gradient[0]}  # the first attention, where it was 0 once
    assert all(jnp.abs(below[name]).max() > 0 for name in ("kernel", "pos_embed", "cls_token") if name in below)
    slopes = [np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), directions, strict=True)]
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-7 * max(map(abs, expected)))


def test_signals_of_many_models_at_once():
    """A vmap over parameters, two and three of them: its axis is not taken for that of the rule sets."""
    model, _ = small_model(**SMALL | POOLING)
    images = jax.random.normal(jax.random.key(2), (1, 8, 8, 3), jnp.float64)
    for n in (2, 3):
        several = [drawn(model, seed=i) for i in range(n)]
        several = [jax.tree.map(lambda p: 2 * p.astype(jnp.float64), params) for params in several]
        stacked = jax.tree.map(lambda *p: jnp.stack(p), *several)
        for method in ("transformer_attribution", "full_lrp"):
            maps = jax.vmap(lambda p, m=method: lrp_jax.explain(model, p, images, method=m).relevance)(stacked)
            single = [lrp_jax.explain(model, p, images, method=method).relevance for p in several]
            np.testing.assert_allclose(maps, jnp.stack(single), rtol=1e-9, atol=1e-9 * np.abs(maps).max())
