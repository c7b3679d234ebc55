"""Which class a word, a folder or a line of a file means.

A class is called by its name, by its synset if the model has the 1,000 classes of ImageNet-1k, or by its index. What
could mean two classes is refused; what was decided is told, and where another reading would differ.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lrp_jax.checkpoint import listed
from lrp_jax.files import needs, read_text
from lrp_jax.vit import ViTConfig

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

# What the columns of a file of labels are called, without case and what is between words; the best first.
_PICTURE_COLUMNS = (
    *("filename", "file", "filepath", "path", "image", "imagename", "imagefile", "imagepath", "picture", "img"),
    *("imageid", "imgid", "id", "name"),
)
_LABEL_COLUMNS = (
    *("label", "labels", "labelid", "labelname", "class", "classid", "classname", "classindex", "target", "category"),
    *("categoryid", "categoryname", "synset", "wnid", "predictionstring"),
)
_DIGITS = re.compile("[0-9]+")
_BOXES = re.compile(r"\S+( -?[\d.]+){4}( \S+( -?[\d.]+){4})*")  # as in LOC_val_solution.csv

# What of a line and what of a picture's path must agree, the surest first.
_LIKENESS: tuple[tuple[Callable[[PurePosixPath], str], Callable[[PurePosixPath], str]], ...] = (
    (str, str),
    (lambda name: name.name, lambda picture: picture.name),
    (lambda name: name.name, lambda picture: picture.stem),
    (lambda name: name.stem, lambda picture: picture.stem),
)


def imagenet_classes() -> list[tuple[str, str]]:
    """The synset and the name of each class of ImageNet-1k, in the order of its indices."""
    lines = read_text(Path(__file__).parent / "data" / "imagenet1k.txt").splitlines()
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
        config: of the model.
    """

    def __init__(self, config: ViTConfig) -> None:
        self.names, self.count = config.class_names, config.num_classes
        synsets = [synset for synset, _ in imagenet_classes()] if self.count == 1000 else []
        self.known = {
            "name": _places(map(_composed, self.names)),
            "synset": _places(synsets),
            "index": _places(map(str, range(self.count))),
        }
        self.alike = _places(map(_plain, self.names))

    def find(self, word: str, kinds: Sequence[str] = ("name", "synset", "index")) -> dict[str, list[int]]:
        """The classes that a word means, by kind.

        Args:
            word: the word; ``index:3``, likewise ``name:`` and ``synset:``, says which kind it is of.
            kinds: to look among, ``"name"``, ``"synset"`` and ``"index"``. Among them, ``"spelling"`` also takes a
                name that differs in case, ``_``, ``-`` and blanks, for a word that nothing is exactly.

        Returns:
            The classes by kind; empty if it means none.
        """
        word = _composed(word)
        kind, _, rest = word.partition(":")
        if rest and self.known.get(kind) and word not in self.known["name"]:
            word, kinds = rest, (kind,)
        keys = {"name": word, "synset": word, "index": _number(word)}
        found = {k: self.known[k][keys[k]] for k in kinds if k in keys and keys[k] in self.known[k]}
        if not found and "spelling" in kinds and _plain(word) in self.alike:
            found = {"name": self.alike[_plain(word)]}
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
        spelled = {_plain(name): name for name in self.names}
        close = [spelled[name] for name in difflib.get_close_matches(_plain(word), spelled, n=3)] or self.names[:3]
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


