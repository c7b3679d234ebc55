"""What the arguments of several commands mean."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.datasets import pictures_in
from lrp_jax.files import DATA
from lrp_jax.labels import Labels, Vocabulary
from lrp_jax.methods import METHODS
from lrp_jax.pictures import Levels, Picture, Preprocessing, checked_levels, preprocess, read_picture

_OUTPUTS = 8  # of a regression, at most, that are explained without being named


class Pair(argparse.Action):
    """Keeps two numbers if they are the samples that are black and white."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Check an option that is given."""
        black, white = map(float, values or ())
        try:
            setattr(namespace, self.dest, checked_levels((black, white)))
        except ValueError as error:
            parser.error(f"argument {option_string}: {error}")


class Collect(argparse.Action):
    """Collects options that are given in one mapping, each under its ``const``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add an option that is given."""
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), self.const: values})


def add_model(command: argparse.ArgumentParser) -> None:
    """``--model``."""
    command.add_argument(
        "--model",
        default="demo",
        help="'demo', the path of a checkpoint, or package.module:function, which gives model, parameters, "
        "preprocessing and labels (default: demo)",
    )


def add_classes(command: argparse.ArgumentParser, *, default: str = "") -> None:
    """``--target`` and ``--top-k``; ``default``: what else is explained where neither is given."""
    command.add_argument(
        "--target",
        action="append",
        metavar="CLASS",
        help="explain this class, by name or index; may be given several times (default: "
        f"{default}the most probable ones; of a regression all)",
    )
    command.add_argument(
        "--top-k",
        type=positive,
        metavar="K",
        help="explain the K most probable classes, instead of --target (default: 2, if it has two)",
    )


def targets_in(options: argparse.Namespace, labels: Labels, vocabulary: Vocabulary) -> tuple[list[int], int]:
    """The classes of ``--target``, each once, and how many of the most probable ones to explain without."""
    if options.target and options.top_k:
        raise ValueError("--target and --top-k exclude each other: the classes are given, or the most probable ones.")
    classes = list(dict.fromkeys(class_index("--target", word, vocabulary) for word in options.target or ()))
    if labels.regression:
        if options.top_k:
            raise ValueError("--top-k is for classes: the model's outputs are numbers, none is the most probable.")
        if not classes and labels.num_classes > _OUTPUTS:
            raise ValueError(f"the model's {labels.num_classes} outputs are numbers: say by --target which to explain.")
        classes = classes or list(range(labels.num_classes))
    count = options.top_k or min(2, labels.num_classes)
    if count > labels.num_classes:
        raise ValueError(f"--top-k must be at most the model's {labels.num_classes} classes, got {count}.")
    return classes, count


def class_index(option: str, word: str, vocabulary: Vocabulary) -> int:
    """The class of a name or an index."""
    try:
        return vocabulary.index(word)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def add_method(command: argparse.ArgumentParser) -> None:
    """``--method``, and a flag for every option of any method; those given are ``method_options``."""
    command.add_argument(
        "--method",
        choices=list(METHODS),
        default="transformer_attribution",
        metavar="METHOD",
        help="see lrp-jax methods (default: %(default)s)",
    )
    add_method_options(command)


def add_method_options(command: argparse.ArgumentParser) -> None:
    """A flag for every option of any method; those given are ``method_options``."""
    command.set_defaults(method_options={})
    group = command.add_argument_group("options of methods (with their defaults)")
    takers: dict[str, list[str]] = {}
    for method in METHODS.values():
        for option, default in method.options.items():
            takers.setdefault(option, []).append(f"{method.name} ({default})")
    for option, methods in takers.items():
        group.add_argument(
            flag(option),
            action=Collect,
            dest="method_options",
            const=option,
            type=value,
            metavar="VALUE",
            help=", ".join(methods),
        )


def add_batch_size(command: argparse.ArgumentParser, what: str) -> None:
    """``--batch-size``."""
    command.add_argument(
        "--batch-size", type=positive, default=8, metavar="B", help=f"images {what} at once (default: 8)"
    )


def add_images(command: argparse.ArgumentParser) -> None:
    """The pictures, see :func:`pictures_named`."""
    command.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")


def add_levels(command: argparse.ArgumentParser) -> None:
    """``--levels``."""
    command.add_argument(
        "--levels",
        nargs=2,
        action=Pair,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="the samples that are black and white in pictures of more than 8 bits, such as 0 4095 (default: as the "
        "file says, else all of its 16 bits)",
    )


def pictures_named(arguments: Sequence[Path], channels: int) -> list[Path]:
    """The files named, and those in the folders named; without any, those that come with the package.

    Args:
        arguments: files and folders.
        channels: of the model.
    """
    paths = []
    for argument in arguments or [DATA / "examples"]:
        if argument.is_dir():
            paths += pictures_in(argument, channels=channels)
        elif argument.exists():
            paths.append(argument)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(argument))
    unique: dict[Path, Path] = {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def image_in(path: Path, preprocessing: Preprocessing, levels: Levels | None) -> tuple[Picture, np.ndarray]:
    """What a file holds, and the image for the model ``[H, W, channels]``."""
    found = read_picture(path, preprocessing.channels, levels=levels)
    try:
        return found, preprocess(found, preprocessing).astype(np.float32)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise ValueError(
            f"{path} holds floating-point numbers, an image that is normalised for the model: {said}; of pixels, "
            "--levels says what is black and what is white."
        ) from error


def check_one_map(options: argparse.Namespace) -> None:
    """Refuse what gives several maps for a class, as a panel shows one."""
    for option in ("stages", "position"):
        if options.method_options.get(option):
            raise ValueError(f"{flag(option)} gives several maps for a class, which are no panel: use it in Python.")


def check_destination(path: Path, *, force: bool, called: str = "DEST") -> None:
    """Refuse a file that cannot be written, or that is there, unless it may be replaced."""
    if path.is_dir():
        raise ValueError(f"{called} must be a file, {path} is a folder.")
    if path.exists() and not force:
        raise ValueError(f"{path} exists: --force replaces it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def flag(name: str) -> str:
    """The flag of an option's name."""
    return f"--{name.replace('_', '-')}"


def value(text: str) -> Any:
    """A number, a truth value, a tuple of them, or else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
    return tuple(value) if isinstance(value, list) else value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)
