"""Which pixels a token is of: found by running the program on a rule set of its own.

Its operations are means of what they read, whatever the parameters are, so that each value is a mixture of what it
depends on. Coordinates that go in come out as the centre of the pixels that reach a token.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.program import Variable
from lrp_jax.tracing import products
from lrp_jax.tracing.interpret import run
from lrp_jax.tracing.mixture import MIXTURE
from lrp_jax.tracing.places import block_starts, cut_points
from lrp_jax.tracing.steps import Loop, Recognised, Site


class UnclearError(Exception):
    """The layout cannot be told, and why.

    Attributes:
        is_local: whether attention is found to be of parts of the tokens, which is no layout of theirs.
    """

    def __init__(self, why: str, *, is_local: bool = False) -> None:
        super().__init__(why)
        self.is_local = is_local


def tolerance_of(size: Sequence[int]) -> float:
    """By how many pixels places of an input of a size may differ and count as one."""
    return 1e-3 * max(size)


def value_at(program: Recognised, values: Sequence[Any], variable: Variable) -> Array:
    """The mixture that a variable is, the first time that it is computed."""
    for i, step in enumerate(program.steps):
        if variable in step.outputs:
            part = Recognised(program.inputs, [variable], program.steps[: i + 1])
            return run(part, MIXTURE, values)[0]
        if isinstance(step, Loop) and step.body.has(variable):
            part = Recognised(program.inputs, list(step.inputs), program.steps[:i])
            given = run(part, MIXTURE, values)
            fixed = step.consts + step.carry
            return value_at(step.body, [*given[:fixed], *(x[0] for x in given[fixed:])], variable)
    return values[program.inputs.index(variable)]


def compiled(function: Callable[..., Any], *arguments: np.ndarray) -> Any:
    """What a function gives, compiled ahead: known inside the caller's jit as well, its zeros never made."""
    return jax.jit(function).lower(*arguments).compile()(*arguments)


