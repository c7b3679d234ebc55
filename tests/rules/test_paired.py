"""Gradient and relevance in one pass are those of two."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE

from lrp_jax.rules import CHEFER, GRADIENT
from lrp_jax.rules.paired import vjp

OPERATIONS = {
    "dense": (lambda rules, x, y: rules.dense(x, jnp.eye(4) * 2.0 - 0.3, jnp.ones(4)), 1),
    "patch_embed": (lambda rules, x, y: rules.patch_embed(x, jnp.eye(4) * 2.0 - 0.3, None), 1),
    "matmul": (lambda rules, x, y: rules.matmul(x, y.T), 2),
    "add": (lambda rules, x, y: rules.add(x, y), 2),
    "multiply": (lambda rules, x, y: rules.multiply(x, y), 2),
    "mean": (lambda rules, x, y: rules.mean(x), 1),
    "softmax": (lambda rules, x, y: rules.softmax(x, 0.5), 1),
    "layer_norm": (lambda rules, x, y: rules.layer_norm(x, jnp.ones(4), jnp.ones(4), 1e-6), 1),
    "activation": (lambda rules, x, y: rules.activation(jnp.tanh, x), 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradient_and_relevance_side_by_side(rng, name):
    """As two separate passes give them; inside a loop and an outer vmap too."""
    operation, inputs = OPERATIONS[name]
    x, y = jnp.asarray(rng.normal(size=(2, 5, 4, 4)))  # a batch of 5

    def separate(rules, x, y):
        output, vjp = jax.vjp(lambda x, y: operation(rules, x, y), x, y)
        return output, vjp(output)[:inputs]

    @jax.jit
    @jax.vmap
    def together(x, y):
        def function(rules, x, y):
            def step(carry, _):
                return carry, operation(rules, *carry)

            return jax.lax.scan(step, (x, y), None, length=1)[1][0], ()

        output, pull, () = vjp(function, (GRADIENT, CHEFER), x, y)
        return output, pull(output)[:inputs]

    (output, gradient), (_, relevance) = (jax.vmap(partial(separate, rules))(x, y) for rules in (GRADIENT, CHEFER))
    value, pairs = together(x, y)
    np.testing.assert_allclose(value, output, **TOLERANCE)
    for pair, g, r in zip(pairs, gradient, relevance, strict=True):
        np.testing.assert_allclose(pair[:, 0], g, **TOLERANCE)
        np.testing.assert_allclose(pair[:, 1], r, **TOLERANCE)
