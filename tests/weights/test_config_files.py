"""The files beside other people's weights: every field of the tables, and what it becomes."""

import json
import re

import pytest

from lrp_jax.weights.config_files import read_config_files
from lrp_jax.weights.config_tables import NO_EFFECT, PROCESSOR, TIMM, TIMM_ARGUMENTS, TIMM_PICTURES, TRANSFORMERS
from lrp_jax.weights.told import PICTURES

CONFIG, PROCESSOR_FILE = "config.json", "preprocessor_config.json"


def config(fields):
    return {CONFIG: fields}


def processor(fields):
    return {PROCESSOR_FILE: {"image_processor_type": "ViTImageProcessor", **fields}}


def timm(fields):
    return {CONFIG: {"architecture": "vit_tiny_patch16_224", **fields}}


def arguments(fields):
    return timm({"model_args": fields})


def pretrained(fields):
    return timm({"pretrained_cfg": fields})


FORMS = {config: TRANSFORMERS, processor: PROCESSOR, timm: TIMM, arguments: TIMM_ARGUMENTS, pretrained: TIMM_PICTURES}


@pytest.fixture
def read(tmp_path):
    def read(files, given=()):
        for name, content in files.items():
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return read_config_files(tmp_path, frozenset(given))

    return read


IMAGENET = (0.485, 0.456, 0.406)
CROPPED = {"do_center_crop": True, "crop_size": 224}
BECOMES = [
    # transformers' config.json
    (config, {"model_type": "vit"}, {"family": "hf", "num_heads": 12, "gelu": "exact", "norm_epsilon": 1e-12}),
    (config, {"model_type": "deit"}, {"family": "hf", "norm_epsilon": 1e-12}),
    (config, {"model_type": "vit_msn"}, {"family": "hf", "norm_epsilon": 1e-6}),
    (config, {"model_type": "dinov2"}, {"family": "dinov2", "norm_epsilon": 1e-6}),
    (config, {"model_type": "dinov2_with_registers"}, {"family": "dinov2", "final_norm_epsilon": 1e-6}),
    (config, {"model_type": "vit", "layer_norm_eps": None}, {"norm_epsilon": 1e-12}),
    (config, {"hidden_size": 48}, {"width": 48}),
    (config, {"num_hidden_layers": 3}, {"depth": 3}),
    (config, {"num_attention_heads": 4}, {"num_heads": 4}),
    (config, {"hidden_size": 48, "head_dim": 12, "num_attention_heads": 4}, {"num_heads": 4}),
    (config, {"intermediate_size": 64}, {"mlp_dim": 64}),
    (config, {"mlp_ratio": 2.5}, {"mlp_ratio": 2.5}),
    (config, {"hidden_act": "gelu"}, {"gelu": "exact"}),
    (config, {"hidden_act": "gelu_python"}, {"gelu": "exact"}),
    (config, {"hidden_act": "gelu_new"}, {"gelu": "tanh"}),
    (config, {"hidden_act": "gelu_fast"}, {"gelu": "tanh"}),
    (config, {"hidden_act": "gelu_accurate"}, {"gelu": "tanh"}),
    (config, {"hidden_act": "gelu_pytorch_tanh"}, {"gelu": "tanh"}),
    (config, {"hidden_act": "gelu_python_tanh"}, {"gelu": "tanh"}),
    (config, {"hidden_act": "quick_gelu"}, {"gelu": "quick"}),
    (config, {"hidden_act": "relu", "use_swiglu_ffn": True}, {"swiglu": True, "gelu": None}),
    (config, {"layer_norm_eps": 0.5}, {"norm_epsilon": 0.5, "final_norm_epsilon": 0.5}),
    (config, {"image_size": 32}, {"image_size": (32, 32)}),
    (config, {"image_size": [16, 64]}, {"image_size": (16, 64)}),
    (config, {"patch_size": [4, 8]}, {"patch_size": (4, 8)}),
    (config, {"num_channels": 1}, {"channels": 1}),
    (config, {"qkv_bias": False}, {"qkv_bias": False}),
    (config, {"num_register_tokens": 0}, {"registers": 0}),
    (config, {"num_labels": 7}, {"num_classes": 7}),
    (config, {"id2label": {"1": "b", "0": "a"}}, {"class_names": ("a", "b"), "num_classes": 2}),
    (config, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {"class_names": None, "num_classes": 2}),
    (config, {"id2label": {"0": 5, "1": "b"}}, {"class_names": ("5", "b")}),
    (config, {"problem_type": "multi_label_classification"}, {"multi_label": True, "regression": False}),
    (config, {"problem_type": "regression"}, {"multi_label": False, "regression": True}),
    (config, {"problem_type": "single_label_classification"}, {"multi_label": False}),
    (config, {"pruned_heads": {}, "per_layer_config": {}, "quantization_config": {}}, {}),
    (config, {"architectures": ["ViTForImageClassification", "Dinov2Model"]}, {}),
    # image processors
    (processor, {}, {"enlarge": None, "pictures": (224, 224), "interpolation": "bilinear", "mean": (0.5,)}),
    (processor, {"size": 32}, {"enlarge": None, "pictures": (32, 32)}),
    (processor, {"size": [16, 64]}, {"enlarge": None, "pictures": (16, 64)}),
    (processor, {"size": {"height": 16, "width": 64}}, {"enlarge": None, "pictures": (16, 64)}),
    (processor, {"size": 256, **CROPPED}, {"enlarge": (256 / 224, 256 / 224), "pictures": (224, 224)}),
    (processor, {"size": 256, "default_to_square": False, **CROPPED}, {"enlarge": 256 / 224, "pictures": (224, 224)}),
    (processor, {"size": {"shortest_edge": 256, "width": None}, **CROPPED}, {"enlarge": 256 / 224}),
    (processor, {"size": 256, "do_center_crop": False, "crop_size": 224}, {"enlarge": None, "pictures": (256, 256)}),
    (processor, {"do_resize": True, "do_convert_rgb": False}, {"enlarge": None}),
    *(
        (processor, {"resample": number}, {"interpolation": name})
        for number, name in enumerate(["nearest", "lanczos", "bilinear", "bicubic", "box"])
    ),
    (processor, {"image_mean": [0, 0.25, 1], "image_std": 2}, {"mean": (0, 0.25, 1), "std": (2,)}),
    (processor, {"do_rescale": False, "image_mean": 127.5, "image_std": 51}, {"mean": (0.5,), "std": (0.2,)}),
    (processor, {"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1}, {"mean": (0.5,), "std": (0.5,)}),
    (processor, {"do_normalize": False}, {"mean": (0,), "std": (1,)}),
    (processor, {"do_normalize": False, "do_rescale": False}, {"mean": (0,), "std": (1 / 255,)}),
    (processor, {"do_pad": False}, {}),
    (processor, {"image_processor_type": "DeiTImageProcessorFast"}, {"enlarge": (256 / 224,) * 2, "mean": (0.5,)}),
    (processor, {"image_processor_type": "BitImageProcessor"}, {"enlarge": 1, "interpolation": "bicubic"}),
    (processor, {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"}, {"enlarge": 1}),
    (processor, {"image_processor_type": "TimmWrapperImageProcessor", "data_config": {"crop_pct": 1}}, {"enlarge": 1}),
    (processor, {"image_processor_type": "TimmWrapperImageProcessor", "pretrained_cfg": {"mean": [0]}}, {"mean": (0,)}),
    # timm's config.json
    (timm, {}, {"num_heads": 3, "gelu": "exact", "norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6}),
    (timm, {"architecture": "vit_base_patch16_clip_quickgelu_224"}, {"num_heads": 12, "gelu": "quick"}),
    (timm, {"architecture": "vit_base_patch16_clip_224"}, {"gelu": "exact", "final_norm_epsilon": 1e-5}),
    (timm, {"architecture": "vit_so400m_patch16_siglip_384"}, {"num_heads": 16, "gelu": "tanh"}),
    (timm, {"architecture": "vit_so400m_patch14_siglip_384"}, {"num_heads": 16, "gelu": "exact"}),
    (timm, {"architecture": "vit_large_patch16_siglip_gap_512"}, {"gelu": "tanh"}),
    (timm, {"architecture": "vit_base_patch16_gap_224"}, {"num_heads": 16}),
    (timm, {"architecture": "vit_base_patch16_plus_240"}, {"num_heads": 14}),
    (timm, {"architecture": "vit_giant_patch14_reg4_dinov2"}, {"num_heads": 24, "gelu": "silu"}),
    (timm, {"num_classes": 0, "num_features": 192}, {"num_classes": 0, "width": 192}),
    (timm, {"global_pool": "token"}, {"readout": "class"}),
    (timm, {"global_pool": "avg"}, {"readout": "mean"}),
    (timm, {"global_pool": "map"}, {"readout": "attention"}),
    (timm, {"label_names": ["a", "b"]}, {"class_names": ("a", "b"), "num_classes": 2}),
    (timm, {"labels": ["a", "b"]}, {"class_names": ("a", "b")}),
    (timm, {"label_names": {"2": "c"}, "num_classes": 4}, {"class_names": ("class 0", "class 1", "c", "class 3")}),
    (timm, {"label_names": ["n1"], "label_descriptions": {"n1": "tench"}}, {"class_names": ("tench",)}),
    (timm, {"model_type": "timm_wrapper", "problem_type": "multi_label_classification"}, {"multi_label": True}),
    (timm, {"pretrained_cfg": {}, "model_args": {}}, {"mean": None}),
    (timm, {"crop_pct": 1.0}, {"mean": IMAGENET, "enlarge": 1}),  # the flat form of old files
    (arguments, {"img_size": [16, 64], "patch_size": 8}, {"image_size": (16, 64), "patch_size": (8, 8)}),
    (arguments, {"in_chans": 1, "num_classes": 5}, {"channels": 1, "num_classes": 5}),
    (arguments, {"embed_dim": 32, "depth": 2, "mlp_ratio": 3}, {"width": 32, "depth": 2, "mlp_ratio": 3}),
    (arguments, {"num_heads": 12}, {"num_heads": 12}),
    (arguments, {"global_pool": "avg", "fc_norm": False}, {"readout": "mean", "norm_after_readout": False}),
    (arguments, {"qkv_bias": False, "class_token": False}, {"qkv_bias": False, "class_token": False}),
    (arguments, {"reg_tokens": 4, "pre_norm": True}, {"registers": 4, "pre_norm": True}),
    (arguments, {"pool_include_prefix": True}, {"pool_include_prefix": True}),
    (arguments, {"act_layer": "quick_gelu"}, {"gelu": "quick"}),
    (arguments, {"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
    (arguments, {"act_layer": "swish"}, {"gelu": "silu"}),
    (arguments, {"norm_layer": "layernorm"}, {"norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6}),
    (arguments, {"qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False, "use_naflex": False}, {}),
    (arguments, {"proj_bias": True, "final_norm": True, "pos_embed": "learn", "attn_layer": "attn"}, {}),
    (arguments, {"block_fn": None, "mlp_layer": None, "embed_layer": None, "embed_norm_layer": None}, {}),
    (pretrained, {"tag": "x"}, {"mean": IMAGENET, "enlarge": 1 / 0.875, "interpolation": "bicubic"}),
    (pretrained, {"mean": [0.1], "std": [2]}, {"mean": (0.1,), "std": (2,)}),
    (pretrained, {"interpolation": "nearest"}, {"interpolation": "nearest"}),
    (pretrained, {"input_size": [3, 32, 32], "crop_pct": 0.9}, {"pictures": (32, 32), "enlarge": 1 / 0.9}),
    (pretrained, {"input_size": [3, 16, 64], "crop_pct": 1}, {"pictures": (16, 64), "enlarge": "cover"}),
    (pretrained, {"crop_mode": "squash", "crop_pct": 0.5}, {"enlarge": (2, 2)}),
    (pretrained, {"crop_mode": "squash", "crop_pct": 1}, {"enlarge": None}),
    (pretrained, {"num_classes": 7}, {"num_classes": 7}),
    (pretrained, {"label_names": ["n1"], "label_descriptions": {"n1": "b"}}, {"class_names": ("b",)}),
]


@pytest.mark.parametrize(("form", "fields", "expected"), BECOMES)
def test_fields_become(read, form, fields, expected):
    told = read(form(fields))
    assert {name: told.get(name) for name in expected} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in expected.items()
    }
    assert (told.notes, told.unknown) == ([], [])


NOTES = [
    (config, {"architectures": ["MyNet"]}, r"architectures is \['MyNet'\], not known here"),
    (processor, {"resample": 5}, "resample is 'hamming', which is not done here"),
    (processor, {"do_pad": True}, "do_pad is true, and pictures are not padded"),
    (processor, {"do_resize": False}, "do_resize is false"),
    (processor, {"size": {"shortest_edge": 224}}, "without a crop of one size"),
    (processor, {"size": {"shortest_edge": 224, "longest_edge": 400}, **CROPPED}, "without a crop of one size"),
    (processor, {"size": {"longest_edge": 224}}, "without a crop of one size"),
    (processor, {"size": {"max_height": 9, "max_width": 9}}, "without a crop of one size"),
    (processor, {"size": 200, **CROPPED}, "crop_size exceeds size, which pads"),
    (processor, {"size": {"shortest_edge": 200}, **CROPPED}, "crop_size exceeds size, which pads"),
    (processor, {"image_processor_type": "FlavaImageProcessor"}, "FlavaImageProcessor is not known here"),
    (timm, {"architecture": "vit_dwee_patch16_reg1_gap_256"}, "which is not known here"),
    (pretrained, {"crop_mode": "border"}, "crop_mode is 'border', which pads pictures"),
    (
        pretrained,
        {"crop_mode": "random"},
        "crop_mode is 'random', not known here: pictures are cropped as for 'center'",
    ),
    (pretrained, {"crop_pct": 1.25}, "crop_pct is 1.25, which pads pictures"),
    (pretrained, {"crop_pct": 1.25, "crop_mode": "squash"}, "crop_pct is 1.25, which pads pictures"),
    (pretrained, {"input_size": [3, 16, 64]}, "crop_pct is 0.875, not done here for images that are not square"),
    (pretrained, {"interpolation": "hamming"}, "interpolation is 'hamming', which is not done here"),
    (pretrained, {"interpolation": "random"}, "interpolation is 'random', which is not done here"),
]


@pytest.mark.parametrize(("form", "fields", "message"), NOTES)
def test_what_is_not_done_is_named(read, form, fields, message):
    (note,) = read(form(fields)).notes
    assert note.startswith((CONFIG, PROCESSOR_FILE))
    assert re.search(message, note)


REFUSED = [
    (config, {"model_type": "beit"}, "model_type is 'beit', which is not known here"),
    (config, {"hidden_act": "mish"}, r"hidden_act is 'mish', which is not known here .*; gelu= or --set gelu=VALUE"),
    (config, {"hidden_act": "silu"}, "hidden_act is 'silu', which is not known"),
    (config, {"hidden_act": "gelu_10"}, "hidden_act is 'gelu_10', which is not known"),
    (config, {"pruned_heads": {"1": [2]}}, r"pruned_heads is .*, and only {} is computed here"),
    (config, {"per_layer_config": {"1": {"a": 1}}}, "per_layer_config"),
    (config, {"quantization_config": {"bits": 4}}, "quantization_config"),
    (
        config,
        {"hidden_size": 48, "head_dim": 6, "num_attention_heads": 4},
        "head_dim is 6, expected hidden_size over num_attention_heads",
    ),
    (config, {"id2label": {"0": "a", "2": "c"}}, "id2label names class 2, expected the numbers 0 to 1"),
    (config, {"problem_type": "ranking"}, "problem_type is 'ranking'"),
    (processor, {"resample": 6}, "resample is 6"),
    (processor, {"image_std": [1, 0, 1]}, r"image_std is \[1, 0, 1\], expected a positive number"),
    (processor, {"size": {"edge": 3}}, "size is {'edge': 3}, expected"),
    (processor, {"crop_size": {"shortest_edge": 3}, "do_center_crop": True}, "crop_size is .*, expected"),
    (timm, {"architecture": "vit_base_patch16_rpn_224"}, "layer norms after attention and MLP"),
    (
        timm,
        {"global_pool": "avgmax"},
        "global_pool is 'avgmax', which is not known here .*; readout= or --set readout=",
    ),
    (timm, {"global_pool": "max"}, "global_pool is 'max'"),
    (timm, {"global_pool": ""}, "global_pool is ''"),
    (timm, {"label_names": ["a"] * 3, "num_classes": 2}, "label_names names class 2, expected the numbers 0 to 1"),
    (arguments, {"act_layer": "relu"}, "model_args.act_layer is 'relu', which is not known"),
    (arguments, {"norm_layer": "rmsnorm"}, "norm_layer is 'rmsnorm'"),
    *((arguments, {name: True}, f"{name} is True, and only") for name in ("qk_norm", "scale_attn_norm", "use_naflex")),
    *((arguments, {name: False}, f"{name} is False, and only") for name in ("proj_bias", "final_norm")),
    *((arguments, {name: "x"}, f"{name} is 'x', and only") for name in ("pos_embed", "attn_layer", "block_fn")),
    *(
        (arguments, {name: "x"}, f"{name} is 'x', and only")
        for name in ("mlp_layer", "embed_layer", "embed_norm_layer")
    ),
    (pretrained, {"crop_pct": 0}, "pretrained_cfg.crop_pct is 0, expected a number from 1e-06"),
]


@pytest.mark.parametrize(("form", "fields", "message"), REFUSED)
def test_what_nothing_here_computes_is_refused(read, form, fields, message):
    with pytest.raises(ValueError, match=message):
        read(form(fields))


def test_every_field_with_an_effect_is_tested():
    tested = {(form, name) for form, fields, _ in BECOMES + REFUSED for name in fields}
    for form, table in FORMS.items():
        effective = {name for name, row in table.items() if row is not NO_EFFECT}
        shared = TRANSFORMERS.keys() & TIMM.keys() if form is timm else set()
        assert effective - {name for f, name in tested if f is form} - shared == set()


@pytest.mark.parametrize("form", FORMS)
def test_fields_without_effect_have_none(read, form):
    without = read(form({"tag": "x"} if form is pretrained else {}))
    idle = {name: {"strange": 1} for name, row in FORMS[form].items() if row is NO_EFFECT}
    assert len(idle) > 4
    told = read(form({"tag": "x"} | idle if form is pretrained else idle))
    assert told == without


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form, table in FORMS.items() for name, row in table.items() if row is not NO_EFFECT],
)
@pytest.mark.parametrize(
    "value", [{"strange": [None]}, [[]], "\u2603", -1, True, float("nan"), [1, "a"], 10**400, 1e308, 5e-324]
)
def test_values_of_any_type_are_read_or_refused_by_name(read, form, name, value):
    message = None
    try:
        read(form({name: value}))
    except ValueError as error:
        message = str(error)
    if message is None:
        assert value != {"strange": [None]} or name in ("pretrained_cfg", "model_args", "data_config")
    else:
        assert message.startswith((CONFIG, PROCESSOR_FILE))
        assert f"{name} " in message


def test_unknown_fields_are_named(read):
    told = read({**arguments({"b": 1}), PROCESSOR_FILE: {"d": 1, "crop_pct": 0.9}})
    assert told.unknown == [
        "config.json: not known here, and not used: model_args.b",
        "preprocessor_config.json: not known here, and not used: d, crop_pct",
    ]
    told = read(config({"model_cfg": {}, "c": None}))  # a file of yet another library
    assert told.unknown[0] == "config.json: not known here, and not used: model_cfg, c"


def test_an_old_file_of_a_processor_has_the_defaults_of_its_model(read):
    """As google/vit-base-patch16-224 once had it."""
    files = config({"model_type": "vit"}) | {PROCESSOR_FILE: {"do_resize": True, "size": 224, "image_mean": [0.5]}}
    told = read(files)
    assert (told.get("interpolation"), told.get("enlarge", 0), told.get("std")) == ("bilinear", None, (0.5,))
    told = read(files | config({"model_type": "dinov2"}))
    assert (told.get("interpolation"), told.get("enlarge", 0)) == ("bicubic", 1)


def test_what_the_caller_gives_is_not_read(read):
    told = read(config({"hidden_act": "mish", "num_attention_heads": "x"}), given={"gelu", "num_heads"})
    assert told.facts == []
    told = read({CONFIG: {}} | processor({"size": "x", "resample": 5, "image_mean": "x"}), given=PICTURES)
    assert (told.facts, told.notes) == ([], [])
    files = timm({"global_pool": "avgmax", "pretrained_cfg": {"crop_mode": "border"}}) | {PROCESSOR_FILE: {}}
    told = read(files, {"readout", "resize"})
    assert (told.get("readout"), told.notes) == (None, [])


@pytest.mark.parametrize("text", ["[1]", "3", "{", "\x00", '{"a": ' * 10_000])
@pytest.mark.parametrize("name", [CONFIG, PROCESSOR_FILE])
def test_no_json_object(read, name, text):
    with pytest.raises(ValueError, match=rf"{name} is not a JSON object"):
        read({name: text})
