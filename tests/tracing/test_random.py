"""Random networks against a slow, plain, eager implementation of the rules, written for this test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lrp_jax


class Tape:
    """Values, and how relevance goes back from each; every rule a line of NumPy, with the paper's plain divisions."""

    def __init__(self):
        self.back = []

    def put(self, value, *parts):
        """A value and, for each that it was made of, its name and the function from relevance."""
        self.back.append((value, parts))
        return len(self.back) - 1

    def value(self, name):
        return self.back[name][0]

    def relevance(self, last, r):
        found = {last: r}
        for name in reversed(range(last + 1)):
            if name in found:
                for source, function in self.back[name][1]:
                    found[source] = found.get(source, 0) + function(found[name])
        return found[0]


#: What safe divisions lose of what they share out: all where nothing contributes, else a part in b / 1e-9.
LOST = []


def safe(a, b, share=1):
    d = b + 1e-9
    s = np.where(b == 0, 0, a / np.where(d == 0, 1e-9, d))
    LOST.append(share * (a - b * s).sum())
    return s


def split(r, a, b):
    """Of a + b, what each part gets."""
    z = a + b
    r = z * safe(r, z)  # what came back is summed
    s = safe(r, z)
    a, b, total = a * s, b * s, r.sum()
    weight = abs(a.sum()) + abs(b.sum())
    return tuple(p * safe(safe(abs(p.sum()), weight) * total, p.sum()) for p in (a, b))


def zplus(x, w, r):
    xp, xn, wp, wn = np.maximum(x, 0), np.minimum(x, 0), np.maximum(w, 0), np.minimum(w, 0)
    s = safe(r, xp @ wp + xn @ wn)
    return xp * (s @ wp.T) + xn * (s @ wn.T)


def zb(x, w, r):
    lo, hi, wp, wn = x.min(), x.max(), np.maximum(w, 0), np.minimum(w, 0)
    z = x @ w - (lo * wp.sum(0) + hi * wn.sum(0)) + 1e-9
    s = r / z
    return x * (s @ w.T) - lo * (s @ wp.T) - hi * (s @ wn.T)


def windows(x, k, stride):
    """``[rows, cols, k * k * C]`` of an image ``[H, W, C]``, and where each value is from."""
    h, w, c = x.shape
    index = np.arange(x.size).reshape(x.shape)
    rows, cols = (h - k) // stride + 1, (w - k) // stride + 1
    at = np.stack(
        [
            index[i * stride : i * stride + k, j * stride : j * stride + k].reshape(-1)
            for i in range(rows)
            for j in range(cols)
        ]
    )
    return x.reshape(-1)[at], at, (rows, cols, c)


def scattered(values, at, shape):
    out = np.zeros(int(np.prod(shape)))
    np.add.at(out, at.reshape(-1), values.reshape(-1))
    return out.reshape(shape)


# Layers of images [H, W, C]: in JAX as people write them, and on the tape.


def conv(key, c, first):
    k, stride = (2, 2) if first else (2, 1)
    w = jax.random.normal(key, (k, k, c, 6), jnp.float64)
    b = jax.random.normal(jax.random.fold_in(key, 1), (6,), jnp.float64) / 4

    def ours(p, x):
        z = jax.lax.conv_general_dilated(
            x, p["w"], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return z + p["b"]

    def plain(tape, n, p):
        x = tape.value(n)
        parts, at, (rows, cols, _) = windows(x, k, stride)
        flat = p["w"].reshape(-1, 6)
        rule = zb if first else zplus
        return tape.put(
            (parts @ flat + p["b"]).reshape(rows, cols, 6),
            (n, lambda r: scattered(rule(parts, flat, r.reshape(-1, 6)), at, x.shape)),
        )

    return {"w": w, "b": b}, ours, plain


def dense(key, c, first):
    w = jax.random.normal(key, (c, 6), jnp.float64)

    def plain(tape, n, p):
        x = tape.value(n)
        rule = zb if first else zplus
        flat = x.reshape(-1, x.shape[-1])
        return tape.put(x @ p["w"], (n, lambda r: rule(flat, p["w"], r.reshape(-1, 6)).reshape(x.shape)))

    return {"w": w}, lambda p, x: jnp.einsum("bhwc,cd->bhwd", x, p["w"]), plain


def norm(key, c, first):
    def ours(p, x):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3) * p["g"] + p["b"]

    def plain(tape, n, p):
        x = tape.value(n)
        m = x.mean(-1, keepdims=True)
        y = (x - m) / np.sqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-3) * p["g"] + p["b"]
        return tape.put(y, (n, lambda r: r))

    one = jax.random.normal(key, (2, c), jnp.float64)
    return {"g": one[0], "b": one[1]}, ours, plain