def of_folders(path: Path, folders: Sequence[str], config: ViTConfig) -> Convention:
    """The classes that folders stand for.

    All are named after classes (by name or synset; case, ``_``, ``-`` and blanks aside), or else none is, and there are
    as many as classes: in the order of their numbers, if all are numbers, or else of their names.

    Args:
        path: where they are, for messages.
        folders: their names.
        config: of the model.

    Returns:
        The convention.

    Raises:
        ValueError: there is no such reading, a folder means several classes, or several folders mean one.
    """
    vocabulary, count = Vocabulary(config), config.num_classes
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
    if title == _ORDER and config.class_names:
        doubts.append(
            f"{path}: no folder is named after one of the model's classes ({listed(list(config.class_names), 3)}); "
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


def described(classes: dict[str, int], config: ViTConfig) -> str:
    """Folders and their classes, on one line; the first of many."""
    names = {folder: config.class_name(k) for folder, k in classes.items()} if config.class_names else {}
    return listed(
        [
            f"{folder} is {k}" + (f" ({names[folder]})" if _plain(names.get(folder, folder)) != _plain(folder) else "")
            for folder, k in classes.items()
        ]
    )


class _Row(NamedTuple):
    """A line of a file of labels: its number, the picture that it names ('' in the development kit's), its label."""

    line: int
    name: str
    word: str


def of_pictures(
    path: Path, pictures: Sequence[PurePosixPath], folder: Path, config: ViTConfig
) -> tuple[list[int], str]:
    """The classes of pictures by a file of labels.

    Args:
        path: the file: see :class:`lrp_jax.datasets.ImageNetFolder`.
        pictures: their paths below ``folder``, sorted.
        folder: where they are.
        config: of the model.

    Returns:
        Their classes, and a sentence on what was read.

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, a line is not understood, a picture has no label or several, or a label is not one
            class of the model.
    """
    rows, vocabulary = _rows(path), Vocabulary(config)
    if not rows[0].name:
        classes = _by_number(path, rows, len(pictures), folder, vocabulary)
        return classes, f"{len(rows)} labels, by number of the development kit"
    root = f"{folder.resolve().name}/"
    names = [PurePosixPath(str(_posix(row.name)).removeprefix(root)) for row in rows]
    found = paired(pictures, names, lambda i: f"{path}, line {rows[i].line}: {rows[i].name!r}")
    missing = [str(picture) for picture, places in zip(pictures, found, strict=True) if not places]
    if missing:
        raise ValueError(
            f"{path} has no label of {listed(missing, 5)} ({len(missing)} of {len(pictures)} pictures); line "
            f"{rows[0].line} is of {rows[0].name!r}."
        )
    kinds = _kinds(path, rows, {rows[i].word for places in found for i in places}, vocabulary)
    classes = []
    for picture, places in zip(pictures, found, strict=True):
        each = {_class(path, rows[i], vocabulary, kinds): rows[i].line for i in places}
        if len(each) > 1:
            told = " and ".join(f"class {k} in line {line}" for k, line in each.items())
            raise ValueError(f"{path}: {picture} is {told}.")
        classes += each
    used = sum(map(len, found))
    others = f", {len(rows) - used} of them of pictures that are not there" if used < len(rows) else ""
    return classes, f"{len(rows)} labels, by {' or '.join(kinds)}{others}"


def _kinds(path: Path, rows: Sequence[_Row], words: set[str], vocabulary: Vocabulary) -> list[str]:
    """The kinds that all the words are of, or else all kinds; refuses numbers that begin at 1."""
    kinds = [kind for kind in vocabulary.known if all(vocabulary.find(word, (kind,)) for word in words)]
    numbers = [int(number) for row in rows if (number := _number(row.word))]
    count = vocabulary.count
    if "name" not in kinds and len(numbers) == len(rows) and min(numbers) > 0 and max(numbers) == count:
        raise ValueError(f"{path} numbers the classes from 1 to {count}, expected 0 to {count - 1}: take 1 from each.")
    return kinds or [kind for kind, known in vocabulary.known.items() if known]


def _class(path: Path, row: _Row, vocabulary: Vocabulary, kinds: Sequence[str]) -> int:
    try:
        return vocabulary.index(row.word, (*kinds, "spelling"))
    except ValueError as error:
        raise ValueError(f"{path}, line {row.line}: {error}") from None


def _by_number(path: Path, rows: Sequence[_Row], pictures: int, folder: Path, vocabulary: Vocabulary) -> list[int]:
    """The classes of the development kit's labels, a number for each picture in sorted order."""
    if len(rows) != pictures:
        raise ValueError(f"{path} has {len(rows)} labels, {folder} holds {pictures} pictures.")
    if vocabulary.count != 1000:
        raise ValueError(f"{path} numbers the classes of ImageNet-1k, the model has {vocabulary.count} classes.")
    synsets, known = _development_kit(path.with_name("meta.mat")), vocabulary.known["synset"]
    for row in rows:
        if synsets.get(int(row.word)) not in known:
            raise ValueError(f"{path}, line {row.line}: {row.word} is no class of ImageNet-1k in meta.mat beside it.")
    return [known[synsets[int(row.word)]][0] for row in rows]


def _development_kit(path: Path) -> dict[int, str]:
    """The synset of each number in the labels of ImageNet's development kit."""
    loadmat = needs("scipy.io", extra="evaluate").loadmat
    with open(path, "rb") as file:
        try:
            return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in loadmat(file, squeeze_me=True)["synsets"]}
        except Exception as error:  # the reader raises nearly any
            raise ValueError(f"{path} is not the development kit's: {error}") from error


