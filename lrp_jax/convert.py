"""Other people's weights, from explicit tables of names.

Every family's table translates its names into timm's, and one table translates timm's into ours. What differs in more
than the name is brought into timm's form in between: separate queries, keys and values are packed, layer scale is
multiplied into the product before it. Every name of the source and of the model is accounted for.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrp_jax.checkpoint import listed, unflatten_params
from lrp_jax.config_files import CLIP, IMAGENET, OPEN, PICTURES, Enlarge, Told, read_config_files
from lrp_jax.labels import imagenet_classes
from lrp_jax.vit import Params, ViT, ViTConfig, pair
from lrp_jax.weights import read_weights
from lrp_jax.wrappings import contents, find

Weights = dict[str, np.ndarray]
Grid = tuple[int, int]


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


def _from_flax(name: str, x: np.ndarray) -> np.ndarray:
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
        layout=_from_flax,
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

# Heads by width, or by width and MLP width, as published. DeiT (arXiv 2012.12877, table 1): 192 to 768. ViT
# (2010.11929, table 1): 768 to 1280. g/14 and G/14 (2106.04560, table 2): 1408 and 1664. SoViT-400m (2305.13035): 1152.
# DINOv2's giant (2304.07193): 1536, but SigLIP 2's (2502.14786). The rest are sizes of timm, of 64 channels a head.
_HEADS: dict[int | tuple[int, int], int] = {
    **{192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14},
    **{1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, (1536, 6144): 16, 1664: 16},
}
_OTHER_HEADS = {384: " (a ViT-S of MoCo v3 has 12)", 768: " (timm's vit_base_patch16_gap has 16)"}
_READOUTS = {"class": "the class token", "mean": "the mean of the patches"}
# Of timm's models, by what the weights show.
_GELU_NOTES = {
    "pre_norm": "as CLIP of LAION has it (CLIP of OpenAI, MetaCLIP and DFN have gelu=quick)",
    "attention": "as SigLIP has it in timm (most of SigLIP 2 have gelu=tanh)",
}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert_with_summary` found.

    Attributes:
        model: the model.
        params: its parameters.
        family: a name in :data:`FAMILIES`.
        ignored: the source's names that were not needed.
        notes: what was assumed or changed, a sentence each.
    """

    model: ViT
    params: Params
    family: str
    ignored: list[str]
    notes: list[str]


def convert(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    family: str | None = None,
    preprocessing: str | None = None,
    key: str | None = None,
    **fields: Any,
) -> tuple[ViT, Params]:
    """Turn weights of timm, Hugging Face, torchvision, Google or the paper's authors into a model and its parameters.

    Args:
        source: a file that :func:`lrp_jax.weights.read_weights` reads, or a mapping of names to arrays, nested or not.
            The JSON files beside a file are read as well, see :mod:`lrp_jax.config_files`.
        family: a name in :data:`FAMILIES`; None: recognised from the names. ``"authors"`` is never recognised: its
            names are timm's, its final layer norm is not.
        preprocessing: a name in :data:`PREPROCESSING`; None: what the source says, or else its family's.
        key: of several models in one file, which: its path, or any part of it, as ``"teacher"`` or
            ``"checkpoint.model"``.
        **fields: fields of :class:`lrp_jax.ViTConfig`: what the weights cannot tell (``num_heads`` where the width is
            not a published one, epsilons, GELU, class names); they override what was read. ``image_size`` other than
            the trained one resamples the position embeddings, unless it has as many patches.

    Returns:
        The model and its parameters, in the dtype of the source.

    Raises:
        OSError: the file cannot be read.
        ValueError: the family is unknown; names are missing, unexpected or of the wrong shape; weights are not finite;
            or a field is unknown or wrong.
    """
    conversion = convert_with_summary(source, family=family, preprocessing=preprocessing, key=key, **fields)
    return conversion.model, conversion.params


