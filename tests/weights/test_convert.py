"""Other people's weights: logits, maps, and what does not fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import GIVEN, PARITY, case, relative_error
from PIL import Image

import lrp_jax
from lrp_jax.walk import forward
from lrp_jax.weights.convert import convert_with_summary


def test_file_equals_mapping(tmp_path, golden_weights, golden_model):
    safetensors.numpy.save_file(golden_weights, tmp_path / "timm.safetensors")
    model, params = lrp_jax.convert(tmp_path / "timm.safetensors", **GIVEN)
    assert model == golden_model[0]
    chex.assert_trees_all_equal(params, golden_model[1])


def test_through_a_native_checkpoint(tmp_path, golden_model):
    lrp_jax.save(tmp_path / "native.safetensors", *golden_model)
    model, params = lrp_jax.load(tmp_path / "native.safetensors")
    assert model == golden_model[0]
    chex.assert_trees_all_equal(params, golden_model[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.attn.qkv.weight"), r"missing blocks\.1\.attn\.qkv\.weight"),
        (lambda w: w.pop("blocks.3.norm1.weight"), r"missing blocks\.3\.norm1\.weight"),
        (lambda w: w.pop("norm.weight"), r"missing norm\.scale"),
        (lambda w: w.pop("patch_embed.proj.weight"), "not hold a Vision Transformer that is known here"),
        (lambda w: w.update({"head.weight": np.zeros(3)}), r"head\.weight .* of the shape \(3,\), expected rank 2"),
        (lambda w: w.update({"ls1.gamma": np.zeros(3)}), r"unexpected ls1\.gamma"),
        (lambda w: w.update({"norm.bias": np.zeros(3)}), r"norm\.bias has the shape \(3,\), expected \(32,\)"),
        (lambda w: w.update({"blocks.0.norm1.bias": np.zeros(3)}), r"unexpected shapes: blocks\.0\.norm1\.bias \(3,\)"),
        (lambda w: w.update({"pos_embed": np.zeros((1, 15, 32))}), "15 positions of pos_embed"),
        (lambda w: w.update({"norm.bias": np.zeros(32, int)}), r"norm\.bias is int64, expected floating"),
        (lambda w: w.update({"norm.bias": np.full(32, np.nan)}), r"norm\.bias holds NaN"),
        (lambda w: w.update({"fc_norm.weight": np.ones(32)}), r"unexpected fc_norm\.weight"),
        (lambda w: w.update({"blocks.0.attn.k.weight": np.ones((32, 32))}), "unexpected"),
        (lambda w: w.update({"cls_token": np.ones((1, 32))}), r"cls_token .* of the shape \(1, 32\), expected rank 3"),
        (lambda w: w.update({"reg_token": np.ones(32)}), r"reg_token .* of the shape \(32,\), expected rank 3"),
        (dict.clear, "it holds nothing"),
    ],
)
def test_weights_that_do_not_fit(golden_weights, change, message):
    weights = dict(golden_weights)
    change(weights)
    with pytest.raises(ValueError, match=message):
        lrp_jax.convert(weights, **GIVEN)


def test_bad_calls(tmp_path, golden_weights):
    with pytest.raises(ValueError, match="got 'heads'"):
        lrp_jax.convert(golden_weights, heads=4)
    with pytest.raises(ValueError, match="width 32: give num_heads="):
        lrp_jax.convert(golden_weights)
    with pytest.raises(ValueError, match=r"family must be one of timm, .*; got 'keras'"):
        lrp_jax.convert(golden_weights, family="keras")
    with pytest.raises(ValueError, match=r"preprocessing must be one of timm, .*; got 'none'"):
        lrp_jax.convert(golden_weights, preprocessing="none", **GIVEN)
    with pytest.raises(ValueError, match=r"image_size must be a positive int or a pair .*, got '24'"):
        lrp_jax.convert(golden_weights, image_size="24", **GIVEN)
    with pytest.raises(ValueError, match="map names to arrays, got the name 3"):
        lrp_jax.convert({3: np.zeros(3)})
    with pytest.raises(ValueError, match="must be a path or map names to arrays, got list"):
        lrp_jax.convert([np.zeros(3)])
    with pytest.raises(FileNotFoundError):
        lrp_jax.convert(tmp_path / "none.safetensors")


def test_weights_of_the_authors(golden_weights, golden_model):
    """They have timm's names, and another epsilon in the final norm."""
    model, params = lrp_jax.convert(golden_weights, family="authors", num_heads=4)
    assert model == golden_model[0]
    chex.assert_trees_all_equal(params, golden_model[1])


CASES = sorted(path.stem for path in PARITY.glob("*-*.npz"))


def as_float64(weights):
    return {name: array.astype(np.float64) for name, array in weights.items()}


def test_every_family_has_its_models():
    assert {name.partition("-")[0] for name in CASES} == {"timm", "hf", "torchvision", "google"}
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_original(name):
    weights, fields, image, logits = case(name)
    model, params = lrp_jax.convert(as_float64(weights), **fields)
    explanation = lrp_jax.explain(model, params, jnp.asarray(image, jnp.float64)[None])
    assert relative_error(explanation.logits[0], logits) <= 1e-9
    chex.assert_shape(explanation.relevance, (1, 1, 4, 4))
    chex.assert_tree_all_finite(explanation)
    assert explanation.relevance.max() > 0

    model, params = lrp_jax.convert(weights, **fields)
    ours = jax.jit(lambda p, x: forward(model, p, x, lrp_jax.GRADIENT))(params, jnp.asarray(image))
    assert ours.dtype == jnp.float32
    assert relative_error(ours, logits) <= 1e-4


