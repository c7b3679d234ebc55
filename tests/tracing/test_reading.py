"""What the head reads, of each input, and whether attention is a chain: against a plain reference, or refused.

The reference is written in NumPy beside each program: the attention of every block, and how much the head reads of each
token. Its rollout is that of the map, or the library says why it gives none.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

N, D, C, DEPTH = 6, 4, 3, 2
IDS = np.array([[1, 5, 6, 9, 3, 2], [1, 9, 2, 0, 0, 0], [1, 3, 9, 7, 0, 0]])
INPUTS = {"at": np.array([[2, 0], [1, 2], [3, 3]]), "ids": IDS, "weight": np.linspace(0.1, 1.8, 18).reshape(3, 6) ** 2}


def parameters(seed):
    rng = np.random.default_rng(seed)
    names = {f"{name}{i}": (D, D) for name in "qkv" for i in range(2 * DEPTH)}
    shapes = {
        "table": (10, D),
        "order": (N, D),
        "head": (D, C),
        "flat": (N * D, C),
        "pool": (N,),
        "score": (D,),
        **names,
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"two": rng.normal(size=(2 * D, C))}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(p, i, x, kv, real):
    """Attention ``[B, N, N]`` and what it adds; of arrays of NumPy or JAX."""
    scores = x @ p[f"q{i}"] @ (kv @ p[f"k{i}"]).mT / 2
    scores = (jnp if isinstance(x, jax.Array) else np).where(real[:, None], scores, -1e9)
    a = jax.nn.softmax(scores, axis=-1) if isinstance(x, jax.Array) else softmax(scores)
    return a, a @ (kv @ p[f"v{i}"])


# How blocks follow each other: from tokens to tokens, with the attention of each. None for it: they are no chain.


def chain(p, x, real):
    found = []
    for i in range(DEPTH):
        a, y = attend(p, i, x, x, real)
        found.append(a)
        x = x + y
    return x, found


def without_residual(p, x, real):
    a, x = attend(p, 0, x, x, real)
    b, x = attend(p, 1, x, x, real)
    return x, [a, b]


def experts(p, x, real):
    """What each expert gives a token is weighted by the token, which moves nothing between tokens."""
    found = []
    for i in range(DEPTH):
        a, y = attend(p, i, x, x, real)
        found.append(a)
        x = x + y
        kernels = [p[f"{name}3"] for name in "qkv"]
        xp, of_each = (jnp, jax.nn.softmax) if isinstance(x, jax.Array) else (np, softmax)
        made = xp.stack([xp.tanh(x @ kernel) for kernel in kernels], axis=2)
        x = x + xp.einsum("bned,bne->bnd", made, of_each(x @ p["v2"][:, :3]))
    return x, found


def dense(p, x, real):
    """Each block reads what all before it gave."""
    a, y = attend(p, 0, x, x, real)
    b, z = attend(p, 1, x + y, x + y, real)
    c, last = attend(p, 2, x + y + z, x + y + z, real)
    return x + y + last, [a, b, c]


def long_skip(p, x, real):
    a, y = attend(p, 0, x, x, real)
    b, z = attend(p, 1, x + y, x + y, real)
    return jnp.concatenate([x + y + z, x], -1) @ p["two"][:, :1] * jnp.ones(D) if isinstance(x, jax.Array) else x, [
        a,
        b,
    ]


def two_streams(p, x, real):
    a, _ = chain(p, x, real)
    b, _ = chain({k: -v for k, v in p.items()}, x, real)
    return a + b, None


def beside(p, x, real):
    """Two attentions side by side in one block."""
    return x + attend(p, 0, x, x, real)[1] + attend(p, 1, x, x, real)[1], None


def crossed(p, x, real):
    """The second stream reads the first one again in its second block."""
    kv, _ = chain(p, x, real)
    x = x + attend(p, 2, x, kv, real)[1]
    return x + attend(p, 3, x, kv, real)[1], None


def decoded(p, x, real):
    """A decoder of tokens of its own reads the first stream."""
    return attend(p, 2, jnp.broadcast_to(p["order"] * 2.0, x.shape), chain(p, x, real)[0], real)[1], None


CHAINS = {
    f.__name__: f for f in (chain, without_residual, experts, dense, long_skip, two_streams, beside, crossed, decoded)
}

# What the head reads: logits of tokens, and the weight of each token for one example. None for it: refused.


def one(n):
    return np.eye(N)[n]


def eot(ids):
    return int(ids.argmax())


def share(weights):
    return np.abs(weights) / np.abs(weights).sum()


def picked(x, at):
    return x[jnp.arange(len(x)), at]


def enlarged(x):
    return jax.image.resize(x, (len(x), 3 * N, D), "bilinear")


ENLARGED = np.asarray(jax.image.resize(jnp.eye(N), (3 * N, N), "bilinear"), np.float64)

READS = {
    "first": (lambda p, x, i: x[:, 0] @ p["head"], lambda p, i: one(0)),
    "mean": (lambda p, x, i: x.mean(1) @ p["head"], lambda p, i: np.full(N, 1 / N)),
    "flat": (lambda p, x, i: x.reshape(len(x), -1) @ p["flat"], lambda p, i: np.full(N, 1 / N)),
    "last": (
        lambda p, x, i: picked(x, (i["ids"] > 0).sum(-1) - 1) @ p["head"],
        lambda p, i: one((i["ids"] > 0).sum() - 1),
    ),
    "largest id": (lambda p, x, i: picked(x, i["ids"].argmax(-1)) @ p["head"], lambda p, i: one(eot(i["ids"]))),
    "along the axis": (
        lambda p, x, i: jnp.take_along_axis(x, i["at"][:, :1, None], 1)[:, 0] @ p["head"],
        lambda p, i: one(i["at"][0]),
    ),
    "one hot": (
        lambda p, x, i: jnp.einsum("bn,bnd->bd", jax.nn.one_hot(i["at"][:, 0], N, dtype=x.dtype), x) @ p["head"],
        lambda p, i: one(i["at"][0]),
    ),
    "vmapped slice": (
        lambda p, x, i: (
            jax.vmap(lambda y, n: jax.lax.dynamic_index_in_dim(y, n, keepdims=False))(x, i["at"][:, 1]) @ p["head"]
        ),
        lambda p, i: one(i["at"][1]),
    ),
    "two places": (
        lambda p, x, i: jnp.concatenate([picked(x, i["at"][:, 0]), picked(x, i["at"][:, 1])], -1) @ p["two"],
        lambda p, i: (one(i["at"][0]) + one(i["at"][1])) / 2,
    ),
    "mean of a mask": (
        lambda p, x, i: (x * (i["ids"] > 0)[..., None]).sum(1) / (i["ids"] > 0).sum(1, keepdims=True) @ p["head"],
        lambda p, i: share(i["ids"] > 0),
    ),
    "where": (
        lambda p, x, i: jnp.where((i["ids"] > 0)[..., None], x, 0).sum(1) @ p["head"],
        lambda p, i: share(i["ids"] > 0),
    ),
    "weights": (
        lambda p, x, i: jnp.einsum("bn,bnd->bd", i["weight"] / i["weight"].sum(-1, keepdims=True), x) @ p["head"],
        lambda p, i: share(i["weight"]),
    ),
    "after the head": (
        lambda p, x, i: ((x @ p["head"]) * i["weight"][..., None]).mean(1),
        lambda p, i: share(i["weight"]),
    ),
    "first and mean": (
        lambda p, x, i: 0.25 * x[:, 0] @ p["head"] + 0.75 * x.mean(1) @ p["head"],
        lambda p, i: 0.25 * one(0) + 0.75 / N,
    ),
    "learned weights": (
        lambda p, x, i: jnp.einsum("n,bnd->bd", jax.nn.softmax(p["pool"]), x) @ p["head"],
        lambda p, i: softmax(p["pool"]),
    ),
    "learned factors": (lambda p, x, i: (x * p["pool"][:, None]).sum(1) @ p["head"], lambda p, i: share(p["pool"])),
    "enlarged": (lambda p, x, i: enlarged(x)[:, 7] @ p["head"], lambda p, i: ENLARGED[7]),
    "part of the enlarged": (
        lambda p, x, i: (enlarged(x @ p["head"]) * jnp.repeat(i["weight"], 3, 1)[..., None]).sum(1),
        lambda p, i: share(np.repeat(i["weight"], 3) @ ENLARGED),
    ),
    "largest value": (lambda p, x, i: x.max(1) @ p["head"], None),
    "largest token": (lambda p, x, i: picked(x, (x @ p["score"]).argmax(-1)) @ p["head"], None),
    "weighed by themselves": (lambda p, x, i: (jax.nn.sigmoid(x @ p["score"])[..., None] * x).sum(1) @ p["head"], None),
}


def rolled_out(row, attention):
    """The row of the product of attention plus identity, rows scaled to sum 1."""
    for a in attention[::-1]:
        mixed = a + np.eye(N)
        row = row @ (mixed / mixed.sum(-1, keepdims=True))
    return row


def check(blocks, read, seed):
    p = parameters(seed)
    head, weights = READS[read]

    def apply(p, i):
        x = p["table"][i["ids"]] + p["order"]
        return head(p, CHAINS[blocks](p, x, i["ids"] > 0)[0], i)

    model = lrp_jax.trace(apply, p, INPUTS, explain_wrt="ids")
    _, attention = CHAINS[blocks](p, p["table"][IDS] + p["order"], IDS > 0)
    if attention is None or weights is None:
        why = r"no (chain of blocks|attention maps).*test_reading\.py" if attention is None else "give readout="
        with pytest.raises(ValueError, match=why):
            lrp_jax.explain(model, p, INPUTS, method="attention_rollout")
        found = lrp_jax.explain(model, p, INPUTS, np.zeros(3, int), method="input_x_gradient")
        np.testing.assert_allclose(found.logits, apply(p, INPUTS), rtol=1e-9)
        return
    found = lrp_jax.explain(model, p, INPUTS, method="attention_rollout").relevance[:, 0]
    for b, of_it in enumerate(found):
        row = weights(p, {name: value[b] for name, value in INPUTS.items()})
        np.testing.assert_allclose(of_it, rolled_out(row, [a[b] for a in attention]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("read", READS)
def test_what_the_head_reads_is_known_of_each_input(read):
    check("chain", read, 0)


@pytest.mark.parametrize("blocks", CHAINS)
def test_attention_is_a_chain_or_refused(blocks):
    check(
        blocks, "mean of a mask" if blocks in ("chain", "two_streams") else "last" if blocks == "beside" else "first", 1
    )


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(CHAINS)), st.sampled_from(sorted(READS)), st.integers(0, 99))
def test_a_random_program_is_right_or_refused(blocks, read, seed):
    if READS[read][1] is not None and blocks in ("dense", "long_skip"):
        read = "first"  # others may be refused there
    check(blocks, read, seed)


@pytest.mark.parametrize("read", ["vmapped slice", "mean of a mask", "first"])
def test_texts_that_are_computed_one_by_one(read):
    p = parameters(3)
    head, weights = READS[read]

    def apply(p, inputs):
        def of_one(text):
            i = jax.tree.map(lambda leaf: leaf[None], text)
            return head(p, chain(p, p["table"][i["ids"]] + p["order"], i["ids"] > 0)[0], i)[0]

        return jax.vmap(of_one)(inputs)

    p = jax.tree.map(jnp.asarray, p)
    model = lrp_jax.trace(apply, p, INPUTS, explain_wrt="ids")
    found = lrp_jax.explain(model, p, INPUTS, method="attention_rollout").relevance[:, 0]
    p = jax.tree.map(np.asarray, p)
    _, attention = chain(p, p["table"][IDS] + p["order"], IDS > 0)
    for b, of_it in enumerate(found):
        row = weights(p, {name: value[b] for name, value in INPUTS.items()})
        np.testing.assert_allclose(of_it, rolled_out(row, [a[b] for a in attention]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("read", "step"), [("largest value", "reduce_max"), ("largest token", "dot_general")])
def test_what_chooses_tokens_by_activations_is_named(read, step):
    p = parameters(0)

    def apply(p, i):
        return READS[read][0](p, chain(p, p["table"][i["ids"]] + p["order"], i["ids"] > 0)[0], i)

    model = lrp_jax.trace(apply, p, INPUTS, explain_wrt="ids")
    with pytest.raises(ValueError, match=rf"depends on what they hold, {step} of .*test_reading\.py"):
        lrp_jax.explain(model, p, INPUTS, method="attention_rollout")


PATCHES = np.random.default_rng(1).normal(size=(2, 4, 6, 3))
PATCHES[1, :, 4:] = 0  # the last column of patches is padding
PIXELS = {name: value[:6] for name, value in parameters(2).items()} | {
    "patch": np.random.default_rng(3).normal(size=(12, D))
}


def patches(images):
    return images.reshape(-1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 6, 12)


def seen(p, images, read=None, between=None):
    """A model of padded images, or of others that ``read`` reads; what is done ``between`` its blocks."""
    x = patches(images)
    real = (x != 0).any(-1)
    x = x @ p["patch"] + p["order"]
    real = real if read is None else jnp.ones(x.shape[:2], bool)
    x = x + attend(p, 0, x, x, real)[1]
    first, x = x, x if between is None else between(x)
    x = x + attend(p, 1, x, x, real)[1]
    if read is not None:
        return read(first, x) @ p["head"]
    return jnp.where(real[..., None], x, 0).sum(1) / real.sum(1, keepdims=True) @ p["head"]


def test_a_mask_that_the_pixels_say():
    model = lrp_jax.trace(seen, PIXELS, PATCHES)
    assert "readout: another for each input" in str(model)
    assert np.isnan(np.asarray(model.readout)).all()
    shapes = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), of) for of in (PIXELS, PATCHES)]
    assert str(lrp_jax.trace(seen, *shapes)) == str(model)  # nothing is taken from the values of an example
    x, real = patches(PATCHES) @ PIXELS["patch"] + PIXELS["order"], (patches(PATCHES) != 0).any(-1)
    a, y = attend(PIXELS, 0, x, x, real)
    b, _ = attend(PIXELS, 1, x + y, x + y, real)
    expected = [rolled_out(share(r), [a[i], b[i]]).reshape(2, 3) for i, r in enumerate(real)]
    explain = jax.jit(lambda p, x: lrp_jax.explain(model, p, x, method="attention_rollout").relevance[:, 0])
    np.testing.assert_allclose(explain(PIXELS, PATCHES), expected, rtol=0, atol=1e-9)
    batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 4, 6, 3), PATCHES.dtype)
    exported = jax.export.export(explain)(PIXELS, batch)
    np.testing.assert_allclose(exported.call(PIXELS, PATCHES[1:]), expected[1:], rtol=0, atol=1e-9)
    given = lrp_jax.trace(seen, PIXELS, PATCHES, readout=one(2))
    found = lrp_jax.explain(given, PIXELS, PATCHES, method="raw_attention").relevance
    np.testing.assert_allclose(found[:, 0], b[:, 2].reshape(2, 2, 3), rtol=0, atol=1e-9)


def streams(p, images):
    """Two models whose parameters are stacked, run as one."""
    two = jax.tree.map(lambda x: jnp.stack([x, -x]), p)
    return jax.vmap(lambda p: seen(p, images, lambda first, x: x.mean(1)))(two).sum(0)


REFUSED = {
    "streams in one": (streams, "several streams"),
    "reversed": (lambda p, x: seen(p, x, lambda _, x: x.mean(1), lambda x: x[:, ::-1]), "change places after"),
    "rolled": (lambda p, x: seen(p, x, lambda _, x: x[:, 0], lambda x: jnp.roll(x, 2, 1)), "change places after"),
    "other exits": (lambda p, x: seen(p, x, lambda first, x: first.mean(1) + x[:, 0]), "other tokens of the block"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_rollout_would_mix_is_refused(name):
    apply, why = REFUSED[name]
    model = lrp_jax.trace(apply, PIXELS, PATCHES)
    assert why in str(model)
    for method in ("raw_attention", "legrad"):
        with pytest.raises(ValueError, match=f"no chain of blocks.*{why}"):
            lrp_jax.explain(model, PIXELS, PATCHES, method=method)
    assert lrp_jax.explain(model, PIXELS, PATCHES, method="full_lrp").relevance.shape == (2, 1, 4, 6)


@pytest.mark.parametrize("between", [False, True])
def test_tokens_at_places_that_the_input_says(between):
    """Before the blocks, their maps would be drawn elsewhere; between them, a rollout would mix tokens."""

    def apply(p, inputs):
        def shifted(x):
            return jax.vmap(lambda y, n: jnp.roll(y, n, axis=0))(x, inputs["shift"])

        image = inputs["image"] if between else shifted(inputs["image"])
        return seen(p, image, lambda _, x: x.mean(1), shifted if between else None)

    inputs = {"image": PATCHES, "shift": np.array([0, 2])}
    model = lrp_jax.trace(apply, PIXELS, inputs, explain_wrt="image")
    with pytest.raises(ValueError, match=r"the input says, .*test_reading\.py"):
        lrp_jax.explain(model, PIXELS, inputs)
    found = lrp_jax.explain(model, PIXELS, inputs, method="input_x_gradient")
    np.testing.assert_allclose(found.logits, apply(PIXELS, inputs), rtol=1e-9)


def test_ways_to_go_on_that_are_a_chain():
    """Tokens may be taken apart and put together, and heads that end early may read the same token."""
    for read, between in (
        (lambda first, x: x[:, 0], lambda x: jnp.concatenate([x[:, :1], jnp.tanh(x[:, 1:])], axis=1)),
        (lambda first, x: first[:, 0] + x[:, 0], None),
    ):
        model = lrp_jax.trace(lambda p, x, r=read, b=between: seen(p, x, r, b), PIXELS, PATCHES)
        assert model.without_chain == ""
        np.testing.assert_array_equal(model.readout, one(0))
