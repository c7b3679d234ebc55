#!/usr/bin/env bash
# A jax.custom_jvp whose value is a constant, but whose tangent is not, has results of another shape under a jax.vmap of
# a jax.jit or a jax.checkpoint, silently; under a jax.jit of a jax.vmap it raises a TypeError. Without them it is right.
#
# Versions: jax 0.10.1 (jaxlib 0.10.1), CPython 3.11. The same with jax 0.12.0.1. jax-ml/jax issue 16374 has the error
# (not the shape) with an array of size 0; it needs none.
# Such a function is how a cotangent is led past a value: zeros whose tangent is that of the input. What one would guess:
# jit changes nothing, and batching gives the constant the axis that its tangent has.
# What happens: in a jaxpr the value has no axis of the batch and the tangent has one. Giving the value its axis fails
# inside of JAX ("broadcast_dimensions must have length equal to operand ndim"), or both get one axis too many: of an
# input [2, 3], the value and its tangent are [2, 2, 3]. A value that depends on the input (x itself, where nobody reads
# the value) is a way around.
#
# Output seen:
#   vmap: (2, 3) and (2, 3)
#   vmap of jit: (2, 2, 3) and (2, 2, 3)
#   jit of vmap: TypeError
#   vmap of checkpoint: (2, 2, 3) and (2, 2, 3)
#   jit of vmap, of a value that depends on the input: (2, 3) and (2, 3)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6

"$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp


def led(value):
    function = jax.custom_jvp(value)
    function.defjvp(lambda primals, tangents: (function(*primals), tangents[0]))
    return function


def outcome(function):
    x = jnp.arange(6.0).reshape(2, 3)
    try:
        value, tangent = jax.jvp(function, (x,), (x + 1,))
    except TypeError:
        return "TypeError"
    return f"{value.shape} and {tangent.shape}"


constant, dependent = led(jnp.zeros_like), led(lambda x: x)
seen = {
    "vmap": outcome(jax.vmap(constant)),
    "vmap of jit": outcome(jax.vmap(jax.jit(lambda x: constant(x)))),
    "jit of vmap": outcome(jax.jit(jax.vmap(constant))),
    "vmap of checkpoint": outcome(jax.vmap(jax.checkpoint(lambda x: constant(x)))),
    "jit of vmap, of a value that depends on the input": outcome(jax.jit(jax.vmap(dependent))),
}
for name, what in seen.items():
    print(f"{name}: {what}")
right, wrong = "(2, 3) and (2, 3)", "(2, 2, 3) and (2, 2, 3)"
assert list(seen.values()) == [right, wrong, "TypeError", wrong, right], "changed"
PYTHON
