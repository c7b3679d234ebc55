"""Where the operations of a traced model stand: in which block and part, at which parameters and line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lrp_jax.program import Variable, dominators
from lrp_jax.tracing.steps import Choice, Loop, Names, Place, Recognised, Site, Step, sites_of


def locate(program: Recognised, names: Sequence[str], example: int) -> Variable | None:
    """Say of each step where it stands.

    Args:
        program: the program; its steps are given their places.
        names: of the parameters, which are the first inputs.
        example: which of the program's inputs is explained.

    Returns:
        What leaves the last block; None, if there are none that can be told apart.
    """
    _name(program, {v: ((name,),) for v, name in zip(program.inputs, names, strict=False)})
    for step in _attention(program):
        step.place = dataclasses.replace(step.place, part="attention")
    starts = block_starts(program, program.inputs[example])
    if not starts:
        return None
    end = _divide(program, starts, is_body=False)
    through = set(cut_points(program))
    return next((v for step in reversed(program.steps[:end]) for v in step.outputs if v in through), None)


def _name(program: Recognised, names: dict[Variable, Names]) -> None:
    """Say which parameters steps read, and where they are written."""
    for step in program.steps:
        read = [names[v] for v in dict.fromkeys(step.inputs) if not v.active and v in names]
        of_step = _together(read)
        if step.operation is None:
            stacked = step.equations[0].primitive == "stack" and all(len(each) == 1 for each in read)
            if stacked:  # by the loop that parameters of repeated blocks are given to
                of_step = tuple(names[v][0] if v in names else () for v in step.inputs)
            names |= dict.fromkeys(step.outputs, of_step)
        step.place = Place(None, None, of_step, step.equations[-1].place)
        if isinstance(step, Loop):
            inner = dict(zip(step.body.inputs, step.inputs, strict=True))
            _name(step.body, names_of(inner, names))
        elif isinstance(step, Choice):
            for branch in step.branches:
                _name(branch, names_of(dict(zip(branch.inputs, step.inputs[1:], strict=True)), names))


def names_of(given: Mapping[Variable, Variable], names: Mapping[Variable, Names]) -> dict[Variable, Names]:
    """The names of what a program is given."""
    return {inner: names[outer] for inner, outer in given.items() if outer in names}


def _together(read: Sequence[Names]) -> Names:
    """The names of all that is read, each time."""
    times = max((len(each) for each in read), default=1)
    return tuple(tuple(dict.fromkeys(name for each in read for name in each[i % len(each)])) for i in range(times))


def _attention(program: Recognised) -> list[Step]:
    """The steps of attention: from its projections, with the norm before them, to the addition of what it gives."""
    maker = {v: step for step in program.steps for v in step.outputs}
    readers: dict[Variable, list[Step]] = {}
    for step in program.steps:
        for variable in step.active:
            readers.setdefault(variable, []).append(step)
    found: dict[Step, None] = {}
    through = set(cut_points(program))
    for step in program.steps:
        if isinstance(step, Loop):
            found |= dict.fromkeys(_attention(step.body))
        if not isinstance(step, Site):
            continue
        products = [s for s in program.steps if s.equations and s.equations[0] in step.products]
        found |= dict.fromkeys([step, *products])
        _above(products, maker, through, found)
        _below([s for s in products if s.equations[0] is step.product], readers, found)
    return list(found)


#: What a norm, a bias or a scale is made of.
_ONE_BY_ONE = frozenset({"move", "layer_norm", "activation"})


def _above(
    products: Sequence[Step], maker: Mapping[Variable, Step], through: set[Variable], found: dict[Step, None]
) -> None:
    """The steps before some products, not beyond what enters the block: projections, and the norm before these."""
    waiting = [(v, False) for step in products for v in step.active]
    seen: set[tuple[Variable, bool]] = set()
    while waiting:
        variable, projected = waiting.pop()
        step = maker.get(variable)
        if step is None or (variable, projected) in seen or isinstance(step, (Loop, Choice)):
            continue
        seen.add((variable, projected))
        name = step.operation.name if step.operation else ""
        if name == "patch_embed" or (projected and name not in _ONE_BY_ONE):
            continue
        if variable in through and (projected or name == "add"):  # a pooling attention is all that paths pass through
            continue
        found[step] = None
        waiting += [(v, projected or name == "dense") for v in step.active]


def _below(products: Sequence[Step], readers: Mapping[Variable, list[Step]], found: dict[Step, None]) -> None:
    """The steps after some products: to their projection, and to the addition of what it gives."""
    waiting, seen = [(v, False) for step in products for v in step.outputs], set()
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        variable, projected = state
        for step in readers.get(variable, ()):
            name = step.operation.name if step.operation else ""
            if isinstance(step, (Loop, Choice)) or (projected and name not in _ONE_BY_ONE | {"add"}):
                continue
            found[step] = None
            if name != "add":
                waiting += [(v, projected or name == "dense") for v in step.outputs]


def _divide(program: Recognised, starts: Sequence[tuple[Variable, Step]], *, is_body: bool) -> int:
    """Say which block steps are in, given what enters blocks and their attention, or loops of them; where they end."""
    place = {v: i for i, step in enumerate(program.steps) for v in step.outputs}
    first = [0 if is_body and i == 0 else place.get(variable, -1) + 1 for i, (variable, _) in enumerate(starts)]
    end = len(program.steps) if is_body else _end(program, starts, first)
    block, blocks = -1, 0
    for i, step in enumerate(program.steps):
        while block + 1 < len(starts) and i >= first[block + 1]:
            block += 1
            of = starts[block - 1][1] if block else None
            blocks += 0 if of is None else sites_of(of)
        if isinstance(step, Loop) and any(step is of for _, of in starts):
            inner = block_starts(step.body, None)
            if inner:
                _divide(step.body, inner, is_body=True)
        inside = block >= 0 and i < end
        part = step.place.part or ("mlp" if inside else "embedding" if block < 0 else "head")
        step.place = dataclasses.replace(step.place, part=part, block=blocks if inside else None)
    return end


def _end(program: Recognised, starts: Sequence[tuple[Variable, Step]], first: Sequence[int]) -> int:
    """Where the last block ends: after as many additions as there are after the attention of those before it."""
    (_, last), begins = starts[-1], first[-1]
    if isinstance(last, Loop):
        return program.steps.index(last) + 1
    through, at = set(cut_points(program)), program.steps.index(last)

    def additions(steps: Sequence[Step], through: set[Variable]) -> list[int]:
        return [
            i
            for i, s in enumerate(steps)
            if s.operation is not None and s.operation.name == "add" and through.issuperset(s.outputs)
        ]

    wanted, after = 2, 0
    if len(starts) > 1:
        _, other = starts[-2]
        steps, cuts = program.steps[first[-2] : begins], through
        if isinstance(other, Loop):
            steps, cuts = other.body.steps, set(cut_points(other.body))
        found = additions(steps, cuts)
        wanted = len(found)
        after = sum(cuts.issuperset(s.outputs) and bool(s.active) for s in steps[found[-1] + 1 :]) if found else 0
    rest = program.steps[begins:]
    found = additions(rest, through)[:wanted]
    end = found[-1] + 1 if found else at + 1 - begins
    while after and end < len(rest):
        after -= bool(rest[end].active) and through.issuperset(rest[end].outputs)
        end += 1
    return begins + end


def block_starts(program: Recognised, example: Variable | None) -> list[tuple[Variable, Step]] | None:
    """The last variable before each attention, or loop of them, that all paths pass through, and these steps.

    Args:
        program: the program.
        example: the input that is explained; None: the one that a loop carries.

    Returns:
        Variables and steps, in order; None, if there is no such variable.
    """
    carried = [v for v in program.inputs if v.active]
    if example is None and len(carried) != 1:
        return None
    current = carried[0] if example is None else example
    through = set(cut_points(program))
    found = []
    for step in program.steps:
        attends = isinstance(step, Site) and not step.learned
        if attends and current not in through:
            return None
        if attends or (isinstance(step, Loop) and step.body.sites):
            found.append((current, step))
        current = next((v for v in step.outputs if v in through), current)
    return found


def cut_points(program: Recognised) -> list[Variable]:
    """The active variables that all paths from the example to the first active output pass through, in order.

    A loop may carry a counter before it.
    """
    above = dominators(program.inputs, program.steps)
    chain = []
    last: Variable | None = next(v for v in program.outputs if v.active)
    while last is not None:
        chain.append(last)
        last = above[last]
    return chain[::-1]
