"""What trace takes, what it refuses, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import tracing

pytestmark = pytest.mark.usefixtures("as_users")


IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3), jnp.float64)
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def parameters(**shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return {n: jax.random.normal(k, s, jnp.float64) for k, (n, s) in zip(keys, shapes.items(), strict=True)}


TEXT = parameters(table=(11, 6), positions=(5, 6), q=(6, 6), k=(6, 6), v=(6, 6), out=(6, 4))


def read(params, x):
    """Logits at every position, of embeddings."""
    x = x + params["positions"]
    scores = jnp.einsum("bqd,bkd->bqk", x @ params["q"], x @ params["k"]) / 3
    x = x + jax.nn.softmax(scores, axis=-1) @ (x @ params["v"])
    return x @ params["out"]


def text(params, tokens):
    return read(params, params["table"][tokens])


def test_tokens_are_explained_at_their_embeddings():
    model = lrp_jax.trace(text, TEXT, TOKENS, position=1)
    assert model.grid == (5,)
    assert model.readout.tolist() == [0, 1, 0, 0, 0]
    embeddings = TEXT["table"][TOKENS]
    for method in lrp_jax.METHODS:
        options = {"smoothgrad": {"samples": 2}, "rise": {"masks": 3}}.get(method, {})
        found = lrp_jax.explain(model, TEXT, TOKENS, np.array([[0, 2], [1, 3]]), method=method, **options)
        assert found.relevance.shape == (2, 2, 5)
        assert np.isfinite(found.relevance).all()
        np.testing.assert_allclose(found.logits, text(TEXT, TOKENS)[:, 1], rtol=1e-12)
    gradient = jax.grad(lambda x: read(TEXT, x)[0, 1, 2])(embeddings[:1])[0]
    found = lrp_jax.explain(model, TEXT, TOKENS[:1], np.array([2]), method="input_x_gradient")
    np.testing.assert_allclose(found.relevance[0, 0], (embeddings[0] * gradient).sum(-1), rtol=1e-10)


def test_one_hot_codes_are_embeddings_as_well():
    def coded(params, tokens):
        return read(params, jax.nn.one_hot(tokens, 11, dtype=jnp.float64) @ params["table"])

    a, b = (lrp_jax.explain(lrp_jax.trace(f, TEXT, TOKENS, position=0), TEXT, TOKENS) for f in (coded, text))
    np.testing.assert_allclose(a.relevance, b.relevance, rtol=1e-12)


def test_several_inputs():
    def masked(params, inputs):
        return read(params, params["table"][inputs["tokens"]] * inputs["mask"][..., None])

    inputs = {"mask": np.array([[1.0, 1, 1, 1, 0], [1, 1, 1, 0, 0]]), "tokens": TOKENS}
    with pytest.raises(ValueError, match="one of 'mask', 'tokens'"):
        lrp_jax.trace(masked, TEXT, inputs, position=0)
    model = lrp_jax.trace(masked, TEXT, inputs, position=0, explain_wrt="tokens")
    found = lrp_jax.explain(model, TEXT, inputs)
    np.testing.assert_allclose(found.logits, masked(TEXT, inputs)[:, 0], rtol=1e-12)
    np.testing.assert_allclose(
        found.relevance[1:], lrp_jax.explain(model, TEXT, jax.tree.map(lambda x: x[1:], inputs)).relevance, rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"must be int64\[B,5\], got float64"):
        lrp_jax.explain(model, TEXT, inputs | {"tokens": inputs["mask"]})
    with pytest.raises(ValueError, match="one batch"):
        lrp_jax.explain(model, TEXT, inputs | {"tokens": TOKENS[:1]})


def head(params, x):
    return x.mean(axis=(1, 2)) @ params["out"]


HEAD = parameters(out=(3, 4))


def test_everything_unknown_is_named_with_its_line():
    def apply(params, x):
        x = jnp.cumprod(x, axis=1)
        return head(params, jax.lax.cumlogsumexp(x, axis=2))

    with pytest.raises(tracing.UnsupportedError) as caught:
        lrp_jax.trace(apply, HEAD, IMAGES)
    message = str(caught.value)
    assert "of 2 equations" in message
    for name in ("cumprod of float64[1,8,8,3]", "cumlogsumexp of float64[1,8,8,3]", "test_tracer.py", "register"):
        assert name in message


def test_a_primitive_is_registered(monkeypatch):
    monkeypatch.setattr("lrp_jax.tracing.operations.TABLE", dict(tracing.TABLE))

    def apply(params, x):
        return head(params, jnp.cumprod(x, axis=1))

    @tracing.register("cumprod")
    def cumprod(equation):
        return tracing.Operation("move", lambda rules, x: equation.call(x))

    found = lrp_jax.explain(lrp_jax.trace(apply, HEAD, IMAGES), HEAD, IMAGES, method="full_lrp")
    assert np.isfinite(found.relevance).all()


def test_a_primitive_of_ones_own_is_like_another(monkeypatch):
    """All that is known of ``tanh`` holds of it: that it is an activation, and computes each example by itself."""
    monkeypatch.setattr("lrp_jax.tracing.operations.TABLE", dict(tracing.TABLE))
    wave = jax.extend.core.Primitive("wave")
    wave.def_impl(jnp.tanh)
    wave.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(wave, jax.interpreters.mlir.lower_fun(jnp.tanh, multiple_results=False))
    jax.interpreters.ad.defjvp(wave, lambda t, x: t * (1 - jnp.tanh(x) ** 2))
    jax.interpreters.batching.defvectorized(wave)
    with pytest.raises(tracing.UnsupportedError, match="wave of"):
        lrp_jax.trace(lambda p, x: head(p, wave.bind(x)), HEAD, IMAGES)
    with pytest.raises(ValueError, match=r"like must be a primitive of lrp_jax\.primitives, got 'none'"):
        tracing.register("wave", like="none")
    tracing.register("wave", like="tanh")
    found, wanted = (
        lrp_jax.explain(lrp_jax.trace(lambda p, x, f=f: head(p, f(x)), HEAD, IMAGES), HEAD, IMAGES, method="full_lrp")
        for f in (wave.bind, jnp.tanh)
    )
    np.testing.assert_allclose(found.relevance, wanted.relevance, rtol=1e-12)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda p, x: (head(p, x), x), "one array; got 2 arrays"),
        (lambda p, x: head(p, x)[:, None], r"\(1, 1, 4\). Say which position"),
        (lambda p, x: head(p, x)[0], r"shape \(4,\)"),
        (lambda p, x: head(p, jax.lax.stop_gradient(x)), "does not depend"),
        (
            lambda p, x: head(p, jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * s[1]), (0, x))[1]),
            "while",
        ),
        (lambda p, x: head(p, jnp.log(x.astype(complex)).real), "log of"),
    ],
)
def test_what_is_no_classifier_is_refused(apply, message):
    with pytest.raises(ValueError, match=message):
        lrp_jax.trace(apply, HEAD, IMAGES)


def test_other_shapes_and_structures_are_refused():
    model = lrp_jax.trace(head, HEAD, IMAGES)
    with pytest.raises(ValueError, match=r"traced with an array float64\[1,8,8,3\], got float64\[1,4,8,3\]"):
        lrp_jax.explain(model, HEAD, IMAGES[:, :4], method="full_lrp")
    with pytest.raises(ValueError, match="got float32"):
        lrp_jax.explain(model, HEAD, IMAGES.astype(jnp.float32), method="full_lrp")
    with pytest.raises(ValueError, match="params must be"):
        lrp_jax.explain(model, [HEAD], IMAGES, method="full_lrp")
    with pytest.raises(ValueError, match="no attention maps, it has no attention"):
        lrp_jax.explain(model, HEAD, IMAGES)


def test_attention_in_windows_has_no_maps_of_tokens():
    params = parameters(**{"in": (12, 6), "v": (6, 6), "out": (6, 4)})

    def apply(params, x):
        x = x.reshape(-1, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12) @ params["in"]
        windows = x.reshape(-1, 2, 2, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 6)
        a = jax.nn.softmax(jnp.einsum("bwqd,bwkd->bwqk", windows, windows), axis=-1)
        return (windows + jnp.einsum("bwqk,bwkd->bwqd", a, windows @ params["v"])).mean(axis=(1, 2)) @ params["out"]

    model = lrp_jax.trace(apply, params, IMAGES)
    assert "windows" in model.without_attention
    with pytest.raises(ValueError, match="within windows"):
        lrp_jax.explain(model, params, IMAGES)
    assert lrp_jax.explain(model, params, IMAGES, method="full_lrp").relevance.shape == (2, 1, 8, 8)
    (stage,) = lrp_jax.explain(model, params, IMAGES, method="full_lrp", stages=True).relevance
    assert stage.shape == (2, 1, 4, 4)


def test_the_grid_of_a_hybrid():
    """Convolutions with padding reach past the edges, branches differently far: its rows are rows all the same."""
    params = parameters(stem=(3, 3, 3, 6), block=(3, 3, 6, 6), w=(6, 6), out=(6, 4))

    def conv(x, w, stride):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(params, x):
        x = conv(x, params["stem"], 2)
        for _ in range(3):
            x = x + jax.nn.relu(conv(x, params["block"], 1))
        x = x.reshape(-1, 16, 6)
        x = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x), axis=-1) @ (x @ params["w"])
        return x.mean(axis=1) @ params["out"]

    model = lrp_jax.trace(apply, params, IMAGES)
    assert model.grid == (4, 4)
    assert [stage.grid for _, stage in model.segments[:-1]] == [(4, 4)]
    assert lrp_jax.explain(model, params, IMAGES).relevance.shape == (2, 1, 4, 4)


def test_a_weighted_sum_over_the_tokens_is_no_gate():
    """Attention that is no product of matrices would be missing silently; a choice of experts is no attention."""
    params = parameters(**{"in": (12, 6), "w": (6, 6), "score": (6, 1), "router": (6, 3), "out": (6, 4)})

    def apply(params, x, weigh):
        x = x.reshape(-1, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12) @ params["in"]
        x = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x), axis=-1) @ (x @ params["w"])
        return weigh(x) @ params["out"]

    def pooled(x):
        return (jax.nn.softmax(x @ params["score"], axis=1) * x).sum(axis=1)

    def pooled_as_a_map(x):
        x = x.reshape(-1, 4, 4, 6)
        return (jax.nn.softmax(x @ params["score"], axis=(1, 2)) * x).sum(axis=(1, 2))

    def routed(x):
        experts = jnp.stack([x, x @ params["w"], x @ params["w"].T], axis=2)
        return (jax.nn.softmax(x @ params["router"], axis=-1)[..., None] * experts).sum(axis=2).mean(axis=1)

    for weigh in (pooled, pooled_as_a_map):
        traced = lrp_jax.trace(lambda p, x, weigh=weigh: apply(p, x, weigh), params, IMAGES)
        with pytest.raises(ValueError, match=r"no attention it is known to be, mul of .*test_tracer.py"):
            lrp_jax.explain(traced, params, IMAGES)
    traced = lrp_jax.trace(lambda p, x: apply(p, x, routed), params, IMAGES)
    assert traced.without_attention == ""
    np.testing.assert_allclose(traced.readout, 1 / 16)


def test_the_report_has_every_operation_and_its_line():
    model = lrp_jax.trace(text, TEXT, TOKENS, position=0)
    lines = model.report()
    assert [line.operation for line in lines].count("attention") == 1
    assert all("test_tracer.py" in line.line for line in lines if "_logits" not in line.line)  # it picks the position
    told = str(model)
    assert "1 blocks of attention, 1 heads, 5 tokens" in told
    assert "readout: token 0" in told
    assert repr(model) == repr(lrp_jax.trace(text, TEXT, TOKENS, position=0))
    assert repr(model) != repr(lrp_jax.trace(text, TEXT, TOKENS, position=1))


def test_a_negative_scale_is_of_the_product_before_it():
    """Of a layer scale or a batch norm: as if it had been multiplied into the kernel."""
    params = parameters(w=(3, 3, 3, 6), g=(6,), b=(6,), out=(6, 4))
    assert (params["g"] < 0).any()

    def pooled(params, w, b, g):
        def apply(x):
            z = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jax.nn.relu((z + b) * g).mean(axis=(1, 2)) @ params["out"]

        return apply

    def scaled(p, x):
        return pooled(p, p["w"], p["b"], p["g"])(x)

    def in_kernel(p, x):
        return pooled(p, p["w"] * p["g"], p["b"] * p["g"], jnp.ones(()))(x)

    for rules in lrp_jax.RULES:
        a, b = (
            lrp_jax.explain(lrp_jax.trace(f, params, IMAGES), params, IMAGES, method="full_lrp", rules=rules)
            for f in (scaled, in_kernel)
        )
        np.testing.assert_allclose(a.relevance, b.relevance, rtol=0, atol=1e-9 * np.abs(b.relevance).max())


def test_show_tokens():
    shown = lrp_jax.show_tokens(["<b>", " a", "\x1b[2J"], [0.5, -1.0, 0.0])
    assert "&lt;b&gt;" in shown.html
    assert 'title="-1.000"' in shown.html
    assert "\x1b[2J" not in str(shown)
    for tokens, relevance in ((["a"], [1.0, 2.0]), ("ab", [1.0, 2.0]), (["a"], [np.nan])):
        with pytest.raises(ValueError, match="relevance must be"):
            lrp_jax.show_tokens(tokens, relevance)
