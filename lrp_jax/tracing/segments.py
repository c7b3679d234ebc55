"""A program cut where all relevance passes one value: before its blocks of attention, between them, and after.

Blocks of a loop are its turns, from the tokens that enter the attention of one to those of the next: the loop may begin
within a block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from lrp_jax.program import Variable
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.tracing.constants import carried_of, constants, fixed_inside, fixed_of, in_turn
from lrp_jax.tracing.interpret import Turn, read, run_steps
from lrp_jax.tracing.layout import Stage
from lrp_jax.tracing.places import block_starts
from lrp_jax.tracing.precision import typed
from lrp_jax.tracing.steps import Loop, Recognised, Site, Step


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A value that all relevance passes.

    Attributes:
        variable: the value.
        place: how many steps of the program are run before; of a loop, those before the loop.
        loop: the loop that it is in; None: it is of the program itself.
        turn: of the loop, counted as they are run.
        inside: how many steps of the loop's body are run before.
        before: how many blocks are run before the turn.
    """

    variable: Variable
    place: int
    loop: Loop | None = None
    turn: int = 0
    inside: int = 0
    before: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """The cuts of a program of blocks.

    Attributes:
        program: the program.
        cuts: what enters each block, and at last what leaves the last one, or the output.
        axes: of these values, those of tokens.
        depth: how many blocks each loop runs, see :class:`lrp_jax.Model`.
        lent: choices by activations before the first block that later ones read, as a mask.
    """

    program: Recognised
    cuts: Sequence[Cut]
    axes: tuple[int, ...]
    depth: tuple[int, ...]
    lent: frozenset[Variable] = frozenset()

    def known(self, values: Sequence[Any]) -> dict[Variable, Any]:
        """What is known in all blocks, of the values of the program's inputs."""
        known = constants(self.program, values)
        if self.lent:
            before = dict(known)
            run_steps(self.program.steps[: self.cuts[0].place], GRADIENT, before, Turn(blocks=len(self.cuts) - 1))
            known |= {v: before[v] for v in self.lent}
        return known

    def tokens(self, value: Array) -> Array:
        """A value at a cut as ``[N, D]``."""
        order = self._order(value.ndim)
        n = math.prod(value.shape[i] for i in self.axes)
        return value.transpose(order).reshape(n, -1)

    def value(self, tokens: Array, cut: Cut) -> Array:
        """The inverse of :meth:`tokens`."""
        shape = cut.variable.shape
        order = self._order(len(shape))
        return tokens.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    def _order(self, ndim: int) -> list[int]:
        return [*self.axes, *(i for i in range(ndim) if i not in self.axes)]

    def before(self, values: Sequence[Any], rules: Rules) -> Array:
        """The tokens that enter the first block, of the values of the program's inputs."""
        return self.tokens(self._between(None, self.cuts[0], constants(self.program, values), None, rules, 0, None))

    def block(self, values: Sequence[Any], i: Any, first: int, tokens: Array, rules: Rules) -> Array:
        """The tokens that leave a block.

        Args:
            values: of the program's inputs.
            i: the number of the block, an integer or traced.
            first: the number of one that is run alike, an integer.
            tokens: ``[N, D]``.
            rules: the operations to use.
        """
        start, end = self.cuts[first], self.cuts[first + 1]
        turn = start.turn if isinstance(i, int) else start.turn + (i - first)
        found = self._between(start, end, self.known(values), self.value(tokens, start), rules, first, turn)
        return self.tokens(found) if first + 2 < len(self.cuts) or self.ends else found.reshape(-1)

    @property
    def ends(self) -> bool:
        """Whether the last block ends before the output."""
        return self.cuts[-1].variable not in self.program.outputs

    def after(self, values: Sequence[Any], tokens: Array, rules: Rules) -> Array:
        """The logits ``[C]`` of the tokens that leave the last block."""
        if not self.ends:
            return tokens
        cut = self.cuts[-1]
        if tokens.size != cut.variable.size:
            raise ValueError(
                f"the last block must compute all tokens, {self.cuts[0].variable}; it computes {cut.variable}, those "
                "that the head reads."
            )
        known = self.known(values) | {cut.variable: self.value(tokens, cut)}
        blocks = len(self.cuts) - 1
        run_steps(self.program.steps[cut.place :], rules, known, Turn(blocks=blocks), passed=blocks)
        return read(self.program.outputs[0], known).reshape(-1)

    def rules(self, i: int, rules: Rules) -> list[Rules]:
        """The rules of all steps of a block."""
        found = []
        for steps, turn in self.steps(i):
            found += turn.all_rules(rules, steps, i)
        return found

    def steps(self, i: int) -> list[tuple[Sequence[Step], Turn]]:
        """The steps of a block, and in which turn of their loop they are."""
        start, end, blocks = self.cuts[i], self.cuts[i + 1], len(self.cuts) - 1
        if start.loop is end.loop is None:
            return [(self.program.steps[start.place : end.place], Turn(blocks=blocks))]
        found: list[tuple[Sequence[Step], Turn]] = []
        place = start.place
        if start.loop is not None:
            turn = Turn(_number(start.loop, start.turn), start.before, blocks)
            if start.loop is end.loop and start.turn == end.turn:
                return [(start.loop.body.steps[start.inside : end.inside], turn)]
            found.append((start.loop.body.steps[start.inside :], turn))
            place += 1
        if end.loop is not None:
            if start.loop is not end.loop:
                found.append((self.program.steps[place : end.place], Turn(blocks=blocks)))
            turn = Turn(_number(end.loop, end.turn), end.before, blocks)
            found.append((end.loop.body.steps[: end.inside], turn))
        else:
            found.append((self.program.steps[place : end.place], Turn(blocks=blocks)))
        return found

    def _between(
        self,
        start: Cut | None,
        end: Cut,
        known: dict[Variable, Any],
        value: Any,
        rules: Rules,
        number: int,
        turn: Any,
    ) -> Array:
        """The value at a cut, of the one at the cut before it; of None, of the inputs."""
        blocks = len(self.cuts) - 1
        of = Turn(blocks=blocks)
        loop, place = None, 0
        if start is not None:
            loop, place = start.loop, start.place
        if loop is not None:
            assert start is not None
            inner = in_turn(loop, turn, known) | {start.variable: value}
            named = Turn(_number(loop, start.turn), start.before, blocks)
            if end.loop is loop and end.turn == start.turn:
                run_steps(loop.body.steps[start.inside : end.inside], rules, inner, named, passed=number)
                return read(end.variable, inner)
            run_steps(loop.body.steps[start.inside :], rules, inner, named, passed=number)
            carried = read(_active(loop.body.outputs[: loop.carry]), inner)
            place += 1
            if end.loop is loop:
                return self._enter(end, known, carried, rules, number, turn + 1)
            known[_active(loop.outputs[: loop.carry])] = carried
        elif start is not None:
            known[start.variable] = value
        passed = 0 if start is None else number
        run_steps(self.program.steps[place : end.place], rules, known, of, passed=passed)
        if end.loop is None:
            return read(end.variable, known)
        loop = end.loop
        entering = _active(loop.inputs[loop.consts : loop.consts + loop.carry])
        return self._enter(end, known, read(entering, known), rules, number, end.turn)

    def _enter(
        self, end: Cut, known: Mapping[Variable, Any], carried: Any, rules: Rules, number: int, turn: Any
    ) -> Any:
        """From the beginning of a turn of a loop to a cut in it."""
        loop = end.loop
        assert loop is not None
        variable = _active(loop.body.inputs[loop.consts : loop.consts + loop.carry])
        (carried,) = typed([variable], [carried])
        inner = in_turn(loop, turn, known) | {variable: carried}
        of = Turn(_number(loop, end.turn), end.before, len(self.cuts) - 1)
        run_steps(loop.body.steps[: end.inside], rules, inner, of, passed=number)
        return read(end.variable, inner)


