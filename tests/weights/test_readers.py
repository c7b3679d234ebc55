"""Files of weights: every form is read, and no file runs code or takes more memory than it says."""

import contextlib
import io
import json
import zipfile

import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import PARITY, Evil, rewrite

from lrp_jax.weights.nests import flatten
from lrp_jax.weights.readers import read_weights


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


@pytest.mark.parametrize(
    "dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float64", "int8", "uint16", "bool", "complex64"]
)
def test_dtypes_of_safetensors(tmp_path, dtype):
    """Of float8 safetensors writes NumPy's arrays and does not read them; and 0.4 writes no complex ones."""
    array = np.arange(6).reshape(2, 3).astype(getattr(jnp, dtype, dtype) if dtype.startswith("float8") else dtype)
    names = {"complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
    write_safetensors(tmp_path / "w", {"w": (names.get(dtype, dtype), array)})
    read = read_weights(tmp_path / "w")["w"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read.astype(complex), array.astype(complex))


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
    safetensors.numpy.save_file({"a": np.zeros(3), "b": arrays["b"]}, tmp_path / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    with pytest.raises(ValueError, match=r"and b\.safetensors do not hold the same names: a"):
        read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="outside of the folder"):
        read_weights(index)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not an index"):
        read_weights(index)


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
