"""One Vision Transformer in Flax's own layers, linen and NNX, with the weights of the library's: one map."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers import small_model
from plain_vit import FIELDS, assert_sent, images, sent, sent_by_the_vit, separate

import lrp_jax

WIDTH, HEADS, DEPTH = (FIELDS[name] for name in ("width", "num_heads", "depth"))


pytestmark = [
    pytest.mark.usefixtures("as_users"),
    pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning"),
]


LIST = getattr(nnx, "List", list)  # older versions of Flax keep modules in plain lists


class Block(nn.Module):
    config: object

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(self.config.norm_epsilon)(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, deterministic=True)(y)
        y = nn.Dense(self.config.mlp_dim)(nn.LayerNorm(self.config.norm_epsilon)(x))
        return x + nn.Dense(WIDTH)(nn.gelu(y, approximate=False))


class Linen(nn.Module):
    config: object

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, self.config.patch_size, self.config.patch_size, "VALID")(images)
        x = x.reshape(len(x), -1, WIDTH)
        token = self.param("token", nn.initializers.zeros, (1, 1, WIDTH))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.zeros, x.shape[1:])
        for _ in range(DEPTH):
            x = Block(self.config)(x)
        return nn.Dense(3)(nn.LayerNorm(self.config.final_norm_epsilon)(x)[:, 0])


def linen(config, params):
    """The function and its parameters."""

    def block(p):
        q, k, v = p["qkv"]
        attention = {"query": q, "key": k, "value": v, "out": p["proj"]}
        layers = {"LayerNorm_0": p["norm1"], "LayerNorm_1": p["norm2"], "Dense_0": p["fc1"], "Dense_1": p["fc2"]}
        return {**layers, "MultiHeadDotProductAttention_0": attention}

    given = {
        "Conv_0": params["patches"],
        "token": params["token"][None],
        "positions": params["positions"],
        **{f"Block_{i}": block(p) for i, p in enumerate(params["blocks"])},
        "LayerNorm_0": params["norm"],
        "Dense_0": params["head"],
    }
    return Linen(config).apply, {"params": given}


class NnxBlock(nnx.Module):
    def __init__(self, config, explicit, rngs):
        self.explicit = explicit
        self.norms = LIST(nnx.LayerNorm(WIDTH, epsilon=config.norm_epsilon, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, deterministic=True, rngs=rngs)
        self.fc1 = nnx.Linear(WIDTH, config.mlp_dim, rngs=rngs)
        self.fc2 = nnx.Linear(config.mlp_dim, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x), sow_weights=self.explicit)
        return x + self.fc2(nnx.gelu(self.fc1(self.norms[1](x)), approximate=False))


class Nnx(nnx.Module):
    def __init__(self, config, explicit, rngs):
        self.patches = nnx.Conv(3, WIDTH, config.patch_size, config.patch_size, padding="VALID", rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, WIDTH)))
        self.positions = nnx.Param(jnp.zeros((7, WIDTH)))
        self.blocks = LIST(NnxBlock(config, explicit, rngs) for _ in range(DEPTH))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=config.final_norm_epsilon, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images).reshape(len(images), -1, WIDTH)
        token = jnp.broadcast_to(self.token[...], (len(images), 1, WIDTH))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def of_nnx(config, params, explicit=True):
    """The function and its parameters; attention not ``explicit`` is that of ``jax.nn``, which computes in float32."""
    module = Nnx(config, explicit, nnx.Rngs(0))

    def put(layer, p):
        for name, value in p.items():
            setattr(layer, name, nnx.Param(value))

    put(module, {name: params[name] for name in ("token", "positions")})
    for layer, name in ((module.patches, "patches"), (module.norm, "norm"), (module.head, "head")):
        put(layer, params[name])
    for block, p in zip(module.blocks, params["blocks"], strict=True):
        attention = block.attention
        for layer, q in zip((attention.query, attention.key, attention.value), p["qkv"], strict=True):
            put(layer, q)
        for layer, name in ((attention.out, "proj"), (block.fc1, "fc1"), (block.fc2, "fc2")):
            put(layer, p[name])
        for layer, name in zip(block.norms, ("norm1", "norm2"), strict=True):
            put(layer, p[name])
    graph, state = nnx.split(module)
    return (lambda state, images: nnx.merge(graph, state)(images)), state


@pytest.mark.parametrize(
    ("write", "tolerance"),
    [
        pytest.param(linen, 1e-10, id="linen"),
        pytest.param(of_nnx, 1e-10, id="nnx"),
        pytest.param(functools.partial(of_nnx, explicit=False), 1e-5, id="nnx in float32"),
    ],
)
def test_layers_of_flax_have_the_map_of_the_vit(write, tolerance):
    model, params = small_model(num_classes=3, **FIELDS)
    apply, given = write(model.config, separate(model.config, params))
    given = jax.tree.map(lambda p: p.astype(jnp.float64), given)
    traced = lrp_jax.trace(apply, given, images())
    assert traced.grid == (2, 3)
    assert_sent(sent(traced, given), sent_by_the_vit(), tolerance)
