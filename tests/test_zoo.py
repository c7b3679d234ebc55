"""Models of other libraries, unmodified: with the weights of the library's own model they have its map.

Skipped without the extra ``zoo``.
"""

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import blocks, promised, small_model
from plain_vit import FIELDS, assert_sent, images, sent, sent_by_the_vit, separate

import lrp_jax

os.environ["KERAS_BACKEND"] = "jax"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    eqx = pytest.importorskip("equinox")
    hk = pytest.importorskip("haiku")
    keras = pytest.importorskip("keras")
    equimo = pytest.importorskip("equimo.models")
    jimm = pytest.importorskip("jimm.models")
    transformers = pytest.importorskip("transformers")
    from flax import nnx

pytestmark = [pytest.mark.usefixtures("as_users"), pytest.mark.filterwarnings("default")]

PAGE = Path(__file__).parent.parent / "docs" / "other-libraries.md"
WIDTH, HEADS, DEPTH, MLP = (FIELDS[name] for name in ("width", "num_heads", "depth", "mlp_dim"))


# One model, in the layers of each library. Arguments: configuration, parameters as tests/plain_vit.py separates them.


class EquinoxBlock(eqx.Module):
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear

    def __init__(self, config):
        key = jax.random.key(0)
        self.norm1, self.norm2 = (eqx.nn.LayerNorm(WIDTH, eps=config.norm_epsilon) for _ in range(2))
        biases = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias", "use_output_bias"), True)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, **biases, key=key)
        self.fc1, self.fc2 = eqx.nn.Linear(WIDTH, MLP, key=key), eqx.nn.Linear(MLP, WIDTH, key=key)

    def __call__(self, x):
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(x)

    def mlp(self, token):
        return self.fc2(jax.nn.gelu(self.fc1(self.norm2(token)), approximate=False))


class Equinox(eqx.Module):
    patches: eqx.nn.Conv2d
    token: jax.Array
    positions: jax.Array
    blocks: list[EquinoxBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, config):
        key = jax.random.key(0)
        self.patches = eqx.nn.Conv2d(3, WIDTH, config.patch_size, config.patch_size, key=key)
        self.token, self.positions = jnp.zeros((1, WIDTH)), jnp.zeros((7, WIDTH))
        self.blocks = [EquinoxBlock(config) for _ in range(DEPTH)]
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=config.final_norm_epsilon)
        self.head = eqx.nn.Linear(WIDTH, 3, key=key)

    def __call__(self, image):
        x = self.patches(image.transpose(2, 0, 1)).reshape(WIDTH, -1).T
        x = jnp.concatenate([self.token, x]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[0]))


def equinox(config, params):
    def filled(layer, p):
        given = (
            {"weight": p["kernel"].T, "bias": p["bias"]} if "kernel" in p else {"weight": p["scale"], "bias": p["bias"]}
        )
        return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (given["weight"], given["bias"]))

    def projected(attention):
        return attention.query_proj, attention.key_proj, attention.value_proj, attention.output_proj

    def block(layer, p):
        projections = [{"kernel": q["kernel"].reshape(WIDTH, -1), "bias": q["bias"].reshape(-1)} for q in p["qkv"]]
        projections.append({"kernel": p["proj"]["kernel"].reshape(-1, WIDTH), "bias": p["proj"]["bias"]})
        inside = [filled(old, q) for old, q in zip(projected(layer.attention), projections, strict=True)]
        layers = [filled(getattr(layer, name), p[name]) for name in ("norm1", "norm2", "fc1", "fc2")]
        return eqx.tree_at(
            lambda b: (b.attention, b.norm1, b.norm2, b.fc1, b.fc2),
            layer,
            (eqx.tree_at(projected, layer.attention, tuple(inside)), *layers),
        )

    module, patches = Equinox(config), params["patches"]
    module = eqx.tree_at(
        lambda m: (m.patches.weight, m.patches.bias, m.token, m.positions, m.blocks, m.norm, m.head),
        module,
        (
            patches["kernel"].transpose(3, 2, 0, 1),
            patches["bias"].reshape(-1, 1, 1),
            params["token"],
            params["positions"],
            [block(layer, p) for layer, p in zip(module.blocks, params["blocks"], strict=True)],
            filled(module.norm, params["norm"]),
            filled(module.head, params["head"]),
        ),
    )
    arrays, static = eqx.partition(module, eqx.is_array)
    return (lambda arrays, images: jax.vmap(eqx.combine(arrays, static))(images)), arrays


