"""The native checkpoint: what is written comes back, and what is damaged is named."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers import drawn

import lrp_jax


@pytest.fixture(scope="module")
def model_and_params():
    config = lrp_jax.ViTConfig(
        image_size=(8, 16),
        patch_size=4,
        width=8,
        depth=2,
        num_heads=2,
        mlp_dim=12,
        num_classes=2,
        resize=(10, 20),
        mean=(0.1, 0.2, 0.3),
        class_names=("a cat", "a dog, \u00e9"),
        multi_label=True,
    )
    model = lrp_jax.ViT(config)
    return model, drawn(model)


@pytest.fixture
def saved(tmp_path, model_and_params):
    lrp_jax.save(tmp_path / "model.safetensors", *model_and_params)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_round_trip(tmp_path, model_and_params, dtype):
    model, params = model_and_params
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    lrp_jax.save(tmp_path / "model.safetensors", model, params)
    loaded_model, loaded_params = lrp_jax.load(tmp_path / "model.safetensors")
    assert loaded_model == model
    chex.assert_trees_all_equal(loaded_params, params)
    chex.assert_trees_all_equal_dtypes(loaded_params, params)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


LAYOUTS = {
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "Fortran": np.asfortranarray,
    "stacked last": lambda x: np.moveaxis(np.stack(list(x), axis=-1), -1, 0),
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "big-endian, transposed": lambda x: np.ascontiguousarray(x.T).astype(x.dtype.newbyteorder(">")).T,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "of JAX": jnp.asarray,
}


@pytest.mark.parametrize(
    ("layout", "dtype"), [*((name, np.float32) for name in LAYOUTS), ("transposed", jnp.bfloat16), ("Fortran", "f8")]
)
def test_whatever_lies_in_memory_the_values_are_saved(tmp_path, model_and_params, layout, dtype):
    """safetensors 0.8 writes the memory under an array, 0.7 wrote its values."""
    model, params = model_and_params
    params = jax.tree.map(lambda p: np.asarray(p.astype(dtype)), params)
    lrp_jax.save(tmp_path / "model.safetensors", model, jax.tree.map(LAYOUTS[layout], params))
    _, loaded = lrp_jax.load(tmp_path / "model.safetensors")
    chex.assert_trees_all_equal(loaded, params)
    chex.assert_trees_all_equal_dtypes(loaded, params)


def test_broadcast_parameters_are_saved(tmp_path, model_and_params):
    model, params = model_and_params
    params = jax.tree.map(lambda p: np.broadcast_to(np.float32(0.5), p.shape), params)
    lrp_jax.save(tmp_path / "model.safetensors", model, params)
    chex.assert_trees_all_equal(lrp_jax.load(tmp_path / "model.safetensors")[1], params)


def rewrite(path, change):
    """Save the file again after ``change(tensors, metadata)``."""
    with safetensors.safe_open(path, framework="numpy") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in list(file.keys())}, file.metadata()
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("norm.bias"), "missing norm.bias"),
        (lambda t, m: t.update(extra=np.zeros(1, np.float32)), "unexpected extra"),
        (lambda t, m: t.update({"norm.bias": np.zeros(3, np.float32)}), r"norm.bias has the shape \(3,\), .*\(8,\)"),
        (lambda t, m: t.update({"norm.bias": np.zeros(8, np.int32)}), "norm.bias is int32, expected floating"),
        (lambda t, m: t.update({"norm.bias": np.zeros(8, jnp.float8_e5m2)}), "norm.bias is float8_e5m2, .* 16 bits"),
        (lambda t, m: t.update({"norm.bias": np.full(8, np.nan, np.float32)}), "norm.bias holds NaN"),
        (lambda t, m: m.update(config="[" * 100_000), "damaged configuration"),
        (lambda t, m: m.pop("format"), "format is None, expected 'lrp_jax.vit.1'.*lrp_jax.convert"),
        (lambda t, m: m.update(config="{"), "damaged configuration"),
        (lambda t, m: m.update(config=json.dumps({"depths": 3})), "damaged configuration: .*depths"),
        (lambda t, m: m.update(config=json.dumps({"depth": 0})), "damaged configuration: depth must be"),
    ],
)
def test_damage_is_named(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        lrp_jax.load(saved)


@pytest.mark.parametrize("size", [10**9, 2**63, 10**30])
@pytest.mark.parametrize("field", ["depth", "num_classes", "width", "mlp_dim", "prefix_tokens", "channels", "resize"])
def test_a_header_that_promises_too_much_is_refused_by_what_is_there(saved, field, size):
    def promise(_, metadata):
        config = json.loads(metadata["config"]) | {field: size}
        if field in ("channels", "num_classes"):
            config |= {"mean": [0.5], "class_names": []}
        if field == "width":
            config["num_heads"] = size
        metadata["config"] = json.dumps(config)

    rewrite(saved, promise)
    with pytest.raises(
        ValueError, match=r"model\.safetensors.*(do not fit the conf|sizes that no array|must be at most)"
    ):
        lrp_jax.load(saved)


def test_what_is_no_checkpoint_is_told_the_way_in(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04 of another library")
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    for path in (tmp_path, tmp_path / "m.keras", tmp_path / "other.safetensors"):
        with pytest.raises((OSError, ValueError), match="lrp-jax convert"):
            lrp_jax.load(path)


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_truncated_file(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"not a readable \.safetensors file"):
        lrp_jax.load(saved)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        lrp_jax.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError):
        lrp_jax.load(tmp_path)


def test_save_refuses_what_does_not_fit(tmp_path, model_and_params):
    model, params = model_and_params
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        lrp_jax.save(tmp_path / "model.npz", model, params)
    with pytest.raises(ValueError, match=r"missing norm\.bias, missing norm\.scale"):
        lrp_jax.save(tmp_path / "model.safetensors", model, {k: v for k, v in params.items() if k != "norm"})
    with pytest.raises(FileNotFoundError):
        lrp_jax.save(tmp_path / "none" / "model.safetensors", model, params)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path, model_and_params, full_disk):
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written: .*File too large"):
        lrp_jax.save(tmp_path / "model.safetensors", *model_and_params)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_named(tmp_path, model_and_params):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        lrp_jax.save(tmp_path / "folder.safetensors", *model_and_params)
    assert caught.value.filename == str(tmp_path / "folder.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_a_failed_write_leaves_the_old_file(monkeypatch, saved, model_and_params):
    before = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        lrp_jax.save(saved, *model_and_params)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_demo(demo):
    model, params = demo
    assert model.config.grid == (8, 8)
    assert model.config.class_names[3] == "three"
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
