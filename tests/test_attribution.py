"""Maps: parity with the authors' code, batches, transforms, bad input."""

import dataclasses

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CASES, Wrapped, relative_error, small_images, small_model
from hypothesis import strategies as st

import lrp_jax
from lrp_jax.rules import register
from lrp_jax.walk import classify, forward


@pytest.mark.parametrize("case", CASES)
def test_signals_equal_the_authors(golden, golden_model, golden_images, case):
    expected = {k.removeprefix(f"case{case}/"): v for k, v in golden.items() if k.startswith(f"case{case}/")}
    image, target = golden_images[expected["image"]], expected["target"]
    signals = lrp_jax.attention_signals(*golden_model, image[None], target[None], rules="chefer")
    assert relative_error(signals.logits[0], expected["logits"]) <= 1e-12
    for layer in range(len(expected["attention"])):
        assert relative_error(signals.attention[0, layer], expected["attention"][layer]) <= 1e-12
        assert relative_error(signals.gradient[0, 0, layer], expected["attention_gradient"][layer]) <= 1e-12
        assert relative_error(signals.relevance[0, 0, layer], expected["attention_relevance"][layer]) <= 1e-7


def test_map_is_the_rollout_of_the_signals():
    """The class token's row of the product, against the product of whole matrices."""
    model, params = small_model()
    images = small_images(1)
    signals = lrp_jax.attention_signals(model, params, images, jnp.array([3]))
    weighted = np.maximum(np.asarray(signals.gradient * signals.relevance)[0, 0], 0).mean(axis=1)
    for start_layer in range(3):
        rollout = np.eye(17)
        for layer in range(start_layer, 3):
            rollout = (np.eye(17) + weighted[layer]) @ rollout
        explanation = lrp_jax.explain(model, params, images, jnp.array([3]), start_layer=start_layer)
        np.testing.assert_allclose(explanation.relevance[0, 0].ravel(), rollout[0, 1:], rtol=1e-10)


def test_gradient_equals_finite_differences():
    model, params = small_model()
    image = small_images(1)[0]
    signals = lrp_jax.attention_signals(model, params, image[None], jnp.array([2]))
    for layer, *place in [(0, 0, 0, 3), (1, 1, 5, 2), (2, 0, 0, 7)]:
        above, below = (float(forward(Moved(model, layer, tuple(place), s * 1e-5), params, image)[2]) for s in (1, -1))
        expected = (above - below) / 2e-5
        np.testing.assert_allclose(signals.gradient[0, 0][layer][tuple(place)], expected, rtol=1e-5, atol=1e-9)


@dataclasses.dataclass(frozen=True)
class Moved(Wrapped):
    """A model of which one value of an attention is moved."""

    layer: int
    place: tuple[int, ...]
    by: float

    depth = property(lambda self: (1,) * self.model.config.depth)

    def block(self, params, i, tokens, rules):
        see = lambda maps: maps.at[self.place].add(self.by)  # noqa: E731
        return self.model.block(
            params, i, tokens, dataclasses.replace(rules, see=Seeing(see)) if i == self.layer else rules
        )


@dataclasses.dataclass(frozen=True)
class Seeing:
    change: object

    def look(self, maps, rows):
        return self.change(maps), None

    def seen(self, found):
        pass


def test_batch_equals_single():
    model, params = small_model()
    images = small_images(8)
    targets = jax.random.randint(jax.random.key(3), (8, 3), 0, 5)
    batch = lrp_jax.explain(model, params, images, targets)
    chex.assert_shape(batch.relevance, (8, 3, 4, 4))
    largest = jnp.abs(batch.relevance).max()
    assert largest > 0
    for b in range(8):
        for k in range(3):
            single = lrp_jax.explain(model, params, images[b : b + 1], targets[b : b + 1, k])
            assert jnp.abs(single.relevance[0, 0] - batch.relevance[b, k]).max() <= 1e-10 * largest
            chex.assert_trees_all_close(single.logits[0], batch.logits[b], rtol=1e-12)


LINEAR = {
    "attention_gradcam": None,  # not linear in the target: compared for one-hot weights alone
    "full_lrp": {},
    "input_x_gradient": {},
    "rise": {"masks": 3, "score": "logit"},
    "transformer_attribution": None,
}


