"""AttnLRP and its kin against the authors' values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CASES, GOLDEN, Wrapped, at_blocks, relative_error, small_images, small_model

import lrp_jax
from lrp_jax.rules import ATTNLRP, CP_LRP, GRADIENT, LIBRAGRAD, Where, composite, with_gamma
from lrp_jax.signals import signals_at_pixels, walk
from lrp_jax.walk import Fold


@pytest.fixture(scope="module")
def modern():
    """Values of the authors' code of the modern methods."""
    with np.load(GOLDEN / "modern_vit_random.npz") as file:
        return dict(file)


# Their published code adds 1e-10 to what it divides by, 1e-6 with gamma; LibraGrad's and that of Ali et al. nothing.
EXACT, WITH_EPSILON, WITH_GAMMA, DEPTH = 1e-13, 6e-8, 2e-5, 4


def lxt(rules, at):
    """Gamma as in LXT's example, whose patch embedding has another."""
    smoothed = with_gamma(rules, 0.25, "all")
    return composite([(Where("patch_embed"), smoothed)], with_gamma(rules, 0.05, at))


GAMMAS = {
    f"{name}_{suffix}/{key}": (*method, WITH_GAMMA)
    for name, rules in (("attnlrp", ATTNLRP), ("cp_lrp", CP_LRP))
    for suffix, at in (("gamma", "mlp"), ("gamma_all", "all"))
    for key, method in {
        "patches": (name, {"gamma": 0.05, "gamma_at": at}),
        "pixels": ("full_lrp", {"rules": lxt(rules, at)}),
    }.items()
}
VALUES = {
    "attnlrp/patches": ("attnlrp", {}, WITH_EPSILON),
    "attnlrp/pixels": ("attnlrp", {"at": "pixels"}, WITH_EPSILON),
    "cp_lrp/patches": ("cp_lrp", {}, WITH_EPSILON),
    "cp_lrp/pixels": ("cp_lrp", {"at": "pixels"}, WITH_EPSILON),
    "ali_lrp/patches": ("ali_lrp", {}, EXACT),
    "ali_lrp/pixels": ("ali_lrp", {"at": "pixels"}, EXACT),
    "libra/patches": ("libragrad", {}, EXACT),
    "libra/pixels": ("libragrad", {"at": "pixels"}, EXACT),
    "libra/ixg_plus_patches": ("libragrad", {"at": "blocks"}, EXACT),
    "libra/fullgrad_patches": ("libragrad", {"full": True}, EXACT),
    "libra/fullgrad_plus_patches": ("libragrad", {"full": True, "at": "blocks"}, EXACT),
    "generic_attention/patches": ("generic_attention", {}, EXACT),
    "legrad/logit_all/patches": ("legrad", {}, EXACT),
    "legrad/logit_last2/patches": ("legrad", {"start_layer": DEPTH - 2}, EXACT),
    # LXT's explicit rules add 1e-6 and 1e-8, without a sign.
    "attnlrp_explicit/patches": ("attnlrp", {}, 3e-3),
    "attnlrp_explicit/pixels": ("attnlrp", {"at": "pixels"}, 3e-3),
    "cp_lrp_explicit/patches": ("cp_lrp", {}, 3e-3),
    "cp_lrp_explicit/pixels": ("cp_lrp", {"at": "pixels"}, 3e-3),
} | GAMMAS


@pytest.mark.parametrize("name", VALUES)
def test_equals_the_authors(golden, golden_model, golden_images, modern, name):
    method, options, tolerance = VALUES[name]
    images = golden_images[[golden[f"case{case}/image"] for case in CASES]]
    targets = np.array([golden[f"case{case}/target"] for case in CASES])
    maps = lrp_jax.explain(*golden_model, images, targets, method=method, **options).relevance[:, 0]
    for case in CASES:
        expected = modern[f"case{case}/{name}"]
        assert relative_error(maps[case].reshape(expected.shape), expected) < tolerance


@pytest.mark.parametrize("name", ["attnlrp", "attnlrp_gamma", "attnlrp_gamma_all"])
def test_positions_equal_the_authors(golden, golden_model, golden_images, modern, name):
    images = golden_images[[golden[f"case{case}/image"] for case in CASES]]
    targets = np.array([golden[f"case{case}/target"] for case in CASES])
    _, suffix, at = name.partition("_gamma")
    options = {"gamma": 0.05, "gamma_at": at.removeprefix("_") or "mlp"} if suffix else {}
    parts = lrp_jax.explain(*golden_model, images, targets, method="attnlrp", position=True, **options).relevance
    for case in CASES:
        tokens = modern[f"case{case}/{name}/tokens"]
        for part, found in zip(("content", "position"), parts, strict=True):
            expected = modern[f"case{case}/{name}/{part}"][1:]
            error = np.abs(found[case, 0].reshape(-1) - expected).max() / np.abs(tokens).max()
            assert error < (WITH_GAMMA if suffix else WITH_EPSILON)


