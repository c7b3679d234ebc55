"""The Vision Transformer, as Flax (linen) modules, for one image.

Layouts: image ``[H, W, channels]``, channels last; tokens ``[N, D]``, the prefix first (a class token and whatever
else is no patch, if there are any), then the patches row by row; attention ``[L, h, N, N]`` with L blocks, h heads,
queries before keys. There is no batch axis: ``jax.vmap`` gives it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.checks import pair
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.vit_config import READOUTS, ViTConfig

Params = Any


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

    @nn.compact
    def __call__(self, x: Array, taps: Array | None, rows: int | None) -> tuple[Array, Array]:
        n, width = x.shape
        heads = self.config.num_heads
        qkv = _Dense(self.rules, 3 * width, self.config.qkv_bias, name="qkv")(x)
        q, k, v = qkv.reshape(n, 3, heads, width // heads).transpose(1, 2, 0, 3)  # each [h, N, D / h]
        attention = self.rules.softmax(self.rules.matmul(q, k.mT), (width // heads) ** -0.5)
        if taps is not None:
            attention = attention + taps
        x = self.rules.matmul(attention[:, :rows], v).transpose(1, 0, 2).reshape(-1, width)
        return _Dense(self.rules, width, name="proj")(x), attention


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

    @nn.compact
    def __call__(self, x: Array, taps: Array | None = None, rows: int | None = None) -> tuple[Array, Array]:
        """Tokens ``[rows, D]``, the first ``rows`` of N only (None: all), and attention ``[h, N, N]``."""
        epsilon = self.config.norm_epsilon
        rules = self.rules.at(part="attention")
        y = _LayerNorm(rules, epsilon, name="norm1")(x)
        y, attention = _Attention(self.config, rules, name="attn")(y, taps, rows)
        x = rules.add(x[:rows], y)
        rules = self.rules.at(part="mlp")
        y = _Mlp(self.config, rules, name="mlp")(_LayerNorm(rules, epsilon, name="norm2")(x))
        return rules.add(x, y), attention


#: What a block is made of.
_OF_BLOCKS = frozenset({"norm1", "attn", "norm2", "mlp"})


class _AttentionPool(nn.Module):
    config: ViTConfig
    rules: Rules

    @nn.compact
    def __call__(self, x: Array, taps: Array | None) -> tuple[Array, Array]:
        """Features ``[D]`` and attention ``[h, 1, N]``: a learned query over the tokens ``[N, D]``, and an MLP."""
        n, width = x.shape
        heads = self.config.num_heads
        latent = _parameter(self, "latent", nn.initializers.normal(0.02), (1, width)).astype(x.dtype)
        rules = self.rules.at(part="attention")
        q = _Dense(rules, width, name="q")(latent).reshape(heads, 1, -1)
        k, v = _Dense(rules, 2 * width, name="kv")(x).reshape(n, 2, heads, -1).transpose(1, 2, 0, 3)
        attention = rules.softmax(rules.matmul(q, k.mT), (width // heads) ** -0.5)
        if taps is not None:
            attention = attention + taps[:, :1]
        x = _Dense(rules, width, name="proj")(rules.matmul(attention, v).reshape(1, width))
        rules = self.rules.at(part="head")
        y = _LayerNorm(rules, self.config.norm_epsilon, name="norm")(x)
        y = _Mlp(self.config, rules, name="mlp")(y)
        return rules.add(x, y)[0], attention


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) for one image.

    Attributes:
        config: the configuration.
        rules: the rule set its backward pass follows.
    """

    config: ViTConfig
    rules: Rules = GRADIENT

    @nn.compact
    def __call__(
        self,
        image: Array | None,
        taps: Array | None = None,
        added: Array | None = None,
        *,
        apart: bool = False,
        leaving: Array | None = None,
    ) -> Any:
        """Classify one image.

        Args:
            image: ``[H, W, channels]``, normalised as the configuration says.
            taps: ``[l, h, N, N]``, added to the last l of the attention, or None. Pass zeros and
                differentiate by them: their cotangent is the gradient, or the relevance, of that attention.
            added: ``[L, N, D]``, likewise added to the tokens that enter the blocks, or None.
            apart: whether ``added`` enters the blocks, and the tokens that leave each of them are returned instead,
                ``[L, N, D]``; ``taps`` are then of blocks alone.
            leaving: tokens ``[N, D]`` that leave the last block, to be read in the place of the image's; or None.

        Returns:
            Logits ``[C]`` and attention probabilities ``[L, h, N, N]``; a pooling attention is the last of them, its
            one query in row 0 and nothing below. With ``added``, the tokens ``[L, N, D]`` too.
        """
        pool_tap = None
        if self.config.readout == "attention" and taps is not None and not apart:
            taps, pool_tap = taps[:-1], taps[-1]
        attention: list[Array] = []
        entering: list[Array] = []
        if leaving is None:
            shape = self.config.image_shape
            if image is None or image.shape != shape:
                got = None if image is None else image.shape
                raise ValueError(f"an image must be [H, W, channels] = {shape}, got {got}.")
            x, attention, entering = self._encode(self._embed(image), taps, added, apart)
            if apart:
                return jnp.concatenate(attention)
        else:
            x = leaving
        features, pooling = self._read(x, pool_tap)
        logits = _Dense(self.rules.at(part="head"), self.config.num_classes, name="head")(features)
        if leaving is not None:
            return logits, None
        found = logits, jnp.concatenate([*attention, *pooling])
        return found if added is None else (*found, jnp.concatenate(entering))

    # The stages below are parts of the compact method above: their parameters are the model's own.

    @nn.nowrap
    def _embed(self, image: Array) -> Array:
        """The tokens ``[N, D]`` of an image: prefix and patches, with their positions."""
        config, rules = self.config, self.rules.at(part="embedding")
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

    @nn.nowrap
    def _encode(
        self, x: Array, taps: Array | None, added: Array | None, apart: bool = False
    ) -> tuple[Array, list[Array], list[Array]]:
        """Through the blocks: the tokens that the head reads, and attention, in parts ``[l, h, N, N]``.

        With something added to what enters the blocks ``[L, N, D]``, these tokens too; apart, what leaves each of them
        instead of the attention.

        The blocks' parameters are stacked along a first axis. One compiled block runs over all but the last, which
        computes only the tokens that are read. The backward pass keeps matrix products and recomputes the rest.
        """
        depth = self.config.depth
        rules = [self.rules.at(depth=i, blocks=depth) for i in range(depth)]

        def init_blocks(key: Array) -> Params:
            ordinary, tokens = _Block(self.config, GRADIENT, parent=None), jnp.zeros(x.shape, jnp.float32)
            return jax.vmap(lambda k: ordinary.init(k, tokens)["params"])(jax.random.split(key, depth))

        if self.has_variable("params", "blocks"):
            blocks = nn.unbox(self.get_variable("params", "blocks"))
            if found := {leaf.shape[0] for leaf in jax.tree.leaves(blocks)} - {depth}:
                raise ValueError(f"parameters of {depth} blocks were expected, got {found.pop()}.")
        else:
            blocks = self.param("blocks", init_blocks)

        def run(x: Array, inputs: tuple[Any, ...], block: _Block, rows: int | None = None) -> tuple[Array, Any]:
            layer, tap, more = inputs
            tokens = x if more is None else more.astype(x.dtype) if apart else x + more.astype(x.dtype)
            params = jax.tree.map(lambda p: p[layer], blocks)
            found: Any = block.apply({"params": params}, tokens, tap, rows)
            return found[0], (found[0] if apart else found[1], None if more is None else tokens)

        last, first_tapped = depth - 1, min(depth - (0 if taps is None else len(taps)), depth - 1)
        changes = (i for i in range(1, depth) if rules[i] != rules[i - 1])
        cuts = sorted({0, first_tapped, last, *changes})
        seen: list[tuple[Array, Array]] = []
        for start, end in itertools.pairwise(cuts):
            once = functools.partial(run, block=_Block(self.config, rules[start], parent=None))
            step = jax.checkpoint(once, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
            tap = None if taps is None or start < first_tapped else taps[start - first_tapped : end - first_tapped]
            x, of_blocks = jax.lax.scan(
                step, x, (jnp.arange(start, end), tap, None if added is None else added[start:end])
            )
            seen.append(of_blocks)
        all_of_them = apart or self.is_mutable_collection("intermediates")
        read = None if all_of_them else READOUTS[self.config.readout].tokens
        last_tap, more = None if taps is None or not len(taps) else taps[-1], None if added is None else added[-1]
        block = _Block(self.config, rules[last], parent=None)
        x, of_last = run(x, (last, last_tap, more), block, read)
        seen.append(jax.tree.map(lambda part: part[None], of_last))
        attention, entering = zip(*seen, strict=True)
        return x, list(attention), list(entering)

    @nn.nowrap
    def _read(self, x: Array, tap: Array | None) -> tuple[Array, list[Array]]:
        """What the head reads of the tokens, and the attention of a pooling, ``[1, h, N, N]``, if there is one."""
        config, rules = self.config, self.rules.at(part="head")
        norm = _LayerNorm(rules, config.final_norm_epsilon, name="norm")
        x = x if config.norm_after_readout else norm(x)
        self.sow("intermediates", "tokens", x)  # for training: what the head would see of each token
        read, attention = READOUTS[config.readout].features, []
        if read is None:
            features, pooling = _AttentionPool(config, self.rules, name="attn_pool")(x, tap)
            attention = [jnp.pad(pooling, ((0, 0), (0, x.shape[0] - 1), (0, 0)))[None]]
        else:
            features = read(rules, x, config.prefix_tokens)
        return norm(features) if config.norm_after_readout else features, attention

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns); the last rows * columns tokens, row by row."""
        return self.config.grid

    @property
    def readout(self) -> np.ndarray | None:
        """How much of the head's input comes from each token, ``[N]``; None: see the last attention's first row."""
        (rows, cols), weights = self.config.grid, READOUTS[self.config.readout].weights
        return weights and weights(self.config.prefix_tokens, rows * cols)

    @nn.nowrap
    def forward(self, params: Params, image: Array, taps: Array | None, rules: Rules) -> tuple[Array, Array]:
        """The model as the pure function that :mod:`lrp_jax.attribution` explains; see ``__call__``."""
        return self.clone(rules=rules).apply({"params": params}, image, taps)  # type: ignore[return-value]

    @property
    def blocks(self) -> tuple[Blocks]:
        """The tokens that enter the blocks, see :class:`lrp_jax.model.WithBlocks`."""
        return (Blocks(self.config),)

    @property
    def content(self) -> Blocks:
        """The tokens to which position embeddings are added."""
        return Blocks(dataclasses.replace(self.config, depth=1))

    @nn.nowrap
    def forward_apart(self, params: Params, image: Array, entering: Sequence[Array], taps: Array) -> Array:
        """The tokens that leave each block, see :class:`lrp_jax.model.WithTokens`."""
        found: Any = self.clone(rules=GRADIENT).apply({"params": params}, image, taps, *entering, apart=True)
        return found

    @nn.nowrap
    def read(self, params: Params, image: Array, tokens: Array) -> Array:
        """The logits ``[C]`` of tokens that leave the last block."""
        found: Any = self.clone(rules=GRADIENT).apply({"params": params}, None, leaving=tokens)
        return found[0]

    @nn.nowrap
    def forward_through(
        self,
        params: Params,
        image: Array,
        taps: Array | None,
        rules: Rules,
        places: Sequence[Blocks],
        added: Sequence[Array],
    ) -> tuple[Array, Array, list[Array]]:
        """Logits, attention and the tokens that enter the blocks, to which something is added."""
        found: Any = self.clone(rules=rules).apply({"params": params}, image, taps, *added)
        return found[0], found[1], [found[2]]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The tokens that enter the blocks of a Vision Transformer, ``[L, N, D]``; a :class:`lrp_jax.model.Place`."""

    config: ViTConfig

    def zeros(self) -> Array:
        """What is added there."""
        tokens = self.config.prefix_tokens + math.prod(self.config.grid)
        return jnp.zeros((self.config.depth, tokens, self.config.width), jnp.float32)

    def maps(self, relevance: Array) -> Array:
        """Relevance of the patches, summed over channels, ``[L, rows, cols]``."""
        return relevance.sum(axis=-1)[:, self.config.prefix_tokens :].reshape(-1, *self.config.grid)

    def totals(self, relevance: Array) -> Array:
        """Relevance of all tokens, ``[L]``."""
        return relevance.sum(axis=(-2, -1))
