"""Other people's weights, from explicit tables of names.

Every family's table translates its names into timm's, and one table translates timm's into ours. What differs in more
than the name is brought into timm's form in between: separate queries, keys and values are packed, layer scale is
multiplied into the product before it. Every name of the source and of the model is accounted for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from lrp_jax.checkpoint import listed, unflatten_params
from lrp_jax.labels import imagenet_classes
from lrp_jax.vit import Params, ViT, ViTConfig, pair
from lrp_jax.weights import read_weights

Weights = dict[str, np.ndarray]


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
        preprocessing: a name in :data:`PREPROCESSING`.
    """

    title: str
    sign: str
    names: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    layout: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: str = "timm"


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


_P, _WEIGHT, _BLOCK = r"\.(?P<p>weight|bias)", r"/(?P<p>kernel|scale|bias)", r"(?P<block>\d+)"

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
    "timm": Family("timm", r"patch_embed\.proj\.weight", _same(*_TIMM_NAMES), _NO_CLASSIFIER),
    "authors": Family(
        "the paper's authors", "$^", _same(*_TIMM_NAMES), fields={"final_norm_epsilon": 1e-5}, preprocessing="timm"
    ),
    "dinov2": Family(
        "Hugging Face's DINOv2",
        rf"{_HF_MODEL}encoder\.layer\.0\.layer_scale1\.lambda1",
        _HUGGING_FACE,
        _NO_CLASSIFIER,
        fields={"norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6},
        preprocessing="dinov2",
    ),
    "hf": Family(
        "Hugging Face's ViT or DeiT",
        rf"{_HF_MODEL}embeddings\.patch_embeddings\.projection\.weight",
        _HUGGING_FACE,
        _NO_CLASSIFIER,
        fields={"norm_epsilon": 1e-12, "final_norm_epsilon": 1e-12},
        preprocessing="hf",
    ),
    "torchvision": Family("torchvision", r"conv_proj\.weight", _TORCHVISION, preprocessing="torchvision"),
    "google": Family(
        "Google's vision_transformer or big_vision",
        "embedding/kernel",
        _GOOGLE,
        layout=_from_flax,
        fields={"gelu": "tanh"},
        preprocessing="hf",
    ),
}

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
#: Published preprocessing by name: the enlargement before the crop (None: straight to the size), and fields.
PREPROCESSING: dict[str, tuple[float | None, dict[str, Any]]] = {
    "timm": (1 / 0.9, {"mean": (0.5,), "std": (0.5,), "interpolation": "bicubic"}),
    "hf": (None, {"mean": (0.5,), "std": (0.5,), "interpolation": "bilinear"}),
    "torchvision": (256 / 224, {**_IMAGENET, "interpolation": "bilinear"}),
    "dinov2": (256 / 224, {**_IMAGENET, "interpolation": "bicubic"}),
}

