"""Where activity begins if the example is made of integers: where they choose rows of a table of embeddings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.primitives import OF_TOKENS
from lrp_jax.program import Equation, Program, Variable


def embeddings(program: Program, tokens: Variable) -> list[Equation]:
    """The equations that choose rows of a table by tokens: a gather, or a product with their one-hot code.

    Args:
        program: the program.
        tokens: which of its variables has the tokens, integers.

    Returns:
        The equations, in order.
    """
    same: set[Variable] = {tokens}
    one_hot: set[Variable] = set()
    found = []
    for equation in program.equations:
        given, name, made = equation.inputs, equation.primitive, equation.outputs
        if name == "gather":
            chosen = given[1] in same and jnp.issubdtype(given[0].dtype, jnp.floating)
        else:
            chosen = name == "dot_general" and not one_hot.isdisjoint(given)
        if chosen:
            found.append(equation)
        elif name == "eq":
            if not same.isdisjoint(given) and _counts(program, given):
                one_hot.update(made)
        elif name in {"convert_element_type", "reshape", "squeeze"} and given[0] in one_hot:
            one_hot.update(made)
        elif name in OF_TOKENS and not same.isdisjoint(given) and jnp.issubdtype(made[0].dtype, jnp.integer):
            same.update(made)
    return found


def _counts(program: Program, compared: tuple[Variable, ...]) -> bool:
    """Whether one of what is compared is 0, 1, 2, ...: of a one-hot code."""
    makers = {v: e for e in program.equations for v in e.outputs}
    for variable in compared:
        while variable in makers and makers[variable].primitive in {
            "broadcast_in_dim",
            "reshape",
            "convert_element_type",
        }:
            variable = makers[variable].inputs[0]
        if variable in makers and makers[variable].primitive == "iota":
            return True
    return False


def begin_at(program: Program, equation: Equation) -> Program:
    """The program up to an equation, which is left out of the program; what it gives becomes an input of the rest.

    Embeddings of single texts in a ``vmap`` may have more axes of length 1: the input is ``[1, N, D]`` all the same.
    """
    place = program.equations.index(equation)
    before = Program(list(program.inputs), list(equation.outputs), program.equations[: place + 1])
    program.equations.remove(equation)
    (inside,) = equation.outputs
    embedded = Variable((math.prod(inside.shape[:-2]), *inside.shape[-2:]), inside.dtype)
    if embedded.shape == inside.shape:
        embedded = inside
    else:

        def shaped(x: Array) -> list[Array]:
            return [jax.lax.reshape(x, inside.shape)]

        params = {"new_sizes": inside.shape, "dimensions": None, "sharding": None}
        program.equations.insert(0, Equation("reshape", (embedded,), (inside,), params, shaped, equation.source))
    program.inputs.append(embedded)
    return before
