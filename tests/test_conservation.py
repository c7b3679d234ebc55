"""The report of conservation: that it closes, what it counts, and that it is the same however a model is written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import at_blocks, small_images, small_model

import lrp_jax
from lrp_jax.rules import LIBRAGRAD, Where, composite, with_gamma

READOUTS = {
    "class": {},
    "mean": {"readout": "mean", "prefix_tokens": 0},
    "gated": {"swiglu": True, "pre_norm": True},
}


def biased(params):
    """Biases that matter."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)


@functools.cache
def model_of(readout):
    model, params = small_model(**READOUTS[readout])
    return model, biased(params)


TARGETS = np.array([[0, 3], [1, 1]])


@pytest.mark.parametrize(
    ("readout", "rules"),
    [
        *(("class", rules) for rules in ("libragrad", "attnlrp", "cp_lrp", "chefer", "stable")),
        ("mean", "libragrad"),
        ("gated", "stable"),
    ],
)
def test_it_closes(readout, rules):
    """What is explained stands at the tokens, or an operation kept it."""
    model, params = model_of(readout)
    report = lrp_jax.conservation(model, params, small_images(2), TARGETS, rules=rules)
    assert report.gap < 1e-10
    logits = np.take_along_axis(np.asarray(report.logits), TARGETS, axis=1)
    modified = lrp_jax.RULES[rules].times_values
    np.testing.assert_allclose(report.explained, logits if modified else np.ones_like(logits), rtol=1e-12)
    assert report.blocks.shape == (2, 2, 3)


@pytest.mark.parametrize("readout", ["mean", "gated"])
def test_what_is_lost_is_what_biases_have(readout):
    """By LibraGrad, tokens and biases are the logit: FullGrad."""
    model, params = model_of(readout)
    report = lrp_jax.conservation(model, params, small_images(2), TARGETS)
    kinds = ("dense", "layer_norm")
    behind = sum(a.lost for a in report.amounts if a.kind in kinds and a.part != "embedding")
    assert np.abs(behind).min() > 1e-3
    np.testing.assert_allclose(report.blocks[..., 0] + behind, report.explained, rtol=1e-10)
    if model.config.prefix_tokens == 0:
        maps = lrp_jax.explain(model, params, small_images(2), TARGETS, method="libragrad", full=True).relevance
        np.testing.assert_allclose(maps.sum((-2, -1)), report.explained, rtol=1e-10)
        found = at_blocks(model, params, small_images(1)[0], jnp.asarray(TARGETS[0]), "libragrad")
        np.testing.assert_allclose(found.sum((-2, -1)), report.blocks[0], rtol=1e-10)


def test_a_rule_that_loses_is_found():
    """Half of what the second block's MLP adds is lost by a rule that sends half of its gradient back."""

    @lrp_jax.rules.rule(lrp_jax.GRADIENT.add)
    def losing(a, b, z, g):
        return g, g / 2

    model, params = model_of("class")
    lossy = dataclasses.replace(LIBRAGRAD, name="lossy", add=losing)
    rules = composite([(Where("add", part="mlp", depth=1), lossy)], "libragrad")
    report = lrp_jax.conservation(model, params, small_images(2), TARGETS, rules=rules)
    assert report.gap < 1e-10
    lost = report.lost(("add",), depth=1, part="mlp")
    assert np.abs(lost).min() > 1e-3
    others = report.lost(("add",)) - lost
    np.testing.assert_allclose(others, 0, atol=1e-12)


@pytest.mark.parametrize(("readout", "rules"), [("mean", "libragrad"), ("gated", "attnlrp"), ("class", "chefer")])
def test_a_traced_model_has_the_same(readout, rules):
    model, params = model_of(readout)
    traced = lrp_jax.trace(
        lambda p, x: jax.vmap(lambda image: model.apply({"params": p}, image))(x), params, small_images(2)
    )
    found, wanted = (lrp_jax.conservation(m, params, small_images(2), TARGETS, rules=rules) for m in (traced, model))
    assert found.gap < 1e-10
    np.testing.assert_allclose(found.blocks, wanted.blocks, rtol=1e-8)
    for name, row in wanted.rows():
        for column, value in row.items():
            assert dict(found.rows())[name][column] == pytest.approx(value, rel=1e-8, abs=1e-8)


def test_a_network_without_blocks():
    """At the image: a convolution, an activation and a mean."""

    def apply(params, x):
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(x, params["k"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        return (x + params["b"][None, None, None]).mean(axis=(1, 2)) @ params["w"]

    rng = np.random.default_rng(0)
    shapes = {"k": (3, 3, 3, 4), "b": (4,), "w": (4, 5)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    traced = lrp_jax.trace(apply, params, small_images(2))
    report = lrp_jax.conservation(traced, params, small_images(2), TARGETS, rules="baseline")
    assert report.blocks is None
    assert "model" in dict(report.rows())


def test_inside_jit_it_is_arrays():
    """A report is a pytree: it may be returned from a jitted function, mapped, and differentiated."""
    model, params = small_model(depth=1)
    params, images = biased(params), small_images(2)
    wanted = lrp_jax.conservation(model, params, images, TARGETS)
    found, gap, lost = jax.jit(
        lambda p, x: (report := lrp_jax.conservation(model, p, x, TARGETS), report.gap, report.lost(("dense",)))
    )(params, images)
    assert str(found).splitlines()[:-1] == str(wanted).splitlines()[:-1]
    assert gap < 1e-10
    for a, b in zip(jax.tree.leaves((found, lost)), jax.tree.leaves((wanted, wanted.lost(("dense",)))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    each = jax.vmap(lambda x: lrp_jax.conservation(model, params, x[None], TARGETS[0][None]).explained)(images)
    np.testing.assert_allclose(each[0, 0], wanted.explained[0], rtol=1e-9)
    gradient = jax.grad(lambda x: lrp_jax.conservation(model, params, x, TARGETS).explained[0, 0])(images)
    logit = jax.grad(lambda x: model.apply({"params": params}, x)[TARGETS[0, 0]])(images[0])
    np.testing.assert_allclose(gradient[0], logit, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="return the report from the function, and print it outside"):
        jax.jit(lambda p: str(lrp_jax.conservation(model, p, images, TARGETS)))(params)


def test_it_is_printed_and_drawn(tmp_path):
    model, params = model_of("class")
    report = lrp_jax.conservation(model, params, small_images(2), rules=with_gamma(LIBRAGRAD, 0.1))
    text = str(report).splitlines()
    assert text[0] == "libragrad, gamma 0.1 at mlp, mean of 2 maps"
    assert [line.split("  ")[0] for line in text[2:5]] == ["head", "block 2, mlp", "block 2, attention"]
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_bad_input():
    model, params = model_of("class")
    with pytest.raises(ValueError, match="rules must be one of"):
        lrp_jax.conservation(model, params, small_images(1), rules="none")
    with pytest.raises(ValueError, match="targets must be"):
        lrp_jax.conservation(model, params, small_images(1), np.array([[7]]))