# Heads of the published widths: the variants of ViTConfig, SigLIP's So400m, and the giant of DINOv2.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1536: 24}
_GELUS = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_tanh": "tanh",
    "quick_gelu": "quick",
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
    source: str | os.PathLike[str] | Mapping[str, ArrayLike],
    *,
    family: str | None = None,
    preprocessing: str | None = None,
    **fields: Any,
) -> tuple[ViT, Params]:
    """Turn weights of timm, Hugging Face, torchvision, Google or the paper's authors into a model and its parameters.

    Args:
        source: a file that :func:`lrp_jax.weights.read_weights` reads, or a mapping of names to arrays. Beside a file,
            Hugging Face's ``config.json`` and ``preprocessor_config.json`` are read as well.
        family: a name in :data:`FAMILIES`; None: recognised from the names. ``"authors"`` is never recognised: its
            names are timm's, its final layer norm is not.
        preprocessing: a name in :data:`PREPROCESSING`; None: what the source says, or else its family's.
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
    conversion = convert_with_summary(source, family=family, preprocessing=preprocessing, **fields)
    return conversion.model, conversion.params


def convert_with_summary(
    source: str | os.PathLike[str] | Mapping[str, ArrayLike],
    *,
    family: str | None = None,
    preprocessing: str | None = None,
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
    told: dict[str, Any] = {}
    if isinstance(source, Mapping):
        strange = [name for name in source if not isinstance(name, str)]
        if strange:
            raise ValueError(f"source must map names to arrays, got the name {strange[0]!r}.")
        arrays = {name: np.asarray(array) for name, array in source.items()}
    elif not isinstance(source, str | os.PathLike):
        raise ValueError(f"source must be a path or map names to arrays, got {type(source).__name__}.")
    else:
        arrays = read_weights(source)
        told = _read_json(Path(source).parent)
    arrays = _without_nests(arrays)
    if family is None:
        family = next((f for f, it in FAMILIES.items() if any(re.fullmatch(it.sign, name) for name in arrays)), None)
        if family is None:
            raise ValueError(
                "source does not hold a Vision Transformer that is known here, of "
                f"{', '.join(it.title for it in FAMILIES.values())}; it holds {listed(sorted(arrays), 5) or 'nothing'}."
            )
    weights, ignored = _translate(FAMILIES[family], arrays)
    heads = _heads(arrays)
    _bring_into_form(weights)
    notes: list[str] = []
    config = _configure(FAMILIES[family], weights, heads, told, preprocessing, fields, notes)
    parameters = _parameters(config, weights, notes)
    model = ViT(config)
    return Conversion(model, unflatten_params(model, parameters), family, ignored, notes)


def _read_json(folder: Path) -> dict[str, Any]:
    """The fields that the files beside Hugging Face's or timm's weights tell."""
    config: dict[str, Any] = {}
    images: dict[str, Any] = {}
    for name, target in (("config.json", config), ("preprocessor_config.json", images)):
        if (folder / name).is_file():
            try:
                content = json.loads((folder / name).read_text())
                target.update(content)
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{folder / name} is not a JSON object: {error}.") from error
    told: dict[str, Any] = {}
    timm = config.get("pretrained_cfg") or {}
    pairs = (
        (config, "num_attention_heads", "num_heads", int),
        (config, "layer_norm_eps", "norm_epsilon", float),
        (config, "layer_norm_eps", "final_norm_epsilon", float),
        (config, "hidden_act", "gelu", _GELUS.get),
        (config, "id2label", "class_names", lambda names: tuple(names[str(i)] for i in range(len(names)))),
        (config, "label_names", "class_names", tuple),
        (images, "image_mean", "mean", tuple),
        (images, "image_std", "std", tuple),
        (images, "resample", "interpolation", {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}.get),
        (timm, "mean", "mean", tuple),
        (timm, "std", "std", tuple),
        (timm, "interpolation", "interpolation", str),
    )
    for content, theirs, ours, read in pairs:
        if content.get(theirs) is not None:
            try:
                value = read(content[theirs])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{folder}: {theirs} is {content[theirs]!r}, which is not understood.") from error
            if value is None:
                raise ValueError(f"{folder}: {theirs} is {content[theirs]!r}, which is not known here.")
            told[ours] = value
    try:
        if timm.get("crop_pct"):
            told["enlarge"] = 1 / timm["crop_pct"]
        size, crop = images.get("size"), images.get("crop_size") if images.get("do_center_crop") else None
        if size and crop:
            edges = [edge if isinstance(edge, int) else min(edge.values()) for edge in (size, crop)]
            told["enlarge"] = edges[0] / edges[1]
        elif size:
            told["enlarge"] = None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder}: the size of the resize or the crop is not understood.") from error
    return told


def _without_nests(arrays: Weights) -> Weights:
    """Without what Google's checkpoints put before every name, and with scanned blocks one by one."""
    for prefix in ("opt/target/", "params/", "opt/"):
        if any(name == prefix + "embedding/kernel" for name in arrays):
            arrays = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
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
                try:
                    weights[ours] = family.layout(ours, array)
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


