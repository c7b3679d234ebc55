"""A program as it is run: operations, attention, loops and choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lrp_jax.program import Equation, Variable
from lrp_jax.tracing.operations import Operation

if TYPE_CHECKING:
    from lrp_jax.tracing.queries import Region

#: The names of parameters, each time of the loop that they are given to; once, if they are the same each time.
Names = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an operation stands.

    Attributes:
        part: of :data:`lrp_jax.rules.PARTS`, if that can be told.
        block: how many blocks of its program are before its own; None: it is in no block.
        names: of the parameters that it reads.
        line: where it is written.
    """

    part: str | None
    block: int | None
    names: Names
    line: str


@dataclasses.dataclass(eq=False)
class Step:
    """One thing to run.

    Attributes:
        operation: how it is run; None: it does not depend on the example, and its equation is run as it is.
        inputs: what it reads.
        outputs: what it gives.
        equations: what it is made of.
        weighted: of a multiplication by a softmax, how many of its weights sum to 1.
        place: where it stands.
        tokens: the axes of what its operation gives that are no features; None: the operation has its own form, in
            which features are last, or that is not known.
        exact: its value in the dtypes of the program, where that is not what its equations give one after the other.
        region: the attention that it is a part of, if that may be computed for some queries at a time.
        given: what it reads, as its equations have it: attention that is read is another variable in ``inputs``.
    """

    operation: Operation | None
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    equations: tuple[Equation, ...]
    weighted: frozenset[int] = dataclasses.field(default=frozenset(), kw_only=True)
    place: Place = dataclasses.field(default=Place(None, None, ((),), ""), kw_only=True)
    tokens: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    exact: Callable[..., Any] | None = dataclasses.field(default=None, kw_only=True)
    region: Region | None = dataclasses.field(default=None, kw_only=True)
    given: tuple[Variable, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.given = self.inputs

    @property
    def active(self) -> list[Variable]:
        """The active inputs, each once."""
        return [v for v in dict.fromkeys(self.inputs) if v.active]


@dataclasses.dataclass(eq=False)
class Site(Step):
    """Where the attention goes into its product with the values: where it is handed out, and taps are added.

    Attributes:
        heads: its axes of heads.
        query: its axis of queries; None: it has none, for the one query of a pooling.
        key: its axis of keys.
        product: its product with the values.
        values: the place of the values among the product's inputs.
        learned: whether the query does not depend on the example.
        products: the products that it explains: those that it goes into, and those of queries and keys.
        rows: the tokens of the queries that the product reads, start and end; None: all, or not known.
        handed_out: whether it is; not, where it is not of all tokens with all.
    """

    heads: tuple[int, ...]
    query: int | None
    key: int
    product: Equation
    values: int
    learned: bool
    products: list[Equation]
    rows: tuple[int, int] | None = None
    handed_out: bool = True


@dataclasses.dataclass(eq=False)
class Loop(Step):
    """A scan with active values.

    Attributes:
        body: what is run each time.
        consts: how many inputs are constants.
        carry: how many are carried.
        length: how often it runs.
        each: of what it is given stacked, what it is given each time, where these are variables of the program.
    """

    body: Recognised
    consts: int
    carry: int
    length: int
    each: dict[Variable, tuple[Variable, ...]]


@dataclasses.dataclass(eq=False)
class Choice(Step):
    """A choice by what does not depend on the example.

    Attributes:
        branches: what may be run.
    """

    branches: tuple[Recognised, ...]


@dataclasses.dataclass(eq=False)
class Recognised:
    """A program of operations.

    Attributes:
        inputs: what it is given.
        outputs: what it gives.
        steps: what it runs, in order.
    """

    inputs: list[Variable]
    outputs: list[Variable]
    steps: list[Step]

    @property
    def sites(self) -> int:
        """How many attention maps it has."""
        return sum(sites_of(step) for step in self.steps)

    @property
    def blocks(self) -> int:
        """How many blocks it has: attention, but for a pooling by a learned query."""
        return sum(times for step, times in self.walk() if isinstance(step, Site) and not step.learned)

    def has(self, variable: Variable) -> bool:
        """Whether a variable is of this program or of a loop in it."""
        return variable in self.inputs or any(
            variable in step.outputs or (isinstance(step, Loop) and step.body.has(variable)) for step in self.steps
        )

    def walk(self) -> Iterator[tuple[Step, int]]:
        """All steps, those of loops as well, and how often each is run."""
        for step in self.steps:
            inner, times = ((step.body,), step.length) if isinstance(step, Loop) else (getattr(step, "branches", ()), 1)
            yield step, 1
            for program in inner:
                yield from ((s, n * times) for s, n in program.walk())


def sites_of(step: Step) -> int:
    """How many attention maps a step has, as often as it is run."""
    if isinstance(step, Site):
        return 1
    return step.length * step.body.sites if isinstance(step, Loop) else 0
