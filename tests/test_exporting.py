"""Exported functions, loaded where this library is not."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Wrapped, relative_error, small_images, small_model

import lrp_jax
from lrp_jax import cli
from lrp_jax.model import Model

# A process in which the library cannot be imported: what needs it would fail.
ALONE = """
import sys
sys.modules["lrp_jax"] = None
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
function = jax.export.deserialize(open(sys.argv[1], "rb").read())
with np.load(sys.argv[2]) as inputs:
    found = [function.call(inputs["images"][:b], inputs["targets"][:b]) for b in (1, 3)]
np.savez(sys.argv[3], **{f"{name}{i}": x for i, of in enumerate(found) for name, x in of.items()})
try:
    import lrp_jax
except ImportError:
    print("alone")
"""


def alone(path, tmp_path, **inputs):
    """What the function in a file gives of one and of three images, in such a process."""
    np.savez(tmp_path / "inputs.npz", **inputs)
    words = [path, tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
    ran = subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == "alone", ran.stderr
    with np.load(tmp_path / "outputs.npz") as found:
        return dict(found)


def apply(params, images):
    """A plain model, to be traced."""
    x = images.reshape(images.shape[0], 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(images.shape[0], 16, 48)
    x = jax.nn.gelu(x @ params["in"])
    return x.mean(1) @ params["out"]


@pytest.mark.slow
def test_an_exported_function_runs_without_the_library(tmp_path):
    model, params = small_model()
    images, targets = small_images(3), np.array([[0, 1], [2, 3], [4, 0]], np.int32)
    example = jax.ShapeDtypeStruct(images.shape, images.dtype)
    exported = lrp_jax.export(model, params, takes_targets=True, start_layer=1, upsample=True, example=example)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (tmp_path / "maps").write_bytes(exported.serialize())
    for folder in (Path(lrp_jax.__file__).parent, Path(__file__).parent, Path(jax.__file__).parent):
        assert str(folder).encode() not in (tmp_path / "maps").read_bytes()
    found = alone(tmp_path / "maps", tmp_path, images=images, targets=targets)
    for i, b in enumerate((1, 3)):
        expected = lrp_jax.explain(model, params, images[:b], targets[:b], start_layer=1)
        maps = lrp_jax.heatmaps(expected.relevance, (16, 16))
        assert relative_error(found[f"relevance{i}"], maps) < 1e-10
        assert relative_error(found[f"logits{i}"], expected.logits) < 1e-10
        np.testing.assert_array_equal(found[f"targets{i}"], targets[:b])


@pytest.mark.parametrize("traced", [False, True])
def test_the_most_probable_classes(traced):
    model, params = small_model()
    images, method = small_images(3), "transformer_attribution"
    if traced:
        weights = {"in": small_images(1, shape=(48, 8))[0], "out": small_images(1, shape=(8, 5))[0]}
        model, params, method = lrp_jax.trace(apply, weights, images), weights, "full_lrp"
    example = None if traced else jax.ShapeDtypeStruct(images.shape, images.dtype)
    exported = lrp_jax.export(model, params, top_k=2, method=method, example=example, platforms=["cpu"])
    found = exported.call(images)
    best = np.argsort(-np.asarray(found["logits"]), axis=1)[:, :2]
    np.testing.assert_array_equal(found["targets"], best)
    expected = lrp_jax.explain(model, params, images, best, method=method)
    assert relative_error(found["relevance"], expected.relevance) < 1e-10


def test_bad_input():
    model, params = small_model(jnp.float32)

    plain: Model = Wrapped(model)
    for bad, message in (
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 2, "takes_targets": True}, "top_k must be at least 1, and is not"),
        ({"top_k": 6}, "top_k must be at most the model's 5 classes, got 6"),
        ({"platforms": ["gpu"]}, "platforms must be some of cpu, cuda, rocm, tpu; got gpu"),
        ({"method": "magic"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            lrp_jax.export(model, params, **bad)
    with pytest.raises(ValueError, match="example must be a batch"):
        lrp_jax.export(plain, params)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "maps.bin", "--method", "raw_attention", "--platforms", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "float32 [B, 64, 64, 3]" in out
    assert "use (pip install jax flatbuffers): jax.export.deserialize(" in out
    assert str(Path(lrp_jax.__file__).parent).encode() not in (tmp_path / "maps.bin").read_bytes()
    model, params = lrp_jax.load("demo")
    images = small_images(2, jnp.float32, (64, 64, 3))
    found = jax.export.deserialize((tmp_path / "maps.bin").read_bytes()).call(images)
    expected = lrp_jax.explain(model, params, images, method="raw_attention")
    assert relative_error(found["relevance"], expected.relevance) < 1e-5
    assert cli.main(["export", "maps.bin"]) == 2
    assert "exists: --force replaces it" in capsys.readouterr().err
    assert cli.main(["export", "missing/maps.bin"]) == 2
    assert cli.main(["export", "other.bin", "--top-k", "2", "--takes-targets"]) == 2
    assert not (tmp_path / "other.bin").exists()
