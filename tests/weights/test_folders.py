"""Folders of Orbax: each way in which JAX code saves a tree today."""

import json
import shutil

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from helpers import google

import lrp_jax
from lrp_jax import cli
from lrp_jax.weights.readers import read_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # of Orbax itself, other ones in each version

TREE = jax.tree.map(jnp.asarray, google())


def standard(path, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, tree)


def pytree(path, tree, **options):
    ocp.PyTreeCheckpointer(**options).save(path, tree)


def composite(path, tree):
    both = ocp.args.Composite(params=ocp.args.StandardSave(tree), about=ocp.args.JsonSave({"a": 1}))
    ocp.Checkpointer(ocp.CompositeCheckpointHandler()).save(path, both)


def training(path, tree, steps=(7,)):
    with ocp.CheckpointManager(path) as manager:
        for step in steps:
            manager.save(step, args=ocp.args.StandardSave({"params": tree, "step": step}))


WAYS = {
    "standard": standard,
    "pytree": pytree,
    "a folder an array": lambda path, tree: pytree(path, tree, use_ocdbt=False),
    "composite": composite,
    "one step": training,
    "in numpy": lambda path, tree: standard(path, jax.tree.map(np.asarray, tree)),
    "frozen": lambda path, tree: standard(path, flax.core.freeze(tree)),
    "under value": lambda path, tree: standard(path, jax.tree.map(lambda x: {"value": x}, tree)),
    "nnx": lambda path, tree: standard(path, nnx.State(jax.tree.map(nnx.Param, tree))),
    "a training's state": lambda path, tree: pytree(
        path,
        {"opt_state": [{"mu": tree}, None], "params": tree, "name": "vit", "step": 3, "rng": np.ones(2, np.uint32)},
    ),
}


@pytest.fixture(scope="module")
def expected():
    return lrp_jax.convert(google(), num_heads=2)[1]


@pytest.mark.parametrize("way", WAYS)
def test_what_orbax_writes(tmp_path, expected, way):
    WAYS[way](tmp_path / "saved", TREE)
    chex.assert_trees_all_equal(lrp_jax.convert(tmp_path / "saved", num_heads=2)[1], expected)


def test_convert_takes_a_folder(tmp_path, monkeypatch, expected, capsys):
    monkeypatch.chdir(tmp_path)
    standard(tmp_path / "saved", {"params": jax.tree.map(lambda x: x.astype(jnp.bfloat16), TREE)})
    assert cli.main(["convert", "saved", "vit.safetensors"]) == 0
    _, params = lrp_jax.load("vit.safetensors")
    chex.assert_trees_all_equal(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected))

    shutil.rmtree("saved/d")
    assert cli.main(["convert", "saved", "other.safetensors"]) == 2
    assert "saved is a checkpoint of Orbax that cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "vit.safetensors"]


def test_of_several_steps_one_is_asked_for(tmp_path, expected):
    training(tmp_path / "saved", TREE, steps=(9, 10))
    with pytest.raises(ValueError, match=r"saved holds the checkpoints of several steps: give one .*, 9, 10\."):
        read_weights(tmp_path / "saved")
    chex.assert_trees_all_equal(lrp_jax.convert(tmp_path / "saved" / "9", num_heads=2)[1], expected)


def test_folders_that_are_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder without .*: give the file of weights\.$"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"give the file of weights in it, of model\.safetensors\.$"):
        read_weights(tmp_path)
    (tmp_path / "a.orbax-checkpoint-tmp-3").mkdir()
    with pytest.raises(ValueError, match="left by a save that Orbax did not finish"):
        read_weights(tmp_path / "a.orbax-checkpoint-tmp-3")
    (tmp_path / "_METADATA").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is a checkpoint of Orbax that cannot be read"):
        read_weights(tmp_path)


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "_METADATA").touch()

    def absent(name, *_):
        raise ImportError(name)

    monkeypatch.setattr("lrp_jax.files.importlib.import_module", absent)
    with pytest.raises(ImportError, match=r'orbax\.checkpoint is needed here: pip install "lrp-jax\[orbax\]"'):
        read_weights(tmp_path)
