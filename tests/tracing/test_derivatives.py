"""Functions with a derivative of their own, and rounding: the gradient is jax.grad's, or they are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 4, 4, 3))
P = {n: RNG.normal(size=s) / np.sqrt(s[-2]) for n, s in {"a": (12, 6), "w": (6, 6), "v": (6, 6), "c": (6, 3)}.items()}


def vjp(function, backward):
    """With a backward pass of ``(inputs, cotangent) -> cotangents``."""
    own = jax.custom_vjp(function)
    own.defvjp(lambda *inputs: (function(*inputs), inputs), backward)
    return own


def jvp(function, forward):
    own = jax.custom_jvp(function)
    own.defjvp(forward)
    return own


def truly(function, scale=1.0):
    """The derivative is the function's, times a scale."""
    return vjp(function, lambda inputs, g: jax.vjp(function, *inputs)[1](g * scale))


def product(t, w):
    return jnp.tanh(t @ w)


def rounded(x):
    return jnp.round(x * 8) / 8


def largest(t):
    return jnp.abs(t).max((1, 2), keepdims=True)


def norm(t):
    c = t - t.mean(-1, keepdims=True)
    return c / jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled(scale, x):
    return x


scaled.defvjp(lambda scale, x: (x, None), lambda scale, _, g: (g * scale,))


def straight(t, w):
    """A product as quantisation-aware training writes it."""
    return rounded(t) @ rounded(w)


def as_product(inputs, g):
    t, w = inputs
    return g @ w.T, jnp.einsum("...ni,...no->io", t, g)


#: Of tokens ``[B, n, 6]`` and a kernel. What agrees with its inside, or is one operation of each value, is explained.
TAKEN = {
    "a fused product": lambda t, w: truly(product)(t, w),
    "by forward derivative": lambda t, w: jvp(product, lambda p, d: jax.jvp(product, p, d))(t, w),
    "nested": lambda t, w: truly(lambda t, w: truly(jnp.tanh)(t @ w))(t, w),
    "a fused norm": lambda t, w: truly(norm)(t) @ w,
    "a fused flip of tokens": lambda t, w: truly(lambda t: jnp.flip(t, 1))(t) @ w,
    "attention": lambda t, w: truly(lambda t: jax.nn.softmax(t @ t.mT) @ t)(t) @ w,
    "relu": lambda t, w: jax.nn.relu(t @ w),
    "a scale of the gradient": lambda t, w: scaled(0.5, t @ w),
    "a reversal": lambda t, w: scaled(-1.0, t) @ w,
    "clipping": lambda t, w: vjp(lambda x: x, lambda i, g: (jnp.clip(g, -0.01, 0.01),))(t @ w),
    "rounding, straight through": lambda t, w: vjp(rounded, lambda i, g: (g,))(t) @ w,
    "rounding, by stop_gradient": lambda t, w: (t + jax.lax.stop_gradient(rounded(t) - t)) @ w,
    "of the parameters alone": lambda t, w: t @ vjp(lambda w: rounded(w @ w), lambda i, g: (g,))(w),
    "a part": lambda t, w: (t - jnp.floor(t)) @ w,
    "signed roots": lambda t, w: (jnp.sign(t) * jnp.sqrt(jnp.abs(t) + 0.1)) @ w,
    "places": lambda t, w: jnp.take_along_axis(t, jnp.floor(jax.nn.sigmoid(t[..., :1]) * 2).astype(int), 1) @ w,
    "a hard choice": lambda t, w: t @ w * jax.nn.one_hot(jnp.argmax(t, -1), 6),
    "a stop": lambda t, w: t @ w + jax.lax.stop_gradient(rounded(t)) @ w,
}
REFUSED = {
    "straight": lambda t, w: vjp(straight, as_product)(t, w),
    "clipped": lambda t, w: vjp(jnp.matmul, lambda i, g: as_product(i, jnp.clip(g, -0.01, 0.01)))(t, w),
    "binary": lambda t, w: jvp(lambda t, w: jnp.sign(t) @ w, lambda p, d: (jnp.sign(p[0]) @ p[1], d[0] @ p[1]))(t, w),
    "a scaled product": lambda t, w: truly(product, 1.001)(t, w),
    "inside of another": lambda t, w: truly(lambda t, w: truly(product, 2.0)(t, w))(t, w),
    "closed over": lambda t, w: vjp(lambda t: t @ w, lambda i, g: (2 * g @ w.T,))(t),
    "closed over, of each value": lambda t, w: vjp(jnp.tanh, lambda i, g: (g * w[0],))(t),
    "stopped": lambda t, w: vjp(product, lambda i, g: (jnp.zeros_like(i[0]), i[1]))(t, w) + t,
    "rounded": lambda t, w: rounded(t) @ w,
    "by a scale of its own": lambda t, w: (jnp.round(9 * t / largest(t)) * largest(t)) @ w,
    "integers": lambda t, w: (
        t + (jnp.round(t * 9).astype(jnp.int8) @ jnp.round(w * 9).astype(jnp.int8)).astype(t.dtype)
    ),
    "signs": lambda t, w: t + jnp.sign(t) @ w,
    "quantised, inside of a unit": lambda t, w: t + norm(rounded(t)),
    "concatenated": lambda t, w: jnp.concatenate([t, jnp.floor(t)], 2)[..., 3:9] @ w,
}


