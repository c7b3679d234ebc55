"""One Vision Transformer, written in many ways: plain functions of the parameters of :class:`lrp_jax.ViT`."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from helpers import small_model

from lrp_jax.rules import GRADIENT
from lrp_jax.signals import walk
from lrp_jax.walk import Fold

FIELDS = {"image_size": (8, 12), "patch_size": 4, "width": 8, "depth": 3, "num_heads": 2, "mlp_dim": 16}

WAYS = {
    "patches": ("reshaped", "convolution", "einsum"),
    "qkv": ("fused", "separate", "general"),
    "heads": ("second", "third", "vmap", "library", "grouped"),
    "scale": ("after", "before", "both", "softmax"),
    "softmax": ("library", "stopped", "plain", "unshifted", "logarithm", "masked", "cast"),
    "norm": ("library", "one pass", "folded", "powers"),
    "gelu": ("erf", "erfc", "library"),
    "blocks": ("unrolled", "scan", "scan and remat", "remat", "jit"),
    "batch": ("native", "vmap", "first and last"),
    "readout": ("index", "slice", "split"),
    "transposed": (False, True),
}


@dataclasses.dataclass(frozen=True)
class Plain:
    """``apply(params, images [B, H, W, channels])``, for a ViT with a class token."""

    config: object
    patches: str = "reshaped"
    qkv: str = "fused"
    heads: str = "second"
    scale: str = "after"
    softmax: str = "library"
    norm: str = "library"
    gelu: str = "erf"
    blocks: str = "unrolled"
    batch: str = "native"
    readout: str = "index"
    transposed: bool = False

    def __call__(self, params, images):
        if self.batch == "vmap":
            return jax.vmap(lambda image: self.run(params, image[None])[0])(images)
        if self.batch == "first and last":
            return self.run(params, images.transpose(1, 2, 3, 0).transpose(3, 0, 1, 2))
        return self.run(params, images)

    def run(self, params, images):
        x = self.embed(params, images)
        x = self.encode(params["blocks"], x)
        x = self.normalise(params["norm"], x, self.config.final_norm_epsilon)
        if self.readout == "index":
            x = x[:, 0]
        elif self.readout == "slice":
            x = jax.lax.slice_in_dim(x, 0, 1, axis=1).squeeze(1)
        else:
            x = jnp.split(x, [1], axis=1)[0].reshape(len(x), -1)
        return self.dense(params["head"], x)

    def dense(self, p, x):
        if self.transposed:  # weights on the left
            y = jax.vmap(jax.vmap(lambda v: p["kernel"].T @ v))(x) if x.ndim == 3 else (p["kernel"].T @ x.T).T
        else:
            y = x @ p["kernel"]
        return y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in p else y

    def normalise(self, p, x, epsilon):
        scale, bias = (p[name].reshape((1,) * (x.ndim - 1) + (-1,)) for name in ("scale", "bias"))
        mean = x.mean(-1, keepdims=True)
        if self.norm == "library":
            return (x - mean) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias
        if self.norm == "one pass":
            variance = jnp.maximum(0.0, (x * x).mean(-1, keepdims=True) - mean * mean)
            return (x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        if self.norm == "folded":
            inverse = jax.lax.rsqrt(variance + epsilon) * scale
            return x * inverse + (bias - mean * inverse)
        return (x - mean) * (variance + epsilon) ** -0.5 * scale + bias

    def embed(self, params, images):
        rows, cols = self.config.grid
        p, q = self.config.patch_size
        kernel, bias = params["patch_embed"]["kernel"], params["patch_embed"]["bias"]
        if self.patches == "convolution":
            x = jax.lax.conv_general_dilated(
                images,
                kernel.reshape(p, q, images.shape[-1], -1),
                (p, q),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = (x + bias[None, None, None]).reshape(len(images), rows * cols, -1)
        elif self.patches == "einsum":
            x = images.reshape(-1, rows, p, cols, q, images.shape[-1])
            x = jnp.einsum("brpcqd,pqdo->brco", x, kernel.reshape(p, q, images.shape[-1], -1))
            x = x.reshape(len(images), rows * cols, -1) + bias[None, None]
        else:
            x = images.reshape(-1, rows, p, cols, q, images.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
            x = x.reshape(len(images), rows * cols, -1) @ kernel + bias[None, None]
        token, positions = params["cls_token"][None], params["pos_embed"][None]
        token = jnp.broadcast_to(token, (len(images), *token.shape[1:]))
        return jnp.concatenate([token, x], axis=1) + positions

    def encode(self, blocks, x):
        depth = self.config.depth
        if self.blocks in ("scan", "scan and remat"):
            step = lambda x, p: (self.block(p, x), None)  # noqa: E731
            return jax.lax.scan(jax.checkpoint(step) if "remat" in self.blocks else step, x, blocks)[0]
        block = {"remat": jax.checkpoint, "jit": jax.jit}.get(self.blocks, lambda f: f)(self.block)
        for i in range(depth):
            x = block(jax.tree.map(lambda p, i=i: p[i], blocks), x)
        return x

    def block(self, p, x):
        x = x + self.attend(p["attn"], self.normalise(p["norm1"], x, self.config.norm_epsilon))
        y = self.dense(p["mlp"]["fc1"], self.normalise(p["norm2"], x, self.config.norm_epsilon))
        return x + self.dense(p["mlp"]["fc2"], self.activate(y))

    def activate(self, x):
        if self.gelu == "erf":
            return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
        if self.gelu == "erfc":
            return x * jax.lax.erfc(-x * math.sqrt(0.5)) / 2
        return jax.nn.gelu(x, approximate=False)

    def attend(self, p, x):
        b, n, width = x.shape
        h = self.config.num_heads
        d = width // h
        if self.qkv == "fused":
            q, k, v = self.dense(p["qkv"], x).reshape(b, n, 3, h, d).transpose(2, 0, 1, 3, 4)
        else:
            kernels = p["qkv"]["kernel"].reshape(width, 3, h, d)
            biases = p["qkv"]["bias"].reshape(3, h, d)
            if self.qkv == "separate":
                parts = [x @ kernels[:, i].reshape(width, -1) + biases[i].reshape(1, 1, -1) for i in range(3)]
                q, k, v = (part.reshape(b, n, h, d) for part in parts)
            else:
                q, k, v = (jnp.einsum("bnd,dhe->bnhe", x, kernels[:, i]) + biases[i][None, None] for i in range(3))
        x = self.products(q, k, v, d).reshape(b, n, width)
        return self.dense(p["proj"], x)

    def products(self, q, k, v, d):
        """``[b, n, h, d]`` each."""
        if self.heads == "library":
            return jax.nn.dot_product_attention(q, k, v)
        before = d**-0.5 if self.scale == "before" else d**-0.25 if self.scale == "both" else 1.0
        q, k = (q * before, k) if self.scale != "both" else (q * before, k * before)
        after = d**-0.5 if self.scale in ("after", "softmax") else 1.0
        if self.heads == "third":
            weights = self.weigh(jnp.einsum("bqhd,bkhd->bhqk", q, k) * after)
            return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        if self.heads == "vmap":
            one = lambda q, k, v: self.weigh(q @ k.T * after) @ v  # noqa: E731
            return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(q, k, v)
        if self.heads == "grouped":
            q = q[:, :, :, None]
            weights = self.weigh(jnp.einsum("bqhgd,bkhd->bhgqk", q, k) * after)
            return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)[:, :, :, 0]
        q, k, v = (part.transpose(0, 2, 1, 3) for part in (q, k, v))
        return (self.weigh(q @ k.mT * after) @ v).transpose(0, 2, 1, 3)

    def weigh(self, x):
        if self.softmax == "library":
            return jax.nn.softmax(x, axis=-1)
        if self.softmax == "masked":
            x = jnp.where(jnp.ones(x.shape[-2:], bool), x, -1e9)
            return jax.nn.softmax(x + jnp.zeros((1,) * (x.ndim - 2) + x.shape[-2:]), axis=-1)
        if self.softmax == "logarithm":
            return jnp.exp(x - jax.nn.logsumexp(x, axis=-1, keepdims=True))
        if self.softmax == "single":
            return jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype)
        if self.softmax == "cast":
            return jax.nn.softmax(x.astype(jnp.float64), axis=-1).astype(x.dtype)
        if self.softmax == "stopped":
            x = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
        elif self.softmax == "plain":
            x = x - x.max(-1, keepdims=True)
        x = jnp.exp(x)
        return x / x.sum(-1, keepdims=True)


def ways(seed, number):
    """Random ways to write it, in which each respect goes through all its forms, one after the other."""
    rng = np.random.default_rng(seed)
    turns = {name: np.resize(rng.permutation(len(ways)), number) for name, ways in WAYS.items()}
    return [{name: WAYS[name][turn[i]] for name, turn in turns.items()} for i in range(number)]


def images(n=2, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(2), (n, 8, 12, 3), dtype)


@functools.partial(jax.jit, static_argnames=("model", "rules"))
def sent(model, params, rules="stable"):
    """Logits; gradient and relevance of every class at the pixels, and at every attention."""

    def read(state, maps, sent, rows):
        """What is sent to the queries that are computed, and 0 to others."""
        rows = jnp.arange(maps.shape[1]) if rows is None else rows
        return tuple(jnp.zeros((len(x), *[x.shape[2]] * 2)).at[:, rows].set(x, mode="drop") for x in sent)

    fold = Fold(read, lambda heads, tokens: ((heads, tokens, tokens),) * 2)

    def of_one(image):
        found = walk(model, params, image, jnp.eye(3), GRADIENT, rules, attention=fold)
        return found.logits, found.image, *found.attention

    return jax.vmap(of_one)(images())


@functools.cache
def sent_by_the_vit():
    """What the library's own model has, for :data:`FIELDS`."""
    return sent(*small_model(num_classes=3, **FIELDS))