def convert_with_summary(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    family: str | None = None,
    preprocessing: str | None = None,
    key: str | None = None,
    **fields: Any,
) -> Conversion:
    """As :func:`convert`, and what it found and assumed."""
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    for name in fields:
        if name not in known:
            raise ValueError(f"fields must be among {', '.join(sorted(known))}; got {name!r}.")
    for name, value, choices in (("family", family, FAMILIES), ("preprocessing", preprocessing, PREPROCESSING)):
        if value is not None and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
    if "image_size" in fields:
        fields["image_size"] = pair("image_size", fields["image_size"])
    given = frozenset(fields) | (PICTURES if preprocessing else frozenset())
    told = Told()
    if isinstance(source, Mapping):
        strange = [name for name in source if not isinstance(name, str)]
        if strange:
            raise ValueError(f"source must map names to arrays, got the name {strange[0]!r}.")
        tree = dict(source)
    elif not isinstance(source, str | os.PathLike):
        raise ValueError(f"source must be a path or map names to arrays, got {type(source).__name__}.")
    else:
        tree = read_weights(source)
        told = read_config_files(Path(source).parent, given)
    found = find(tree, [it.sign for it in FAMILIES.values()], key)
    if found is None:
        raise ValueError(
            "source does not hold a Vision Transformer that is known here, of "
            f"{', '.join(it.title for it in FAMILIES.values())}; it holds {listed(contents(tree), 5) or 'nothing'}."
        )
    if family is None:
        family = next(f for f, it in FAMILIES.items() if any(re.fullmatch(it.sign, name) for name in found.arrays))
    arrays = _unscanned(found.arrays)
    weights, ignored = _translate(FAMILIES[family], arrays)
    preset = preprocessing or next(name for names, name in FAMILIES[family].preprocessing if names <= weights.keys())
    _bring_into_form(weights)
    notes = found.notes
    shown = _shown(family, weights, _heads(arrays), notes)
    _agree(told, shown, given)
    grid = _told_grid(told, shown)
    config = _configure(FAMILIES[family], shown, grid, told, preset, fields)
    settled = given | frozenset(fact.name for fact in told.facts if fact.name != "image_size")
    notes += [*_assumed_of_model(FAMILIES[family], shown, settled, config), *told.notes]
    notes += [*_assumed_of_pictures(told, settled, preset, config), *told.unknown]
    parameters = _parameters(config, grid, weights, notes)
    model = ViT(config)
    return Conversion(model, unflatten_params(model, parameters), family, ignored, notes)


def _unscanned(arrays: Weights) -> Weights:
    """With the blocks of a scan one by one."""
    scanned = "Transformer/encoderblock/"
    single = {name: array for name, array in arrays.items() if not name.startswith(scanned)}
    for name in arrays.keys() - single.keys():
        rest = name.removeprefix(scanned)
        single |= {f"Transformer/encoderblock_{i}/{rest}": layer for i, layer in enumerate(arrays[name])}
    return single


def _heads(arrays: Weights) -> int | None:
    """The number of heads, where attention has an axis of them."""
    return next((a.shape[1] for name, a in arrays.items() if name.endswith("/query/kernel") and a.ndim == 3), None)


def _translate(family: Family, arrays: Weights) -> tuple[Weights, list[str]]:
    """The arrays under timm's names in torch's layout, and the names left aside; or what is unexpected."""
    weights: Weights = {}
    ignored, unexpected = [], []
    for name, array in arrays.items():
        if any(re.fullmatch(pattern, name) for pattern in family.ignored):
            ignored.append(name)
            continue
        for pattern, timm in family.names:
            if match := re.fullmatch(pattern, name):
                groups = match.groupdict()
                kind = {"kernel": "weight", "scale": "weight"}.get(groups.get("p") or "", groups.get("p"))
                ours = timm.replace("{}", groups.get("block") or "").replace("{p}", kind or "")
                if ours in weights:
                    raise ValueError(f"source holds {ours} twice, once as {name}.")
                layout = _from_flax if groups.get("p") == "kernel" else family.layout
                try:
                    weights[ours] = layout(ours, array)
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{name} has the unexpected shape {array.shape}.") from error
                break
        else:
            unexpected.append(name)
    if unexpected:
        raise ValueError(
            f"source looks like weights of {family.title}, but holds what such a classifier does not: "
            f"unexpected {listed(sorted(unexpected))}."
        )
    return weights, ignored


