"""One image through a model, and back: the relevance or the gradient of classes at the attention or at the pixels.

Axis letters: K targets, C classes, L blocks, h heads, N tokens (class and other prefix tokens first, then the patches
row by row). Everything works on any model that is a pure function of one image, see :class:`Model`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
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


@partial(jax.jit, static_argnames="model")
def forward(model: Model, params: Params, image: Array) -> tuple[Array, Array]:
    """Logits ``[C]`` and attention probabilities ``[L, h, N, N]`` of one image, in full precision as maps are."""
    with jax.default_matmul_precision("highest"):
        return model.forward(params, image, None, GRADIENT)


def predicted(logits: Array, targets: Array | None) -> Array:
    """The targets ``[K]``, or the class of the largest logit, ``[1]``, if they are None."""
    return jnp.argmax(logits)[None] if targets is None else targets


def at_pixels(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules
) -> tuple[Array, Array, Array]:
    """Logits ``[C]``, targets ``[K]`` and what each target's unit of relevance is at the pixels, ``[K, H, W, C]``.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, or None for the predicted class.
        rules: :data:`lrp_jax.rules.GRADIENT` for the gradient; or of relevance, a set or a name.
    """
    logits, vjp = jax.vjp(lambda image: model.forward(params, image, None, _named(rules))[0], image)
    targets = predicted(logits, targets)
    (pixels,) = jax.vmap(vjp)(_one_hot(targets, logits))
    return logits, targets, pixels


def at_attention(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, start_layer: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Logits ``[C]``, targets ``[K]``, attention ``[L, h, N, N]``, and each target's relevance or gradient there.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, or None for the predicted class.
        rules: :data:`lrp_jax.rules.GRADIENT` for the gradient; or of relevance, a set or a name.
        start_layer: s, the first block of the last value, ``[K, L - s, h, N, N]``; below its attention nothing is
            propagated. Negative: counted from the end.
    """
    rules, taps = _named(rules), _taps(model, params, image, start_layer)
    logits, vjp, attention = jax.vjp(lambda taps: model.forward(params, image, taps, rules), taps, has_aux=True)
    targets = predicted(logits, targets)
    (signals,) = jax.vmap(vjp)(_one_hot(targets, logits))
    return logits, targets, attention, signals


def signals(
    model: Model, params: Params, image: Array, targets: Array | None, rules: str | Rules, start_layer: int = 0
) -> tuple[Array, Array, Array, Array, Array]:
    """As :func:`at_attention`, with the gradient and the relevance, both ``[K, L - s, h, N, N]``, last."""
    side_by_side, taps = with_gradient(_named(rules)), _taps(model, params, image, start_layer)
    # One run of the model on the image twice over: see with_gradient.
    twice = jnp.stack([image, image])

    def forward(taps: Array) -> tuple[Array, Array]:
        return jax.vmap(lambda image, taps: model.forward(params, image, taps, side_by_side))(twice, taps)

    (logits, _), vjp, (attention, _) = jax.vjp(forward, jnp.stack([taps, taps]), has_aux=True)
    targets = predicted(logits, targets)
    one_hot = _one_hot(targets, logits)
    (both,) = jax.vmap(vjp)(jnp.stack([one_hot, one_hot], axis=1))
    return logits, targets, attention, both[:, 0], both[:, 1]


def number_of_layers(model: Model, params: Params, image: Array) -> int:
    """L, how many attention maps a model has."""
    return forward.eval_shape(model, params, image)[1].shape[0]


def _taps(model: Model, params: Params, image: Array, start_layer: int) -> Array:
    """Zeros to be added to the attention of block ``start_layer`` and those above it."""
    _, shape = forward.eval_shape(model, params, image)
    return jnp.zeros((len(range(shape.shape[0])[start_layer:]), *shape.shape[1:]), shape.dtype)


def _one_hot(targets: Array, logits: Array) -> Array:
    return jax.nn.one_hot(targets, logits.size, dtype=logits.dtype)


def _named(rules: str | Rules) -> Rules:
    if isinstance(rules, Rules):
        return rules
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, or a Rules; got {rules!r}.")
    return RULES[rules]