def _configure(
    family: Family,
    weights: Weights,
    heads: int | None,
    told: dict[str, Any],
    preprocessing: str | None,
    fields: dict[str, Any],
    notes: list[str],
) -> ViTConfig:
    """The configuration that the weights, the files beside them and the caller tell."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != rank:
            found = f"of the shape {weights[name].shape}" if name in weights else "missing"
            raise ValueError(
                f"source does not hold a Vision Transformer of {family.title}: {name} (timm's name) is {found}, "
                f"expected rank {rank}."
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
    prefix = _prefixes(weights)[0]
    features, readout, norm_after = width, "class" if "cls_token" in weights else "mean", False
    head = "head"
    if "distilled_head.weight" in weights:
        head, readout = "distilled_head", "distilled"
    elif "attn_pool.latent" in weights:
        readout = "attention"
    elif "norm_after.weight" in weights:
        readout, norm_after = "mean", True
    if f"{head}.weight" in weights:
        classes, features = shape(f"{head}.weight", 2)
        if features == 2 * width and readout == "class":
            readout = "class_mean"
    else:
        classes = width
        notes.append(f"there is no head: the {width} features take the place of logits")

    grids = [g for p in _prefixes(weights) if (g := _square(positions - p))]
    size = fields.get("image_size")
    if size is None and not grids:
        raise ValueError(f"the {positions} positions of pos_embed are no square: image_size= must be given.")
    num_heads = fields.get("num_heads") or told.get("num_heads") or heads or _HEADS.get(width)
    if num_heads is None:
        raise ValueError(f"the weights do not tell the number of heads of a model of width {width}: give num_heads=.")
    read: dict[str, Any] = {
        "image_size": size or (grids[0][0] * patch[0], grids[0][1] * patch[1]),
        "patch_size": tuple(patch),
        "channels": channels,
        "width": width,
        "depth": 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        "num_heads": num_heads,
        "mlp_dim": back,
        "swiglu": hidden == 2 * back,
        "num_classes": classes,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "prefix_tokens": prefix,
        "pre_norm": "norm_pre.weight" in weights,
        "readout": readout,
        "norm_after_readout": norm_after,
        **family.fields,
    }
    if read["pre_norm"]:
        read |= {"norm_epsilon": 1e-5, "final_norm_epsilon": 1e-5}
    enlarge, preset = PREPROCESSING[preprocessing or family.preprocessing]
    published = dict(preset)
    if preprocessing is None:
        published |= {name: told[name] for name in ("mean", "std", "interpolation") if name in told}
        enlarge = told.get("enlarge", enlarge)
    rows, cols = read["image_size"]
    if enlarge is None:
        published |= {"resize": (rows, cols), "crop": False}
    else:
        published["resize"] = int(max(rows, cols) * enlarge + 1e-6)
    others = {name: value for name, value in told.items() if name in ("norm_epsilon", "final_norm_epsilon", "gelu")}
    config = ViTConfig(**(read | published | others | fields))
    names = told.get("class_names", ())
    if not config.class_names and "class_names" not in fields:
        if len(names) == config.num_classes and not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
            config = dataclasses.replace(config, class_names=names)
        elif config.num_classes == 1000:
            notes.append("the 1,000 classes are taken for those of ImageNet-1k")
            config = dataclasses.replace(config, class_names=tuple(name for _, name in imagenet_classes()))
    return config


def _prefixes(weights: Weights) -> list[int]:
    """How many tokens stand before the patches; then, how many may have a position: all but registers, or none."""
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    prefix = ("cls_token" in weights) + ("dist_token" in weights) + registers
    return sorted({prefix, prefix - registers, 0}, reverse=True)


def _square(patches: int) -> tuple[int, int] | None:
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


def _parameters(config: ViTConfig, weights: Weights, notes: list[str]) -> Weights:
    """Our parameters by dotted name; what is missing shows when they are put together."""
    parameters: Weights = {"pos_embed": _positions(config, weights, notes)}
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


def _positions(config: ViTConfig, weights: Weights, notes: list[str]) -> np.ndarray:
    """Position embeddings ``[N, D]`` of the whole prefix (zeros where there are none) and of the configured grid."""
    rows, cols = config.grid
    options, embedding = _prefixes(weights), weights.pop("pos_embed")[0]
    exact = [p for p in options if len(embedding) - p == rows * cols]
    square = [p for p in options if _square(len(embedding) - p)]
    if not exact and not square:
        raise ValueError(
            f"the {len(embedding)} positions of pos_embed fit neither {rows} x {cols} patches nor a square."
        )
    covered = (exact or square)[0]
    patches = embedding[covered:]
    if not exact:
        side = math.isqrt(len(patches))
        notes.append(f"position embeddings were resampled from {side} x {side} to {rows} x {cols}")
        grid = patches.reshape(side, side, -1)
        # Antialiased bicubic, as timm's resample_abs_pos_embed.
        resized = jax.image.resize(grid.astype(np.float32), (rows, cols, grid.shape[-1]), "bicubic", antialias=True)
        patches = np.asarray(resized).astype(embedding.dtype).reshape(rows * cols, -1)
    blank = np.zeros((config.prefix_tokens - covered, embedding.shape[-1]), embedding.dtype)
    return np.concatenate([embedding[:covered], blank, patches])
