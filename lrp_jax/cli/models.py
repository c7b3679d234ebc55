"""``--model``: what is explained, with what its pictures and logits are."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lrp_jax.checks import check_model
from lrp_jax.labels import Labels
from lrp_jax.model import Model, Params, of_pictures
from lrp_jax.pictures import Preprocessing
from lrp_jax.weights import load

_IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Loaded(NamedTuple):
    """A model that a command explains.

    Attributes:
        model: the model.
        params: its parameters.
        preprocessing: how images are made of pictures.
        labels: what the logits stand for.
    """

    model: Model
    params: Params
    preprocessing: Preprocessing
    labels: Labels


def load_model(source: str) -> Loaded:
    """What ``--model`` names.

    Args:
        source: ``"demo"``, the path of a checkpoint, or ``package.module:function``: a function without arguments that
            gives a model, its parameters, a :class:`lrp_jax.Preprocessing` and a :class:`lrp_jax.Labels`. Modules are
            looked for in the current folder as well.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no checkpoint, there is no such function, or it gives something else.
    """
    if Path(source).exists() or not _IMPORT.fullmatch(source):
        model, params = load(source)
        return Loaded(model, params, model.config, model.config)
    name, _, path = source.partition(":")
    found: Any = _module(name, source)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"--model {source}: {name} has no {path}.")
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError(f"--model {source}: expected a function, got a {type(found).__name__}.")
    found = found()
    if not isinstance(found, tuple) or len(found) != 4:
        got = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise ValueError(f"--model {source}: must give model, parameters, preprocessing and labels, four; got {got}.")
    try:
        check_model(found[0])
    except ValueError as error:
        raise ValueError(f"--model {source}: {error}") from None
    for value, kind in ((found[2], Preprocessing), (found[3], Labels)):
        if not isinstance(value, kind):
            raise ValueError(
                f"--model {source}: must give a model, parameters, a Preprocessing and Labels; got a "
                f"{type(value).__name__} instead of a {kind.__name__}."
            )
    model, *rest = found
    return Loaded(of_pictures(model), *rest)


def _module(name: str, source: str) -> Any:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that it needs
        raise ValueError(f"--model {source}: there is no module {error.name}, here or installed.") from None
    finally:
        sys.path.remove(here)
