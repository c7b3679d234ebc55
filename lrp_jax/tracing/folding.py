"""The scales and shifts of features that are part of a product with parameters: biases, batch norms, layer scales.

What relevance sees does not depend on how a program is written: a scale below zero changes the sign of what a product
adds, and a bias keeps a part. So scales go into the kernel, and shifts become the bias, through whatever moves stand
between the product and them, which then are run after. Each feature has its own: a product may be split, and each part
have a bias, or several be joined and have one together. A bias that is added to a sum, or to another term of the sum
before the product, is the product's: the order of additions says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lrp_jax.primitives import ADDITIONS, MOVES
from lrp_jax.program import Equation, Program, Variable
from lrp_jax.tracing import products
from lrp_jax.tracing.affine import Part
from lrp_jax.tracing.features import Features, Numbers, distinct, is_affine, varying

Readers = Mapping[Variable, Sequence[Equation]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Term:
    """Products, side by side, that are a term of a sum.

    Attributes:
        numbers: of their features, in the shape of the sum.
        path: what has their values, the sum last.
        waiting: the scales on the way that make no difference so far.
        is_biased: whether they had a bias before they came into the sum.
    """

    numbers: Numbers
    path: tuple[Variable, ...]
    waiting: tuple[Equation, ...]
    is_biased: bool


class Finder:
    """The search for the scales and shifts of one program.

    Args:
        program: the program.
        channels: which features its values are of.
        readers: what reads each variable.
        alone: the equations that may be part of a product or a norm: those that are no part of anything.
    """

    def __init__(self, program: Program, channels: Features, readers: Readers, alone: Collection[Equation]) -> None:
        self.program, self.channels, self.readers, self.alone = program, channels, readers, alone
        self.maker = {v: e for e in program.equations for v in e.outputs}
        # Variables that are products after moves, and the scales on the way that make no difference so far.
        self.open: dict[Variable, tuple[Equation, ...]] = {}
        # Sums, after moves, and the products among their terms.
        self.sums: dict[Variable, tuple[_Term, ...]] = {}
        # The shifts of variables that are no part of a product so far; one that is added next may take them.
        self.loose: dict[Variable, tuple[Equation, ...]] = {}
        self.parts: dict[Equation, list[Part]] = {}
        self.taken: set[Equation] = set()
        self.depths: dict[Variable, int] = {}

    def after(self, variable: Variable) -> list[Equation]:
        """The scales and shifts of features alone that follow a norm, up to the last that makes a difference."""
        features = set(self.channels.axes(variable) or {len(variable.shape) - 1})
        chain: list[Equation] = []
        changed, shape = 0, variable.shape
        while variable not in self.program.outputs and len(self.readers.get(variable, ())) == 1:
            (equation,) = self.readers[variable]
            is_cast = equation.primitive == "convert_element_type"
            if equation not in self.alone or not (is_cast or is_affine(equation)):
                break
            constants = [self.channels.constant(v) for v in equation.inputs if v is not variable]
            if equation.outputs[0].shape != shape or not features.issuperset(i for c in constants for i in varying(c)):
                break
            chain.append(equation)
            if not is_cast and changes(equation, variable):
                changed = len(chain)
            (variable,) = equation.outputs
        return chain[:changed]

    def of_products(self, whole: Collection[Equation]) -> dict[Equation, list[Part]]:
        """The scales and shifts of products, in order, up to the last that makes a difference.

        Args:
            whole: the products that take none.

        Returns:
            The parts by product, of those that have any.
        """
        for equation in self.program.equations:
            if equation not in self.alone:
                continue
            if equation in self.channels.starts and equation not in whole:
                self.open[equation.outputs[0]] = ()
            elif equation.primitive in MOVES:
                self.move(equation)
            elif is_affine(equation):
                self.look_at(equation)
            elif equation.primitive in ADDITIONS:
                self.add(equation)
        place = {equation: i for i, equation in enumerate(self.program.equations)}
        return {product: sorted(parts, key=lambda part: place[part.equation]) for product, parts in self.parts.items()}

    def move(self, equation: Equation) -> None:
        """Follow products and sums through a move."""
        active = equation.active
        if active and all(v in self.open for v in active):
            waiting = tuple(dict.fromkeys(e for v in active for e in self.open[v]))
            if casts(equation):
                if not all(self.is_all(equation, term) for term in self.terms(active[0])):
                    return
                waiting = (*waiting, equation)
            self.open |= {v: waiting for v in equation.outputs if v in self.channels.of}
        elif len(active) == 1 and active[0] is equation.inputs[0] and not casts(equation):
            terms = self.sums.get(active[0], ())
            self.go_on(equation, terms, [self.channels.moved(equation, term.numbers) for term in terms])

    def add(self, equation: Equation) -> None:
        """Follow an addition of active values; shifts of one of them may be of products of another."""
        (output,) = equation.outputs
        terms = [term for v in equation.active for term in self.terms(v)]
        loose = []
        for shift in (shift for v in equation.active for shift in self.loose.get(v, ())):
            if not self.fold(shift, equation, terms):
                loose.append(shift)
        self.let_loose(output, loose)
        self.go_on(equation, terms, [[term.numbers] for term in terms])

    def let_loose(self, variable: Variable, shifts: Sequence[Equation]) -> None:
        """Keep shifts of what a variable is, or is a sum of, if nothing but another addition reads the variable."""
        readers = self.readers.get(variable, ())
        if shifts and len(readers) == 1 and variable not in self.program.outputs:
            self.loose[variable] = tuple(shifts)

    def fold(self, shift: Equation, reader: Equation, terms: Sequence[_Term]) -> bool:
        """Make a shift part of one of the terms that an equation reads, if it fits any."""
        fitting = [term for term in terms if self.fits(shift, reader, term)]
        if not fitting:
            return False
        chosen = max(fitting, key=self.rank)
        for each in chosen.waiting:
            self.take(each, self.channels.of[each.active[0]])
        self.take(shift, chosen.numbers)
        return True

    def go_on(
        self, equation: Equation, terms: Sequence[_Term], numbers: Sequence[Sequence[Numbers | None] | None]
    ) -> None:
        """Keep what an equation gives as sums of some terms, whose numbers in each of its results are known or None."""
        for i, output in enumerate(equation.outputs):
            here = [(term, found[i]) for term, found in zip(terms, numbers, strict=True) if found is not None]
            self.sums[output] = tuple(
                dataclasses.replace(term, numbers=np.broadcast_to(found, output.shape), path=(*term.path, output))
                for term, found in here
                if found is not None and found.min() >= 0
            )

    def terms(self, variable: Variable) -> list[_Term]:
        """The products among the terms of a variable; it may be a product itself."""
        found = list(self.sums.get(variable, ()))
        if variable in self.open and self.channels.features(variable)[0] >= 0:  # none of it is beside them
            path = above_of(variable, self.maker, self.channels.starts)[::-1]
            found = [_Term(self.channels.of[variable], tuple(path), self.open[variable], is_biased=False)]
        return [dataclasses.replace(term, is_biased=self.is_biased(term)) for term in found]

    def is_biased(self, term: _Term) -> bool:
        """Whether any product of a term has a shift so far."""
        parts = (part for product, _ in self.ranges(distinct(term.numbers)) for part in self.parts.get(product, ()))
        return any(part.equation.primitive in {"sub", *ADDITIONS} for part in parts)

    def look_at(self, equation: Equation) -> None:
        """See whether an equation scales or shifts features of products alone, whose values nothing else reads."""
        (variable,), (output,) = equation.active, equation.outputs
        if output.shape != variable.shape:
            return
        terms = self.terms(variable)
        adds = equation.primitive in ADDITIONS or (equation.primitive == "sub" and equation.inputs[0].active)
        if variable in self.open and any(self.fits(equation, equation, term) for term in terms):
            waiting = (*self.open[variable], equation)
            if changes(equation, variable):
                for each in waiting:
                    self.take(each, self.channels.of[each.active[0]])
                waiting = ()
            self.open[output] = waiting
        elif adds:
            is_part = self.fold(equation, equation, terms)
            self.let_loose(output, [*self.loose.get(variable, ()), *[equation] * (not is_part)])
            self.go_on(equation, terms, [[term.numbers] for term in terms])

    def rank(self, term: _Term) -> tuple[Any, ...]:
        """Which product of a sum a bias of the sum is of: one without a bias, the nearest; else by its parameters.

        In which order a program adds the terms says nothing.
        """
        found = [product for product, _ in self.ranges(distinct(term.numbers))]
        inputs = {v: i for i, v in enumerate(self.program.inputs)}
        read = [above_of(v, self.maker, (), active=False) for e in found for v in e.inputs if not v.active]
        parameters = sorted(inputs[v] for some in read for v in some if v in inputs)
        place = max(self.program.equations.index(product) for product in found)
        return not term.is_biased, max(self.depth(product) for product in found), parameters, place

    def depth(self, product: Equation) -> int:
        """How many products there are on the longest way to a product."""
        if not self.depths:
            for equation in self.program.equations:
                above = max((self.depths.get(v, 0) for v in equation.active), default=0)
                self.depths |= dict.fromkeys(equation.outputs, above + (equation in self.channels.starts))
        return self.depths[product.outputs[0]]

    def fits(self, equation: Equation, reader: Equation, term: _Term) -> bool:
        """Whether the features of a term may be scaled or shifted where they are made, not by its reader."""
        made = (*equation.outputs, *reader.outputs)
        if len({v.dtype for v in (*term.path, *made)}) > 1 or len({v.own for v in (term.path[-1], *made)}) > 1:
            return False
        constants = [v for v in equation.inputs if not v.active]
        if any(self.channels.places(term.numbers, constant) is None for constant in constants):
            return False
        sources = {product.outputs[0] for product, _ in self.ranges(distinct(term.numbers))}
        return self.is_all(reader, term) and not self.depend(constants, sources)

    def ranges(self, features: np.ndarray) -> Iterator[tuple[Equation, np.ndarray]]:
        """Some features by product, by their places among all of it."""
        for product, start in self.channels.starts.items():
            count = products.kernel_size(product)
            own = (features >= start) & (features < start + count)
            if own.any():
                yield product, features[own] - start

    def take(self, equation: Equation, numbers: Numbers) -> None:
        """Make an equation part of the products that it scales or shifts, whose features have some numbers there."""
        if equation in self.taken:
            return
        self.taken.add(equation)
        places = {v: self.channels.places(numbers, v) for v in equation.inputs if not v.active}
        features = distinct(numbers)
        for product, own in self.ranges(features):
            chosen = np.searchsorted(features, own + self.channels.starts[product])
            here = {v: p._replace(features=own, at=p.at[chosen]) for v, p in places.items() if p is not None}
            dtypes = tuple(v.own or v.dtype for v in equation.inputs)
            self.parts.setdefault(product, []).append(Part(equation, own, here, dtypes))

    def is_all(self, equation: Equation, term: _Term) -> bool:
        """Whether nothing else reads the features of a term than an equation."""
        features = distinct(term.numbers)
        for v in term.path:
            if not self.has(v, features):
                continue
            if v in self.program.outputs:
                return False
            for reader in self.readers.get(v, ()):
                moves = reader in self.alone and (reader.primitive in MOVES or is_affine(reader))
                others = [
                    o for o in reader.outputs if o not in term.path and (o in self.program.outputs or o in self.readers)
                ]
                if reader is not equation and others and (not moves or self.sends(reader, v, others, features)):
                    return False
        return True

    def sends(self, move: Equation, variable: Variable, outputs: Sequence[Variable], features: np.ndarray) -> bool:
        """Whether a move, or a scale or shift, may give some results any of these features of a variable."""
        if variable not in self.sums:
            return any(self.has(v, features) for v in outputs)
        for term in self.sums[variable]:
            found = [term.numbers] if is_affine(move) else self.channels.moved(move, term.numbers)
            if found is None or any(n is None or np.isin(distinct(n), features).any() for n in found):
                return True
        return False

    def has(self, variable: Variable, features: np.ndarray) -> bool:
        """Whether a variable may have some of these features."""
        if variable not in self.channels.of:
            return True
        own = self.channels.features(variable)
        known = [np.where(own < 0, ~own, own), *(distinct(term.numbers) for term in self.sums.get(variable, ()))]
        return any(bool(np.isin(some, features).any()) for some in known)

    def retype(self, cast: Equation) -> None:
        """Let what a cast reads, up to the products that it is part of, have the dtype that it gives."""
        for variable in above_of(cast.active[0], self.maker, self.channels.starts):
            variable.own = cast.outputs[0].own

    def depend(self, constants: Iterable[Variable], results: Collection[Variable]) -> bool:
        """Whether constants are computed of the results of products, though not differentiably."""
        waiting, seen = list(constants), set()
        while waiting:
            variable = waiting.pop()
            if variable in results:
                return True
            if variable not in seen and variable in self.maker:
                waiting += self.maker[variable].inputs
            seen.add(variable)
        return False


def above_of(
    variable: Variable, maker: Mapping[Variable, Equation], ends: Collection[Equation], *, active: bool = True
) -> list[Variable]:
    """A variable and what it is made of, or what of that is active, up to the results of some equations."""
    found = {variable: None}
    waiting = [variable]
    while waiting:
        equation = maker.get(waiting.pop())
        if equation is not None and equation not in ends:
            read = equation.active if active else equation.inputs
            waiting += [v for v in read if v not in found]
            found |= dict.fromkeys(read)
    return list(found)


def changes(equation: Equation, variable: Variable) -> bool:
    """Whether an equation shifts, may change a sign, or scales features differently."""
    if equation.primitive in {"add", "add_any", "sub", "neg"}:
        return True
    others = [v for v in equation.inputs if v is not variable]
    return any(v.constant is None or bool(v.shape) or float(v.constant) < 0 for v in others)


def casts(equation: Equation) -> bool:
    """Whether an equation gives values in another dtype."""
    (variable, *_), (output, *_) = equation.inputs, equation.outputs
    return equation.primitive == "convert_element_type" and (variable.own, variable.dtype) != (output.own, output.dtype)