def assert_sent(found, expected, tolerance=1e-10):
    """That both are equal. What the last block computes of tokens that nobody reads has no relevance in either."""
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def separate(config, params):
    """The parameters as the layers of other libraries have them.

    A convolution for the patches, ``[rows, cols, channels, D]``; a list of blocks; query, key and value apart, each
    ``[D, heads, d]``, and what joins them, ``[heads, d, D]``.
    """
    d = config.width // config.num_heads

    def block(i):
        p = jax.tree.map(lambda a: a[i], params["blocks"])
        kernel = p["attn"]["qkv"]["kernel"].reshape(config.width, 3, config.num_heads, d)
        bias = p["attn"]["qkv"]["bias"].reshape(3, config.num_heads, d)
        proj = p["attn"]["proj"]
        return {
            "norm1": p["norm1"],
            "qkv": [{"kernel": kernel[:, j], "bias": bias[j]} for j in range(3)],
            "proj": {"kernel": proj["kernel"].reshape(config.num_heads, d, config.width), "bias": proj["bias"]},
            "norm2": p["norm2"],
            **p["mlp"],
        }

    kernel = params["patch_embed"]["kernel"]
    return {
        "patches": {
            "kernel": kernel.reshape(*config.patch_size, config.channels, config.width),
            "bias": params["patch_embed"]["bias"],
        },
        "token": params["cls_token"],
        "positions": params["pos_embed"],
        "blocks": [block(i) for i in range(config.depth)],
        "norm": params["norm"],
        "head": params["head"],
    }
