"""The Vision Transformer, as Flax (linen) modules, for one image.

Layouts: image ``[H, W, channels]``, channels last; tokens ``[N, D]``, the prefix first (a class token and whatever
else is no patch, if there are any), then the patches row by row. There is no batch axis: ``jax.vmap`` gives it.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.checks import pair
from lrp_jax.model import Params, Tokens
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.vit_config import READOUTS, ViTConfig


def _exact_gelu(x: Array) -> Array:
    # As torch computes it: jax.nn.gelu's erfc costs 2.5 times as much, to be exact relative to tiny values as well.
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


_GELU = {"exact": _exact_gelu, "tanh": jax.nn.gelu, "quick": _quick_gelu}


def _of_one_dtype(*arrays: Array | None) -> list[Any]:
    """Promoted as usual, whatever the caller's setting of promotion."""
    dtype = functools.reduce(np.promote_types, (array.dtype for array in arrays if array is not None))
    return [array if array is None else array.astype(dtype) for array in arrays]


def _parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...]) -> Any:
    """As ``module.param``, which traces the initializer to check a shape: a fifth of the time until the first map."""
    if not module.has_variable("params", name):
        return module.param(name, init, shape, jnp.float32)
    value = nn.unbox(module.get_variable("params", name))
    if value.shape != shape:
        raise ValueError(f"the parameter {'/'.join((*module.path, name))} must be {shape}, got {value.shape}.")
    return value


def _at(rules: Rules, module: nn.Module, *names: str) -> Rules:
    """The rules where an operation of a module stands, that reads these parameters."""
    path = ("blocks", *module.path) if module.path[0] in _OF_BLOCKS else module.path
    return rules.at(parameters=tuple("/".join((*path, name)) for name in names))


