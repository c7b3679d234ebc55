"""Words for errors: checks of the fields of configurations, each naming field, value and what was expected; lists."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any


def check_positive(config: Any, *names: str) -> None:
    """Refuse fields that are no int of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}.")


def check_truth(config: Any, *names: str) -> None:
    """Refuse fields that are neither True nor False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(config, name)!r}.")


def check_choice(config: Any, name: str, choices: Collection[str]) -> None:
    """Refuse a field that is none of the choices."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(config, name)!r}.")


def check_epsilon(config: Any, *names: str) -> None:
    """Refuse fields that are no finite number of at least 0."""
    for name in names:
        value = getattr(config, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """``value`` as (rows, columns)."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2 or not all(isinstance(v, int) and v > 0 for v in both):
        raise ValueError(f"{name} must be a positive int or a pair (rows, columns) of them, got {value!r}.")
    return both


def listed(items: list[str], limit: int = 10) -> str:
    """The items on one line; after ``limit``, how many more there are."""
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def visible(text: str) -> str:
    """Text that steers no terminal and no page: control characters, and what is no character, as escapes."""
    return "".join(c.encode("unicode_escape").decode() if _is_hidden(c) else c for c in text)


def _is_hidden(c: str) -> bool:
    """Whether a character controls, ends a line, turns the direction of what follows, or is half of one."""
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} or unicodedata.bidirectional(c) in turns


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which values are not what they were, by key; empty if all are. What JSON makes alike is alike."""
    said = json.loads(json.dumps(dict(now)))
    return ", ".join(f"{k} {before.get(k)!r}, not {v!r}" for k, v in said.items() if before.get(k) != v)


def set_field(config: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass that is being made."""
    object.__setattr__(config, name, value)


#: How modules of other libraries become models, by the packages that their classes are of.
_MODULES = {
    "flax.linen": "model = lrp_jax.trace(module.apply, variables, images)",
    "flax.nnx": "graph, state = nnx.split(module); "
    "model = lrp_jax.trace(lambda state, x: nnx.merge(graph, state)(x), state, images)",
    "equinox": "params, rest = equinox.partition(module, equinox.is_inexact_array); "
    "model = lrp_jax.trace(lambda params, x: jax.vmap(equinox.combine(params, rest))(x), params, images)",
    "haiku": "model = lrp_jax.trace(lambda params, x: transformed.apply(params, None, x), params, images)",
    "keras": "model = lrp_jax.trace(lambda state, x: module.stateless_call(*state, x)[0], state, images), where "
    "state = ([v.value for v in module.trainable_variables], [v.value for v in module.non_trainable_variables])",
    "transformers": "model = lrp_jax.trace(lambda params, x: module(x.transpose(0, 3, 1, 2), params=params).logits, "
    "module.params, images)",
}
_MEMBERS = ("grid", "readout", "depth", "embed", "block", "read")


def check_model(model: Any) -> None:
    """Refuse what is no :class:`lrp_jax.Model`: a module, a function, or an argument in the place of another."""
    if isinstance(model, type):
        raise ValueError(f"model must be a model, got the class {model.__name__}: make one of it.")
    missing = [name for name in _MEMBERS if not hasattr(type(model), name) and not hasattr(model, name)]
    if not missing:
        return
    got = "a function" if callable(model) and hasattr(model, "__name__") else f"a {type(model).__name__}"
    packages = [f"{base.__module__}." for base in type(model).__mro__]
    line = next(
        (line for name, line in _MODULES.items() if any(package.startswith(f"{name}.") for package in packages)), None
    )
    if line is None and callable(model):
        line = "model = lrp_jax.trace(function, params, images), where function(params, images) gives logits"
    if line is None:
        others = f", which lacks {', '.join(missing)}" if len(missing) < len(_MEMBERS) else ""
        raise ValueError(
            f"model must be what lrp_jax.load or lrp_jax.trace gives, or have {', '.join(_MEMBERS)} (lrp_jax.Model); "
            f"got {got}{others}. The order of the arguments is model, params, images."
        )
    raise ValueError(f"model must be what lrp_jax.load or lrp_jax.trace gives, got {got}. Trace it first: {line}.")