def centres(
    program: Recognised, example: int, variables: Sequence[Variable], axes: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The centres of what reaches each value of some variables, in coordinates of the example's first axes.

    Args:
        program: the program.
        example: which of its inputs is the example, ``[1, H, W, channels]`` or ``[1, N, D]``.
        variables: the variables.
        axes: how many coordinates, 2 or 1.

    Returns:
        For each, whether anything reaches it, bool of its shape; and the centre, ``[axes, *shape]``, NaN where nothing
        does.
    """
    shape, dtype = program.inputs[example].shape, program.inputs[example].dtype
    coordinates = np.stack([np.ones(shape), *(np.broadcast_to(i, shape) for i in np.indices(shape)[1 : 1 + axes])])

    def mixtures(tangents: Array) -> list[Array]:
        zeros = [jnp.zeros(v.shape, v.dtype) for v in program.inputs]

        def of_example(x: Array) -> list[Array]:
            return [value_at(program, [*zeros[:example], x, *zeros[example + 1 :]], v) for v in variables]

        return jax.vmap(lambda t: jax.jvp(of_example, (zeros[example],), (t,))[1])(tangents)

    found = []
    all_of_them = compiled(mixtures, coordinates.astype(dtype))
    for mass, *moments in (np.asarray(mixture, np.float64) for mixture in all_of_them):
        reached = mass > 1e-6 * mass.max(initial=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append((reached, np.stack([np.where(reached, m / mass, np.nan) for m in moments])))
    return found


#: Where the rows and columns of a grid have their centres, see :func:`lrp_jax.heatmaps`.
Centres = tuple[tuple[float, ...], ...]


def tokens(
    program: Recognised, example: int, site: Site, axes: int
) -> tuple[tuple[int, ...], np.ndarray, Centres | None]:
    """The grid of the tokens that attend, their order, and where they are.

    Args:
        program: the program.
        example: which of its inputs is the example.
        site: its first attention.
        axes: 2 for an image, 1 for a sequence.

    Returns:
        The grid, (rows, columns) or (tokens,); the places of the tokens, those that are no patches first, then the
        patches row by row; and the centres of rows and columns, None if these fill the image.

    Raises:
        UnclearError: they are no grid, or attend in windows.
    """
    values = site.product.inputs[site.values]
    _, contracted, _ = products.axes(site.product, site.values)
    key = next(i for i in contracted if values.shape[i] > 1) if values.size > 1 else contracted[-1]
    ((reached, centre),) = centres(program, example, [values], axes)
    n = values.shape[key]
    reached = np.asarray(np.moveaxis(reached, key, 0).reshape(n, -1).any(axis=1))
    centre = np.moveaxis(centre, key + 1, 1).reshape(axes, n, -1)
    patches = np.flatnonzero(reached)
    places = centre[:, patches]
    if not patches.size:
        raise UnclearError("no token is of a part of the input")
    spread = np.nanmax(places, axis=2) - np.nanmin(places, axis=2)
    size = program.inputs[example].shape[1 : 1 + axes]
    tolerance = tolerance_of(size)
    if spread.max() > tolerance:
        raise UnclearError(
            f"attention of {n} tokens is within windows or along an axis, not of all with all", is_local=True
        )
    places = np.nanmean(places, axis=2)
    found = _grid(places, tolerance)
    if found is None:
        raise UnclearError(f"{len(patches)} of {n} tokens are of parts of the input, which are no grid")
    grid, order = found
    return grid, np.concatenate([np.flatnonzero(~reached), patches[order]]), _centres(places[:, order], grid, size)


def _centres(places: np.ndarray, grid: tuple[int, ...], size: Sequence[int]) -> Centres | None:
    """The centres of the lines of a grid, in parts of a size; None, if its cells fill it.

    Args:
        places: of the cells, in pixels, row by row, ``[axes, cells]``.
        grid: the grid.
        size: of the image.
    """
    centres, fills = [], True
    for axis, (lines, pixels) in enumerate(zip(grid, size, strict=True)):
        others = tuple(i for i in range(len(grid)) if i != axis)
        at = places[axis].reshape(grid).mean(axis=others)
        if lines > 3:
            # Patches that reach over the edge have the centre of what is inside: they are in line with the others.
            inner, number = at[1:-1], np.arange(lines)
            step = np.median(np.diff(inner))
            in_line = np.median(inner - step * number[1:-1]) + step * number
            at = in_line if np.median(np.abs(inner - in_line[1:-1])) < 1e-3 * pixels else at
        at = (at + 0.5) / pixels
        fills &= bool(np.abs(at - (np.arange(lines) + 0.5) / lines).max() < 1e-3)
        centres.append(tuple(at.tolist()))
    return None if fills else tuple(centres)


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """Tokens or a feature map that all relevance passes through.

    Attributes:
        variable: of the program, or of a loop in it.
        grid: its rows and columns; or its tokens.
        axes: of the variable, those of the grid.
        order: the places of the grid's cells, row by row, along these axes in one.
        centres: where its rows and columns are, see :func:`lrp_jax.heatmaps`; None: they fill the image.
    """

    variable: Variable
    grid: tuple[int, ...]
    axes: tuple[int, ...]
    order: np.ndarray
    centres: Centres | None

    def zeros(self) -> Array:
        """What is added there, to read relevance."""
        return jnp.zeros(self.variable.shape, self.variable.dtype)

    def maps(self, relevance: Array) -> Array:
        """Relevance of the variable, summed over all but the grid."""
        rest = [i for i in range(relevance.ndim) if i not in self.axes]
        cells = relevance.transpose([*self.axes, *rest])
        return cells.reshape(-1, math.prod(relevance.shape[i] for i in rest)).sum(axis=1)[self.order].reshape(self.grid)


def stages(program: Recognised, example: int, axes: int) -> list[Stage]:
    """The last variable of each resolution that all paths from the example to the output pass through.

    Args:
        program: the program.
        example: which of its inputs is the example.
        axes: 2 for an image, 1 for a sequence.

    Returns:
        The stages, from the example on.
    """
    moved = {program.inputs[example]}
    for step in program.steps:
        is_move = step.operation is not None and step.operation.name == "move"
        if is_move and step.active and moved.issuperset(step.active):
            moved.update(step.outputs)
    through = [variable for variable in cut_points(program) if variable not in moved]
    first: dict[tuple[int, ...], Variable] = {}
    for variable in through:
        if len(variable.shape) > 1 + axes // 2 and variable.size > variable.shape[-1]:
            first.setdefault(variable.shape, variable)
    last = {variable.shape: variable for variable in through}
    found: list[Stage] = []
    size = program.inputs[example].shape[1 : 1 + axes]
    for shape, (reached, centre) in zip(first, centres(program, example, list(first.values()), axes), strict=True):
        layout = _layout(reached, centre, size)
        if layout is not None:
            found = [stage for stage in found if stage.grid != layout[0]]
            found.append(Stage(last[shape], *layout))
    return found


def _layout(
    reached: np.ndarray, centre: np.ndarray, size: tuple[int, ...], *, others: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, Centres | None] | None:
    """The grid of a variable in an image of a size, its axes, the places of its cells, and their centres.

    None: it has none. With ``others``, also where some of it is of no part of the input, as a class token.
    """
    tolerance = tolerance_of(size)
    spread = np.nanmax if others else np.max, np.nanmin if others else np.min
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the mean of nothing
        extents = [spread[0](centre, axis=i) - spread[1](centre, axis=i) for i in range(1, centre.ndim)]
        varying = tuple(i for i, extent in enumerate(extents) if np.nan_to_num(extent).max() > tolerance)
        if not reached.any() or not varying:
            return None
        rest = tuple(i for i in range(reached.ndim) if i not in varying)
        places = np.nanmean(centre, axis=tuple(i + 1 for i in rest)).reshape(len(size), -1)
    cells = np.flatnonzero(~np.isnan(places).any(axis=0))
    found = _grid(places[:, cells], tolerance)
    if found is None:
        return None
    grid, order = found
    return grid, varying, cells[order], _centres(places[:, cells[order]], grid, size)


def stage(program: Recognised, example: int, variable: Variable, axes: int) -> Stage | None:
    """A variable with its grid; None, if it has none. Arguments as of :func:`stages`."""
    ((reached, centre),) = centres(program, example, [variable], axes)
    found = _layout(reached, centre, program.inputs[example].shape[1 : 1 + axes], others=True)
    return found and Stage(variable, *found)


def entering(program: Recognised, example: int, axes: int) -> Stage | None:
    """The tokens that enter the first block of attention: the last before it that all paths pass through.

    Args:
        program: the program.
        example: which of its inputs is the example.
        axes: 2 for an image, 1 for a sequence.

    Returns:
        The tokens; None, if there is no such variable, or they have no grid.
    """
    starts = block_starts(program, program.inputs[example])
    while starts and isinstance(starts[0][1], Loop):
        starts = block_starts(starts[0][1].body, None)
    return stage(program, example, starts[0][0], axes) if starts else None


def _grid(places: np.ndarray, tolerance: float) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Rows and columns of positions ``[axes, n]``, and the order that puts them row by row; None: they are no grid."""
    lines = [_lines(p, tolerance) for p in places]
    grid = tuple(int(line.max()) + 1 for line in lines)
    order = np.ravel_multi_index(lines, grid)
    if len(order) != np.prod(grid) or len(set(order.tolist())) != len(order):
        return None
    return grid, np.argsort(order)


def _lines(positions: np.ndarray, tolerance: float) -> np.ndarray:
    """The number of each position among the different ones."""
    order = np.argsort(positions, kind="stable")
    steps = np.diff(positions[order]) > tolerance
    numbers = np.empty(len(positions), int)
    numbers[order] = np.concatenate([[0], np.cumsum(steps)])
    return numbers
