"""That the compiler sums rightly, in a program on which one release did not."""

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.xla import set_flags


def gradients(x, g):
    """Of a layer norm, for several cotangents, summed over the tokens."""

    def norm(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)

    return jax.vmap(jax.vjp(norm, x)[1])(g)[0].sum(2)


def test_sums_for_several_classes():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(12, 257, 384)), rng.normal(size=(2, 12, 257, 384))
    expected = jax.jit(gradients)(jnp.asarray(x), jnp.asarray(g))
    found = jax.jit(gradients)(jnp.asarray(x, jnp.float32), jnp.asarray(g, jnp.float32))
    assert expected.dtype == np.float64
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    assert error < 1e-5 * np.abs(expected).max()


def test_flags():
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    for version, before, after in (
        ("0.10.2", {}, {"XLA_FLAGS": flag}),
        ("0.10.2", {"XLA_FLAGS": "--xla_a=1"}, {"XLA_FLAGS": f"--xla_a=1 {flag}"}),
        ("0.10.2", {"XLA_FLAGS": f"{flag}dot"}, {"XLA_FLAGS": f"{flag}dot"}),
        ("0.10.1", {}, {}),
        ("0.12.0", {"XLA_FLAGS": "--xla_a=1"}, {"XLA_FLAGS": "--xla_a=1"}),
    ):
        environment = dict(before)
        set_flags(version, environment)
        assert environment == after
