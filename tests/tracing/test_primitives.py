"""Primitives beside products: their gradient is JAX's, their relevance that of a plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

N, D = 6, 4
ROWS = np.arange(N)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


P = {
    "w": normal(3, D, D),
    "re": normal(D, 5),
    "im": normal(D, 5),
    "lam": jax.lax.complex(normal(D), normal(D)),
    "filter": jax.lax.complex(normal(N // 2 + 1, D), normal(N // 2 + 1, D)),
    "half": normal(N // 2, D),
}


def safe(a, b):
    return np.where(b == 0, 0, a / np.where(b == 0, 1, b))


def pooled(matrix):
    """Sums of values, ``z = M x``: each has its share of them."""
    return lambda t, r: t * (matrix.T @ safe(r, matrix @ t))


LOST = []  # relevance of sums without a term


def zplus(x, w, r):
    xp, xn, wp, wn = np.maximum(x, 0), np.minimum(x, 0), np.maximum(w, 0), np.minimum(w, 0)
    z = xp @ wp + xn @ wn
    LOST.append(r[z == 0].sum())
    s = safe(r, z)
    return xp * (s @ wp.T) + xn * (s @ wn.T)


def added(t, r):
    """The second half added to the first, in Chefer's normalised form."""
    h = N // 2
    a, b = t.copy(), np.concatenate([t[h:], np.zeros((h, D))])
    s = safe(r, a + b)
    a, b = a * s, b * s
    weight = abs(a.sum()) + abs(b.sum())
    a, b = (part * abs(part.sum()) / weight * r.sum() / part.sum() for part in (a, b))
    return a + np.concatenate([np.zeros((h, D)), b[:h]])


def sorted_back(t, r):
    out = np.zeros_like(t)
    np.put_along_axis(out, t.argsort(axis=0), r, axis=0)
    return out


def largest_back(t, r):
    out = np.zeros_like(t)
    np.put_along_axis(out, t.argsort(axis=1)[:, ::-1][:, :2], r, axis=1)
    return out


def winner(t, r):
    h = N // 2
    out, first = r.copy(), t[:h] > t[h:]
    out[:h] = np.where(first, r[:h], 0)
    out[h:] += np.where(first, 0, r[:h])
    return out


def multiplied(t, r):
    h, out = N // 2, r.copy()
    out[:h] = r[:h] / 2
    out[h:] += r[:h] / 2
    return out