@pytest.mark.parametrize("method", LINEAR)
def test_a_class_is_a_direction_of_the_output(method):
    """One-hot weights are the class; where the method is linear, a minus b is the difference of their maps."""
    model, params = small_model()
    images, options = small_images(2), LINEAR[method] or {}
    classes = jnp.array([[3, 1], [0, 4]])
    one_hot = jax.nn.one_hot(classes, 5, dtype=jnp.float64)
    of_classes = lrp_jax.explain(model, params, images, classes, method=method, **options)
    of_weights = lrp_jax.explain(model, params, images, one_hot, method=method, **options)
    np.testing.assert_array_equal(of_weights.targets, one_hot)
    np.testing.assert_allclose(of_weights.relevance, of_classes.relevance, rtol=1e-9, atol=1e-15)
    difference = one_hot[:, :1] - one_hot[:, 1:]
    found = jax.jit(lambda t: lrp_jax.explain(model, params, images, t, method=method, **options).relevance)(difference)
    if LINEAR[method] is not None:
        expected = of_classes.relevance[:, :1] - of_classes.relevance[:, 1:]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_signals_of_a_direction():
    model, params = small_model()
    images, weights = small_images(1), jnp.array([[[0.5, 0.0, -2.0, 0.0, 1.0]]])
    found = lrp_jax.attention_signals(model, params, images, weights)
    single = lrp_jax.attention_signals(model, params, images, jnp.arange(5)[None])
    expected = jnp.einsum("c,clhnm->lhnm", weights[0, 0], single.gradient[0])
    np.testing.assert_allclose(found.gradient[0, 0], expected, rtol=1e-9, atol=1e-15)


def test_the_other_side_of_a_single_output():
    model, params = small_model(num_classes=1)
    images = small_images(2)
    sides = jnp.array([[[1.0], [-1.0]]] * 2)
    maps = lrp_jax.explain(model, params, images, sides, method="input_x_gradient").relevance
    np.testing.assert_allclose(maps[:, 0], -maps[:, 1], rtol=1e-12)
    with pytest.raises(ValueError, match="score must be 'logit' or 'sigmoid' for a model of one output"):
        lrp_jax.explain(model, params, images, method="rise", masks=2)
    lrp_jax.explain(model, params, images, method="rise", masks=2, score="sigmoid")


def test_a_target_out_of_range_inside_jit_has_a_map_of_zeros():
    model, params = small_model()
    for method, options in (("transformer_attribution", {}), ("occlusion", {}), ("rise", {"masks": 2})):
        explain = jax.jit(
            lambda t, m=method, o=options: lrp_jax.explain(model, params, small_images(1), t, method=m, **o)
        )
        largest = np.abs(explain(jnp.array([[7, 1]])).relevance).max((2, 3))[0]
        assert largest[0] == 0
        assert largest[1] > 0


@pytest.mark.parametrize("setting", ["raise", "allow"])
@pytest.mark.parametrize("promotion", ["strict", "standard"])
def test_the_callers_settings_of_promotion(small, setting, promotion):
    """They are for the caller's code: bfloat16 parameters and every rank are promoted as documented."""
    with jax.numpy_rank_promotion(setting), jax.numpy_dtype_promotion(promotion):
        lrp_jax.load("demo")
        model, params = small
        scenes = lrp_jax.datasets.digit_scenes(1, seed=0)
        low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
        for method, options in (
            ("transformer_attribution", {}),
            ("full_lrp", {}),
            ("integrated_gradients", {"steps": 2}),
        ):
            e = lrp_jax.explain(model, low, scenes.images, scenes.labels, method=method, **options)
            assert e.relevance.dtype == jnp.float32
            lrp_jax.heatmaps(e.relevance, (64, 64))
            lrp_jax.metrics.share_on_target(e.relevance, scenes.masks)


