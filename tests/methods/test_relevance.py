"""Methods of relevance, and the authors' values of all."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CASES, relative_error, small_images, small_model

import lrp_jax

GOLDEN = {
    "attention_gradcam": ("attention_gradcam", {}),
    "attention_rollout/start_layer_0": ("attention_rollout", {}),
    "attention_rollout/start_layer_1": ("attention_rollout", {"start_layer": 1}),
    "transformer_attribution/start_layer_0": ("transformer_attribution", {"rules": "chefer"}),
    "transformer_attribution/start_layer_1": ("transformer_attribution", {"rules": "chefer", "start_layer": 1}),
} | {
    f"{folder}/{name}": (method, options if method == "raw_attention" else options | {"rules": rules})
    for folder, rules in (("ours_rules", "chefer"), ("baseline_rules", "baseline"))
    for name, method, options in (
        ("rollout", "lrp_rollout", {}),
        ("full", "full_lrp", {}),
        ("last_layer", "partial_lrp", {}),
        ("last_layer_attn", "raw_attention", {}),
        ("second_layer", "single_block", {"block": 1, "gradient": False}),
        ("last_layer_gradient_weighted", "single_block", {}),
        ("second_layer_gradient_weighted", "single_block", {"block": 1}),
    )
}


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_authors(golden, golden_model, golden_images, name):
    method, options = GOLDEN[name]
    images = golden_images[[golden[f"case{case}/image"] for case in CASES]]
    targets = np.array([golden[f"case{case}/target"] for case in CASES])
    maps = lrp_jax.explain(*golden_model, images, targets, method=method, **options).relevance[:, 0]
    for case in CASES:
        expected = golden[f"case{case}/{name}"]
        if name == "attention_gradcam" and np.isnan(expected).all():  # their 0 / 0 of a map that is 0 everywhere
            assert (maps[case] == 0).all()
            continue
        assert relative_error(maps[case].reshape(expected.shape), expected) <= 1e-7


def test_all_golden_values_are_met(golden):
    signals = {"image", "target", "logits", "attention", "attention_gradient", "attention_relevance"}
    names = {k.removeprefix("case0/") for k in golden if k.startswith("case0/")} - signals
    assert names - {"attention_gradcam_unnormalised"} == set(GOLDEN)


def test_a_single_block_of_a_pooling_model_is_the_last():
    """No other block has a row that the head reads."""
    model, params = small_model(readout="attention", prefix_tokens=0)
    signals = lrp_jax.attention_signals(model, params, small_images(1))
    last = jnp.maximum(signals.gradient * signals.relevance, 0)[0, 0, -1].mean(axis=0)[0]
    relevance = lrp_jax.explain(model, params, small_images(1), method="single_block").relevance
    np.testing.assert_allclose(relevance.ravel(), last, atol=1e-12)
    with pytest.raises(ValueError, match="block must be the last, 3, of a model that pools by attention; got 1"):
        lrp_jax.explain(model, params, small_images(1), method="single_block", block=1)
