"""Files of weights: every form is read, and no file runs code or takes more memory than it says."""

import contextlib
import io
import json
import pickle
import zipfile

import chex
import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import PARITY, Evil, google, rewrite

import lrp_jax
from lrp_jax.weights.convert import convert_with_summary
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
    arrays |= {"big": arrays["a/b"].astype(">f8"), "strided": arrays["a/b"][:, ::-2], "number": np.float32(7)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays)
        read = read_weights(tmp_path / "w.npz")
        assert read.keys() == arrays.keys()
        for name in arrays:
            assert read[name].dtype == arrays[name].dtype
            np.testing.assert_array_equal(read[name], arrays[name])


DTYPES = {
    **{"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "BF16": jnp.bfloat16, "F16": np.float16},
    **{"F64": np.float64, "I8": np.int8, "U16": np.uint16, "BOOL": np.bool_},
}


def write_safetensors(path, dtype, array, shape=None):
    """As the format says: safetensors of NumPy does not write every dtype."""
    header = {"w": {"dtype": dtype, "shape": shape or array.shape, "data_offsets": [0, array.nbytes]}}
    said = json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + array.tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_safetensors(tmp_path, dtype):
    """Found without a suffix too, as in a cache of downloads."""
    array = np.arange(6).reshape(2, 3).astype(DTYPES[dtype])
    for name in ("w.safetensors", "W.SAFETENSORS", "w"):
        write_safetensors(tmp_path / name, dtype, array)
        read = read_weights(tmp_path / name)["w"]
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read.astype(float), array.astype(float))


def test_a_dtype_that_is_not_read_is_named(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", "F4", np.zeros(8, np.uint8), shape=[4, 4])
    with pytest.raises(ValueError, match=r"w\.safetensors: w is F4, expected one of BOOL, .*"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_float8_is_computed_in_the_dtype_of_the_other_weights(dtype):
    names = flatten(google())
    names["head/kernel"] = names["head/kernel"].astype(dtype)
    expected = lrp_jax.convert(names | {"head/kernel": names["head/kernel"].astype(np.float32)}, num_heads=2)[1]
    found = convert_with_summary(names, num_heads=2)
    chex.assert_trees_all_equal(found.params, expected)
    assert f"1 arrays of {np.dtype(dtype)} become float32, their values unchanged" in found.notes


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


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), r"HDF5 .* Keras .*lrp_jax\.trace"),
        (lambda path: zipped(path, {"config.json": "{}", "model.weights.h5": ""}), r"model of Keras .*lrp_jax\.trace"),
        (lambda path: path.write_bytes(pickle.dumps({"a": np.ones(3)})), r"torch\.save did not write.* \.npz"),
        (lambda path: path.write_bytes(pickle.dumps({"a": jnp.ones(3)}, 4)), r"torch\.save did not write.* \.npz"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), r"torch\.save did not write.* \.npz"),
        (lambda path: path.write_bytes(b"\x93NUMPY" + bytes(99)), r"\.npy.*Equinox"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(99)), r"GGUF .*\.safetensors"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), r"no \.msgpack of Flax"),
        (lambda path: path.write_text("some text"), "is neither"),
    ],
)
def test_files_that_are_not_read_are_named_with_the_way_in(tmp_path, write, message):
    write(tmp_path / "w")
    with pytest.raises(ValueError, match=rf"/w: this .*{message}"):
        read_weights(tmp_path / "w")


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_an_archive_holds_twice(tmp_path):
    array = io.BytesIO()
    np.lib.format.write_array(array, np.ones(3))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", array.getvalue())
        archive.writestr("w.npy", array.getvalue())
    with pytest.raises(ValueError, match=r"holds w\.npy more than once"):
        read_weights(tmp_path / "w.npz")
    zipped(tmp_path / "w.npz", {"w.npy": array.getvalue(), "w": array.getvalue()})
    with pytest.raises(ValueError, match="holds w twice"):
        read_weights(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.vit.encoder.layer.0.attention.attention.query.lora_A.weight",
        "blocks/0/attn/qkv/kernel_lora_a",
        "base_model.model.vit.encoder.layer.0.output.dense.ia3_l",
    ],
)
def test_adapters_are_named(name):
    for beside in ({}, {"embedding/kernel": np.ones(3)}):
        with pytest.raises(ValueError, match=rf"adapters of a model .*{name}.*merge_and_unload"):
            lrp_jax.convert({name: np.ones((2, 3)), **beside})


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
