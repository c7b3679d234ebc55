"""The configuration and the model's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import drawn, small_images, small_model
from scipy.special import erf

import lrp_jax
from lrp_jax.walk import forward


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # As counted for the models of 1,000 classes that timm publishes.
    [("Ti/16", 5_717_416), ("S/16", 22_050_664), ("B/16", 86_567_656), ("L/16", 304_326_632), ("H/14", 632_045_800)],
)
def test_variants_have_the_published_number_of_parameters(variant, parameters):
    model = lrp_jax.ViT(lrp_jax.ViTConfig.from_variant(variant))
    image = jax.ShapeDtypeStruct(model.config.image_shape, jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters


def test_fields_override_the_variant():
    config = lrp_jax.ViTConfig.from_variant("S/32", image_size=(64, 96), num_heads=12)
    assert (config.width, config.num_heads, config.grid, config.image_shape) == (384, 12, (2, 3), (64, 96, 3))


def test_equal_configurations_are_equal():
    config = lrp_jax.ViTConfig(image_size=32, patch_size=8, mean=[0.5, 0.5, 0.5])
    assert config == lrp_jax.ViTConfig(image_size=(32, 32), patch_size=(8, 8), mean=(0.5, 0.5, 0.5))
    assert len({config, lrp_jax.ViTConfig(image_size=32, patch_size=8, mean=(0.5, 0.5, 0.5))}) == 1


@pytest.mark.parametrize("variant", ["B", "B/", "B/0", "G/14", "b/16", ""])
def test_unknown_variant(variant):
    with pytest.raises(ValueError, match="Ti, S, B, L, H"):
        lrp_jax.ViTConfig.from_variant(variant)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 30}, r"patch_size \(16, 16\) must divide image_size \(30, 30\)"),
        ({"image_size": (1, 2, 3)}, "image_size must be"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"num_heads": 7}, r"num_heads \(7\) must divide width \(768\)"),
        ({"depth": 0}, "depth must be a positive int, got 0"),
        ({"width": 1.5}, "width must be a positive int, got 1.5"),
        ({"gelu": "fast"}, "gelu must be one of exact, tanh, quick; got 'fast'"),
        ({"interpolation": "cubic"}, "interpolation must be one of"),
        ({"mean": (0.5, 0.5)}, "mean must hold 1 or 3 finite numbers"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"norm_epsilon": -1.0}, "norm_epsilon must be"),
        ({"resize": 200}, r"resize \(200\) must be at least"),
        ({"resize": (200, 300)}, r"resize \(200, 300\) must be at least"),
        ({"resize": "256"}, "resize must be"),
        ({"image_size": 1e9}, "image_size must be"),
        ({"mean": 0.5}, "mean must hold 1 or 3 finite numbers, got 0.5"),
        ({"norm_epsilon": "1e-6"}, "norm_epsilon must be"),
        ({"multi_label": "no"}, "multi_label must be True or False, got 'no'"),
        ({"class_names": "abc"}, "class_names must be a sequence of names"),
        ({"crop": False}, "without crop, resize must be image_size"),
        ({"class_names": ("a",)}, "class_names must hold 1000 names or none, got 1"),
    ],
)
def test_bad_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        lrp_jax.ViTConfig(**fields)


def test_parameters_of_other_shapes_are_refused():
    model, params = small_model()
    image = small_images(1)[0]
    fewer = params | {"blocks": jax.tree.map(lambda p: p[:2], params["blocks"])}
    with pytest.raises(ValueError, match="parameters of 3 blocks were expected, got 2"):
        model.apply({"params": fewer}, image)
    narrow = params | {"head": {"kernel": params["head"]["kernel"][:4], "bias": params["head"]["bias"]}}
    with pytest.raises(ValueError, match=r"the parameter head/kernel must be \(16, 5\), got \(4, 5\)"):
        model.apply({"params": narrow}, image)


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_whole_model_against_numpy(gelu):
    """The forward pass, written again as loops over one head and one token at a time."""
    config = lrp_jax.ViTConfig(
        image_size=(8, 12), patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=12, num_classes=3, gelu=gelu
    )
    model = lrp_jax.ViT(config)
    params = drawn(model)
    params = jax.tree.map(lambda p: p.astype(jnp.float64) * 2 + 0.1, params)
    image = jax.random.normal(jax.random.key(1), config.image_shape, jnp.float64)
    logits = model.apply({"params": params}, image)
    np.testing.assert_allclose(forward(model, params, image), logits, rtol=1e-12)
    (attention,) = lrp_jax.attention_signals(model, params, image[None]).attention

    def norm(x, p, epsilon):
        return np.stack([(t - t.mean()) / np.sqrt(t.var() + epsilon) * p["scale"] + p["bias"] for t in x])

    def act(x):
        if gelu == "exact":
            return x * (1 + erf(x / np.sqrt(2))) / 2
        return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2

    p, image = jax.tree.map(np.asarray, params), np.asarray(image)
    patches = [image[r : r + 4, c : c + 4].ravel() for r in (0, 4) for c in (0, 4, 8)]
    x = np.stack([p["cls_token"][0]] + [t @ p["patch_embed"]["kernel"] + p["patch_embed"]["bias"] for t in patches])
    x = x + p["pos_embed"]
    for layer in range(2):
        block = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        y = norm(x, block["norm1"], 1e-6) @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
        heads = []
        for h in range(2):
            q, k, v = (y[:, i * 8 + h * 4 : i * 8 + h * 4 + 4] for i in range(3))
            scores = np.exp(q @ k.T / 2)
            scores /= scores.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(attention[layer, h], scores, rtol=1e-10)
            heads.append(scores @ v)
        x = x + np.concatenate(heads, axis=1) @ block["attn"]["proj"]["kernel"] + block["attn"]["proj"]["bias"]
        y = act(norm(x, block["norm2"], 1e-6) @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"])
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    expected = norm(x, p["norm"], 1e-6)[0] @ p["head"]["kernel"] + p["head"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-10)
