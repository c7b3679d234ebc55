"""What the logits of a model stand for: classes, their names, and which class a word means.

A class is called by its name, by its synset if the model has the 1,000 classes of ImageNet-1k, or by its index. What
could mean two classes is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.checks import check_positive, check_truth, listed, set_field
from lrp_jax.files import DATA, read_text


class Caption(NamedTuple):
    """What a map explains; as text, a line under the map.

    Attributes:
        name: of the class, or of the direction of the output.
        score: its probability, or else its value.
        is_probability: which.
    """

    name: str
    score: float
    is_probability: bool

    def __str__(self) -> str:
        return f"{self.name} {self.score:{'.1%' if self.is_probability else '.4g'}}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """What the logits of a model stand for. Hashable. A :class:`lrp_jax.ViTConfig` is one, of its model.

    Attributes:
        num_classes: logits C.
        multi_label: whether the classes are independent (a sigmoid each) instead of exclusive (one softmax).
        regression: whether the outputs are numbers, such as measurements, instead of classes: they have no
            probabilities, and none is the most probable.
        class_names: one per class or output, or empty.

    Raises:
        ValueError: a field has a wrong type or value.
    """

    num_classes: int = 1000
    multi_label: bool = False
    regression: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_positive(self, "num_classes")
        check_truth(self, "multi_label", "regression")
        if self.multi_label and self.regression:
            raise ValueError("multi_label and regression exclude each other: outputs are classes or numbers.")
        if isinstance(self.class_names, str):
            raise ValueError(f"class_names must be a sequence of names, got {self.class_names!r}.")
        set_field(self, "class_names", tuple(map(str, self.class_names)))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names must hold {self.num_classes} names or none, got {len(self.class_names)}.")

    @property
    def has_probabilities(self) -> bool:
        """Whether logits stand for classes: numbers do not, nor does a single output that is not multi-label."""
        return not self.regression and (self.num_classes > 1 or self.multi_label)

    def probabilities(self, logits: ArrayLike) -> Array:
        """Of each class: a sigmoid of its logit if there are multiple labels, else the softmax.

        Args:
            logits: ``[..., C]``.

        Returns:
            ``[..., C]``.

        Raises:
            ValueError: the outputs are numbers, or the model has a single one, and it is not multi-label.
        """
        if not self.has_probabilities:
            several = self.num_classes > 1
            what = (
                "the outputs of a regression have no probabilities" if several else "a single output has no probability"
            )
            raise ValueError(f"{what}{'' if self.regression else ', unless the model is multi_label'}.")
        return (jax.nn.sigmoid if self.multi_label else jax.nn.softmax)(jnp.asarray(logits))

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where classes have no names."""
        unnamed = (
            f"class {index}" if self.has_probabilities else f"output {index}" if self.num_classes > 1 else "output"
        )
        return self.class_names[index] if self.class_names else unnamed

    def caption(self, target: ArrayLike, logits: np.ndarray) -> Caption:
        """What is explained, and how much the model says of it.

        Args:
            target: a class, int; or weights of the logits, float ``[C]``.
            logits: ``[C]``.

        Returns:
            A class's name and probability, or the output itself, if it is a number; of weights, the name of the
            largest and what it is set against, and the weighted sum of the logits.
        """
        weights = np.asarray(target)
        if weights.ndim:
            return Caption(self._direction_name(weights), float(np.dot(weights, logits)), False)
        scores = self.probabilities(logits) if self.has_probabilities else logits
        return Caption(self.class_name(int(weights)), float(scores[weights]), self.has_probabilities)

    def _direction_name(self, weights: np.ndarray) -> str:
        speaks_for = self.class_name(int(weights.argmax())) if weights.max() > 0 else ""
        against = self.class_name(int(weights.argmin())) if weights.min() < 0 else ""
        if not against:
            return speaks_for
        return f"{speaks_for} rather than {against}" if speaks_for else f"against {against}"