def _bring_into_form(weights: Weights) -> None:
    """Pack what timm has in one array, and multiply layer scale into the product before it; in place."""
    for name in list(weights):
        owner, _, end = name.rpartition(".")
        stem, _, last = owner.rpartition(".")
        for parts, packed in ((("q", "k", "v"), "qkv"), (("k", "v"), "kv"), (("gate", "up"), "fc1")):
            in_pool = stem == "attn_pool"
            if last != parts[-1] or (packed == "kv") != in_pool:
                continue
            names = [f"{stem}.{part}.{end}" for part in parts]
            missing = [part for part in names if part not in weights]
            if missing:
                raise ValueError(f"source lacks {listed(missing)} (in timm's words).")
            weights[f"{stem}.{packed}.{end}"] = np.concatenate([weights.pop(part) for part in names])
    for name in [name for name in weights if name.endswith(".gamma")]:
        gamma = weights.pop(name)
        product = re.sub(r"ls1\.gamma$", "attn.proj", re.sub(r"ls2\.gamma$", "mlp.fc2", name))
        for kind in ("weight", "bias"):
            scaled = weights.get(f"{product}.{kind}")
            if scaled is not None and gamma.shape == scaled.shape[:1]:
                scale = gamma.reshape(-1, *[1] * (scaled.ndim - 1)).astype(np.promote_types(gamma.dtype, scaled.dtype))
                weights[f"{product}.{kind}"] = scaled * scale
    if "head_dist.weight" in weights and "head.weight" in weights:
        # The mean of two heads is one head on both tokens.
        for kind in ("weight", "bias"):
            first, second = (weights.pop(f"{head}.{kind}", np.zeros(0)) / 2 for head in ("head", "head_dist"))
            weights[f"distilled_head.{kind}"] = np.append(first, second, 1) if kind == "weight" else first + second
    if "fc_norm.weight" in weights and "norm.weight" not in weights:
        for kind in ("weight", "bias"):
            weights[f"norm_after.{kind}"] = weights.pop(f"fc_norm.{kind}", np.zeros(0))


