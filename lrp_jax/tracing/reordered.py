"""Whether values choose where tokens stand: attention would be of places that differ from input to input."""

from __future__ import annotations

import numpy as np

from lrp_jax.program import Variable
from lrp_jax.tracing import layout
from lrp_jax.tracing.steps import Loop, Recognised, Site, Step


def reordered(program: Recognised, example: int, axes: int) -> str:
    """The first step before the last attention that puts tokens where their values say, as a sort; empty: none.

    Args:
        program: the program.
        example: which of its inputs is the example.
        axes: 2 for an image, 1 for a sequence.
    """
    attends = [i for i, s in enumerate(program.steps) if isinstance(s, Site) or (isinstance(s, Loop) and s.body.sites)]
    before = Recognised(program.inputs, [], program.steps[: attends[-1] + 1])
    chosen = [(step, along) for step, along in _choices(before, {program.inputs[example]}) if along]
    if not chosen:
        return ""
    found = layout.centres(program, example, [step.active[0] for step, _ in chosen], axes)
    tolerance = layout.tolerance_of(program.inputs[example].shape[1 : 1 + axes])
    for (step, along), (reached, centre) in zip(chosen, found, strict=True):
        if not reached.any():
            continue
        places = np.where(np.isnan(centre), np.nanmean(centre), centre)
        if any(np.ptp(places, axis=axis + 1).max() > tolerance for axis in along):
            return str(step.equations[0])
    return ""


def _choices(program: Recognised, depends: set[Variable]) -> list[tuple[Step, tuple[int, ...]]]:
    """The steps that choose by values, and the axes along which they do; what depends on the example is added."""
    found: list[tuple[Step, tuple[int, ...]]] = []
    for step in program.steps:
        if isinstance(step, Loop):
            inner = {v for v, outer in zip(step.body.inputs, step.inputs, strict=True) if outer in depends}
            carried = list(zip(step.body.inputs[step.consts :], step.body.outputs[: step.carry], strict=False))
            while True:
                inside = _choices(step.body, set_of := set(inner))
                more = {v for v, output in carried if output in set_of}
                if more <= inner:
                    break
                inner |= more
            found += inside
            depends |= {v for v, made in zip(step.outputs, step.body.outputs, strict=True) if made in set_of}
        elif not depends.isdisjoint(step.inputs):
            depends.update(step.outputs)
            if step.operation is not None and step.active:
                found.append((step, _chosen_along(step, depends)))
    return found


def _chosen_along(step: Step, depends: set[Variable]) -> tuple[int, ...]:
    """The axes of its first active input along which a step chooses by values."""
    equation = step.equations[0]
    name, params, last = equation.primitive, equation.params, len(step.active[0].shape) - 1
    if name == "sort":
        return (params["dimension"],)
    if name in {"top_k", "approx_top_k"}:
        return (params.get("axis", params.get("reduction_dimension", -1)) % (last + 1),)
    if name == "gather" and equation.inputs[1] in depends:
        return tuple(params["dimension_numbers"].start_index_map)
    if name.startswith("scatter") and equation.inputs[1] in depends:
        return tuple(params["dimension_numbers"].scatter_dims_to_operand_dims)
    if name in {"dynamic_slice", "dynamic_update_slice"}:
        start = 1 if name == "dynamic_slice" else 2
        return tuple(i for i, v in enumerate(equation.inputs[start:]) if v in depends)
    return ()
