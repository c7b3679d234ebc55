"""A picture is of the class that a file of labels says."""

import unicodedata

import pytest
from helpers import BIRDS, DECOMPOSED, ONE_BASED, config_of, read, touch

from lrp_jax.datasets import ImageNetFolder
from lrp_jax.labels import class_names_in

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