def _active(variables: Sequence[Variable]) -> Variable:
    (found,) = (v for v in variables if v.active)
    return found


def _number(loop: Loop, turn: int) -> int:
    """Which of what a loop is given a turn takes."""
    return loop.length - 1 - turn if loop.equations[0].params["reverse"] else turn


def _lent(found: Segments) -> frozenset[Variable] | None:
    """What later blocks read of choices before the first one; None, if they read more of each other than the tokens."""
    program, lent = found.program, set[Variable]()
    before = program.steps[: found.cuts[0].place]
    chosen = {v for step in before if step.operation is None for v in step.outputs}
    fixed = fixed_of(program.steps, set(program.inputs))
    for loop in (step for step in program.steps if isinstance(step, Loop)):
        lent |= {v for v in loop.inputs if v in chosen - fixed} if loop.body.sites else set()
        inner = fixed_inside(loop, fixed | chosen)
        if loop.body.sites and not all(v in inner or v.constant is not None for *_, v in carried_of(loop)):
            return None
        fixed |= inner
    for i in range(len(found.cuts) - 1):
        known = {found.cuts[i].variable}
        for steps, _ in found.steps(i):
            for step in steps:
                read = {v for v in step.inputs if v.constant is None and v not in known and v not in fixed}
                if read - chosen:
                    return None
                lent |= read
                known.update(step.outputs)
            known = _passed(found.cuts[i], found.cuts[i + 1])
    return frozenset(lent)


