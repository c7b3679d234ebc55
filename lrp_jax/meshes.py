"""Meshes of devices: XLA splits the work of the library, however the arrays that it is given lie."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Before JAX 0.7, axes of meshes are not Explicit unless asked for, and there is no public way out of it.
_auto_axes: Any = getattr(jax.sharding, "auto_axes", None)
_set_mesh: Any = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh  # type: ignore[attr-defined]  # 0.6


def entered(mesh: Mesh) -> AbstractContextManager[Any]:
    """Let a mesh be that of what is computed here, whichever the caller has set."""
    found: AbstractContextManager[Any] = _set_mesh(mesh)
    return found


def automatic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function in which no axis of a mesh is Explicit, as those of ``jax.make_mesh`` are.

    Where axes are Explicit, every operation must say how its result is split over the devices, and rules are made of
    operations that do not.

    Args:
        function: of trees of arrays, ``(parameters, *batches)``, inside of ``jax.jit``; what it gives has the leading
            axis of the batches, if there are any.

    Returns:
        The same function. What it gives lies on the same mesh, split along the batch as the batches are.
    """
    if _auto_axes is None:
        return function

    def on_mesh(params: Any, *batches: Any) -> Any:
        split = [jax.typeof(x).sharding for x in jax.tree.leaves(batches)]
        placed = [*split, *(jax.typeof(x).sharding for x in jax.tree.leaves(params))]
        meshes = [jax.sharding.get_abstract_mesh(), *(sharding.mesh for sharding in placed)]
        mesh = next((mesh for mesh in meshes if _explicit(mesh)), None)
        if mesh is None:
            return function(params, *batches)
        along = next((sharding.spec[0] for sharding in split if len(sharding.spec) and sharding.spec[0]), None)
        out = NamedSharding(mesh, PartitionSpec(along))
        return _auto_axes(function, axes=_explicit(mesh), out_sharding=out)(params, *batches)

    return on_mesh


def _explicit(mesh: Any) -> tuple[str, ...]:
    """The axes of a mesh that are Explicit."""
    return tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == jax.sharding.AxisType.Explicit
    )
