"""The JSON files beside other people's weights: what becomes of every field.

``config.json`` of transformers or of timm, and ``preprocessor_config.json`` of transformers. A table a format says what
each field becomes: a field of :class:`lrp_jax.ViTConfig`, a fact that must agree with the weights, or nothing, as it
changes neither the logits nor the pictures. Fields in no table are named in a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lrp_jax.weights.families import CLIP

# Readers: of a JSON value of any type, what it means; the ValueError ends the sentence "field is value, ...".

Reader = Callable[[Any], Any]
_MOST = 1_000_000


def _is_number(value: Any) -> bool:
    # Numbers beyond are no sizes, factors or pixels, and overflow further on.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _reader(expected: str, test: Callable[[Any], bool], read: Reader = lambda value: value) -> Reader:
    """Of values that pass the test."""

    def reader(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"expected {expected}")
        return read(value)

    return reader


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_number, value))


def _of(known: Mapping[Any, Any]) -> Reader:
    """One of the known values, and what it means."""
    names = ", ".join(map(str, known))
    hashable = str | int

    def reader(value: Any) -> Any:
        if not isinstance(value, hashable) or isinstance(value, bool) or value not in known:
            raise ValueError(f"which is not known here (known: {names})")
        return known[value]

    return reader


def _only(*allowed: Any) -> Reader:
    """What no other value of is computed here."""
    names = " or ".join(map(repr, allowed)) or "null"

    def reader(value: Any) -> Any:
        if not any(type(value) is type(other) and value == other for other in allowed):
            raise ValueError(f"and only {names} is computed here")
        return value

    return reader


_flag = _reader("true or false", lambda value: isinstance(value, bool))
_text = _reader("text", lambda value: isinstance(value, str))
_object = _reader("an object", lambda value: isinstance(value, dict))
_count = _reader(f"a whole number from 1 to {_MOST}", _is_count)
_count_or_0 = _reader(f"a whole number from 0 to {_MOST}", lambda value: _is_count(value, 0))
_positive = _reader(f"a number from {1 / _MOST:g} to {_MOST}", lambda value: _is_number(value) and value >= 1 / _MOST)
_epsilon = _reader("a number of at least 0", lambda value: _is_number(value) and value >= 0, float)
_edges = _reader(
    "a whole number or a list of two",
    lambda value: _is_count(value) or _is_pair(value),
    lambda value: tuple(value) if isinstance(value, list) else (value, value),
)
_mean = _reader(
    "a number or a list of numbers",
    lambda value: _is_number(value) or _is_numbers(value),
    lambda value: tuple(map(float, value)) if isinstance(value, list) else (float(value),),
)
_std = _reader(
    "a positive number or a list of them",
    lambda value: (_is_number(value) or _is_numbers(value)) and min(value if isinstance(value, list) else [value]) > 0,
    _mean,
)
_input_size = _reader(
    "a list of channels, rows and columns",
    lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_count, value)),
    tuple,
)
_names = _reader(
    "a list of names, or an object of their numbers and names",
    lambda value: (
        isinstance(value, list | dict)
        and all(isinstance(name, str | int) for name in (value.values() if isinstance(value, dict) else value))
        and (isinstance(value, list) or all(number.isdecimal() and len(number) <= 6 for number in value))
    ),
    lambda value: (
        {int(number): str(name) for number, name in value.items()}
        if isinstance(value, dict)
        else dict(enumerate(map(str, value)))
    ),
)
_descriptions = _reader(
    "an object of names and texts",
    lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
)


def _size(*forms: set[str]) -> Reader:
    """A size of pictures, as a number, a pair or an object whose keys are one of the forms."""
    objects = " or of ".join(" and ".join(sorted(form)) for form in forms)
    return _reader(
        f"a whole number, a list of rows and columns, or an object of {objects}",
        lambda value: (
            _is_count(value)
            or _is_pair(value)
            or (
                isinstance(value, dict)
                and {edge for edge in value if value[edge] is not None} in forms
                and all(_is_count(edge) for edge in value.values() if edge is not None)
            )
        ),
    )


class Field(NamedTuple):
    """A row of a table.

    Attributes:
        becomes: names of facts, with spaces between; none: the field has no effect, or only one value is allowed.
        read: its value; ValueError: it is of the wrong type, not known, or nothing here computes it.
        direct: whether the value is that of the facts; else a function below makes them of several fields.
    """

    becomes: str
    read: Reader
    direct: bool = True


Table = Mapping[str, Field]


def _partly(becomes: str, read: Reader) -> Field:
    return Field(becomes, read, direct=False)


#: The row of a field that changes neither logits nor pictures.
NO_EFFECT = Field("", lambda value: value)


def _no_effect(*names: str) -> dict[str, Field]:
    return dict.fromkeys(names, NO_EFFECT)


_GELUS = {
    # transformers' ACT2FN. All but the quick and the exact ones are written with tanh.
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "quick_gelu": "quick",
    # timm's layers by name, with those above.
    "gelu_tanh": "tanh",
}
_EPSILONS = "norm_epsilon final_norm_epsilon"

# Of transformers' PretrainedConfig, of any model.
_ANY_TRANSFORMERS: Table = {
    "problem_type": _partly(
        "multi_label regression",
        _of(
            {"multi_label_classification": "multi_label", "single_label_classification": "", "regression": "regression"}
        ),
    ),
    "num_labels": Field("num_classes", _count_or_0),
    "id2label": _partly("class_names", _names),
    "pruned_heads": Field("", _only({})),
    "per_layer_config": Field("", _only({})),
    "quantization_config": Field("", _only({})),
    "architectures": Field(
        "",
        _reader("a list of names", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v)),
    ),
    **_no_effect("label2id", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "name_or_path"),
    **_no_effect("initializer_range", "finetuning_task", "task_specific_params", "tokenizer_class", "use_cache"),
    **_no_effect("return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16"),
    **_no_effect("chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "add_cross_attention"),
    **_no_effect("cross_attention_hidden_size", "tie_word_embeddings", "tie_encoder_decoder", "tf_legacy_loss"),
    **_no_effect("tie_last_hidden_states", "gradient_checkpointing", "keys_to_ignore_at_inference", "_commit_hash"),
    **_no_effect("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    **_no_effect("experts_implementation", "_experts_implementation"),
}

# Type of model: its family of weights, its epsilon and its image processor, which hold where a file has none.
MODELS = {
    "vit": ("hf", 1e-12, "ViT"),
    "deit": ("hf", 1e-12, "DeiT"),
    "vit_msn": ("hf", 1e-6, "ViT"),
    "dinov2": ("dinov2", 1e-6, "Bit"),
    "dinov2_with_registers": ("dinov2", 1e-6, "Bit"),
}
CLASSES = r"(ViT|DeiT|ViTMSN|Dinov2|Dinov2WithRegisters|TimmWrapper)(Model|Backbone|For(Masked)?Image\w+)"

#: config.json of transformers: ViT, DeiT, ViTMSN, Dinov2 and Dinov2WithRegisters.
TRANSFORMERS: Table = {
    **_ANY_TRANSFORMERS,
    "model_type": Field("family", _of({name: family for name, (family, *_) in MODELS.items()})),
    "hidden_size": Field("width", _count),
    "num_hidden_layers": Field("depth", _count),
    "num_attention_heads": Field("num_heads", _count),
    "head_dim": _partly("num_heads", _count),
    "intermediate_size": Field("mlp_dim", _count),
    "mlp_ratio": Field("mlp_ratio", _positive),
    "hidden_act": Field("gelu", _of(_GELUS)),
    "use_swiglu_ffn": Field("swiglu", _flag),
    "layer_norm_eps": Field(_EPSILONS, _epsilon),
    "image_size": Field("image_size", _edges),
    "patch_size": Field("patch_size", _edges),
    "num_channels": Field("channels", _count),
    "qkv_bias": Field("qkv_bias", _flag),
    "num_register_tokens": Field("registers", _count_or_0),
    # Of training, of the masked-image decoder, of the pooler, or of the backbone without a head.
    **_no_effect("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "layerscale_value"),
    **_no_effect("encoder_stride", "use_mask_token", "pooler_output_size", "pooler_act", "apply_layernorm"),
    **_no_effect("reshape_hidden_states", "out_features", "out_indices", "_out_features", "_out_indices"),
    **_no_effect("stage_names"),
}

_EDGES = {"height", "width"}
_OTHER_SIZES = ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"longest_edge"}, {"max_height", "max_width"})
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers

#: preprocessor_config.json of transformers: the fields of :data:`PROCESSORS`.
PROCESSOR: Table = {
    "do_resize": _partly("resize", _flag),
    "size": _partly("resize", _size(_EDGES, *_OTHER_SIZES)),
    "default_to_square": _partly("resize", _flag),
    "resample": _partly("interpolation", _of(dict(enumerate(_RESAMPLING)) | {name: name for name in _RESAMPLING})),
    "do_center_crop": _partly("resize", _flag),
    "crop_size": _partly("resize", _size(_EDGES)),
    "do_rescale": _partly("mean std", _flag),
    "rescale_factor": _partly("mean std", _positive),
    "do_normalize": _partly("mean std", _flag),
    "image_mean": _partly("mean", _mean),
    "image_std": _partly("std", _std),
    "do_pad": Field("", _flag),
    "data_config": Field("", _object),
    "pretrained_cfg": Field("", _object),
    "image_processor_type": Field("", _text),
    "feature_extractor_type": Field("", _text),
    # Pictures are RGB here in any case; the rest is about arrays and devices.
    **_no_effect("do_convert_rgb", "pad_size", "data_format", "input_data_format", "device", "return_tensors"),
    **_no_effect("disable_grouping", "processor_class", "image_seq_length", "_valid_processor_keys", "architecture"),
}

_AS_CLIP: dict[str, Any] = {
    "default_to_square": False,
    "size": 224,
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
}
_AS_CLIP |= {f"image_{name}": list(values) for name, values in CLIP.items()}
_HALF = {"image_mean": 0.5, "image_std": 0.5}
#: Image processors of transformers, and their defaults: files of old releases lack some fields.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, **_HALF},
    "DeiT": {"size": 256, "do_center_crop": True, "crop_size": 224, "resample": 3, **_HALF},
    "Bit": _AS_CLIP,
    "CLIP": _AS_CLIP,
}

_POOLS = {"token": "class", "avg": "mean", "map": "attention"}

#: config.json of timm, also as transformers' TimmWrapper writes it.
TIMM: Table = {
    **_ANY_TRANSFORMERS,
    "model_type": Field("family", _of({"timm_wrapper": "timm"})),
    "architecture": _partly("num_heads gelu norm_epsilon final_norm_epsilon", _text),
    "num_classes": Field("num_classes", _count_or_0),
    "num_features": Field("width", _count),
    "global_pool": Field("readout", _of(_POOLS)),
    "label_names": _partly("class_names", _names),
    "labels": _partly("class_names", _names),
    "label_descriptions": _partly("class_names", _descriptions),
    "pretrained_cfg": Field("", _object),
    "model_args": Field("", _object),
    **_no_effect("do_pooling"),
}

#: ``pretrained_cfg`` of timm's config.json, and ``data_config`` of transformers' TimmWrapperImageProcessor.
TIMM_PICTURES: Table = {
    "input_size": _partly("resize", _input_size),
    "interpolation": _partly("interpolation", _of({name: name for name in (*_RESAMPLING, "random")})),
    "mean": _partly("mean", _mean),
    "std": _partly("std", _std),
    "crop_pct": _partly("resize", _positive),
    "crop_mode": _partly("resize", _text),
    "num_classes": _partly("num_classes", _count_or_0),
    "label_names": _partly("class_names", _names),
    "label_descriptions": _partly("class_names", _descriptions),
    # Where weights come from and how timm adapts them; sizes that timm's own evaluation may take instead.
    **_no_effect("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag"),
    **_no_effect("custom_load", "test_input_size", "min_input_size", "fixed_input_size", "test_crop_pct"),
    **_no_effect("label_offset", "pool_size", "test_pool_size", "first_conv", "classifier", "license", "description"),
    **_no_effect("origin_url", "paper_name", "paper_ids", "notes"),
}

#: ``model_args`` of timm's config.json: what VisionTransformer is built with beside its architecture's own arguments.
TIMM_ARGUMENTS: Table = {
    "img_size": Field("image_size", _edges),
    "patch_size": Field("patch_size", _edges),
    "in_chans": Field("channels", _count),
    "num_classes": Field("num_classes", _count_or_0),
    "global_pool": Field("readout", _of(_POOLS)),
    "embed_dim": Field("width", _count),
    "depth": Field("depth", _count),
    "num_heads": Field("num_heads", _count),
    "mlp_ratio": Field("mlp_ratio", _positive),
    "qkv_bias": Field("qkv_bias", _flag),
    "class_token": Field("class_token", _flag),
    "reg_tokens": Field("registers", _count_or_0),
    "pre_norm": Field("pre_norm", _flag),
    "fc_norm": Field("norm_after_readout", _flag),
    "pool_include_prefix": Field("pool_include_prefix", _flag),
    "act_layer": Field("gelu", _of(_GELUS | {"silu": "silu", "swish": "silu"})),
    "norm_layer": Field(_EPSILONS, _of({"layernorm": 1e-6, "layernormfp32": 1e-6})),
    "qk_norm": Field("", _only(False)),
    "scale_attn_norm": Field("", _only(False)),
    "scale_mlp_norm": Field("", _only(False)),
    "proj_bias": Field("", _only(True)),
    "final_norm": Field("", _only(True)),
    "pos_embed": Field("", _only("learn")),
    "attn_layer": Field("", _only("attn", "")),
    "block_fn": Field("", _only()),
    "mlp_layer": Field("", _only()),
    "embed_layer": Field("", _only()),
    "embed_norm_layer": Field("", _only()),
    "use_naflex": Field("", _only(False)),
    # Of training, or seen in the names and shapes of the weights; sizes other than the trained one do not arise.
    **_no_effect("init_values", "no_embed_class", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"),
    **_no_effect("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    **_no_effect("drop_path_rate", "weight_init", "fix_init", "device", "dtype", "pretrained_strict"),
}

HEADS_OF_SIZE = {
    **{"tiny": 3, "xsmall": 4, "wee": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12},
    **{"so150m2": 13, "so150m": 14, "large": 16, "huge": 16, "giant": 16, "giantopt": 16, "gigantic": 16, "so400m": 16},
}
_TANH_SIGLIP = r"(base_patch32|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt)"
#: What the names of timm's architectures say beyond heads by size, exact GELU and epsilon 1e-6: all that match hold.
TIMM_ARCHITECTURES: dict[str, dict[str, Any]] = {
    r"vit_base_patch\d+_gap_\d+": {"num_heads": 16},
    r"vit_base_patch\d+_plus_.*": {"num_heads": 14},
    r"vit_giant_patch\d+_(reg\d_)?(dinov2|tipsv2)": {"num_heads": 24, "gelu": "silu"},
    r"vit_\w+_clip_\w+": {"norm_epsilon": 1e-5},
    r"vit_\w+_clip_quickgelu_\d+": {"gelu": "quick"},
    rf"vit_(?=\w*siglip){_TANH_SIGLIP}\w*": {"gelu": "tanh"},
}
TIMM_KNOWN = rf"(vit|deit3?|flexivit|eva)_(?P<size>{'|'.join(HEADS_OF_SIZE)})(_\w+)?"
TIMM_POST_NORM = r"vit_\w+_rpn_\w+"  # under the names of the usual blocks
