"""Where the channels of images are, first or last: found by what products with parameters do to the axes of pixels.

The axes of the example are followed through what moves values. Of each axis of a variable, it is known which axes of
the example it is made of, in rows: the reshape of ``[1, 32, 32, 3]`` to patches ``[1, 4, 8, 4, 8, 3]`` splits rows and
columns. Rows and columns are split, pooled, or slid over by a convolution; channels are summed up whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
from jax import Array

from lrp_jax.program import Equation, Program, Variable
from lrp_jax.tracing import products

#: Which of the axes of images ``[B, ., ., .]`` has the channels, by the name of the order.
ORDERS = {"first": 1, "last": 3}

#: The axes of the example that an axis of a variable is made of, in row-major order, and how many values each has.
Made = tuple[tuple[int, int], ...]
Axes = tuple[Made, ...]


def find(program: Program, example: Variable, params: Sequence[Variable]) -> str | None:
    """Which order images have.

    Args:
        program: the program, calls inlined.
        example: its input of images, of four axes.
        params: its inputs of parameters.

    Returns:
        ``"first"`` or ``"last"``; None: the program does not tell.
    """
    for of in _readers(program, example, params):
        found = _order(*_evidence(*of))
        if found is not None:
            return found
    return None


def check_features(program: Program, example: Variable, params: Sequence[Variable]) -> None:
    """Refuse grey images ``[B, H, W]``, which would be taken for features ``[B, N, D]``.

    Args:
        program: the program, calls inlined.
        example: its input of three axes.
        params: its inputs of parameters.

    Raises:
        ValueError: the program takes both rows and columns apart, into patches or by a convolution, or reads both whole
            in one product with parameters.
    """
    for equation, known, learned in _readers(program, example, params):
        spatial, _ = _evidence(equation, known, learned)
        summed, free = _contracted(equation, known, learned)
        whole = {1, 2} <= summed - free
        if whole or {1, 2} <= spatial:
            does = "reads all values in one product" if whole else "takes rows and columns apart"
            raise ValueError(
                f"features must be [B, N, D], of N parts each; got {list(example.shape)} of one example, of which the "
                f"model {does} ({equation.line}). If they are grey images, give them an axis of one channel, "
                "images[..., None], and trace lambda params, images: apply(params, images[..., 0])."
            )


def _readers(
    program: Program, example: Variable, params: Sequence[Variable]
) -> Iterator[tuple[Equation, dict[Variable, Axes], set[Variable]]]:
    """The equations that read values of the example, what is known of these, and what is made of parameters alone."""
    known: dict[Variable, Axes] = {example: tuple(((i, size),) for i, size in enumerate(example.shape))}
    learned = set(params)  # and what is made of them alone
    for equation in program.equations:
        if known.keys().isdisjoint(equation.inputs):
            if any(_is_learned(v, learned) for v in equation.inputs):
                learned.update(equation.outputs)
            continue
        yield equation, known, learned
        follow = _FOLLOWED.get(equation.primitive, _same)
        axes = follow(equation, known, learned)
        known |= {
            v: _complete(axes, v.shape) for v in equation.outputs if axes is not None and len(axes) == len(v.shape)
        }


def assumed(image: Variable) -> str:
    """The order of images where the program does not tell: channels last, if these are fewer than rows and columns.

    Args:
        image: the input of images.

    Raises:
        ValueError: they are not.
    """
    _, *size, channels = image.shape
    if channels < min(size):
        return "last"
    raise ValueError(
        f"the program does not tell which axis of {image} has the channels, as no product with parameters takes rows "
        "and columns apart: give channels='last' for images [B, H, W, channels], or channels='first' for "
        "[B, channels, H, W]."
    )


def _complete(axes: Axes, shape: Sequence[int]) -> Axes:
    """With the mark -1 for what is of no axis of the example."""
    sizes = (math.prod(n for _, n in made) for made in axes)
    return tuple(
        made if size == wanted else ((-1, wanted),) for made, size, wanted in zip(axes, sizes, shape, strict=True)
    )


def door(program: Program, place: int) -> None:
    """Let a program of images channels first take them channels last: everything else knows that order alone."""
    inside = program.inputs[place]
    batch, channels, *size = inside.shape
    image = Variable((batch, *size, channels), inside.dtype)
    source, order = program.equations[0].source, (0, 3, 1, 2)

    def move(x: Array) -> list[Array]:
        return [jax.lax.transpose(x, order)]

    moved = Equation("transpose", (image,), (inside,), {"permutation": order}, move, source)
    program.inputs[place] = image
    program.equations.insert(0, moved)


def _is_learned(variable: Variable, learned: set[Variable]) -> bool:
    """Whether a kernel is made of parameters, or of arrays that the function is closed over."""
    return variable in learned or (variable.constant is not None and len(variable.shape) > 1)


def _order(spatial: set[int], channels: set[int]) -> str | None:
    """The order of which axes 1 and 3 are known to be of rows and columns, or of channels."""
    found = {name for name, axis in ORDERS.items() if axis in channels and axis not in spatial}
    found |= {name for name, axis in ORDERS.items() if 4 - axis in spatial and axis not in spatial}
    return found.pop() if len(found) == 1 else None


def _evidence(equation: Equation, known: dict[Variable, Axes], learned: set[Variable]) -> tuple[set[int], set[int]]:
    """Which axes of the example an equation takes for rows or columns, and which for channels."""
    name, axes = equation.primitive, known.get(equation.inputs[0], ())
    summed, free = _contracted(equation, known, learned)
    if summed:  # split; and summed up whole, beside one that is not
        return summed & free, {axis for axis in summed - free if 4 - axis in free}
    if name == "conv_general_dilated" and axes:
        batch, feature, *window = equation.params["dimension_numbers"].lhs_spec
        spatial, features = _of(axes[i] for i in window), _of([axes[feature]])
        others = spatial | _of([axes[batch]])
        return spatial, {axis for axis in features - others if 4 - axis in others}
    if name.startswith("reduce_window") and axes:
        sizes = equation.params["window_dimensions"]
        return _of(made for made, size in zip(axes, sizes, strict=True) if size > 1), set()
    if name == "reduce_sum":  # pooled together with rows or columns
        pooled = _of(axes[i] for i in equation.params["axes"])
        return pooled if 2 in pooled and not {1, 3} <= pooled else set(), set()
    return set(), set()


def _contracted(equation: Equation, known: dict[Variable, Axes], learned: set[Variable]) -> tuple[set[int], set[int]]:
    """The axes of the example that a product with parameters sums over, and those that stay; a batch axis is neither.

    A batch axis has a kernel for each of its places, as groups do.
    """
    if equation.primitive != "dot_general" or not any(_is_learned(v, learned) for v in equation.inputs):
        return set(), set()
    batch, contracted, rest = _sides(equation, known)
    return _of(contracted), _of(rest[len(batch) :])


def _of(made: Iterable[Made]) -> set[int]:
    """The axes of the example among some axes."""
    return {axis for each in made for axis, _ in each}


def _sides(equation: Equation, known: dict[Variable, Axes]) -> tuple[Axes, Axes, Axes]:
    """Batch, contracted and free axes of what a ``dot_general`` reads of the example."""
    side = 0 if equation.inputs[0] in known else 1
    axes = known[equation.inputs[side]]
    batch, contracted, free = (tuple(axes[i] for i in some) for some in products.axes(equation, side))
    return batch, contracted, (*batch, *free)


# What becomes of the axes in an equation; None: that is not followed.

_Follow = Callable[[Equation, dict[Variable, Axes], set[Variable]], Axes | None]


def _same(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes | None:
    """Of a function of each value, or of values along axes that stay where they are; nothing of loops and choices."""
    if equation.primitive in {"scan", "while", "cond"}:
        return None
    return next((known[v] for v in equation.inputs if v in known and v.shape == equation.outputs[0].shape), None)


def _transposed(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes:
    axes = known[equation.inputs[0]]
    return tuple(axes[i] for i in equation.params["permutation"])


def _reshaped(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes | None:
    axes = known[equation.inputs[0]]
    left = [factor for made in axes for factor in made][::-1]
    found: list[Made] = []
    for size in equation.outputs[0].shape:
        made: list[tuple[int, int]] = []
        if size == 1 and left and left[-1][1] == 1:
            made.append(left.pop())
        while size > 1:
            axis, n = left.pop()
            part = math.gcd(n, size)
            if part < min(n, size):
                return None
            if n > part:
                left.append((axis, n // part))
            if part > 1:
                made.append((axis, part))
            size //= part
        found.append(tuple(made))
    return tuple(found)


def _broadcast(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes:
    axes, rank = known[equation.inputs[0]], len(equation.outputs[0].shape)
    added = equation.params.get("dimensions", ())  # of expand_dims
    places = equation.params.get("broadcast_dimensions", [i for i in range(rank) if i not in added])
    return tuple(axes[places.index(i)] if i in places else () for i in range(rank))


def _without(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes:
    axes = known[equation.inputs[0]]
    gone = equation.params["axes" if "axes" in equation.params else "dimensions"]
    return tuple(made for i, made in enumerate(axes) if i not in gone)


def _resized(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes | None:
    """Of what keeps the order of axes: slices, padding, parts put together, windows."""
    variable = next(v for v in equation.inputs if v in known)
    sizes = equation.outputs[0].shape
    if len(variable.shape) != len(sizes):
        return None
    return tuple(map(_of_size, known[variable], variable.shape, sizes))


def _of_size(made: Made, before: int, size: int) -> Made:
    """An axis of another size; if it was of one of the example's, it still is."""
    if size == before:
        return made
    return ((made[0][0], size),) if len(made) == 1 else ()