def pointwise(function):
    def layer(key, c, first):
        return {}, lambda p, x: function(x), lambda t, n, p: t.put(np.asarray(function(t.value(n))), (n, lambda r: r))

    return layer


def residual(key, c, first):
    w = jax.random.normal(key, (c, c), jnp.float64)

    def plain(tape, n, p):
        x = tape.value(n)
        branch = x @ p["w"]
        m = tape.put(branch, (n, lambda r: zplus(x.reshape(-1, c), p["w"], r.reshape(-1, c)).reshape(x.shape)))
        return tape.put(x + branch, (n, lambda r: split(r, x, branch)[0]), (m, lambda r: split(r, x, branch)[1]))

    return {"w": w}, lambda p, x: x + x @ p["w"], plain


def gate(key, c, first):
    w = jax.random.normal(key, (c, c), jnp.float64)

    def plain(tape, n, p):
        x = tape.value(n)
        m = tape.put(x @ p["w"], (n, lambda r: zplus(x.reshape(-1, c), p["w"], r.reshape(-1, c)).reshape(x.shape)))
        s = tape.put(np.asarray(jax.nn.sigmoid(tape.value(m))), (m, lambda r: r))
        return tape.put(x * tape.value(s), (n, lambda r: r / 2), (s, lambda r: r / 2))

    return {"w": w}, lambda p, x: x * jax.nn.sigmoid(x @ p["w"]), plain


