"""Attribution: from a model, images and target classes to maps of relevance.

Axis letters: B images, K targets an image, C classes, L blocks, h heads, N tokens (class and other prefix
tokens first, then the patches row by row). Images are ``[B, H, W, channels]``, floating, already normalised
for the model; of a model that was traced with channels first, ``[B, channels, H, W]``. Maps are the same of both.

What a method does with one image is in :mod:`lrp_jax.methods`; here it meets batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.checks import check_model
from lrp_jax.files import plain
from lrp_jax.maps import correlations
from lrp_jax.meshes import automatic
from lrp_jax.methods import METHODS, Method
from lrp_jax.model import Model, Params, ask, full_precision, prepared
from lrp_jax.probe import Match, count_matches
from lrp_jax.rules import Rules, named
from lrp_jax.signals import AttentionSignals, Explanation, signals_at_attention
from lrp_jax.walk import classify, number_of_classes


def explain(
    model: Model,
    params: Params,
    images: Any,
    targets: ArrayLike | None = None,
    *,
    method: str = "transformer_attribution",
    **options: Any,
) -> Explanation:
    """Explain why a model gives images their classes.

    Pure and jitted (model, method and options are static); works inside the caller's ``jit``, ``vmap`` and ``grad``.
    There, values cannot be checked: a target out of range then gets a map of zeros.

    Args:
        model: the model.
        params: its parameters.
        images: float32 or float64 ``[B, H, W, channels]``, normalised for the model; of a traced model, whatever it was
            traced with: images ``[B, channels, H, W]``, tokens ``[B, N]``, or several inputs.
        targets: class indices ``[B]``, or ``[B, K]`` for K classes an image, which share the forward pass; float
            ``[B, K, C]`` for any direction of the output, weights of the logits whose sum is explained: 1 at a and -1
            at b for what speaks for a rather than b, -1 for the other side of a single output; None: the predicted
            class, K = 1.
        method: a name in :data:`METHODS`.
        **options: the method's own, hashable: see its function in :mod:`lrp_jax.methods`.

    Returns:
        Logits ``[B, C]``, the targets and relevance ``[B, K, rows, cols]``; of tokens, ``[B, K, N]``.

    Raises:
        ValueError: the method or an option is unknown, or an argument has the wrong rank, dtype, shape or value.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    known = METHODS[method].options
    for name, value in options.items():
        if name not in known:
            takes = f"takes the options {', '.join(known)}" if known else "takes no options"
            raise ValueError(f"method {method!r} {takes}; got {name!r}.")
        try:
            hash(value)
        except TypeError:
            raise ValueError(f"options must be hashable, tuples instead of lists; got {name}={value!r}.") from None
    if "rules" in known:  # a name would be a static argument, and may come to mean another set
        options["rules"] = named(options.get("rules", known["rules"]))
    with full_precision():
        images, targets = checked(model, params, images, targets)
        static = {"method": METHODS[method], "options": tuple(sorted(options.items()))}
        found: Explanation = _explain(model, params, images, targets, **static)
        _look_at_rounding(model, params, images, found, static)
        return found


#: Below this correlation with the map of the same program in more precision, a map is one of rounding.
_CORRELATION = 0.5


