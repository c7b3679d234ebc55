"""Every method against the authors' values, or against a plain form of its definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error
from PIL import Image
from test_attribution import CASES, small_images, small_model

import lrp_jax
from lrp_jax.methods import METHODS, register, rise_mask
from lrp_jax.model import forward

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
#: Options that keep the methods of many forward passes short.
SHORT = {"smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3}, "rise": {"masks": 5, "cells": 3}}


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


def test_gradcam_before_scaling(golden, golden_model, golden_images):
    for case in CASES:
        image, target = golden[f"case{case}/image"], golden[f"case{case}/target"]
        signals = lrp_jax.attention_signals(*golden_model, golden_images[image][None], target[None])
        a, g = signals.attention[0, -1, :, 0, 1:], signals.gradient[0, 0, -1, :, 0, 1:]
        cam = np.maximum((a * g.mean(axis=1, keepdims=True)).mean(axis=0), 0)
        np.testing.assert_allclose(cam, golden[f"case{case}/attention_gradcam_unnormalised"], atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_a_method_holds(name):
    """Resolution, class specificity, the image's own logits; a batch equals single calls, in the caller's jit."""
    method = METHODS[name]
    model, params = small_model()
    images, targets = small_images(2), np.array([[0, 1], [2, 3]])
    options = SHORT.get(name, {})
    batch = lrp_jax.explain(model, params, images, targets, method=name, **options)
    chex.assert_shape(batch.relevance, (2, 2, *({"patch": (4, 4), "pixel": (16, 16)}[method.resolution])))
    chex.assert_tree_all_finite(batch)
    differ = np.abs(batch.relevance[:, 0] - batch.relevance[:, 1]).max(axis=(1, 2))
    assert (differ > 0).all() == method.class_specific
    assert method.name == name
    assert method.summary.endswith(".")
    assert method.reference
    single = jax.jit(lambda images, targets: lrp_jax.explain(model, params, images, targets, method=name, **options))
    for b in range(2):
        logits, _ = forward(model, params, images[b])
        chex.assert_trees_all_close(batch.logits[b], logits, rtol=1e-10)
        for k in range(2):
            one = single(images[b : b + 1], targets[b : b + 1, k])
            np.testing.assert_allclose(
                one.relevance[0, 0], batch.relevance[b, k], atol=1e-10 * np.abs(batch.relevance).max()
            )


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


def test_a_single_block_of_a_pooling_model_is_the_last():
    """No other block has a row that the head reads."""
    model, params = small_model(readout="attention", prefix_tokens=0)
    signals = lrp_jax.attention_signals(model, params, small_images(1))
    last = jnp.maximum(signals.gradient * signals.relevance, 0)[0, 0, -1].mean(axis=0)[0]
    relevance = lrp_jax.explain(model, params, small_images(1), method="single_block").relevance
    np.testing.assert_allclose(relevance.ravel(), last, atol=1e-12)
    with pytest.raises(ValueError, match="block must be the last, 3, of a model that pools by attention; got 1"):
        lrp_jax.explain(model, params, small_images(1), method="single_block", block=1)


def test_occlusion_of_an_image_one_patch_high():
    model, params = small_model(image_size=(4, 16))
    relevance = lrp_jax.explain(model, params, small_images(1)[:, :4], method="occlusion").relevance
    assert relevance.shape == (1, 1, 4, 16)
    chex.assert_tree_all_finite(relevance)


def logit(model, params, target):
    return jax.jit(lambda image: model.forward(params, image, None, lrp_jax.GRADIENT)[0][target])


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
        logits, _ = model.forward(params, image * mask[..., None], None, lrp_jax.GRADIENT)
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


def test_a_method_of_ones_own():
    @register(class_specific=False, resolution="patch", reference="this test")
    def centre(model, params, image, targets, *, peak: float = 1.0):
        """A map that looks at nothing."""
        logits, _ = model.forward(params, image, None, lrp_jax.GRADIENT)
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
        ("full_lrp", {"rules": "lrp"}, "rules must be one of chefer, stable, baseline, or a Rules; got 'lrp'"),
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
