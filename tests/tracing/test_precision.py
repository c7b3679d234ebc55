"""Programs that compute in less precision than their parameters: values of their own, relevance that is not rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lrp_jax
from lrp_jax.walk import forward

pytestmark = pytest.mark.usefixtures("as_users")

LOW = [jnp.bfloat16, jnp.float16, jnp.float32]
WIDTH, TOKENS = 4, 6


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# Layers of tokens [N, WIDTH] in a dtype: as JAX has them, and what relevance of the gradient goes back, in float64, of
# the values that they have in that dtype.


def high(x):
    return np.asarray(x, np.float64)


def dense(p, x):
    return x @ p["w"]


def residual(p, x):
    return x + x @ p["w"]


def biased(p, x):
    return x @ p["w"] + p["b"]


def gated(p, x):
    return x * (x @ p["w"])


def rectified(p, x):
    """A function with a derivative of its own: 0 at 0."""
    return jax.nn.relu(x - x[:1])


def squashed(p, x):
    return jnp.tanh(x)


def moved(p, x):
    return jnp.concatenate([x[1:], x[:1]])[:, ::-1]


LAYERS = {f.__name__: f for f in (dense, residual, biased, gated, rectified, squashed, moved)}


def back(layer, p, x, g):
    """The gradient of a layer by hand, in float64."""
    w = high(p["w"])
    if layer in (dense, biased):
        return g @ w.T
    if layer is residual:
        return g + g @ w.T
    if layer is gated:
        return g * high(x @ p["w"]) + (g * high(x)) @ w.T
    if layer is rectified:
        g = g * (high(x - x[:1]) > 0)
        return g - np.eye(TOKENS)[:, :1] * g.sum(axis=0)
    if layer is squashed:
        return g * (1 - np.tanh(high(x)) ** 2)
    g = g[:, ::-1]
    return np.concatenate([g[-1:], g[:-1]])


def build(names, dtype):
    """Parameters in float64, the function that computes in ``dtype``, and its gradient in float64."""
    params = [{"w": drawn(i, WIDTH, WIDTH), "b": drawn(i + 50, WIDTH)} for i in range(len(names))]
    params = {"layers": params, "head": drawn(99, WIDTH, 3)}
    layers = [LAYERS[name] for name in names]

    def apply(params, x):
        p = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        x = jnp.asarray(x, dtype)
        for layer, of_layer in zip(layers, p["layers"], strict=True):
            x = jax.vmap(lambda tokens, f=layer, q=of_layer: f(q, tokens))(x)
        return x.mean(axis=1) @ p["head"]

    def gradient(x, target):
        p = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        values = [jnp.asarray(x, dtype)]
        for layer, of_layer in zip(layers, p["layers"], strict=True):
            values.append(layer(of_layer, values[-1]))
        g = np.broadcast_to(high(p["head"])[:, target] / TOKENS, (TOKENS, WIDTH))
        for layer, of_layer, value in zip(layers[::-1], p["layers"][::-1], values[-2::-1], strict=True):
            g = back(layer, of_layer, value, g)
        return g

    return params, apply, gradient


def pulled(model, params, image):
    """The logits, and the function from their cotangent to the image's."""
    return jax.vjp(lambda image: forward(model, params, image, lrp_jax.GRADIENT), image)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4), st.sampled_from(LOW))
def test_gradients_are_not_rounded(names, dtype):
    params, apply, gradient = build(names, dtype)
    x = drawn(7, 1, TOKENS, WIDTH)
    model = lrp_jax.trace(apply, params, x)
    params_of, image = model.prepare(params, jnp.asarray(x[0]))
    logits, pull = pulled(model, params_of, image)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(logits, high(apply(params, x))[0], rtol=4 * eps, atol=4 * eps)
    expected = gradient(x[0], 1)
    (found,) = pull(jnp.eye(3)[1])
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


# An attention model of images, of parameters in float64, whose program is told a dtype.

KEYS = {"in": (12, 6), "positions": (16, 6), "q": (6, 6), "k": (6, 6), "v": (6, 6), "w": (6, 6), "out": (6, 3)}
PARAMS = {name: drawn(i, *shape) / np.sqrt(shape[0]) for i, (name, shape) in enumerate(KEYS.items())}
IMAGES = drawn(20, 2, 8, 8, 3)


def classifier(dtype, offset=0.0, depth=2):
    def block(x, p):
        scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x @ p["k"]).astype(jnp.promote_types(dtype, jnp.float32)) / 3
        x = x + jax.nn.softmax(scores, axis=-1).astype(dtype) @ (x @ p["v"])
        return x + jax.nn.silu(x @ p["w"]), None

    def apply(params, x):
        p = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        x = jnp.asarray(x, dtype).reshape(-1, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12)
        x = x @ p["in"] + p["positions"] + offset
        blocks = {name: jnp.stack([p[name]] * depth) for name in "qkvw"}
        x, _ = jax.lax.scan(block, x, blocks)
        return x.mean(axis=1) @ p["out"]

    return apply