def model(*layers, wrap="plain"):
    def block(p, t):
        for layer in layers:
            t = t + layer(t, p["w"])
        return t

    def apply(p, x):
        t = x.reshape(len(x), 4, 12) @ p["a"]
        if wrap == "scan":
            w = jnp.stack([p["w"], p["v"]])
            t = jax.lax.scan(lambda t, w: (block({"w": w}, t), None), t, w)[0]
        elif wrap == "vmap":
            t = jax.vmap(lambda t: block(p, t[None])[0])(t)
        elif wrap == "twice":
            t = block(p, block(p, t))
        else:
            t = (jax.checkpoint(block) if wrap == "remat" else jax.jit(block) if wrap == "jit" else block)(p, t)
        return t.mean(1) @ p["c"]

    return apply


def assert_gradient(apply):
    """The gradient by operations is jax.grad's."""
    traced = lrp_jax.trace(apply, P, IMAGES)
    found = lrp_jax.explain(traced, P, IMAGES, [1, 1], method="full_lrp", rules=lrp_jax.GRADIENT).relevance[:, 0]
    expected = jax.grad(lambda x: apply(P, x)[:, 1].sum())(IMAGES).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TAKEN)
def test_the_gradient_is_that_of_jax(name):
    assert_gradient(model(TAKEN[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused_by_line(name):
    with pytest.raises(lrp_jax.tracing.UnsupportedError, match=r"(own|lost)(.|\n)*test_derivatives.py:\d+"):
        lrp_jax.trace(model(REFUSED[name]), P, IMAGES)


def test_a_loop_is_made_of_equal_derivatives_alone():
    """Blocks that differ in the derivative of their own alone are no loop."""
    assert_gradient(model(*(lambda t, w, s=s: jnp.tanh(scaled(s, t @ w)) for s in (1.0, 0.5, 0.25))))


ALL = TAKEN | REFUSED
WRAPS = ["plain", "scan", "vmap", "twice", "remat", "jit"]


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=2), st.sampled_from(WRAPS))
def test_programs_have_the_gradient_of_jax_or_are_refused(names, wrap):
    apply = model(*(ALL[name] for name in names), wrap=wrap)
    if set(names) <= TAKEN.keys():
        assert_gradient(apply)
    else:
        with pytest.raises(lrp_jax.tracing.UnsupportedError):
            lrp_jax.trace(apply, P, IMAGES)


def test_relevance_of_what_agrees_is_that_of_its_inside():
    plain, fused = (model(lambda t, w, f=f: f(norm)(t) @ w) for f in (lambda f: f, truly))
    of_plain, of_fused = (
        lrp_jax.explain(lrp_jax.trace(f, P, IMAGES), P, IMAGES, method="full_lrp", rules="attnlrp").relevance
        for f in (plain, fused)
    )
    np.testing.assert_allclose(of_fused, of_plain, rtol=1e-12)


@pytest.mark.parametrize("around", [lambda body: body, jax.checkpoint])
def test_what_is_rounded_and_lost_within_a_loop_is_refused(around):
    def apply(w, x):
        def body(x, w):
            codes = jnp.round(x * 16).astype(jnp.int8).astype(jnp.int32) @ jnp.round(w * 16).astype(jnp.int32)
            return x + codes.astype(x.dtype) / 256, None

        return jax.lax.scan(around(body), x.mean((1, 2)), w)[0]

    x, w = np.random.default_rng(0).normal(size=(2, 4, 4, 3)), np.random.default_rng(1).normal(size=(2, 3, 3))
    with pytest.raises(ValueError, match="rounded"):
        lrp_jax.trace(apply, w, x)
