"""Where the weights of a model are: nests, prefixes, several models in one file."""

import json
import re
from collections.abc import Mapping

import chex
import flax.core
import flax.linen
import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from flax.traverse_util import flatten_dict
from helpers import PARITY, google

import lrp_jax
from lrp_jax.weights.convert import convert_with_summary
from lrp_jax.weights.nests import find, flatten
from lrp_jax.weights.pickles import Placeholder

W = {"patch_embed.proj.weight": np.ones(2), "head.weight": np.zeros(2)}
SIGNS = [r"patch_embed\.proj\.weight", r"(?:vit\.)?embeddings\.weight", "embedding/kernel"]
STUDENT, TEACHER = ({name: array + i for name, array in W.items()} for i in (1, 2))


def under(prefix, weights=W):
    return {prefix + name: array for name, array in weights.items()}


@pytest.mark.parametrize(
    ("tree", "prefix", "notes"),
    [
        (W, "", []),
        ({"state_dict": W}, "state_dict/", []),
        (W | {"epoch": 3, "losses": [1.0, 2.0], "optimizer": {"state": {0: {"exp_avg": np.ones(1)}}}}, "", []),
        (W | {"model_ema": STUDENT}, "", ["under the top are taken, .* under 'model_ema'"]),
        ({"checkpoint": {"model": W, "epoch": 3}}, "checkpoint/model/", []),
        (under("module."), "module.", ["begin with 'module.'"]),
        (under("_orig_mod.module."), "_orig_mod.module.", ["begin with '_orig_mod.module.'"]),
        (under("1."), "1.", ["begin with '1.'"]),  # of a Sequential, behind its normalisation
        (
            {"state_dict": under("model.") | {"loss.weight": np.ones(1)}},
            "state_dict/model.",
            ["begin with 'model.'", "1 arrays beside these weights are left aside: loss.weight"],
        ),
        (
            {"model_ema": STUDENT, "model": W},
            "model/",
            ["under 'model' are taken, .* under 'model_ema'; key= or --key"],
        ),
        ({"optimizer": {"mu": STUDENT}, "params": W}, "params/", []),
        (
            {"student": under("module.backbone.", STUDENT), "teacher": under("backbone.") | {"head.mlp": np.ones(1)}},
            "teacher/backbone.",
            ["under 'teacher/backbone' are taken, .* 'student/module.backbone'", "left aside: head.mlp"],
        ),
        (
            {"state_dict": under("module.momentum_encoder.", STUDENT) | under("module.base_encoder.")},
            "state_dict/module.base_encoder.",
            ["'state_dict/module.momentum_encoder'"],
        ),
        ({"patch_embed": {"proj": {"weight": W["patch_embed.proj.weight"]}}, "head": {"weight": np.zeros(2)}}, "", []),
    ],
)
def test_the_model_is_found(tree, prefix, notes):
    found = find(tree, SIGNS)
    assert found.prefix == prefix
    chex.assert_trees_all_equal(found.arrays, W)
    assert len(found.notes) == len(notes)
    for note, pattern in zip(found.notes, notes, strict=True):
        assert re.search(pattern, note)


def test_a_prefix_of_the_family_stays():
    names = {"model.vit.embeddings.weight": np.ones(1), "model.classifier.weight": np.ones(1)}
    assert find(names, SIGNS).arrays.keys() == {"vit.embeddings.weight", "classifier.weight"}


def test_the_key_chooses():
    tree = {"checkpoint": {"student": under("backbone.", STUDENT), "teacher": under("backbone.", TEACHER)}}
    for key, expected in (
        ("student", STUDENT),
        ("checkpoint.teacher", TEACHER),
        ("checkpoint/student/backbone", STUDENT),
    ):
        found = find(tree, SIGNS, key)
        chex.assert_trees_all_equal(found.arrays, expected)
        assert not any("others" in note for note in found.notes)
    for key in ("model", "teach", "teacher.checkpoint"):
        with pytest.raises(ValueError, match=r"key must be .*'checkpoint/student/backbone', .*teacher.*; got"):
            find(tree, SIGNS, key)


def test_what_is_no_model():
    loop = {}
    loop["model"] = loop
    for tree in ({}, {"state_dict": {"a": np.ones(1)}}, loop, {"embedding_kernel": np.ones(1)}):
        assert find(tree, SIGNS) is None
    deep = W
    for _ in range(10_000):
        deep = {"a": deep}
    wide = {}
    for _ in range(20):
        wide = {"a": wide, "b": wide, "c": wide}
    for tree in (deep, wide):
        with pytest.raises(ValueError, match="nests of more than 64 levels, or 200,000 names"):
            find(tree, SIGNS)


