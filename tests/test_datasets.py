"""Digit scenes are what they say, and a picture is of the class that its folder or a file says."""

import re
import unicodedata
import warnings

import numpy as np
import pytest

import lrp_jax
from lrp_jax.datasets import ImageNetFolder, MaskFolder, _digits, digit_scenes, pictures_in
from lrp_jax.labels import Vocabulary, class_names_in, imagenet_classes


def test_shapes_and_ranges():
    scenes = digit_scenes(20, seed=3, split="train")
    assert scenes.images.shape == (20, 64, 64, 3)
    assert scenes.images.dtype == np.float32
    assert scenes.labels.shape == (20, 2)
    assert scenes.masks.shape == (20, 2, 64, 64)
    assert scenes.masks.dtype == bool
    assert scenes.images.min() >= -1
    assert scenes.images.max() <= 1
    assert (scenes.labels[:, 0] != scenes.labels[:, 1]).all()
    assert set(scenes.labels.ravel()) <= set(range(10))


def test_digits_do_not_overlap_and_stand_out():
    scenes = digit_scenes(50, seed=4)
    assert not scenes.masks.all(axis=1).any()
    assert (scenes.masks.sum(axis=(2, 3)) > 20).all()
    brightness = scenes.images.mean(axis=-1)
    for image, masks in zip(brightness, scenes.masks, strict=True):
        background = image[~masks.any(axis=0)].mean()
        assert all(image[mask].mean() > background + 0.2 for mask in masks)


def test_draws_repeat_and_do_not_depend_on_n():
    few, many = digit_scenes(3, seed=5), digit_scenes(6, seed=5)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:3])
    assert (digit_scenes(3, seed=6).images != few.images).any()
    assert (digit_scenes(3, seed=5, split="train").images != few.images).any()


def test_splits_share_no_digit():
    (train, train_labels), (test, test_labels) = _digits("train"), _digits("test")
    assert (len(train), len(test)) == (1397, 400)
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in test}


def test_bad_arguments():
    with pytest.raises(ValueError, match="n=-1"):
        digit_scenes(-1, seed=0)
    with pytest.raises(ValueError, match="'train' or 'test', got 'val'"):
        digit_scenes(1, seed=0, split="val")
    assert len(digit_scenes(0, seed=0).images) == 0


def config_of(names, count=None):
    return lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=count or len(names), class_names=names)


def touch(folder, *names):
    """Empty files: which class a picture is of does not depend on what is in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


DECOMPOSED = unicodedata.normalize("NFD", "café")
BIRDS = ("crane", "tabby cat", "crane", "Golden Retriever", "7", "golden-retriever", "café")
DIGITS = tuple(map(str, range(10)))
ONE_BASED = tuple(map(str, range(1, 12)))
PADDED = tuple(f"{k:02}" for k in range(11))
SYNSETS = tuple(synset for synset, _ in imagenet_classes())


@pytest.mark.parametrize(
    ("names", "count", "word", "expected"),
    [
        (BIRDS, 7, "tabby cat", 1),
        (BIRDS, 7, "1", 1),
        (BIRDS, 7, "01", 1),
        (BIRDS, 7, "3.0", 3),
        (BIRDS, 7, "index:2", 2),
        (BIRDS, 7, "name:tabby cat", 1),
        (BIRDS, 7, DECOMPOSED, 6),
        (BIRDS, 7, "7", 4),  # a name; there is no such index
        (BIRDS, 7, "crane", r"^'crane' is the name of class 0 and 2: say index:0 or index:2\.$"),
        (BIRDS, 7, "Tabby_Cat", r"class name \(tabby cat, \.\.\.\); got 'Tabby_Cat'"),
        (BIRDS, 7, " tabby cat", r"class name \(tabby cat, \.\.\.\); got ' tabby cat'"),
        (BIRDS, 7, "8", r"^expected an index 0 to 6 or a class name \(.*\); got '8'"),
        (BIRDS, 7, "index:crane", r"^expected an index 0 to 6 or .*; got 'index:crane'"),
        (BIRDS, 7, "-1", "got '-1'"),
        (BIRDS, 7, "", "got ''"),
        (BIRDS, 7, "9" * 5000, "^expected an index 0 to 6"),
        (DIGITS, 10, "3", 3),
        (("1", "0"), 2, "1", "^'1' is the name of class 0 and the index of class 1: say index:0 or index:1"),
        (("1", "0"), 2, "index:1", 1),
        (("1", "0"), 2, "name:1", 0),
        (("index:1", "b"), 2, "index:1", 0),
        (ONE_BASED, 11, "3", "^'3' is the name of class 2 and the index of class 3"),
        (ONE_BASED, 11, "11", 10),
        ((), 5, "4", 4),
        ((), 5, "5", "^expected an index 0 to 4; got '5'"),
        ((), 5, "name:5", "^expected an index 0 to 4; got 'name:5'"),
        ((), 1000, SYNSETS[7], 7),
        ((), 1000, "n1", "^expected an index 0 to 999 or a synset; got 'n1'"),
        (SYNSETS, 1000, SYNSETS[7], 7),
        (SYNSETS[::-1], 1000, SYNSETS[0], "is the name of class 999 and the synset of class 0"),
    ],
)
def test_a_word_is_one_class_or_refused(names, count, word, expected):
    vocabulary = Vocabulary(config_of(names, count))
    if isinstance(expected, int):
        assert vocabulary.index(word) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            vocabulary.index(word)


def read(path, config, **options):
    """The dataset, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ImageNetFolder(path, config, **options)
    return dataset, [str(warning.message) for warning in caught]


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


