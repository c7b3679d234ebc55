"""Grids that are no tiles of the picture, attention that is not square, and inputs that are no pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / 3)


P = {name: normal(6, 6) for name in "qkv"} | {
    "patch": normal(8, 8, 3, 6),
    "wide": normal(7, 7, 3, 6),
    "dense": normal(192, 6),
    "reduce": normal(24, 6),
    "out": normal(6, 5),
}


def attention(p, x, y):
    return jax.nn.softmax((x @ p["q"]) @ (y @ p["k"]).swapaxes(-1, -2), axis=-1) @ (y @ p["v"])


def read(p, x):
    x = x.reshape(len(x), -1, 6)
    for _ in range(2):
        x = x + attention(p, x, x)
    return x.mean(axis=1) @ p["out"]


def patches(p, x, kernel="patch", stride=8, padding="VALID"):
    return jax.lax.conv_general_dilated(
        x, p[kernel], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def resized(p, x):
    x = jax.image.resize(x, (len(x), 32, 32, 3), "bilinear")
    x = ((x - 0.5) / jnp.array([0.2, 0.3, 0.4])).reshape(len(x), 4, 8, 4, 8, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 16, 192) @ p["dense"]


#: Edge of the picture, the model's patches, and their centres in pixels; None: they fill the picture.
PLACES = {
    "tiles": (16, patches, None),
    "turned": (16, lambda p, x: patches(p, x[:, ::-1, ::-1]), None),
    "resized": (48, resized, None),
    "cropped": (40, lambda p, x: patches(p, x[:, 4:36, 10:34]), ([7.5, 15.5, 23.5, 31.5], [13.5, 21.5, 29.5])),
    "padded": (24, lambda p, x: patches(p, jnp.pad(x, [(0, 0), (4, 4), (4, 4), (0, 0)])), [-0.5, 7.5, 15.5, 23.5]),
    "a margin": (30, patches, [3.5, 11.5, 19.5]),
    "padding SAME": (28, lambda p, x: patches(p, x, padding="SAME"), [1.5, 9.5, 17.5, 25.5]),
    "overlap": (20, lambda p, x: patches(p, x, "wide", 4, [(3, 3), (3, 3)]), [0, 4, 8, 12, 16]),
}


@pytest.mark.parametrize("name", PLACES)
def test_patches_are_drawn_where_they_are(name):
    size, embed, places = PLACES[name]
    model = lrp_jax.trace(lambda p, x: read(p, embed(p, x)), P, jax.ShapeDtypeStruct((1, size, size, 3), float))
    if places is None:
        assert model.centres is None
        return
    rows, cols = places if isinstance(places, tuple) else (places, places)
    assert model.grid == (len(rows), len(cols))
    for expected, found in zip((rows, cols), model.centres, strict=True):
        np.testing.assert_allclose(np.array(found) * size - 0.5, expected, atol=0.2)
    # Between centres a map is linear: what lies there is found again, in a picture of any size.
    maps = np.add.outer(np.array(rows), 10.0 * np.array(cols))
    y, x = np.meshgrid(np.arange(2 * size), np.arange(2 * size), indexing="ij")
    y, x = (np.clip((at + 0.5) / 2 - 0.5, min(c), max(c)) for at, c in ((y, rows), (x, cols)))
    np.testing.assert_allclose(
        lrp_jax.heatmaps(maps, (2 * size, 2 * size), centres=model.centres), y + 10 * x, atol=0.05
    )


def test_an_interpolated_picture_keeps_its_gradient_and_relevance():
    images = jnp.abs(normal(1, 48, 48, 3))
    model = lrp_jax.trace(lambda p, x: resized(p, x).mean(axis=1) @ p["out"], P, images)
    found = lrp_jax.explain(model, P, images, np.array([1]), method="input_x_gradient").relevance
    gradient = jax.grad(lambda x: (resized(P, x).mean(axis=1) @ P["out"])[0, 1])(images)
    expected = (images * gradient).sum(axis=-1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    relevance = lrp_jax.explain(model, P, images, np.array([1]), method="full_lrp", rules="chefer").relevance
    np.testing.assert_allclose(relevance.sum(), 1, rtol=1e-6)


def reduced(p, x):
    """As in PVT: keys and values of one patch in four."""
    x = patches(p, x).reshape(len(x), 16, 6)
    for _ in range(2):
        y = x.reshape(-1, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 24) @ p["reduce"]
        x = x + attention(p, x, y)
    return x.mean(axis=1) @ p["out"]


def windows_and_all(p, x):
    """Blocks in a loop, each of attention within rows and of all tokens."""
    x = patches(p, x).reshape(len(x), 16, 6)
    for _ in range(3):
        rows = x.reshape(-1, 4, 4, 6)
        x = x + attention(p, rows, rows).reshape(x.shape)
        x = x + attention(p, x, x)
    return x.mean(axis=1) @ p["out"]


def class_attention(p, x):
    """One query, of a mean of tokens, last."""
    x = patches(p, x).reshape(len(x), 16, 6)
    x = x + attention(p, x, x)
    mean = x[:, :15].mean(axis=1, keepdims=True)  # the mean of their places is a place
    return (mean + attention(p, mean, x))[:, 0] @ p["out"]


def in_order_of_values(p, x):
    """Tokens are sorted between two blocks."""
    x = patches(p, x).reshape(len(x), 16, 6)
    x = x + attention(p, x, x)
    x = jnp.take_along_axis(x, jnp.argsort(x[..., :1], axis=1), axis=1)
    return (x + attention(p, x, x)).mean(axis=1) @ p["out"]


@pytest.mark.parametrize(
    ("apply", "message", "tokens"),
    [
        (reduced, "16 queries over 4 keys", True),
        (windows_and_all, "different sizes", True),
        (class_attention, "1 queries over 16 keys .* lrp_jax.trace takes readout=", True),
        (in_order_of_values, "an order that values choose, gather of", False),
    ],
)
def test_without_maps_of_attention_there_are_those_of_pixels_and_tokens(apply, message, tokens):
    images, target = normal(2, 32, 32, 3), np.array([1, 1])
    model = lrp_jax.trace(apply, P, images)
    found = lrp_jax.explain(model, P, images, target, method="input_x_gradient").relevance
    expected = (images * jax.grad(lambda x: apply(P, x)[:, 1].sum())(images)).sum(axis=-1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    if tokens:
        assert lrp_jax.explain(model, P, images, target, method="attnlrp").relevance.shape == (2, 1, 4, 4)
    for method, options in (("transformer_attribution", {}), ("libragrad", {"full": True})):
        with pytest.raises(ValueError, match=message):
            lrp_jax.explain(model, P, images, target, method=method, **options)


def with_class(place, last, p, x):
    """Two blocks; ``last`` computes the token at a place, where a class token is."""
    x = patches(p, x).reshape(len(x), 4, 6)
    x = jnp.insert(x, place, p["out"][:, 0], axis=1)
    x = x + attention(p, x, x)
    return last(p, x, place) @ p["out"]


LAST = {
    "all": lambda p, x, at: (x + attention(p, x, x))[:, at],
    "one": lambda p, x, at: (x[:, at : at + 1] + attention(p, x[:, at : at + 1], x))[:, 0],
    "one, projected": lambda p, x, at: x[:, at] + attention(p, x[:, [at]], x)[:, 0],
    "without an axis": lambda p, x, at: x[:, at] + without_axis(p, x[:, at], x),
}


def without_axis(p, q, x):
    scores = jnp.einsum("bd,bnd->bn", q @ p["q"], x @ p["k"])
    return jnp.einsum("bn,bnd->bd", jax.nn.softmax(scores, axis=-1), x @ p["v"])


@pytest.mark.parametrize(("name", "place"), [("one", 0), ("one, projected", 2), ("without an axis", 4)])
def test_the_last_attention_may_have_the_query_of_one_token(name, place):
    """Which one is found, or told; its row of the last attention is the one that a model of all queries has."""
    images, target = normal(2, 16, 16, 3), np.array([1, 1])
    whole, one = (functools.partial(with_class, place, LAST[n]) for n in ("all", name))
    told = {"readout": [1] + [0] * 4} if name == "without an axis" else {}
    models = lrp_jax.trace(whole, P, images), lrp_jax.trace(one, P, images, **told)
    assert all(model.grid == (2, 2) and np.array_equal(model.readout, [1, 0, 0, 0, 0]) for model in models)
    for method in ("attention_rollout", "transformer_attribution"):
        expected, found = (lrp_jax.explain(model, P, images, target, method=method).relevance for model in models)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_readout_of_tokens_without_a_query_is_refused():
    apply = functools.partial(with_class, 0, LAST["without an axis"])
    with pytest.raises(ValueError, match=r"readout must be of the 1 tokens.*got weights of 5 tokens"):
        lrp_jax.trace(apply, P, normal(2, 16, 16, 3), readout=[1 / 5] * 5)


POOLINGS = {
    "with a head": lambda p, x: pooled(p["q"][None, :1], x @ p["k"], x @ p["v"]),
    "without": lambda p, x: pooled(p["q"][:1], x @ p["k"], x @ p["v"]),
    "a vector": lambda p, x: pooled(p["q"][0], x @ p["k"], x @ p["v"]),
}


def pooled(query, keys, values):
    return (
        jax.nn.softmax(query @ keys.mT, axis=-1) @ values if query.ndim > 1 else vector(query, keys, values)
    ).reshape(len(values), -1)


def vector(query, keys, values):
    return jnp.einsum("bn,bnd->bd", jax.nn.softmax(keys @ query, axis=-1), values)


@pytest.mark.parametrize("name", ["without", "a vector"])
def test_pooling_by_one_learned_query_is_attention(name):
    def apply(of, p, x):
        x = patches(p, x).reshape(len(x), 4, 6)
        return POOLINGS[of](p, x + attention(p, x, x)) @ p["out"]

    images, target = normal(2, 16, 16, 3), np.array([1, 1])
    models = [lrp_jax.trace(functools.partial(apply, of), P, images) for of in ("with a head", name)]
    assert "2 blocks of attention, 1 heads, 4 tokens" in str(models[1])
    x = patches(P, images).reshape(2, 4, 6)
    x = x + attention(P, x, x)
    row = jax.nn.softmax(P["q"][:1] @ (x @ P["k"]).mT, axis=-1)
    for method in ("raw_attention", "full_lrp"):
        expected, found = (lrp_jax.explain(model, P, images, target, method=method).relevance for model in models)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        if method == "raw_attention":
            np.testing.assert_allclose(found.reshape(2, 4), row[:, 0], rtol=1e-9)


def bag(p, inputs):
    x = inputs["features"] @ p["q"] * inputs["mask"][..., None]
    return read(p, x)


def test_features_are_explained_as_they_are_beside_other_inputs():
    both = {"features": normal(2, 9, 6), "mask": jnp.ones((2, 9))}
    expected = lrp_jax.explain(lrp_jax.trace(bag, P, both, explain_wrt="features"), P, both).relevance
    features = both["features"]
    alone = lrp_jax.trace(lambda p, x: bag(p, {"features": x, "mask": jnp.ones((1, 9))}), P, features)
    assert alone.grid == (9,)
    found = lrp_jax.explain(alone, P, features).relevance
    assert found.shape == (2, 1, 9)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    one = {"features": features}
    named = lrp_jax.trace(lambda p, x: bag(p, x | {"mask": jnp.ones((1, 9))}), P, one, explain_wrt="features")
    np.testing.assert_allclose(lrp_jax.explain(named, P, one).relevance, found, rtol=1e-12)


def test_clips_have_maps_of_every_frame():
    def apply(p, x):
        frames = patches(p, x.reshape(-1, 16, 16, 3)).reshape(len(x), -1, 6)
        return read(p, frames)

    clips = normal(2, 3, 16, 16, 3)
    model = lrp_jax.trace(apply, P, clips)
    assert model.grid == (3, 2, 2)
    assert lrp_jax.explain(model, P, clips).relevance.shape == (2, 1, 3, 2, 2)
    found = lrp_jax.explain(model, P, clips, np.array([1, 1]), method="input_x_gradient").relevance
    expected = (clips * jax.grad(lambda x: apply(P, x)[:, 1].sum())(clips)).sum(axis=-1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_readout_that_is_given_for_experts_that_values_choose():
    """Weights that are chosen for each token leave the head its tokens; where results are chosen, it must be told."""
    kernels = jnp.stack([P[name] for name in "qkv"])

    def apply(chooses_weights, p, x):
        x = patches(p, x).reshape(len(x), 4, 6)
        x = x + attention(p, x, x)
        best = (x @ p["out"][:, :3]).argmax(axis=-1)
        if chooses_weights:
            y = jnp.einsum("bnd,bndo->bno", x, kernels[best])
        else:
            y = jnp.take_along_axis(jnp.einsum("bnd,edo->bneo", x, kernels), best[..., None, None], axis=2)[:, :, 0]
        return (x + y).mean(axis=1) @ p["out"]

    images, target = normal(2, 16, 16, 3), np.array([1, 1])
    of_weights, of_results = (functools.partial(apply, chooses) for chooses in (True, False))
    with pytest.raises(ValueError, match=r"give readout= .*4 weights .*\[1 / 4\] \* 4 if it reads the mean"):
        lrp_jax.explain(lrp_jax.trace(of_results, P, images), P, images, method="attention_rollout")
    told = lrp_jax.trace(of_results, P, images, readout=[1 / 4] * 4)
    expected, found = (
        lrp_jax.explain(model, P, images, target).relevance for model in (lrp_jax.trace(of_weights, P, images), told)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
