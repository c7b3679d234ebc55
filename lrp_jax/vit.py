"""The Vision Transformer, as Flax (linen) modules, for one image.

Layouts: image ``[H, W, channels]``, channels last; tokens ``[N, D]``, the prefix first (a class token and whatever
else is no patch, if there are any), then the patches row by row; attention ``[L, h, N, N]`` with L blocks, h heads,
queries before keys. There is no batch axis: ``jax.vmap`` gives it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.rules import GRADIENT, Rules

Params = Any
Gelu = Literal["exact", "tanh", "quick"]
Readout = Literal["class", "distilled", "mean", "class_mean", "attention"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box"]


def _exact_gelu(x: Array) -> Array:
    # As torch computes it: jax.nn.gelu's erfc costs 2.5 times as much, to be exact relative to tiny values as well.
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


_GELU = {"exact": _exact_gelu, "tanh": jax.nn.gelu, "quick": _quick_gelu}

# width, depth, heads, MLP width. S, B, L, H: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1, and Steiner
# et al. 2021 (arXiv 2106.10270), table 2; Ti: Touvron et al. 2021 (arXiv 2012.12877), table 1.
_VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}


def pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """``value`` as (rows, columns)."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2 or not all(isinstance(v, int) and v > 0 for v in both):
        raise ValueError(f"{name} must be a positive int or a pair (rows, columns) of them, got {value!r}.")
    return both


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything about a Vision Transformer but its weights. Hashable, so usable as a static argument.

    Attributes:
        image_size: pixels, ``int`` or (rows, columns).
        patch_size: pixels, ``int`` or (rows, columns); divides ``image_size``.
        channels: channels of the image.
        width: channels D of a token.
        depth: number of blocks L.
        num_heads: attention heads h of a block; divides ``width``.
        mlp_dim: hidden units of a block's MLP.
        num_classes: logits C.
        qkv_bias: whether the query, key and value projection has a bias.
        gelu: ``"exact"`` (erf; torch and timm), ``"tanh"`` (Google's JAX weights) or ``"quick"`` (OpenAI's CLIP).
        swiglu: whether the MLP is gated, silu(g) * h of the halves of its first layer, instead of a GELU.
        prefix_tokens: tokens before the patches: class token, distillation token, registers, in this order.
        pre_norm: whether a layer norm stands before the first block (CLIP).
        readout: what the head reads. ``"class"``, the first token; ``"distilled"``, the first two, each with a head of
            its own, averaged; ``"mean"`` of the patches; ``"class_mean"``, both, concatenated; ``"attention"``, a
            pooling attention over all tokens, and an MLP (Zhai et al. 2022, arXiv 2106.04560).
        norm_after_readout: whether the final layer norm follows the readout instead of preceding it.
        norm_epsilon: layer norm epsilon in the blocks.
        final_norm_epsilon: layer norm epsilon before the head.
        mean: of each channel (of one for all), for pixels in [0, 1]; ``(pixel - mean) / std`` enters the model.
        std: likewise.
        resize: before the crop: ``int``, pixels of the shorter edge (the aspect is kept); (rows, columns), exactly
            (the aspect is not kept); None, the smallest size that covers ``image_size`` (the aspect is kept).
        crop: whether the centre of ``image_size`` is then cut out.
        interpolation: of the resize.
        multi_label: whether the classes are independent (a sigmoid each) instead of exclusive (one softmax).
        class_names: one per class, or empty.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    channels: int = 3
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    qkv_bias: bool = True
    gelu: Gelu = "exact"
    swiglu: bool = False
    prefix_tokens: int = 1
    pre_norm: bool = False
    readout: Readout = "class"
    norm_after_readout: bool = False
    norm_epsilon: float = 1e-6
    final_norm_epsilon: float = 1e-6
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: int | tuple[int, int] | None = None
    crop: bool = True
    interpolation: Interpolation = "bicubic"
    multi_label: bool = False
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def fix(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("channels", "width", "depth", "num_heads", "mlp_dim", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}.")
        for name in ("image_size", "patch_size"):
            fix(name, pair(name, getattr(self, name)))
        rows, cols, _ = self.image_shape
        p_rows, p_cols = pair("patch_size", self.patch_size)
        if rows % p_rows or cols % p_cols:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}.")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width}).")
        choices_of = {"gelu": Gelu, "readout": Readout, "interpolation": Interpolation}
        for name, choices in ((name, get_args(literal)) for name, literal in choices_of.items()):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        least = {"class": 1, "class_mean": 1, "distilled": 2}.get(self.readout, 0)
        if not isinstance(self.prefix_tokens, int) or self.prefix_tokens < least:
            raise ValueError(
                f"prefix_tokens must be an int of at least {least} for the readout {self.readout!r}, "
                f"got {self.prefix_tokens!r}."
            )
        for name in ("mean", "std"):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)) or not all(isinstance(v, (int, float)) for v in given):
                raise ValueError(f"{name} must hold 1 or {self.channels} finite numbers, got {given!r}.")
            values = tuple(map(float, given))
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} must hold 1 or {self.channels} finite numbers, got {values}.")
            fix(name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")
        for name in ("norm_epsilon", "final_norm_epsilon"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")
        if isinstance(self.resize, int) and not self.resize >= max(rows, cols):
            raise ValueError(f"resize ({self.resize}) must be at least the larger edge of image_size {(rows, cols)}.")
        if self.resize is not None and not isinstance(self.resize, int):
            fix("resize", pair("resize", self.resize))
            if any(r < s for r, s in zip(self.resize, (rows, cols), strict=True)):
                raise ValueError(f"resize {self.resize} must be at least image_size {(rows, cols)} in both directions.")
        if not self.crop and self.resize != (rows, cols):
            raise ValueError(f"without crop, resize must be image_size {(rows, cols)}, got {self.resize}.")
        for name in ("qkv_bias", "swiglu", "pre_norm", "norm_after_readout", "crop", "multi_label"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if isinstance(self.class_names, str):
            raise ValueError(f"class_names must be a sequence of names, got {self.class_names!r}.")
        fix("class_names", tuple(map(str, self.class_names)))
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names must hold {self.num_classes} names or none, got {len(self.class_names)}.")

    @classmethod
    def from_variant(cls, variant: str, **fields: Any) -> ViTConfig:
        """The configuration of a published size, e.g. ``"B/16"`` or ``"Ti/8"``.

        Args:
            variant: size (Ti, S, B, L or H), a slash, and the patch size in pixels.
            **fields: any field of the configuration, overriding the variant's.

        Returns:
            The configuration.

        Raises:
            ValueError: the variant is unknown.
        """
        size, _, patch = variant.partition("/")
        if size not in _VARIANTS or not patch.isdecimal() or int(patch) == 0:
            raise ValueError(
                f"variant must be one of {', '.join(_VARIANTS)}, a slash and a patch size, as in 'B/16'; "
                f"got {variant!r}."
            )
        width, depth, num_heads, mlp_dim = _VARIANTS[size]
        sizes: dict[str, Any] = {
            "patch_size": int(patch),
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
        }
        return cls(**(sizes | fields))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (H, W, channels)."""
        return *pair("image_size", self.image_size), self.channels

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns)."""
        rows, cols, _ = self.image_shape
        p_rows, p_cols = pair("patch_size", self.patch_size)
        return rows // p_rows, cols // p_cols

    @property
    def has_probabilities(self) -> bool:
        """Whether logits stand for classes: a single output that is not multi-label is a number of its own."""
        return self.num_classes > 1 or self.multi_label

    def probabilities(self, logits: ArrayLike) -> Array:
        """Of each class: a sigmoid of its logit if there are multiple labels, else the softmax.

        Args:
            logits: ``[..., C]``.

        Returns:
            ``[..., C]``.

        Raises:
            ValueError: the model has a single output, and it is not multi-label.
        """
        if not self.has_probabilities:
            raise ValueError("a single output has no probability, unless the model is multi_label.")
        return (jax.nn.sigmoid if self.multi_label else jax.nn.softmax)(jnp.asarray(logits))

    def class_name(self, index: int) -> str:
        """The name of a class, or its number where classes have no names."""
        unnamed = f"class {index}" if self.has_probabilities else "output"
        return self.class_names[index] if self.class_names else unnamed

    def target_score(self, target: ArrayLike, logits: np.ndarray) -> float:
        """The number that is shown of what is explained.

        Args:
            target: a class, int; or weights of the logits, float ``[C]``.
            logits: ``[C]``.

        Returns:
            A class's probability; the output itself, if there is but one; of weights, the weighted sum of the logits.
        """
        if np.ndim(target):
            return float(np.dot(np.asarray(target), logits))
        return float((self.probabilities(logits) if self.has_probabilities else logits)[np.asarray(target)])

    def caption(self, target: ArrayLike, logits: np.ndarray) -> str:
        """Name and score of what is explained, see :meth:`target_name` and :meth:`target_score`."""
        form = ".1%" if self.has_probabilities and not np.ndim(target) else ".4g"
        return f"{self.target_name(target)} {self.target_score(target, logits):{form}}"

    def target_name(self, target: ArrayLike) -> str:
        """The name of what is explained.

        Args:
            target: a class, int; or weights of the logits, float ``[C]``.

        Returns:
            The class's name; of weights, that of the largest, and what it is set against.
        """
        weights = np.asarray(target)
        if weights.ndim == 0:
            return self.class_name(int(weights))
        speaks_for = self.class_name(int(weights.argmax())) if weights.max() > 0 else ""
        against = self.class_name(int(weights.argmin())) if weights.min() < 0 else ""
        if not against:
            return speaks_for
        return f"{speaks_for} rather than {against}" if speaks_for else f"against {against}"


def _of_one_dtype(*arrays: Array | None) -> list[Any]:
    """Promoted as usual, whatever the caller's setting of promotion."""
    dtype = functools.reduce(np.promote_types, (array.dtype for array in arrays if array is not None))
    return [array if array is None else array.astype(dtype) for array in arrays]


class _Dense(nn.Module):
    rules: Rules
    features: int
    use_bias: bool = True
    rule: Literal["dense", "patch_embed"] = "dense"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        return getattr(self.rules, self.rule)(*_of_one_dtype(x, kernel, bias))


class _LayerNorm(nn.Module):
    rules: Rules
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        x, scale, bias = _of_one_dtype(x, scale, bias)
        return self.rules.layer_norm(x, scale, bias, self.epsilon)


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
        y = _LayerNorm(self.rules, epsilon, name="norm1")(x)
        y, attention = _Attention(self.config, self.rules, name="attn")(y, taps, rows)
        x = self.rules.add(x[:rows], y)
        y = _Mlp(self.config, self.rules, name="mlp")(_LayerNorm(self.rules, epsilon, name="norm2")(x))
        return self.rules.add(x, y), attention


class _AttentionPool(nn.Module):
    config: ViTConfig
    rules: Rules

    @nn.compact
    def __call__(self, x: Array, taps: Array | None) -> tuple[Array, Array]:
        """Features ``[D]`` and attention ``[h, 1, N]``: a learned query over the tokens ``[N, D]``, and an MLP."""
        n, width = x.shape
        heads = self.config.num_heads
        latent = self.param("latent", nn.initializers.normal(0.02), (1, width), jnp.float32).astype(x.dtype)
        q = _Dense(self.rules, width, name="q")(latent).reshape(heads, 1, -1)
        k, v = _Dense(self.rules, 2 * width, name="kv")(x).reshape(n, 2, heads, -1).transpose(1, 2, 0, 3)
        attention = self.rules.softmax(self.rules.matmul(q, k.mT), (width // heads) ** -0.5)
        if taps is not None:
            attention = attention + taps[:, :1]
        x = _Dense(self.rules, width, name="proj")(self.rules.matmul(attention, v).reshape(1, width))
        y = _LayerNorm(self.rules, self.config.norm_epsilon, name="norm")(x)
        y = _Mlp(self.config, self.rules, name="mlp")(y)
        return self.rules.add(x, y)[0], attention


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) for one image.

    Attributes:
        config: the configuration.
        rules: the rule set its backward pass follows.
    """

    config: ViTConfig
    rules: Rules = GRADIENT

    @nn.compact
    def __call__(self, image: Array, taps: Array | None = None) -> tuple[Array, Array]:
        """Classify one image.

        Args:
            image: ``[H, W, channels]``, normalised as the configuration says.
            taps: ``[l, h, N, N]``, added to the last l of the attention, or None. Pass zeros and
                differentiate by them: their cotangent is the gradient, or the relevance, of that attention.

        Returns:
            Logits ``[C]`` and attention probabilities ``[L, h, N, N]``; a pooling attention is the last of them, its
            one query in row 0 and nothing below.
        """
        config, rules = self.config, self.rules
        if image.shape != config.image_shape:
            raise ValueError(f"an image must be [H, W, channels] = {config.image_shape}, got {image.shape}.")
        rows, cols = config.grid
        p_rows, p_cols = pair("patch_size", config.patch_size)
        patches = image.reshape(rows, p_rows, cols, p_cols, -1).transpose(0, 2, 1, 3, 4).reshape(rows * cols, -1)
        x = _Dense(rules, config.width, rule="patch_embed", name="patch_embed")(patches)
        normal = nn.initializers.normal(0.02)
        if config.prefix_tokens:
            prefix = self.param("cls_token", normal, (config.prefix_tokens, config.width), jnp.float32)
            x = jnp.concatenate([prefix.astype(x.dtype), x])
        x = rules.add(x, self.param("pos_embed", normal, x.shape, jnp.float32).astype(x.dtype))
        if config.pre_norm:
            x = _LayerNorm(rules, config.norm_epsilon, name="norm_pre")(x)

        pool_tap = None
        if config.readout == "attention" and taps is not None:
            taps, pool_tap = taps[:-1], taps[-1]

        # The blocks' parameters are stacked along a first axis. One compiled block runs over all but the last, which
        # computes only the tokens that are read. The backward pass keeps matrix products and recomputes the rest.
        block = _Block(config, rules, parent=None)

        def init_blocks(key: Array) -> Params:
            ordinary, tokens = block.clone(rules=GRADIENT), jnp.zeros(x.shape, jnp.float32)
            return jax.vmap(lambda k: ordinary.init(k, tokens)["params"])(jax.random.split(key, config.depth))

        blocks = self.param("blocks", init_blocks)

        def run(x: Array, layer: ArrayLike, tap: Array | None, rows: int | None = None) -> tuple[Array, Array]:
            params = jax.tree.map(lambda p: p[layer], blocks)
            return block.apply({"params": params}, x, tap, rows)  # type: ignore[return-value]

        @partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
        def step(x: Array, inputs: tuple[Array, Array | None]) -> tuple[Array, Array]:
            return run(x, *inputs)

        read = {"class": 1, "distilled": 2}.get(config.readout)
        if self.is_mutable_collection("intermediates"):
            read = None
        last, tapped = config.depth - 1, 0 if taps is None else len(taps)
        first_tapped = min(config.depth - tapped, last)
        attention = []
        for layers, section_taps in (
            (jnp.arange(first_tapped), None),
            (jnp.arange(first_tapped, last), None if taps is None else taps[:-1]),
        ):
            if layers.size:
                x, section_attention = jax.lax.scan(step, x, (layers, section_taps))
                attention.append(section_attention)
        last_tap = None if taps is None or not tapped else taps[-1]
        x, last_attention = run(x, last, last_tap, read)
        attention.append(last_attention[None])

        norm = _LayerNorm(rules, config.final_norm_epsilon, name="norm")
        x = x if config.norm_after_readout else norm(x)
        self.sow("intermediates", "tokens", x)  # for training: what the head would see of each token
        patches = x[config.prefix_tokens :]
        if config.readout == "attention":
            features, pooling = _AttentionPool(config, rules, name="attn_pool")(x, pool_tap)
            attention.append(jnp.pad(pooling, ((0, 0), (0, x.shape[0] - 1), (0, 0)))[None])
        elif config.readout == "mean":
            features = rules.mean(patches)
        elif config.readout == "class_mean":
            features = jnp.concatenate([x[0], rules.mean(patches)])
        else:
            features = x[: 2 if config.readout == "distilled" else 1].reshape(-1)
        features = norm(features) if config.norm_after_readout else features
        logits = _Dense(rules, config.num_classes, name="head")(features)
        return logits, jnp.concatenate(attention)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns); the last rows * columns tokens, row by row."""
        return self.config.grid

    @property
    def readout(self) -> np.ndarray | None:
        """How much of the head's input comes from each token, ``[N]``; None: see the last attention's first row."""
        prefix, (rows, cols) = self.config.prefix_tokens, self.config.grid
        tokens = np.eye(2, prefix + rows * cols)
        mean = np.where(np.arange(prefix + rows * cols) < prefix, 0, 1 / (rows * cols))
        return {
            "class": tokens[0],
            "distilled": tokens.mean(axis=0),
            "mean": mean,
            "class_mean": (tokens[0] + mean) / 2,
        }.get(self.config.readout)

    @nn.nowrap
    def forward(self, params: Params, image: Array, taps: Array | None, rules: Rules) -> tuple[Array, Array]:
        """The model as the pure function that :mod:`lrp_jax.attribution` explains; see ``__call__``."""
        return self.clone(rules=rules).apply({"params": params}, image, taps)  # type: ignore[return-value]