WAVES = np.exp(-2j * np.pi * np.outer(ROWS, ROWS) / N)
HALVES = (ROWS[:, None] // 3 == ROWS[None, :2]).T.astype(float)

#: Functions of tokens ``[B, N, D]``, and the relevance of tokens ``[N, D]`` for that of the result.
ROWS_OF_TABLE = {
    "sort": (lambda p, t: jnp.sort(t, axis=1), sorted_back),
    "sort of several": (
        lambda p, t: jax.lax.sort((t[..., 0], t[..., 1]), dimension=1)[1],
        lambda t, r: np.stack([0 * r, r[t[:, 0].argsort().argsort()], 0 * r, 0 * r], 1),
    ),
    "argsort": (
        lambda p, t: jnp.take_along_axis(t, jnp.argsort(t[..., :1], axis=1), axis=1),
        lambda t, r: r[t[:, 0].argsort().argsort()],
    ),
    "top_k": (lambda p, t: jax.lax.top_k(t, 2)[0], largest_back),
    "cumsum": (lambda p, t: jnp.cumsum(t, axis=1), pooled(np.tril(np.ones((N, N))))),
    "segment_sum": (
        lambda p, t: jax.vmap(lambda t: jax.ops.segment_sum(t, jnp.arange(N) // 3, 2))(t),
        pooled(HALVES),
    ),
    "at add": (lambda p, t: t.at[:, : N // 2].add(t[:, N // 2 :]), added),
    "at add of a bias": (lambda p, t: t.at[:, : N // 2].add(p["half"][0]), lambda t, r: r),
    "at mul": (lambda p, t: t.at[:, : N // 2].multiply(p["half"]), lambda t, r: r),
    "at mul of both": (
        lambda p, t: t.at[:, : N // 2].multiply(t[:, N // 2 :], unique_indices=True),
        multiplied,
    ),
    "at max": (lambda p, t: t.at[:, : N // 2].max(t[:, N // 2 :]), winner),
    "difference": (
        lambda p, t: t - 2 * t[:, ::-1],
        lambda t, r: (lambda a, b: a + b[::-1])(*normalised(t, -2 * t[::-1], r)),
    ),
    "fft": (lambda p, t: jnp.fft.fft(t, axis=1).real, lambda t, r: zplus(t.T, WAVES.real.T, r.T).T),
    "complex product": (
        lambda p, t: (t @ jax.lax.complex(p["re"], p["im"])).imag,
        lambda t, r: zplus(t, np.asarray(P["im"]), r),
    ),
    "complex scale": (lambda p, t: (t * p["lam"]).real, lambda t, r: r),
}


def normalised(a, b, r):
    s = safe(r, a + b)
    a, b = a * s, b * s
    weight = abs(a.sum()) + abs(b.sum())
    return [part * abs(part.sum()) / weight * r.sum() / part.sum() for part in (a, b)]


def features(function):
    """A model of features ``[B, N, D]``, whose logits are all that a function gives; tanh passes relevance on."""
    return lambda p, x: function(p, jnp.tanh(x)).reshape(len(x), -1)


def check_gradient(apply, x, weights):
    model = lrp_jax.trace(apply, P, x)
    found = lrp_jax.explain(model, P, x, weights[:, None], method="input_x_gradient")
    np.testing.assert_allclose(found.logits, apply(P, x), rtol=1e-11, atol=1e-13)
    # One by one, as the library explains them.
    gradient = [
        jax.grad(lambda one, w=w: (apply(P, one[None])[0] * w).sum())(one) for one, w in zip(x, weights, strict=True)
    ]
    expected = (np.stack(gradient) * x).sum(axis=-1)
    np.testing.assert_allclose(found.relevance[:, 0], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    return model


@pytest.mark.parametrize("name", ROWS_OF_TABLE)
def test_gradient_and_relevance_of_each_primitive(name):
    function, plain = ROWS_OF_TABLE[name]
    apply, x = features(function), normal(2, N, D)
    shape = jax.eval_shape(function, P, x).shape
    weights = jnp.abs(normal(2, int(np.prod(shape[1:]))))
    model = check_gradient(apply, x, weights)
    relevance = lrp_jax.explain(model, P, x, weights[:, None], method="full_lrp", rules="chefer").relevance[:, 0]
    for b in range(2):
        r = np.asarray(weights[b]).reshape(shape[1:])
        LOST.clear()
        expected = plain(np.tanh(np.asarray(x[b])), r)
        np.testing.assert_allclose(expected.sum(), r.sum() - sum(LOST), rtol=1e-9)
        np.testing.assert_allclose(relevance[b], expected.sum(axis=-1), rtol=0, atol=1e-5 * np.abs(expected).max())


def state_space(p, t):
    def step(carry, u):
        n, h = carry
        h = jnp.exp(-p["lam"] * p["lam"].conj()) * p["lam"] * h + u
        return (n + 1, h), h

    start = 0, jnp.zeros((len(t), D), complex)
    _, states = jax.lax.scan(step, start, (t * p["lam"]).swapaxes(0, 1))
    return (states.swapaxes(0, 1) @ jax.lax.complex(p["re"], p["im"])).real


def filtered(p, t):
    return jnp.fft.irfft(jnp.fft.rfft(t, axis=1) * p["filter"], n=N, axis=1) + jnp.abs(jnp.fft.ifft2(t)) ** 2


@pytest.mark.parametrize("function", [state_space, filtered])
def test_complex_numbers_in_between_have_the_gradient(function):
    apply, x = features(function), normal(2, N, D)
    check_gradient(apply, x, normal(2, apply(P, x).shape[1]))


def counted(p, t):
    return jax.lax.fori_loop(0, 3, lambda i, t: t + jnp.tanh(t @ p["w"][i]), t)


def written_out(p, t):
    for w in p["w"]:
        t = t + jnp.tanh(t @ w)
    return t


def nested(p, t):
    """Counters and keys before what is carried; one loop in another; outputs of both kinds."""

    def step(carry, w):
        n, key, t = carry
        key, now = jax.random.split(key)
        kept = jax.random.bernoulli(now, 0.7, (1, N, D))
        n, t = jax.lax.fori_loop(0, 2, lambda i, c: (c[0] + 1, c[1] + jnp.sin(c[1] * p["half"][i])), (n, t))
        return (n, key, jnp.where(kept, jnp.tanh(t @ w), t)), (n, t.sum(axis=1))

    (n, _, t), (ns, sums) = jax.lax.scan(step, (0, jax.random.key(0), t), p["w"])
    return t * ns.sum() + sums.sum(axis=0)[:, None] * n


def reverse(p, t):
    def step(carry, u):
        n, h = carry
        h = jnp.tanh(h * p["half"][0] + u)
        return (n + 1, h), (n, h)

    _, (n, h) = jax.lax.scan(step, (0, jnp.zeros_like(t[:, 0])), t.swapaxes(0, 1), reverse=True)
    return h.swapaxes(0, 1) + n.sum()


def becomes_active(p, t):
    def step(carry, w):
        i, a, b = carry
        return (i + 1, b, jnp.tanh(t @ w)), a * i

    (_, a, b), given = jax.lax.scan(step, (0, jnp.zeros_like(t), jnp.ones_like(t)), p["w"])
    none = jax.lax.scan(lambda c, w: ((c[0] + 1, c[1] @ w), c[1]), (0, t), p["w"][:0])
    return a * b + given.sum(axis=0) + none[0][1] + none[1].sum()


@pytest.mark.filterwarnings("ignore:apply draws random numbers")
@pytest.mark.parametrize("function", [counted, nested, reverse, becomes_active])
def test_loops_carry_more_than_activations(function):
    apply, x = features(function), normal(2, N, D)
    check_gradient(apply, x, normal(2, N * D))


def test_relevance_of_a_counted_loop_is_that_of_the_loop_written_out():
    x, weights = normal(1, N, D), normal(1, 1, N * D)
    maps = [
        lrp_jax.explain(lrp_jax.trace(features(f), P, x), P, x, weights, method="full_lrp").relevance
        for f in (counted, written_out)
    ]
    np.testing.assert_allclose(maps[0], maps[1], rtol=0, atol=1e-9 * np.abs(maps[1]).max())
