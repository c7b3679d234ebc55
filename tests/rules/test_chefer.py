"""Each rule against a plain matrix form of its equation, and one case worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE, propagate

from lrp_jax.rules import BASELINE, CHEFER, GRADIENT, stable


def plain_divide(a, b):
    return np.array([x / (y + 1e-9) if y != 0 else 0.0 for x, y in np.nditer([a, b])]).reshape(a.shape)


def plain_dense(x, w, r):
    """The z-plus rule with both signs, term by term."""
    share = x[:, :, None] * w * ((x[:, :, None] > 0) == (w > 0))  # [n, in, out]
    return (share * plain_divide(r, share.sum(axis=1))[:, None]).sum(axis=2)


@pytest.mark.parametrize("with_bias", [True, False])
def test_dense(rng, with_bias):
    x, w, r = rng.normal(size=(5, 50)), rng.normal(size=(50, 4)), rng.normal(size=(5, 4))
    bias = jnp.asarray(rng.normal(size=(1, 4))) if with_bias else None
    output, (relevance,) = propagate(lambda x: CHEFER.dense(x, jnp.asarray(w), bias), [x], r)
    np.testing.assert_allclose(output, x @ w + (0 if bias is None else bias), **TOLERANCE)
    np.testing.assert_allclose(relevance, plain_dense(x, w, r), **TOLERANCE)
    # Conserved: among 50 inputs some contribute to each output, so no denominator is 0.
    np.testing.assert_allclose(relevance.sum(), r.sum(), rtol=1e-6)


def test_dense_by_hand():
    # Output 0 gets 1*2 from input 0 and (-2)*(-3) from input 1: 8 units of relevance split 2 : 6.
    # Output 1 gets 1*4; input 1 would take away ((-2)*5 < 0) and gets nothing: 3 units go to input 0.
    x, w = jnp.array([[1.0, -2.0]]), jnp.array([[2.0, 4.0], [-3.0, 5.0]])
    _, (relevance,) = propagate(lambda x: CHEFER.dense(x, w, None), [x], [[8.0, 3.0]])
    np.testing.assert_allclose(relevance, [[5.0, 6.0]], rtol=1e-8)


def test_dense_without_a_contribution_of_one_sign_loses_relevance():
    # x w+ + x w- is 0 for both outputs: the safe division gives 0, and relevance ends here.
    x, w = jnp.array([[1.0, -1.0]]), jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    _, (relevance,) = propagate(lambda x: CHEFER.dense(x, w, None), [x], [[1.0, 1.0]])
    np.testing.assert_array_equal(relevance, [[0, 0]])


def test_patch_embed(rng):
    x, w, r = rng.normal(size=(6, 12)), rng.normal(size=(12, 5)), rng.normal(size=(6, 5))
    output, (relevance,) = propagate(
        lambda x: CHEFER.patch_embed(x, jnp.asarray(w), jnp.zeros((1, 5), jnp.float64)), [x], r
    )
    lo, hi = x.min(), x.max()
    share = x[:, :, None] * w - lo * np.maximum(w, 0) - hi * np.minimum(w, 0)
    np.testing.assert_allclose(output, x @ w, **TOLERANCE)
    np.testing.assert_allclose(relevance, (share * (r / (share.sum(axis=1) + 1e-9))[:, None]).sum(axis=2), **TOLERANCE)
    np.testing.assert_allclose(relevance.sum(), r.sum(), rtol=1e-6)  # z^B conserves


def test_patch_embed_by_hand():
    # lo = -1, hi = 1, w = (1, -1): the terms are x0 + 1 = 2 and -x1 + 1 = 2: half each.
    _, (relevance,) = propagate(
        lambda x: CHEFER.patch_embed(x, jnp.array([[1.0], [-1.0]]), None), [np.array([[1.0, -1.0]])], [[6.0]]
    )
    np.testing.assert_allclose(relevance, [[3.0, 3.0]], rtol=1e-8)


def test_matmul(rng):
    a, b, r = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 4, 5))
    output, (of_a, of_b) = propagate(CHEFER.matmul, [a, b], r)
    share = a[:, :, :, None] * b[:, None]  # [batch, n, m, p]
    share = share * plain_divide(r, share.sum(axis=2))[:, :, None]
    np.testing.assert_allclose(output, np.einsum("bnm,bmp->bnp", a, b), **TOLERANCE)
    np.testing.assert_allclose(of_a, share.sum(axis=3) / 2, **TOLERANCE)
    np.testing.assert_allclose(of_b, share.sum(axis=1) / 2, **TOLERANCE)
    np.testing.assert_allclose(of_a.sum() + of_b.sum(), r.sum(), rtol=1e-6)  # conserved, half to each


def test_matmul_by_hand():
    # 1*3 + 2*(-1) = 1: the terms 3 and -2 share 4 units as 12 and -8, half of it to each factor.
    _, (of_a, of_b) = propagate(CHEFER.matmul, [np.array([[1.0, 2.0]]), np.array([[3.0], [-1.0]])], [[4.0]])
    np.testing.assert_allclose(of_a, [[6.0, -4.0]], rtol=1e-8)
    np.testing.assert_allclose(of_b, [[6.0], [-4.0]], rtol=1e-8)


def test_add(rng):
    a, b, r = rng.normal(size=(3, 5, 4))
    output, (of_a, of_b) = propagate(CHEFER.add, [a, b], r)
    r = (a + b) * plain_divide(r, a + b)  # summed over what reads the sum, as the authors do
    of_a_raw, of_b_raw = a * plain_divide(r, a + b), b * plain_divide(r, a + b)
    a_sum, b_sum = of_a_raw.sum(), of_b_raw.sum()
    weight = abs(a_sum) + abs(b_sum)
    np.testing.assert_allclose(output, a + b, **TOLERANCE)
    np.testing.assert_allclose(of_a, of_a_raw * abs(a_sum) / weight * r.sum() / a_sum, rtol=1e-7)
    np.testing.assert_allclose(of_b, of_b_raw * abs(b_sum) / weight * r.sum() / b_sum, rtol=1e-7)
    np.testing.assert_allclose(of_a.sum() + of_b.sum(), r.sum(), rtol=1e-6)  # conserved by the normalisation


def test_add_by_hand():
    # z = (4, -1), S = (1, 2): a' = (3, 4), b' = (1, -6), sums 7 and -5. Total 2: a gets 7/12 of it, b gets 5/12,
    # so a' is scaled by (7/12 * 2) / 7 = 1/6 and b' by (5/12 * 2) / -5 = -1/6.
    _, (of_a, of_b) = propagate(CHEFER.add, [np.array([3.0, 2.0]), np.array([1.0, -3.0])], [4.0, -2.0])
    np.testing.assert_allclose(of_a, [3 / 6, 4 / 6], rtol=1e-7)
    np.testing.assert_allclose(of_b, [-1 / 6, 6 / 6], rtol=1e-7)


def test_baseline_dense(rng):
    """Each sign for itself, product by product."""
    x, w, r = rng.standard_normal((3, 4)), rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    _, (relevance,) = propagate(lambda x: BASELINE.dense(x, jnp.asarray(w), None), [x], r)
    expected = np.zeros((3, 4))
    for keep in (np.maximum, np.minimum):
        terms = keep(x, 0)[:, :, None] * keep(w, 0)[None]
        expected += (terms * plain_divide(r, terms.sum(axis=1))[:, None]).sum(axis=2)
    np.testing.assert_allclose(relevance, expected, **TOLERANCE)


def test_baseline_dense_gives_out_twice_what_it_receives(rng):
    x, w, r = rng.standard_normal((3, 40)), rng.standard_normal((40, 5)), rng.standard_normal((3, 5))
    _, (relevance,) = propagate(lambda x: BASELINE.dense(x, jnp.asarray(w), None), [x], r)
    np.testing.assert_allclose(relevance.sum(axis=1), 2 * r.sum(axis=1), rtol=1e-7)


def test_baseline_add_by_hand():
    """z = 4, -1: R / z = 1, 2."""
    _, (of_a, of_b) = propagate(BASELINE.add, [np.array([3.0, 2.0]), np.array([1.0, -3.0])], [4.0, -2.0])
    np.testing.assert_allclose(of_a, [3, 4], rtol=1e-7)
    np.testing.assert_allclose(of_b, [1, -6], rtol=1e-7)


def test_mean(rng):
    x, r = rng.normal(size=(7, 5)), rng.normal(size=5)
    output, (relevance,) = propagate(CHEFER.mean, [x], r)
    np.testing.assert_allclose(output, x.mean(axis=0), **TOLERANCE)
    np.testing.assert_allclose(relevance, x * plain_divide(r, x.mean(axis=0)) / 7, **TOLERANCE)


def test_mean_by_hand():
    # Of 4 + (-1) = 3, twelve units of relevance: 16 for the 4 and -4 for the -1.
    _, (relevance,) = propagate(CHEFER.mean, [[[4.0], [-1.0]]], [12.0])
    np.testing.assert_allclose(relevance, [[16.0], [-4.0]], rtol=1e-8)


def test_multiply(rng):
    """The rule of matmul for matrices of one number."""
    a, b, r = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    output, relevances = propagate(CHEFER.multiply, [a, b], r)
    np.testing.assert_allclose(output, a * b, **TOLERANCE)
    _, expected = propagate(CHEFER.matmul, [a[..., None, None], b[..., None, None]], r[..., None, None])
    for relevance, plain in zip(relevances, expected, strict=True):
        np.testing.assert_allclose(relevance, plain[..., 0, 0], rtol=1e-6)


def test_multiply_by_hand():
    _, relevances = propagate(CHEFER.multiply, [[2.0], [-3.0]], [5.0])
    np.testing.assert_array_equal(relevances, [[2.5], [2.5]])


@pytest.mark.parametrize(
    "operation",
    [
        lambda rules, x: rules.softmax(x, 0.5),
        lambda rules, x: rules.layer_norm(x, jnp.full((1, 4), 2.0), jnp.full((1, 4), 0.5), 1e-6),
        lambda rules, x: rules.activation(jnp.tanh, x),
    ],
    ids=["softmax", "layer_norm", "activation"],
)
def test_identity(rng, operation):
    x, r = jnp.asarray(rng.normal(size=(3, 4))), rng.normal(size=(3, 4))
    output, (relevance,) = propagate(lambda x: operation(CHEFER, x), [x], r)
    np.testing.assert_array_equal(output, operation(GRADIENT, x))
    np.testing.assert_array_equal(relevance, r)  # conserved, place by place


def plain_stable(r, terms, axis, epsilon):
    """Each term times R z / (z^2 + (epsilon sum|terms|)^2)."""
    z, magnitude = terms.sum(axis=axis, keepdims=True), np.abs(terms).sum(axis=axis, keepdims=True)
    return terms * np.expand_dims(r, axis) * z / (z**2 + (epsilon * magnitude) ** 2)


@pytest.mark.parametrize("epsilon", [0.03, 0.5])
def test_stable_rules(rng, epsilon):
    x, w, r = rng.normal(size=(5, 7)), rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    # dense: z is the sum of the positive terms, the magnitude that of all.
    terms = x[:, :, None] * w
    z, magnitude = np.maximum(terms, 0).sum(axis=1), np.abs(terms).sum(axis=1)
    s = r * z / (z**2 + (epsilon * magnitude) ** 2)
    _, (relevance,) = propagate(lambda x: stable(epsilon).dense(x, jnp.asarray(w), None), [x], r)
    np.testing.assert_allclose(relevance, (np.maximum(terms, 0) * s[:, None]).sum(axis=2), **TOLERANCE)

    _, (of_x, of_w) = propagate(stable(epsilon).matmul, [x, w], r)
    share = plain_stable(r, terms, 1, epsilon) / 2
    np.testing.assert_allclose(of_x, share.sum(axis=2), **TOLERANCE)
    np.testing.assert_allclose(of_w, share.sum(axis=0), **TOLERANCE)

    _, (relevance,) = propagate(stable(epsilon).mean, [x], x[0])
    np.testing.assert_allclose(relevance, plain_stable(x[0], x / 5, 0, epsilon), **TOLERANCE)

    a, b, r = rng.normal(size=(3, 5, 4))
    _, (of_a, of_b) = propagate(stable(epsilon).add, [a, b], r)
    raw_a, raw_b = plain_stable(r, np.stack([a, b]), 0, epsilon)
    weight = abs(raw_a.sum()) + abs(raw_b.sum())
    np.testing.assert_allclose(of_a, raw_a * np.sign(raw_a.sum()) / weight * r.sum(), rtol=1e-7)
    np.testing.assert_allclose(of_b, raw_b * np.sign(raw_b.sum()) / weight * r.sum(), rtol=1e-7)
    np.testing.assert_allclose(of_a.sum() + of_b.sum(), r.sum(), rtol=1e-6)  # conserved by the normalisation


def test_stable_rules_approach_the_exact_ones(rng):
    a, b, r = rng.normal(size=(3, 4, 4))
    for name in ("matmul", "add"):
        _, exact = propagate(getattr(CHEFER, name), [a, b], r)
        _, close = propagate(getattr(stable(1e-6), name), [a, b], r)
        np.testing.assert_allclose(close, exact, rtol=1e-5)  # the exact ones add 1e-9, and sums here can be 1e-3


def test_stable_matmul_by_hand():
    # z = 3 - 2 = 1 of terms that sum to 5: with epsilon 0.2 the divisor is 1 + 1 = 2, half of the exact relevance.
    _, (of_a, of_b) = propagate(stable(0.2).matmul, [np.array([[1.0, 2.0]]), np.array([[3.0], [-1.0]])], [[4.0]])
    np.testing.assert_allclose(of_a, [[3.0, -2.0]], rtol=1e-8)
    np.testing.assert_allclose(of_b, [[3.0], [-2.0]], rtol=1e-8)


def test_stable_matmul_does_not_jump_where_the_sum_changes_sign():
    """On the two sides of z = 0 the exact rule's relevance differs without bound, the stable one's hardly."""
    a = np.array([[1.0, 1.0]])
    sides = [np.array([[1.0], [-1 + shift]]) for shift in (1e-7, -1e-7)]
    exact, close = ([propagate(rules.matmul, [a, b], [[1.0]])[1][0] for b in sides] for rules in (CHEFER, stable()))
    assert np.abs(exact[0] - exact[1]).max() > 1e6
    assert np.abs(close[0] - close[1]).max() < 1e-3


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a positive finite number"):
        stable(epsilon)