@pytest.mark.parametrize(("method", "options"), [("transformer_attribution", {}), ("rise", {"masks": 3})])
def test_inside_the_callers_transforms(method, options):
    model, params = small_model()
    images, targets = small_images(4), jnp.array([[0, 1], [2, 3], [4, 0], [1, 2]])
    expected = lrp_jax.explain(model, params, images, targets, method=method, **options)

    def explain(params, images, targets):
        return lrp_jax.explain(model, params, images, targets, method=method, **options)

    chex.assert_trees_all_close(jax.jit(explain)(params, images, targets), expected, rtol=1e-10)
    closed_over = jax.jit(lambda params: explain(params, images, targets))(params)
    chex.assert_trees_all_close(closed_over, expected, rtol=1e-10)
    by_pairs = jax.vmap(explain, in_axes=(None, 0, 0))(
        params, images.reshape(2, 2, 16, 16, 3), targets.reshape(2, 2, 2)
    )
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), by_pairs)
    chex.assert_trees_all_close(flat, expected, rtol=1e-10)


def test_a_name_that_comes_to_mean_another_rule_set():
    """Programs compiled for a name are not taken for what it means later."""
    model, params = small_model()
    try:
        for rules in (lrp_jax.CHEFER, lrp_jax.BASELINE):
            register(dataclasses.replace(rules, name="changing"))
            for found, expected in (
                (
                    lrp_jax.explain(model, params, small_images(1), method="full_lrp", rules=name)
                    for name in ("changing", rules)
                ),
                (lrp_jax.attention_signals(model, params, small_images(1), rules=name) for name in ("changing", rules)),
            ):
                np.testing.assert_array_equal(found.relevance, expected.relevance)
    finally:
        del lrp_jax.RULES["changing"]


def test_predicted_class_is_the_default():
    model, params = small_model()
    images = small_images(3)
    explanation = lrp_jax.explain(model, params, images)
    np.testing.assert_array_equal(explanation.targets[:, 0], explanation.logits.argmax(axis=-1))
    chex.assert_trees_all_close(explanation, lrp_jax.explain(model, params, images, explanation.targets))


def test_one_trace_for_repeated_calls():
    @dataclasses.dataclass(frozen=True)
    class Counting(Wrapped):
        traces: list = dataclasses.field(default_factory=list, compare=False)

        def embed(self, *arguments):
            self.traces.append(1)
            return super().embed(*arguments)

    model, params = small_model()
    counting = Counting(model)
    lrp_jax.explain(counting, params, small_images(2), jnp.array([1, 2]))
    first = len(counting.traces)
    assert first > 0
    for seed in range(3):
        images = jax.random.normal(jax.random.key(seed), (2, 16, 16, 3), jnp.float64)
        lrp_jax.explain(counting, params, images, np.array([seed, 0]))
    assert len(counting.traces) == first


def test_float32_stays_float32_and_does_not_blur():
    model, params = small_model(jnp.float32)
    images = small_images(2, jnp.float32)
    explanation = lrp_jax.explain(model, params, images)
    assert explanation.relevance.dtype == explanation.logits.dtype == jnp.float32
    exact = lrp_jax.explain(model, *jax.tree.map(lambda x: x.astype(jnp.float64), (params, images)))
    assert relative_error(explanation.logits, exact.logits) < 1e-5
    assert relative_error(explanation.relevance, exact.relevance) < 1e-4


def test_rectangular_images_and_patches():
    model, params = small_model(image_size=(12, 20), patch_size=(3, 5), channels=1)
    images = small_images(2, shape=(12, 20, 1))
    explanation = lrp_jax.explain(model, params, images)
    chex.assert_shape(explanation.relevance, (2, 1, 4, 4))
    # A patch that nothing attends to would be 0: each has its place in the row.
    signals = lrp_jax.attention_signals(model, params, images)
    chex.assert_shape(signals.relevance, (2, 1, 3, 2, 17, 17))


def test_relevance_lies_where_the_patch_is():
    """Rows and columns are not swapped: only one patch differs from an otherwise empty grid."""
    model, params = small_model(image_size=(8, 16), patch_size=4)
    params = params | {"pos_embed": params["pos_embed"] * 0}
    images = jnp.zeros((1, 8, 16, 3), jnp.float64).at[0, 4:8, 8:12].set(3.0)
    relevance = lrp_jax.explain(model, params, images).relevance[0, 0]
    others = np.delete(relevance.ravel(), 6)
    assert np.ptp(others) <= 1e-9 * np.abs(relevance).max()
    assert abs(relevance[1, 2] - others[0]) > 1e-3 * np.abs(relevance).max()


