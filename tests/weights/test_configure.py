"""What weights, files beside them and the caller say of a model, and what is assumed."""

import json

import numpy as np
import pytest
import safetensors.numpy
from helpers import GIVEN, case, starts

import lrp_jax
from lrp_jax.weights.convert import convert_with_summary


def test_configuration_is_read_from_the_weights(golden_model):
    config = golden_model[0].config
    assert config == lrp_jax.ViTConfig(
        image_size=32, patch_size=8, width=32, depth=4, mlp_dim=128, num_classes=10, resize=35, **GIVEN
    )


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
