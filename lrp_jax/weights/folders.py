"""Folders of weights: the checkpoints of Orbax, which most JAX code saves today.

Orbax writes a tree of arrays as a folder. ``CheckpointManager`` and composite checkpoints put several trees side by
side (``params``, ``opt_state``), each in a folder of its name, and each step of a training in a folder of its number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrp_jax.checks import listed
from lrp_jax.files import needs

_TREE = "_METADATA"  # beside the arrays of each tree
_UNFINISHED = ".orbax-checkpoint-tmp"
_STEPS = "_CHECKPOINT_METADATA"  # of each step, whether it is a tree or holds several


def read_folder(path: Path) -> dict[str, Any]:
    """What a checkpoint of Orbax holds.

    Args:
        path: a folder: a tree, a step with several trees, or a training of which one step was kept.

    Returns:
        Names to arrays, or to mappings of them; of several trees, by their names.

    Raises:
        ImportError: Orbax is not installed.
        ValueError: the folder holds no checkpoint of Orbax, those of several steps, or one that cannot be read.
    """
    if _UNFINISHED in path.name:
        raise ValueError(f"{path} was left by a save that Orbax did not finish: give a finished checkpoint.")
    if (path / _TREE).is_file():
        return _read_tree(path)
    inside = sorted(it for it in path.iterdir() if it.is_dir() and _UNFINISHED not in it.name)
    trees = [it for it in inside if (it / _TREE).is_file()]
    numbered = [it for it in inside if re.search(r"\d$", it.name) and (it in trees or any(it.glob(f"*/{_TREE}")))]
    if numbered and not (path / _STEPS).exists():
        if len(numbered) == 1:
            return read_folder(numbered[0])
        steps = listed([it.name for it in sorted(numbered, key=lambda it: (len(it.name), it.name))])
        raise ValueError(f"{path} holds the checkpoints of several steps: give one of its folders, {steps}.")
    if trees:
        return {it.name: _read_tree(it) for it in trees}
    files = listed(sorted(it.name for it in path.iterdir() if it.is_file()), 5)
    weights = f"the file of weights in it, of {files}" if files else "the file of weights"
    raise ValueError(f"{path} is a folder without a checkpoint of Orbax: give {weights}.")


def _read_tree(path: Path) -> dict[str, Any]:
    orbax = needs("orbax.checkpoint", extra="orbax")
    path = path.absolute()
    try:
        reader = orbax.PyTreeCheckpointHandler()
        found = reader.metadata(path)
        described = getattr(found, "tree", found)
        # As arrays of NumPy, whatever devices the checkpoint was saved from.
        wanted = jax.tree.map(
            lambda it: orbax.RestoreArgs(restore_type=np.ndarray) if hasattr(it, "shape") else orbax.RestoreArgs(),
            described,
        )
        tree = reader.restore(path, args=orbax.args.PyTreeRestore(restore_args=wanted))
    except Exception as error:  # a damaged checkpoint fails in any way
        raise ValueError(f"{path} is a checkpoint of Orbax that cannot be read: {str(error)[:300]}") from error
    return dict(tree) if isinstance(tree, Mapping) else {"tree": tree}
