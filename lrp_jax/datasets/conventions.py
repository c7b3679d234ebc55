"""Which classes the folders of a dataset stand for.

What could be read in two ways is refused, or told: what was decided, and where another reading would differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lrp_jax.checks import listed
from lrp_jax.labels import Labels, Vocabulary, plain

_NAMED = ("name", "synset", "spelling")

_ORDER = "order of names, as torchvision's ImageFolder"

#: How folders that are no class by name may be read.
ORDERS = ("number", "order of numbers", _ORDER)

# How folders were read, and how else they could have been.
_RIVALS = {
    "class name": ("synset", "index"),
    "number": (_ORDER,),
    "order of numbers": ("index", _ORDER),
    _ORDER: ("order of numbers",),
}

_DIGITS = re.compile("[0-9]+")


class Convention(NamedTuple):
    """What the folders of a dataset mean.

    Attributes:
        title: how they were read.
        classes: the class of each folder.
        doubts: where another reading differs, a sentence each.
    """

    title: str
    classes: dict[str, int]
    doubts: list[str]


def of_folders(path: Path, folders: Sequence[str], labels: Labels) -> Convention:
    """The classes that folders stand for.

    All are named after classes (by name or synset; case, ``_``, ``-`` and blanks aside), or else none is, and there are
    as many as classes: in the order of their numbers, if all are numbers, or else of their names.

    Args:
        path: where they are, for messages.
        folders: their names.
        labels: of the model.

    Returns:
        The convention.

    Raises:
        ValueError: there is no such reading, a folder means several classes, or several folders mean one.
    """
    vocabulary, count = Vocabulary(labels), labels.num_classes
    found = {folder: vocabulary.find(folder, _NAMED) for folder in folders}
    strange = [folder for folder in folders if not found[folder]]
    if strange and len(strange) < len(folders):
        known = next(folder for folder in folders if found[folder])
        raise ValueError(
            f"{path}: {len(folders) - len(strange)} of {len(folders)} folders are named after the model's classes, "
            f"such as {known!r}, but not {listed(list(map(repr, strange)), 5)}."
        )
    if strange and len(folders) != count:
        raise ValueError(
            f"{path} holds {len(folders)} folders, the model has {count} classes, and {strange[0]!r} is none of their "
            "names."
        )
    numbers = {folder: int(folder) for folder in folders} if all(map(_DIGITS.fullmatch, folders)) else {}
    readings = _orders(folders, numbers) if strange else _names(path, found, vocabulary)
    title, classes = next(iter(readings.items()))
    for mapping in (classes, numbers if strange else {}):
        by_class: dict[int, str] = {}
        for folder, k in mapping.items():
            if by_class.setdefault(k, folder) != folder:
                raise ValueError(f"{path}: the folders {by_class[k]!r} and {folder!r} both mean {k}.")
    doubts = _doubts(path, title, readings | {"index": numbers})
    if title == _ORDER and labels.class_names:
        doubts.append(
            f"{path}: no folder is named after one of the model's classes ({listed(list(labels.class_names), 3)}); "
            f"they are taken by {title}."
        )
    return Convention(title, classes, doubts)


def _names(path: Path, found: dict[str, dict[str, list[int]]], vocabulary: Vocabulary) -> dict[str, dict[str, int]]:
    """The ways to read folders of which each is a name or a synset."""
    kinds = {"name": "class name", "synset": "synset"}
    fitting = [kind for kind in kinds if all(kind in some for some in found.values())]
    try:
        readings = {kinds[k]: {folder: vocabulary.index(folder, (k, "spelling")) for folder in found} for k in fitting}
        return readings or {"class name or synset": {folder: vocabulary.index(folder, _NAMED) for folder in found}}
    except ValueError as error:
        raise ValueError(f"{path}: the folder {error}") from None


def _orders(folders: Sequence[str], numbers: dict[str, int]) -> dict[str, dict[str, int]]:
    """The ways to read folders in their order."""
    natural = sorted(folders, key=_natural)
    by_number = (
        "number" if [numbers.get(folder) for folder in natural] == list(range(len(folders))) else "order of numbers"
    )
    orders = [(by_number, natural), (_ORDER, sorted(folders))]
    return {title: {folder: k for k, folder in enumerate(order)} for title, order in orders[:: 1 if numbers else -1]}


def _doubts(path: Path, title: str, readings: dict[str, dict[str, int]]) -> list[str]:
    """Where another reading differs from the one that was taken, a sentence each."""
    classes, doubts = readings[title], []
    for rival in _RIVALS.get(title, ()):
        other = readings.get(rival, {})
        differ = [folder for folder in classes if other.get(folder, classes[folder]) != classes[folder]]
        if differ:
            first = differ[0]
            doubts.append(
                f"{path}: the folder {first!r} is class {classes[first]} by {title}, but would be class {other[first]} "
                f"by {rival} ({len(differ)} of {len(classes)} folders differ); a file of labels says what is meant."
            )
    return doubts


def described(classes: dict[str, int], labels: Labels) -> str:
    """Folders and their classes, on one line; the first of many."""
    names = {folder: labels.class_name(k) for folder, k in classes.items()} if labels.class_names else {}
    return listed(
        [
            f"{folder} is {k}" + (f" ({names[folder]})" if plain(names.get(folder, folder)) != plain(folder) else "")
            for folder, k in classes.items()
        ]
    )


def _natural(name: str) -> list[str | int]:
    """A key that sorts by the numbers in names."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
