"""What the weights and the files beside them say of a model: its configuration, and what of it is assumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lrp_jax.labels import imagenet_classes
from lrp_jax.vit_config import READOUTS, ViTConfig
from lrp_jax.weights.families import FAMILIES, PREPROCESSING, Family
from lrp_jax.weights.told import OPEN, Enlarge, Told

Weights = dict[str, np.ndarray]
Grid = tuple[int, int]

_FIELDS = frozenset(field.name for field in dataclasses.fields(ViTConfig))
# Heads by width, or by width and MLP width, as published. DeiT (arXiv 2012.12877, table 1): 192 to 768. ViT
# (2010.11929, table 1): 768 to 1280. g/14 and G/14 (2106.04560, table 2): 1408 and 1664. SoViT-400m (2305.13035): 1152.
# DINOv2's giant (2304.07193): 1536, but SigLIP 2's (2502.14786). The rest are sizes of timm, of 64 channels a head.
_HEADS: dict[int | tuple[int, int], int] = {
    **{192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14},
    **{1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, (1536, 6144): 16, 1664: 16},
}
_OTHER_HEADS = {384: " (a ViT-S of MoCo v3 has 12)", 768: " (timm's vit_base_patch16_gap has 16)"}
# Of timm's models, by what the weights show.
_GELU_NOTES = {
    "pre_norm": "as CLIP of LAION has it (CLIP of OpenAI, MetaCLIP and DFN have gelu=quick)",
    "attention": "as SigLIP has it in timm (most of SigLIP 2 have gelu=tanh)",
}


def shown_by(family: str, weights: Weights, heads: int | None, notes: list[str]) -> dict[str, Any]:
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
    ones, positions, _ = shape("pos_embed", 3)
    if ones != 1:
        raise ValueError(f"pos_embed (timm's name) has the shape {weights['pos_embed'].shape}, expected 1 of them.")
    blocks = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    if missing := set(range(len(blocks))) - blocks:  # not up to the highest, which a name may put at a billion
        raise ValueError(f"source lacks block {min(missing)}, and has block {max(blocks)}.")
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
        "depth": len(blocks),
        "mlp_dim": back,
        "swiglu": hidden == 2 * back,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "prefix_tokens": prefixes(weights)[0],
        "registers": weights["reg_token"].shape[1] if "reg_token" in weights else 0,
        "class_token": "cls_token" in weights,
        "pre_norm": "norm_pre.weight" in weights,
        "norm_after_readout": "norm_after.weight" in weights,
        "patches": tuple(positions - prefix for prefix in prefixes(weights)),
        "readouts": _readouts(weights, features / width),
        **({"num_heads": heads} if heads else {}),
        **({"num_classes": classes} if classes else {}),
    }


def _readouts(weights: Weights, widths: float) -> tuple[str, ...]:
    """The readouts that these weights may have, the likelier one first."""
    if "distilled_head.weight" in weights:
        return ("distilled",)
    if "attn_pool.latent" in weights:
        return ("attention",)
    if "cls_token" not in weights:
        return ("mean",)
    if widths == READOUTS["class_mean"].widths:
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


def told_grid(told: Told, shown: dict[str, Any]) -> Grid | None:
    """The grid of the position embeddings, if a file says so: by the trained size, or by that of the pictures."""
    sizes = (told.get(name) for name in ("image_size", "pictures"))
    grids = [_grid(size, shown["patch_size"]) for size in sizes if size]
    return next((grid for grid in grids if math.prod(grid) in shown["patches"]), None)


def _mlp_dims(hidden: int, gated: bool) -> tuple[int, ...]:
    """The MLP widths that a ratio may stand for: of gated MLPs timm has a half, transformers two thirds rounded up."""
    return (hidden // 2, (int(hidden * 2 / 3) + 7) // 8 * 8) if gated else (hidden,)


def check_agreement(told: Told, shown: dict[str, Any], given: frozenset[str]) -> None:
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


def configure(
    family: Family, shown: dict[str, Any], grid: Grid | None, told: Told, preset: str, fields: dict[str, Any]
) -> ViTConfig:
    """The configuration that the weights, the files beside them and the caller tell."""
    of_file = {fact.name: fact.value for fact in told.facts if fact.name in _FIELDS - {"image_size", "readout"}}
    if shown["swiglu"]:
        of_file.pop("gelu", None)
    size = _image_size(shown, grid, fields)
    found = {
        **_architecture(family, shown, told, fields),
        "image_size": size,
        **_preprocessing(told, preset, size, fields),
    }
    return ViTConfig(**(found | of_file | _labels(shown, of_file) | fields))


def _image_size(shown: dict[str, Any], grid: Grid | None, fields: dict[str, Any]) -> Grid:
    """The asked size, or else that of the position embeddings."""
    patch = shown["patch_size"]
    grid = grid or next(filter(None, map(square, shown["patches"])), None)
    size = fields.get("image_size") or (grid and (grid[0] * patch[0], grid[1] * patch[1]))
    if size is None:
        raise ValueError(f"the {shown['patches'][-1]} positions of pos_embed are no square: image_size= must be given.")
    return size


def _architecture(family: Family, shown: dict[str, Any], told: Told, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say what is computed; what a file says of them is not among them, but for the readout."""
    width = shown["width"]
    heads = told.get("num_heads") or _HEADS.get((width, shown["mlp_dim"])) or _HEADS.get(width)
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
    known = {name: value for name, value in shown.items() if name in _FIELDS}
    return {"num_classes": width, "num_heads": heads, **known, "readout": readout, **family.fields, **epsilon}


def _preprocessing(told: Told, preset: str, size: Grid, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say what pictures become: as published under a name, but for the enlargement that a file says."""
    enlarge, published = PREPROCESSING[preset]
    return {**published, **({} if "resize" in fields else _resize(told.get("enlarge", enlarge), *size))}


def _labels(shown: dict[str, Any], of_file: dict[str, Any]) -> dict[str, Any]:
    """The names of the classes: those of the file, if it has as many as the head, or those of ImageNet-1k."""
    count, names = shown.get("num_classes", shown["width"]), of_file.get("class_names", ())
    if len(names) != count:
        names = tuple(name for _, name in imagenet_classes()) if count == 1000 else ()
    return {"class_names": names}


def _resize(enlarge: Enlarge, rows: int, cols: int) -> dict[str, Any]:
    """The fields for an enlargement before the crop to (rows, cols)."""
    if enlarge is None:
        return {"resize": (rows, cols), "crop": False}
    if isinstance(enlarge, tuple):
        return {"resize": (int(rows * enlarge[0] + 1e-6), int(cols * enlarge[1] + 1e-6))}
    return {"resize": None if isinstance(enlarge, str) else int(max(rows, cols) * enlarge + 1e-6)}


def assumed_of_model(family: Family, shown: dict[str, Any], settled: frozenset[str], config: ViTConfig) -> list[str]:
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
            f"the head is assumed to read {READOUTS[config.readout].what}, not {READOUTS[other].what}; readout= or "
            f"--set readout={other} changes it"
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


def assumed_of_pictures(told: Told, settled: frozenset[str], preset: str, config: ViTConfig) -> list[str]:
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


def prefixes(weights: Weights) -> list[int]:
    """How many tokens stand before the patches; then, how many may have a position: all but registers, or none."""
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    prefix = ("cls_token" in weights) + ("dist_token" in weights) + registers
    return sorted({prefix, prefix - registers, 0}, reverse=True)


def square(patches: int) -> Grid | None:
    """The grid of so many patches, if it can be a square."""
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None
