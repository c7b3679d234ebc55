"""One image through a model, and back: the relevance or the gradient of targets at the attention or at the pixels.

Axis letters: K targets, C classes, L blocks, h heads, N tokens. A target is a class, or any direction of the output:
weights of the logits, whose sum is explained.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.model import Model, Params, probe, zero_taps
from lrp_jax.rules import GRADIENT, RULES, Rules
from lrp_jax.side_by_side import vjp


def predicted(logits: Array, targets: Array | None) -> Array:
    """The targets ``[K]``, or the class of the largest logit, ``[1]``, if they are None."""
    return jnp.argmax(logits)[None] if targets is None else targets


def directions(targets: Array, logits: Array) -> Array:
    """The weights of the logits whose sum each target is, ``[K, C]``: one-hot for a class."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(logits.dtype)
    return jax.nn.one_hot(targets, logits.size, dtype=logits.dtype)


def at_pixels(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> tuple[Array, Array, Array]:
    """Logits ``[C]``, targets and what each target's unit of relevance is at the pixels, ``[K, H, W, channels]``.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: :data:`lrp_jax.rules.GRADIENT` for the gradient; or of relevance, a set or a name.
    """
    logits, targets, _, pixels, _ = _propagated(model, params, image, targets, None, rules)
    return logits, targets, pixels[:, 0]


def at_attention(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, start_layer: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Logits ``[C]``, targets, attention ``[L, h, N, N]``, and each target's relevance or gradient there.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: :data:`lrp_jax.rules.GRADIENT` for the gradient; or of relevance, a set or a name.
        start_layer: s, the first block of the last value, ``[K, L - s, h, N, N]``; below its attention nothing is
            propagated. Negative: counted from the end.
    """
    taps = zero_taps(model, params, image, start_layer)
    logits, targets, attention, _, signals = _propagated(model, params, image, targets, taps, rules)
    return logits, targets, attention, signals[:, 0]


def signals(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, start_layer: int = 0
) -> tuple[Array, Array, Array, Array, Array]:
    """As :func:`at_attention`, with the gradient and the relevance, both ``[K, L - s, h, N, N]``, last."""
    taps = zero_taps(model, params, image, start_layer)
    logits, targets, attention, _, both = _propagated(model, params, image, targets, taps, GRADIENT, rules)
    return logits, targets, attention, both[:, 0], both[:, 1]


def _propagated(
    model: Model, params: Params, image: Array, targets: Array | None, taps: Array | None, *rules: str | Rules
) -> tuple[Array, Array, Array, Array, Any]:
    """Logits, targets, attention, and what arrives at the image and at the taps, ``[K, sets, ...]``.

    Always by the image as well: every operation on it is then linearised here, and what the caller differentiates are
    ordinary operations. Where nobody asks for the pixels, XLA drops their part.
    """

    def run(rules: Rules, image: Array, taps: Array | None) -> tuple[Array, Array]:
        return model.forward(params, image, taps, rules)

    sets = [_named(r) for r in rules]
    if sets != [GRADIENT]:
        probe(model, params, image, taps)
    logits, pull, attention = vjp(run, sets, image, taps)
    targets = predicted(logits, targets)
    of_image, of_taps = jax.vmap(pull)(directions(targets, logits))
    return logits, targets, attention, of_image, of_taps


def _named(rules: str | Rules) -> Rules:
    if isinstance(rules, Rules):
        return rules
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, or a Rules; got {rules!r}.")
    return RULES[rules]
