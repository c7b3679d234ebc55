"""Attribution: from a model, images and target classes to maps of relevance.

Axis letters: B images, K targets an image, C classes, L blocks, h heads, N tokens (class and other prefix
tokens first, then the patches row by row). Images are ``[B, H, W, channels]``, floating, already normalised
for the model.

Everything here works on any model that is a pure function of one image, see :class:`Model`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.rules import GRADIENT, RULES, Rules, with_gradient

Params = Any


class Model(Protocol):
    """What can be explained: a hashable value (it is a static argument of ``jax.jit``) with these three members."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns): the last rows * columns tokens, row by row."""
        ...

    @property
    def readout(self) -> ArrayLike | None:
        """How much of the head's input comes from each token, ``[N]``: what a rollout starts from.

        It is 1, 0, 0, ... for a class token and 1 / patches for a mean. None: the last attention is a pooling
        attention, and its first row tells.
        """
        ...

    def forward(self, params: Params, image: Array, taps: Array | None, rules: Rules) -> tuple[Array, Array]:
        """Classify one image with the operations of ``rules``.

        The operations take leading axes of their own accord and must not stand under a ``jax.vmap`` inside this
        function: see :func:`lrp_jax.rules.with_gradient`.

        Args:
            params: the parameters, any pytree.
            image: ``[H, W, channels]``.
            taps: ``[l, h, N, N]``, to be added to the last l of the attention; None: nothing to add.
            rules: the operations to use.

        Returns:
            Logits ``[C]`` and attention probabilities ``[L, h, N, N]``, a pooling attention last, its query in row 0.
        """
        ...


