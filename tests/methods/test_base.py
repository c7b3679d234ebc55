"""What is said of methods holds, and bad options are named."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_images, small_model

import lrp_jax
from lrp_jax.methods import METHODS, register
from lrp_jax.walk import classify, forward

#: Options that keep the methods of many forward passes short.
SHORT = {"smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3}, "rise": {"masks": 5, "cells": 3}}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_a_method_holds(name):
    """Resolution, class specificity, signs, the image's own logits; a batch equals single calls, in a jit."""
    method = METHODS[name]
    model, params = small_model()
    images, targets = small_images(2), np.array([[0, 1], [2, 3]])
    options = SHORT.get(name, {})
    batch = lrp_jax.explain(model, params, images, targets, method=name, **options)
    chex.assert_shape(batch.relevance, (2, 2, *({"patch": (4, 4), "pixel": (16, 16)}[method.resolution])))
    chex.assert_tree_all_finite(batch)
    differ = np.abs(batch.relevance[:, 0] - batch.relevance[:, 1]).max(axis=(1, 2))
    assert (differ > 0).all() == method.class_specific
    assert (batch.relevance < 0).any() == method.signed
    assert method.name == name
    assert method.summary.endswith(".")
    assert method.reference
    single = jax.jit(lambda images, targets: lrp_jax.explain(model, params, images, targets, method=name, **options))
    for b in range(2):
        logits = classify(model, params, images[b])
        chex.assert_trees_all_close(batch.logits[b], logits, rtol=1e-10)
        for k in range(2):
            one = single(images[b : b + 1], targets[b : b + 1, k])
            np.testing.assert_allclose(
                one.relevance[0, 0], batch.relevance[b, k], atol=1e-10 * np.abs(batch.relevance).max()
            )


def test_a_method_of_ones_own():
    @register(class_specific=False, resolution="patch", reference="this test")
    def centre(model, params, image, targets, *, peak: float = 1.0):
        """A map that looks at nothing."""
        logits = forward(model, params, image, lrp_jax.GRADIENT)
        targets = jnp.argmax(logits)[None] if targets is None else targets
        return logits, targets, jnp.full((len(targets), *model.grid), peak, logits.dtype)

    try:
        model, params = small_model()
        explanation = lrp_jax.explain(model, params, small_images(2), method="centre", peak=3.0)
        np.testing.assert_array_equal(explanation.relevance, np.full((2, 1, 4, 4), 3.0))
        assert METHODS["centre"].options == {"peak": 1.0}
    finally:
        del METHODS["centre"]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("raw_attention", {"rules": "chefer"}, "takes no options; got 'rules'"),
        ("attention_rollout", {"start_layer": 3}, "start_layer must be a block, 0 to 2; got 3"),
        ("lrp_rollout", {"start_layer": True}, "start_layer must be a block, 0 to 2; got True"),
        ("single_block", {"block": 3}, "block must be a block, -3 to 2; got 3"),
        ("single_block", {"block": -4}, "block must be a block, -3 to 2; got -4"),
        ("single_block", {"gradient": "no"}, "gradient must be True or False, got 'no'"),
        ("full_lrp", {"rules": "lrp"}, "rules must be one of chefer, stable, baseline, .*, or a Rules; got 'lrp'"),
        ("smoothgrad", {"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ("smoothgrad", {"noise": -0.1}, "noise must be a number of at least 0, got -0.1"),
        ("smoothgrad", {"seed": -1}, "seed must be an integer of at least 0"),
        ("integrated_gradients", {"steps": 2.5}, "steps must be an integer of at least 1, got 2.5"),
        ("integrated_gradients", {"baseline": (0.0, 1.0)}, r"baseline must be 1 or 3 finite numbers, got \(0.0, 1.0\)"),
        ("integrated_gradients", {"baseline": [0.0]}, r"hashable, tuples instead of lists; got baseline=\[0.0\]"),
        ("occlusion", {"window": 17}, r"window must be at most the image, \(16, 16\).*got \(17, 17\)"),
        ("occlusion", {"window": 2, "stride": 3}, r"at least the stride, \(3, 3\); got \(2, 2\)"),
        ("occlusion", {"window": 0}, "window must be one or two integers of at least 1, got 0"),
        ("occlusion", {"stride": (4, 4, 4)}, r"stride must be one or two integers of at least 1, got \(4, 4, 4\)"),
        ("rise", {"masks": -3}, "masks must be an integer of at least 1, got -3"),
        ("rise", {"keep": 1}, "keep must be a probability between 0 and 1, got 1"),
        ("rise", {"score": "exp"}, "score must be one of logit, softmax, sigmoid; got 'exp'"),
        ("rise", {"chunk": 0}, "chunk must be an integer of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(method, options, message):
    model, params = small_model()
    with pytest.raises(ValueError, match=message):
        lrp_jax.explain(model, params, small_images(1), method=method, **options)
