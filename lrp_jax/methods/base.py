"""What an attribution method is, and what several of them share.

A method is a function of one image, registered in :data:`METHODS` by its name::

    @register(class_specific=True, resolution="pixel", reference="...")
    def my_method(model, params, image, targets, *, option=1) -> Explanation:
        # its documentation, of which the first line says what the map is
        ...

Every method has these arguments, and keyword-only options of its own:

- ``model``: a :class:`lrp_jax.Model`;
- ``params``: its parameters;
- ``image``: ``[H, W, channels]``, floating;
- ``targets``: int ``[K]``, classes; float ``[K, C]``, weights of the logits; or None, the predicted class.

It returns an :class:`lrp_jax.Explanation` of the image, or a tuple of what it holds: logits ``[C]``, the targets, and
relevance ``[K, rows, cols]`` on the grid of patches or of pixels. An option out of range is a ValueError, raised while
shapes are taken, before anything is computed. :func:`lrp_jax.explain` batches and jits methods; options are static.

Letters: K targets, C classes, L blocks, h heads, N tokens. A attention, G and R its gradient and relevance for a
target, ``x+ = max(x, 0)``; "the row" of a matrix ``[N, N]`` is what the head reads of it: the class token's, for a
class token, and :func:`lrp_jax.model.readout` times the matrix in general.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.model import Model, Params, ask, on_grid
from lrp_jax.outline import check_attention
from lrp_jax.rules import RULES, Rules
from lrp_jax.signals import Explanation
from lrp_jax.walk import Fold


@dataclasses.dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        function: what explains one image, see :mod:`lrp_jax.methods.base`.
        class_specific: whether the map depends on the target.
        resolution: of the map, ``"patch"`` or ``"pixel"``.
        reference: where it comes from.
        signed: whether values below zero speak against the target, instead of less for it.
    """

    function: Callable[..., Explanation]
    class_specific: bool
    resolution: Literal["patch", "pixel"]
    reference: str
    signed: bool = False

    @property
    def name(self) -> str:
        """Its name in :data:`METHODS`."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def options(self) -> Mapping[str, Any]:
        """Its options and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def recorded(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Its options, those given and the defaults of the others, as texts to be kept.

        Args:
            given: options of it.

        Raises:
            ValueError: rules have the name of others.
        """
        rules = given.get("rules")
        if isinstance(rules, Rules) and RULES.get(rules.name, rules) != rules:
            raise ValueError(
                f"rules are recorded by name, and {rules.name!r} names others: give yours a name of their own."
            )
        return {name: getattr(value, "name", str(value)) for name, value in {**self.options, **given}.items()}


#: The methods by name.
METHODS: dict[str, Method] = {}


def register(
    *, class_specific: bool, resolution: Literal["patch", "pixel"], reference: str, signed: bool = False
) -> Callable[[Callable[..., Explanation]], Callable[..., Explanation]]:
    """Make a function a method, under its own name.

    Args:
        class_specific: whether the map depends on the target.
        resolution: of the map, ``"patch"`` or ``"pixel"``.
        reference: where it comes from.
        signed: whether values below zero speak against the target, instead of less for it; maps are drawn accordingly.

    Returns:
        The decorator. It gives the function back as it is.
    """

    def decorate(function: Callable[..., Explanation]) -> Callable[..., Explanation]:
        METHODS[function.__name__] = Method(function, class_specific, resolution, reference, signed)
        return function

    return decorate


#: ``(attention, *sent) -> matrices``, ``[h, c, N]`` of c queries: what a method makes of an attention and of what each
#: rule set means by what it sends there.
Combine = Callable[..., Array]


def rollout(combine: Combine, *, scaled: bool = False) -> Fold:
    """The row of ``(I + M_{L-1}) ... (I + M_s)``, ``[N]``, from the last block to the first: ``v <- v + v M_l``.

    Args:
        combine: gives M, of which the mean over heads is taken.
        scaled: whether each row of ``I + M`` is divided by its sum.
    """

    def read(state: tuple[Array, ...], maps: Array, sent: tuple[Array, ...], rows: Array | None) -> tuple[Array, ...]:
        (v,) = state
        matrix = combine(maps, *sent).mean(axis=0)
        weights = _of_rows(v, rows, len(matrix))
        if not scaled or v.shape != matrix.shape[1:]:  # a pooling attention is where the row begins
            return (weights @ matrix,)
        divided = weights / (1 + matrix.sum(axis=1))
        places = jnp.arange(len(matrix)) if rows is None else rows
        return ((divided @ matrix).at[places].add(divided - weights, mode="drop"),)

    return Fold(read, lambda heads, tokens: ((tokens,),), carried=True)


def row(*combine: Combine, read: Array | None) -> Fold:
    """The row of matrices of one block, of each head, ``[h, N]``: what the head reads of them.

    Args:
        *combine: give the matrices.
        read: what :func:`lrp_jax.model.readout` gives.
    """
    weights = jnp.ones(1) if read is None else read

    def found(
        state: tuple[Array, ...], maps: Array, sent: tuple[Array, ...], rows: Array | None, weights: Array
    ) -> tuple[Array, ...]:
        of_rows = _of_rows(weights, rows, maps.shape[1]).astype(maps.dtype)
        return tuple(jnp.einsum("n,hnm->hm", of_rows, of(maps, *sent)) for of in combine)

    return Fold(found, lambda heads, tokens: ((heads, tokens),) * len(combine), given=(weights,))


def _of_rows(v: Array, rows: Array | None, n: int) -> Array:
    """Those of ``v`` ``[N]`` that are of some queries; 0 beyond the last."""
    return v[:n] if rows is None else v.at[rows].get(mode="fill", fill_value=0)


def patches(tokens: Array, model: Model) -> Array:
    """Those of ``tokens`` ``[..., N]`` that attend and are patches, as a grid ``[..., rows, cols]``."""
    order = ask(model, "order")
    return on_grid(tokens if order is None else tokens[..., order], model.grid)


def for_each(targets: Array, relevance: Array) -> Array:
    """One map for all targets."""
    return jnp.broadcast_to(relevance, (len(targets), *relevance.shape))


def weighted_sum(function: Callable[[Array], Array], inputs: Array, weights: np.ndarray, chunk: int) -> Array:
    """The sum of ``weights[i] * function(inputs[i])``, ``chunk`` of them at a time."""
    chunk = min(chunk, len(weights))
    missing = -len(weights) % chunk
    inputs = jnp.concatenate([inputs, inputs[:missing]]).reshape(-1, chunk, *inputs.shape[1:])
    shape = jax.eval_shape(function, inputs[0, 0])
    weights = np.append(weights, np.zeros(missing)).reshape(-1, chunk).astype(shape.dtype)

    def step(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        some, of_some = part
        return total + jnp.tensordot(of_some, jax.vmap(function)(some), axes=1), None

    return jax.lax.scan(step, jnp.zeros(shape.shape, shape.dtype), (inputs, jnp.asarray(weights)))[0]


def check_block(model: Model, params: Params, image: Array, *, negative: bool = False, **option: Any) -> int:
    """The number of blocks, after a look at an option that is one of them."""
    ((name, value),) = option.items()
    layers = check_attention(model, params, image).layers
    lowest = -layers if negative else 0
    if not is_integer(value) or not lowest <= value < layers:
        raise ValueError(f"{name} must be a block, {lowest} to {layers - 1}; got {value!r}.")
    return layers


def check_counts(**options: Any) -> None:
    """Refuse options that are no integers of at least 1."""
    for name, value in options.items():
        if not is_integer(value) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_truths(**options: Any) -> None:
    """Refuse options that are neither True nor False."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}.")


def check_seed(seed: Any) -> None:
    """Refuse what is no seed of a random key."""
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer of at least 0 and below 2**32, got {seed!r}.")


def sizes(name: str, value: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    """An option of pixels as (rows, columns), or of tokens as (tokens,)."""
    n = len(default)
    found = default if value is None else value if isinstance(value, tuple) and len(value) == n else (value,) * n
    if not all(is_integer(v) and v >= 1 for v in found):
        raise ValueError(
            f"{name} must be {'one integer' if n == 1 else 'one or two integers'} of at least 1, got {value!r}."
        )
    return found


def colour(value: Any, image: Array) -> Array:
    """``value``, a number or one for each channel, as an array ``[1, 1, 1 or channels]``, as many axes as the image."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) not in (1, image.shape[-1]) or not all(is_real(v) for v in values):
        raise ValueError(f"baseline must be 1 or {image.shape[-1]} finite numbers, got {value!r}.")
    return jnp.asarray(values, image.dtype).reshape(*[1] * (image.ndim - 1), -1)


def is_integer(value: Any) -> bool:
    """Whether an option is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether an option is a finite number; True is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