def halves(key, c, first):
    if c % 2:
        return None

    def ours(p, x):
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([b, a], axis=-1)

    def plain(tape, n, p):
        swap = lambda x: np.concatenate([x[..., c // 2 :], x[..., : c // 2]], axis=-1)  # noqa: E731
        return tape.put(swap(tape.value(n)), (n, swap))

    return {}, ours, plain


def shifted(key, c, first):
    return (
        {},
        lambda p, x: jnp.roll(x, 1, axis=2)[:, ::-1],
        lambda t, n, p: t.put(np.roll(t.value(n), 1, axis=1)[::-1], (n, lambda r: np.roll(r[::-1], -1, axis=1))),
    )


def pool(kind):
    def layer(key, c, first):
        def ours(p, x):
            if kind == "max":
                return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
            return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID") / 4

        def plain(tape, n, p):
            x = tape.value(n)
            parts, at, (rows, cols, _) = windows(x, 2, 1)
            parts, at = (v.reshape(rows * cols, 4, c) for v in (parts, at))
            if kind == "max":
                chosen = np.eye(4)[parts.argmax(1)].transpose(0, 2, 1)
                return tape.put(
                    parts.max(1).reshape(rows, cols, c),
                    (n, lambda r: scattered(chosen * r.reshape(-1, 1, c), at, x.shape)),
                )
            z = parts.mean(1, keepdims=True)
            return tape.put(
                z.reshape(rows, cols, c),
                (n, lambda r: scattered(parts * safe(r.reshape(-1, 1, c), z) / 4, at, x.shape)),
            )

        return {}, ours, plain

    return layer


def scaled(key, c, first):
    """A scale and shift of channels that is no layer's own: relevance stays."""
    g = jax.random.normal(key, (c,), jnp.float64)
    return (
        {"g": g},
        lambda p, x: jax.nn.relu(x) * p["g"] + 1,
        lambda t, n, p: t.put(np.maximum(t.value(n), 0) * p["g"] + 1, (n, lambda r: r)),
    )


def attention(key, c, first):
    """Of all positions with all, one head, without projections but of the values."""
    w = jax.random.normal(key, (c, c), jnp.float64)

    def ours(p, x):
        b, h, wd, _ = x.shape
        t = x.reshape(b, h * wd, c)
        a = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", t, t @ p["w"]) / 4, axis=-1)
        return jnp.einsum("bqk,bkc->bqc", a, t).reshape(x.shape)

    def plain(tape, n, p):
        x = tape.value(n)
        t = x.reshape(-1, c)
        flat = tape.put(t, (n, lambda r: r.reshape(x.shape)))
        k = tape.put(t @ p["w"], (flat, lambda r: zplus(t, p["w"], r)))
        scores = t @ tape.value(k).T
        s = tape.put(
            scores,
            (flat, lambda r: t * (safe(r, scores, 1 / 2) @ tape.value(k)) / 2),
            (k, lambda r: tape.value(k) * (safe(r, scores, 1 / 2).T @ t) / 2),
        )
        e = np.exp(scores / 4 - (scores / 4).max(-1, keepdims=True))
        a = tape.put(e / e.sum(-1, keepdims=True), (s, lambda r: r))
        z = tape.value(a) @ t
        o = tape.put(
            z,
            (a, lambda r: tape.value(a) * (safe(r, z, 1 / 2) @ t.T) / 2),
            (flat, lambda r: t * (tape.value(a).T @ safe(r, z, 1 / 2)) / 2),
        )
        return tape.put(tape.value(o).reshape(x.shape), (o, lambda r: r.reshape(-1, c)))

    return {"w": w}, ours, plain


LAYERS = {
    "conv": conv,
    "dense": dense,
    "norm": norm,
    "gelu": pointwise(lambda x: jax.nn.gelu(x, approximate=False)),
    "silu": pointwise(jax.nn.silu),
    "relu": pointwise(jax.nn.relu),
    "tanh": pointwise(jnp.tanh),
    "residual": residual,
    "gate": gate,
    "halves": halves,
    "shifted": shifted,
    "average": pool("average"),
    "max": pool("max"),
    "scaled": scaled,
    "attention": attention,
}


def build(names):
    """A network of layers: parameters, the function in JAX, and its relevance on the tape."""
    key = jax.random.key(len(names))
    params, ours, plain, c, size = [], [], [], 3, 8
    for i, name in enumerate(["conv", *names]):
        if name in ("conv", "average", "max") and i and size < 3:
            continue
        made = LAYERS[name](jax.random.fold_in(key, i), c, i == 0)
        if made is None:
            continue
        p, f, g = made
        params.append(p)
        ours.append(f)
        plain.append(g)
        c = 6 if name in ("conv", "dense") else c
        size = size // 2 if i == 0 else size - (name in ("conv", "average", "max"))
    head = jax.random.normal(jax.random.fold_in(key, 99), (c, 3), jnp.float64)

    def apply(params, x):
        layers, head = params
        for f, p in zip(ours, layers, strict=True):
            x = f(p, x)
        return x.mean(axis=(1, 2)) @ head

    def reference(params, image, target):
        layers, head = jax.tree.map(np.asarray, params)
        tape = Tape()
        n = tape.put(np.asarray(image))
        for g, p in zip(plain, layers, strict=True):
            n = g(tape, n, p)
        x = tape.value(n).reshape(-1, c)
        pooled = x.mean(0)
        shape = tape.value(n).shape
        n = tape.put(pooled, (n, lambda r: (x * safe(r, pooled)[None] / len(x)).reshape(shape)))
        n = tape.put(pooled @ head, (n, lambda r: zplus(pooled[None], head, r[None])[0]))
        return tape.value(n), tape.relevance(n, np.eye(3)[target])

    return (params, head), apply, reference


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6))
def test_relevance_of_a_random_network_is_that_of_a_plain_implementation(names):
    check(names)


@pytest.mark.parametrize("name", LAYERS)
def test_relevance_of_each_layer_is_that_of_a_plain_implementation(name):
    check([name, "residual", name])


def check(names):
    params, apply, reference = build(names)
    images = jax.random.normal(jax.random.key(5), (1, 8, 8, 3), jnp.float64)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = lrp_jax.trace(apply, params, images)
        found = lrp_jax.explain(model, params, images, jnp.array([1]), method="full_lrp", rules="chefer")
    LOST.clear()
    logits, relevance = reference(params, images[0], 1)
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-10, atol=1e-10)
    relevance = relevance.sum(axis=-1)
    assert np.isfinite(relevance).all()
    assert np.abs(relevance).max() > 0
    np.testing.assert_allclose(found.relevance[0, 0], relevance, rtol=1e-7, atol=1e-7 * np.abs(relevance).max())
    # The paper's rules keep the sum, but for their safe divisions.
    np.testing.assert_allclose(found.relevance.sum(), 1 - sum(LOST), rtol=0, atol=1e-6 * np.abs(relevance).sum())
