"""Methods of attention: rollouts and GradCAM."""

import numpy as np
import pytest
from helpers import CASES, small_images, small_model

import lrp_jax


def test_gradcam_before_scaling(golden, golden_model, golden_images):
    for case in CASES:
        image, target = golden[f"case{case}/image"], golden[f"case{case}/target"]
        signals = lrp_jax.attention_signals(*golden_model, golden_images[image][None], target[None])
        a, g = signals.attention[0, -1, :, 0, 1:], signals.gradient[0, 0, -1, :, 0, 1:]
        cam = np.maximum((a * g.mean(axis=1, keepdims=True)).mean(axis=0), 0)
        np.testing.assert_allclose(cam, golden[f"case{case}/attention_gradcam_unnormalised"], atol=1e-12)


@pytest.mark.parametrize("readout", ["mean", "attention", "distilled"])
def test_rollouts_start_from_the_readout(readout):
    """Against products of whole matrices."""
    prefix = {"mean": 0, "attention": 0, "distilled": 2}[readout]
    model, params = small_model(readout=readout, prefix_tokens=prefix)
    image = small_images(1)
    attention = np.asarray(lrp_jax.attention_signals(model, params, image).attention[0]).mean(axis=1)
    if readout == "attention":
        start, attention, last = attention[-1, 0], attention[:-1], attention[-1, 0]
    else:
        start = np.asarray(model.readout)
        last = start @ attention[-1]
    rollout = start
    for matrix in attention[::-1]:
        both = matrix + np.eye(len(matrix))
        rollout = rollout @ (both / both.sum(axis=1, keepdims=True))
    for method, expected in (("attention_rollout", rollout), ("raw_attention", last)):
        relevance = lrp_jax.explain(model, params, image, method=method).relevance.ravel()
        np.testing.assert_allclose(relevance, expected[prefix:], rtol=1e-10)