@pytest.mark.slow
def test_float32_does_not_blur_stable_maps(demo, optimised):
    """Error over largest value of each map, against float64; the exact rules' 99th percentile is 1e-2."""
    model, params = demo
    scenes = lrp_jax.datasets.digit_scenes(100, seed=2, split="test")
    maps = []
    for dtype in (jnp.float32, jnp.float64):
        typed = [jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), tree) for tree in (params, scenes.images)]
        maps.append(lrp_jax.explain(model, *typed, scenes.labels, rules="stable").relevance)
    error = jnp.abs(maps[0].astype(jnp.float64) - maps[1]).max((2, 3)) / maps[1].max((2, 3))
    assert np.quantile(error, 0.99) <= 1e-4


def test_products_keep_float32_whatever_the_callers_setting():
    """On accelerators, where products round by default."""
    model, params = small_model(jnp.float32)
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(lambda p, x: lrp_jax.explain(model, p, x))(params, small_images(1, jnp.float32)))
        logits = str(jax.make_jaxpr(lambda p, x: classify(model, p, x))(params, small_images(1, jnp.float32)[0]))
    assert program.count("dot_general[") > 20
    assert logits.count("dot_general[") > 5
    for text in (program, logits):
        assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == text.count("dot_general[")


def test_bfloat16_parameters_give_float32_maps():
    model, params = small_model(jnp.bfloat16)
    images = small_images(2, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        low = lrp_jax.explain(model, params, images, rules="stable")
    full = lrp_jax.explain(model, jax.tree.map(lambda p: p.astype(jnp.float32), params), images, rules="stable")
    assert low.relevance.dtype == jnp.float32
    np.testing.assert_allclose(low.relevance, full.relevance, rtol=1e-4, atol=1e-6)


@hypothesis.settings(max_examples=160, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([0.0, 1e-30, 1e-10, 1e-4, 1.0, 30.0]),
    weights=st.sampled_from([0.0, 1e-20, 1e-5, 1.0, 10.0]),
    constant=st.booleans(),
    options=st.sampled_from(
        [
            {"rules": "stable"},
            {"rules": "chefer"},
            {"method": "attnlrp", "gamma": 0.1},
            {"method": "attnlrp", "position": True},
            {"method": "cp_lrp", "gamma": 0.25, "gamma_at": "all", "at": "pixels"},
            {"method": "libragrad", "full": True, "at": "blocks"},
            {"method": "legrad", "cosine": True},
            {"method": "generic_attention"},
            {"method": "gated_lrp", "at": "pixels", "two_views": True},
        ]
    ),
)
def test_maps_are_finite(seed, scale, weights, constant, options):
    """Whatever the finite image and model: zeros, constants, tiny and large values."""
    model, params = small_model(jnp.float32)
    keys = jax.random.split(jax.random.key(seed), 2)
    leaves, structure = jax.tree.flatten(params)
    noise = [
        jax.random.normal(k, p.shape, p.dtype)
        for k, p in zip(jax.random.split(keys[0], len(leaves)), leaves, strict=True)
    ]
    params = jax.tree.unflatten(structure, [n * jnp.float32(weights) for n in noise])
    images = jax.random.normal(keys[1], (1, 16, 16, 3), jnp.float32) * jnp.float32(scale)
    images = jnp.broadcast_to(images[:, :1, :1, :1], images.shape) if constant else images
    chex.assert_tree_all_finite(lrp_jax.explain(model, params, images, jnp.array([[0, 4]]), **options))


@pytest.mark.slow
def test_maps_of_the_demo_model_are_specific_to_the_class(demo, optimised):
    """On held-out scenes, the mass that falls on either digit falls on the one that was asked for."""
    model, params = demo
    scenes = lrp_jax.datasets.digit_scenes(200, seed=1, split="test")
    explain = jax.jit(lambda images, targets: lrp_jax.explain(model, params, images, targets).relevance)
    maps = np.concatenate([explain(scenes.images[i : i + 50], scenes.labels[i : i + 50]) for i in range(0, 200, 50)])
    share = lrp_jax.metrics.share_on_target(maps, scenes.masks)
    print("share on the asked digit, first and second:", share.mean(axis=0))
    assert (share.mean(axis=0) >= 0.7).all()


def test_the_other_byte_order(small):
    """JAX reads big-endian parameters as its own, without an error, once it was compiled for others."""
    model, params = small
    native = jax.tree.map(np.asarray, params)
    images, targets = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32), np.array([3])
    expected = lrp_jax.explain(model, native, images, targets, method="saliency").relevance
    found = lrp_jax.explain(model, native, images.astype(">f4"), targets.astype(">i8"), method="saliency").relevance
    np.testing.assert_array_equal(found, expected)
    big = jax.tree.map(lambda x: x.astype(">f4"), native)
    with pytest.raises(ValueError, match=r"params\['blocks'\]\S+ is >f4, of another byte order"):
        lrp_jax.explain(model, big, images, targets, method="saliency")


