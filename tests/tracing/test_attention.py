"""Attention that is told by its lines, where it is not what was recognised."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

N, D = 5, 4
KEYS = iter(jax.random.split(jax.random.key(1), 16))
P = {name: jax.random.normal(next(KEYS), (D, D), jnp.float64) / 2 for name in ("q", "k", "v", "out")}
P["head"] = jax.random.normal(next(KEYS), (D, 3), jnp.float64)
EXAMPLES = jax.random.normal(next(KEYS), (2, N, D), jnp.float64)


def line_of(function, text):
    """Where a line of a function is written."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [i for i, line in enumerate(lines) if text in line]
    return f"test_attention.py:{first + number}"


def block(p, x, weigh):
    scores = (x @ p["q"]) @ (x @ p["k"]).mT / 2
    weights = weigh(scores)
    mixed = weights @ (x @ p["v"])
    return x + mixed @ p["out"], weights


def sigmoids(p, x):
    """Attention whose rows do not sum to 1."""
    x, _ = block(p, x, lambda scores: jax.nn.sigmoid(scores - 1))
    return x.mean(1) @ p["head"]


def rectified(p, x):
    def weigh(scores):
        kept = jax.nn.relu(scores)
        return kept / (kept.sum(-1, keepdims=True) + 1e-6)

    x, _ = block(p, x, weigh)
    return x.mean(1) @ p["head"]


def two(p, x):
    """Attention, and a memory that is read by a softmax as well."""
    x, _ = block(p, x, jax.nn.softmax)
    memory = x @ p["k"]
    read = jax.nn.softmax(x @ memory.mT)
    recalled = read @ memory
    return (x + recalled).mean(1) @ p["head"]


@pytest.mark.parametrize("function", [sigmoids, rectified])
def test_attention_that_is_no_softmax(function):
    assert "no attention (lrp_jax.trace takes attention=" in lrp_jax.trace(function, P, EXAMPLES).without_attention
    model = lrp_jax.trace(function, P, EXAMPLES, attention=[line_of(block, "mixed =")])
    found = lrp_jax.attention_signals(model, P, EXAMPLES, np.array([[0, 1], [2, 2]]))
    weigh = {
        sigmoids: lambda scores: jax.nn.sigmoid(scores - 1),
        rectified: lambda s: jax.nn.relu(s) / (jax.nn.relu(s).sum(-1, keepdims=True) + 1e-6),
    }[function]
    np.testing.assert_allclose(found.attention[:, 0, 0], block(P, EXAMPLES, weigh)[1], rtol=1e-12)
    v = EXAMPLES @ P["v"] @ P["out"] @ P["head"]
    # d logit c / d A[n, m] = v[m, c] / N
    wanted = np.broadcast_to(np.asarray(v).transpose(0, 2, 1)[:, :, None] / N, (2, 3, N, N))
    np.testing.assert_allclose(found.gradient[0, :, 0, 0], wanted[0, [0, 1]], rtol=1e-12)
    np.testing.assert_allclose(found.gradient[1, :, 0, 0], wanted[1, [2, 2]], rtol=1e-12)
    maps = lrp_jax.explain(model, P, EXAMPLES, method="transformer_attribution").relevance
    assert np.abs(maps).max() > 0


def test_attention_that_is_none():
    """Only those whose lines are named; a softmax of other products mixes tokens as any product does."""
    assert lrp_jax.attention_signals(lrp_jax.trace(two, P, EXAMPLES), P, EXAMPLES).attention.shape[1] == 2
    model = lrp_jax.trace(two, P, EXAMPLES, attention=[line_of(block, "mixed =")])
    found = lrp_jax.attention_signals(model, P, EXAMPLES)
    np.testing.assert_allclose(found.attention[:, 0, 0], block(P, EXAMPLES, jax.nn.softmax)[1], rtol=1e-12)
    assert found.attention.shape[1] == 1


@pytest.mark.parametrize(
    ("attention", "match"),
    [
        (["test_attention.py:1"], r"no product of two activations is written at 'test_attention.py:1'(.|\n)*test_att"),
        ("test_attention.py:*", "attention must be a list of lines"),
        (["test_attention.py:*"], "where no operand is made of a product of two activations"),
    ],
)
def test_lines_that_are_no_attention(attention, match):
    with pytest.raises(ValueError, match=match):
        lrp_jax.trace(sigmoids, P, EXAMPLES, attention=attention)
