"""What a Vision Transformer is like: its configuration, and what its head may read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.checks import check_choice, check_epsilon, check_positive, check_truth, pair, set_field
from lrp_jax.labels import Labels
from lrp_jax.pictures import Preprocessing
from lrp_jax.rules import Rules

Gelu = Literal["exact", "tanh", "quick"]

# width, depth, heads, MLP width. S, B, L, H: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1, and Steiner
# et al. 2021 (arXiv 2106.10270), table 2; Ti: Touvron et al. 2021 (arXiv 2012.12877), table 1.
_VARIANTS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}


class Readout(NamedTuple):
    """What the head reads of the tokens.

    Attributes:
        what: for messages.
        least_prefix: how many tokens there must be before the patches.
        tokens: how many, the first ones, the last block computes; None: all.
        widths: how many times D the head reads.
        features: ``(rules, tokens [N, D], prefix) -> [widths * D]``; None: a pooling attention.
        weights: ``(prefix, patches) -> [N]``, how much of the head's input comes from each token; None: the pooling
            attention tells.
    """

    what: str
    least_prefix: int
    tokens: int | None
    widths: int
    features: Callable[[Rules, Array, int], Array] | None
    weights: Callable[[int, int], np.ndarray] | None


def _first(prefix: int, patches: int, tokens: int = 1) -> np.ndarray:
    return np.eye(tokens, prefix + patches).mean(axis=0)


def _patches(prefix: int, patches: int) -> np.ndarray:
    return np.where(np.arange(prefix + patches) < prefix, 0, 1 / patches)


#: What the head may read, by name.
READOUTS = {
    "class": Readout("the class token", 1, 1, 1, lambda rules, x, prefix: x[0], _first),
    "distilled": Readout(
        "the class and the distillation token",
        2,
        2,
        2,
        lambda rules, x, prefix: x[:2].reshape(-1),
        partial(_first, tokens=2),
    ),
    "mean": Readout("the mean of the patches", 0, None, 1, lambda rules, x, prefix: rules.mean(x[prefix:]), _patches),
    "class_mean": Readout(
        "the class token and the mean of the patches",
        1,
        None,
        2,
        lambda rules, x, prefix: jnp.concatenate([x[0], rules.mean(x[prefix:])]),
        lambda prefix, patches: (_first(prefix, patches) + _patches(prefix, patches)) / 2,
    ),
    "attention": Readout("a pooling attention over all tokens", 0, None, 1, None, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(Labels, Preprocessing):
    """Everything about a Vision Transformer but its weights. Hashable, so usable as a static argument.

    What its images are and what its logits stand for are the fields of :class:`lrp_jax.Preprocessing` and of
    :class:`lrp_jax.Labels`: a configuration may be given where one of them is asked for. The rest is its architecture:

    Attributes:
        patch_size: pixels, ``int`` or (rows, columns); divides ``image_size``.
        width: channels D of a token.
        depth: number of blocks L.
        num_heads: attention heads h of a block; divides ``width``.
        mlp_dim: hidden units of a block's MLP.
        qkv_bias: whether the query, key and value projection has a bias.
        gelu: ``"exact"`` (erf; torch and timm), ``"tanh"`` (Google's JAX weights) or ``"quick"`` (OpenAI's CLIP).
        swiglu: whether the MLP is gated, silu(g) * h of the halves of its first layer, instead of a GELU.
        prefix_tokens: tokens before the patches: class token, distillation token, registers, in this order.
        pre_norm: whether a layer norm stands before the first block (CLIP).
        readout: what the head reads, a name in :data:`READOUTS`. ``"class"``, the first token; ``"distilled"``, the
            first two, each with a head of its own, averaged; ``"mean"`` of the patches; ``"class_mean"``, both,
            concatenated; ``"attention"``, a pooling attention over all tokens, and an MLP (Zhai et al. 2022, arXiv
            2106.04560).
        norm_after_readout: whether the final layer norm follows the readout instead of preceding it.
        norm_epsilon: layer norm epsilon in the blocks.
        final_norm_epsilon: layer norm epsilon before the head.

    Raises:
        ValueError: a field has a wrong type or value, or two do not go together.
    """

    patch_size: int | tuple[int, int] = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    qkv_bias: bool = True
    gelu: Gelu = "exact"
    swiglu: bool = False
    prefix_tokens: int = 1
    pre_norm: bool = False
    readout: str = "class"
    norm_after_readout: bool = False
    norm_epsilon: float = 1e-6
    final_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        Preprocessing.__post_init__(self)
        Labels.__post_init__(self)
        check_positive(self, "width", "depth", "num_heads", "mlp_dim")
        check_truth(self, "qkv_bias", "swiglu", "pre_norm", "norm_after_readout")
        check_choice(self, "gelu", get_args(Gelu))
        check_choice(self, "readout", READOUTS)
        check_epsilon(self, "norm_epsilon", "final_norm_epsilon")
        set_field(self, "patch_size", pair("patch_size", self.patch_size))
        rows, cols, _ = self.image_shape
        p_rows, p_cols = pair("patch_size", self.patch_size)
        if rows % p_rows or cols % p_cols:
            raise ValueError(f"patch_size {self.patch_size} must divide image_size {self.image_size}.")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width}).")
        least = READOUTS[self.readout].least_prefix
        if not isinstance(self.prefix_tokens, int) or self.prefix_tokens < least:
            raise ValueError(
                f"prefix_tokens must be an int of at least {least} for the readout {self.readout!r}, "
                f"got {self.prefix_tokens!r}."
            )

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
        sizes = dict(zip(("width", "depth", "num_heads", "mlp_dim"), _VARIANTS[size], strict=True))
        return cls(**({"patch_size": int(patch), **sizes} | fields))

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns)."""
        rows, cols, _ = self.image_shape
        p_rows, p_cols = pair("patch_size", self.patch_size)
        return rows // p_rows, cols // p_cols