@pytest.mark.parametrize(("name", "start"), [("cosine_all", 0), ("cosine_last2", DEPTH - 2)])
def test_legrad_of_cosines_equals_the_authors(golden, golden_model, golden_images, modern, name, start):
    """Their head has no bias."""
    model, params = golden_model
    params = params | {"head": params["head"] | {"bias": jnp.zeros_like(params["head"]["bias"])}}
    images = golden_images[[golden[f"case{case}/image"] for case in CASES]]
    targets = np.array([golden[f"case{case}/target"] for case in CASES])
    maps = lrp_jax.explain(model, params, images, targets, method="legrad", cosine=True, start_layer=start).relevance[
        :, 0
    ]
    for case in CASES:
        expected = modern[f"case{case}/legrad/{name}/patches"]
        assert relative_error(maps[case].reshape(-1), expected) < EXACT


ABLATIONS = {
    "libra_without_layer_norm": {"layer_norm": GRADIENT.layer_norm},
    "libra_without_activation": {"activation": GRADIENT.activation},
    "libra_without_attention": {"softmax": GRADIENT.softmax},
    "libra_softmax": {},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_equal_the_authors(golden, golden_model, golden_images, modern, name):
    model, params = golden_model
    rules = dataclasses.replace(LIBRAGRAD, name=name, **ABLATIONS[name])
    for case in CASES:
        image, target = golden_images[golden[f"case{case}/image"]], int(golden[f"case{case}/target"])
        weights = np.eye(model.config.num_classes)[target]
        if name == "libra_softmax":  # from the probability, whose gradient by the logits is p (e - p)
            p = jax.nn.softmax(modern[f"case{case}/logits"])
            weights = p[target] * (weights - p)
        found = at_blocks(model, params, image, jnp.asarray(weights)[None], rules)
        expected = modern[f"case{case}/{name}/patches"]
        assert relative_error(found[0, 0].reshape(-1), expected) < EXACT


def test_attention_gradient_equals_the_authors(golden, golden_model, golden_images, modern):
    """What the sets send to the attention: relevance there is the attention times it."""
    signals = lrp_jax.attention_signals(
        *golden_model, golden_images[[golden["case0/image"]]], [golden["case0/target"]], rules="libragrad"
    )
    expected = modern["case0/libra/attention_gradient"] * np.asarray(signals.attention[0])
    assert relative_error(signals.relevance[0, 0], expected) < EXACT


def test_pixels_of_one_sign_equal_the_authors(golden, golden_model, golden_images, modern):
    """LibraGrad's DS100 at the patch embedding is gamma without an end, and without the bias."""
    model, params = golden_model
    embedding = params["patch_embed"]
    positions = params["pos_embed"].at[1:].add(embedding["bias"])
    params = params | {"patch_embed": embedding | {"bias": 0 * embedding["bias"]}, "pos_embed": positions}
    rules = composite([(Where("patch_embed"), with_gamma(LIBRAGRAD, 1e12, "all"))], LIBRAGRAD)
    for case in CASES:
        image, target = golden_images[golden[f"case{case}/image"]], golden[f"case{case}/target"]
        found = signals_at_pixels(model, params, image, target[None], rules).relevance[0].sum(axis=-1)
        assert relative_error(found, modern[f"case{case}/libra/pixels_ds100"]) < WITH_EPSILON


def test_cams_of_tokens_equal_the_authors(golden, golden_model, golden_images, modern):
    """LibraGrad's XGradCAM+: each channel by its gradient, averaged over tokens by their absolute values."""
    model, params = golden_model

    def cam(state, x, relevance, rows):
        weights = (relevance[0] * jnp.sign(x)).sum(axis=0) / abs(x).sum(axis=0)  # the gradient times |x|
        return (x @ weights,)

    fold = Fold(cam, lambda heads, tokens: ((tokens,),))
    for case in CASES:
        image, target = golden_images[golden[f"case{case}/image"]], golden[f"case{case}/target"]
        (found,) = walk(model, params, image, target[None], LIBRAGRAD, tokens=fold).tokens
        assert relative_error(found[0].sum(axis=0), modern[f"case{case}/libra/xgradcam_plus"]) < WITH_EPSILON


@pytest.mark.parametrize("rules", ["cp_lrp", "libragrad"])
def test_the_logit_is_conserved_without_biases(rules):
    """At the input of every block, and of the attention in it; the biases of this model are 0."""
    model, params = small_model(readout="mean", prefix_tokens=0)
    images = small_images(2)
    e = lrp_jax.explain(model, params, images, method="raw_attention")
    logits = np.take_along_axis(np.asarray(e.logits), np.asarray(e.targets), axis=1)
    for image, logit in zip(images, logits, strict=True):
        found = jax.jit(lambda i: at_blocks(model, params, i, None, rules))(image)
        np.testing.assert_allclose(found.sum((2, 3))[0], np.full(3, logit), rtol=1e-10)


@pytest.mark.parametrize("at", ["patches", "pixels"])
def test_gated_lrp_equals_a_plain_loop(at):
    model, params = small_model()
    images, targets = small_images(2), np.array([[0, 1], [2, 3]])
    rules = with_gamma(CP_LRP, 0.1, "all")
    found = lrp_jax.explain(
        model, params, images, targets, method="gated_lrp", at=at, gamma=0.1, gamma_at="all", start_layer=1
    )
    signals = lrp_jax.attention_signals(model, params, images, targets, rules=rules)
    over_blocks = lrp_jax.explain(
        model, params, images, targets, method="cp_lrp", gamma=0.1, gamma_at="all", at="blocks"
    )
    for b, k in np.ndindex(2, 2):
        product = np.eye(signals.attention.shape[-1])
        for of_block in np.asarray(signals.relevance[b, k, 1:]):
            product += np.maximum(of_block, 0).mean(axis=0) @ product
        gate = (product[0, -16:] - np.eye(len(product))[0, -16:]).reshape(4, 4)
        of_it = np.asarray(over_blocks.relevance[b, k])
        around = np.array(
            [[of_it[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean() for j in range(4)] for i in range(4)]
        )
        if at == "pixels":
            of_it, around, gate = (np.asarray(lrp_jax.heatmaps(m, (16, 16))) for m in (of_it, around, gate))
        of_it, around, gate = (m / np.abs(m).max() for m in (of_it, around, gate))
        mixed = (3 * of_it + around) / 4
        product = np.sqrt(np.maximum(mixed, 0)) * gate**1.5
        expected = product / (product.max() or 1) + 0.001 * np.minimum(around, 0)
        np.testing.assert_allclose(found.relevance[b, k], expected, rtol=0, atol=1e-12)


def test_two_views_are_the_mean_of_two_moved_images():
    model, params = small_model()
    images = np.asarray(small_images(1))
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")

    def of(images, **options):
        e = lrp_jax.explain(model, params, images, [[2, 0]], method="gated_lrp", at="pixels", **options)
        return np.pad(np.asarray(e.relevance), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")

    up, down = of(wide[:, 2:, 2:]), of(wide[:, :-2, :-2])  # by a pixel, a quarter of these patches
    expected = (up[..., :-2, :-2] + down[..., 2:, 2:]) / 2
    np.testing.assert_allclose(of(images, two_views=True)[..., 1:-1, 1:-1], expected, rtol=0, atol=1e-12)


def test_bad_options():
    model, params = small_model()
    for method in ("attnlrp", "cp_lrp", "ali_lrp", "libragrad"):
        with pytest.raises(ValueError, match="at must be one of tokens, blocks, pixels; got 'heads'"):
            lrp_jax.explain(model, params, small_images(1), method=method, at="heads")
    with pytest.raises(ValueError, match="at must be 'patches', or of images 'pixels'; got 'tokens'"):
        lrp_jax.explain(model, params, small_images(1), method="gated_lrp", at="tokens")
    with pytest.raises(ValueError, match="two_views=True is of at='pixels', got at='patches'"):
        lrp_jax.explain(model, params, small_images(1), method="gated_lrp", two_views=True)
    with pytest.raises(ValueError, match="start_layer must be a block, 0 to 2; got 3"):
        lrp_jax.explain(model, params, small_images(1), method="gated_lrp", start_layer=3)

    class Without(Wrapped):
        depth = ()

    with pytest.raises(ValueError, match="no tokens to read relevance at, it has no blocks; attnlrp"):
        lrp_jax.explain(Without(model), params, small_images(1), method="attnlrp")
