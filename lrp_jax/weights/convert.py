"""Other people's weights, turned into a model and its parameters.

Every family's table translates its names into timm's, and one table translates timm's into ours. What differs in more
than the name is brought into timm's form in between: separate queries, keys and values are packed, layer scale is
multiplied into the product before it. Every name of the source and of the model is accounted for.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrp_jax.checks import listed, pair
from lrp_jax.model import Params
from lrp_jax.vit import ViT
from lrp_jax.vit_config import ViTConfig
from lrp_jax.weights.config_files import read_config_files
from lrp_jax.weights.configure import (
    Weights,
    assumed_of_model,
    assumed_of_pictures,
    check_agreement,
    configure,
    shown_by,
    told_grid,
)
from lrp_jax.weights.families import FAMILIES, PREPROCESSING, Family, from_flax
from lrp_jax.weights.native import unflatten_params
from lrp_jax.weights.nests import Found, contents, find
from lrp_jax.weights.parameters import parameters_of
from lrp_jax.weights.pickles import Placeholder
from lrp_jax.weights.readers import read_weights
from lrp_jax.weights.told import PICTURES, Told

_ADAPTERS = r"(?i)(?:^|[./_])(?:lora|ia3|oft|vera)[./_]"


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
        source: a file or folder that :func:`lrp_jax.weights.read_weights` reads, or a mapping of names to arrays,
            nested or not, as an ``nnx.State``. The JSON files beside a file are read as well, see
            :mod:`lrp_jax.weights.config_files`.
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
    found = _found(tree, key)
    if family is None:
        names = found.arrays.keys() | found.others
        family = next(f for f, it in FAMILIES.items() if any(re.fullmatch(it.sign, name) for name in names))
    _check_others(FAMILIES[family], found.others)
    arrays = _unscanned(found.arrays)
    notes = found.notes
    weights, ignored = _translate(FAMILIES[family], arrays)
    if key is None:
        _check_head(weights, found)
    _widen(weights, notes)
    preset = preprocessing or next(name for names, name in FAMILIES[family].preprocessing if names <= weights.keys())
    _bring_into_form(weights)
    shown = shown_by(family, weights, _heads(arrays), notes)
    check_agreement(told, shown, given)
    grid = told_grid(told, shown)
    config = configure(FAMILIES[family], shown, grid, told, preset, fields)
    settled = given | frozenset(fact.name for fact in told.facts if fact.name != "image_size")
    notes += [*assumed_of_model(FAMILIES[family], shown, settled, config), *told.notes]
    notes += [*assumed_of_pictures(told, settled, preset, config), *told.unknown]
    parameters = parameters_of(config, grid, weights, notes)
    model = ViT(config)
    return Conversion(model, unflatten_params(model, parameters), family, ignored, notes)


def _found(tree: Mapping[str, Any], key: str | None) -> Found:
    """The weights of the model that a tree holds; a ValueError if there is none, or parts of one."""
    found = find(tree, [it.sign for it in FAMILIES.values()], key)
    names = list(found.arrays) if found else contents(tree)
    if adapters := [name for name in names if re.search(_ADAPTERS, name)]:
        raise ValueError(
            f"source holds adapters of a model (LoRA and the like: {listed(adapters, 2)}): merge them into the model "
            "first, in PEFT by model.merge_and_unload(), save it, and give that."
        )
    if found is None:
        raise ValueError(
            "source does not hold a Vision Transformer that is known here, of "
            f"{', '.join(it.title for it in FAMILIES.values())}; it holds {listed(names, 5) or 'nothing'}."
        )
    return found


def _check_others(family: Family, others: Mapping[str, Any]) -> None:
    """Refuse what is no array and stands where a weight belongs."""
    for name, leaf in others.items():
        if any(re.fullmatch(pattern, name) for pattern, _ in family.names):
            kind = leaf.origin if isinstance(leaf, Placeholder) else type(leaf).__name__
            raise ValueError(f"{name} is a {kind}, which is not read: weights must be arrays.")


#: Names of classifiers; not of what self-supervised training projects features by.
_CLASSIFIERS = (
    r"(?:.*[._/])?(?:\w*head\w*|classifier|fc|linear\w*|logits?|probe)[._/](?!mlp|last_layer|proj)(?:.*[._/])?\w+"
)


def _check_head(weights: Weights, found: Found) -> None:
    """Refuse a model without a head beside which one stands: its features would be explained as classes."""
    heads = [name for name in found.beside if re.fullmatch(_CLASSIFIERS, name)]
    if heads and not {"head.weight", "distilled_head.weight"} & weights.keys():
        wrapped = found.prefix.rstrip("./")
        raise ValueError(
            f"the weights under {wrapped!r} have no head, and one stands beside them, {listed(sorted(heads), 4)}: give "
            f"the head's arrays the names that such a model has ({wrapped}.head.weight, as timm's). key={wrapped!r} "
            f"(--key {wrapped}) takes the features alone, without classes."
        )


def _unscanned(arrays: Weights) -> Weights:
    """With the blocks of a scan one by one."""
    scanned = "Transformer/encoderblock/"
    single = {name: array for name, array in arrays.items() if not name.startswith(scanned)}
    for name in arrays.keys() - single.keys():
        if not arrays[name].size:
            raise ValueError(f"{name} has the unexpected shape {arrays[name].shape}.")
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
                layout = from_flax if groups.get("p") == "kernel" else family.layout
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


def _widen(weights: Weights, notes: list[str]) -> None:
    """Give numbers of 8 bits, with which nothing is computed here, the dtype of the other weights; in place."""
    floating = {name: array.dtype for name, array in weights.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    narrow = {name: dtype for name, dtype in floating.items() if dtype.itemsize < 2}
    if narrow:
        others = [dtype for name, dtype in floating.items() if name not in narrow]
        widest = max(others, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float32))
        weights.update({name: weights[name].astype(widest) for name in narrow})
        kinds = ", ".join(sorted({str(dtype) for dtype in narrow.values()}))
        notes.append(f"{len(narrow)} arrays of {kinds} become {widest}, their values unchanged")


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
            if scaled is not None:
                if gamma.shape != scaled.shape[:1]:
                    raise ValueError(
                        f"{name} (timm's name) has the shape {gamma.shape}, expected {scaled.shape[:1]}, the outputs "
                        f"of {product}."
                    )
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
