"""The names of JAX's primitives, by what they do: one table for all that reads programs.

A primitive of your own is put into it by :func:`lrp_jax.tracing.register`, which says what it is like.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Elementwise, of one value or of several of one shape, with a derivative.
ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "clamp", "cos"),
    *("cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "integer_pow", "lgamma", "log"),
    *("log1p", "logistic", "max", "min", "mul", "neg", "pow", "rsqrt", "sin", "sinh", "sqrt", "square", "sub"),
    *("tan", "tanh"),
}
#: Rounds to another precision.
CASTS = {"convert_element_type", "reduce_precision"}
#: Leaves values where they are, and what they are but for rounding.
KEEPS = {
    *CASTS,
    *("copy", "copy_p", "layout_constraint", "mesh_cast", "name", "pcast", "pvary", "reshard", "sharding_constraint"),
}
#: Takes a part of an array.
SELECTIONS = {"dynamic_slice", "gather", "slice", "split", "squeeze", "unstack"}
#: Takes a value to another place along an axis.
DISPLACING = {
    *(SELECTIONS - {"squeeze"}),
    *("concatenate", "dynamic_update_slice", "pad", "rev", "scatter", "stack", "tile", "transpose"),
}
#: Moves, or chooses, values.
MOVES = {
    *KEEPS,
    *DISPLACING,
    *("broadcast_in_dim", "expand_dims", "optimization_barrier", "reshape", "select_n", "squeeze"),
}
#: Rounds to whole numbers.
ROUNDINGS = {"round", "floor", "ceil", "sign"}
#: Of arrays of one shape, each value by those at its place.
ALIKE = {
    *ELEMENTWISE,
    *KEEPS,
    *ROUNDINGS,
    *("select_n", "stop_gradient", "is_finite", "eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"),
    *("and", "or", "not", "xor", "nextafter", "rem", "real", "imag", "complex", "conj", "shift_left"),
    *("shift_right_logical", "shift_right_arithmetic", "population_count", "clz", "bessel_i0e", "bessel_i1e"),
    *("igamma", "igammac", "igamma_grad_a", "polygamma", "zeta", "regularized_incomplete_beta", "random_gamma"),
    *("random_fold_in", "threefry2x32"),
}
#: Puts values of one array in another order, or leaves some out.
REORDERING = {"rev", "transpose", "gather", "slice", "concatenate", "dynamic_slice", "sort", "top_k"}
#: Sums, or the largest or smallest, along axes.
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}
#: Adds two values.
ADDITIONS = {"add", "add_any"}
#: Scales and shifts, by what is constant.
AFFINE = ADDITIONS | {"sub", "mul", "div", "neg"}
#: Leaves a rounded value, but for a scale and a shift.
SHIFTS = {"add", "sub", "mul", "div", "neg", "max", "min", "clamp"}
#: Chooses, or stops the derivative at the user's wish.
ENDS = {"stop_gradient", "eq", "ne", "lt", "le", "gt", "ge", "argmax", "argmin", "is_finite"}
#: Has no derivative.
CHOICES = ENDS | ROUNDINGS | {"and", "or", "not", "xor", "nextafter"}
#: Draws random numbers.
RANDOM = {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform", "threefry2x32"}
#: Leaves integers the tokens that they are; comparisons do not, from which masks and positions are made.
OF_TOKENS = {
    *("add", "broadcast_in_dim", "clamp", "convert_element_type", "copy", "expand_dims", "max", "min", "reshape"),
    *("select_n", "slice", "squeeze", "sub", "transpose", "concatenate", "pad", "dynamic_slice", "copy_p"),
}
#: Calls a program, and the parameter that has the program.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
#: Of these, has a derivative of its own.
OWN_DERIVATIVE = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}

_SETS = (
    *(ELEMENTWISE, ALIKE, MOVES, KEEPS, CASTS, DISPLACING, REORDERING, SELECTIONS, REDUCTIONS, ADDITIONS, AFFINE),
    *(SHIFTS, ROUNDINGS, ENDS, CHOICES, RANDOM, OF_TOKENS),
)


def put_beside(names: Iterable[str], known: str) -> None:
    """Say of some primitives all that is said of one.

    Args:
        names: of the primitives.
        known: the name of the one.

    Raises:
        ValueError: nothing is said of it.
    """
    found = [group for group in _SETS if known in group]
    if not found:
        raise ValueError(f"like must be a primitive of lrp_jax.primitives, got {known!r}.")
    for group in found:
        group.update(names)
