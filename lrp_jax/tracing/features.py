"""Which feature each value of a program is: numbers that go through its moves as the values do.

A product with parameters gives features, one for each column of its kernel. Wherever a program takes them, by a
transpose, a reshape, a slice or a concatenation, the same moves of their numbers tell which value is of which feature:
then it is known of a constant whether it differs from feature to feature, as a bias does, or from token to token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lrp_jax.primitives import AFFINE, ELEMENTWISE, KEEPS, REDUCTIONS
from lrp_jax.program import Equation, Program, Variable
from lrp_jax.tracing import products
from lrp_jax.tracing.units import Unit

#: Integers of a variable's shape, equal for values of one feature. ``~n`` stands for a value that is beside feature n,
#: as a class token is, or made of it: no value of the product that n is of. Axes along which they do not vary have a
#: stride of 0.
Numbers = np.ndarray


class Places(NamedTuple):
    """Where a constant has the value of each feature.

    Attributes:
        features: their numbers, in order.
        part: what is cut from the constant, in its shape with the variable's: slices.
        at: the places of the features in the part, flat.
    """

    features: np.ndarray
    part: tuple[slice, ...]
    at: np.ndarray


class Features:
    """The numbers of a program's variables.

    Attributes:
        of: those of the active variables of which they are known.
        starts: the first number of each product's features.
    """

    def __init__(
        self,
        program: Program,
        units: Mapping[Variable, Unit],
        given: Mapping[Variable, Numbers],
        fixed: Collection[Equation] = (),
    ) -> None:
        self.fixed = fixed  # products that mix places, and make no features
        self.of: dict[Variable, Numbers] = dict(given)
        self.starts: dict[Equation, int] = {}
        self._next = 1 + max((int(np.abs(numbers).max()) for numbers in given.values()), default=0)
        self._constants: dict[Variable, Numbers] = {}
        self._features: dict[Variable, np.ndarray] = {}
        self._maker = {v: e for e in program.equations for v in e.outputs}
        inside = {e for unit in units.values() for e in unit.equations}
        for equation in program.equations:
            (output, *_) = equation.outputs
            if output in units:
                self._put([output], [self._beside(units[output].input)])
            elif equation not in inside and any(v.active for v in equation.outputs):
                self._put(equation.outputs, self._made(equation))

    def axes(self, variable: Variable) -> tuple[int, ...] | None:
        """The axes along which an active variable has other features; None: that is not known."""
        return varying(_feature(self.of[variable])) if variable in self.of else None

    def features(self, variable: Variable) -> np.ndarray:
        """The numbers of all its features, each once, in order."""
        if variable not in self._features:
            self._features[variable] = distinct(self.of[variable])
        return self._features[variable]

    def constant(self, variable: Variable) -> Numbers:
        """Numbers of the values of a constant: where they are equal, its values are."""
        if variable not in self._constants:
            found = np.zeros(variable.shape, int) if variable.size == 1 else self._of_constant(variable)
            own = np.arange(variable.size).reshape(variable.shape) if found is None else found
            self._constants[variable] = own
        return self._constants[variable]

    def places(self, numbers: Numbers, constant: Variable) -> Places | None:
        """Where a constant, broadcast to the shape of some numbers, has the value of each of their features.

        None: it does not have one value for each.
        """
        features = _feature(numbers)
        values = np.broadcast_to(self.constant(constant), features.shape)
        part = _cut_of(features, values)
        features, values = (numbers[part].reshape(-1) for numbers in (features, values))
        found, index, inverse = np.unique(features, return_index=True, return_inverse=True)
        return Places(found, part, index) if (values[index][inverse] == values).all() else None

    def inside(
        self, inputs: Iterable[tuple[Variable, Variable]], given: Sequence[Variable] = ()
    ) -> dict[Variable, Numbers]:
        """The numbers of what a loop or a choice is given, by its own variables.

        Args:
            inputs: its variables, and those of the program.
            given: its variables that have another value each time.
        """
        known = {inner: self.of[outer] for inner, outer in inputs if outer in self.of}
        each = {v: None if 0 in varying(numbers) else numbers[0] for v, numbers in known.items() if v in given}
        return {v: numbers for v, numbers in (known | each).items() if numbers is not None}

    def _put(self, variables: Sequence[Variable], numbers: Sequence[Numbers | None] | None) -> None:
        for variable, found in zip(variables, numbers or (), strict=False):
            if variable.active and found is not None:
                self.of[variable] = np.broadcast_to(found, variable.shape)

    def _fresh(self, shape: Sequence[int]) -> Numbers:
        first, self._next = self._next, self._next + math.prod(shape)
        return np.arange(first, self._next).reshape(shape)

    def _beside(self, variable: Variable) -> Numbers | None:
        return _aside(self.of[variable]) if variable in self.of else None

    def _made(self, equation: Equation) -> Sequence[Numbers | None] | None:
        """The numbers of what an equation gives."""
        name, active, (output, *_) = equation.primitive, equation.active, equation.outputs
        if products.is_dense(equation) and equation not in self.fixed:
            return [self._of_product(equation)]
        if name == "dot_general":
            return [self._of_matmul(equation)]
        if name in {"concatenate", "stack"}:
            return [self._joined(equation)]
        if name == "scan":  # what it carries keeps its layout
            carried = {v.shape: self._beside(v) for v in active}
            return [carried.get(v.shape) for v in equation.outputs]
        if name == "optimization_barrier":
            return [self.of.get(v) for v in equation.inputs]
        if is_affine(equation):
            numbers = self.of.get(active[0])
            return None if numbers is None else [np.broadcast_to(numbers, output.shape)]
        if len(active) == 1 and active[0] in self.of:
            found = self.moved(equation, self.of[active[0]])
            if found is not None:
                return found
            return [self._beside(active[0])] if active[0].shape == output.shape else None
        same = name in ELEMENTWISE | {"select_n"} and self._same(active)
        return [np.broadcast_to(_aside(self.of[active[0]]), output.shape)] if same else None

    def _of_product(self, equation: Equation) -> Numbers:
        (output,), (_, axes) = equation.outputs, products.kernel_to_output(equation)
        self.starts[equation] = self._next
        numbers = self._fresh([output.shape[i] for i in axes]).transpose(np.argsort(axes))
        numbers = np.expand_dims(numbers, [i for i in range(len(output.shape)) if i not in axes])
        return np.broadcast_to(numbers, output.shape)

    def _of_matmul(self, equation: Equation) -> Numbers | None:
        """Of a product of activations: those of one operand that are the same for all that is summed, as of values."""
        found = []
        for side, variable in enumerate(equation.inputs):
            batch, contracted, free = products.axes(equation, side)
            numbers = self.of.get(variable)
            if numbers is None or set(varying(numbers)) & set(contracted) or not set(varying(numbers)) & set(free):
                continue
            numbers = numbers[tuple(0 if i in contracted else slice(None) for i in range(numbers.ndim))]
            kept = [i for i in range(len(variable.shape)) if i not in contracted]
            numbers = numbers.transpose([kept.index(i) for i in (*batch, *free)])
            at = [*range(len(batch)), *products.free_axes(equation, side)]
            others = [i for i in range(len(equation.outputs[0].shape)) if i not in at]
            found.append(np.expand_dims(_aside(numbers), others))
        return found[0] if len(found) == 1 else None

    def _joined(self, equation: Equation) -> Numbers | None:
        """Of several that are put side by side: constants are beside the features of the rest, as class tokens are."""
        stacked = equation.primitive == "stack"
        axis = equation.params.get("axis", 0) if stacked else equation.params["dimension"]
        known = [self.of.get(v) for v in equation.inputs]
        if any(v.active and numbers is None for v, numbers in zip(equation.inputs, known, strict=True)):
            return None
        if stacked:
            known = [None if numbers is None else np.expand_dims(numbers, axis) for numbers in known]
        shapes = [np.expand_dims(np.empty(v.shape, bool), axis).shape if stacked else v.shape for v in equation.inputs]
        first = next(numbers for numbers in known if numbers is not None)
        along = axis not in varying(first)
        first = _aside(first[(slice(None),) * axis + (slice(1),)])
        parts = [
            numbers if numbers is not None else np.broadcast_to(first, shape) if along else ~self._fresh(shape)
            for numbers, shape in zip(known, shapes, strict=True)
        ]
        return _concatenated(parts, axis)

    def _same(self, variables: Sequence[Variable]) -> bool:
        """Whether several variables have features in the same places."""
        if not variables or any(v not in self.of for v in variables):
            return False
        first, *others = (_feature(self.of[v]) for v in variables)
        if any(other.shape != first.shape for other in others):
            return False
        return all(_is_function(first, other) and _is_function(other, first) for other in others)

    def _of_constant(self, variable: Variable) -> Numbers | None:
        maker = self._maker.get(variable)
        if maker is None or not maker.inputs or any(v.active for v in maker.inputs):
            return None
        place = maker.outputs.index(variable)
        numbers = [self.constant(v) for v in maker.inputs]
        if maker.primitive in ELEMENTWISE | {"select_n"}:
            return _joint([np.broadcast_to(n, variable.shape) for n in numbers])
        if maker.primitive == "concatenate":
            ends = np.cumsum([0, *(1 + int(n.max(initial=0)) for n in numbers)])
            return _concatenated([_each(np.add, n, end) for n, end in zip(numbers, ends, strict=False)], **_axis(maker))
        found = self.moved(maker, numbers[0])
        return None if found is None else found[place]

    def moved(self, equation: Equation, numbers: Numbers) -> Sequence[Numbers | None] | None:
        """After a move of one variable; None: it is none, or where it takes values is not known."""
        name, params = equation.primitive, equation.params
        if name in KEEPS:
            return [numbers]
        if name in {"gather", "dynamic_slice"}:
            return self._chosen(equation, numbers)
        if name == "pad":
            return [_padded(equation, numbers)]
        if name in REDUCTIONS:
            kept = numbers[tuple(0 if i in params["axes"] else slice(None) for i in range(numbers.ndim))]
            return None if set(varying(numbers)) & set(params["axes"]) else [_aside(kept)]
        if name == "squeeze" and not params:  # one of the times of a loop
            return None if 0 in varying(numbers) else [numbers[0]]
        move = _MOVED.get(name)
        return move and [_settled(found) for found in move(params, numbers)]

    def _chosen(self, equation: Equation, numbers: Numbers) -> Sequence[Numbers | None] | None:
        """After a choice of places, which are known, or do not matter as all of them are of the same features."""
        params = equation.params
        sizes, shape, rest = params["slice_sizes"], equation.outputs[0].shape, equation.inputs[1:]
        whole = {i for i, size in enumerate(sizes) if size == numbers.shape[i]}
        if whole.issuperset(varying(numbers)):
            kept = numbers[tuple(slice(None) if i in whole else slice(1) for i in range(numbers.ndim))]
            if equation.primitive == "dynamic_slice":
                return [np.broadcast_to(kept, shape)]
            numbering = params["dimension_numbers"]
            gone = {*numbering.collapsed_slice_dims, *numbering.operand_batching_dims}
            kept = kept[tuple(0 if i in gone else slice(None) for i in range(kept.ndim))]
            at = numbering.offset_dims
            return [np.broadcast_to(np.expand_dims(kept, [i for i in range(len(shape)) if i not in at]), shape)]
        indices = [self._value(v) for v in rest]
        if any(index is None for index in indices):
            return None
        with jax.ensure_compile_time_eval():
            return [_settled(np.asarray(equation.call(np.ascontiguousarray(numbers), *indices)[0]))]

    def _value(self, variable: Variable) -> Any:
        """The value of a constant that is known without parameters: None for all others."""
        if variable.constant is not None:
            return None if isinstance(variable.constant, jax.core.Tracer) else np.asarray(variable.constant)
        maker = self._maker.get(variable)
        given = [None if maker is None else self._value(v) for v in (maker.inputs if maker else (variable,))]
        if maker is None or maker.programs or any(value is None for value in given):
            return None
        with jax.ensure_compile_time_eval():
            return np.asarray(maker.call(*given)[maker.outputs.index(variable)])


def is_affine(equation: Equation) -> bool:
    """Whether it scales or shifts one active value, by constants."""
    active = equation.active
    if equation.primitive not in AFFINE or len(active) != 1:
        return False
    return equation.inputs.count(active[0]) == 1 and not (equation.primitive == "div" and equation.inputs[1].active)


def _broadcast(params: Mapping[str, Any], numbers: Numbers) -> list[Numbers]:
    at = params["broadcast_dimensions"]
    new = [i for i in range(len(params["shape"])) if i not in at]
    return [np.broadcast_to(np.expand_dims(numbers, new), params["shape"])]


def _sliced(params: Mapping[str, Any], numbers: Numbers) -> list[Numbers]:
    strides = params["strides"] or (1,) * numbers.ndim
    return [numbers[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]]


#: What moves do to numbers.
_MOVED: dict[str, Callable[[Mapping[str, Any], Numbers], Sequence[Numbers]]] = {
    "broadcast_in_dim": _broadcast,
    "expand_dims": lambda params, numbers: [np.expand_dims(numbers, params["dimensions"])],
    "reshape": lambda params, numbers: [numbers.reshape(params["new_sizes"])],
    "rev": lambda params, numbers: [np.flip(numbers, params["dimensions"])],
    "slice": _sliced,
    "split": lambda params, numbers: np.split(numbers, np.cumsum(params["sizes"])[:-1], params["axis"]),
    "squeeze": lambda params, numbers: [numbers.squeeze(tuple(params["dimensions"]))],
    "tile": lambda params, numbers: [np.tile(numbers, params["reps"])],
    "transpose": lambda params, numbers: [numbers.transpose(params["permutation"])],
    "unstack": lambda params, numbers: list(np.moveaxis(numbers, params["axis"], 0)),
}


def _axis(equation: Equation) -> dict[str, int]:
    return {"axis": equation.params["dimension"]}


def along_last(variable: Variable) -> Numbers:
    """Features along the last axis."""
    return np.broadcast_to(np.arange(variable.shape[-1]), variable.shape)


def distinct(numbers: Numbers) -> np.ndarray:
    """The different ones of some numbers, in order."""
    return np.unique(_cut(numbers, _fixed(numbers)))


def varying(numbers: Numbers) -> tuple[int, ...]:
    """The axes along which numbers may vary."""
    return tuple(i for i in range(numbers.ndim) if numbers.shape[i] > 1 and numbers.strides[i])


def _fixed(numbers: Numbers) -> set[int]:
    return set(range(numbers.ndim)).difference(varying(numbers))


def _cut_of(*several: Numbers) -> tuple[slice, ...]:
    """The first values along the axes along which none of several varies."""
    fixed = set.intersection(*map(_fixed, several))
    return tuple(slice(1) if i in fixed else slice(None) for i in range(several[0].ndim))


def _cut(numbers: Numbers, fixed: Iterable[int]) -> Numbers:
    return numbers[tuple(slice(1) if i in set(fixed) else slice(None) for i in range(numbers.ndim))]


def _each(function: Callable[..., Numbers], numbers: Numbers, *others: Any) -> Numbers:
    """A function of each number, without a stride where there was none."""
    return np.broadcast_to(function(_cut(numbers, _fixed(numbers)), *others), numbers.shape)


def _aside(numbers: Numbers) -> Numbers:
    """The numbers of values that are beside features, or made of them."""
    return _settled(_each(lambda n: np.where(n < 0, n, ~n), numbers))


def _feature(numbers: Numbers) -> Numbers:
    """The features that values are of or beside."""
    return _settled(_each(lambda n: np.where(n < 0, ~n, n), numbers))


def _settled(numbers: Numbers) -> Numbers:
    """Without a stride along axes where they do not vary."""
    for axis in varying(numbers):
        first = numbers[(slice(None),) * axis + (slice(1),)]
        if (numbers == first).all():
            numbers = np.broadcast_to(first, numbers.shape)
    return numbers


def _concatenated(parts: Sequence[Numbers], axis: int) -> Numbers:
    shape = [*parts[0].shape]
    shape[axis] = sum(part.shape[axis] for part in parts)
    fixed = set.intersection(*map(_fixed, parts)) - {axis}
    return _settled(np.broadcast_to(np.concatenate([_cut(part, fixed) for part in parts], axis), shape))


def _padded(equation: Equation, numbers: Numbers) -> Numbers | None:
    padded = {i for i, amounts in enumerate(equation.params["padding_config"]) if any(amounts)}
    if padded.intersection(varying(numbers)):
        return None
    return np.broadcast_to(_aside(_cut(numbers, padded)), equation.outputs[0].shape)


def _joint(several: Sequence[Numbers]) -> Numbers:
    """One number for each combination of several."""
    part = _cut_of(*several)
    first = several[0][part]
    rows = np.stack([numbers[part].reshape(-1) for numbers in several])
    return np.broadcast_to(np.unique(rows, axis=1, return_inverse=True)[1].reshape(first.shape), several[0].shape)


def _is_function(of: Numbers, values: Numbers) -> bool:
    """Whether equal numbers of the first have equal numbers of the second."""
    part = _cut_of(of, values)
    of, values = of[part].reshape(-1), values[part].reshape(-1)
    _, index, inverse = np.unique(of, return_index=True, return_inverse=True)
    return bool((values[index][inverse] == values).all())
