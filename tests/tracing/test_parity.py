"""One model, however it is written, has one map: that of the library's own ViT."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_model
from plain_vit import FIELDS, Plain, assert_sent, images, sent, sent_by_the_vit, ways

import lrp_jax
from lrp_jax.rules import CP_LRP, Where, composite, with_gamma

TARGETS = np.array([[0, 2], [1, 1]])
# Each way in one test at least; attention of the library, which computes in float32, in one of its own.
WAYS = [{}] + [way | ({"heads": "second"} if way["heads"] == "library" else {}) for way in ways(0, 12)]


pytestmark = pytest.mark.usefixtures("as_users")


@functools.cache
def expected(method, **options):
    model, params = small_model(num_classes=3, **FIELDS)
    return lrp_jax.explain(model, params, images(), TARGETS, method=method, **options)


def assert_same(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(found.logits, expected.logits, rtol=tolerance, atol=tolerance)
    largest = np.abs(expected.relevance).max()
    np.testing.assert_allclose(found.relevance, expected.relevance, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ", ".join(map(str, way.values())) or "as it is")
def test_every_way_to_write_it_has_one_map(way):
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config, **way), params, images())
    assert traced.grid == (2, 3)
    assert traced.readout.tolist() == [1, *[0] * 6]
    assert_sent(sent(traced, params), sent_by_the_vit())


def test_attention_of_the_library_of_jax():
    """It computes in float32."""
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config, heads="library"), params, images())
    assert_sent(sent(traced, params), sent_by_the_vit(), 1e-5)


@pytest.mark.parametrize("rules", ["stable", "chefer"])
def test_a_softmax_in_float32(rules):
    """In a model of another dtype, as many compute it."""
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config, softmax="single"), params, images())
    for method in ("transformer_attribution", "full_lrp"):
        found = lrp_jax.explain(traced, params, images(), TARGETS, method=method, rules=rules)
        assert_same(found, expected(method, rules=rules), 1e-4)


# One of each kind of what methods read.
METHODS = ("transformer_attribution", "partial_lrp", "full_lrp", "raw_attention", "attention_rollout")
METHODS += ("attention_gradcam", "legrad", "gated_lrp", "attnlrp", "integrated_gradients", "rise")


@pytest.mark.parametrize("method", METHODS)
def test_methods_take_it(method):
    model, params = small_model(num_classes=3, **FIELDS)
    options = {"integrated_gradients": {"steps": 2}, "rise": {"masks": 3}}.get(method, {})
    traced = lrp_jax.trace(Plain(model.config), params, images())
    found = lrp_jax.explain(traced, params, images(), TARGETS, method=method, **options)
    assert_same(found, expected(method, **options))


COMPOSITES = {
    "gamma": with_gamma(CP_LRP, 0.1),
    "parts": composite(
        [(Where(part="attention"), "attnlrp"), (Where(part="mlp"), "ali_lrp"), (Where(part="head"), "cp_lrp")],
        "libragrad",
    ),
    "depths": composite(
        [
            (Where(depth=0), "attnlrp"),
            (Where(depth=-1), with_gamma(CP_LRP, 0.2)),
            (Where("softmax", depth=1), "attnlrp"),
        ],
        "libragrad",
    ),
    "parameters": composite(
        [(Where(parameter="blocks/*/fc1/*"), with_gamma(CP_LRP, 0.2, "all")), (Where(parameter="head/*"), "attnlrp")],
        "libragrad",
    ),
    "relevance": composite([(Where("dense", depth=range(2)), "baseline")], "stable"),
}
# One of each kind in which a program is another: other equations, or in other loops.
DIFFERENT = [
    {way: value}
    for way, value in {
        "qkv": "separate",
        "heads": "grouped",
        "scale": "before",
        "softmax": "plain",
        "norm": "one pass",
        "gelu": "erfc",
        "blocks": "scan",
        "batch": "vmap",
        "readout": "slice",
        "patches": "einsum",
    }.items()
]


@pytest.mark.parametrize(
    ("way", "name"),
    [({}, name) for name in COMPOSITES] + list(zip(DIFFERENT, itertools.cycle(COMPOSITES), strict=False)),
    ids=lambda case: case if isinstance(case, str) else ", ".join(map(str, case.values())) or "as it is",
)
def test_operations_stand_where_those_of_the_vit_do(way, name):
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config, **way), params, images())
    options = {"method": "full_lrp", "rules": COMPOSITES[name]}
    assert_same(lrp_jax.explain(traced, params, images(), TARGETS, **options), expected(**options))


READOUTS = {
    "class": {},
    "registers": {"prefix_tokens": 4, "readout": "class"},
    "distilled": {"prefix_tokens": 2, "readout": "distilled"},
    "mean": {"prefix_tokens": 3, "readout": "mean"},
    "no prefix": {"prefix_tokens": 0, "readout": "mean", "norm_after_readout": True},
    "class and mean": {"readout": "class_mean", "norm_after_readout": True},
    "attention": {"prefix_tokens": 0, "readout": "attention"},
    "gated": {"swiglu": True, "pre_norm": True},
}


LOOPED = ("attention", "gated", "class and mean")  # with the loop over blocks; the readouts alone need none
CASES = [pytest.param(fields | {"depth": 1}, "stable", id=name) for name, fields in READOUTS.items()]
CASES += [
    pytest.param(READOUTS[name], rules, id=rules)
    for name, rules in zip(LOOPED, ("chefer", "attnlrp", "libragrad"), strict=True)
]


@pytest.mark.parametrize(("fields", "rules"), CASES)
def test_a_traced_vit_is_the_vit(fields, rules):
    model, params = small_model(num_classes=3, **FIELDS | fields)
    traced = lrp_jax.trace(lambda p, x: jax.vmap(lambda image: model.apply({"params": p}, image))(x), params, images())
    assert traced.grid == model.grid
    if model.readout is None:
        assert traced.readout is None
    else:
        np.testing.assert_allclose(traced.readout, model.readout, rtol=1e-15)
    assert_sent(sent(traced, params, rules), sent(model, params, rules))


TOKENS = {
    "content and position": {"method": "attnlrp", "position": True},
    "FullGrad": {"method": "libragrad", "full": True},
    "FullGrad+": {"method": "libragrad", "full": True, "at": "blocks"},
    "LeGrad": {"method": "legrad"},
    "LeGrad of the last": {"method": "legrad", "start_layer": 2, "cosine": True},
    "gamma": {"method": "cp_lrp", "gamma": 0.1, "at": "blocks"},
    "gated": {"method": "gated_lrp", "start_layer": 1},
}


@pytest.mark.parametrize(
    ("name", "readout"),
    [
        *zip(TOKENS, itertools.cycle(["distilled", "gated", "class and mean", "attention"]), strict=False),
        *(("LeGrad", readout) for readout in ("class and mean", "attention")),
    ],
)
def test_what_is_read_at_tokens_is_that_of_the_vit(readout, name):
    model, params = small_model(num_classes=3, **FIELDS | READOUTS[readout])
    traced = lrp_jax.trace(lambda p, x: jax.vmap(lambda image: model.apply({"params": p}, image))(x), params, images())
    found, wanted = (lrp_jax.explain(m, params, images(), TARGETS, **TOKENS[name]) for m in (traced, model))
    for a, b in zip(jax.tree.leaves(found.relevance), jax.tree.leaves(wanted.relevance), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_other_parameters_batches_and_transforms():
    """One trace serves any parameters of the shapes; maps can be jitted, mapped and differentiated."""
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config), params, images(1))
    others = jax.tree.map(lambda p: p * 0.9 + 0.01, params)
    a, b = (lrp_jax.explain(m, others, images(5)) for m in (traced, model))
    assert_same(a, b)
    jitted = jax.jit(lambda p, x: lrp_jax.explain(traced, p, x).relevance)(others, images(5))
    np.testing.assert_allclose(jitted, b.relevance, rtol=0, atol=1e-10 * np.abs(b.relevance).max())
    many = jax.tree.map(lambda p, q: jnp.stack([p, q]), params, others)
    mapped = jax.vmap(lambda p: lrp_jax.explain(traced, p, images(5)).relevance)(many)
    np.testing.assert_allclose(mapped[1], b.relevance, rtol=0, atol=1e-10 * np.abs(b.relevance).max())

    def total(m):
        return jax.grad(lambda p: (lrp_jax.explain(m, p, images(), TARGETS).relevance ** 2).sum())(params)

    for g, h in zip(jax.tree.leaves(total(traced)), jax.tree.leaves(total(model)), strict=True):
        np.testing.assert_allclose(g, h, rtol=0, atol=1e-8 * max(np.abs(h).max(), 1e-8))


def test_a_model_is_traced_inside_the_callers_jit():
    model, params = small_model(num_classes=3, **FIELDS)

    @jax.jit
    def explain(params, images):
        return lrp_jax.explain(lrp_jax.trace(Plain(model.config), params, images), params, images, TARGETS)

    assert_same(explain(params, images()), expected("transformer_attribution"))


def test_a_model_is_exported_for_any_batch():
    """With symbols for its sizes, as a program that other processes run."""
    model, params = small_model(num_classes=3, **FIELDS)
    traced = lrp_jax.trace(Plain(model.config), params, images())
    explain = jax.jit(lambda p, x, t: lrp_jax.explain(traced, p, x, t).relevance)
    (batch,) = jax.export.symbolic_shape("b")
    sizes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (images(), TARGETS)]
    exported = jax.export.export(explain)(params, *sizes)
    whole = expected("transformer_attribution").relevance
    np.testing.assert_allclose(
        exported.call(params, images(), TARGETS), whole, rtol=0, atol=1e-10 * np.abs(whole).max()
    )


def test_heads_in_another_order_and_a_trace_of_another_batch():
    model, params = small_model(num_classes=3, **FIELDS)
    order, d = np.array([1, 0]), 4
    blocks = params["blocks"]
    qkv, proj = blocks["attn"]["qkv"], blocks["attn"]["proj"]

    def by_head(x, axis):
        shape = (*x.shape[:axis], -1, 2, d, *x.shape[axis + 1 :])
        return x.reshape(shape).take(order, axis + 1).reshape(x.shape)

    attn = {
        "qkv": {"kernel": by_head(qkv["kernel"], 2), "bias": by_head(qkv["bias"], 1)},
        "proj": proj | {"kernel": by_head(proj["kernel"], 1)},
    }
    permuted = params | {"blocks": blocks | {"attn": attn}}
    traced = lrp_jax.trace(Plain(model.config), permuted, images(8))
    for method in ("transformer_attribution", "full_lrp"):
        assert_same(lrp_jax.explain(traced, permuted, images(), TARGETS, method=method), expected(method))
    attention = [lrp_jax.attention_signals(m, p, images()).attention for m, p in ((traced, permuted), (model, params))]
    np.testing.assert_allclose(attention[0][:, :, order], attention[1], rtol=0, atol=1e-10)


class Listed(Plain):
    """Blocks that have parameters of their own each, one after the other."""

    def encode(self, blocks, x):
        for block in blocks:
            x = self.block(block, x)
        return x


def test_repeated_blocks_are_rolled_into_one_loop():
    model, params = small_model(num_classes=3, **FIELDS | {"depth": 5})
    listed = dict(params, blocks=[jax.tree.map(lambda p, i=i: p[i], params["blocks"]) for i in range(5)])
    traced = lrp_jax.trace(Listed(model.config), listed, images())
    assert [line.times for line in traced.report() if line.operation == "softmax"] == [5]
    for method in ("transformer_attribution", "full_lrp"):
        for start in (0, 2, 4) if method == "transformer_attribution" else (None,):
            options = {} if start is None else {"start_layer": start}
            a = lrp_jax.explain(traced, listed, images(), TARGETS, method=method, **options)
            assert_same(a, lrp_jax.explain(model, params, images(), TARGETS, method=method, **options))


def permuted(way):
    """The model with its tokens in another order, class token last, and what its parameters are."""
    model, params = small_model(num_classes=3, **FIELDS)
    order = {"last": np.r_[1:7, 0], "columns": np.r_[0, 1 + np.arange(6).reshape(2, 3).T.reshape(-1)]}[way]

    class Permuted(Plain):
        def embed(self, params, images):
            return super().embed(params, images)[:, order]

        def run(self, params, images):
            x = self.encode(params["blocks"], self.embed(params, images))
            x = self.normalise(params["norm"], x, self.config.final_norm_epsilon)
            return self.dense(params["head"], x[:, int(np.flatnonzero(order == 0)[0])])

    return Permuted(model.config), params


@pytest.mark.parametrize("way", ["last", "columns"])
def test_tokens_stand_in_any_order(way):
    apply, params = permuted(way)
    traced = lrp_jax.trace(apply, params, images())
    assert traced.readout.tolist() == [1, *[0] * 6]
    for method in ("transformer_attribution", "raw_attention", "attention_rollout"):
        assert_same(lrp_jax.explain(traced, params, images(), TARGETS, method=method), expected(method))


def test_a_shifted_image_has_a_shifted_map():
    """Of a model without positions, by one patch, around the edge."""
    model, params = small_model(num_classes=3, **FIELDS)
    params = params | {"pos_embed": jnp.zeros_like(params["pos_embed"])}
    traced = lrp_jax.trace(Plain(model.config), params, images())
    a = lrp_jax.explain(traced, params, images(), TARGETS)
    b = lrp_jax.explain(traced, params, jnp.roll(images(), 4, axis=2), TARGETS)
    np.testing.assert_allclose(b.relevance, jnp.roll(a.relevance, 1, axis=3), rtol=1e-9, atol=1e-12)
