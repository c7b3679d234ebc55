"""Files of weights: every form is read, and no file runs code or takes more memory than it says."""

import argparse
import collections
import contextlib
import datetime
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lrp_jax.weights import Placeholder, read_weights
from lrp_jax.wrappings import find, flatten

PARITY = Path(__file__).parent / "parity"


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_torch_writes(form):
    """Nested, transposed, strided, of every dtype; expected values were written by NumPy."""
    arrays = {k.rpartition("/")[2]: v for k, v in flatten(read_weights(PARITY / f"torch-{form}.pth")).items()}
    arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    with np.load(PARITY / "torch.npz") as expected:
        assert arrays.keys() == set(expected.files)
        for name in expected.files:
            dtype = jnp.bfloat16 if name == "bfloat16" else expected[name].dtype
            assert arrays[name].dtype == dtype
            np.testing.assert_array_equal(arrays[name].astype(expected[name].dtype), expected[name])


def test_arrays_of_numpy(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.asfortranarray(np.ones((3, 2), np.float32))}
    arrays["bfloat16"] = np.arange(4).astype(jnp.bfloat16)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays)
        read = read_weights(tmp_path / "w.npz")
        assert read.keys() == arrays.keys()
        for name in arrays:
            assert read[name].dtype == arrays[name].dtype
            np.testing.assert_array_equal(read[name], arrays[name])


def test_shards(tmp_path):
    arrays = {"a": np.arange(3.0), "b": np.ones((2, 2), np.float16)}
    for name, array in arrays.items():
        safetensors.numpy.save_file({name: array}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    read = read_weights(index)
    assert all((read[name] == arrays[name]).all() for name in arrays)
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "c": "b.safetensors"}}))
    with pytest.raises(ValueError, match="do not hold the same names: b, c"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="outside of the folder"):
        read_weights(index)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not an index"):
        read_weights(index)


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a zip of torch with its pickle changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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


def test_damaged_files(tmp_path):
    path = tmp_path / "w.pth"
    for name in ("torch-zip.pth", "torch-legacy.pth", "torch.npz"):
        whole = (PARITY / name).read_bytes()
        for length in (1, 5, 40, len(whole) // 3, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"w\.pth: "):
                read_weights(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"w\.pth: this is neither"):
        read_weights(path)
    with pytest.raises(ValueError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")


def test_random_damage_gives_a_clear_error_or_arrays(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "w.pth"
    for name in ("torch-zip.pth", "torch-legacy.pth", "torch.npz"):
        whole = np.frombuffer((PARITY / name).read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            places = rng.integers(0, len(damaged), 4)
            damaged[places] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            with contextlib.suppress(ValueError):
                read_weights(path)


def test_bombs(tmp_path):
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda data: data + bytes(10**7), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed, which PyTorch never does"):
        read_weights(tmp_path / "w.pth")
    # A memo index of four billion: the unpickler in C would allot 64 GB for it.
    rewrite(PARITY / "torch-zip.pth", tmp_path / "w.pth", lambda _: b"\x80\x02]r\xff\xff\xff\xff.")
    with pytest.raises(ValueError, match="holds a list"):
        read_weights(tmp_path / "w.pth")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(ValueError, match=r"w\.npy is cut short"):
        read_weights(tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", w=np.array([Evil(eval, "1")], dtype=object))
    with pytest.raises(ValueError, match=r"w\.npy holds Python objects"):
        read_weights(tmp_path / "w.npz")


def test_msgpack_of_flax(tmp_path):
    path = tmp_path / "w.msgpack"
    tree = {
        "params": {"a": {"kernel": np.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}, "b": [np.ones(2), 3]},
        "step": 1,
    }
    path.write_bytes(flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(tree)))
    leaves = flatten(read_weights(path))
    assert leaves.keys() == {"params/a/kernel", "params/b/0", "params/b/1", "step"}
    assert leaves["params/a/kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(leaves["params/a/kernel"].astype(int), [[0, 1, 2], [3, 4, 5]])
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = whole.copy()
        places = rng.integers(0, len(damaged), 3)
        damaged[places] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes()[: rng.integers(1, len(damaged) + 1)])
        with contextlib.suppress(ValueError):
            flatten(read_weights(path))
    path.write_bytes(b"\xdf\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="exceeds max_map_len"):
        read_weights(path)
