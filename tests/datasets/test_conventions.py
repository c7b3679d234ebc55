"""A picture is of the class that its folder says."""

import re

import pytest
from helpers import BIRDS, DECOMPOSED, DIGITS, SYNSETS, config_of, read, touch

from lrp_jax.datasets import ImageNetFolder

PADDED = tuple(f"{k:02}" for k in range(11))


def assert_each_matches(messages, patterns):
    assert len(messages) == len(patterns), messages
    for message, pattern in zip(messages, patterns, strict=True):
        assert re.search(pattern, message), message


@pytest.mark.parametrize(
    ("names", "count", "folders", "title", "doubts"),
    [
        (("cat", "dog"), 2, {"cat": 0, "dog": 1}, "class name", []),
        (("cat", "dog", "eel"), 3, {"cat": 0, "eel": 2}, "class name", []),
        (("eel", "cat"), 2, {"cat": 1, "eel": 0}, "class name", []),
        (BIRDS, 7, {"tabby_cat": 1, "golden-retriever": 5, "Golden Retriever": 3}, "class name", []),
        (("b c", "B c"), 2, {"b c": 0, "B c": 1}, "class name", []),
        (("café", "b"), 2, {DECOMPOSED: 0, "b": 1}, "class name", []),
        (BIRDS, 7, {"index:2": 2, "tabby cat": 1}, "class name or synset", []),
        (DIGITS, 10, {"3": 3, "9": 9}, "class name", []),
        (
            ("1", "0"),
            2,
            {"0": 1, "1": 0},
            "class name",
            [r"'0' is class 1 by class name.* 0 by index \(2 of 2 folders"],
        ),
        (("1", "10", "2"), 3, {"1": 0, "10": 1, "2": 2}, "class name", ["'1' is class 0 by class name.* 1 by index"]),
        ((), 1000, {SYNSETS[3]: 3, SYNSETS[999]: 999}, "synset", []),
        (SYNSETS, 1000, {SYNSETS[3]: 3}, "class name", []),
        (SYNSETS[::-1], 1000, {SYNSETS[0]: 999}, "class name", ["is class 999 by class name, .* 0 by synset"]),
        (("tench", *map(str, range(999))), 1000, {"tench": 0, SYNSETS[5]: 5}, "class name or synset", []),
        (
            (),
            11,
            {str(k): k for k in range(11)},
            "number",
            [r"'2' is class 2 by number, .* 3 by order of names, as tor"],
        ),
        ((), 11, {name: k for k, name in enumerate(PADDED)}, "number", []),
        (("zero", "one"), 2, {"0": 0, "1": 1}, "number", []),
        (
            (),
            3,
            {"1": 0, "2": 1, "3": 2},
            "order of numbers",
            [r"'1' is class 0 .* 1 by index \(3 of 3 folders differ"],
        ),
        ((), 2, {"2": 0, "10": 1}, "order of numbers", ["'2' .* 2 by index", "'2' .* 1 by order of names"]),
        ((), 2, {"a": 0, "b": 1}, "order of names", []),
        ((), 2, {"B": 0, "a": 1}, "order of names", []),
        ((), 3, {"c1": 0, "c10": 1, "c2": 2}, "order of names", ["'c10' is class 1 .* 2 by order of numbers"]),
        (("cat", "dog"), 2, {"a": 0, "b": 1}, "order of names", [r"no folder is named after .* \(cat, dog\)"]),
    ],
)
def test_folders_are_classes(tmp_path, names, count, folders, title, doubts):
    touch(tmp_path, *(f"{folder}/x.jpg" for folder in folders))
    for left in (".git/x.jpg", "__MACOSX/a/x.jpg", "@eaDir/x.jpg", ".ipynb_checkpoints/x.jpg", ".DS_Store"):
        touch(tmp_path, left, *(f"{folder}/{left}" for folder in folders))
    touch(tmp_path, *(f"{folder}/{left}" for folder in folders for left in ("._x.jpg", "Thumbs.db")))
    dataset, messages = read(tmp_path, config_of(names, count))
    assert [path.parent.parent for path, _ in dataset.pictures] == [tmp_path] * len(folders)
    assert {path.parent.name: k for path, k in dataset.pictures} == folders
    assert dataset.note.startswith(f"{len(folders)} folders by {title}")
    assert_each_matches(messages, doubts)


def test_the_classes_of_folders_are_told(tmp_path):
    touch(tmp_path, "golden_retriever/x.jpg", "b/x.jpg")
    config = config_of(("b", "c", "Golden retriever"))
    assert read(tmp_path, config)[0].note == "2 folders by class name: b is 0, golden_retriever is 2"
    touch(tmp_path / "many", *(f"{synset}/x.jpg" for synset in SYNSETS[:12]))
    config = config_of(tuple(f"name {k}" for k in range(1000)))
    note = read(tmp_path / "many", config)[0].note
    assert note.startswith(f"12 folders by synset: {SYNSETS[0]} is 0 (name 0), ")
    assert note.endswith(f"{SYNSETS[9]} is 9 (name 9), and 2 more")


@pytest.mark.parametrize(
    ("names", "count", "files", "message"),
    [
        (BIRDS, 7, ["crane/x.jpg"], "the folder 'crane' is the name of class 0 and 2: say index:0 or index:2"),
        (BIRDS, 7, ["golden_retriever/x.jpg"], "the folder 'golden_retriever' is the name of class 3 and 5"),
        (BIRDS, 7, ["Tabby-Cat/x.jpg", "tabby cat/x.jpg"], "'Tabby-Cat' and 'tabby cat' both mean 1"),
        (("cat", "dog"), 2, ["cat/x.jpg", "eel/x.jpg"], "1 of 2 folders are named .*, such as 'cat', but not 'eel'"),
        (("cat", "dog"), 2, ["cat/x.jpg", "dog/x.jpg", "y/x.jpg", "z/x.jpg"], "2 of 4 folders .* not 'y', 'z'"),
        (("tench", *map(str, range(999))), 1000, ["tench/x.jpg", f"{SYNSETS[0]}/x.jpg"], "both mean 0"),
        ((), 5, ["0/x.jpg", "2/x.jpg"], "holds 2 folders, the model has 5 classes, and '0' is none of their names"),
        ((), 2, ["1/x.jpg", "01/x.jpg"], "the folders '01' and '1' both mean 1"),
        ((), 2, ["train/cat/x.jpg", "val/cat/x.jpg"], r"train is no class .* holds folders of pictures \(train.cat.x"),
        (("a", "b"), 2, ["a/notes.txt", "b/._x.jpg"], "none of its 2 folders holds pictures"),
        ((), 2, ["x.jpg", ".git/x.jpg", "__MACOSX/x.jpg"], "holds no folders, one a class"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, names, count, files, message):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        ImageNetFolder(tmp_path, config_of(names, count))


def test_empty_and_nested_folders_of_classes(tmp_path):
    touch(tmp_path, "a/x.jpg", "a/images/y.jpg", "a/images/.hidden/z.jpg", "b/notes.txt", "c/.DS_Store", "d.jpg/x.jpg")
    (tmp_path / "a" / "round").symlink_to(tmp_path / "a")
    dataset, messages = read(tmp_path, config_of(("a", "b", "c", "d.jpg")))
    assert [(dataset.key(i), k) for i, (_, k) in enumerate(dataset.pictures)] == [
        ("a/images/y.jpg", 0),
        ("a/x.jpg", 0),
        ("d.jpg/x.jpg", 3),
    ]
    assert_each_matches(messages, ["2 of 4 folders hold no pictures: b, c"])