class Anew(Mapping):
    """Inner mappings made at each look, as FrozenDict and nnx.State make theirs."""

    def __init__(self, tree):
        self.tree = tree

    def __getitem__(self, name):
        value = self.tree[name]
        return Anew(dict(value)) if isinstance(value, dict) else value

    def __iter__(self):
        return iter(self.tree)

    def __len__(self):
        return len(self.tree)


def linen_boxes(tree):
    return jax.tree.map(lambda x: flax.linen.Partitioned(jnp.asarray(x), names=(None,)), tree)


FORMS = {
    "made anew": Anew,
    "frozen": flax.core.freeze,
    "a dict of frozen": lambda tree: {"params": flax.core.freeze(tree), "step": np.asarray(3)},
    "nnx": lambda tree: nnx.State(jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), tree)),
    "nnx with keys": lambda tree: {"params": FORMS["nnx"](tree), "rngs": jax.random.key(0), "none": None},
    "under value": lambda tree: jax.tree.map(lambda x: {"value": x}, tree),
    "boxes of linen": linen_boxes,
    "in a list": lambda tree: [{"count": 3}, tree],
    "joined by slashes": lambda tree: flatten_dict(tree, sep="/"),
    "joined by dots": lambda tree: flatten_dict(tree, sep="."),
    "by dots, under value": lambda tree: flatten_dict(FORMS["under value"](tree), sep="."),
    "big-endian": lambda tree: jax.tree.map(lambda x: x.astype(">f4"), tree),
    "Fortran": lambda tree: jax.tree.map(np.asfortranarray, tree),
    "reversed": lambda tree: jax.tree.map(lambda x: x[..., ::-1].copy()[..., ::-1], tree),
}


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_tree_loses_weights(form):
    tree = google()
    expected = lrp_jax.convert(tree, num_heads=2)[1]
    chex.assert_trees_all_equal(lrp_jax.convert({"model": FORMS[form](tree)}, num_heads=2)[1], expected)


def test_nests_that_are_shared_are_found_under_each_name():
    tree = google()
    blocks = tree["Transformer"]
    blocks["encoderblock_1"] = blocks["encoderblock_0"]
    expected = lrp_jax.convert(jax.tree.map(np.copy, tree), num_heads=2)[1]
    chex.assert_trees_all_equal(lrp_jax.convert(tree, num_heads=2)[1], expected)
    tree["Transformer"]["itself"] = tree
    assert flatten(tree).keys() == flatten(google()).keys()


def test_paths_of_leaves():
    attention = {"value": np.ones(1), "key": np.ones(2)}
    assert flatten({"a": attention}).keys() == {"a/value", "a/key"}
    assert flatten({"value": {"kernel": np.ones(1)}}).keys() == {"value/kernel"}
    assert flatten({0: {"a": [np.ones(1), {"b": 2}]}, "losses": [1.0, 2.0], "n": np.float32(1)}).keys() == {
        *("0/a/0", "0/a/1/b", "losses", "n")
    }


@pytest.mark.parametrize(
    "twice",
    [
        {"head": {"bias": np.ones(3)}, "head/bias": np.zeros(3)},
        {"head.bias": np.ones(3), "head/bias": np.zeros(3)},
        {"more": {0: np.ones(1), "0": np.zeros(1)}},
    ],
)
def test_a_name_that_is_there_twice_is_refused(twice):
    with pytest.raises(ValueError, match=r"holds \S+ twice"):
        lrp_jax.convert(google() | twice, num_heads=2)


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [([1.0, 2.0, 3.0], "list"), (0.5, "float"), (jax.ShapeDtypeStruct((3,), "float32"), "ShapeDtypeStruct")],
)
def test_what_stands_for_a_weight_and_is_no_array_is_named(leaf, kind):
    """A bias that is not read would be taken for one that is not there."""
    with pytest.raises(ValueError, match=rf"head/bias is a {kind}, which is not read: weights must be arrays"):
        lrp_jax.convert(flatten(google()) | {"head/bias": leaf}, num_heads=2)