class _Dense(nn.Module):
    rules: Rules
    features: int
    use_bias: bool = True
    rule: Literal["dense", "patch_embed"] = "dense"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = _parameter(self, "kernel", nn.initializers.xavier_uniform(), (x.shape[-1], self.features))
        bias = _parameter(self, "bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        rules = _at(self.rules, self, "kernel", *["bias"] * self.use_bias)
        return getattr(rules, self.rule)(*_of_one_dtype(x, kernel, bias))


class _LayerNorm(nn.Module):
    rules: Rules
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = _parameter(self, "scale", nn.initializers.ones, x.shape[-1:])
        bias = _parameter(self, "bias", nn.initializers.zeros, x.shape[-1:])
        x, scale, bias = _of_one_dtype(x, scale, bias)
        return _at(self.rules, self, "scale", "bias").layer_norm(x, scale, bias, self.epsilon)


class _Attention(nn.Module):
    config: ViTConfig
    rules: Rules
    chunk: int | None

    @nn.compact
    def __call__(self, x: Array, rows: int | None) -> Array:
        n, width = x.shape
        heads = self.config.num_heads
        qkv = _Dense(self.rules, 3 * width, self.config.qkv_bias, name="qkv")(x)
        q, k, v = qkv.reshape(n, 3, heads, width // heads).transpose(1, 2, 0, 3)  # each [h, N, D / h]
        x = self.rules.attention(q[:, :rows], k, v, (width // heads) ** -0.5, chunk=self.chunk)
        return _Dense(self.rules, width, name="proj")(x.transpose(1, 0, 2).reshape(-1, width))


class _Mlp(nn.Module):
    config: ViTConfig
    rules: Rules

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.config.swiglu:
            gate, h = jnp.split(_Dense(self.rules, 2 * self.config.mlp_dim, name="fc1")(x), 2, axis=-1)
            h = self.rules.multiply(self.rules.activation(jax.nn.silu, gate), h)
        else:
            h = _Dense(self.rules, self.config.mlp_dim, name="fc1")(x)
            h = self.rules.activation(_GELU[self.config.gelu], h)
        return _Dense(self.rules, x.shape[-1], name="fc2")(h)


class _Block(nn.Module):
    config: ViTConfig
    rules: Rules
    chunk: int | None

    @nn.compact
    def __call__(self, x: Array, rows: int | None = None) -> Array:
        """Tokens ``[rows, D]``, the first ``rows`` of N only; None: all."""
        epsilon = self.config.norm_epsilon
        rules = self.rules.at(part="attention")
        y = _LayerNorm(rules, epsilon, name="norm1")(x)
        y = _Attention(self.config, rules, self.chunk, name="attn")(y, rows)
        x = rules.add(x[:rows], y)
        rules = self.rules.at(part="mlp")
        y = _Mlp(self.config, rules, name="mlp")(_LayerNorm(rules, epsilon, name="norm2")(x))
        return rules.add(x, y)


#: What a block is made of.
_OF_BLOCKS = frozenset({"norm1", "attn", "norm2", "mlp"})


class _AttentionPool(nn.Module):
    config: ViTConfig
    rules: Rules
    chunk: int | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features ``[D]``: a learned query over the tokens ``[N, D]``, and an MLP."""
        n, width = x.shape
        heads = self.config.num_heads
        latent = _parameter(self, "latent", nn.initializers.normal(0.02), (1, width)).astype(x.dtype)
        rules = self.rules.at(part="attention")
        q = _Dense(rules, width, name="q")(latent).reshape(heads, 1, -1)
        k, v = _Dense(rules, 2 * width, name="kv")(x).reshape(n, 2, heads, -1).transpose(1, 2, 0, 3)
        x = rules.attention(q, k, v, (width // heads) ** -0.5, chunk=self.chunk)
        x = _Dense(rules, width, name="proj")(x.reshape(1, width))
        rules = self.rules.at(part="head")
        y = _LayerNorm(rules, self.config.norm_epsilon, name="norm")(x)
        y = _Mlp(self.config, rules, name="mlp")(y)
        return rules.add(x, y)[0]


class _Embedding(nn.Module):
    config: ViTConfig
    rules: Rules

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """The tokens ``[N, D]`` of an image: prefix and patches, with their positions."""
        config, rules = self.config, self.rules.at(part="embedding")
        if image.shape != config.image_shape:
            raise ValueError(f"an image must be [H, W, channels] = {config.image_shape}, got {image.shape}.")
        rows, cols = config.grid
        p_rows, p_cols = pair("patch_size", config.patch_size)
        patches = image.reshape(rows, p_rows, cols, p_cols, -1).transpose(0, 2, 1, 3, 4).reshape(rows * cols, -1)
        x = _Dense(rules, config.width, rule="patch_embed", name="patch_embed")(patches)
        normal = nn.initializers.normal(0.02)
        if config.prefix_tokens:
            prefix = _parameter(self, "cls_token", normal, (config.prefix_tokens, config.width))
            x = jnp.concatenate([prefix.astype(x.dtype), x])
        positions = _parameter(self, "pos_embed", normal, x.shape).astype(x.dtype)
        x = rules.at(parameters=("pos_embed",)).add(x, positions)
        return _LayerNorm(rules, config.norm_epsilon, name="norm_pre")(x) if config.pre_norm else x


class _Head(nn.Module):
    config: ViTConfig
    rules: Rules
    chunk: int | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The logits ``[C]`` of tokens ``[N, D]``, or of those that it reads."""
        config, rules = self.config, self.rules.at(part="head")
        norm = _LayerNorm(rules, config.final_norm_epsilon, name="norm")
        x = x if config.norm_after_readout else norm(x)
        self.sow("intermediates", "tokens", x)  # for training: what the head would see of each token
        read = READOUTS[config.readout].features
        if read is None:
            features = _AttentionPool(config, self.rules, self.chunk, name="attn_pool")(x)
        else:
            features = read(rules, x, config.prefix_tokens)
        features = norm(features) if config.norm_after_readout else features
        return _Dense(rules, config.num_classes, name="head")(features)


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) for one image; a :class:`lrp_jax.Model`.

    Attributes:
        config: the configuration.
        chunk: how many queries of an attention are computed at once; None: by size.
    """

    config: ViTConfig
    chunk: int | None = None

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """The logits ``[C]`` of one image ``[H, W, channels]``, normalised as the configuration says: for training."""
        embedding, head = _Embedding(self.config, GRADIENT), _Head(self.config, GRADIENT, self.chunk)
        nn.share_scope(self, embedding)
        nn.share_scope(self, head)
        x = embedding(image)

        def init_blocks(key: Array) -> Params:
            block, tokens = _Block(self.config, GRADIENT, None, parent=None), jnp.zeros(x.shape, jnp.float32)
            return jax.vmap(lambda k: block.init(k, tokens)["params"])(jax.random.split(key, self.config.depth))

        known = self.has_variable("params", "blocks")  # their initializer is not traced for a check of shapes
        params = {"blocks": self.get_variable("params", "blocks") if known else self.param("blocks", init_blocks)}

        def step(x: Array, i: Array) -> tuple[Array, None]:
            return self.block(params, i, x, GRADIENT), None

        return head(jax.lax.scan(jax.checkpoint(step), x, jnp.arange(self.config.depth))[0])

    @property
    def depth(self) -> tuple[int, ...]:
        """One loop, and the last block, which computes only the tokens that are read."""
        return (self.config.depth - 1, 1) if self.config.depth > 1 else (1,)

    @nn.nowrap
    def embed(self, params: Params, image: Array, rules: Rules) -> Array:
        """The tokens ``[N, D]`` of an image ``[H, W, channels]``."""
        found: Any = _Embedding(self.config, rules, parent=None).apply({"params": params}, image)
        return found

    @nn.nowrap
    def block(self, params: Params, i: Any, tokens: Array, rules: Rules) -> Array:
        """The tokens that leave block i; of the last, if i is an integer, those that the head reads."""
        blocks = nn.unbox(params["blocks"])
        if found := {leaf.shape[0] for leaf in jax.tree.leaves(blocks)} - {self.config.depth}:
            raise ValueError(f"parameters of {self.config.depth} blocks were expected, got {found.pop()}.")
        of_it = {"params": jax.tree.map(lambda p: p[i], blocks)}
        is_last = isinstance(i, int) and i == self.config.depth - 1
        rows = READOUTS[self.config.readout].tokens if is_last else None
        leaving: Any = _Block(self.config, rules, self.chunk, parent=None).apply(of_it, tokens, rows)
        return leaving

    @nn.nowrap
    def read(self, params: Params, tokens: Array, rules: Rules) -> Array:
        """The logits ``[C]`` of the tokens that leave the last block."""
        found: Any = _Head(self.config, rules, self.chunk, parent=None).apply({"params": params}, tokens)
        return found

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns); the last rows * columns tokens, row by row."""
        return self.config.grid

    @property
    def readout(self) -> np.ndarray | None:
        """How much of the head's input comes from each token, ``[N]``; None: see the last attention's first row."""
        (rows, cols), weights = self.config.grid, READOUTS[self.config.readout].weights
        return weights and weights(self.config.prefix_tokens, rows * cols)

    @property
    def content(self) -> Tokens:
        """The tokens to which position embeddings are added."""
        patches = math.prod(self.config.grid)
        return Tokens((self.config.prefix_tokens + patches, self.config.width), self.config.grid)
