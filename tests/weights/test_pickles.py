"""Pickles run nothing, whatever is in them."""

import argparse
import collections
import contextlib
import datetime
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import PARITY, Evil, rewrite

from lrp_jax.weights.nests import find, flatten
from lrp_jax.weights.pickles import Placeholder
from lrp_jax.weights.readers import read_weights


def recursive():
    items = []
    items.append(items)
    return {"state_dict": {"model": items}, "model": items}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: Evil(__import__("os").system, "touch ran"), r"holds a posix\.system, which is not read"),
        (lambda: {"model": Evil(eval, "open('ran', 'w')")}, r"model is a __builtin__\.eval"),
        (lambda: {"model": {"head.weight": Evil(eval, "open('ran', 'w')")}}, r"head\.weight is a __builtin__\.eval"),
        (lambda: Evil(__import__, "this"), r"holds a __builtin__\.__import__"),
        (lambda: Evil(getattr, [], "append"), r"holds a __builtin__\.getattr"),
        (lambda: np.zeros(3), r"holds a numpy.*_reconstruct"),
        (lambda: {"model": {"a": 1}}, None),
        (lambda: [1, 2], "holds a list, expected tensors by name"),
        (recursive, None),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickles_run_nothing(tmp_path, monkeypatch, form, content, message):
    monkeypatch.chdir(tmp_path)
    write_pickle("w.pth", pickle.dumps(content(), protocol=2), form)
    if message is None:
        assert find(read_weights("w.pth"), [r"head\.weight"]) is None
    else:
        with pytest.raises(ValueError, match=message):
            named_leaves(read_weights("w.pth"))
    assert not Path("ran").exists()


def named_leaves(tree):
    for name, leaf in flatten(tree).items():
        if isinstance(leaf, Placeholder):
            raise ValueError(f"{name} is a {leaf.origin}")


def write_pickle(path, data, form):
    if form == "zip":
        rewrite(PARITY / "torch-zip.pth", path, lambda _: data)
    else:
        start = b"".join(pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
        Path(path).write_bytes(start + data + pickle.dumps([], protocol=2))


class Settings(dict):
    """Unpickled by items, attributes and calls of its own: none is known."""

    def __reduce__(self):
        return Settings, (), {"a": 1}, iter([1, 2]), iter([("b", 3)])


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_what_builds_no_tensor_is_inert(tmp_path, monkeypatch, protocol):
    """Settings, paths, dates, numbers of NumPy, sets and classes stand beside the rest, and as keys."""
    monkeypatch.chdir(tmp_path)
    content = {
        "args": argparse.Namespace(lr=0.1, path=Path("x"), evil=Evil(eval, "open('ran', 'w')")),
        "when": datetime.datetime.now(),
        "numbers": [np.float64(3), np.arange(3), 1 + 2j],
        "more": {
            collections.Counter: collections.defaultdict(list, a=[1]),
            frozenset({1}): {2, 3},
            Settings: Settings(),
        },
        "kept": {"a": 1, "b": (2, "c")},
    }
    rewrite(PARITY / "torch-zip.pth", "w.pth", lambda _: pickle.dumps(content, protocol=protocol))
    tree = read_weights("w.pth")
    assert isinstance(tree["args"], Placeholder)
    assert tree["args"].origin == "argparse.Namespace"
    assert not vars(tree["args"])
    assert tree["kept"] == {"a": 1, "b": (2, "c")}
    assert not Path("ran").exists()


def test_the_state_of_what_is_known_is_not_set(tmp_path):
    """A pickle may ask for a function that is known here, and give it attributes."""
    state = b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86"
    build = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n" + state + b"bs."
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: build)
    function = read_weights(tmp_path / "w.pth")["a"]
    assert function.__defaults__ is None
    assert not vars(function)


@pytest.mark.parametrize("where", ["key", "items", "pairs", "set", "frozen set", "storage"])
def test_deep_tuples_do_not_crash(tmp_path, where):
    """The interpreter hashes them without a bound."""
    deep = b")" + b"\x85" * 200_000
    data = {
        "key": b"}" + deep + b"K\x01s.",
        "items": b"}(" + deep + b"K\x01u.",
        "pairs": b"}X\x01\x00\x00\x00accollections\nOrderedDict\n]" + deep + b"K\x01\x86a\x85Rs.",
        "set": b"}X\x01\x00\x00\x00a\x8f(" + deep + b"\x90s.",
        "frozen set": b"}X\x01\x00\x00\x00a(" + deep + b"\x91s.",
        "storage": b"}X\x01\x00\x00\x00a(X\x07\x00\x00\x00storage" + deep + b"X\x01\x00\x00\x000NK\x01tQs.",
    }[where]
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: b"\x80\x04" + data)
    assert len(flatten(read_weights(tmp_path / "w.pth"))) <= 1


def test_a_pickle_asks_for_so_many_things(tmp_path):
    asked = b"".join(b"cmodule\nname%d\n0" % i for i in range(10_001))
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: b"\x80\x02" + asked + b"}.")
    with pytest.raises(ValueError, match="more than 10000 things that are no tensors"):
        read_weights(tmp_path / "w.pth")


def test_random_pickles_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "args": argparse.Namespace(evil=Evil(eval, "open('ran', 'w')")),
        "s": Settings(),
        "m": {"w": [Evil(getattr, [], "a")]},
    }
    whole = np.frombuffer(pickle.dumps(content, protocol=4), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = whole.copy()
        places = rng.integers(0, len(damaged), 3)
        damaged[places] = rng.integers(0, 256, 3)
        write_pickle("w.pth", damaged.tobytes(), "zip")
        with contextlib.suppress(ValueError):
            flatten(read_weights("w.pth"))
    assert not Path("ran").exists()


def tensor_pickle(size, shape, strides, offset=0):
    """The pickle of one tensor, written by hand."""

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(size) + b"tQ"
    )
    tuples = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    body = storage + number(offset) + b"".join(tuples) + b"\x89ccollections\nOrderedDict\n)R"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tRs."


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((1 << 40,), (0,), 0), ((31,), (1,), 0), ((5,), (10,), 0), ((5,), (1,), 28), ((-1,), (1,), 0), ((2, 2), (1,), 0)],
)
def test_tensors_lie_within_their_storage(tmp_path, shape, strides, offset):
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: tensor_pickle(30, shape, strides, offset))
    with pytest.raises(ValueError, match="w does not lie within its storage"):
        read_weights(tmp_path / "w.pth")
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: tensor_pickle(30, (6, 5), (5, 1)))
    assert read_weights(tmp_path / "w.pth")["w"].shape == (6, 5)