def imagenet_classes() -> list[tuple[str, str]]:
    """The synset and the name of each class of ImageNet-1k, in the order of its indices."""
    lines = read_text(DATA / "imagenet1k.txt").splitlines()
    return [(synset, name) for synset, _, name in (line.partition(" ") for line in lines)]


def class_names_in(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of classes in a file, one a line, in the order of their indices.

    Args:
        path: the file; blank lines at its end do not count.

    Returns:
        The names.

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, holds no names, or has a blank line among them.
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if "" in names:
        raise ValueError(f"{path}, line {names.index('') + 1}: expected the name of a class, got a blank line.")
    return tuple(names)


class Vocabulary:
    """What the classes of a model are called: by kind, the classes that a word means.

    Args:
        labels: of the model.
    """

    def __init__(self, labels: Labels) -> None:
        self.names, self.count = labels.class_names, labels.num_classes
        synsets = [synset for synset, _ in imagenet_classes()] if self.count == 1000 else []
        self.known = {
            "name": _places(map(composed, self.names)),
            "synset": _places(synsets),
            "index": _places(map(str, range(self.count))),
        }
        self.alike = _places(map(plain, self.names))

    def find(self, word: str, kinds: Sequence[str] = ("name", "synset", "index")) -> dict[str, list[int]]:
        """The classes that a word means, by kind.

        Args:
            word: the word; ``index:3``, likewise ``name:`` and ``synset:``, says which kind it is of.
            kinds: to look among, ``"name"``, ``"synset"`` and ``"index"``. Among them, ``"spelling"`` also takes a
                name that differs in case, ``_``, ``-`` and blanks, for a word that nothing is exactly.

        Returns:
            The classes by kind; empty if it means none.
        """
        word = composed(word)
        kind, _, rest = word.partition(":")
        if rest and self.known.get(kind) and word not in self.known["name"]:
            word, kinds = rest, (kind,)
        keys = {"name": word, "synset": word, "index": number_in(word)}
        found = {k: self.known[k][keys[k]] for k in kinds if k in keys and keys[k] in self.known[k]}
        if not found and "spelling" in kinds and plain(word) in self.alike:
            found = {"name": self.alike[plain(word)]}
        return found

    def index(self, word: str, kinds: Sequence[str] = ("name", "synset", "index")) -> int:
        """The class that a word means.

        Args:
            word: as in :meth:`find`.
            kinds: as in :meth:`find`.

        Returns:
            Its index.

        Raises:
            ValueError: the word means no class, or several.
        """
        found = self.find(word, kinds)
        classes = sorted({k for places in found.values() for k in places})
        if len(classes) == 1:
            return classes[0]
        if classes:
            meanings = " and ".join(f"the {kind} of class {' and '.join(map(str, k))}" for kind, k in found.items())
            ways = " or ".join(f"index:{k}" for k in classes)
            raise ValueError(f"{word!r} is {meanings}: say {ways}.")
        spelled = {plain(name): name for name in self.names}
        close = [spelled[name] for name in difflib.get_close_matches(plain(word), spelled, n=3)] or self.names[:3]
        expected = {
            "index": f"an index 0 to {self.count - 1}",
            "synset": "a synset",
            "name": f"a class name ({', '.join(close)}, ...)",
        }
        ways = " or ".join(text for kind, text in expected.items() if kind in kinds and self.known[kind])
        raise ValueError(f"expected {ways}; got {word!r}.")

    def shared(self) -> list[str]:
        """The names that several classes have, with their indices."""
        return [f"{name!r} ({listed(list(map(str, k)))})" for name, k in self.known["name"].items() if len(k) > 1]


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Where each name stands."""
    places = defaultdict(list)
    for k, name in enumerate(names):
        places[name].append(k)
    return dict(places)


def composed(text: str) -> str:
    """Accented letters in one form: file systems and spreadsheets differ in it."""
    return unicodedata.normalize("NFC", text)


def plain(text: str) -> str:
    """Without case and without what stands between words."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def number_in(word: str) -> str:
    """A word that is a whole number, in its shortest form; else ''."""
    match = re.fullmatch(r"0*([0-9]{1,9})(\.0*)?", word)
    return match[1] if match else ""