def _shown(family: str, weights: Weights, heads: int | None, notes: list[str]) -> dict[str, Any]:
    """What the weights show: fields of the configuration, and other facts that a file may state."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != rank:
            found = f"of the shape {weights[name].shape}" if name in weights else "missing"
            raise ValueError(
                f"source does not hold a Vision Transformer of {FAMILIES[family].title}: {name} (timm's name) is "
                f"{found}, expected rank {rank}."
            )
        return weights[name].shape

    width, channels, *patch = shape("patch_embed.proj.weight", 4)
    positions = shape("pos_embed", 3)[1]
    hidden, back = shape("blocks.0.mlp.fc1.weight", 2)[0], shape("blocks.0.mlp.fc2.weight", 2)[1]
    for name in ("cls_token", "dist_token", "reg_token", "attn_pool.latent"):
        if name in weights:
            found = shape(name, 3)
            expected = (1, found[1] if name == "reg_token" else 1, width)
            if found != expected:
                raise ValueError(f"{name} (timm's name) has the shape {found}, expected {expected}.")
    head = "distilled_head.weight" if "distilled_head.weight" in weights else "head.weight"
    classes, features = shape(head, 2) if head in weights else (None, width)
    if classes is None:
        notes.append(f"there is no head: the {width} features take the place of logits")
    return {
        "family": "timm" if family == "authors" else family,
        "patch_size": tuple(patch),
        "channels": channels,
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "mlp_dim": back,
        "swiglu": hidden == 2 * back,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "prefix_tokens": _prefixes(weights)[0],
        "registers": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        "class_token": "cls_token" in weights,
        "pre_norm": "norm_pre.weight" in weights,
        "norm_after_readout": "norm_after.weight" in weights,
        "patches": tuple(positions - prefix for prefix in _prefixes(weights)),
        "readouts": _readouts(weights, features == 2 * width),
        **({"num_heads": heads} if heads else {}),
        **({"num_classes": classes} if classes else {}),
    }


def _readouts(weights: Weights, double: bool) -> tuple[str, ...]:
    """The readouts that these weights may have, the likelier one first."""
    if "distilled_head.weight" in weights:
        return ("distilled",)
    if "attn_pool.latent" in weights:
        return ("attention",)
    if "cls_token" not in weights:
        return ("mean",)
    if double:
        return ("class_mean",)
    # A layer norm after the readout is timm's fc_norm, which is there where the mean is read unless fc_norm=False.
    return ("mean", "class") if "norm_after.weight" in weights else ("class", "mean")


_DISTILLED = ("class", "distilled")  # timm calls both tokens "token"
# How a file's value agrees with the facts of the weights that are named, where that is more than to be the same.
_AGREEMENT: dict[str, tuple[tuple[str, ...], Callable[[Any, dict[str, Any]], bool]]] = {
    "num_heads": (("width",), lambda heads, w: w["width"] % heads == 0 and heads == w.get("num_heads", heads)),
    "mlp_ratio": (
        ("width", "mlp_dim"),
        lambda ratio, w: w["mlp_dim"] in _mlp_dims(int(w["width"] * ratio), w["swiglu"]),
    ),
    "gelu": (("swiglu",), lambda gelu, w: (gelu == "silu") == w["swiglu"]),
    "readout": (("readouts",), lambda readout, w: readout in w["readouts"] or (readout, *w["readouts"]) == _DISTILLED),
    "mean": (("channels",), lambda mean, w: len(mean) in (1, w["channels"])),
    "std": (("channels",), lambda std, w: len(std) in (1, w["channels"])),
    "image_size": (("patch_size", "patches"), lambda size, w: math.prod(_grid(size, w["patch_size"])) in w["patches"]),
}


def _grid(size: Grid, patch: Grid) -> Grid:
    return (size[0] // patch[0], size[1] // patch[1])


def _told_grid(told: Told, shown: dict[str, Any]) -> Grid | None:
    """The grid of the position embeddings, if a file says so: by the trained size, or by that of the pictures."""
    sizes = (told.get(name) for name in ("image_size", "pictures"))
    grids = [_grid(size, shown["patch_size"]) for size in sizes if size]
    return next((grid for grid in grids if math.prod(grid) in shown["patches"]), None)


def _mlp_dims(hidden: int, gated: bool) -> tuple[int, ...]:
    """The MLP widths that a ratio may stand for: of gated MLPs timm has a half, transformers two thirds rounded up."""
    return (hidden // 2, (int(hidden * 2 / 3) + 7) // 8 * 8) if gated else (hidden,)


def _agree(told: Told, shown: dict[str, Any], given: frozenset[str]) -> None:
    """Hold what the files say, and the caller does not, against what the weights show."""
    for name, value, origin in told.facts:
        if name in given & OPEN:
            continue
        facts, agrees = _AGREEMENT.get(name, ((name,), lambda value, shown, name=name: value == shown.get(name, value)))
        if not agrees(value, shown):
            found = ", ".join(f"{fact} {shown[fact]}" for fact in facts)
            option = f", or {name}= or --set {name}=VALUE" if name in OPEN else ""
            raise ValueError(
                f"{origin}, which does not fit the weights ({found}): the file is of other weights. Give the right "
                f"one{option}, or move it away."
            )


def _configure(
    family: Family, shown: dict[str, Any], grid: Grid | None, told: Told, preset: str, fields: dict[str, Any]
) -> ViTConfig:
    """The configuration that the weights, the files beside them and the caller tell."""
    width, patch = shown["width"], shown["patch_size"]
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    said = {fact.name: fact.value for fact in told.facts if fact.name in known - {"image_size", "readout"}}
    if shown["swiglu"]:
        said.pop("gelu", None)
    grid = grid or next(filter(None, map(_square, shown["patches"])), None)
    size = fields.get("image_size") or (grid and (grid[0] * patch[0], grid[1] * patch[1]))
    if size is None:
        positions = shown["patches"][-1]
        raise ValueError(f"the {positions} positions of pos_embed are no square: image_size= must be given.")
    heads = said.get("num_heads") or _HEADS.get((width, shown["mlp_dim"])) or _HEADS.get(width)
    if not (heads or fields.get("num_heads") or "num_heads" in shown):
        raise ValueError(f"the weights do not tell the number of heads of a model of width {width}: give num_heads=.")
    readout = told.get("readout") if told.get("readout") in shown["readouts"] else shown["readouts"][0]
    excluded = shown["prefix_tokens"] if readout == "attention" and not told.get("pool_include_prefix") else 0
    if "readout" not in fields and (excluded or (readout == "mean" and told.get("pool_include_prefix"))):
        raise ValueError(
            f"{'the pooling attention' if excluded else 'the mean'} is taken over "
            f"{'the patches alone' if excluded else 'all tokens'} in timm, and over {'all' if excluded else 'patches'} "
            f"here; readout={readout!r} or --set readout={readout} accepts that."
        )
    epsilon = {"norm_epsilon": 1e-5, "final_norm_epsilon": 1e-5} if shown["pre_norm"] else {}
    enlarge, published = PREPROCESSING[preset]
    resize = {} if "resize" in fields else _resize(told.get("enlarge", enlarge), *size)
    read = {"num_classes": width, "num_heads": heads, **{name: v for name, v in shown.items() if name in known}}
    read |= {"image_size": size, "readout": readout, **family.fields, **epsilon, **published, **resize}
    names = said.pop("class_names", ())
    if len(names) != read["num_classes"]:
        names = tuple(name for _, name in imagenet_classes()) if read["num_classes"] == 1000 else ()
    return ViTConfig(**(read | {"class_names": names} | said | fields))


def _resize(enlarge: Enlarge, rows: int, cols: int) -> dict[str, Any]:
    """The fields for an enlargement before the crop to (rows, cols)."""
    if enlarge is None:
        return {"resize": (rows, cols), "crop": False}
    if isinstance(enlarge, tuple):
        return {"resize": (int(rows * enlarge[0] + 1e-6), int(cols * enlarge[1] + 1e-6))}
    return {"resize": None if isinstance(enlarge, str) else int(max(rows, cols) * enlarge + 1e-6)}


def _assumed_of_model(family: Family, shown: dict[str, Any], settled: frozenset[str], config: ViTConfig) -> list[str]:
    """What of the logits nobody told, and how to tell it."""
    notes = {}
    if "num_heads" not in shown:
        notes["num_heads"] = (
            f"{config.num_heads} heads are assumed, as published for width {config.width}"
            f"{_OTHER_HEADS.get(config.width, '')}; num_heads= or --num-heads changes it"
        )
    if len(shown["readouts"]) > 1 and "readout" not in settled:
        other = next(name for name in shown["readouts"] if name != config.readout)
        notes["readout"] = (
            f"the head is assumed to read {_READOUTS[config.readout]}, not {_READOUTS[other]}; readout= or --set "
            f"readout={other} changes it"
        )
    if not config.swiglu:
        cause = "pre_norm" if config.pre_norm else config.readout
        notes["gelu"] = (
            f"the {config.gelu} GELU is assumed, {_GELU_NOTES.get(cause, 'as is usual')}; gelu= or --set gelu=VALUE "
            "changes it"
        )
    notes["norm_epsilon"] = (
        f"layer norm's epsilon is assumed to be {config.norm_epsilon:g}; norm_epsilon= and final_norm_epsilon= or "
        "--set norm_epsilon=VALUE and final_norm_epsilon=VALUE change it"
    )
    return [notes[name] for name in family.varying if name in notes and name not in settled]


def _assumed_of_pictures(told: Told, settled: frozenset[str], preset: str, config: ViTConfig) -> list[str]:
    """What of the pictures and classes nobody told, and how to tell it."""
    notes = []
    rows, cols, _ = config.image_shape
    for _, size, origin in [fact for fact in told.facts if fact.name == "pictures"][-1:]:
        if size != (rows, cols) and "image_size" not in settled:
            notes.append(
                f"{origin} prepares pictures at {size[0]} x {size[1]} pixels, the position embeddings are of {rows} x "
                f"{cols}, which is kept; image_size= or --image-size {size[0]} {size[1]} resamples them"
            )
    values = {name: " ".join(map(str, getattr(config, name))) for name in ("mean", "std")}
    values |= {"interpolation": config.interpolation, "resize": str(config.resize)}
    if "enlarge" in settled:
        values.pop("resize")
    assumed = [f"{name} {value}" for name, value in values.items() if name not in settled]
    if assumed:
        notes.append(
            f"pictures: {', '.join(assumed)} {'are' if len(assumed) > 1 else 'is'} assumed, as published for "
            f"{preset!r}; preprocessing= or --preprocessing changes it"
        )
    if config.num_classes == 1000 and "class_names" not in settled:
        notes.append("the 1,000 classes are taken for those of ImageNet-1k; class_names= or --labels changes it")
    return notes


def _prefixes(weights: Weights) -> list[int]:
    """How many tokens stand before the patches; then, how many may have a position: all but registers, or none."""
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    prefix = ("cls_token" in weights) + ("dist_token" in weights) + registers
    return sorted({prefix, prefix - registers, 0}, reverse=True)


def _square(patches: int) -> Grid | None:
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


# Our name, timm's name, from timm's (torch's) layout to ours. Blocks are stacked: {} is the block's number.


def _as_is(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    """``[D, channels, rows, cols]`` to ``[rows * cols * channels, D]``."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


