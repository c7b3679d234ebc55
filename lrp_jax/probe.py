"""The probe of models written by hand: whether relevance passes through operations of rules alone.

Silently wrong maps are the alternative: a plain product answers with its gradient, and so does an operation's rule
under a vmap that it does not see. Patterns of composites are matched with the operations in the same way.
"""

from __future__ import annotations

import collections
from functools import partial
from typing import NamedTuple

import jax
from jax import Array

from lrp_jax.model import Model, Params, ask
from lrp_jax.primitives import MOVES
from lrp_jax.program import Equation, Program, activate, deactivate, flatten
from lrp_jax.rules import GRADIENT, Rules, Where
from lrp_jax.rules.composite import Choices, tagged
from lrp_jax.rules.paired import operation, operations
from lrp_jax.walk import forward


def check_rules(model: Model, params: Params, image: Array, *sets: Rules) -> None:
    """Refuse a model that relevance passes through beside the operations of rules, and rules for what it has not.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        *sets: the rules; of gradients alone, any model is right.

    Raises:
        ValueError: the model computes something of the image by itself, or applies an operation under a ``jax.vmap``;
            or a pattern of the rules matches nothing.
    """
    if any(rules != GRADIENT for rules in sets) and not ask(model, "is_checked"):
        _probe.eval_shape(model, params, image)
    for rules in sets:
        check_patterns(model, params, image, rules)


@partial(jax.jit, static_argnames="model")
def _probe(model: Model, params: Params, image: Array) -> None:
    jaxpr = jax.make_jaxpr(lambda image: forward(model, params, image, operations(())))(image)
    program = flatten(jaxpr, lambda primitives: False)
    activate(program, [True])
    deactivate(program)
    found = list(dict.fromkeys(str(equation) for equation in program.walk() if _computes(equation)))
    if found:
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        raise ValueError(
            f"the model computes by itself what relevance passes through: {', '.join(found[:5])}{more}. Let the "
            "operations of rules do it; beside them values are only moved (reshaped, sliced, concatenated) and have "
            "constants added."
        )


class Match(NamedTuple):
    """How many operations of a model a pattern matches.

    Attributes:
        where: the pattern; None: the default.
        rules: the name of their rules.
        operations: how many, those of a loop counted each time.
    """

    where: Where | None
    rules: str
    operations: int

    def __str__(self) -> str:
        return f"{self.where or 'all others'}: {self.rules}, {self.operations} operations"


def count_matches(model: Model, params: Params, image: Array, rules: Rules) -> list[Match]:
    """How many operations each pattern of a composite matches.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``, or what else is explained.
        rules: what :func:`lrp_jax.composite` gave; of other rules there are no patterns.
    """
    if not (isinstance(rules.places, Choices) and rules.places.checked):
        return []
    marked, patterns = tagged(rules, lambda tag: operations((), tag))
    jaxpr = jax.make_jaxpr(lambda image: forward(model, params, image, marked))(image)
    counts: collections.Counter[str] = collections.Counter()
    _count(flatten(jaxpr, lambda primitives: False), 1, counts)
    return [Match(where, name, counts[tag]) for where, name, tag in patterns]


def _count(program: Program, times: int, counts: collections.Counter[str]) -> None:
    for equation in program.equations:
        if equation.primitive == operation.name:
            tag, _, _ = equation.params["name"].rpartition(":")
            counts[f"{tag}:"] += times
        for inner in equation.programs:
            _count(inner, times * equation.params.get("length", 1), counts)


def check_patterns(model: Model, params: Params, image: Array, rules: Rules) -> None:
    """Refuse a composite of which a pattern matches no operation of the model."""
    found = count_matches(model, params, image, rules)
    unmatched = [str(match.where) for match in found if match.where is not None and not match.operations]
    if unmatched:
        raise ValueError(
            f"{rules.name}: no operation of the model matches {' or '.join(unmatched)}; matched are "
            f"{'; '.join(map(str, found))}."
        )


#: Beside moves: a constant may be added.
_SUMS = frozenset({"add", "add_any", "sub"})


def _computes(equation: Equation) -> bool:
    """Whether an equation computes something of the example by itself; what a loop does is looked at inside."""
    name, active = equation.primitive, [v.active for v in equation.inputs]
    if not any(v.active for v in equation.outputs) or name in (operation.name, "parted", "joined", *MOVES):
        return False
    return not equation.programs and not (name in _SUMS and sum(active) == 1 and (name != "sub" or active[0]))
