"""Where in a file the weights of a model are: in the nests of training scripts, under the prefixes of wrappers.

A checkpoint may be a tree (``state_dict``, ``model_ema``, ``optimizer``), and names may begin with what wrapped the
model (``module.``, ``_orig_mod.``, ``backbone.``). One search finds both: a model is what stands under the prefix at
which a name is found that only a known family has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lrp_jax.checks import listed
from lrp_jax.files import plain
from lrp_jax.weights.pickles import Placeholder

_DEEPEST, _MOST = 64, 200_000  # levels, and nests and leaves together: no checkpoint comes near
# What stands behind others where several models are found: averages and second networks, which are asked for by name,
# but for the teacher of DINO, which is what is evaluated; and what optimisers keep of each weight.
_SECOND = {"model_ema", "state_dict_ema", "ema", "ema_model", "params_ema", "ema_params", "module_ema"}
_SECOND |= {"student", "momentum_encoder", "encoder_k", "target_encoder"}
_OF_OPTIMISERS = {"optimizer", "opt_state", "optimizer_state", "mu", "nu", "exp_avg", "exp_avg_sq", "param_states"}


class Found(NamedTuple):
    """The weights of one model.

    Attributes:
        arrays: by name, without what stands before all names.
        others: what stands beside them under the same prefix and is no array, likewise; None, for no array, aside.
        prefix: what that is.
        notes: what was chosen and left aside, a sentence each.
        beside: the names of arrays that stand beside what is wrapped, as a head beside a backbone.
    """

    arrays: dict[str, np.ndarray]
    others: dict[str, Any]
    prefix: str
    notes: list[str]
    beside: list[str]


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The leaves of nests by their paths, joined by slashes.

    Nests are mappings, and lists and tuples that hold arrays or nests. An array that is alone under ``value``, as NNX
    and the boxes of linen keep it, has the path of its box. A mapping within itself is left out there.

    Args:
        tree: names to arrays, to mappings, or to anything else.

    Returns:
        Path to leaf.

    Raises:
        ValueError: two leaves have one path, or there are more levels or leaves than a checkpoint has.
    """
    leaves: dict[str, Any] = {}
    # With each nest those around it, which are compared themselves: an id says nothing of what was made for one look,
    # as FrozenDict and nnx.State make their mappings.
    stack: list[tuple[str, Any, tuple[Any, ...]]] = [("", tree, ())]
    visited = 0
    while stack:
        path, value, around = stack.pop()
        visited += 1
        children = _children(value)
        if children is None:
            if path in leaves:
                raise ValueError(f"the source holds {path} twice, expected each name once.")
            leaves[path] = value
        elif not any(value is nest for nest in around):
            if len(around) == _DEEPEST or visited + len(stack) + len(children) > _MOST:
                raise ValueError(f"the source holds nests of more than {_DEEPEST} levels, or {_MOST:,} names in all.")
            below = [(f"{path}/{name}" if path else str(name), child, (*around, value)) for name, child in children]
            stack += reversed(below)
    return _unboxed(leaves)


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """Names and values of a nest; None: it is a leaf."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) and _holds_arrays(value) else None


def _holds_arrays(values: list[Any] | tuple[Any, ...], depth: int = 3) -> bool:
    """Whether a list holds arrays or mappings, itself or in lists of it: not one of numbers, as of losses."""
    return any(
        isinstance(v, Mapping)
        or (hasattr(v, "__array__") and not isinstance(v, np.generic))
        or (depth > 1 and isinstance(v, list | tuple) and _holds_arrays(v, depth - 1))
        for v in values
    )


def _unboxed(leaves: dict[str, Any]) -> dict[str, Any]:
    if not any(path.endswith(("/value", ".value")) for path in leaves):
        return leaves
    under = Counter(path[: match.start()] for path in leaves for match in re.finditer("[./]", path))
    unboxed = {}
    for path, leaf in leaves.items():
        box = path[: -len("/value")]
        is_boxed = path.endswith(("/value", ".value")) and under[box] == 1 and box not in leaves
        unboxed[box if is_boxed else path] = leaf
    return unboxed


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
    prefixes: dict[
        str, tuple[str, tuple[str, str]]
    ] = {}  # and the name that shows the model, and what to replace in it
    for name in leaves:
        for separators in (("", ""), ("/", "."), (".", "/")):
            if match := pattern.fullmatch(name.replace(*separators)):
                length = len(match["prefix"])
                prefixes.setdefault(name[:length], (name[length:], separators))
                break
    if not prefixes:
        return None
    chosen = [prefix for prefix in prefixes if key is None or _is_part(_words(key), _words(prefix))]
    if not chosen:
        raise ValueError(
            f"key must be a path to one of the models, {listed([_shown(prefix) for prefix in prefixes])}; got {key!r}."
        )
    prefix = min(chosen, key=_rank)
    sign, separators = prefixes[prefix]
    within = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    arrays: dict[str, np.ndarray] = {}
    others: dict[str, Any] = {}
    for name, leaf in leaves.items():
        short = name.removeprefix(prefix)
        # Beside plain names, what lies deeper is the training script's.
        if not name.startswith(prefix) or name.startswith(within) or ("/" in short and "/" not in sign):
            continue
        array, short = as_array(leaf), short.replace(*separators)
        if short in arrays or short in others:
            raise ValueError(f"the source holds {name} twice, once with dots for slashes.")
        if array is not None:
            arrays[short] = array
        elif leaf is not None:
            others[short] = leaf
    rivals = [p for p in chosen if p != prefix and not _rank(p)[0]]
    beside = _beside(leaves, prefix, rivals)
    return Found(arrays, others, prefix, _notes(prefix, rivals, beside), beside)


def as_array(leaf: Any) -> np.ndarray | None:
    """An array of NumPy, JAX, NNX or PyTorch as a plain one of NumPy; None for anything else."""
    if hasattr(leaf, "detach"):  # PyTorch's, which NumPy reads without its gradient, and has none of fewer bits
        dtype = getattr(jnp, str(leaf.dtype).removeprefix("torch."), None)
        narrow = dtype is not None and (dtype == jnp.bfloat16 or jnp.finfo(dtype).bits == 8)
        leaf = leaf.detach().cpu()
        return np.asarray(leaf.float()).astype(dtype) if narrow else plain(leaf)
    if not hasattr(leaf, "__array__") and hasattr(leaf, "value"):
        leaf = leaf.value  # a variable of older NNX, or a box of linen
    try:
        return plain(leaf) if hasattr(leaf, "__array__") else None
    except TypeError:  # a key of random numbers
        return None


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


def _beside(leaves: Mapping[str, Any], prefix: str, others: list[str]) -> list[str]:
    nest, _, wrapper = prefix.rpartition("/")
    beside = nest + "/" if nest else ""
    return [
        name.removeprefix(beside)
        for name, leaf in leaves.items()
        if wrapper and name.startswith(beside) and not name.startswith((prefix, *others)) and as_array(leaf) is not None
    ]


def _notes(prefix: str, others: list[str], left: list[str]) -> list[str]:
    wrapper, notes = prefix.rpartition("/")[2], []
    if others:
        notes.append(
            f"the weights under {_shown(prefix)} are taken, there are others under "
            f"{listed([_shown(other) for other in others])}; key= or --key chooses"
        )
    elif wrapper:
        notes.append(f"the names of the weights begin with {wrapper!r}, which is left out")
    if left:
        notes.append(f"{len(left)} arrays beside these weights are left aside: {listed(left, 5)}")
    return notes