def _passed(start: Cut, end: Cut) -> set[Variable]:
    """What goes on from a turn of a loop: to what follows the loop, and into the next."""
    found = set()
    if start.loop is not None:
        found.add(_active(start.loop.outputs[: start.loop.carry]))
    if end.loop is not None:
        found.add(_active(end.loop.body.inputs[end.loop.consts : end.loop.consts + end.loop.carry]))
    return found


def segments(program: Recognised, example: int, stage: Stage | None, leaving: Variable | None) -> Segments | None:
    """The blocks of a program; None: they cannot be told.

    Args:
        program: the program.
        example: which of its inputs is explained.
        stage: what enters the first block, with its grid.
        leaving: what leaves the last block, if that is told.
    """
    starts = block_starts(program, program.inputs[example])
    if not starts or stage is None:
        return None
    made = {v: i + 1 for i, step in enumerate(program.steps) for v in step.outputs}
    cuts: list[Cut] = []
    runs: list[int] = []
    for variable, step in starts:
        if isinstance(step, Site):
            if cuts and cuts[-1].variable is variable:
                continue  # a block of several attentions
            cuts.append(Cut(variable, made.get(variable, 0)))
            runs.append(1)
            continue
        assert isinstance(step, Loop)
        inner = block_starts(step.body, None)
        if not inner or any(isinstance(s, Loop) for _, s in inner) or not _is_chain(step):
            return None
        places = {v: i + 1 for i, s in enumerate(step.body.steps) for v in s.outputs}
        place = program.steps.index(step)
        n = len(cuts)
        cuts += [
            Cut(v, place, step, turn, places.get(v, 0), n + turn * len(inner))
            for turn in range(step.length)
            for v, _ in inner
        ]
        runs += [step.length - 1] * (step.length > 1) + [1] if len(inner) == 1 else [1] * (step.length * len(inner))
    last = cuts[-1]
    end = leaving if leaving is not None and made.get(leaving, 0) > last.place else program.outputs[0]
    if len({cut.variable.shape for cut in cuts}) != 1 or cuts[0].variable.shape != stage.variable.shape:
        return None
    cuts.append(Cut(end, made.get(end, 0)))
    found = Segments(program, cuts, stage.axes, tuple(runs))
    lent = _lent(found)
    return None if lent is None else dataclasses.replace(found, lent=lent)


def _is_chain(loop: Loop) -> bool:
    """Whether a loop carries one value of the example, is given none beside, and gives none beside."""
    active = [v.active for v in loop.inputs]
    carry = slice(loop.consts, loop.consts + loop.carry)
    given = [*active[: loop.consts], *active[carry.stop :]]
    stacked = any(v.active for v in loop.body.outputs[loop.carry :])
    carried = [v for v in loop.body.inputs[carry] if v.active]
    return not any(given) and not stacked and len(carried) == 1


def between(program: Recognised, variable: Variable | None, end: Variable) -> list[Step]:
    """The steps from one value that all relevance passes to another."""
    made = {v: i + 1 for i, step in enumerate(program.steps) for v in step.outputs}
    return program.steps[made.get(variable, 0) if variable is not None else 0 : made[end]]
