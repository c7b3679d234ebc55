"""Attention of traced programs over chunks of queries: the maps of all queries at once, or the reason why not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_model
from plain_vit import FIELDS, Plain, assert_sent, images, sent_by_the_vit
from plain_vit import sent as sent_of

import lrp_jax
from lrp_jax.rules import named
from lrp_jax.tracing.interpret import run
from lrp_jax.tracing.model import Given
from lrp_jax.tracing.queries import Region
from lrp_jax.tracing.steps import Site

pytestmark = pytest.mark.usefixtures("as_users")

N, D, H = 7, 8, 2
KEYS = iter(jax.random.split(jax.random.key(0), 32))


def normal(*shape):
    return jax.random.normal(next(KEYS), shape, jnp.float64)


P = {
    "qkv": normal(3, D, D) / 2,
    "out": normal(D, D) / 2,
    "head": normal(D, 3),
    "table": normal(H, N, N),
    "mix": normal(H, H),
    "offset": normal(H, 1, D // H),
}
EXAMPLES = normal(2, N, D)


def places(axis):
    return jax.lax.broadcasted_iota(jnp.int32, (N, N), axis)


def softmax(p, scores):
    return jax.nn.softmax(scores, axis=-1)


def causal(p, scores):
    return softmax(p, jnp.where(places(0) >= places(1), scores, -jnp.inf))


def triangle(p, scores):
    return softmax(p, scores + jnp.where(jnp.tril(jnp.ones((N, N), bool)), 0.0, -1e30))


def window(p, scores):
    return softmax(p, scores - 1e30 * (jnp.abs(places(0) - places(1)) > 2))


def slopes(p, scores):
    return softmax(p, scores - jnp.array([0.5, 0.25])[:, None, None] * jnp.abs(places(0) - places(1)))


def biased(p, scores):
    return softmax(p, scores + p["table"])


def capped(p, scores):
    return softmax(p, 5 * jnp.tanh(scores / 5))


def talking(p, scores):
    return jnp.einsum("bhqk,hg->bgqk", softmax(p, jnp.einsum("bhqk,hg->bgqk", scores, p["mix"])), p["mix"])


def sunk(p, scores):
    """With a key that nothing is read of."""
    sink = jnp.zeros((*scores.shape[:-1], 1), scores.dtype)
    return softmax(p, jnp.concatenate([scores, sink], axis=-1))[..., :-1]


def plain(p, scores):
    e = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return e / e.sum(-1, keepdims=True)


def halves(p, scores):
    return jax.nn.softmax(scores.astype(jnp.bfloat16), axis=-1).astype(scores.dtype)


def rectified(p, scores):
    """With a function that has a derivative of its own."""
    return softmax(p, jax.nn.relu(scores))


ALIKE = (rectified, softmax, causal, triangle, window, slopes, biased, capped, talking, sunk, plain, halves)


def centred(p, scores):
    """Each query's scores, less the mean of all queries'."""
    return softmax(p, scores - scores.mean(-2, keepdims=True))


def read_twice(p, scores):
    return softmax(p, scores)


def network(weigh, p, x):
    for _ in range(2):
        q, k, v = ((x @ w).reshape(*x.shape[:-1], H, -1).swapaxes(-2, -3) for w in p["qkv"])
        weights = weigh(p, (q + p["offset"]) @ k.mT)
        x = x + (weights @ v).swapaxes(-2, -3).reshape(x.shape) @ p["out"]
    logits = x.mean(1) @ p["head"]
    return logits + weights.max((1, 2, 3))[:, None] if weigh is read_twice else logits


def region(model):
    return next(step.region for step, _ in model.program.walk() if isinstance(step, Site))


@functools.cache
def traced(weigh, chunk=None):
    return lrp_jax.trace(functools.partial(network, weigh), P, EXAMPLES, chunk=chunk)


def assert_same(a, b, tolerance=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.abs(y).max(), 1e-300))


def sent(model):
    """The logits, and what two rule sets send back to the example."""

    @jax.jit
    def of(p, x):
        def logits(x, rules):
            return run(model.program, rules, model.inputs(Given(p, []), x))[0]

        pulled = [jax.vjp(functools.partial(logits, rules=named(rules)), x) for rules in ("chefer", "attnlrp")]
        return pulled[0][0], [pull(y * jnp.eye(3)[:1])[0] for y, pull in pulled]

    return of(P, EXAMPLES[0])


@pytest.mark.parametrize("weigh", ALIKE)
def test_chunks_give_what_all_queries_do(weigh, monkeypatch):
    whole, some = traced(weigh), traced(weigh, chunk=3)
    assert not region(whole).is_cut
    assert region(some).is_cut
    wanted, cut = sent(whole), []
    run = Region.run
    monkeypatch.setattr(Region, "run", lambda self, *given: cut.append(self) or run(self, *given))
    assert_same(sent(some), wanted)
    assert set(cut) == {region(some)}


@pytest.mark.parametrize(
    ("weigh", "why"),
    [
        (centred, "its queries are not apart in reduce_sum"),
        (read_twice, "more than the product with the values reads of it"),
    ],
)
def test_queries_that_meet_are_computed_together(weigh, why):
    some = traced(weigh, chunk=3)
    assert not region(some).is_cut
    assert f"attention is whole, of all queries at once: {why}" in str(some)
    assert_same(sent(some), sent(traced(weigh)), 0)


@pytest.mark.parametrize("chunk", [2, 7, 100])
def test_chunks_of_any_size(chunk):
    """The last of them may be smaller."""
    some = traced(causal, chunk=chunk)
    assert region(some).is_cut == (chunk < N)
    assert_same(sent(some), sent(traced(causal)))


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True])
def test_a_chunk_is_a_number_of_queries(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a number of queries, an integer of at least 1; got {chunk}"):
        traced(softmax, chunk)


@pytest.mark.parametrize("method", ["gated_lrp", "legrad"])
def test_methods(method):
    a, b = (lrp_jax.explain(model, P, EXAMPLES, method=method) for model in (traced(biased, 3), traced(biased)))
    assert_same(a.relevance, b.relevance)


def test_gradients_of_maps():
    def loss(chunk, p):
        return (lrp_jax.explain(traced(triangle, chunk), p, EXAMPLES).relevance ** 2).sum()

    a, b = (jax.grad(functools.partial(loss, chunk))(P) for chunk in (3, None))
    assert_same(a, b, 1e-9)


def test_masks_of_each_example():
    """Which keys are padding is an input."""

    def masked(p, inputs):
        x, length = inputs
        padding = jnp.arange(N) >= length[:, None, None, None]
        return network(lambda p, scores: softmax(p, jnp.where(padding, -1e9, scores)), p, x)

    inputs = (EXAMPLES, jnp.array([4, 6]))
    whole, some = (lrp_jax.trace(masked, P, inputs, explain_wrt=0, chunk=chunk) for chunk in (None, 3))
    assert region(some).is_cut
    a, b = (lrp_jax.explain(model, P, inputs, method="attnlrp").relevance for model in (some, whole))
    assert_same(a, b)


def test_a_last_attention_of_some_queries():
    """Which is read of the queries 2 to 5: as few as there are, in chunks of them."""

    def network(p, x):
        q, k, v = ((x @ w).reshape(*x.shape[:-1], H, -1).swapaxes(-2, -3) for w in p["qkv"])
        x = x[:, 2:6] + (jax.nn.softmax(q[:, :, 2:6] @ k.mT, -1) @ v).swapaxes(-2, -3).reshape(len(x), 4, D)
        return x.mean(1) @ p["head"]

    whole, some = (lrp_jax.trace(network, P, EXAMPLES, chunk=chunk) for chunk in (None, 3))
    assert region(some).is_cut
    assert_same(*(lrp_jax.attention_signals(model, P, EXAMPLES) for model in (some, whole)))
    assert_same(*(lrp_jax.explain(model, P, EXAMPLES).relevance for model in (some, whole)))


@pytest.mark.parametrize("way", [{"heads": "library"}, {"heads": "grouped", "blocks": "scan"}])
def test_a_vision_transformer(way):
    model, params = small_model(num_classes=3, **FIELDS)
    some = lrp_jax.trace(Plain(model.config, **way), params, images(), chunk=3)
    assert region(some).is_cut
    assert_sent(sent_of(some, params), sent_by_the_vit(), 1e-5 if way.get("heads") == "library" else 1e-10)
