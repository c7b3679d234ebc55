"""Which class a file of labels gives to each picture."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from lrp_jax.checks import listed
from lrp_jax.files import needs, read_text
from lrp_jax.labels import Labels, Vocabulary, composed, number_in, plain

# What the columns of a file of labels are called, without case and what is between words; the best first.
_PICTURE_COLUMNS = (
    *("filename", "file", "filepath", "path", "image", "imagename", "imagefile", "imagepath", "picture", "img"),
    *("imageid", "imgid", "id", "name"),
)

_LABEL_COLUMNS = (
    *("label", "labels", "labelid", "labelname", "class", "classid", "classname", "classindex", "target", "category"),
    *("categoryid", "categoryname", "synset", "wnid", "predictionstring"),
)

_BOXES = re.compile(r"\S+( -?[\d.]+){4}( \S+( -?[\d.]+){4})*")  # as in LOC_val_solution.csv

# What of a line and what of a picture's path must agree, the surest first.
_LIKENESS: tuple[tuple[Callable[[PurePosixPath], str], Callable[[PurePosixPath], str]], ...] = (
    (str, str),
    (lambda name: name.name, lambda picture: picture.name),
    (lambda name: name.name, lambda picture: picture.stem),
    (lambda name: name.stem, lambda picture: picture.stem),
)


class _Row(NamedTuple):
    """A line of a file of labels: its number, the picture that it names ('' in the development kit's), its label."""

    line: int
    name: str
    word: str


def of_pictures(path: Path, pictures: Sequence[PurePosixPath], folder: Path, labels: Labels) -> tuple[list[int], str]:
    """The classes of pictures by a file of labels.

    Args:
        path: the file: see :class:`lrp_jax.datasets.ImageNetFolder`.
        pictures: their paths below ``folder``, sorted.
        folder: where they are.
        labels: of the model.

    Returns:
        Their classes, and a sentence on what was read.

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, a line is not understood, a picture has no label or several, or a label is not one
            class of the model.
    """
    rows, vocabulary = _rows(path), Vocabulary(labels)
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
    numbers = [int(number) for row in rows if (number := number_in(row.word))]
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
    titles = [plain(field).replace(" ", "") for field in fields]
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


def _posix(name: str) -> PurePosixPath:
    return PurePosixPath(composed(name).replace("\\", "/"))