_LAYERS: tuple[tuple[str, str, str], ...] = (
    ("dense", "blocks.attn.qkv", "blocks.{}.attn.qkv"),
    ("dense", "blocks.attn.proj", "blocks.{}.attn.proj"),
    ("dense", "blocks.mlp.fc1", "blocks.{}.mlp.fc1"),
    ("dense", "blocks.mlp.fc2", "blocks.{}.mlp.fc2"),
    ("norm", "blocks.norm1", "blocks.{}.norm1"),
    ("norm", "blocks.norm2", "blocks.{}.norm2"),
    ("norm", "norm_pre", "norm_pre"),
    ("norm", "norm", "norm"),
    ("norm", "norm", "norm_after"),
    ("dense", "head", "head"),
    ("dense", "head", "distilled_head"),
    ("dense", "attn_pool.q", "attn_pool.q"),
    ("dense", "attn_pool.kv", "attn_pool.kv"),
    ("dense", "attn_pool.proj", "attn_pool.proj"),
    ("norm", "attn_pool.norm", "attn_pool.norm"),
    ("dense", "attn_pool.mlp.fc1", "attn_pool.mlp.fc1"),
    ("dense", "attn_pool.mlp.fc2", "attn_pool.mlp.fc2"),
)
_TABLE: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("patch_embed.kernel", "patch_embed.proj.weight", _patch_kernel),
    ("patch_embed.bias", "patch_embed.proj.bias", _as_is),
    ("attn_pool.latent", "attn_pool.latent", lambda x: x.reshape(1, -1)),
    *((f"{ours}.kernel", f"{theirs}.weight", _transposed) for kind, ours, theirs in _LAYERS if kind == "dense"),
    *((f"{ours}.scale", f"{theirs}.weight", _as_is) for kind, ours, theirs in _LAYERS if kind == "norm"),
    *((f"{ours}.bias", f"{theirs}.bias", _as_is) for _, ours, theirs in _LAYERS),
)


