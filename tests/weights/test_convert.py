"""Other people's weights: logits, maps, and what does not fit."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import PARITY, relative_error
from PIL import Image

import lrp_jax
from lrp_jax.weights.convert import convert_with_summary

GIVEN = {"num_heads": 4, "final_norm_epsilon": 1e-5}


def test_configuration_is_read_from_the_weights(golden_model):
    config = golden_model[0].config
    assert config == lrp_jax.ViTConfig(
        image_size=32, patch_size=8, width=32, depth=4, mlp_dim=128, num_classes=10, resize=35, **GIVEN
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


# Models of other libraries, see scripts/make_parity_fixtures.py.

CASES = sorted(path.stem for path in PARITY.glob("*-*.npz"))


def case(name):
    with np.load(PARITY / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return weights, json.loads(str(arrays["fields"])), arrays["image"], arrays["logits"]


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
    ours = jax.jit(lambda p, x: model.forward(p, x, None, lrp_jax.GRADIENT)[0])(params, jnp.asarray(image))
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


@pytest.mark.parametrize("name", READOUTS)
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


def test_files_beside_the_weights_tell_the_rest(tmp_path):
    weights, fields, _, _ = case("hf-vit-saved")
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    config = {"num_attention_heads": 8, "layer_norm_eps": 1e-7, "hidden_act": "gelu_new"}
    config["id2label"] = dict(zip("01234", "abcde", strict=True))
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": {"shortest_edge": 40}, "resample": 3}
    images |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    config = lrp_jax.convert(tmp_path / "model.safetensors")[0].config
    assert (config.num_heads, config.norm_epsilon, config.gelu) == (8, 1e-7, "tanh")
    assert config.class_names == tuple("abcde")
    assert (config.mean, config.std, config.resize, config.interpolation) == ((0.1,) * 3, (0.2,) * 3, 40, "bicubic")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON object"):
        lrp_jax.convert(tmp_path / "model.safetensors", **fields)
    (tmp_path / "config.json").write_text('{"hidden_act": "mish"}')
    with pytest.raises(ValueError, match="hidden_act is 'mish', which is not known"):
        lrp_jax.convert(tmp_path / "model.safetensors", **fields)


def folder(tmp_path, name, config=None, processor=None):
    """A file of weights, beside it what is given."""
    weights, *_ = case(name)
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    for file, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            (tmp_path / file).write_text(json.dumps(content))
    return tmp_path / "model.safetensors"


HF = {"model_type": "vit", "num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": 5}
HF |= {"image_size": 32, "patch_size": 8, "num_channels": 3, "intermediate_size": 64, "qkv_bias": True}
TIMM = {"architecture": "vit_base_patch16_224", "num_classes": 5, "num_features": 32, "global_pool": "token"}
TIMM |= {"model_args": {"num_heads": 4}, "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1.0}}


@pytest.mark.parametrize(
    ("name", "config", "fields"),
    [
        ("hf-vit-saved", HF | {"problem_type": "multi_label_classification"}, {"multi_label": True}),
        ("hf-vit-saved", HF | {"hidden_act": "quick_gelu"}, {"gelu": "quick"}),
        ("hf-vit-saved", HF | {"image_size": [16, 64]}, {"image_size": (16, 64), "resize": (16, 64)}),
        ("hf-dinov2-saved", HF | {"model_type": "dinov2", "intermediate_size": None, "mlp_ratio": 2}, {}),
        ("hf-dinov2-swiglu-saved", {"model_type": "dinov2", **{"mlp_ratio": 2, "use_swiglu_ffn": True}}, {}),
        ("hf-dinov2-registers-saved", {"model_type": "dinov2_with_registers", "num_register_tokens": 4}, {}),
        ("timm-vit_base_patch16_224", TIMM, {"num_heads": 4, "resize": 32, "mean": (0.485, 0.456, 0.406)}),
        ("timm-vit_base_patch16_224", TIMM | {"global_pool": "avg"}, {"readout": "mean"}),
        ("timm-vit_base_patch16_224-fc_norm", TIMM, {"readout": "class", "norm_after_readout": True}),
        ("timm-deit_tiny_distilled_patch16_224", TIMM, {"readout": "distilled"}),
        (
            "timm-vit_base_patch16_clip_quickgelu_224",
            TIMM | {"architecture": "vit_base_patch16_clip_quickgelu_224"},
            {"gelu": "quick", "norm_epsilon": 1e-5},
        ),
    ],
)
def test_a_file_settles_what_weights_cannot(tmp_path, name, config, fields):
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    if name == "hf-vit-saved" and config["image_size"] != 32:
        processor["size"] = {"height": 16, "width": 64}
    source = folder(tmp_path, name, config, processor if name.startswith("hf") else None)
    head_count = {} if config.get("num_attention_heads") or name.startswith("timm") else {"num_heads": 4}
    found = convert_with_summary(source, **head_count)
    assert {field: getattr(found.model.config, field) for field in fields} == fields
    assert found.notes == []


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        *(
            ("hf-vit-saved", HF | {field: value}, f"{field} is {value}, which does not fit the weights")
            for field, value in (
                *{"hidden_size": 48, "num_hidden_layers": 3, "num_labels": 6, "image_size": 40}.items(),
                *{"patch_size": 16, "num_channels": 1, "intermediate_size": 65, "qkv_bias": False}.items(),
                *{"num_attention_heads": 5, "mlp_ratio": 4, "num_register_tokens": 4}.items(),
            )
        ),
        ("hf-vit-saved", HF | {"use_swiglu_ffn": True}, "use_swiglu_ffn is True, which does not fit"),
        ("hf-vit-saved", HF | {"id2label": {"0": "a"}}, "id2label has 1 names, which does not fit"),
        ("hf-vit-saved", HF | {"model_type": "dinov2"}, "model_type is 'dinov2', which does not fit"),
        ("google-linen", HF, "model_type is 'vit', which does not fit the weights .family google."),
        ("timm-vit_base_patch16_224", TIMM | {"num_features": 48}, "num_features is 48, which does not fit"),
        ("timm-vit_base_patch16_224", TIMM | {"num_classes": 0}, "num_classes is 0, which does not fit"),
        ("timm-vit_base_patch16_224", TIMM | {"global_pool": "map"}, "global_pool is 'map', which does not fit"),
        ("timm-vit_giant_patch14_dinov2", TIMM, "architecture is 'vit_base_patch16_224', which does not fit .*swiglu"),
        (
            "timm-vit_base_patch16_224",
            TIMM | {"model_args": {"num_heads": 4, "fc_norm": True, "class_token": True}},
            "fc_norm is True, which does not fit",
        ),
        ("timm-vit_base_patch16_224", TIMM | {"model_args": {"class_token": False}}, "class_token is False, which"),
        (
            "timm-vit_base_patch16_224",
            TIMM | {"pretrained_cfg": {"input_size": [1, 32, 32]}},
            "input_size is .1, 32, 32., which does not fit",
        ),
        ("timm-vit_base_patch16_224", TIMM | {"pretrained_cfg": {"mean": [0, 0]}}, "mean is .* does not fit"),
        (
            "timm-vit_base_patch16_224",
            TIMM | {"global_pool": "avg", "model_args": {"num_heads": 4, "pool_include_prefix": True}},
            "the mean is taken over all tokens in timm, and over patches here; readout='mean' or --set readout=mean",
        ),
    ],
)
def test_files_of_other_weights_are_refused(tmp_path, name, config, message):
    with pytest.raises(ValueError, match=message):
        lrp_jax.convert(folder(tmp_path, name, config))


def test_the_caller_has_the_last_word(tmp_path):
    config = TIMM | {"model_args": {"num_heads": 5}, "pretrained_cfg": {"mean": [0, 0]}, "global_pool": "prr"}
    source = folder(tmp_path, "timm-vit_base_patch16_224", config)
    config = lrp_jax.convert(source, num_heads=8, mean=(0.1,), readout="mean", class_names=tuple("abcde"))[0].config
    assert (config.num_heads, config.mean, config.readout) == (8, (0.1,), "mean")


def test_pooling_attention_over_patches_alone_is_refused():
    """As timm has it where tokens stand before the patches."""
    weights, fields, _, _ = case("timm-vit_base_patch16_siglip_224")
    weights["reg_token"] = np.zeros((1, 1, 32), np.float32)
    with pytest.raises(ValueError, match="over the patches alone in timm, and over all here; readout='attention' or"):
        lrp_jax.convert(weights, **fields)
    assert lrp_jax.convert(weights, readout="attention", **fields)[0].config.prefix_tokens == 1


def test_trained_size_is_kept(tmp_path):
    """DINOv2's own files say 518 and prepare pictures at 224; a grid that is not square is resampled from its shape."""
    source = folder(
        tmp_path,
        "hf-dinov2-saved",
        HF | {"model_type": "dinov2"},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 24},
    )
    found = convert_with_summary(source)
    assert (found.model.config.image_size, found.model.config.resize) == ((32, 32), 37)
    assert found.notes == [
        "preprocessor_config.json prepares pictures at 24 x 24 pixels, the position embeddings are of 32 x 32, which "
        "is kept; image_size= or --image-size 24 24 resamples them"
    ]
    found = convert_with_summary(source, image_size=24)
    assert (found.model.config.resize, found.notes) == (28, ["position embeddings were resampled from 4 x 4 to 3 x 3"])
    (tmp_path / "config.json").write_text(json.dumps(HF | {"model_type": "dinov2", "image_size": [16, 64]}))
    assert "resampled from 2 x 8 to 4 x 4" in convert_with_summary(source, image_size=32).notes[-1]