class TestBadInput:
    images = np.zeros((2, 16, 16, 3), np.float32)

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            ((images[0],), {}, r"\[B, H, W, channels\] .*, got the shape \(16, 16, 3\)"),
            ((images.astype(np.uint8),), {}, "float32 or float64, .*got uint8"),
            ((images.astype(np.float16),), {}, "got float16"),
            ((images[:, :8],), {}, r"\(16, 16, 3\), got \(8, 16, 3\)"),
            ((images * np.nan,), {}, "finite, got NaN"),
            ((images, [0, 5]), {}, r"0 to 4, got \[0, 5\]"),
            ((images, [-1, 0]), {}, "0 to 4"),
            ((images, [0.0, 1.0]), {}, r"integers.*got float64 of the shape \(2,\)"),
            ((images, ["cat", "dog"]), {}, "integers.*got <U3"),
            ((images, "cat"), {}, "integers.*got <U3"),
            ((images, [None, None]), {}, "integers.*got object"),
            ((images, [True, False]), {}, "integers.*got bool"),
            ((images, [[0], [1, 2]]), {}, "targets must be an array, got list"),
            ((images, {"a": 1}), {}, "got object"),
            ((images, [0, 2**32]), {}, r"0 to 4, got \[0, 4294967296\]"),
            ((images, [0, 2**31]), {}, "0 to 4"),
            ((images, [0, -(2**32)]), {}, "0 to 4"),
            ((images, [0, 2**70]), {}, "integers.*got object"),
            ((images, np.array([0, 2**63], np.uint64)), {}, "0 to 4"),
            ((images, np.zeros((2, 1, 5), int)), {}, r"integers.*got int64 of the shape \(2, 1, 5\)"),
            ((images, np.zeros((2, 1, 4))), {}, r"\[B, K, 5\], got the shape \(2, 1, 4\)"),
            ((images, np.full((2, 1, 5), np.inf)), {}, "weights of the logits must be finite"),
            ((images, np.zeros((1, 1, 5))), {}, "2 images"),
            (("cat",), {}, r"\[B, H, W, channels\] .*, got the shape \(\)"),
            ((images.astype(str),), {}, "float32 or float64.*got <U32"),
            (([images[0], images[0, :8]],), {}, "images must be an array, got list"),
            ((images, [0]), {}, r"2 images.*got the shape \(1,\)"),
            ((images, np.zeros((2, 0), int)), {}, "at least 1"),
            ((images, 3), {}, r"got int64 of the shape \(\)"),
            ((images,), {"method": "gradcam"}, "transformer_attribution, partial_lrp, .*; got 'gradcam'"),
            ((images,), {"layer": 1}, "takes the options start_layer, rules; got 'layer'"),
            (
                (images,),
                {"rules": "epsilon"},
                r"rules must be one of chefer, stable, baseline, .*, or a Rules; got 'epsilon'",
            ),
            ((images,), {"start_layer": 3}, "0 to 2; got 3"),
            ((images,), {"start_layer": -1}, "0 to 2; got -1"),
        ],
    )
    def test_is_named(self, arguments, options, message):
        model, params = small_model(jnp.float32)
        with pytest.raises(ValueError, match=message):
            lrp_jax.explain(model, params, *arguments, **options)
