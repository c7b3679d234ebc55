"""Families of weights: the tables of their names, and what the weights of each do not tell.

Every family's table translates its names into timm's; :mod:`lrp_jax.weights.parameters` translates timm's into ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lrp_jax.weights.told import Enlarge

#: Of the published means and deviations, those that several libraries share.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@dataclasses.dataclass(frozen=True)
class Family:
    """Weights that one library writes.

    Attributes:
        title: what they are, for messages.
        sign: a pattern for one name that only this family has.
        names: patterns of its names, and the name in timm.
        ignored: patterns of names that the classifier does not need.
        layout: ``(timm's name, array) -> array`` in torch's layout.
        fields: of the configuration, where the weights do not tell.
        varying: which of the configuration's fields vary within the family although neither names nor shapes tell.
        preprocessing: the first name in :data:`PREPROCESSING` whose names of timm are all there.
    """

    title: str
    sign: str
    names: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    layout: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    varying: tuple[str, ...] = ("num_heads",)
    preprocessing: tuple[tuple[frozenset[str], str], ...] = ((frozenset(), "hf"),)


def _preset(name: str) -> tuple[tuple[frozenset[str], str], ...]:
    return ((frozenset(), name),)


# {} is the number of a block, {p} weight or bias.
_TIMM_NAMES = (
    *("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.{p}", "norm_pre.{p}", "norm.{p}"),
    *("blocks.{}.norm1.{p}", "blocks.{}.attn.qkv.{p}", "blocks.{}.attn.proj.{p}", "blocks.{}.ls1.gamma"),
    *("blocks.{}.norm2.{p}", "blocks.{}.mlp.fc1.{p}", "blocks.{}.mlp.fc2.{p}", "blocks.{}.ls2.gamma"),
    *("attn_pool.latent", "attn_pool.q.{p}", "attn_pool.kv.{p}", "attn_pool.proj.{p}", "attn_pool.norm.{p}"),
    *("attn_pool.mlp.fc1.{p}", "attn_pool.mlp.fc2.{p}", "fc_norm.{p}", "head.{p}", "head_dist.{p}"),
)


def _pattern(name: str) -> str:
    """A pattern of a name with ``{}`` for a number and ``{p}`` for weight or bias, both of them groups."""
    escaped = re.escape(name).replace(re.escape("{}"), r"(?P<block>\d+)")
    return escaped.replace(re.escape("{p}"), "(?P<p>weight|bias)")


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((_pattern(name), name) for name in names)


def _renamed(prefix: str, *pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((prefix + theirs, timm) for theirs, timm in pairs)


_P, _WEIGHT, _BLOCK = r"\.(?P<p>weight|bias|kernel|scale)", r"/(?P<p>kernel|scale|bias)", r"(?P<block>\d+)"

_HF_MODEL = r"(?:(?:vit|deit|dinov2|dinov2_with_registers)\.)?"
_HUGGING_FACE = (
    *_renamed(
        _HF_MODEL,
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.distillation_token", "dist_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (rf"embeddings\.patch_embeddings\.projection{_P}", "patch_embed.proj.{p}"),
        (rf"layernorm{_P}", "norm.{p}"),
    ),
    *_renamed(
        rf"{_HF_MODEL}(?:encoder\.layer|layers)\.{_BLOCK}\.",
        (rf"(?:layernorm_before|norm1){_P}", "blocks.{}.norm1.{p}"),
        (rf"attention\.(?:q_proj|attention\.query){_P}", "blocks.{}.attn.q.{p}"),
        (rf"attention\.(?:k_proj|attention\.key){_P}", "blocks.{}.attn.k.{p}"),
        (rf"attention\.(?:v_proj|attention\.value){_P}", "blocks.{}.attn.v.{p}"),
        (rf"attention\.(?:o_proj|output\.dense){_P}", "blocks.{}.attn.proj.{p}"),
        (r"layer_scale1\.lambda1", "blocks.{}.ls1.gamma"),
        (rf"(?:layernorm_after|norm2){_P}", "blocks.{}.norm2.{p}"),
        (rf"(?:mlp\.fc1|mlp\.weights_in|intermediate\.dense){_P}", "blocks.{}.mlp.fc1.{p}"),
        (rf"mlp\.gate_proj{_P}", "blocks.{}.mlp.gate.{p}"),
        (rf"mlp\.up_proj{_P}", "blocks.{}.mlp.up.{p}"),
        (rf"(?:mlp\.fc2|mlp\.weights_out|mlp\.down_proj|output\.dense){_P}", "blocks.{}.mlp.fc2.{p}"),
        (r"layer_scale2\.lambda1", "blocks.{}.ls2.gamma"),
    ),
    (rf"(?:cls_)?classifier{_P}", "head.{p}"),
    (rf"distillation_classifier{_P}", "head_dist.{p}"),
)

_TORCHVISION = (
    ("class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (rf"conv_proj{_P}", "patch_embed.proj.{p}"),
    *_renamed(
        rf"encoder\.layers\.encoder_layer_{_BLOCK}\.",
        (rf"ln_1{_P}", "blocks.{}.norm1.{p}"),
        (r"self_attention\.in_proj_(?P<p>weight|bias)", "blocks.{}.attn.qkv.{p}"),
        (rf"self_attention\.out_proj{_P}", "blocks.{}.attn.proj.{p}"),
        (rf"ln_2{_P}", "blocks.{}.norm2.{p}"),
        (rf"mlp\.(?:linear_1|0){_P}", "blocks.{}.mlp.fc1.{p}"),
        (rf"mlp\.(?:linear_2|3){_P}", "blocks.{}.mlp.fc2.{p}"),
    ),
    (rf"encoder\.ln{_P}", "norm.{p}"),
    (rf"heads\.head{_P}", "head.{p}"),
)

# Linen counts the modules of a class (MlpBlock_0), what came before it all modules of a block (MlpBlock_3).
_GOOGLE = (
    ("cls", "cls_token"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
    (rf"embedding{_WEIGHT}", "patch_embed.proj.{p}"),
    *_renamed(
        rf"Transformer/encoderblock_{_BLOCK}/",
        (rf"LayerNorm_0{_WEIGHT}", "blocks.{}.norm1.{p}"),
        (rf"MultiHeadDotProductAttention_[01]/query{_WEIGHT}", "blocks.{}.attn.q.{p}"),
        (rf"MultiHeadDotProductAttention_[01]/key{_WEIGHT}", "blocks.{}.attn.k.{p}"),
        (rf"MultiHeadDotProductAttention_[01]/value{_WEIGHT}", "blocks.{}.attn.v.{p}"),
        (rf"MultiHeadDotProductAttention_[01]/out{_WEIGHT}", "blocks.{}.attn.proj.{p}"),
        (rf"LayerNorm_[12]{_WEIGHT}", "blocks.{}.norm2.{p}"),
        (rf"MlpBlock_[03]/Dense_0{_WEIGHT}", "blocks.{}.mlp.fc1.{p}"),
        (rf"MlpBlock_[03]/Dense_1{_WEIGHT}", "blocks.{}.mlp.fc2.{p}"),
    ),
    (rf"Transformer/encoder_norm{_WEIGHT}", "norm.{p}"),
    *_renamed(
        "MAPHead_0/",
        ("probe", "attn_pool.latent"),
        (rf"MultiHeadDotProductAttention_0/query{_WEIGHT}", "attn_pool.q.{p}"),
        (rf"MultiHeadDotProductAttention_0/key{_WEIGHT}", "attn_pool.k.{p}"),
        (rf"MultiHeadDotProductAttention_0/value{_WEIGHT}", "attn_pool.v.{p}"),
        (rf"MultiHeadDotProductAttention_0/out{_WEIGHT}", "attn_pool.proj.{p}"),
        (rf"LayerNorm_0{_WEIGHT}", "attn_pool.norm.{p}"),
        (rf"MlpBlock_0/Dense_0{_WEIGHT}", "attn_pool.mlp.fc1.{p}"),
        (rf"MlpBlock_0/Dense_1{_WEIGHT}", "attn_pool.mlp.fc2.{p}"),
    ),
    (rf"head{_WEIGHT}", "head.{p}"),
)


def from_flax(name: str, x: np.ndarray) -> np.ndarray:
    """Flax's layout to torch's: dense ``[in, out]``, with an axis of heads in attention; convolutions channels last."""
    if name == "patch_embed.proj.weight":
        return x.transpose(3, 2, 0, 1)
    if re.search(r"(attn|attn_pool)\.[qkv]\.", name):
        return x.reshape(x.shape[0], -1).T if name.endswith("weight") else x.reshape(-1)
    if re.search(r"(attn|attn_pool)\.proj\.weight", name):
        return x.reshape(-1, x.shape[-1]).T
    return x.T if x.ndim == 2 and name.endswith("weight") else x


_NO_CLASSIFIER = (r"(?:.*\.)?mask_token", rf"(?:.*\.)?pooler\.dense{_P}")

#: Families of weights by name.
FAMILIES: dict[str, Family] = {
    "timm": Family(
        "timm",
        r"patch_embed\.proj\.weight",
        _same(*_TIMM_NAMES),
        _NO_CLASSIFIER,
        fields={"norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6},
        varying=("num_heads", "readout", "gelu", "norm_epsilon"),
        preprocessing=(
            (frozenset({"norm_pre.weight"}), "clip"),
            (frozenset({"dist_token"}), "deit"),
            (frozenset({"cls_token", "blocks.0.ls1.gamma"}), "deit"),  # DeiT III and DINOv2
            (frozenset(), "timm"),
        ),
    ),
    "authors": Family(
        "the paper's authors",
        "(?!)",
        _same(*_TIMM_NAMES),
        fields={"final_norm_epsilon": 1e-5},
        preprocessing=_preset("timm"),
    ),
    "dinov2": Family(
        "Hugging Face's DINOv2",
        rf"{_HF_MODEL}encoder\.layer\.0\.layer_scale1\.lambda1",
        _HUGGING_FACE,
        _NO_CLASSIFIER,
        fields={"norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6},
        varying=("num_heads", "gelu", "norm_epsilon"),
        preprocessing=_preset("dinov2"),
    ),
    "hf": Family(
        "Hugging Face's ViT or DeiT",
        rf"{_HF_MODEL}embeddings\.patch_embeddings\.projection\.(?:weight|kernel)",
        _HUGGING_FACE,
        _NO_CLASSIFIER,
        fields={"norm_epsilon": 1e-12, "final_norm_epsilon": 1e-12},
        varying=("num_heads", "gelu", "norm_epsilon"),
        preprocessing=_preset("hf"),
    ),
    "torchvision": Family("torchvision", r"conv_proj\.weight", _TORCHVISION, preprocessing=_preset("torchvision")),
    "google": Family(
        "Google's vision_transformer or big_vision",
        "embedding/kernel",
        _GOOGLE,
        layout=from_flax,
        fields={"gelu": "tanh"},
    ),
}

#: Published preprocessing by name: the enlargement before the crop, and fields.
PREPROCESSING: dict[str, tuple[Enlarge, dict[str, Any]]] = {
    "timm": (1 / 0.9, {"mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}),
    "deit": (1 / 0.9, {**IMAGENET, "interpolation": "bicubic"}),
    "clip": (1.0, {**CLIP, "interpolation": "bicubic"}),
    "hf": (None, {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear"}),
    "torchvision": (256 / 224, {**IMAGENET, "interpolation": "bilinear"}),
    "dinov2": (256 / 224, {**IMAGENET, "interpolation": "bicubic"}),
}
