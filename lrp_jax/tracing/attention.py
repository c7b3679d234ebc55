"""Where the attention of a program is: a product one of whose operands comes through a softmax from another product."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lrp_jax.primitives import AFFINE, MOVES
from lrp_jax.program import Equation, Program, Variable
from lrp_jax.tracing import products
from lrp_jax.tracing.features import Features
from lrp_jax.tracing.operations import Operation
from lrp_jax.tracing.queries import Recognise, Region
from lrp_jax.tracing.steps import Site
from lrp_jax.tracing.units import Unit


class Attention:
    """The attention of a program.

    Attributes:
        sites: where it goes into products, by the variable that does.
        scores: the products of queries and keys.
        masked: what lies between scores and softmax.
        found: sites, with the product of queries and keys, the one with values, and which operand of it is attention.
    """

    def __init__(
        self,
        program: Program,
        maker: Mapping[Variable, Equation | Unit],
        channels: Features,
        readers: Mapping[Variable, Sequence[Equation]],
    ) -> None:
        self.program, self.maker, self.channels, self.readers = program, maker, channels, readers
        self.sites: dict[Variable, Site] = {}
        self.scores: set[Equation] = set()
        self.masked: set[Equation] = set()
        self.found: list[tuple[Site, Equation, Equation, int]] = []

    def find(self, equations: Sequence[Equation]) -> None:
        """Look at the products among some equations."""
        for equation in equations:
            if equation.primitive == "dot_general" and len(equation.active) == 2:
                self._look_at(equation)

    def regions(self, recognise: Recognise) -> list[tuple[Region, set[Equation]]]:
        """What can be computed for some queries at a time, and of which equations each is.

        Args:
            recognise: how a program of some queries becomes one of operations.
        """
        return list(filter(None, (self._region(recognise, *found) for found in self.found)))

    def _region(
        self, recognise: Recognise, site: Site, scores: Equation, product: Equation, side: int
    ) -> tuple[Region, set[Equation]] | None:
        """What is from the scores to the product with the values, and its equations; None: there are no queries."""
        if site.query is None:
            return None
        after, inside = set(scores.outputs), [scores]
        for equation in self.program.equations[self.program.equations.index(scores) + 1 :]:
            if not after.isdisjoint(equation.inputs):
                inside.append(equation)
                after.update(equation.outputs)
        needed, found = set(product.outputs), []
        for equation in reversed(inside):
            if not needed.isdisjoint(equation.outputs):
                found.append(equation)
                needed.update(equation.inputs)
        equations = found[::-1]
        made = {v for e in equations[:-1] for v in e.outputs}
        shared = not made.isdisjoint(self.program.outputs) or any(
            not set(self.readers.get(v, ())) <= set(equations) for v in made
        )
        numbers, makers = self.channels.of, {v: e for e in self.program.equations for v in e.outputs}
        copies = [dataclasses.replace(e) for e in equations]
        return Region(copies, side, site.query, shared, makers, numbers, recognise), set(equations)

    def _look_at(self, product: Equation) -> None:
        if product.attends is False:
            return
        for side in (0, 1):
            softmax, path = self.softmax_of(product.inputs[side])
            if softmax is None and not product.attends:
                continue
            told = softmax is None
            found, between = self._scores_of(product.inputs[side] if softmax is None else softmax.input, told=told)
            site = self._site(product, side, found[0], path) if found else None
            over_features = site is not None and site.key in (self.channels.axes(site.inputs[0]) or ())
            if site is None or (over_features and not product.attends):
                continue
            site = self.sites.setdefault(site.inputs[0], site)  # one attention may go into several products
            site.products += [product, *found]
            self.scores.update(found)
            self.found.append((site, found[0], product, side))
            self.masked |= between
            return
        if product.attends:
            raise ValueError(
                f"attention names {product.line}, where no operand is made of a product of two activations, its scores."
            )

    def softmax_of(self, variable: Variable) -> tuple[Unit | None, list[Equation | Unit]]:
        """The softmax that a variable comes from by moves, scales and casts, and what lies between."""
        path: list[Equation | Unit] = []
        while True:
            maker = self.maker.get(variable)
            if maker is None:
                return None, path
            if isinstance(maker, Unit):
                if maker.kind == "softmax":
                    return maker, path
                if maker.kind == "layer_norm":
                    return None, path
                path.append(maker)
                variable = maker.input
                continue
            active = maker.active
            if maker.inner & {"exp"} and "reduce_sum" in maker.inner and len(active) == 1:
                return Unit("softmax", active[0], maker.outputs[0], [maker]), path
            if len(active) != 1 or not (self._passes(maker) or products.mixes_heads(maker)):
                return None, path
            path.append(maker)
            variable = active[0]

    def _scores_of(self, variable: Variable, *, told: bool) -> tuple[list[Equation], set[Equation]]:
        """The products of queries and keys that a softmax is of, the first of them first, and what lies between.

        Args:
            variable: what the softmax is of; of attention that is told, the attention, whatever is made of the scores.
            told: whether it is told.
        """
        between: set[Equation] = set()
        waiting, found, seen = [variable], [], set()
        while waiting:
            v = waiting.pop()
            maker = self.maker.get(v)
            if v in seen or maker is None:
                continue
            seen.add(v)
            if isinstance(maker, Unit):
                if told or maker.kind not in {"layer_norm", "softmax"}:
                    waiting.append(maker.input)
                continue
            if told and maker.primitive != "dot_general":
                between.add(maker)
                waiting += maker.active
                continue
            if maker.primitive == "dot_general" and not products.is_scale(maker):
                batched = bool(maker.params["dimension_numbers"][1][0])
                if len(maker.active) == 2 or all(u.active for u in maker.inputs):
                    found.append(maker)
                elif products.mixes_heads(maker):
                    waiting += maker.active
                elif batched or products.is_of_product(maker, self.maker):
                    found.append(maker)
                continue
            if self._passes(maker) or maker.primitive in {"add", "add_any", "sub", "tanh", "max", "min", "concatenate"}:
                between.add(maker)
                waiting += maker.active
        return sorted(found, key=self.program.equations.index), between

    def _passes(self, equation: Equation) -> bool:
        """Whether it moves, casts, scales, shifts or chooses one active value."""
        one = len(equation.active) == 1
        return (equation.primitive in MOVES | AFFINE - {"neg"} and one) or products.is_scale(equation)

    def _site(self, product: Equation, side: int, scores: Equation, path: list[Equation | Unit]) -> Site | None:
        """Where the attention goes into a product; None: it has not the axes of attention."""
        operand = product.inputs[side]
        _, contracted, free = products.axes(product, side)
        keys = [i for i in contracted if operand.shape[i] > 1] or contracted[-1:]
        if len(keys) != 1:
            return None
        n = operand.shape[keys[0]]
        wide = [i for i in free if operand.shape[i] > 1]
        queries = [i for i in wide if operand.shape[i] == n] or wide or free
        query = queries[-1] if queries else None
        heads = tuple(i for i in range(len(operand.shape)) if i not in (query, keys[0]))
        attention, rows = operand, None
        # The queries that are not read may have been left out: taps are added before.
        for maker in path:
            if query is None or not isinstance(maker, Equation) or maker.primitive != "slice":
                break
            whole = maker.active[0]
            starts, limits = maker.params["start_indices"], maker.params["limit_indices"]
            if len(whole.shape) != len(attention.shape) or maker.params["strides"] not in (None, (1,) * len(starts)):
                break
            if any(whole.shape[i] != attention.shape[i] for i in range(len(whole.shape)) if i != query):
                break
            attention, rows = whole, (starts[query], limits[query])
        tapped = Variable(attention.shape, attention.dtype, True, own=attention.own)
        learned = not all(v.active for v in scores.inputs)
        return Site(
            Operation("attention"),
            (attention,),
            (tapped,),
            (product,),
            heads,
            query,
            keys[0],
            product,
            1 - side,
            learned,
            [],
            rows,
        )
