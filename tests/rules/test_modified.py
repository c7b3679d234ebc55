"""Modified gradients against plain forms, and one case worked by hand each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE, propagate

from lrp_jax.rules import ALI_LRP, ATTNLRP, CP_LRP, GRADIENT, LIBRAGRAD
from lrp_jax.rules.modified import gamma_dense

SETS = (ALI_LRP, CP_LRP, LIBRAGRAD, ATTNLRP)


@pytest.mark.parametrize("rules", SETS, ids=lambda rules: rules.name)
def test_values_are_the_ordinary_ones(rng, rules):
    x, y = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
    for name, inputs in (
        ("dense", (x, y.T, None)),
        ("matmul", (x, y.T)),
        ("add", (x, y)),
        ("multiply", (x, y)),
        ("mean", (x,)),
        ("softmax", (x, 0.5)),
        ("layer_norm", (x, y[0], y[1], 1e-6)),
        ("activation", (jax.nn.gelu, x)),
    ):
        np.testing.assert_array_equal(getattr(rules, name)(*inputs), getattr(GRADIENT, name)(*inputs))
    assert rules.times_values
    assert not GRADIENT.times_values


def test_products(rng):
    a, b, g = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    for rules, share in ((ATTNLRP, 0.5), (LIBRAGRAD, 1), (CP_LRP, 1), (ALI_LRP, 1)):
        _, (of_a, of_b) = propagate(rules.matmul, [a, b], g)
        np.testing.assert_allclose(of_a, share * np.einsum("ij,kj->ik", g, b), **TOLERANCE)
        np.testing.assert_allclose(of_b, share * np.einsum("ik,ij->kj", a, g), **TOLERANCE)


def test_gates(rng):
    gate, h, g = (rng.normal(size=(3, 4)) for _ in range(3))
    for rules in SETS:
        held = rules in (CP_LRP, ALI_LRP)
        _, (of_gate, of_h) = propagate(rules.multiply, [gate, h], g)
        np.testing.assert_allclose(of_gate, 0 if held else g * h / 2, **TOLERANCE)
        np.testing.assert_allclose(of_h, g * gate if held else g * gate / 2, **TOLERANCE)
        _, both = propagate(lambda a, b, rules=rules: rules.multiply(a, b, gated=False), [gate, h], g)
        np.testing.assert_allclose(both, [g * h / 2, g * gate / 2], **TOLERANCE)


def test_softmax(rng):
    x, g = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    (gradient,) = propagate(lambda x: GRADIENT.softmax(x, 0.5), [x], g)[1]
    for rules in SETS:
        _, (found,) = propagate(lambda x, rules=rules: rules.softmax(x, 0.5), [x], g)
        np.testing.assert_array_equal(found, gradient if rules is ATTNLRP else np.zeros((3, 4)))


def centred(x):
    return x - x.mean(axis=-1, keepdims=True)


NORMALISATIONS = {
    "usual": (None, lambda x: (np.sqrt((centred(x) ** 2).mean(-1, keepdims=True) + 1e-6), True)),
    "power": (
        lambda x: centred(x) * ((centred(x) ** 2).mean(-1, keepdims=True) + 1e-3) ** -0.5,
        lambda x: (np.sqrt((centred(x) ** 2).mean(-1, keepdims=True) + 1e-3), True),
    ),
    "root mean square": (
        lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True)),
        lambda x: (np.sqrt((x * x).mean(-1, keepdims=True)), False),
    ),
    "length": (
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        lambda x: (np.sqrt((x * x).sum(-1, keepdims=True)), False),
    ),
    "sum of magnitudes": (
        lambda x: x / jnp.abs(x).sum(-1, keepdims=True),
        lambda x: (np.abs(x).sum(-1, keepdims=True), False),
    ),
    "mean alone": (centred, lambda x: (1, True)),
}


@pytest.mark.parametrize("form", NORMALISATIONS)
@pytest.mark.parametrize("rules", [CP_LRP, ATTNLRP], ids=lambda rules: rules.name)
def test_layer_norm_holds_what_it_divides_by(rng, rules, form):
    x, g, scale, bias = rng.normal(size=(3, 8)), rng.normal(size=(3, 8)), *rng.normal(size=(2, 8))
    function, deviation = NORMALISATIONS[form]

    def operation(x):
        if function is None:
            return rules.layer_norm(x, jnp.asarray(scale), jnp.asarray(bias), 1e-6)
        return rules.layer_norm(x, function=function)

    held, subtracts = deviation(x)
    sent = (g * scale if function is None else g) / held
    _, (found,) = propagate(operation, [x], g)
    np.testing.assert_allclose(found, centred(sent) if subtracts else sent, **TOLERANCE)


def test_layer_norm_by_hand():
    # Mean 2, deviation 1: y = (-1, 1). g = (1, 0) over 1, less its mean 1/2: (1/2, -1/2). The gradient is 0.
    ones, zeros, x = jnp.ones(2), jnp.zeros(2), [[1.0, 3.0]]
    _, (found,) = propagate(lambda x: LIBRAGRAD.layer_norm(x, ones, zeros, 0.0), [x], [[1.0, 0.0]])
    np.testing.assert_allclose(found, [[0.5, -0.5]], atol=1e-12)
    _, (gradient,) = propagate(lambda x: GRADIENT.layer_norm(x, ones, zeros, 0.0), [x], [[1.0, 0.0]])
    np.testing.assert_allclose(gradient, [[0, 0]], atol=1e-12)


@pytest.mark.parametrize("function", [jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jnp.exp])
def test_activation(rng, function):
    x, g = rng.normal(size=50) * 3, rng.normal(size=50)
    x[:5] = 0
    _, (found,) = propagate(lambda x: LIBRAGRAD.activation(function, x), [x], g)
    at_zero, slope = jax.jvp(function, (jnp.zeros(()),), (jnp.ones(()),))
    expected = np.where(x == 0, slope, (np.asarray(function(jnp.asarray(x))) - at_zero) / np.where(x == 0, 1, x))
    np.testing.assert_allclose(found, g * expected, **TOLERANCE)
    _, (gradient,) = propagate(lambda x: ALI_LRP.activation(function, x), [x], g)
    np.testing.assert_allclose(gradient, g * np.asarray(jax.vmap(jax.grad(function))(jnp.asarray(x))), **TOLERANCE)


def test_activation_without_a_value_at_zero(rng):
    x, g = rng.normal(size=20), rng.normal(size=20)
    for function, slope in ((lambda x: 1 / x, -1 / x**2), (lambda x: jnp.log(jnp.abs(x)), 1 / x)):
        _, (found,) = propagate(lambda x, f=function: CP_LRP.activation(f, x), [x], g)
        np.testing.assert_allclose(found, g * slope, **TOLERANCE)


@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gamma(rng, gamma, with_bias):
    """Term by term, as zennit has it; without gamma the gradient."""
    x, w, g = rng.normal(size=(5, 7)), rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    b = rng.normal(size=4) if with_bias else np.zeros(4)
    x[0, :3] = 0
    given = jnp.asarray(b)[None] if with_bias else None
    output, (found,) = propagate(lambda x: gamma_dense(x, jnp.asarray(w), given, gamma=gamma), [x], g)
    terms, z = x[:, :, None] * w, x @ w + b
    np.testing.assert_allclose(output, z, **TOLERANCE)
    same = (terms > 0) == (z > 0)[:, None]
    share = terms + gamma * np.where(same, terms, 0)
    whole = share.sum(axis=1) + b + gamma * np.where((b > 0) == (z > 0), b, 0)
    np.testing.assert_allclose(x * found, (share * (g * z / whole)[:, None]).sum(axis=2), **TOLERANCE)
    if not gamma:
        np.testing.assert_allclose(found, g @ w.T, **TOLERANCE)


def test_gamma_by_hand():
    # Terms 2 and -1, z = 1 > 0: with gamma 1 the first counts twice, 4 - 1 = 3, and z g = 1 is shared 4/3 and -1/3.
    x, w = jnp.array([[1.0, 1.0]]), jnp.array([[2.0], [-1.0]])
    _, (found,) = propagate(lambda x: gamma_dense(x, w, None, gamma=1.0), [x], [[1.0]])
    np.testing.assert_allclose(found, [[4 / 3, -1 / 3]], rtol=1e-12)
    # All inputs 0, or terms that cancel: nothing is divided by 0.
    _, (found,) = propagate(lambda x: gamma_dense(x, w, None, gamma=1.0), [[[0.0, 0.0], [1.0, 2.0]]], [[1.0], [1.0]])
    np.testing.assert_array_equal(found, [[0, 0], [0, 0]])
