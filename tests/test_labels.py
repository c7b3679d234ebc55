"""A word is one class, or refused."""

import pytest
from helpers import BIRDS, DECOMPOSED, DIGITS, ONE_BASED, SYNSETS, config_of

from lrp_jax.labels import Vocabulary, class_names_in


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