def test_a_placeholder_in_place_of_a_weight_is_named():
    placeholder = type("P", (Placeholder,), {"origin": "my.Weights"})()
    for name in ("head/bias", "embedding/kernel", "cls"):
        with pytest.raises(ValueError, match=rf"{name} is a my\.Weights, which is not read"):
            lrp_jax.convert(flatten(google()) | {name: placeholder}, num_heads=2)
    with pytest.raises(ValueError, match=r"it holds state_dict \(a my\.Weights\)"):
        lrp_jax.convert({"state_dict": placeholder})
    assert find(W | {"args": placeholder}, SIGNS).arrays.keys() == W.keys()


def fixture(name):
    with np.load(PARITY / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return weights, json.loads(str(arrays["fields"]))


def test_prefixes_in_every_form_of_file(tmp_path):
    weights, fields = fixture("timm-vit_base_patch16_224")
    expected = lrp_jax.convert(weights, **fields)[1]
    wrapped = under("module._orig_mod.", weights)
    safetensors.numpy.save_file(wrapped, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **wrapped)
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize({"model": wrapped}))
    index = {"weight_map": dict.fromkeys(wrapped, "w.safetensors")}
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps(index))
    sources = ("w.safetensors", "w.npz", "w.msgpack", "w.safetensors.index.json")
    for source in (*(tmp_path / name for name in sources), {"a": {"b": wrapped}}):
        found = convert_with_summary(source, **fields)
        chex.assert_trees_all_equal(found.params, expected)
        assert "the names of the weights begin with 'module._orig_mod.', which is left out" in found.notes


@pytest.mark.parametrize("where", [("params",), ("opt", "target"), ()])
def test_trees_of_google(tmp_path, where):
    weights, fields = fixture("google-linen")
    tree = flax.traverse_util.unflatten_dict(weights, sep="/")
    for name in reversed(where):
        tree = {name: tree}
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    expected = lrp_jax.convert(weights, **fields)[1]
    for source in (tree, tmp_path / "w.msgpack"):
        chex.assert_trees_all_equal(lrp_jax.convert(source, **fields)[1], expected)


@pytest.mark.parametrize("name", ["hf-vit-saved", "hf-deit-teacher-saved", "hf-dinov2-registers-saved"])
def test_hugging_face_in_flax(tmp_path, name):
    """The same names, as a tree, with kernels and scales in Flax's layout."""
    weights, fields = fixture(name)
    theirs = {}
    for path, array in weights.items():
        stem, _, kind = path.rpartition(".")
        if kind == "weight":
            axes, kind = {4: ((2, 3, 1, 0), "kernel"), 2: ((1, 0), "kernel"), 1: ((0,), "scale")}[array.ndim]
            array = array.transpose(axes)
        theirs[f"{stem}.{kind}"] = array
    assert len(flatten(theirs)) == len(weights)
    tree = flax.traverse_util.unflatten_dict(theirs, sep=".")
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    found = lrp_jax.convert(tmp_path / "flax_model.msgpack", **fields)
    chex.assert_trees_all_equal(found[1], lrp_jax.convert(weights, **fields)[1])


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"linear_head.weight": np.ones((5, 64)), "linear_head.bias": np.ones(5)}, "linear_head.bias"),
        ({"classifier.0.weight": np.ones((5, 32)), "classifier.2.weight": np.ones((5, 5))}, r"classifier\.0\.weight"),
        ({"head.weight": np.ones((5, 32)), "head.bias": np.ones(5)}, r"head\.bias, head\.weight"),
        ({"fc.weight": np.ones((5, 32))}, r"fc\.weight"),
    ],
)
def test_a_head_beside_a_backbone_is_not_left_aside(beside, named):
    """Its features would be explained as classes."""
    with np.load(PARITY / "timm-vit_base_patch16_224.npz") as file:
        weights = {k.removeprefix("weights/"): v for k, v in file.items() if k.startswith("weights/")}
    tree = {f"backbone.{name}": array for name, array in weights.items() if not name.startswith("head.")} | beside
    with pytest.raises(
        ValueError, match=f"'backbone' have no head, and one stands beside them, .*{named}.*key='backbone'"
    ):
        lrp_jax.convert(tree, num_heads=4)
    model, _ = lrp_jax.convert(tree, num_heads=4, key="backbone")
    assert model.config.num_classes == model.config.width
    projected = {name: array for name, array in tree.items() if name not in beside} | {"head.mlp.0.weight": np.ones(3)}
    assert lrp_jax.convert(projected, num_heads=4)[0].config.num_classes == model.config.width