def haiku(config, params):
    def classify(images):
        x = hk.Conv2D(WIDTH, config.patch_size, config.patch_size, padding="VALID", name="patches")(images)
        x = x.reshape(len(x), -1, WIDTH)
        token = hk.get_parameter("token", (1, WIDTH), x.dtype, init=jnp.zeros)
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, WIDTH)), x], axis=1)
        x = x + hk.get_parameter("positions", (7, WIDTH), x.dtype, init=jnp.zeros)
        for i in range(DEPTH):
            y = hk.LayerNorm(-1, True, True, eps=config.norm_epsilon, name=f"norm1_{i}")(x)
            x = x + hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=jnp.zeros, name=f"attention_{i}")(y, y, y)
            y = hk.LayerNorm(-1, True, True, eps=config.norm_epsilon, name=f"norm2_{i}")(x)
            y = jax.nn.gelu(hk.Linear(MLP, name=f"fc1_{i}")(y), approximate=False)
            x = x + hk.Linear(WIDTH, name=f"fc2_{i}")(y)
        x = hk.LayerNorm(-1, True, True, eps=config.final_norm_epsilon, name="norm")(x)
        return hk.Linear(3, name="head")(x[:, 0])

    network = hk.without_apply_rng(hk.transform(classify))
    given = {"~": {"token": params["token"], "positions": params["positions"]}}
    given |= {"norm": {"scale": params["norm"]["scale"], "offset": params["norm"]["bias"]}}
    given |= {name: {"w": params[name]["kernel"], "b": params[name]["bias"]} for name in ("patches", "head")}
    for i, p in enumerate(params["blocks"]):
        for name in ("norm1", "norm2"):
            given[f"{name}_{i}"] = {"scale": p[name]["scale"], "offset": p[name]["bias"]}
        for name in ("fc1", "fc2"):
            given[f"{name}_{i}"] = {"w": p[name]["kernel"], "b": p[name]["bias"]}
        for name, q in zip(("query", "key", "value"), p["qkv"], strict=True):
            given[f"attention_{i}/{name}"] = {"w": q["kernel"].reshape(WIDTH, -1), "b": q["bias"].reshape(-1)}
        proj = p["proj"]
        given[f"attention_{i}/linear"] = {"w": proj["kernel"].reshape(-1, WIDTH), "b": proj["bias"]}
    expected = jax.eval_shape(network.init, jax.random.key(0), images())
    assert jax.tree.map(jnp.shape, given) == jax.tree.map(lambda p: p.shape, dict(expected))
    return network.apply, given


class Positions(keras.layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape[1:])

    def call(self, x):
        return x + self.table


