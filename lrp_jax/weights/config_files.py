"""The JSON files beside other people's weights, read by the tables of their fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from lrp_jax.files import read_text
from lrp_jax.pictures.preprocessing import Interpolation
from lrp_jax.weights.config_tables import (
    CLASSES,
    HEADS_OF_SIZE,
    MODELS,
    PROCESSOR,
    PROCESSORS,
    TIMM,
    TIMM_ARCHITECTURES,
    TIMM_ARGUMENTS,
    TIMM_KNOWN,
    TIMM_PICTURES,
    TIMM_POST_NORM,
    TRANSFORMERS,
    Table,
)
from lrp_jax.weights.families import IMAGENET
from lrp_jax.weights.told import OPEN, PICTURES, Enlarge, Told

_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_MOST_CLASSES = 1_000_000


def read_config_files(folder: Path, given: frozenset[str] = frozenset()) -> Told:
    """What the JSON files in a folder say of the weights there.

    Args:
        folder: of the weights.
        given: what the caller gives: fields of :class:`lrp_jax.ViTConfig`. What would become one of them is not read.

    Returns:
        Facts and notes.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no JSON object, or a field has a value of the wrong type, or one that is not known or that
            nothing here computes.
    """
    told, unknown = Told(), dict[str, list[str]]()
    reading = _Reading(told, unknown, given)
    config = _json(folder / _CONFIG)
    is_timm = "architecture" in config or "pretrained_cfg" in config
    (_timm if is_timm else _transformers)(config, reading)
    if (folder / _PROCESSOR).exists() and not given >= PICTURES:
        _processor(_json(folder / _PROCESSOR), config.get("model_type"), reading)
    told.unknown += [f"{file}: not known here, and not used: {', '.join(names)}" for file, names in unknown.items()]
    return told


class _Reading(NamedTuple):
    told: Told
    unknown: dict[str, list[str]]
    given: frozenset[str]

    def read(self, file: str, content: Mapping[str, Any], table: Table, within: str = "") -> dict[str, Any]:
        """The values of the fields; null is as good as absent. What they become is told."""
        values: dict[str, Any] = {}
        for field, value in content.items():
            if field not in table:
                self.unknown.setdefault(file, []).append(within + field)
                continue
            row = table[field]
            names = row.becomes.split()
            # The trained size is needed even where the caller wants another.
            if value is None or (names and self.given.issuperset(names) and names != ["image_size"]):
                continue
            origin = f"{file}: {within}{field} is {_short(value)}"
            try:
                values[field] = row.read(value)
            except ValueError as error:
                python, shell = (f"{sign} and ".join(names) + sign for sign in ("=", "=VALUE"))
                option = f"; {python} or --set {shell} overrides it" if names and OPEN.issuperset(names) else ""
                raise ValueError(f"{origin}, {error}{option}.") from error
            if row.direct:
                self.told.tell(origin, **dict.fromkeys(names, values[field]))
        return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, or an empty one where there is no file."""
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: it holds {_short(content)}.")
    return content


def _any_transformers(config: Mapping[str, Any], values: Mapping[str, Any], told: Told) -> None:
    """Notes on what the tables take for something near."""
    if (kind := values.get("problem_type")) is not None:
        said = {name: kind == name for name in ("multi_label", "regression")}
        told.tell(f"{_CONFIG}: problem_type is {config['problem_type']!r}", **said)
    strange = [name for name in values.get("architectures", ()) if not re.fullmatch(CLASSES, name)]
    if strange:
        told.notes.append(
            f"{_CONFIG}: architectures is {strange}, not known here: the logits are those of transformers' classifier"
        )


def _class_names(origin: str, names: Mapping[int, str], count: int, reading: _Reading) -> None:
    """The names of ``count`` classes; those between them that have none are named by their number."""
    if not names:
        return
    if max(names) >= count:
        raise ValueError(f"{origin} names class {max(names)}, expected the numbers 0 to {count - 1}.")
    if count > _MOST_CLASSES:  # each of them is named below
        raise ValueError(f"{origin} is of {count:,} classes, expected at most {_MOST_CLASSES:,}.")
    reading.told.tell(f"{origin} has {count} names", num_classes=count)
    if not all(re.fullmatch(r"LABEL_\d+", name) for name in names.values()):
        reading.told.tell(origin, class_names=tuple(names.get(i, f"class {i}") for i in range(count)))


