"""Rules by place: which operations a pattern matches, that the first wins, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import small_images, small_model

import lrp_jax
from lrp_jax.rules import ATTNLRP, CP_LRP, GRADIENT, LIBRAGRAD, OPERATIONS, Rules, Where, composite, with_gamma
from lrp_jax.rules.taps import everywhere

SMOOTH = with_gamma(CP_LRP, 0.3, "all")


def relevance(rules, **fields):
    model, params = small_model(**fields)
    return lrp_jax.explain(model, params, small_images(2), np.array([0, 1]), method="full_lrp", rules=rules).relevance


def counts(patterns, default="cp_lrp", **fields):
    model, params = small_model(**fields)
    found = lrp_jax.matches(model, params, small_images(1), composite(patterns, default))
    return [match.operations for match in found]


# Of three blocks: norm, qkv, two products, softmax, proj and addition; norm, two products, activation and addition;
# before them, patches and positions; behind them, norm, the class token (moved), and head.
@pytest.mark.parametrize(
    ("where", "operations"),
    [
        (Where("dense"), 13),
        (Where("patch_embed"), 1),
        (Where("matmul"), 6),
        (Where(part="embedding"), 2),
        (Where(part="attention"), 21),
        (Where(part="mlp"), 15),
        (Where(part="head"), 2),
        (Where(depth=1), 12),
        (Where(depth=range(2)), 24),
        (Where(depth=[0, -1]), 24),
        (Where("softmax", depth=-1), 1),
        (Where(parameter="blocks/mlp/fc?/kernel"), 6),
        (Where(parameter="*/bias"), 3 * 6 + 3),
        (Where(parameter="pos_embed"), 1),
        (Where("layer_norm", parameter="blocks/norm1/*", depth=0), 1),
    ],
    ids=str,
)
def test_what_a_pattern_matches(where, operations):
    assert counts([(where, SMOOTH)]) == [operations, 40 - operations]


def test_the_first_pattern_that_matches_wins():
    assert counts([(Where(depth=0), "attnlrp"), (Where("dense"), SMOOTH)]) == [12, 9, 19]
    assert counts([(Where("dense"), SMOOTH), (Where(depth=0), "attnlrp")]) == [13, 8, 19]


def test_composites_in_composites():
    inner = composite([(Where("dense"), SMOOTH)], "attnlrp")
    assert counts([(Where(part="mlp"), inner)]) == [6, 9, 25]
    found = relevance(composite([(Where(part="mlp"), inner)], "libragrad"))
    flat = composite([(Where("dense", part="mlp"), SMOOTH), (Where(part="mlp"), "attnlrp")], "libragrad")
    np.testing.assert_allclose(found, relevance(flat), rtol=1e-12)


@pytest.mark.parametrize("where", [Where("dense"), Where("softmax"), Where("activation"), Where("matmul")], ids=str)
def test_a_kind_is_a_field(where):
    other = dataclasses.replace(LIBRAGRAD, name="other", **{where.kind: getattr(ATTNLRP, where.kind)})
    np.testing.assert_allclose(relevance(composite([(where, "attnlrp")], "libragrad")), relevance(other), rtol=1e-12)


def test_all_patterns_together_are_everywhere():
    parts = [(Where(part=part), "attnlrp") for part in lrp_jax.rules.PARTS]
    np.testing.assert_allclose(relevance(composite(parts, "cp_lrp")), relevance("attnlrp"), rtol=1e-12)
    depths = [(Where(depth=i), "attnlrp") for i in range(3)]
    rest = [(Where(part="embedding"), "attnlrp"), (Where(part="head"), "attnlrp")]
    np.testing.assert_allclose(relevance(composite(depths + rest, "ali_lrp")), relevance("attnlrp"), rtol=1e-12)


@pytest.mark.parametrize("method", ["transformer_attribution", "full_lrp"])
def test_every_method_with_rules_takes_one(method):
    """And jits, batches and differentiates."""
    model, params = small_model()
    rules = composite([(Where(depth=0), "stable")], "chefer")
    images, targets = small_images(2), np.array([[0, 1], [2, 2]])

    @jax.jit
    def maps(params, images, targets):
        return lrp_jax.explain(model, params, images, targets, method=method, rules=rules).relevance

    both = maps(params, images, targets)
    for i in range(2):
        np.testing.assert_allclose(maps(params, images[i : i + 1], targets[i : i + 1])[0], both[i], rtol=1e-10)
    gradient = jax.grad(lambda p: (maps(p, images, targets) ** 2).sum())(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_a_pattern_without_a_match_is_refused():
    for where in (Where(depth=3), Where(parameter="blocks/fc1/*"), Where("multiply"), Where(line="model.py:1")):
        rules = composite([(Where("dense"), "attnlrp"), (where, "cp_lrp")], "libragrad", name="mine")
        with pytest.raises(ValueError, match="mine: no operation of the model matches ") as told:
            relevance(rules)
        assert str(where) in str(told.value)
        assert "kind='dense': attnlrp, 13 operations" in str(told.value)


def test_lines_of_a_traced_model():
    def head(x, w):
        return x @ w

    def apply(params, x):
        x = x.reshape(len(x), -1)
        return head(jax.nn.relu(head(x, params["a"])), params["b"])

    keys = jax.random.split(jax.random.key(0), 2)
    params = {"a": jax.random.normal(keys[0], (768, 8)), "b": jax.random.normal(keys[1], (8, 5))}
    traced = lrp_jax.trace(apply, params, small_images(1))
    line = head.__code__.co_firstlineno + 1
    rules = composite([(Where(line=f"test_composite.py:{line}"), "stable")], "baseline")
    assert [m.operations for m in lrp_jax.matches(traced, params, small_images(1), rules)] == [2, 1]
    wrong = [Where(line=f"test_composite.py:{line}0"), Where(line=f"composite.py:{line}"), Where(depth=0)]
    for where in wrong:
        rules = composite([(where, "stable")], "baseline")
        with pytest.raises(ValueError, match=f"no operation of the model matches {str(where)[:5]}"):
            lrp_jax.explain(traced, params, small_images(1), method="full_lrp", rules=rules)


def test_bad_patterns():
    for wrong, message in (
        (lambda: Where(), "a pattern must say"),
        (lambda: Where("dens"), "kind must be one of dense, "),
        (lambda: Where(part="body"), "part must be one of embedding, "),
        (lambda: Where(depth="1"), "depth must be the number of a block, or several; got '1'"),
        (lambda: Where(depth=True), "depth must be"),
        (lambda: Where(parameter=3), "parameter must be a text, got 3"),
        (lambda: composite([], "stable"), "at least one"),
        (lambda: composite([("dense", "stable")], "stable"), "pairs of a lrp_jax.Where and rules"),
        (lambda: composite([(Where("dense"), "none")], "stable"), "rules must be one of"),
        (lambda: composite([(Where("dense"), "attnlrp")], "stable"), "stable, which sends relevance, and attnlrp"),
        (lambda: composite([(Where("dense"), GRADIENT)], "stable"), "and gradient, which sends gradients"),
        (lambda: with_gamma(ATTNLRP, -1.0), "gamma must be a finite number of at least 0, got -1.0"),
        (lambda: with_gamma(ATTNLRP, True), "gamma must be"),
        (lambda: with_gamma(ATTNLRP, 0.1, "head"), "gamma_at must be one of mlp, all; got 'head'"),
        (lambda: with_gamma(lrp_jax.CHEFER, 0.1), "chefer sends relevance back"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    model, params = small_model()
    with pytest.raises(ValueError, match="composite gave; attnlrp is the same everywhere"):
        lrp_jax.matches(model, params, small_images(1), ATTNLRP)


def test_gradients_may_be_mixed_in():
    rules = composite([(Where("dense"), GRADIENT)], "cp_lrp")
    assert rules.times_values
    np.testing.assert_allclose(relevance(rules), relevance("cp_lrp"), rtol=1e-12)


def test_other_operations_everywhere_are_equal_where_the_rules_are():
    """So that a model still runs its blocks in one loop."""

    def change(rules, place):
        return dataclasses.replace(rules, add=lambda a, b: rules.add(a, b))

    changed = everywhere(ATTNLRP, change, ("part",))
    assert isinstance(changed, Rules)
    assert changed.at(depth=0, blocks=3) == changed.at(depth=1, blocks=3)
    assert changed.at(part="mlp") != changed.at(part="head")
    assert set(OPERATIONS) >= {"dense", "add"}