def of_keras(config, params):
    layers = keras.layers
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        inputs, put = keras.Input(config.image_shape), []

        def layer(made, p):
            put.append((made, p))
            return made

        def norm(p, epsilon):
            return layer(layers.LayerNormalization(epsilon=epsilon), [p["scale"], p["bias"]])

        def dense(p, n):
            return layer(layers.Dense(n), [p["kernel"], p["bias"]])

        p = params["patches"]
        x = layer(layers.Conv2D(WIDTH, config.patch_size, config.patch_size), [p["kernel"], p["bias"]])(inputs)
        x = layers.Reshape((6, WIDTH))(x)
        token = layer(layers.Embedding(1, WIDTH), [params["token"]])(layers.Lambda(lambda x: 0 * x[:, :1, 0])(x))
        x = layers.Concatenate(axis=1)([token, x])
        x = layer(Positions(), [params["positions"]])(x)
        for p in params["blocks"]:
            y = norm(p["norm1"], config.norm_epsilon)(x)
            weights = [w for q in p["qkv"] for w in (q["kernel"], q["bias"])]
            weights = [*weights, p["proj"]["kernel"], p["proj"]["bias"]]
            x = x + layer(layers.MultiHeadAttention(HEADS, WIDTH // HEADS, flash_attention=False), weights)(y, y)
            y = dense(p["fc1"], MLP)(norm(p["norm2"], config.norm_epsilon)(x))
            x = x + dense(p["fc2"], WIDTH)(layers.Activation(lambda x: keras.activations.gelu(x, approximate=False))(y))
        x = norm(params["norm"], config.final_norm_epsilon)(x)
        module = keras.Model(inputs, dense(params["head"], 3)(x[:, 0]))
        for made, p in put:
            made.set_weights([np.asarray(w) for w in p])
    finally:
        keras.config.set_floatx(before)
    given = [[v.value for v in variables] for variables in (module.trainable_variables, module.non_trainable_variables)]
    return (lambda given, images: module.stateless_call(*given, images)[0]), given


@pytest.mark.parametrize("write", [equinox, haiku, of_keras])
def test_layers_of_other_libraries_have_the_map_of_the_vit(write):
    model, params = small_model(num_classes=3, **FIELDS)
    apply, given = write(model.config, separate(model.config, params))
    traced = lrp_jax.trace(apply, given, images())
    assert traced.grid == (2, 3)
    tolerance = 1e-5 if write is of_keras else 1e-10  # Keras takes the attention of jax.nn, which computes in float32
    assert_sent(sent(traced, given), sent_by_the_vit(), tolerance)


# Whole models of other libraries, beside what convert makes of the same weights.

SQUARE = jax.random.normal(jax.random.key(3), (2, 32, 32, 3), jnp.float32).astype(jnp.float64)
TARGETS = np.array([[0, 2], [1, 1]])


def assert_same_maps(traced, params, model, converted, tolerance=1e-9, of_pixels=1e-9):
    converted = jax.tree.map(lambda p: p.astype(jnp.float64), converted)
    for method in ("transformer_attribution", "full_lrp"):
        for rules in ("stable", "chefer"):
            a = lrp_jax.explain(traced, params, SQUARE, TARGETS, method=method, rules=rules)
            b = lrp_jax.explain(model, converted, SQUARE, TARGETS, method=method, rules=rules)
            np.testing.assert_allclose(a.logits, b.logits, rtol=tolerance, atol=tolerance)
            # The authors' rules divide by sums plus 1e-9: a scale before a product or after it makes a difference.
            of_map = max(10 * tolerance, 1e-6) if rules == "chefer" else tolerance
            of_map = max(of_map, of_pixels) if method == "full_lrp" else of_map
            np.testing.assert_allclose(a.relevance, b.relevance, rtol=0, atol=of_map * np.abs(b.relevance).max())


SMALL = {"image_size": 32, "patch_size": 8, "num_labels": 5, "hidden_size": 16, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2}


@pytest.mark.parametrize(("name", "fields"), [("ViT", {"intermediate_size": 32}), ("Dinov2", {"mlp_ratio": 2})])
def test_models_of_hugging_face_are_those_that_convert_reads(name, fields):
    config = getattr(transformers, f"{name}Config")(**SMALL, **fields)
    module = getattr(transformers, f"Flax{name}ForImageClassification")(config, (1, 32, 32, 3), dtype=jnp.float64)
    params = randomised(module.params)
    traced = lrp_jax.trace(lambda p, x: module(x.transpose(0, 3, 1, 2), params=p).logits, params, SQUARE)
    # Their code casts pixels to float32, and so does the relevance that goes back to these.
    assert_same_maps(traced, params, *lrp_jax.convert(params, num_heads=2), of_pixels=1e-7)


def randomised(params, dtype=jnp.float64):
    """Random values in the place of floats: what is initialised with zeros would hide what it does."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    leaves = [
        jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), jnp.float32).astype(dtype) if floats else leaf
        for leaf, floats in zip(leaves, floating, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def test_a_model_of_equimo_is_the_one_that_convert_reads():
    """Its names are timm's, but for the norms."""
    module = equimo.VisionTransformer(
        img_size=32, in_channels=3, dim=16, patch_size=8, num_heads=[2], depths=[2], num_classes=5, reg_tokens=0,
        global_pool="token", key=jax.random.key(0),
    )  # fmt: skip
    arrays, static = eqx.partition(eqx.nn.inference_mode(module), eqx.is_array)
    arrays, key = randomised(arrays), jax.random.key(0)

    def apply(arrays, images):
        module = eqx.combine(arrays, static)
        return jax.vmap(lambda image: module(image.transpose(2, 0, 1), key=key))(images)

    names = {"prenorm": "norm1", ".norm.": ".norm2.", "global_pos_embed.weight": "pos_embed"}
    weights = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        name = jax.tree_util.keystr(path).replace("blocks[0].", "", 1).replace("[", ".").replace("]", "").lstrip(".")
        for theirs, timms in names.items():
            name = name.replace(theirs, timms)
        value = np.asarray(leaf)
        weights[name] = value.reshape(-1) if name == "patch_embed.proj.bias" else value
    weights["cls_token"], weights["pos_embed"] = weights["cls_token"][None], weights["pos_embed"][None]
    model, converted = lrp_jax.convert(weights, num_heads=2, norm_epsilon=1e-5, final_norm_epsilon=1e-5, gelu="tanh")
    traced = lrp_jax.trace(apply, arrays, SQUARE)
    assert traced.grid == (4, 4)
    assert_same_maps(traced, arrays, model, converted, 1e-5)  # some of it is computed in float32


def test_a_model_of_jimm_has_its_own_gradient():
    """It is sharded, rolls its blocks into a loop, and has keys of random numbers among its parameters."""
    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",), (jax.sharding.AxisType.Auto,))):
        module = jimm.VisionTransformer(
            num_classes=5, img_size=32, patch_size=8, num_layers=2, num_heads=2, mlp_dim=32, hidden_size=16,
            dtype=jnp.float64, rngs=nnx.Rngs(0),
        )  # fmt: skip
        module.eval()
        graph, state = nnx.split(module)

        def apply(state, images):
            return nnx.merge(graph, state)(images)

        traced = lrp_jax.trace(apply, state, SQUARE)
        assert traced.grid == (4, 4)
        assert traced.readout.tolist() == [1, *[0] * 16]
        found = lrp_jax.explain(traced, state, SQUARE, TARGETS, method="saliency")
        np.testing.assert_allclose(found.logits, apply(state, SQUARE), rtol=1e-5, atol=1e-6)
        # NNX merges no state from outside of a gradient: what it traced is differentiated.
        alone = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(apply)(state, SQUARE))
        leaves = jax.tree.leaves(state)
        gradient = jax.grad(lambda x: alone(*leaves, x)[0][jnp.arange(2), TARGETS[:, 0]].sum())(SQUARE)
        expected = jnp.abs(gradient).max(axis=-1)
        np.testing.assert_allclose(found.relevance[:, 0], expected, rtol=0, atol=1e-5 * expected.max())
        relevance = lrp_jax.explain(traced, state, SQUARE, TARGETS).relevance
        assert relevance.shape == (2, 2, 4, 4)
        assert np.ptp(relevance, axis=(2, 3)).min() > 0


@pytest.mark.parametrize("code", [code for _, code in blocks(PAGE, "python")])
def test_every_block_of_the_page_runs_by_itself(code, capsys):
    with jax.enable_x64(False):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    (said,) = promised(code)
    assert said in capsys.readouterr().out.splitlines()