READOUTS = {
    "timm-vit_base_patch16_224": ("class", 1),
    "timm-vit_base_patch16_224-fc_norm": ("mean", 1),
    "timm-deit_tiny_distilled_patch16_224": ("distilled", 2),
    "timm-vit_small_patch14_reg4_dinov2": ("class", 5),
    "timm-vit_base_patch16_clip_224": ("class", 1),
    "timm-vit_giant_patch14_dinov2": ("class", 1),
    "timm-vit_base_patch16_siglip_224": ("attention", 0),
    "hf-deit": ("class", 2),
    "hf-dinov2-registers": ("class_mean", 5),
    "google-big-vision": ("mean", 0),
    "google-map": ("attention", 0),
}


@pytest.mark.parametrize("name", {readout: name for name, (readout, _) in READOUTS.items()}.values())
def test_maps_move_with_the_picture(name):
    """Without position embeddings, a picture shifted by a patch has the same map shifted by one.

    So the map starts from what the head reads, and neither prefix nor registers shift the grid of patches.
    """
    weights, fields, image, _ = case(name)
    model, params = lrp_jax.convert(as_float64(weights), **fields)
    assert (model.config.readout, model.config.prefix_tokens) == READOUTS[name]
    prefix = model.config.prefix_tokens
    params = {**params, "pos_embed": params["pos_embed"].at[prefix:].set(0)}
    images = jnp.stack([jnp.roll(image, (8 * r, 8 * c), axis=(0, 1)) for r, c in ((0, 0), (1, 0), (0, 3))])
    maps = lrp_jax.explain(model, params, images.astype(jnp.float64), jnp.array([2, 2, 2])).relevance[:, 0]
    assert maps.max() > 0
    for shifted, shift in ((maps[1], (1, 0)), (maps[2], (0, 3))):
        np.testing.assert_allclose(shifted, jnp.roll(maps[0], shift, axis=(0, 1)), rtol=1e-6, atol=1e-9 * maps.max())


@pytest.mark.parametrize("name", {readout: name for name, (readout, _) in READOUTS.items()}.values())
def test_map_is_the_rollout_from_the_readout(name):
    weights, fields, image, _ = case(name)
    model, params = lrp_jax.convert(as_float64(weights), **fields)
    images, targets = jnp.asarray(image, jnp.float64)[None], jnp.array([1])
    signals = lrp_jax.attention_signals(model, params, images, targets)
    weighted = np.maximum(np.asarray(signals.gradient * signals.relevance)[0, 0], 0).mean(axis=1)
    rollout = np.eye(weighted.shape[-1])
    for layer in weighted[: model.config.depth]:
        rollout = (np.eye(len(layer)) + layer) @ rollout
    tokens, prefix = np.eye(len(rollout)), model.config.prefix_tokens
    start = {
        "class": tokens[0],
        "distilled": (tokens[0] + tokens[1]) / 2,
        "mean": tokens[prefix:].mean(axis=0),
        "class_mean": (tokens[0] + tokens[prefix:].mean(axis=0)) / 2,
        "attention": weighted[-1, 0],
    }[model.config.readout]
    explanation = lrp_jax.explain(model, params, images, targets)
    np.testing.assert_allclose(explanation.relevance[0, 0].ravel(), (start @ rollout)[prefix:], rtol=1e-9)


def test_position_embeddings_are_resampled_as_timm_does():
    with np.load(PARITY / "references.npz") as file:
        references = dict(file)
    weights, fields, _, _ = case("timm-vit_base_patch16_224")
    weights["pos_embed"] = references["pos_embed"]
    for name in (name for name in references if name.startswith("resampled/")):
        rows, cols = map(int, name.removeprefix("resampled/").split("x"))
        found = convert_with_summary(weights, image_size=(8 * rows, 8 * cols), **fields)
        assert found.model.grid == (rows, cols)
        np.testing.assert_allclose(found.params["pos_embed"], references[name], atol=2e-6)
        assert found.notes[-1] == f"position embeddings were resampled from 4 x 4 to {rows} x {cols}"


@pytest.mark.parametrize("preset", ["timm", "hf", "torchvision"])
def test_preprocessing_is_as_published(preset):
    with np.load(PARITY / "references.npz") as file:
        photo, expected = Image.fromarray(file["photo"]), file[f"preprocessed/{preset}"]
    weights, fields, _, _ = case("timm-vit_base_patch16_224")
    model, _ = lrp_jax.convert(weights, image_size=64, preprocessing=preset, **fields)
    ours = lrp_jax.preprocess(photo, model.config)
    difference = np.abs(ours - expected) * np.asarray(model.config.std)  # in units of the pixels' [0, 1]
    assert (difference <= 1.001 / 255).mean() >= 0.999


def test_half_precision_is_kept():
    weights, fields, image, logits = case("timm-deit3_small_patch16_224")
    for dtype in (jnp.bfloat16, np.float16):
        model, params = lrp_jax.convert({k: v.astype(dtype) for k, v in weights.items()}, **fields)
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        with jax.numpy_dtype_promotion("standard"):
            explanation = lrp_jax.explain(model, params, jnp.asarray(image)[None])
        assert explanation.relevance.dtype == jnp.float32
        assert relative_error(explanation.logits[0], logits) < 0.1