def correlation(a, b):
    return min(np.corrcoef(np.ravel(x), np.ravel(y))[0, 1] for x, y in zip(a, b, strict=True))


def test_maps_of_low_precision_are_near_those_of_high():
    low, high_ = (lrp_jax.trace(classifier(dtype), PARAMS, IMAGES) for dtype in (jnp.bfloat16, jnp.float64))
    assert high_.unrounded is None
    assert "bfloat16[" in low.report()[3].output
    own = classifier(jnp.bfloat16)(PARAMS, IMAGES)
    targets = np.array([1, 2])
    for method in ("transformer_attribution", "attnlrp"):
        found, expected = (lrp_jax.explain(m, PARAMS, IMAGES, targets, method=method) for m in (low, high_))
        np.testing.assert_allclose(found.logits, high(own), atol=2 * float(jnp.finfo(jnp.bfloat16).eps))
        assert found.relevance.dtype == found.logits.dtype == jnp.float64
        assert correlation(found.relevance, expected.relevance) > 0.99
        assert len(np.unique(found.relevance[0])) > 10
    signals = lrp_jax.attention_signals(low, PARAMS, IMAGES, targets)
    rounded = signals.attention.astype(jnp.bfloat16)
    np.testing.assert_array_equal(signals.attention, rounded.astype(jnp.float64))
    assert (signals.relevance != signals.relevance.astype(jnp.bfloat16).astype(jnp.float64)).any()


def test_what_conserves_in_high_precision_does_in_low():
    model = lrp_jax.trace(classifier(jnp.bfloat16, depth=1), PARAMS, IMAGES)
    found = lrp_jax.conservation(model, PARAMS, IMAGES)
    # Not to 1e-15, as values are rounded sums: what is lost are their roundings.
    assert found.gap < 0.05


def test_maps_that_rounding_decides_are_warned_of():
    """Beside an offset of 5,000, what tokens differ in is below the resolution of bfloat16."""
    low = lrp_jax.trace(classifier(jnp.bfloat16, offset=5e3), PARAMS, IMAGES)
    with pytest.warns(UserWarning, match=r"their correlation with maps of the same program in float64 is -?0\.\d\d"):
        lrp_jax.explain(low, PARAMS, IMAGES, method="input_x_gradient")


def test_a_choice_between_branches_and_a_cast_of_the_map():
    """Branches, comparisons and integers made of values that are kept in more precision."""

    def apply(params, inputs):
        x, flag = inputs["x"].astype(jnp.float16), inputs["flag"]
        w = params.astype(jnp.float16)
        x = jax.lax.cond(flag[0, 0] > 0, lambda x: x @ w, lambda x: x, x)
        x = jnp.where(x > jnp.float16(0.5), x, x.astype(jnp.int32).astype(jnp.float16) * x)
        return jax.lax.reduce_precision(x, 5, 4).mean(axis=1)

    params, x = drawn(0, 3, 3), drawn(1, 1, 5, 3)
    for flag in (0, 1):
        inputs = {"x": x, "flag": np.full((1, 1), flag)}
        model = lrp_jax.trace(apply, params, inputs, explain_wrt="x")
        given, image = model.prepare(params, jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), inputs))
        logits, pull = pulled(model, given, image)
        np.testing.assert_array_equal(logits, high(apply(params, inputs))[0])
        y = high(jnp.float16(x)[0] @ jnp.float16(params)) if flag else high(jnp.float16(x))[0]
        slope = np.where(y > 0.5, 1, np.trunc(y)) / 5 * np.array([0, 1, 0])
        expected = slope @ high(jnp.float16(params)).T if flag else slope
        np.testing.assert_allclose(pull(jnp.array([0.0, 1.0, 0.0]))[0], expected, atol=1e-12)


@jax.custom_vjp
def doubled(x):
    return jnp.tanh(x)


doubled.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (2 * g * (1 + x),))


def test_a_derivative_of_ones_own_is_computed_in_high_precision():
    def apply(params, x):
        return (doubled(x.astype(jnp.bfloat16)) @ params.astype(jnp.bfloat16)).sum(axis=1)

    params, x = drawn(0, 3, 2), drawn(1, 1, 4, 3)
    model = lrp_jax.trace(apply, params, x)
    _, pull = pulled(model, *model.prepare(params, jnp.asarray(x[0])))
    expected = 2 * high(jnp.bfloat16(params))[:, 0] * (1 + high(jnp.bfloat16(x[0])))
    np.testing.assert_allclose(pull(jnp.array([1.0, 0.0]))[0], expected, rtol=1e-12)
