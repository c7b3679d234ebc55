"""What each primitive does with the batch: on which axis of what it gives it is, see :mod:`lrp_jax.tracing.rows`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lrp_jax.program import Equation
from lrp_jax.tracing.rows import CoupledError, Handler, Rows, State, States, Walk, relocated


def _each(walk: Walk, equation: Equation, states: States) -> list[State]:
    return list(states) if len(states) == len(equation.outputs) else [states[0]] * len(equation.outputs)


def _without(axes: Callable[[Equation], Sequence[int]], *, kept: bool) -> Callable[..., State]:
    """Of what computes along some axes, and keeps or drops them."""

    def handler(walk: Walk, equation: Equation, states: States) -> State:
        rows, rank = walk.together(equation, states), len(equation.inputs[0].shape)
        along = {axis % rank for axis in axes(equation)}
        if rows.axis in along:
            raise CoupledError(equation)
        return rows if kept else dataclasses.replace(rows, axis=rows.axis - sum(a < rows.axis for a in along))

    return handler


def _reshape(walk: Walk, equation: Equation, states: States) -> State:
    (variable, *_), (rows, *_) = equation.inputs, states
    found = relocated(variable.shape, rows, equation.outputs[0].shape, walk.batch)
    if found is None:
        raise CoupledError(equation)
    return found


def _transpose(walk: Walk, equation: Equation, states: States) -> State:
    return Rows(list(equation.params["permutation"]).index(states[0].axis), states[0].outer)


def _broadcast(walk: Walk, equation: Equation, states: States) -> State:
    return Rows(equation.params["broadcast_dimensions"][states[0].axis], states[0].outer)


def _parts(walk: Walk, equation: Equation, states: States) -> list[State]:
    """A slice or a split: of the batch's axis, of whole runs."""
    (rows, *_), (x, *_) = states, equation.inputs
    run = walk.batch * walk.inner(rows, x.shape)
    if equation.primitive == "slice":
        starts = [equation.params["start_indices"][rows.axis]]
        stride = (equation.params["strides"] or [1] * len(x.shape))[rows.axis]
    else:
        sizes = equation.params["sizes"] if equation.params["axis"] == rows.axis else ()
        starts, stride = [int(n) for n in np.cumsum([0, *sizes])[:-1]] or [0], 1
    found: list[State] = []
    for start, made in zip(starts * (len(equation.outputs) // len(starts)), equation.outputs, strict=True):
        size = made.shape[rows.axis]
        if stride != 1 or start % run or size % run or not size:
            raise CoupledError(equation)
        found.append(Rows(rows.axis, size // run))
    return found


def _concatenate(walk: Walk, equation: Equation, states: States) -> State:
    rows = next(state for state in states if state is not None)
    if equation.params["dimension"] != rows.axis:
        return _joined(walk, equation, states, rows)
    alike = {(s, v.shape) for s, v in zip(states, equation.inputs, strict=True)}
    if rows.outer != 1 or len(alike) != 1:
        raise CoupledError(equation)
    return Rows(rows.axis, len(states))


def _joined(walk: Walk, equation: Equation, states: States, rows: Rows) -> State:
    """Along another axis than the batch's; indices may have the place in the batch beside what is found for each."""
    first, placed = 0, []
    for variable, state in zip(equation.inputs, states, strict=True):
        if state is None and not walk.is_uniform(variable, rows):
            is_last = equation.params["dimension"] == len(variable.shape) - 1 and variable.shape[-1] == 1
            if rows != Rows(rows.axis) or not is_last or not walk.is_position(variable, 0, rows.axis):
                raise CoupledError(equation)
            placed.append(first)
        elif state is not None and state != rows:
            raise CoupledError(equation)
        first += variable.shape[-1]
    if len(placed) > 1:
        raise CoupledError(equation)
    return dataclasses.replace(rows, placed=placed[0]) if placed else rows


def _stack(walk: Walk, equation: Equation, states: States) -> State:
    rows = walk.together(equation, states)
    return Rows(rows.axis + (rows.axis >= equation.params["axis"]), rows.outer)


def _tile(walk: Walk, equation: Equation, states: States) -> State:
    return Rows(states[0].axis, states[0].outer * equation.params["reps"][states[0].axis])


def _pad(walk: Walk, equation: Equation, states: States) -> State:
    rows, value = states
    if rows is None or value is not None or tuple(equation.params["padding_config"][rows.axis]) != (0, 0, 0):
        raise CoupledError(equation)
    return rows


def _window(walk: Walk, equation: Equation, states: States) -> State:
    p, axis = equation.params, states[0].axis if states[0] else -1
    if axis < 0 or any(states[1:]):
        raise CoupledError(equation)
    is_one = p["window_dimensions"][axis] == 1 == p["window_strides"][axis]
    dilated = max(p.get("base_dilation", [1] * (axis + 1))[axis], p.get("window_dilation", [1] * (axis + 1))[axis]) > 1
    if not is_one or dilated or tuple(p["padding"][axis]) != (0, 0):
        raise CoupledError(equation)
    return states[0]


def _matrices(walk: Walk, equation: Equation, states: States) -> State:
    rows = walk.together(equation, states)
    if rows.axis >= len(equation.inputs[0].shape) - 2:
        raise CoupledError(equation)
    return rows


def _dot_general(walk: Walk, equation: Equation, states: States) -> State:
    contracted, batch = equation.params["dimension_numbers"]
    side = 0 if states[0] else 1
    rows, other = states[side], 1 - side
    if rows.axis in batch[side]:
        place = list(batch[side]).index(rows.axis)
        wanted: list[State] = [rows, rows]
        wanted[other] = Rows(batch[other][place], rows.outer)
        walk.agree(equation, wanted, states)
        return Rows(place, rows.outer)
    if rows.axis in contracted[side] or states[other]:
        raise CoupledError(equation)
    free = [
        [i for i in range(len(v.shape)) if i not in (*contracted[s], *batch[s])] for s, v in enumerate(equation.inputs)
    ]
    return Rows(len(batch[0]) + (len(free[0]) if side else 0) + free[side].index(rows.axis), rows.outer)


def _convolution(walk: Walk, equation: Equation, states: States) -> State:
    numbers, (x, kernel) = equation.params["dimension_numbers"], states
    if kernel or x is None or x.axis != numbers.lhs_spec[0] or equation.params["batch_group_count"] != 1:
        raise CoupledError(equation)
    return Rows(numbers.out_spec[0], x.outer)


def _gather(walk: Walk, equation: Equation, states: States) -> State:
    numbers, (x, indices) = equation.params["dimension_numbers"], equation.inputs
    of_x, of_indices = states
    placed = of_indices.placed if of_indices else None
    offsets = tuple(map(int, numbers.offset_dims))
    places = [i for i in range(len(equation.outputs[0].shape)) if i not in offsets]  # of the axes of the indices
    if of_x is None:
        axis, outer = of_indices.axis, of_indices.outer
        if axis in numbers.start_indices_batching_dims:
            batching = numbers.operand_batching_dims[numbers.start_indices_batching_dims.index(axis)]
            walk.agree(equation, [Rows(batching, outer), of_indices], states)
        elif axis == len(indices.shape) - 1 or placed is not None:
            raise CoupledError(equation)
        return Rows(places[axis], outer)
    axis, outer = of_x.axis, of_x.outer
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if axis in numbers.operand_batching_dims and placed is None:
        batching = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]
        walk.agree(equation, [of_x, Rows(batching, outer)], states)
        return Rows(places[batching], outer)
    if axis not in dropped and equation.params["slice_sizes"][axis] == x.shape[axis] and of_indices is None:
        kept = [i for i in range(len(x.shape)) if i not in dropped]
        return Rows(offsets[kept.index(axis)], outer)
    pure = x.shape[axis] == walk.batch and axis in numbers.start_index_map
    axes = [of_indices.axis] if of_indices else range(len(indices.shape) - 1)
    for along in axes if pure else ():
        component = numbers.start_index_map.index(axis)
        if placed in (None, component) and walk.is_position(indices, component, along):
            return Rows(places[along])
    raise CoupledError(equation)


def _scatter(walk: Walk, equation: Equation, states: States) -> State:
    """As gathering, the other way: into each example what is of it."""
    n = equation.params["dimension_numbers"]
    x, indices, updates = equation.inputs
    dropped = (*n.inserted_window_dims, *n.operand_batching_dims)
    kept = [i for i in range(len(x.shape)) if i not in dropped]
    places = [i for i in range(len(updates.shape)) if i not in n.update_window_dims]  # of the axes of the indices
    outer = next(state.outer for state in states if state is not None)
    wanted: list[State]
    for axis in range(len(x.shape)) if states[0] is None else [states[0].axis]:
        if axis in n.operand_batching_dims:
            along = n.scatter_indices_batching_dims[n.operand_batching_dims.index(axis)]
            wanted = [Rows(axis, outer), Rows(along, outer), Rows(places[along], outer)]
        elif axis in kept and updates.shape[n.update_window_dims[kept.index(axis)]] == x.shape[axis]:
            wanted = [Rows(axis, outer), None, Rows(n.update_window_dims[kept.index(axis)], outer)]
        elif axis in n.scatter_dims_to_operand_dims and x.shape[axis] == walk.batch:
            component = n.scatter_dims_to_operand_dims.index(axis)
            found = [i for i in range(len(indices.shape) - 1) if walk.is_position(indices, component, i)]
            if not found or (states[1] and states[1].placed not in (None, component)):
                continue
            wanted = [Rows(axis), states[1], Rows(places[found[0]])]
        else:
            continue
        try:
            walk.agree(equation, wanted, states)
        except CoupledError:
            continue
        return wanted[0]
    raise CoupledError(equation)


def _dynamic(walk: Walk, equation: Equation, states: States) -> State:
    """A slice from where another value says, or its replacement."""
    arrays = 1 if equation.primitive == "dynamic_slice" else 2
    rows = walk.together(equation, states)
    whole = equation.inputs[0].shape[rows.axis]
    part = equation.outputs[0] if arrays == 1 else equation.inputs[1]
    if any(states[arrays:]) or part.shape[rows.axis] != whole:
        raise CoupledError(equation)
    return rows


_REDUCTIONS = (
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"),
    *("argmax", "argmin"),
)
_SCATTERS = (
    *("scatter", "scatter-add", "scatter_add", "scatter-sub", "scatter_sub", "scatter-mul", "scatter_mul"),
    *("scatter-min", "scatter_min", "scatter-max", "scatter_max"),
)
_ONE_BY_ONE = (
    *("bitcast_convert_type", "device_put", "optimization_barrier", "random_bits", "random_split"),
    *("random_unwrap", "random_wrap"),
)
_MATRICES = ("cholesky", "eig", "eigh", "householder_product", "lu", "qr", "svd", "triangular_solve")
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
#: By primitive.
HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_ONE_BY_ONE, _each),
    **dict.fromkeys(_MATRICES, _matrices),
    **dict.fromkeys(_REDUCTIONS, _without(lambda e: e.params["axes"], kept=False)),
    **dict.fromkeys(("reduce", "squeeze"), _without(lambda e: e.params["dimensions"], kept=False)),
    "unstack": _without(lambda e: (e.params["axis"],), kept=False),
    **dict.fromkeys(_CUMULATIVE, _without(lambda e: (e.params["axis"],), kept=True)),
    "sort": _without(lambda e: (e.params["dimension"],), kept=True),
    "top_k": _without(lambda e: (e.params.get("axis", -1),), kept=True),
    "approx_top_k": _without(lambda e: (e.params["reduction_dimension"],), kept=True),
    "rev": _without(lambda e: e.params["dimensions"], kept=True),
    "fft": _without(lambda e: range(-len(e.params["fft_lengths"]), 0), kept=True),
    **dict.fromkeys(("reshape", "expand_dims"), _reshape),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    **dict.fromkeys(("slice", "split"), _parts),
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "pad": _pad,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _window),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    **dict.fromkeys(_SCATTERS, _scatter),
    **dict.fromkeys(("dynamic_slice", "dynamic_update_slice"), _dynamic),
}