def _rows(path: Path) -> list[_Row]:
    """The lines of a file of labels that are not blank, no comment and no header."""
    numbered = enumerate(map(str.strip, read_text(path).split("\n")), 1)
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} holds no labels.")
    if all(re.fullmatch(r"[0-9]{1,9}", line) for _, line in lines):
        return [_Row(number, "", line) for number, line in lines]
    bare = [re.sub(r'"[^"]*"', "", line) for _, line in lines]
    delimiter = next((mark for mark in "\t;," if 2 * sum(mark in line for line in bare) >= len(bare)), " ")
    table = [(number, _fields(path, number, line, delimiter)) for number, line in lines]
    columns = _columns(path, *table[0])
    rows = []
    for number, fields in table[1:] if columns else table:
        name, word, width = columns or (0, 1, 2)
        if not max(name, word) < len(fields) <= width or not fields[name] or not fields[word]:
            raise ValueError(
                f"{path}, line {number}: expected a picture and its class, got {listed(list(map(repr, fields)), 4)}. "
                "A comma within a name needs quotes; other columns, a first line that names all, as 'filename,label'."
            )
        rows.append(_Row(number, fields[name], _without_boxes(path, number, fields[word])))
    if not rows:
        raise ValueError(f"{path} holds no labels.")
    return rows


def _fields(path: Path, number: int, line: str, delimiter: str) -> list[str]:
    """The fields of a line. Between blanks the last word is the label: a picture's name may hold some."""
    if delimiter == " ":
        match = re.fullmatch(r'(.*?\S)\s+("[^"]*"|\S+)', line)
        return [field.strip('"') for field in match.groups()] if match else [line]
    line = line.rstrip(f" {delimiter}")  # empty columns at the end
    try:
        (fields,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise ValueError(f"{path}, line {number}: {error}.") from error
    return [field.strip() for field in fields]


def _columns(path: Path, number: int, fields: Sequence[str]) -> tuple[int, int, int] | None:
    """Where a header has pictures and labels, and how many columns; None: it is no header."""
    titles = [_plain(field).replace(" ", "") for field in fields]
    names = [title for title in _PICTURE_COLUMNS if title in titles]
    words = [c for c, title in enumerate(titles) if title in _LABEL_COLUMNS]
    if not names or not words:
        return None
    if len(words) > 1:
        both = " and ".join(repr(fields[c]) for c in words)
        raise ValueError(f"{path}, line {number}: the columns {both} could be the label: leave one.")
    return titles.index(names[0]), words[0], len(fields)


def _without_boxes(path: Path, number: int, label: str) -> str:
    """The class of a label that may have boxes behind it, as in ``LOC_val_solution.csv``."""
    parts = label.split()
    if not _BOXES.fullmatch(" ".join(parts)):
        return label
    if len(set(parts[::5])) > 1:
        raise ValueError(f"{path}, line {number}: expected boxes of one class, got {listed(sorted(set(parts[::5])))}.")
    return parts[0]


def paired(
    pictures: Sequence[PurePosixPath], names: Sequence[PurePosixPath], told: Callable[[int], str]
) -> list[list[int]]:
    """Which names are each picture's: by path, else by file name, else by stem.

    Args:
        pictures: their paths.
        names: with or without folder and suffix.
        told: how a message names the i-th of ``names``.

    Returns:
        For each picture, the places of its names.

    Raises:
        ValueError: a name could be of two pictures.
    """
    paths = [_posix(str(picture)) for picture in pictures]
    found: list[list[int]] = [[] for _ in pictures]
    free = set(range(len(names)))
    for of_name, of_picture in _LIKENESS:
        places = defaultdict(list)
        for i in sorted(free):
            places[of_name(names[i])].append(i)
        for p, picture in enumerate(paths):
            found[p] = found[p] or places.get(of_picture(picture), [])
        taken = Counter(i for some in found for i in some)
        for i in free:
            if taken[i] > 1:
                those = [str(picture) for picture, some in zip(pictures, found, strict=True) if i in some]
                raise ValueError(f"{told(i)} could be of {listed(those, 3)}.")
        free -= taken.keys()
    return found


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Where each name stands."""
    places = defaultdict(list)
    for k, name in enumerate(names):
        places[name].append(k)
    return dict(places)


def _composed(text: str) -> str:
    """Accented letters in one form: file systems and spreadsheets differ in it."""
    return unicodedata.normalize("NFC", text)


def _plain(text: str) -> str:
    """Without case and without what stands between words."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def _number(word: str) -> str:
    """A word that is a whole number, in its shortest form; else ''."""
    match = re.fullmatch(r"0*([0-9]{1,9})(\.0*)?", word)
    return match[1] if match else ""


def _natural(name: str) -> list[str | int]:
    """A key that sorts by the numbers in names."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]


def _posix(name: str) -> PurePosixPath:
    return PurePosixPath(_composed(name).replace("\\", "/"))