@partial(jax.tree_util.register_dataclass, data_fields=("logits", "targets", "relevance"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Explanation:
    """Maps of a batch, a pytree.

    Attributes:
        logits: ``[B, C]``.
        targets: int ``[B, K]``, the classes explained.
        relevance: ``[B, K, rows, cols]``: patch grid for token methods, image grid for pixel methods.
    """

    logits: Array
    targets: Array
    relevance: Array


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("logits", "targets", "attention", "gradient", "relevance"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class AttentionSignals:
    """What transformer attribution is made of, a pytree.

    Attributes:
        logits: ``[B, C]``.
        targets: int ``[B, K]``, the classes explained.
        attention: probabilities ``[B, L, h, N, N]``.
        gradient: of each target's logit by the attention, ``[B, K, L, h, N, N]``.
        relevance: of each target at the attention, ``[B, K, L, h, N, N]``.
    """

    logits: Array
    targets: Array
    attention: Array
    gradient: Array
    relevance: Array


def explain(
    model: Model,
    params: Params,
    images: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    method: str = "transformer_attribution",
    **options: Any,
) -> Explanation:
    """Explain why a model gives images their classes.

    Pure and jitted (model, method and options are static); works inside the caller's ``jit`` and ``vmap``.
    There, values cannot be checked: a target out of range then gets a map of zeros.

    Args:
        model: the model.
        params: its parameters.
        images: float32 or float64 ``[B, H, W, channels]``, normalised for the model.
        targets: class indices ``[B]``, or ``[B, K]`` for K classes an image, which share the forward pass;
            None: the predicted class, K = 1.
        method: a name in :data:`METHODS`.
        **options: the method's own; ``transformer_attribution`` takes ``start_layer`` and ``rules``.

    Returns:
        Logits ``[B, C]``, targets ``[B, K]`` and relevance ``[B, K, rows, cols]``.

    Raises:
        ValueError: the method or an option is unknown, or an argument has the wrong rank, dtype, shape or value.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    known = [p.name for p in inspect.signature(METHODS[method]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise ValueError(f"method {method!r} takes the options {', '.join(known)}; got {name!r}.")
    images, targets = _check(model, params, images, targets)
    return _explain(model, params, images, targets, method=method, options=tuple(sorted(options.items())))


def attention_signals(
    model: Model,
    params: Params,
    images: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    rules: str | Rules = "stable",
) -> AttentionSignals:
    """Attention, its gradient and its relevance, in every block.

    Args:
        model: the model.
        params: its parameters.
        images: float32 or float64 ``[B, H, W, channels]``, normalised for the model.
        targets: class indices ``[B]`` or ``[B, K]``; None: the predicted class, K = 1.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Returns:
        Attention ``[B, L, h, N, N]``; gradient and relevance ``[B, K, L, h, N, N]``; logits and targets.

    Raises:
        ValueError: an argument has the wrong rank, dtype, shape or value.
    """
    images, targets = _check(model, params, images, targets)
    return _attention_signals(model, params, images, targets, rules=rules)


def transformer_attribution(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    rules: str | Rules = "stable",
) -> Explanation:
    """Relevance and gradient of the attention, combined over the blocks (Chefer et al. 2021, equations 13 and 14).

    With G and R the gradient and the relevance of the attention, and ``A_l = mean over heads of (G_l * R_l)+``, the
    map is the row ``v (I + A_{L-1}) ... (I + A_s)``, at the patches, v being the model's readout: 1 at the class token,
    or, of a pooling attention, the first row of its A.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, or None for the predicted class.
        start_layer: s, the first block that enters the product: 0 in the paper's definition, 1 in its evaluation.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set: ``"stable"``, the paper's but for
            divisions that float32 does not blur, or ``"chefer"``, the paper's to the letter.

    Returns:
        The explanation of one image: no batch axis.

    Raises:
        ValueError: ``start_layer`` is not a block, or ``rules`` is unknown.
    """
    signals = _signals(model, params, image, targets, rules, start_layer)
    weighted = jnp.maximum(signals.gradient * signals.relevance, 0).mean(axis=2)  # [K, L - s, N, N]
    if model.readout is None:
        row, weighted = weighted[:, -1, 0], weighted[:, :-1]
    else:
        row = jnp.broadcast_to(jnp.asarray(model.readout, weighted.dtype), weighted.shape[::3])
    for layer in reversed(range(weighted.shape[1])):
        row += jnp.einsum("kn,knm->km", row, weighted[:, layer])
    return Explanation(signals.logits, signals.targets, _patches(row, model))


#: Attribution methods by name: ``method(model, params, image, targets, **options)`` explains one image; its
#: keyword-only arguments are the options.
METHODS: dict[str, Callable[..., Explanation]] = {"transformer_attribution": transformer_attribution}


def _signals(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, start_layer: int = 0
) -> AttentionSignals:
    """The signals of one image, from block ``start_layer`` up; nothing below its attention is propagated."""
    if isinstance(rules, str) and rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, or a Rules; got {rules!r}.")
    _, shape = _forward.eval_shape(model, params, image)
    layers = shape.shape[0]
    if not isinstance(start_layer, int) or not 0 <= start_layer < layers:
        raise ValueError(f"start_layer must be a block, 0 to {layers - 1}; got {start_layer!r}.")
    # One run of the model on the image twice over: see with_gradient.
    side_by_side = with_gradient(RULES[rules] if isinstance(rules, str) else rules)
    twice = jnp.stack([image, image])
    taps = jnp.zeros((2, layers - start_layer, *shape.shape[1:]), shape.dtype)

    def forward(taps: Array) -> tuple[Array, Array]:
        return jax.vmap(lambda image, taps: model.forward(params, image, taps, side_by_side))(twice, taps)

    (logits, _), vjp, (attention, _) = jax.vjp(forward, taps, has_aux=True)
    if targets is None:
        targets = jnp.argmax(logits)[None]
    one_hot = jax.nn.one_hot(targets, logits.size, dtype=logits.dtype)
    (signals,) = jax.vmap(vjp)(jnp.stack([one_hot, one_hot], axis=1))
    gradient, relevance = signals[:, 0], signals[:, 1]
    return AttentionSignals(logits, targets, attention, gradient, relevance)


def _patches(row: Array, model: Model) -> Array:
    """The patches of ``row`` ``[..., N]``, as a grid ``[..., rows, cols]``."""
    rows, cols = model.grid
    return row[..., row.shape[-1] - rows * cols :].reshape(*row.shape[:-1], rows, cols)


def _batched(function: Callable[..., Any], images: Array, targets: Array | None) -> Any:
    # Relevance divides by small sums: on accelerators its products need float32's full precision.
    with jax.default_matmul_precision("highest"):
        return jax.vmap(function, in_axes=(0, None if targets is None else 0))(images, targets)


@partial(jax.jit, static_argnames=("model", "method", "options"))
def _explain(
    model: Model,
    params: Params,
    images: Array,
    targets: Array | None,
    *,
    method: str,
    options: tuple[tuple[str, Any], ...],
) -> Explanation:
    return _batched(partial(METHODS[method], model, params, **dict(options)), images, targets)


@partial(jax.jit, static_argnames=("model", "rules"))
def _attention_signals(
    model: Model, params: Params, images: Array, targets: Array | None, *, rules: str | Rules
) -> AttentionSignals:
    return _batched(partial(_signals, model, params, rules=rules), images, targets)


@partial(jax.jit, static_argnames="model")
def _forward(model: Model, params: Params, image: Array) -> tuple[Array, Array]:
    return model.forward(params, image, None, GRADIENT)


def _check(model: Model, params: Params, images: ArrayLike, targets: ArrayLike | None) -> tuple[Array, Array | None]:
    """The arguments as arrays ``[B, H, W, channels]`` and ``[B, K]``, or a ValueError."""
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, channels], got the shape {images.shape}.")
    if images.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"images must be float32 or float64, normalised for the model (lrp_jax.preprocess), got {images.dtype}."
        )
    with jax.ensure_compile_time_eval():  # a known array is checked inside the caller's jit as well
        if _is_concrete(images) and not jnp.isfinite(images).all():
            raise ValueError("images must be finite, got NaN or infinite pixels.")
    if targets is None:
        return images, None
    targets = jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets must be class indices (integers), got {targets.dtype}.")
    if targets.ndim not in (1, 2) or len(targets) != len(images) or targets.size == 0:
        raise ValueError(
            f"targets must be [B] or [B, K] for {len(images)} images, K at least 1; got the shape {targets.shape}."
        )
    image = jax.ShapeDtypeStruct(images.shape[1:], images.dtype)
    classes = _forward.eval_shape(model, params, image)[0].shape[0]
    with jax.ensure_compile_time_eval():
        if _is_concrete(targets) and not ((targets >= 0) & (targets < classes)).all():
            raise ValueError(f"targets must be class indices 0 to {classes - 1}, got {np.asarray(targets).tolist()}.")
    return images, targets[:, None] if targets.ndim == 1 else targets


def _is_concrete(x: Array) -> bool:
    return not isinstance(x, jax.core.Tracer)
