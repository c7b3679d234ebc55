"""Whether the attention of a program is a chain of blocks, for rollouts: each reads what the one before it gave."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.primitives import REORDERING
from lrp_jax.program import Equation, Variable
from lrp_jax.rules import Rules
from lrp_jax.tracing import products
from lrp_jax.tracing.interpret import Points, run
from lrp_jax.tracing.layout import compiled
from lrp_jax.tracing.mixture import MIXTURE
from lrp_jax.tracing.places import block_starts, cut_points
from lrp_jax.tracing.reading import query_axis
from lrp_jax.tracing.steps import Choice, Loop, Recognised, Site, Step


class _BrokenError(Exception):
    """Attention is no chain, and why."""


def broken_chain(program: Recognised, example: int, *, is_read_alike: bool) -> str:
    """Why the attention of a program is no chain of blocks; empty if it is.

    Args:
        program: the program, which has attention of one size.
        example: which of its inputs is explained.
        is_read_alike: whether the head reads the same tokens of every input.
    """
    try:
        _follow(program, None, [])
    except _BrokenError as broken:
        return str(broken)
    moves = _Moves(program)
    if moves.between:
        return f"tokens change places between its blocks as the input says, {moves.between[0]}"
    if _is_strict(program, program.inputs[example]):
        return _out_of_step(program, program.inputs[example], moves.displaced)
    if not is_read_alike:
        return "paths around its blocks lead to a head that reads other tokens of each input"
    return _read_before(program)


def _follow(program: Recognised, reached: set[Variable] | None, before: list[Equation]) -> set[Variable] | None:
    """What depends on the last attention, going on from what depends on the last one before the program.

    Args:
        program: the program.
        reached: of what it is given; None: there is no attention before it.
        before: the products of attention so far.

    Raises:
        _BrokenError: the values of some attention do not depend on the last one before it.
    """
    sites = {step.product: step for step in program.steps if isinstance(step, Site)}
    for step in program.steps:
        if isinstance(step, Loop) and step.body.sites:
            inner = None
            if reached is not None:
                inner = {i for i, o in zip(step.body.inputs, step.inputs, strict=True) if o in reached}
            for _ in range(min(step.length, 2)):
                inner = _follow(step.body, inner, before) or set()
                after = inner
                carried = zip(step.body.inputs[step.consts :], step.body.outputs[: step.carry], strict=False)
                inner = {i for i, o in carried if o in after}
            reached = {o for o, v in zip(step.outputs, step.body.outputs, strict=True) if v in after}
        elif step.equations[0] in sites and not isinstance(step, Site):
            site = sites[step.equations[0]]
            if site.learned and site.query is not None and site.inputs[0].shape[site.query] > 1:
                raise _BrokenError(f"the queries of the attention at {site.product.line} are no tokens of the input")
            if reached is not None and step.inputs[site.values] not in reached:
                raise _BrokenError(
                    f"the attention at {site.product.line} reads nothing of the attention at {before[-1].line}, beside "
                    "which it stands"
                )
            before.append(site.product)
            reached = set(step.outputs)
        elif reached is not None and not reached.isdisjoint(step.active):
            reached.update(v for v in step.outputs if v.active)
    return reached


def _is_strict(program: Recognised, example: Variable | None) -> bool:
    """Whether all paths from each attention to the output pass through what enters the next."""
    starts = block_starts(program, example)
    if starts is None:
        return False
    through = set(cut_points(program))
    place = {v: i for i, step in enumerate(program.steps) for v in step.outputs}
    ends = -1
    for variable, step in starts:
        if place.get(variable, -1) < ends:
            return False
        if isinstance(step, Loop):
            if through.isdisjoint(step.outputs) or not _is_strict(step.body, None):
                return False
            ends = program.steps.index(step)
        elif isinstance(step, Site):
            ends = place[step.product.outputs[0]]
    return True


def _out_of_step(program: Recognised, example: Variable | None, displaced: bool) -> str:
    """Why blocks that follow each other are not of the same tokens, or of several streams; empty if they are.

    Numbers are given to places along one axis of what enters a block, and followed to what attention is of, and to what
    enters the next block.
    """
    starts = block_starts(program, example) or []
    for (variable, step), following in itertools.zip_longest(starts, starts[1:]):
        source, line = variable, step.equations[0].line
        if isinstance(step, Loop):
            told = _out_of_step(step.body, None, displaced)
            if told:
                return told
            through = set(cut_points(program))
            source = next(v for v in step.outputs if v in through)
        elif isinstance(step, Site) and sum(size > 1 for size in variable.shape) > 2:
            values = step.product.inputs[step.values]
            if any(_is_stream(step, of_each) for _, of_each in _followed(program, variable, values, _WITHIN)):
                return f"the attention at {line} is of several streams of tokens, side by side"
        carried = [v for v in program.outputs if v.active and example is None]
        after = following[0] if following else next(iter(carried), source)
        followed: Iterable[tuple[int, np.ndarray]] = ()
        if displaced and after is not source and after.shape == source.shape:
            followed = _followed(program, source, after, _AROUND)
        if not all(_keeps(of_each, axis) for axis, of_each in followed):
            return f"tokens change places after the attention at {line}"
    return ""


def _zeros(a: jax.Array, b: jax.Array, *_: Any, **__: Any) -> jax.Array:
    return jnp.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)


def _zero_product(x: jax.Array, kernel: jax.Array, *_: Any, product: Any = jnp.matmul) -> jax.Array:
    return jnp.zeros_like(product(x, kernel))


#: Mixtures without what attention adds; and without what any product adds.
_WITHIN = dataclasses.replace(MIXTURE, matmul=_zeros)
_AROUND = dataclasses.replace(_WITHIN, dense=_zero_product, patch_embed=_zero_product)


def _followed(
    program: Recognised, source: Variable, wanted: Variable, rules: Rules, power: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """What a variable is, if another one counts its places along an axis; for each axis of more than one.

    With a power, of these numbers: a mean of places has another square than a place.
    """
    place = next((i for i, step in enumerate(program.steps) if source in step.outputs), -1)
    end = next((i for i, step in enumerate(program.steps) if wanted in step.outputs), len(program.steps) - 1)
    steps = [step for i, step in enumerate(program.steps[: end + 1]) if i > place or step.operation is None]
    made = {v for step in steps for v in step.outputs}
    read = [v for v in dict.fromkeys(v for step in steps for v in step.inputs) if v.constant is None]
    inputs = list(dict.fromkeys([source, *(v for v in read if v not in made)]))
    axes = [i for i, size in enumerate(source.shape) if size > 1]

    def follow() -> list[jax.Array]:
        found = []
        for axis in axes:
            counted = jnp.expand_dims(
                jnp.arange(source.shape[axis]) ** power, [i for i in range(len(source.shape)) if i != axis]
            )
            values = [jnp.zeros(v.shape, v.dtype) for v in inputs[1:]]
            values.insert(0, jnp.broadcast_to(counted, source.shape).astype(source.dtype))
            found.append(run(Recognised(inputs, [wanted], steps), rules, values)[0])
        return found

    yield from zip(axes, (np.asarray(x, np.float64) for x in compiled(follow)), strict=True)


def queried(program: Recognised, example: int, site: Site) -> tuple[int, int] | None:
    """Which tokens the queries of an attention are, the first of them and one behind the last.

    Args:
        program: the program.
        example: which of its inputs is explained.
        site: its attention, of fewer queries than tokens.

    Returns:
        The tokens; None: they cannot be told, or are not next to each other.
    """
    starts = block_starts(program, program.inputs[example]) or []
    source = next((variable for variable, step in starts if step is site), None)
    if source is None or site.query is None:
        return None
    n, queries = site.inputs[0].shape[site.key], site.inputs[0].shape[site.query]
    read = (site.product.inputs[site.values], *site.products[1].inputs)
    followed = [[_followed(program, source, v, _WITHIN, power) for power in (1, 2)] for v in read]
    for found in zip(*itertools.chain(*followed), strict=True):
        values, squares, *operands = (_along(counted) for _, counted in found)
        if not _are_places([values, squares], range(n)):
            continue
        for keys, those in ((operands[:2], operands[2:]), (operands[2:], operands[:2])):
            if _are_places(keys, range(n)) and np.isfinite(those[0][0]):
                first = round(float(those[0][0]))
                if _are_places(those, range(first, first + queries)):
                    return first, first + queries
    return None


def _along(counted: np.ndarray) -> np.ndarray:
    """What was counted, along the one axis on which it varies; NaN, if it varies on several."""
    varies = [i for i in range(counted.ndim) if np.ptp(counted, axis=i).max(initial=0) > 1e-3]
    if len(varies) > 1:
        return np.array([np.nan])
    return (
        np.moveaxis(counted, varies, range(len(varies)))
        .reshape(*(counted.shape[i] for i in varies), -1)[..., :1]
        .ravel()
    )


def _are_places(counted: Sequence[np.ndarray], places: range) -> bool:
    """Whether numbers, and their squares, are of one place each, these one after the other."""
    wanted = np.array(places)
    return all(
        found.shape == power.shape and bool((np.abs(found - power) <= 1e-3 + 1e-6 * power).all())
        for found, power in zip(counted, (wanted, wanted**2), strict=True)
    )


def _is_stream(site: Site, values: np.ndarray) -> bool:
    """Whether what is counted differs from head to head of some values, and in nothing else."""
    batch, contracted, free = products.axes(site.product, site.values)
    differs = [bool(np.ptp(values, axis=i).max() > 1e-3) for i in range(values.ndim)]
    return any(differs[i] for i in batch) and not any(differs[i] for i in (*contracted, *free))


def _keeps(counted: np.ndarray, axis: int) -> bool:
    """Whether what was counted along an axis is in order there, and along no other."""
    along = counted.mean(axis=tuple(i for i in range(counted.ndim) if i != axis))
    others = (np.ptp(counted, axis=i).max(initial=0) for i in range(counted.ndim) if i != axis)
    return bool(np.diff(along).min() >= -1e-3) and all(other < 1e-3 for other in others)


def _read_before(program: Recognised) -> str:
    """Why the head reads other tokens on paths around the last blocks; empty if it does not."""
    sites = list(_sites(program, ()))

    def weights() -> list[jax.Array]:
        added = {
            s.product.outputs[0]: jnp.zeros((*t, *s.product.outputs[0].shape), s.product.outputs[0].dtype)
            for s, t in sites
        }

        def outputs(added: dict[int, jax.Array]) -> jax.Array:
            values = [jnp.zeros(v.shape, v.dtype) for v in program.inputs]
            points = Points({s.product.outputs[0]: x for (s, _), x in zip(sites, added.values(), strict=True)})
            found: jax.Array = run(program, _WITHIN, values, points)[0]
            return found

        found, pull = jax.vjp(outputs, dict(enumerate(added.values())))
        (sent,) = pull(jnp.ones_like(found))
        parts = []
        for (site, times), x in zip(sites, sent.values(), strict=True):
            axis = len(times) + query_axis(site)
            each = jnp.abs(x).sum(axis=tuple(i for i in range(len(times), x.ndim) if i != axis))
            parts.append(each.reshape(-1, each.shape[-1]))
        return parts

    found = []
    for (site, _), part in zip(sites, compiled(weights), strict=True):
        n, (start, _) = site.inputs[0].shape[site.key], site.rows or (0, 0)
        for row in np.asarray(part, np.float64):
            whole = np.zeros(n)
            whole[start : start + len(row)] = row
            found.append((site, whole / row.max(initial=0) if row.max(initial=0) > 0 else None))
    _, last = found[-1]
    for site, each in found[:-1]:
        if each is not None and (last is None or np.abs(each - last).max() > 1e-3):
            return f"the head reads other tokens of the block at {site.product.line} than of the last"
    return ""


def _sites(program: Recognised, times: tuple[int, ...]) -> Iterator[tuple[Site, tuple[int, ...]]]:
    for step in program.steps:
        if isinstance(step, Site) and step.query is not None:
            yield step, times
        elif isinstance(step, Loop):
            yield from _sites(step.body, (*times, step.length))


#: What takes values to places, or from them: which of its inputs say where, and which are as large if all are moved.
_PLACED = {"gather": slice(1, 2), "scatter": slice(1, 2), "dynamic_slice": slice(1, None)}
_PLACED |= {"dynamic_update_slice": slice(2, None)}
_MIXES = frozenset({"dense", "patch_embed", "matmul"})


class _Moves:
    """Where active values are taken to places that the inputs say."""

    def __init__(self, program: Recognised) -> None:
        self.said = {v for v in program.inputs if not v.active}  # what depends on inputs, not differentiably
        self.maker: dict[Variable, Step] = {}
        # Those before the first attention; and those after it on the way around what blocks compute.
        self.before: list[Equation] = []
        self.between: list[Equation] = []
        self.displaced = False  # whether anything may change places there
        last = max((i for i, step in enumerate(program.steps) if _attends(step)), default=-1)
        self.walk(program.steps[: last + 1], self.before)

    def walk(self, steps: Sequence[Step], found: list[Equation]) -> None:
        mixed: set[Variable] = set()
        for step in steps:
            self.maker |= dict.fromkeys(step.outputs, step)
            if step.operation is None:
                if any(v.active or v in self.said for v in step.inputs):
                    self.said.update(step.outputs)
                continue
            plain = not mixed.issuperset(step.active)
            if step.operation.name in _MIXES or not plain:
                mixed.update(step.outputs)
            if (plain or found is self.before) and self.moves(step):
                found.append(step.equations[0])
            self.displaced |= plain and found is self.between and step.equations[0].primitive in REORDERING
            if _attends(step) and found is self.before:  # its tokens are what was computed so far
                found = self.between
                mixed.clear()
            if isinstance(step, Loop):
                given = zip(step.body.inputs, step.inputs, strict=True)
                self.said.update(i for i, o in given if o in self.said)
                self.walk(step.body.steps, found)

    def moves(self, step: Step) -> bool:
        """Whether a step takes active values to places that the inputs say."""
        name = step.equations[0].primitive
        if isinstance(step, Choice):
            inside = {s.equations[0].primitive for branch in step.branches for s, _ in branch.walk()}
            return step.inputs[0] in self.said and not inside.isdisjoint(REORDERING)
        if name == "select_n":
            return step.inputs[0] in self.said and any(self.is_displaced(v) for v in step.active)
        if name in _PLACED:
            whole = {"dynamic_slice": step.outputs[0], "dynamic_update_slice": step.inputs[1]}.get(name)
            if whole is not None and whole.shape == step.inputs[0].shape:
                return False
            return not self.said.isdisjoint(step.inputs[_PLACED[name]])
        return name in {"sort", "top_k"}

    def is_displaced(self, variable: Variable) -> bool:
        """Whether a variable is another in a different order."""
        step = self.maker.get(variable)
        while step is not None and step.operation is not None and step.operation.name == "move":
            if step.equations[0].primitive in REORDERING:
                return True
            step = self.maker.get(step.active[0]) if len(step.active) == 1 else None
        return False


def _attends(step: Step) -> bool:
    return isinstance(step, Site) or (isinstance(step, Loop) and bool(step.body.sites))


def moved_by_inputs(program: Recognised) -> tuple[str, str]:
    """The operations that take tokens to places that the inputs say: before the first attention, and between blocks."""
    moves = _Moves(program)
    before, between = (next(iter(found), None) for found in (moves.before, moves.between))
    return str(before or ""), str(between or "")