def _parameters(config: ViTConfig, grid: Grid | None, weights: Weights, notes: list[str]) -> Weights:
    """Our parameters by dotted name; what is missing shows when they are put together."""
    parameters: Weights = {"pos_embed": _positions(config, grid, weights, notes)}
    prefix = [weights.pop(name) for name in ("cls_token", "dist_token", "reg_token") if name in weights]
    if prefix:
        parameters["cls_token"] = np.concatenate([x.reshape(-1, x.shape[-1]) for x in prefix])
    for ours, theirs, transform in _TABLE:
        names = [theirs.format(i) for i in range(config.depth)] if "{}" in theirs else [theirs]
        missing = [name for name in names if name not in weights]
        if len(missing) == len(names):
            continue
        if missing:
            raise ValueError(f"source does not hold the same in every block: missing {listed(missing)} (timm's names).")
        arrays = [weights.pop(name) for name in names]
        if len({array.shape for array in arrays}) > 1:
            shapes = listed([f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True)])
            raise ValueError(f"source holds arrays of unexpected shapes: {shapes} (timm's names).")
        arrays = [transform(array) for array in arrays]
        parameters[ours] = np.stack(arrays) if "{}" in theirs else arrays[0]
    if weights:
        raise ValueError(f"source holds what this model has no place for: unexpected {listed(sorted(weights))}.")
    dtype = parameters["patch_embed.kernel"].dtype
    for name, size in (("patch_embed.bias", config.width), ("head.bias", config.num_classes)):
        parameters.setdefault(name, np.zeros(size, dtype))
    if "head.kernel" not in parameters:
        parameters["head.kernel"] = np.eye(config.width, dtype=dtype)
    return parameters