def _transformers(config: dict[str, Any], reading: _Reading) -> None:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in MODELS:
        defaults = {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": MODELS[kind][1]}
        config = config | {name: value for name, value in defaults.items() if config.get(name) is None}
    if config.get("use_swiglu_ffn") is True:
        config = config | {"hidden_act": None}  # it is silu, whatever the file says
    values = reading.read(_CONFIG, config, TRANSFORMERS)
    if values.get("head_dim", 0) * values.get("num_attention_heads", 0) not in (0, values.get("hidden_size")):
        raise ValueError(f"{_CONFIG}: head_dim is {values['head_dim']}, expected hidden_size over num_attention_heads.")
    names = values.get("id2label", {})
    _class_names(f"{_CONFIG}: id2label", names, len(names), reading)
    _any_transformers(config, values, reading.told)


def _timm(config: dict[str, Any], reading: _Reading) -> None:
    if "pretrained_cfg" not in config:  # old files have its fields at the top
        inner = {name: value for name, value in config.items() if name in TIMM_PICTURES.keys() - TIMM.keys()}
        config = {name: value for name, value in config.items() if name not in inner} | {"pretrained_cfg": inner}
    values = reading.read(_CONFIG, config, TIMM)
    arguments = reading.read(_CONFIG, values.get("model_args", {}), TIMM_ARGUMENTS, "model_args.")
    if "architecture" in values:
        _architecture(values["architecture"], reading.told)
    inner = reading.read(_CONFIG, values.get("pretrained_cfg", {}), TIMM_PICTURES, "pretrained_cfg.")
    if inner and not reading.given >= PICTURES:
        _timm_pictures(f"{_CONFIG}: pretrained_cfg", inner, reading)
    if "input_size" in inner and "in_chans" not in arguments:
        reading.told.tell(
            f"{_CONFIG}: pretrained_cfg.input_size is {inner['input_size']}", channels=inner["input_size"][0]
        )
    said = inner | values
    if "num_classes" in inner and "num_classes" not in values:
        reading.told.tell(
            f"{_CONFIG}: pretrained_cfg.num_classes is {said['num_classes']}", num_classes=said["num_classes"]
        )
    names: dict[int, str] = next((said[name] for name in ("label_names", "labels", "id2label") if said.get(name)), {})
    descriptions = said.get("label_descriptions", {})
    described = {number: descriptions.get(name, name) for number, name in names.items()}
    _class_names(f"{_CONFIG}: label_names", described, said.get("num_classes") or max(names, default=-1) + 1, reading)
    _any_transformers(config, values, reading.told)


def _architecture(name: str, told: Told) -> None:
    """What timm's name of a model says, where its arguments do not."""
    origin = f"{_CONFIG}: architecture is {name!r}"
    if re.fullmatch(TIMM_POST_NORM, name):
        raise ValueError(
            f"{origin}, whose blocks have their layer norms after attention and MLP, as no model here has."
        )
    match = re.fullmatch(TIMM_KNOWN, name)
    if match is None:
        told.notes.append(f"{origin}, which is not known here")
        return
    says = {"num_heads": HEADS_OF_SIZE[match["size"]], "gelu": "exact", "norm_epsilon": 1e-6}
    for pattern, values in TIMM_ARCHITECTURES.items():
        if re.fullmatch(pattern, name):
            says |= values
    says["final_norm_epsilon"] = says["norm_epsilon"]
    told.tell(origin, **{name: value for name, value in says.items() if told.get(name) is None})


def _timm_pictures(file: str, values: Mapping[str, Any], reading: _Reading) -> None:
    """Preprocessing as timm's create_transform makes it for evaluation."""
    told = reading.told
    defaults = {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic", "input_size": (3, 224, 224)}
    values = {**defaults, **IMAGENET, **values}
    for name in ("mean", "std"):
        told.tell(f"{file}.{name} is {values[name]}", **{name: values[name]})
    _interpolation(f"{file}.interpolation", values["interpolation"], told)
    if "resize" in reading.given:
        return
    size, part, mode = values["input_size"][1:], values["crop_pct"], values["crop_mode"]
    enlarge: Enlarge = 1 / part
    if mode in ("squash", "border"):
        enlarge = None if part == 1 or mode == "border" else (1 / part, 1 / part)
    elif size[0] != size[1]:
        enlarge = "cover"
    if mode == "border":
        told.notes.append(f"{file}.crop_mode is 'border', which pads pictures: here they are squashed; {_RESIZE}")
    elif mode not in ("center", "squash"):
        told.notes.append(
            f"{file}.crop_mode is {mode!r}, not known here: pictures are cropped as for 'center'; {_RESIZE}"
        )
    elif part > 1:
        enlarge = None if mode == "squash" else "cover"
        told.notes.append(f"{file}.crop_pct is {part}, which pads pictures: here they cover the image; {_RESIZE}")
    elif enlarge == "cover" and part < 1:
        told.notes.append(f"{file}.crop_pct is {part}, not done here for images that are not square: 1 is; {_RESIZE}")
    told.tell(file, pictures=size, enlarge=enlarge)


_RESIZE = "resize= or --set resize=VALUE changes it"


def _interpolation(origin: str, name: str, told: Told) -> None:
    if name in get_args(Interpolation):
        told.tell(origin, interpolation=name)
    else:
        told.notes.append(f"{origin} is {name!r}, which is not done here")


def _processor(content: dict[str, Any], model_type: Any, reading: _Reading) -> None:
    """Preprocessing as an image processor of transformers does it."""
    told = reading.told
    title = content.get("image_processor_type") or content.get("feature_extractor_type")
    stem = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(title))
    if title is None and isinstance(model_type, str) and model_type in MODELS:
        stem = MODELS[model_type][2]
    defaults = PROCESSORS.get(stem, {})
    content = content | {name: value for name, value in defaults.items() if content.get(name) is None}
    values = reading.read(_PROCESSOR, content, PROCESSOR)
    for name in ("pretrained_cfg", "data_config"):
        if name in values:
            inner = reading.read(_PROCESSOR, values[name], TIMM_PICTURES, f"{name}.")
            _timm_pictures(f"{_PROCESSOR}: {name}", inner, reading)
            return
    if title is not None and not defaults:
        told.notes.append(f"{_PROCESSOR}: {title} is not known here: its fields are read as those of ViTImageProcessor")
    if not values.get("do_normalize", True):
        values |= {"image_mean": (0.0,), "image_std": (1.0,)}
    # What is divided by 255 here is multiplied by another number there.
    scale = 255 * (values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1)
    scale = 1 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    for name in ("mean", "std"):
        if value := values.get(f"image_{name}"):
            told.tell(f"{_PROCESSOR}: image_{name} is {value}", **{name: tuple(v / scale for v in value)})
    if "resample" in values:
        _interpolation(f"{_PROCESSOR}: resample", values["resample"], told)
    if values.get("do_pad"):
        told.notes.append(f"{_PROCESSOR}: do_pad is true, and pictures are not padded here")
    if "resize" not in reading.given:
        _resize(values, told)


def _resize(values: Mapping[str, Any], told: Told) -> None:
    """The sizes of an image processor of transformers."""

    def edges(name: str) -> tuple[int, int] | None:
        """(rows, columns); None where the file has other words."""
        size = values[name]
        if isinstance(size, int):
            square = name == "crop_size" or values.get("default_to_square", True)
            return (size, size) if square else None
        if isinstance(size, list):
            return (size[0], size[1])
        return (size["height"], size["width"]) if size.get("height") else None

    crop = edges("crop_size") if values.get("do_center_crop") and "crop_size" in values else None
    if not values.get("do_resize", True):
        told.notes.append(
            f"{_PROCESSOR}: do_resize is false, so pictures are taken as they are: here those of another size than the "
            f"image are resized; {_RESIZE}"
        )
        told.tell(_PROCESSOR, enlarge="cover", **({"pictures": crop} if crop else {}))
        return
    if "size" not in values:
        return
    size = values["size"]
    exact, shorter = edges("size"), size.get("shortest_edge") if isinstance(size, dict) else size
    enlarge: Enlarge
    if exact:
        enlarge = (exact[0] / crop[0], exact[1] / crop[1]) if crop else None
    elif crop and isinstance(shorter, int) and not (isinstance(size, dict) and size.get("longest_edge")):
        enlarge = shorter / max(crop)
    else:
        enlarge = "cover"
        told.notes.append(
            f"{_PROCESSOR}: size is {size} without a crop of one size: here pictures cover the image, and its middle "
            f"is cut out; {_RESIZE}"
        )
    if isinstance(enlarge, float | tuple) and min(enlarge if isinstance(enlarge, tuple) else (enlarge,)) < 1:
        enlarge = "cover"
        told.notes.append(
            f"{_PROCESSOR}: crop_size exceeds size, which pads pictures: here they cover the image; {_RESIZE}"
        )
    pictures = crop or exact or ((shorter, shorter) if shorter else None)
    told.tell(_PROCESSOR, enlarge=enlarge, **({"pictures": pictures} if pictures else {}))
