"""Attention of a traced program over chunks of its queries, as :mod:`lrp_jax.rules.attention` computes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from lrp_jax.program import Equation, Program, Variable
from lrp_jax.rules import Rules
from lrp_jax.rules.attention import CHUNK, over_queries
from lrp_jax.rules.base import merge
from lrp_jax.tracing.cutting import Cut, cut
from lrp_jax.tracing.features import Numbers
from lrp_jax.tracing.rows import CoupledError
from lrp_jax.tracing.steps import Recognised, Site, Step

#: ``(program, numbers) -> program``: how equations become operations, see :func:`lrp_jax.tracing.recognise.recognise`.
Recognise = Callable[[Program, dict[Variable, Numbers]], Recognised]


@dataclasses.dataclass(eq=False)
class Region:
    """What a program computes from a product of queries and keys to the product with the values.

    Attributes:
        equations: from the product of queries and keys on, in order, as the program had them before parts of products
            were folded into these.
        side: which operand of the last of them, the product with the values, is the attention.
        query: the attention's axis of queries.
        shared: whether something else reads of what is computed in between.
        makers: what makes the variables of the program.
        numbers: of which features they are, see :mod:`lrp_jax.tracing.features`.
        recognise: how a program becomes one of operations.
        steps: the operations of all queries at once.
        stands: what stands for variables of the program whose equations were folded.
        chunk: how many queries are computed at once; None: by size.
    """

    equations: list[Equation]
    side: int
    query: int
    shared: bool
    makers: Mapping[Variable, Equation]
    numbers: Mapping[Variable, Numbers]
    recognise: Recognise
    steps: list[Step] = dataclasses.field(default_factory=list)
    stands: Mapping[Variable, Variable] = dataclasses.field(default_factory=dict)
    chunk: int | None = None

    @property
    def queries(self) -> int:
        """How many there are."""
        return self.attention.shape[self.query]

    @property
    def width(self) -> int:
        """How many values the maps of a query have, of all heads."""
        return self.attention.size // self.queries

    @property
    def attention(self) -> Variable:
        """What goes into the product with the values."""
        return self.equations[-1].inputs[self.side]

    @property
    def size(self) -> int:
        """How many queries are computed at once, at least two of several, as axes of one value say little."""
        size = CHUNK // self.width if self.chunk is None else self.chunk
        chunks = -(-self.queries // max(2, size))
        return -(-self.queries // chunks)

    @property
    def is_large(self) -> bool:
        """Whether there are more queries than are computed at once."""
        return self.size < self.queries

    @property
    def is_cut(self) -> bool:
        """Whether some queries are computed at a time."""
        return self.is_large and not self.why_whole

    @functools.cached_property
    def why_whole(self) -> str:
        """Why queries cannot be parted; empty if they can."""
        if self.shared:
            return f"more than the product with the values reads of it ({self.equations[-1].line})"
        try:
            assert self.some
        except CoupledError as coupled:
            return f"its queries are not apart in {coupled.equation}"
        return ""

    @functools.cached_property
    def cut(self) -> Cut:
        """The region, cut along its queries.

        Raises:
            CoupledError: it cannot be told that each query is computed by itself.
        """
        return cut(self.equations, self.side, self.query, self.makers)

    @functools.cached_property
    def some(self) -> Recognised:
        """The program of some queries, in the operations that the one of all has.

        Raises:
            CoupledError: see :attr:`cut`; or it has other operations.
        """
        program, of = self.cut.of(self.size, self.queries)
        numbers = {}
        for variable, outer in self.cut.outside.items():
            inner = of[variable]
            if inner.active and outer in self.numbers:
                numbers[inner] = self.numbers[outer][tuple(slice(n) for n in inner.shape)]
        found = self.recognise(program, numbers)
        some, whole = ([s for s in steps if s.operation is not None] for steps in (found.steps, self.steps))
        of_some, of_whole = ([s.operation and s.operation.name for s in steps] for steps in (some, whole))
        if of_some != of_whole:
            raise CoupledError(self.equations[-1])
        for step, of_all in zip(some, whole, strict=True):
            step.place = of_all.place
            if isinstance(step, Site) and isinstance(of_all, Site):
                step.heads, step.query, step.key = of_all.heads, of_all.query, of_all.key
                step.handed_out = of_all.handed_out
        return found

    def run(
        self, rules: Rules, known: Mapping[Variable, Any], run: Callable[[Recognised, Rules, list[Any]], list[Any]]
    ) -> Array:
        """What the region gives, some queries at a time.

        Args:
            rules: its operations.
            known: the values of the program's variables.
            run: runs the program of some queries.
        """
        (site,) = (step for step in self.steps if isinstance(step, Site))
        outside, rows = self.cut.outside, self.cut.rows
        of = [self.stands.get(v, v) for v in outside.values()]
        values = [v.constant if v.constant is not None else known[v] for v in of]
        is_cut = [v in rows for v in outside]

        def of_some(rules: Rules, *sliced: Array) -> Array:
            found: Array = run(self.some, rules, merge(is_cut, sliced, values))[0]
            return found

        return over_queries(
            rules,
            of_some,
            [jnp.asarray(x) for x, is_sliced in zip(values, is_cut, strict=True) if is_sliced],
            self.size,
            width=self.width,
            axes=[rows[v].axis for v in outside if v in rows],
            axis=rows[self.cut.outputs[0]].axis,
            first=0 if site.rows is None else site.rows[0],
        )
