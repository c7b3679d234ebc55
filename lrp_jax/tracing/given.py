"""What a trace is given: parameters and examples as arrays, or an error that names the leaf and says how to pick it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr

from lrp_jax.checks import listed
from lrp_jax.program import Variable

_PICK = (
    "Give a pytree of arrays: eqx.partition(module, eqx.is_array) picks those of an Equinox module, nnx.split(module) "
    "those of NNX; of linen, give what init gave."
)


def flattened(apply: Any, params: Any, images: Any) -> tuple[list[Any], list[Any]]:
    """The leaves of parameters and examples, all arrays or their shapes.

    Args:
        apply: the function.
        params: the parameters.
        images: the examples.

    Returns:
        The leaves of both.

    Raises:
        ValueError: there is something else, or the arguments are swapped.
    """
    if not callable(apply):
        hint = ": give its apply" if hasattr(apply, "apply") else ""
        raise ValueError(f"apply must be a function of parameters and images, got {_described(apply)}{hint}.")
    leaves = [_checked("params", path, leaf, _PICK) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    of_batch = "Give arrays with a first axis for the batch."
    example = [_checked("images", path, leaf, of_batch) for path, leaf in jax.tree_util.tree_leaves_with_path(images)]
    if not example:
        raise ValueError(f"images must be an array, or several, got {_described(images)}.")
    for (path, _), leaf in zip(jax.tree_util.tree_leaves_with_path(images), example, strict=True):
        if np.ndim(leaf) == 0 and not _swapped(leaves, example):
            raise ValueError(f"images{keystr(path)} is a number, {leaf}. {of_batch}")
    if _swapped(leaves, example):
        raise ValueError(
            f"images must be a batch of examples, got {_described(images)}, and params an array "
            f"{shape(leaves[0]).dtype}{list(np.shape(leaves[0]))}: trace takes (apply, params, images), in this order."
        )
    return leaves, example


def _swapped(leaves: Sequence[Any], example: Sequence[Any]) -> bool:
    """Whether the parameters look like images, and the images do not."""
    return len(leaves) == 1 and np.ndim(leaves[0]) == 4 and not any(np.ndim(leaf) in (2, 4) for leaf in example[:1])


def _checked(name: str, path: Any, leaf: Any, advice: str) -> Any:
    dtype = getattr(leaf, "dtype", None)
    try:
        known = isinstance(leaf, (bool, int, float, complex)) or hasattr(leaf, "shape")
        is_array = known and (dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended) or _is_number(dtype))
    except TypeError:  # of another library
        is_array = False
    if not is_array:
        raise ValueError(f"{name}{keystr(path)} must be an array, got {_described(leaf)}. {advice}")
    return leaf


def _is_number(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))


def _described(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 60 and "\n" not in text else type(value).__name__


def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a leaf, as JAX takes it."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.extended):  # as keys of random numbers are
        dtype = jax.dtypes.canonicalize_dtype(jax.dtypes.result_type(leaf))
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


def explained(images: Any, leaves: Sequence[Any], explain_wrt: str | int | None) -> int:
    """Which leaf of the examples is explained.

    Args:
        images: the examples.
        leaves: their leaves.
        explain_wrt: which one is asked for.

    Raises:
        ValueError: it is none of them, or nothing that can be explained.
    """
    place = _asked(images, leaves, explain_wrt)
    given = shape(leaves[place])
    got = f"got {given.dtype}{list(given.shape)}"
    if jnp.issubdtype(given.dtype, jnp.integer):
        if len(given.shape) != 2:
            raise ValueError(
                f"integers are tokens, [B, N], {got}. Images must be float32 or float64, [B, H, W, channels], "
                "normalised for the model (lrp_jax.preprocess)."
            )
    elif given.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"images must be float32 or float64, normalised for the model (lrp_jax.preprocess), {got}.")
    elif jax.tree_util.all_leaves([images]) and len(given.shape) not in (3, 4, 5):
        raise ValueError(
            f"images must be [B, H, W, channels], features [B, N, D], or clips [B, T, H, W, channels]; {got}. One "
            "image is a batch of one, images[None]; grey ones have an axis of one channel, images[..., None]."
        )
    return place


@contextlib.contextmanager
def hints(images: Sequence[jax.ShapeDtypeStruct], place: int) -> Iterator[None]:
    """Let errors of the function itself say what its examples were taken for.

    Args:
        images: the shapes of one example.
        place: which of them is explained.

    Raises:
        ValueError: the function fails with features ``[B, N, D]``, which may be meant for something else.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        found = images[place]
        if len(found.shape) != 3 or not jnp.issubdtype(found.dtype, jnp.floating):
            raise
        raise ValueError(
            f"apply fails with images {found.dtype}[B,{','.join(map(str, found.shape[1:]))}], which are features "
            "[B, N, D]. One image is a batch of one, images[None]; grey ones have an axis of one channel, "
            f"images[..., None]. The error: {error}"
        ) from error


def _asked(images: Any, leaves: Sequence[Any], explain_wrt: str | int | None) -> int:
    names = list(images) if isinstance(images, Mapping) else list(range(len(leaves)))
    if len(leaves) == 1 and explain_wrt is None:
        return 0
    order = sorted(names) if isinstance(images, Mapping) else names
    if explain_wrt not in names:
        raise ValueError(
            f"explain_wrt must say which of the inputs is explained, one of {', '.join(map(repr, order))}; got "
            f"{explain_wrt!r}."
        )
    return order.index(explain_wrt)


def matched(params: Any, structure: Any, variables: Sequence[Variable]) -> list[Array]:
    """The leaves of parameters as they were traced.

    Args:
        params: the parameters.
        structure: of those that were traced.
        variables: their shapes and dtypes.

    Raises:
        ValueError: another structure, shape or dtype; the leaf is named.
    """
    found = jax.tree.structure(params)
    if found != structure:
        known, names = (
            [keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            for tree in (structure.unflatten(variables), params)
        )
        parts = [
            f"{what} {listed([f'params{n}' for n in some], 5)}"
            for what, some in (
                ("missing", [n for n in known if n not in names]),
                ("unknown", [n for n in names if n not in known]),
            )
            if some
        ]
        raise ValueError(
            "params must be of the structure with which the model was traced: "
            f"{'; '.join(parts) or f'{structure}, got {found}'}."
        )
    arrays = []
    for (path, leaf), variable in zip(jax.tree_util.tree_leaves_with_path(params), variables, strict=True):
        leaf = leaf if isinstance(leaf, Array) else jnp.asarray(_checked("params", path, leaf, _PICK))
        if leaf.shape != variable.shape or leaf.dtype != variable.dtype:
            raise ValueError(
                f"params{keystr(path)} must be {variable}, as the model was traced, got "
                f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]: trace it again for other shapes and dtypes."
            )
        arrays.append(leaf)
    return arrays
