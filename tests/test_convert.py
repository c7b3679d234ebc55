"""Weights under timm's names. That the converted model is right is in test_attribution, by the golden logits."""

import chex
import numpy as np
import pytest
import safetensors.numpy

import lrp_jax

GIVEN = {"num_heads": 4, "final_norm_epsilon": 1e-5}


def test_configuration_is_read_from_the_weights(golden_model):
    config = golden_model[0].config
    assert config == lrp_jax.ViTConfig(
        image_size=32, patch_size=8, width=32, depth=4, mlp_dim=128, num_classes=10, **GIVEN
    )


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


def test_fields_override(golden_weights):
    names = tuple("abcdefghij")
    model, _ = lrp_jax.convert(golden_weights, num_heads=8, gelu="tanh", class_names=names, image_size=(16, 64))
    config = model.config
    assert (config.num_heads, config.gelu, config.class_names, config.grid) == (8, "tanh", names, (2, 8))


def test_without_qkv_bias(golden_weights):
    weights = {k: v for k, v in golden_weights.items() if not k.endswith("qkv.bias")}
    model, params = lrp_jax.convert(weights, **GIVEN)
    assert not model.config.qkv_bias
    assert "bias" not in params["blocks"]["attn"]["qkv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.1.attn.qkv.weight"), r"missing blocks\.1\.attn\.qkv\.weight"),
        (lambda w: w.pop("blocks.3.norm1.weight"), r"unexpected blocks\.3\.attn\.proj\.bias"),
        (lambda w: w.pop("patch_embed.proj.weight"), r"patch_embed\.proj\.weight is missing, expected rank 4"),
        (lambda w: w.update({"head.weight": np.zeros(3)}), r"head\.weight is of the shape \(3,\), expected rank 2"),
        (lambda w: w.update({"ls1.gamma": np.zeros(3)}), r"unexpected ls1\.gamma"),
        (lambda w: w.update({"norm.bias": np.zeros(3)}), r"norm\.bias has the shape \(3,\), expected \(32,\)"),
        (lambda w: w.update({"blocks.0.norm1.bias": np.zeros(3)}), r"unexpected shapes: blocks\.0\.norm1\.bias \(3,\)"),
        (lambda w: w.update({"pos_embed": np.zeros((1, 16, 32))}), "15 patches of pos_embed are no square: image_size"),
        (lambda w: w.update({"norm.bias": np.zeros(32, int)}), r"norm\.bias is int64, expected floating"),
        (dict.clear, r"patch_embed\.proj\.weight is missing"),
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
    with pytest.raises(ValueError, match=r"\.safetensors file, got 'weights\.bin'"):
        lrp_jax.convert("weights.bin")
    with pytest.raises(FileNotFoundError):
        lrp_jax.convert(tmp_path / "none.safetensors")