def test_what_systems_leave_behind_is_no_picture(tmp_path):
    touch(
        tmp_path, "b.JPG", "a.heic", "._b.JPG", ".a.png", "Thumbs.db", "notes.txt", "@eaDir/c.jpg", "folder.png/d.jpg"
    )
    assert [path.name for path in pictures_in(tmp_path)] == ["a.heic", "b.JPG"]
    assert [path.name for path in pictures_in(tmp_path, nested=True)] == ["a.heic", "b.JPG", "d.jpg"]
    touch(tmp_path / "none", "sub/x.jpg", "x.jxl", ".y.jpg")
    with pytest.raises(ValueError, match=r"none: the folder holds no pictures, only sub, x\.jxl\.$"):
        pictures_in(tmp_path / "none")
    touch(tmp_path / "hidden", ".y.jpg")
    with pytest.raises(ValueError, match=r"hidden: the folder holds no pictures\.$"):
        pictures_in(tmp_path / "hidden")


PETS = ("cat", "crane, bird", "golden retriever", "crane")
TWO = ("my cat.jpg", "b.png")


@pytest.mark.parametrize(
    ("text", "pictures", "expected"),
    [
        ("my cat.jpg 3\nb.png 0\n", TWO, [0, 3]),
        ("my cat.jpg\t3\nb.png\t0\n", TWO, [0, 3]),
        ('"my cat.jpg" 3\nb.png "golden retriever"\n', TWO, [2, 3]),
        ("my cat.jpg,crane\nb.png,golden retriever", TWO, [2, 3]),
        ('my cat.jpg,"crane, bird"\nb.png,cat\n', TWO, [0, 1]),
        ("my cat.jpg;crane, bird\nb.png;cat\n", TWO, [0, 1]),
        ("my cat.jpg\tcrane, bird\nb.png\tcat\n", TWO, [0, 1]),
        ('"my cat.jpg", "crane"\r\n"b.png", "cat"\r\n', TWO, [0, 3]),
        ("my cat.jpg,3\rb.png,0\r", TWO, [0, 3]),
        ("\n# by hand\n\nmy cat.jpg,3\n  \n# the other\nb.png,0\n\n", TWO, [0, 3]),
        ("filename,label\nmy cat.jpg,3\nb.png,0\n", TWO, [0, 3]),
        ("filename;label\r\nmy cat.jpg;3\r\nb.png;0\r\n", TWO, [0, 3]),
        ("label,image\n3,my cat.jpg\n0,b.png\n", TWO, [0, 3]),
        ('"Class","File_Name"\n"crane, bird","my cat.jpg"\ncat,b.png\n', TWO, [0, 1]),
        ("split\tTARGET\tPath\ttaken\nval\t3\tmy cat.jpg\t\nval\t0\tb.png\tnoon\n", TWO, [0, 3]),
        ("Image ID,Category\nmy cat,3\nb,0\n", TWO, [0, 3]),
        ("file label\nmy cat.jpg 3\nb.png 0\n", TWO, [0, 3]),
        ("my cat.jpg;3;;\nb.png;0;;\n", TWO, [0, 3]),
        ("my cat.jpg,3.0\nb.png,0.0\n", TWO, [0, 3]),
        ("my cat.jpg,index:3\nb.png,name:cat\n", TWO, [0, 3]),
        ("my cat.jpg,Golden_Retriever\nb.png,CAT\n", TWO, [0, 2]),
        ("my cat.jpg,3\nmy cat.jpg,crane\nb.png,0\n", TWO, [0, 3]),
        ("b,0\nmy cat,3\n", TWO, [0, 3]),
        ("b.JPEG 0\nmy cat.JPEG 3\n", TWO, [0, 3]),
        ("b.jpg 0\nb.png 1\nb 2\n", ("b.jpg", "b.png"), [0, 1]),
        ("v1.0 0\nv1.1 1\n", ("v1.0.jpg", "v1.1.jpg"), [0, 1]),
        ("x/a.jpg,0\ny/a.jpg,1\n", ("x/a.jpg", "y/a.jpg"), [0, 1]),
        ("x\\a.jpg,0\n.\\y\\a.jpg,1\n", ("x/a.jpg", "y/a.jpg"), [0, 1]),
        ("train/a.jpg,0\nval/a.jpg,1\n", ("a.jpg",), [1]),
        ("/elsewhere/a.jpg,2\n", ("a.jpg",), [2]),
        ("a.jpg,2\n", ("x/a.jpg",), [2]),
        (f"{unicodedata.normalize('NFC', DECOMPOSED)}.jpg,2\n", (f"{DECOMPOSED}.jpg",), [2]),
        ('"#1.jpg",2\n', ("#1.jpg",), [2]),
        ("ImageId,PredictionString\na,cat 1 2 3 4 cat 5 6 7.5 8 \n", ("a.JPEG",), [0]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_as_people_write_them(tmp_path, text, pictures, expected, encoding):
    touch(tmp_path / "val", *pictures)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    dataset, messages = read(tmp_path / "val", config_of(PETS), labels=tmp_path / "labels.csv")
    found = {dataset.key(i): k for i, (_, k) in enumerate(dataset.pictures)}
    assert found == dict(zip(sorted(pictures), expected, strict=True))
    assert not messages


def test_what_was_read_of_labels_is_told(tmp_path):
    touch(tmp_path / "val", *TWO)
    for text, told in (
        ("b.png,cat\nmy cat.jpg,crane\n", "2 labels, by name"),
        ("b.png,0\nmy cat.jpg,1\n", "2 labels, by index"),
        ("b.png,0\nmy cat.jpg,crane\n", "2 labels, by name or index"),
        (
            "b.png,0\nmy cat.jpg,1\nc.png,of another model\nd.png,2\n",
            "4 labels, by index, 2 of them of pictures that are not",
        ),
    ):
        (tmp_path / "labels.csv").write_text(text)
        dataset, _ = read(tmp_path / "val", config_of(PETS), labels=tmp_path / "labels.csv")
        assert dataset.note.startswith(f"{tmp_path / 'labels.csv'}: {told}")


@pytest.mark.parametrize(
    ("names", "text", "pictures", "message"),
    [
        (PETS, "", TWO, r"labels\.csv holds no labels"),
        (PETS, "filename,label\n", TWO, r"labels\.csv holds no labels"),
        (PETS, "# nothing\n\n", TWO, r"labels\.csv holds no labels"),
        (PETS, "b.png,0\n", TWO, r"has no label of my cat\.jpg \(1 of 2 pictures\); line 1 is of 'b\.png'"),
        (
            PETS,
            "z,0\n",
            [f"{c}.jpg" for c in "abcdefg"],
            r"no label of a\.jpg, .*e\.jpg, and 2 more \(7 of 7 pictures\)",
        ),
        (PETS, "\nb.png,0\n\nmy cat.jpg,eel\n", TWO, r"labels\.csv, line 4: expected an index 0 to 3 or .*; got 'eel'"),
        (PETS, "b.png,0\nmy cat.jpg,5\n", TWO, r"labels\.csv, line 2: expected .*; got '5'"),
        (PETS, "b.png,0\nmy cat.jpg,1.5\n", TWO, r"line 2: expected .*; got '1\.5'"),
        (PETS, "b.png,0\nmy cat.jpg,-1\n", TWO, r"line 2: expected .*; got '-1'"),
        (PETS, "b.png,0\nmy cat.jpg\n", TWO, r"line 2: expected a picture and its class, got 'my cat\.jpg'"),
        (PETS, "b.png,0\nmy cat.jpg,\n", TWO, r"line 2: expected a picture and its class, got 'my cat\.jpg'"),
        (
            PETS,
            "b.png,0\nmy cat.jpg,crane, bird\n",
            TWO,
            r"line 2: .* got 'my cat\.jpg', 'crane', 'bird'\. A comma with",
        ),
        (PETS, 'b.png,0\nmy cat.jpg,"crane\n', TWO, "line 2: unexpected end of data"),
        (PETS, "filename,label\nb.png,0\nmy cat.jpg,1,2\n", TWO, "line 3: expected a picture and its class"),
        (PETS, "b.png,1\nmy cat.jpg,4\n", TWO, r"labels\.csv numbers the classes from 1 to 4, expected 0 to 3"),
        (PETS, "b.png,1\nmy cat.jpg,2\nc.png,4.0\n", TWO, "numbers the classes from 1 to 4, expected 0 to 3"),
        (PETS, "b.png,0\nmy cat.jpg,4\n", TWO, "line 2: expected an index 0 to 3"),
        (PETS, "b.png,0\nmy cat.jpg,1\nb.png,2\n", TWO, r"b\.png is class 0 in line 1 and class 2 in line 3"),
        (PETS, "a,0\n", ("a.jpg", "a.png"), r"line 1: 'a' could be of a\.jpg, a\.png"),
        (PETS, "a.jpg,0\n", ("a.jpg", "a.png"), r"no label of a\.png \(1 of 2 pictures\)"),
        (PETS, "a.jpg,0\n", ("x/a.jpg", "y/a.jpg"), r"line 1: 'a\.jpg' could be of x/a\.jpg, y/a\.jpg"),
        (PETS, "x/a.jpg,0\ny/a.jpg,1\n", ("a.jpg",), r"a\.jpg is class 0 in line 1 and class 1 in line 2"),
        (PETS, "filename,label,class_name\na.jpg,0,cat\n", ("a.jpg",), "line 1: the columns 'label' and 'class_name'"),
        (PETS, "a,cat 1 2 3 4 crane 1 2 3 4\n", ("a.jpg",), "line 1: expected boxes of one class, got cat, crane"),
        (BIRDS, "a.jpg,crane\n", ("a.jpg",), "line 1: 'crane' is the name of class 0 and 2: say index:0 or index:2"),
        (BIRDS, "a.jpg,golden_retriever\n", ("a.jpg",), "line 1: 'golden_retriever' is the name of class 3 and 5"),
        (("1", "0"), "a.jpg,1\n", ("a.jpg",), "line 1: '1' is the name of class 0 and the index of class 1"),
        (PETS, "1\n2\n", TWO, "numbers the classes of ImageNet-1k, the model has 4"),
        (PETS, "1\n2\n3\n", TWO, "has 3 labels, .* holds 2 pictures"),
        (PETS, "b.png 1\n2\n", TWO, "line 2: expected a picture and its class, got '2'"),
    ],
)
def test_labels_that_mean_nothing_are_refused(tmp_path, names, text, pictures, message):
    touch(tmp_path / "val", *pictures)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageNetFolder(tmp_path / "val", config_of(names), labels=tmp_path / "labels.csv")


def test_labels_may_be_names_that_look_like_numbers(tmp_path):
    """All are names, and not all are indices."""
    touch(tmp_path / "val", "a.jpg", "b.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,3\nb.jpg,11\n")
    dataset, _ = read(tmp_path / "val", config_of(ONE_BASED), labels=tmp_path / "labels.csv")
    assert [k for _, k in dataset.pictures] == [2, 10]


@pytest.mark.parametrize(
    "content", ["é,1".encode("latin-1"), b"\xff\xfea", "a,1".encode("utf-16-le"), b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    touch(tmp_path / "val", "a.jpg")
    for read_as in (class_names_in, lambda path: ImageNetFolder(tmp_path / "val", config_of(PETS), labels=path)):
        with pytest.raises(ValueError, match=r"labels\.csv is no text in UTF-8, or UTF-16 with its mark"):
            read_as(tmp_path / "labels.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_of_classes(tmp_path, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes("café\r\n crane, bird \r\ncrane\r\ncrane\r\n\r\n".encode(encoding))
    assert class_names_in(path) == ("café", "crane, bird", "crane", "crane")
    assert Vocabulary(config_of(class_names_in(path))).shared() == ["'crane' (2, 3)"]
    path.write_bytes("a\n\nb\n".encode(encoding))
    with pytest.raises(ValueError, match=r"names\.txt, line 2: expected the name of a class, got a blank line"):
        class_names_in(path)
    path.write_bytes("\n \n".encode(encoding))
    with pytest.raises(ValueError, match=r"names\.txt, line 1: expected the name of a class"):
        class_names_in(path)


@pytest.mark.parametrize(
    ("pictures", "masks", "expected"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png", "c.png"], ["a.png", "b.png"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.jpg"], ["a.jpg", "a.png"], ["a.jpg"]),
        (["a.jpg"], ["a.png", "._a.png"], ["a.png"]),
        (["a.jpg"], ["a.bmp", "a.png"], r"holds several masks of a\.jpg: a\.bmp, a\.png"),
        (["a.jpg", "a.png"], ["a.bmp"], r"a\.bmp could be of a\.jpg, a\.png"),
        (["a.jpg", "a.png"], ["a.png"], r"holds no mask of a\.jpg\."),
    ],
)
def test_masks_are_of_one_picture(tmp_path, pictures, masks, expected):
    touch(tmp_path, *(f"images/{name}" for name in pictures), *(f"masks/{name}" for name in masks))
    if isinstance(expected, list):
        pairs = MaskFolder(tmp_path, config_of((), 2)).pairs
        assert [(image.name, mask.name) for image, mask in pairs] == list(zip(pictures, expected, strict=True))
    else:
        with pytest.raises(ValueError, match=expected):
            MaskFolder(tmp_path, config_of((), 2))
