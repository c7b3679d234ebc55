"""What all rules share, and the ordinary operations."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE, propagate

from lrp_jax.rules import BASELINE, CHEFER, GRADIENT, RULES, register, rule, safe_divide
from lrp_jax.rules.base import activation, named, product


def test_safe_divide():
    a, b = np.array([1.0, 1.0, -2.0, 3.0]), np.array([0.0, 2.0, -4.0, -1e-9])
    np.testing.assert_allclose(safe_divide(jnp.asarray(a), jnp.asarray(b)), [0, 0.5, 0.5, 3e9], rtol=1e-8)


def test_layer_norm_values(rng):
    x = rng.normal(size=(3, 4))
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6) * 2 + 0.5
    actual = GRADIENT.layer_norm(jnp.asarray(x), jnp.full((1, 4), 2.0), jnp.full((1, 4), 0.5), 1e-6)
    np.testing.assert_allclose(actual, expected, **TOLERANCE)


def test_parameters_receive_no_relevance(rng):
    x, w, bias = rng.normal(size=(2, 3)), rng.normal(size=(3, 4)), rng.normal(size=(1, 4))
    for operation in (CHEFER.dense, CHEFER.patch_embed):
        _, (_, of_w, of_bias) = propagate(operation, [x, w, bias], np.ones((2, 4)))
        assert not of_w.any()
        assert not of_bias.any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype):
    x, w = jnp.ones((2, 3), dtype), jnp.ones((3, 3), dtype)
    for operation, inputs in (
        (lambda x: CHEFER.dense(x, w, None), [x]),
        (lambda x: CHEFER.patch_embed(x, w, None), [x]),
        (CHEFER.matmul, [x, w]),
        (CHEFER.add, [w, w]),
        (lambda x: CHEFER.softmax(x, 0.5), [x]),
    ):
        output, vjp = jax.vjp(operation, *inputs)
        assert output.dtype == dtype
        assert {r.dtype for r in vjp(output)} == {jnp.dtype(dtype)}


class TestRule:
    """What the decorator makes of an equation is what is written by hand with ``jax.custom_vjp``."""

    @staticmethod
    def by_hand(scale):
        @jax.custom_vjp
        def operation(x, w, bias):
            return x @ w + bias

        def forward(x, w, bias):
            return x @ w + bias, (x, w, x @ w)

        def backward(residuals, r):
            x, w, z = residuals
            return scale * x * ((r / z) @ w.T), None, None

        operation.defvjp(forward, backward)
        return operation

    @staticmethod
    @rule(product)
    def decorated(x, w, _, z, r, *, scale):
        return scale * x * ((r / z) @ w.T)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint])
    def test_relevance(self, rng, transform):
        x, w, bias = rng.normal(size=(2, 3)), rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
        r = rng.normal(size=(2, 4))
        value, relevances = propagate(transform(partial(self.decorated, scale=3.0)), [x, w, bias], r)
        expected, by_hand = propagate(self.by_hand(3.0), [x, w, bias], r)
        np.testing.assert_array_equal(value, expected)
        for relevance, plain in zip(relevances, by_hand, strict=True):
            np.testing.assert_array_equal(relevance, plain)

    def test_under_vmap_and_scan(self, rng):
        x, w = jnp.asarray(rng.normal(size=(5, 2, 3))), jnp.asarray(rng.normal(size=(3, 3)))

        def run(operation):
            def step(carry, _):
                return operation(carry, w, jnp.zeros_like(carry)), None

            return jax.vmap(jax.grad(lambda x: jax.lax.scan(step, x, None, length=2)[0].sum()))(x)

        np.testing.assert_allclose(run(partial(self.decorated, scale=2.0)), run(self.by_hand(2.0)), rtol=1e-12)

    def test_inputs_that_are_no_arrays(self):
        tripled = rule(activation)(lambda function, x, z, r: 3 * r + z)
        value, (relevance,) = propagate(partial(tripled, jnp.square), [[2.0, 3.0]], [1.0, 1.0])
        np.testing.assert_array_equal(value, [4, 9])
        np.testing.assert_array_equal(relevance, [7, 12])


def test_rule_sets_are_known_by_name():
    own = dataclasses.replace(BASELINE, name="own")
    with pytest.raises(ValueError, match=r"rules must be one of chefer, stable, baseline, .*, or a Rules; got 'own'"):
        named("own")
    try:
        assert register(own) is named("own") is named(own)
    finally:
        del RULES["own"]