def _look_at_rounding(model: Model, params: Params, images: Any, found: Explanation, static: dict[str, Any]) -> None:
    """Warn where the rounding of a model of low precision decides its maps; once for each method and its options."""
    more = ask(model, "unrounded")
    if more is None or not all(map(_is_known, jax.tree.leaves((params, images, found)))):
        return
    looked: set[Any] = more.__dict__.setdefault("_looked_at", set())
    if (key := tuple(static.values())) in looked:
        return
    looked.add(key)
    precise = _explain(more, params, images, found.targets, **static)
    pairs = zip(jax.tree.leaves(found.relevance), jax.tree.leaves(precise.relevance), strict=True)
    figures = np.concatenate([correlations(a, b) for a, b in pairs])
    if figures.size and (figure := float(np.median(figures))) < _CORRELATION:
        warnings.warn(
            f"the model computes in so low a precision that its rounding decides the maps of {static['method'].name}: "
            f"their correlation with maps of the same program in {precise.logits.dtype} is {figure:.2f} (median of "
            f"{figures.size}). Trace the model in float32.",
            stacklevel=3,
        )


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
        images: as of :func:`explain`.
        targets: as of :func:`explain`.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Returns:
        Attention ``[B, L, h, N, N]``; gradient and relevance ``[B, K, L, h, N, N]``; logits and targets.

    Raises:
        ValueError: an argument has the wrong rank, dtype, shape or value.
    """
    rules = named(rules)
    with full_precision():
        images, targets = checked(model, params, images, targets)
        return _attention_signals(model, params, images, targets, rules=rules)


def matches(model: Model, params: Params, images: Any, rules: Rules) -> list[Match]:
    """How many operations of a model each pattern of a composite matches.

    Args:
        model: the model.
        params: its parameters.
        images: as of :func:`explain`; their shapes matter.
        rules: what :func:`lrp_jax.composite` gave.

    Returns:
        The patterns in order, those of composites in it in their places, each default after its patterns. Print them.

    Raises:
        ValueError: ``rules`` are no composite.
    """
    images, _ = checked(model, params, images, None)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), images)
    found: list[Match] = []

    def count(given: tuple[Params, Any]) -> tuple[()]:
        found.extend(count_matches(model, *prepared(model, *given), rules))
        return ()

    jax.eval_shape(automatic(count), (params, example))
    if not found:
        raise ValueError(f"rules must be what lrp_jax.composite gave; {rules.name} is the same everywhere.")
    return found


def most_probable(model: Model, params: Params, images: Any, k: int) -> Array:
    """The classes of the k largest logits of each image, ``[B, k]``, to be given to :func:`explain`.

    Args:
        model: the model.
        params: its parameters.
        images: as of :func:`explain`.
        k: how many, at most all.
    """
    check_model(model)
    return _most_probable(model, params, images, k=k)


def batched(function: Callable[..., Any], model: Model, params: Params, images: Any, targets: Array | None) -> Any:
    """What a function of one image, ``(model, params, image, targets)``, gives for each of a batch."""

    def of_all(params: Params, images: Any, targets: Array | None) -> Any:
        def of_each(example: Any, targets: Array | None) -> Any:
            return function(model, *prepared(model, params, example), targets)

        return jax.vmap(of_each, in_axes=(0, None if targets is None else 0))(images, targets)

    return automatic(of_all)(params, images, targets)


@partial(jax.jit, static_argnames=("model", "method", "options"))
def _explain(
    model: Model,
    params: Params,
    images: Any,
    targets: Array | None,
    *,
    method: Method,
    options: tuple[tuple[str, Any], ...],
) -> Explanation:
    found = batched(partial(method.function, **dict(options)), model, params, images, targets)
    return found if isinstance(found, Explanation) else Explanation(*found)


@partial(jax.jit, static_argnames=("model", "k"))
def _most_probable(model: Model, params: Params, images: Any, *, k: int) -> Array:
    def of_each(model: Model, params: Params, image: Array, targets: None) -> Array:
        # Sorted, as XLA gathers a batch that is split over devices for a top-k.
        return jnp.argsort(classify(model, params, image), descending=True)[:k]

    found: Array = batched(of_each, model, params, images, None)
    return found


@partial(jax.jit, static_argnames=("model", "rules"))
def _attention_signals(
    model: Model, params: Params, images: Any, targets: Array | None, *, rules: Rules
) -> AttentionSignals:
    signals: AttentionSignals = batched(partial(signals_at_attention, rules=rules), model, params, images, targets)
    return signals


def _check_images(images: ArrayLike) -> Array:
    """Images as an array ``[B, H, W, channels]``, or a ValueError."""
    images = _as_array("images", images)
    if images.ndim != 4:
        raise ValueError(
            f"images must be [B, H, W, channels] (or as the model was traced), got the shape {images.shape}."
        )
    if images.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"images must be float32 or float64, normalised for the model (lrp_jax.preprocess), got {images.dtype}."
        )
    images = jnp.asarray(images)
    if not _all(jnp.isfinite, images):
        raise ValueError("images must be finite, got NaN or infinite pixels.")
    return images


def checked(model: Model, params: Params, images: Any, targets: ArrayLike | None) -> tuple[Any, Array | None]:
    """The arguments as arrays ``[B, H, W, channels]`` and ``[B, K]`` or ``[B, K, C]``, or a ValueError."""
    check_model(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        # jit reads their bytes as its own, once it was compiled for others: other numbers.
        if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} is {leaf.dtype.str}, of another byte order than this machine's: "
                "convert it by array.astype(array.dtype.newbyteorder('='))."
            )
    images = _check_images(images) if ask(model, "is_image") else ask(model, "check")(images)
    batch = jax.tree.leaves(images)[0].shape[0]  # a symbol, where a program of any batch is exported
    if targets is None:
        return images, None
    targets = _as_array("targets", targets)
    integers = jnp.issubdtype(targets.dtype, jnp.integer)
    ranks = (1, 2) if integers else (3,) if jnp.issubdtype(targets.dtype, jnp.floating) else ()
    if targets.ndim not in ranks:
        raise ValueError(
            "targets must be class indices, integers [B] or [B, K], or weights of the logits, floats [B, K, C]; got "
            f"{targets.dtype} of the shape {targets.shape}."
        )
    if targets.shape[0] != batch or targets.size == 0:
        raise ValueError(
            f"targets must be [B], [B, K] or [B, K, C] for {batch} images, K at least 1; got the shape {targets.shape}."
        )
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), images)
    classes = number_of_classes(model, params, example)
    if integers:
        if not _all(lambda t: (t >= 0) & (t < classes), targets):
            raise ValueError(f"targets must be class indices 0 to {classes - 1}, got {np.asarray(targets).tolist()}.")
        return images, jnp.asarray(targets[:, None] if targets.ndim == 1 else targets)
    if targets.shape[2] != classes:
        raise ValueError(f"weights of the logits must be [B, K, {classes}], got the shape {targets.shape}.")
    if not _all(jnp.isfinite, targets):
        raise ValueError("weights of the logits must be finite, got NaN or infinite values.")
    return images, jnp.asarray(targets)


def _is_known(x: Any) -> bool:
    """Whether the values of an array can be looked at here."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def _as_array(name: str, value: ArrayLike) -> Array | np.ndarray:
    """An array; by NumPy where it is not JAX's already, as NumPy keeps integers that are too large for JAX."""
    try:
        is_jax = any(isinstance(leaf, Array) for leaf in jax.tree.leaves(value))
        return jnp.asarray(value) if is_jax else plain(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array, got {type(value).__name__}: {error}") from error


def _all(holds: Callable[[Any], Any], x: Array | np.ndarray) -> bool:
    """Whether it holds of every value; of the traced, which have none yet, it is taken for granted."""
    if isinstance(x, jax.core.Tracer):
        return True
    with jax.ensure_compile_time_eval():  # a known array is checked inside the caller's jit as well
        return bool(np.asarray(holds(x)).all())