def starts(name, **fields):
    weights, heads, _, _ = case(name)
    return [note.split(";")[0] for note in convert_with_summary(weights, **(heads | fields)).notes]


def test_what_is_assumed_is_noted():
    weights, *_ = case("timm-vit_base_patch16_224")
    wide = {n: np.zeros([384 if s == 32 else 1152 if s == 96 else s for s in a.shape]) for n, a in weights.items()}
    assert convert_with_summary(wide).notes[:2] == [
        "6 heads are assumed, as published for width 384 (a ViT-S of MoCo v3 has 12); num_heads= or --num-heads "
        "changes it",
        "the head is assumed to read the class token, not the mean of the patches; readout= or --set readout=mean "
        "changes it",
    ]
    assert convert_with_summary(wide, num_heads=12).model.config.num_heads == 12
    epsilon = "layer norm's epsilon is assumed to be 1e-06"
    pictures = "pictures: mean 0.5, std 0.5, interpolation bicubic, resize 35 are assumed, as published for 'timm'"
    gelu = "the exact GELU is assumed, as is usual"
    assert starts("timm-vit_base_patch16_224", readout="class") == [gelu, epsilon, pictures]
    assert starts("timm-vit_base_patch16_224", readout="class", gelu="tanh", norm_epsilon=1e-5, mean=(0.1,)) == [
        pictures.replace("mean 0.5, ", "")
    ]
    assert starts("timm-vit_base_patch16_224", preprocessing="hf")[-1] == epsilon
    assert "CLIP of OpenAI, MetaCLIP and DFN have gelu=quick" in starts("timm-vit_base_patch16_clip_224")[1]
    assert "most of SigLIP 2 have gelu=tanh" in starts("timm-vit_base_patch16_siglip_224")[0]
    assert starts("timm-vit_giant_patch14_dinov2")[1] == epsilon
    assert starts("timm-deit_tiny_distilled_patch16_224")[-1].endswith("as published for 'deit'")
    assert len(starts("hf-vit-saved")) == 3
    assert starts("google-linen") == [
        pictures.replace("bicubic, resize 35", "bilinear, resize (32, 32)").replace("'timm'", "'hf'")
    ]
    assert len(starts("torchvision-vit")) == 1


def test_names_of_imagenet(golden_weights):
    weights = dict(golden_weights)
    weights |= {"head.weight": np.ones((1000, 32)), "head.bias": np.zeros(1000)}
    names = lrp_jax.convert(weights, **GIVEN)[0].config.class_names
    assert (len(names), names[0], names[207], names[999]) == (1000, "tench", "golden retriever", "toilet tissue")


def test_half_precision_is_kept():
    weights, fields, image, logits = case("timm-deit3_small_patch16_224")
    for dtype in (jnp.bfloat16, np.float16):
        model, params = lrp_jax.convert({k: v.astype(dtype) for k, v in weights.items()}, **fields)
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        with jax.numpy_dtype_promotion("standard"):
            explanation = lrp_jax.explain(model, params, jnp.asarray(image)[None])
        assert explanation.relevance.dtype == jnp.float32
        assert relative_error(explanation.logits[0], logits) < 0.1
