"""Complex numbers as pairs of real ones: relevance then passes through real products, sums and gates.

A state space of complex numbers, or a filter between two Fourier transforms, is a real function of real parts. What
depends on the example is rewritten so; complex parameters stay as they are. A Fourier transform is a product with
cosines and sines, along one axis after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.primitives import MOVES
from lrp_jax.program import Equation, Program, Variable, inline, parts_of_scan

#: Real and imaginary part.
Pair = tuple[Any, Any]


def is_complex(variable: Variable) -> bool:
    """Whether a variable has complex values that depend on the example."""
    return variable.active and jnp.issubdtype(variable.dtype, jnp.complexfloating)


def make_real(program: Program, whole: Callable[[set[str]], bool], unknown: list[Equation]) -> bool:
    """Rewrite what is complex and depends on the example.

    Args:
        program: the program, active variables marked; changed in place.
        whole: as of :func:`lrp_jax.program.flatten`.
        unknown: where equations of complex numbers go that cannot be rewritten.

    Returns:
        Whether there was any.
    """
    if not any(map(is_complex, (v for equation in program.walk() for v in (*equation.inputs, *equation.outputs)))):
        return False
    _Rewriter(program, whole, unknown).run({})
    return True


class _Rewriter:
    def __init__(self, program: Program, whole: Callable[[set[str]], bool], unknown: list[Equation]) -> None:
        self.program, self.whole, self.unknown = program, whole, unknown
        self.equations: list[Equation] = []
        self.pairs: dict[Variable, tuple[Variable, Variable]] = {}

    def run(self, pairs: dict[Variable, tuple[Variable, Variable]]) -> None:
        """Rewrite the program, of which some inputs are pairs."""
        self.pairs = pairs
        for equation in self.program.equations:
            variables = (*equation.inputs, *equation.outputs)
            inside = (v for inner in equation.programs for e in inner.walk() for v in (*e.inputs, *e.outputs))
            if not any(map(is_complex, (*variables, *inside))):
                joined = tuple(self.joined(v, equation) for v in equation.inputs)
                self.equations.append(dataclasses.replace(equation, inputs=joined))
            elif equation.primitive == "scan":
                self.of_scan(equation)
            elif equation.primitive in _REAL.keys() | _EACH_PART and equation.params.get("y", 1) > 0:
                self.of_equation(equation)
            else:
                self.unknown.append(equation)
        self.program.equations = self.equations

    def of_equation(self, equation: Equation) -> None:
        """The real equations of one, of its line."""
        split = [v in self.pairs for v in equation.inputs]
        given = [part for v in equation.inputs for part in self.pairs.get(v, (v,))]

        def real(*values: Any) -> list[Any]:
            upcoming = iter(values)
            read = [(next(upcoming), next(upcoming)) if pair else next(upcoming) for pair in split]
            found = _REAL.get(equation.primitive, _each_part)(equation, *read)
            return [part for value in found for part in (value if isinstance(value, tuple) else (value,))]

        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in given]
        start = len(self.equations)
        found = iter(
            inline(jax.make_jaxpr(real)(*shapes), given, Program([], [], self.equations), self.whole, equation.source)
        )
        self.equations[start:] = [dataclasses.replace(e, source=equation.source) for e in self.equations[start:]]
        # Outputs keep their variables, which others read, where they are real.
        for variable in equation.outputs:
            if jnp.issubdtype(variable.dtype, jnp.complexfloating):
                self.pairs[variable] = next(found), next(found)
            else:
                self.equations.append(_copied(next(found), variable, equation))

    def joined(self, variable: Variable, reader: Equation) -> Variable:
        """A variable as one that is complex, for what does not depend on the example."""
        if variable not in self.pairs:
            return variable
        made = Variable(variable.shape, variable.dtype)
        call: Callable[..., Any] = lambda re, im: [jax.lax.complex(re, im)]  # noqa: E731
        self.equations.append(Equation("complex", self.pairs[variable], (made,), {}, call, reader.source))
        return made

    def parted(self, variable: Variable, reader: Equation) -> tuple[Variable, Variable]:
        """Both parts of a variable, of a constant as well."""
        if variable in self.pairs:
            return self.pairs[variable]
        value = [variable.constant] if variable.constant is not None else []
        parts = []
        for name, function in (("real", jnp.real), ("imag", jnp.imag)):
            made = Variable(variable.shape, _real_dtype(variable.dtype))
            call: Callable[..., Any] = lambda *x, f=function: [f(jnp.asarray((value or x)[0], variable.dtype))]  # noqa: E731
            self.equations.append(Equation(name, () if value else (variable,), (made,), {}, call, reader.source))
            parts.append(made)
        return parts[0], parts[1]

    def of_scan(self, equation: Equation) -> None:
        """A loop that carries, is given or gives pairs."""
        (body,) = equation.programs
        consts, carry = parts_of_scan(equation)
        inputs, outputs = list(map(is_complex, body.inputs)), list(map(is_complex, body.outputs))
        for i in range(carry):
            inputs[consts + i] = outputs[i] = inputs[consts + i] or outputs[i] or is_complex(equation.outputs[i])
        pairs = {v: _halves(v) for v, pair in zip(body.inputs, inputs, strict=True) if pair}
        inner = _Rewriter(body, self.whole, self.unknown)
        given = [part for v in body.inputs for part in pairs.get(v, (v,))]
        inner.run(dict(pairs))
        body.outputs = [
            part
            for v, pair in zip(body.outputs, outputs, strict=True)
            for part in (inner.parted(v, equation) if pair else (inner.joined(v, equation),))
        ]
        body.inputs = given
        self.pairs |= {v: _halves(v) for v, pair in zip(equation.outputs, outputs, strict=True) if pair}
        read = [
            part
            for v, pair in zip(equation.inputs, inputs, strict=True)
            for part in (self.parted(v, equation) if pair else (self.joined(v, equation),))
        ]
        made = [part for v in equation.outputs for part in self.pairs.get(v, (v,))]
        self.equations.append(dataclasses.replace(equation, inputs=tuple(read), outputs=tuple(made)))


def _real_dtype(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype


def _halves(variable: Variable) -> tuple[Variable, Variable]:
    dtype = _real_dtype(variable.dtype)
    return Variable(variable.shape, dtype), Variable(variable.shape, dtype)


def _copied(source: Variable, to: Variable, equation: Equation) -> Equation:
    return Equation("copy", (source,), (to,), {}, lambda x: [x], equation.source)


# What each primitive is of pairs: from an equation and what it reads, pairs or arrays, to what it gives.


def _pair(value: Any) -> Pair:
    return value if isinstance(value, tuple) else (jnp.real(value), jnp.imag(value))


#: What is done with each part by itself.
_EACH_PART = (MOVES - {"convert_element_type"}) | {
    *("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "scatter-add", "tile")
}


def _each_part(equation: Equation, *values: Any) -> list[Any]:
    def of(place: int) -> Sequence[Any]:
        is_number = [jnp.issubdtype(v.dtype, jnp.complexfloating) for v in equation.inputs]
        return equation.call(*(_pair(v)[place] if n else v for v, n in zip(values, is_number, strict=True)))

    return list(zip(of(0), of(1), strict=True))


def _multiplied(x: Any, y: Any) -> Pair:
    (a, b), (c, d) = _pair(x), _pair(y)
    return a * c - b * d, a * d + b * c


def _multiply(equation: Equation, x: Any, y: Any) -> list[Any]:
    return [_multiplied(x, y)]


def _divide(equation: Equation, x: Any, y: Any) -> list[Any]:
    c, d = _pair(y)
    square = c * c + d * d
    return [_multiplied(x, (c / square, -d / square))]


def _power(equation: Equation, x: Any) -> list[Any]:
    return [functools.reduce(_multiplied, [x] * equation.params.get("y", 2))]


def _convert(equation: Equation, x: Any) -> list[Any]:
    dtype = equation.outputs[0].dtype
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return [_pair(x)[0].astype(dtype)]
    re, im = (part.astype(_real_dtype(dtype)) for part in (x if isinstance(x, tuple) else (x, jnp.zeros_like(x))))
    return [(re, im)]


def _absolute(equation: Equation, x: Pair) -> list[Any]:
    square = x[0] * x[0] + x[1] * x[1]
    return [jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))]


def _exponential(equation: Equation, x: Pair) -> list[Any]:
    size = jnp.exp(x[0])
    return [(size * jnp.cos(x[1]), size * jnp.sin(x[1]))]


def _conjugate(equation: Equation, x: Any) -> list[Any]:
    return [(x[0], -x[1]) if isinstance(x, tuple) else (x, jnp.zeros_like(x))]


def _stacked(x: Any, y: Any, axes: tuple[int, int]) -> tuple[Pair, Pair]:
    """Two factors of a sum of complex products as those of real ones, for its real and its imaginary part."""
    (a, b), (c, d) = _pair(x), _pair(y)
    both = jnp.concatenate([a, b], axis=axes[0])
    return (both, jnp.concatenate([c, -d], axis=axes[1])), (both, jnp.concatenate([d, c], axis=axes[1]))


def _product(equation: Equation, x: Any, y: Any) -> list[Any]:
    p = equation.params
    product = functools.partial(
        jax.lax.dot_general,
        dimension_numbers=p["dimension_numbers"],
        precision=p["precision"],
        preferred_element_type=_real_dtype(equation.outputs[0].dtype),
    )
    left, right = p["dimension_numbers"][0]
    if left:
        re, im = _stacked(x, y, (left[0], right[0]))
        return [(product(*re), product(*im))]
    (a, b), (c, d) = _pair(x), _pair(y)
    return [(product(a, c) - product(b, d), product(a, d) + product(b, c))]


def _fourier(equation: Equation, x: Any) -> list[Any]:
    kind, lengths = int(equation.params["fft_type"]), equation.params["fft_lengths"]
    forward, inverse, real, back = 0, 1, 2, 3
    axes = range(len(equation.inputs[0].shape) - len(lengths), len(equation.inputs[0].shape))
    value = x
    if kind in (real, back):
        if kind == real:
            value = _transformed((x,), axes[-1], lengths[-1], kind)
        for axis, n in zip(axes[:-1], lengths[:-1], strict=True):
            value = _transformed(_pair(value), axis, n, forward if kind == real else inverse)
        return [value] if kind == real else [_transformed(_pair(value), axes[-1], lengths[-1], kind)]
    for axis, n in zip(axes, lengths, strict=True):
        value = _transformed(_pair(value), axis, n, kind)
    return [value]


def _transformed(parts: Sequence[Array], axis: int, n: int, kind: int) -> Any:
    """The Fourier transform along an axis: products of the parts, one after the other, with cosines and sines."""
    both = jnp.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]
    matrices = [jnp.asarray(matrix, both.dtype) for matrix in _waves(n, kind)]
    found = [jnp.moveaxis(jnp.moveaxis(both, axis, -1) @ matrix, -1, axis) for matrix in matrices]
    return tuple(found) if len(found) > 1 else found[0]


@functools.cache
def _waves(n: int, kind: int) -> list[np.ndarray]:
    """The matrices of real and imaginary part: of parts one below the other, or of real values alone."""
    half = n // 2 + 1
    angles = 2 * math.pi * (np.outer(np.arange(n), np.arange(n)) % n) / n
    cosines, sines = np.cos(angles), np.sin(angles)
    if kind == 2:  # of real values, half of the frequencies
        return [cosines[:, :half], -sines[:, :half]]
    if kind == 3:  # back from half of them: the others are their conjugates
        times = np.where((np.arange(half) == 0) | (2 * np.arange(half) == n), 1, 2)[:, None] / n
        return [np.concatenate([times * cosines[:half], -times * sines[:half]])]
    sign, scale = (1, 1) if kind == 0 else (-1, 1 / n)
    return [
        scale * np.concatenate([cosines, sign * sines]),
        scale * np.concatenate([-sign * sines, cosines]),
    ]


_REAL: dict[str, Callable[..., list[Any]]] = {
    "mul": _multiply,
    "div": _divide,
    "square": _power,
    "integer_pow": _power,
    "convert_element_type": _convert,
    "complex": lambda _, re, im: [(re, im)],
    "real": lambda _, x: [x[0]],
    "imag": lambda _, x: [x[1]],
    "conj": _conjugate,
    "abs": _absolute,
    "exp": _exponential,
    "dot_general": _product,
    "fft": _fourier,
}
