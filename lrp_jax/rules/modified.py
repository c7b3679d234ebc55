"""Modified gradients: AttnLRP, CP-LRP, the rules of Ali et al., LibraGrad.

What these sets send back is a gradient g in which some parts of the program are held constant, shared out or smoothed;
relevance is the value that stands there times g. Nothing is divided by what may cancel, so nothing is amplified.

- AttnLRP: Achtibat et al. 2024 (arXiv 2402.05602), section 3.3, in the gradient form of its authors' library.
- CP-LRP: the same library's rules for Vision Transformers, after Ali et al.
- Ali et al. 2022 (arXiv 2202.07304), section 3: attention and the deviation of layer norm held.
- LibraGrad: Mehri et al. 2025 (arXiv 2411.16760).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lrp_jax.program import Variable, flatten
from lrp_jax.rules import base
from lrp_jax.rules.base import GRADIENT, Product, Rules, register, rule, transposed
from lrp_jax.rules.composite import Choice, Where, chosen

#: What a normalisation divides by: roots, or where there are none, the divisors themselves.
_ROOTS = frozenset({"rsqrt", "sqrt", "pow"})


@rule(jnp.matmul)
def shared_matmul(a: Array, b: Array, z: Array, g: Array) -> tuple[Array, Array]:
    """``z = a b``: half of the gradient to each, ``g_a = g b^T / 2``, ``g_b = a^T g / 2``."""
    return g @ b.mT / 2, a.mT @ g / 2


@rule(base.multiply)
def shared_multiply(a: Array, b: Array, z: Array, g: Array, *, gated: bool = True) -> tuple[Array, Array]:
    """``z = a b``: half of the gradient to each, ``g_a = g b / 2``, ``g_b = g a / 2``."""
    return g * b / 2, g * a / 2


@rule(base.multiply)
def held_gate(a: Array, b: Array, z: Array, g: Array, *, gated: bool = True) -> tuple[Array, Array]:
    """``z = a b``, a the gate, held: ``g_a = 0``, ``g_b = g a``; of a product without a gate, half to each."""
    return (jnp.zeros_like(a), g * a) if gated else (g * b / 2, g * a / 2)


@rule(base.softmax)
def held_softmax(x: Array, *_: Any, **__: Any) -> Array:
    """The attention is held: ``g_x = 0``."""
    return jnp.zeros_like(x)


@rule(base.layer_norm)
def held_deviation(x: Array, *parameters_z_g: Any, function: Callable[..., Array] = base.normalised) -> Array:
    """``y = (x - mean) / deviation``: the gradient with the deviation held, of a normalisation of any form."""
    *parameters, _, g = parameters_z_g
    _, divisors = _run(function, x, parameters, None)
    # Two runs, so that the divisors are held in this gradient alone: what a caller differentiates depends on them.
    return jax.vjp(lambda x: _run(function, x, parameters, divisors)[0], x)[1](g)[0]


def _run(
    function: Callable[..., Array], x: Array, parameters: Sequence[Any], divisors: Sequence[Array] | None
) -> tuple[Array, list[Array]]:
    """A normalisation with some values of what it divides by, None: its own; and these values."""
    program = flatten(jax.make_jaxpr(function)(x, *parameters), lambda primitives: False)
    known: dict[Any, Any] = dict(zip(program.inputs, (x, *parameters), strict=True))
    found: list[Array] = []
    roots = {v for e in program.equations if e.primitive in _ROOTS for v in e.outputs}
    if not roots:
        roots = {e.inputs[1] for e in program.equations if e.primitive == "div"}

    def read(variable: Variable) -> Any:
        return known[variable] if variable.constant is None else variable.constant

    for equation in program.equations:
        known |= zip(equation.outputs, equation.call(*map(read, equation.inputs)), strict=True)
        for root in roots.intersection(equation.outputs):
            known[root] = known[root] if divisors is None else divisors[len(found)]
            found.append(known[root])
    return read(program.outputs[0]), found


@rule(base.activation)
def proportional_activation(function: Callable[..., Array], x: Array, *parameters_z_g: Any) -> Array:
    """``z = f(x)``: ``g_x = g (f(x) - f(0)) / x``, and ``g f'(0)`` where x is 0; f(0) has the part of a bias.

    Where f has no value at 0, as an inverse, the gradient.
    """
    *parameters, z, g = parameters_z_g

    def of_x(x: Array) -> Array:
        return function(x, *parameters)

    at_zero, slope = jax.jvp(of_x, (jnp.zeros_like(x),), (jnp.ones_like(x),))
    is_known = jnp.isfinite(at_zero) & jnp.isfinite(slope)
    at_zero, slope = (jnp.where(is_known, value, 0).astype(x.dtype) for value in (at_zero, slope))
    proportion = jnp.where(x == 0, slope, (z.astype(x.dtype) - at_zero) / jnp.where(x == 0, 1, x))
    (gradient,) = jax.vjp(of_x, x)[1](g)
    return jnp.where(is_known, g.astype(x.dtype) * proportion, gradient)


@rule(base.dense)
def gamma_dense(
    x: Array, w: Array, b: Array | None, z: Array, g: Array, *, gamma: float, product: Product = jnp.matmul
) -> Array:
    """gamma: terms of the sign of z count more, ``g_x = sum over j of (w_j + gamma (x w_j)^s / x) s_j``.

    With ``(t)^s`` the part of t that has the sign of z, ``D = z + gamma (sum of (x w)^s + b^s)`` and ``s = g z / D``.
    """
    # (x w)^s sums to (x w + sign(z) |x| |w|) / 2: three products more than the gradient takes, and none divided by x.
    sign, absolute = jnp.sign(z), jnp.abs(w)
    bias = jnp.zeros_like(z) if b is None else jnp.broadcast_to(b, z.shape)
    same = (z - bias + sign * product(jnp.abs(x), absolute)) / 2 + jnp.where(bias * sign > 0, bias, 0)
    whole = z + gamma * same
    s = g * jnp.where(whole == 0, 0, z / jnp.where(whole == 0, 1, whole))
    smoothed = jnp.sign(x) * transposed(product, x, absolute, sign * s)
    return (1 + gamma / 2) * transposed(product, x, w, s) + gamma / 2 * smoothed


@functools.cache
def with_gamma(rules: Rules, gamma: float, at: str = "mlp") -> Rules:
    """Modified gradients with the gamma rule for products with parameters.

    Args:
        rules: a set of modified gradients, as :data:`ATTNLRP`.
        gamma: how much more terms of the sign of z count; LXT's example has 0.05, and 0.25 for the patch embedding.
        at: ``"mlp"``: not in the products of attention, which is LXT's reach; ``"all"``.

    Returns:
        The rule set; the same object for the same arguments, and ``rules`` itself for gamma 0.

    Raises:
        ValueError: gamma is below 0 or not finite, ``at`` is neither, or ``rules`` send relevance back.
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma must be a finite number of at least 0, got {gamma!r}.")
    if at not in ("mlp", "all"):
        raise ValueError(f"gamma_at must be one of mlp, all; got {at!r}.")
    if not rules.times_values:
        raise ValueError(f"the gamma rule is for modified gradients, {rules.name} sends relevance back.")
    if gamma == 0:
        return rules
    name, product = f"{rules.name}, gamma {gamma} at {at}", partial(gamma_dense, gamma=gamma)
    everywhere = dataclasses.replace(rules, name=name, dense=product, patch_embed=product)
    if at == "all":
        return everywhere
    attention = Where(part="attention")
    return chosen(name, [Choice(attention, rules, frozenset({"part"}))], everywhere, checked=False)


#: Ali et al. 2022: attention and the deviation of layer norm held.
ALI_LRP = register(
    dataclasses.replace(
        GRADIENT,
        name="ali_lrp",
        times_values=True,
        softmax=held_softmax,
        layer_norm=held_deviation,
        multiply=held_gate,
    )
)
#: CP-LRP, as Achtibat et al. 2024 have it: activations are lines through 0 as well.
CP_LRP = register(dataclasses.replace(ALI_LRP, name="cp_lrp", activation=proportional_activation))
#: LibraGrad, Mehri et al. 2025: gates are shared.
LIBRAGRAD = register(dataclasses.replace(CP_LRP, name="libragrad", multiply=shared_multiply))
#: AttnLRP, Achtibat et al. 2024: attention is not held, and products of two activations are shared.
ATTNLRP = register(dataclasses.replace(LIBRAGRAD, name="attnlrp", softmax=base.softmax, matmul=shared_matmul))