def _gathered(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes | None:
    """Of axes that are taken whole, and of one along which indices choose."""
    given, (output,) = equation.inputs[0], equation.outputs
    if given not in known:
        return None
    numbers, taken, axes = equation.params["dimension_numbers"], equation.params["slice_sizes"], known[given]
    chosen = [*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())]
    found: list[Made] = [()] * len(output.shape)
    for place, i in zip(numbers.offset_dims, (i for i in range(len(axes)) if i not in chosen), strict=True):
        found[place] = _of_size(axes[i], given.shape[i], taken[i])
    places = [i for i in range(len(found)) if i not in numbers.offset_dims]
    if len(chosen) == len(places) == 1:
        found[places[0]] = _of_size(axes[chosen[0]], given.shape[chosen[0]], output.shape[places[0]])
    return tuple(found)


def _product(equation: Equation, known: dict[Variable, Axes], learned: set[Variable]) -> Axes | None:
    if all(v in known for v in equation.inputs):
        return None
    side = 0 if equation.inputs[0] in known else 1
    batch, contracted, rest = _sides(equation, known)
    free = rest[len(batch) :]
    added: list[Made] = [()] * len(products.free_axes(equation, 1 - side))
    if (
        len(added) == len(contracted) == 1
        and len(contracted[0]) == 1
        and not _is_learned(equation.inputs[1 - side], learned)
    ):
        # By numbers that are no parameters: an interpolation.
        ((axis, _),), (place,) = contracted[0], products.free_axes(equation, 1 - side)
        added = [((axis, equation.outputs[0].shape[place]),)]
    return (*batch, *free, *added) if side == 0 else (*batch, *added, *free)


def _convolved(equation: Equation, known: dict[Variable, Axes], _: set[Variable]) -> Axes | None:
    axes = known.get(equation.inputs[0])
    if axes is None:
        return None
    numbers, given, made = equation.params["dimension_numbers"], equation.inputs[0].shape, equation.outputs[0].shape
    found: list[Made] = [()] * len(axes)
    for place, i in zip(numbers.out_spec, numbers.lhs_spec, strict=True):
        if i != numbers.lhs_spec[1]:
            found[place] = _of_size(axes[i], given[i], made[place])
    return tuple(found)


_FOLLOWED: dict[str, _Follow] = {
    "transpose": _transposed,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "expand_dims": _broadcast,
    "squeeze": _without,
    "gather": _gathered,
    "dot_general": _product,
    "conv_general_dilated": _convolved,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _without),
    **dict.fromkeys(("slice", "dynamic_slice", "dynamic_update_slice", "pad", "concatenate", "split"), _resized),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _resized),
}
