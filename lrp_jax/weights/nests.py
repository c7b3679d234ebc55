"""Where in a file the weights of a model are: in the nests of training scripts, under the prefixes of wrappers.

A checkpoint may be a tree (``state_dict``, ``model_ema``, ``optimizer``), and names may begin with what wrapped the
model (``module.``, ``_orig_mod.``, ``backbone.``). One search finds both: a model is what stands under the prefix at
which a name is found that only a known family has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lrp_jax.checks import listed
from lrp_jax.weights.pickles import Placeholder

_DEEPEST = 16
# What stands behind others where several models are found: averages and second networks, which are asked for by name,
# but for the teacher of DINO, which is what is evaluated; and what optimisers keep of each weight.
_SECOND = {"model_ema", "state_dict_ema", "ema", "ema_model", "params_ema", "ema_params", "module_ema"}
_SECOND |= {"student", "momentum_encoder", "encoder_k", "target_encoder"}
_OF_OPTIMISERS = {"optimizer", "opt_state", "optimizer_state", "mu", "nu", "exp_avg", "exp_avg_sq", "param_states"}


class Found(NamedTuple):
    """The weights of one model.

    Attributes:
        arrays: by name, without what stands before all names.
        prefix: what that is.
        notes: what was chosen and left aside, a sentence each.
    """

    arrays: dict[str, np.ndarray]
    prefix: str
    notes: list[str]


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The leaves of nested mappings by their paths, joined by slashes; each mapping once, and lists aside.

    Args:
        tree: names to arrays, to mappings, or to anything else.

    Returns:
        Path to leaf.
    """
    leaves: dict[str, Any] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    while stack:
        path, value, depth = stack.pop()
        if not isinstance(value, Mapping):
            leaves[path] = value
        elif id(value) not in seen and depth < _DEEPEST:
            seen.add(id(value))
            items = [(f"{path}/{name}" if path else str(name), child, depth + 1) for name, child in value.items()]
            stack += reversed(items)
    return leaves


def find(tree: Mapping[Any, Any], signs: Iterable[str], key: str | None = None) -> Found | None:
    """The weights of the model in a tree.

    Args:
        tree: names to arrays, to mappings, or to anything else.
        signs: patterns of names, of which each model has one.
        key: which model, where there are several: a path to it, or any part of its path.

    Returns:
        What was found; None if there is no model.

    Raises:
        ValueError: no model is under ``key``, or a weight is of a kind that is not read.
    """
    leaves = flatten(tree)
    # A prefix is as short as can be: some families begin with one of their own.
    pattern = re.compile(rf"(?P<prefix>(?:.*?[./])??)(?:{'|'.join(signs)})")
    prefixes: dict[str, tuple[str, bool]] = {}  # and the name that shows the model, and whether with dots for slashes
    for name in leaves:
        for form in dict.fromkeys((name, name.replace("/", "."))):
            if match := pattern.fullmatch(form):
                length = len(match["prefix"])
                prefixes.setdefault(name[:length], (name[length:], form != name))
    if not prefixes:
        return None
    chosen = [prefix for prefix in prefixes if key is None or _is_part(_words(key), _words(prefix))]
    if not chosen:
        raise ValueError(
            f"key must be a path to one of the models, {listed([_shown(prefix) for prefix in prefixes])}; got {key!r}."
        )
    prefix = min(chosen, key=_rank)
    sign, dotted = prefixes[prefix]
    within = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    arrays: dict[str, np.ndarray] = {}
    for name, leaf in leaves.items():
        short = name.removeprefix(prefix)
        # Beside plain names, what lies deeper is the training script's.
        if not name.startswith(prefix) or name.startswith(within) or ("/" in short and "/" not in sign):
            continue
        array = as_array(leaf)
        if array is not None:
            arrays[short.replace("/", ".") if dotted else short] = array
        elif isinstance(leaf, Placeholder) and re.search(r"[./](weight|bias|kernel|gamma)$|_(token|embed)$", name):
            raise ValueError(f"{name} is a {leaf.origin}, which is not read: weights must be tensors.")
    return Found(arrays, prefix, _notes(leaves, prefix, [p for p in chosen if p != prefix and not _rank(p)[0]]))


def as_array(leaf: Any) -> np.ndarray | None:
    """An array of NumPy, JAX or PyTorch as NumPy's; None for anything else."""
    if hasattr(leaf, "detach"):  # PyTorch's, which NumPy reads without its gradient, and has no bfloat16
        is_bfloat16 = str(leaf.dtype) == "torch.bfloat16"
        leaf = np.asarray(leaf.detach().cpu().float() if is_bfloat16 else leaf.detach().cpu())
        return leaf.astype(jnp.bfloat16) if is_bfloat16 else leaf
    return np.asarray(leaf) if hasattr(leaf, "__array__") else None


def contents(tree: Mapping[Any, Any]) -> list[str]:
    """What a tree without a model holds, for messages: names of arrays, and what was not read."""
    leaves = flatten(tree)
    arrays = sorted(name for name, leaf in leaves.items() if as_array(leaf) is not None)
    return [f"{name} (a {leaf.origin})" for name, leaf in leaves.items() if isinstance(leaf, Placeholder)] + arrays


def _words(path: str) -> list[str]:
    return [word for word in re.split("[./]", path) if word]


def _is_part(words: list[str], path: list[str]) -> bool:
    return any(path[i : i + len(words)] == words for i in range(len(path) - len(words) + 1))


def _shown(prefix: str) -> str:
    return repr(prefix.rstrip("./")) if prefix else "the top"


def _rank(prefix: str) -> tuple[bool, bool]:
    """What an optimiser keeps comes last, averages and second networks before it; else the file's order counts."""
    words = set(_words(prefix))
    return bool(words & _OF_OPTIMISERS), bool(words & _SECOND)


def _notes(leaves: Mapping[str, Any], prefix: str, others: list[str]) -> list[str]:
    nest, _, wrapper = prefix.rpartition("/")
    notes = []
    if others:
        notes.append(
            f"the weights under {_shown(prefix)} are taken, there are others under "
            f"{listed([_shown(other) for other in others])}; key= or --key chooses"
        )
    elif wrapper:
        notes.append(f"the names of the weights begin with {wrapper!r}, which is left out")
    beside = nest + "/" if nest else ""
    left = [
        name.removeprefix(beside)
        for name, leaf in leaves.items()
        if wrapper and name.startswith(beside) and not name.startswith((prefix, *others)) and as_array(leaf) is not None
    ]
    if left:
        notes.append(f"{len(left)} arrays beside these weights are left aside: {listed(left, 5)}")
    return notes
