"""Words for errors: checks of the fields of configurations, each naming field, value and what was expected; lists."""

from __future__ import annotations

import json
import math
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


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which values are not what they were, by key; empty if all are. What JSON makes alike is alike."""
    said = json.loads(json.dumps(dict(now)))
    return ", ".join(f"{k} {before.get(k)!r}, not {v!r}" for k, v in said.items() if before.get(k) != v)


def set_field(config: Any, name: str, value: Any) -> None:
    """Set a field of a frozen dataclass that is being made."""
    object.__setattr__(config, name, value)