def _positions(config: ViTConfig, grid: Grid | None, weights: Weights, notes: list[str]) -> np.ndarray:
    """Position embeddings ``[N, D]`` of the whole prefix (zeros where there are none) and of the configured grid.

    The grid of those that there are is the given one, or else the configured one or a square, whichever fits.
    """
    rows, cols = config.grid
    options, embedding = _prefixes(weights), weights.pop("pos_embed")[0]
    counts = [len(embedding) - prefix for prefix in options]
    grids = [grid] if grid else [config.grid, *filter(None, map(_square, counts))]
    fits = [(prefix, g) for g in grids for prefix, count in zip(options, counts, strict=True) if count == math.prod(g)]
    if not fits:
        raise ValueError(
            f"the {len(embedding)} positions of pos_embed fit neither {rows} x {cols} patches nor a square."
        )
    covered, (old_rows, old_cols) = fits[0]
    patches = embedding[covered:]
    if (old_rows, old_cols) != config.grid:
        notes.append(f"position embeddings were resampled from {old_rows} x {old_cols} to {rows} x {cols}")
        trained = patches.reshape(old_rows, old_cols, -1).astype(np.float32)
        # Antialiased bicubic, as timm's resample_abs_pos_embed.
        resized = jax.image.resize(trained, (rows, cols, trained.shape[-1]), "bicubic", antialias=True)
        patches = np.asarray(resized).astype(embedding.dtype).reshape(rows * cols, -1)
    blank = np.zeros((config.prefix_tokens - covered, embedding.shape[-1]), embedding.dtype)
    return np.concatenate([embedding[:covered], blank, patches])
