"""Whether a function gives each example of a batch the logits that it gives the example alone.

A model is explained one example at a time. A function whose logits of an example depend on the others, as with batch
norm in training mode, is another model for each batch: it is refused. The program of a batch of two tells; where it
does not, as with tokens that are sorted by expert and back, numbers do.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.model import full_precision
from lrp_jax.program import Equation, Program, flatten, prune
from lrp_jax.tracing.axes import HANDLERS
from lrp_jax.tracing.rows import coupled

#: ``(leaves of the parameters, leaves of the examples) -> logits``.
Function = Callable[[list[Any], list[Any]], Any]
Leaves = Sequence[Any]

_WAY_OUT = (
    "\nWith batch norm or dropout, trace the model as it is used for inference: module.eval() (NNX), train=False, "
    "deterministic=True or use_running_average=True (linen), training=False (Keras), is_training=False (Haiku), "
    "equinox.nn.inference_mode(module).\nTo explain what it computes of a batch of one, trace "
    "lambda params, images: jax.vmap(lambda image: apply(params, image[None])[0])(images)."
)


def check(function: Function, params: Leaves, shapes: Leaves, example: Leaves, single: Any) -> None:
    """Refuse a function whose logits of one example depend on the rest of its batch.

    Args:
        function: the function.
        params: the leaves of the parameters, or their shapes.
        shapes: their shapes.
        example: the leaves of an example batch, or their shapes.
        single: the jaxpr of the function of a batch of one.

    Raises:
        ValueError: examples depend on each other, or it cannot be told.
    """
    shape = single.out_avals[0].shape
    if shape[0] != 1:
        raise ValueError(f"apply must return logits [B, C] of a batch of B = 1, got the shape {shape}.")
    batch, jaxpr = _of_a_batch(function, shapes, example)
    if jaxpr is None:
        return  # it takes single examples alone
    program = flatten(jaxpr, lambda primitives: False)
    prune(program)
    is_example = [i >= len(params) for i in range(len(program.inputs))]
    meeting, random = coupled(program, is_example, batch, HANDLERS)
    is_alike = jaxpr.out_avals[0].shape[:1] == (batch,) and _numbers(single) == _numbers(jaxpr)
    if meeting is not None or not is_alike:
        _try(function, params, shapes, example, batch, program, meeting, random)
    if random:
        warnings.warn(
            f"apply draws random numbers that do not depend on the example, {random[0]}: they are explained as a part "
            "of the model. If they are of dropout, trace the model as it is used for inference.",
            stacklevel=3,
        )


def _numbers(jaxpr: Any) -> collections.Counter[str]:
    """The floating numbers in a program: other ones in that of another batch are made of its size."""
    read = (v for equation in flatten(jaxpr, lambda primitives: False).walk() for v in equation.inputs if not v.shape)
    known = (v for v in read if v.constant is not None and not isinstance(v.constant, jax.core.Tracer))
    return collections.Counter(str(float(v.constant)) for v in known if jnp.issubdtype(v.dtype, jnp.floating))


def _of_a_batch(function: Function, shapes: Leaves, example: Leaves) -> tuple[int, Any]:
    """The program of a batch of two; of a function that does not take two, of as many as the example has, or None."""
    sizes = dict.fromkeys([2, *(np.shape(leaf)[0] for leaf in example[:1])])
    for batch in (size for size in sizes if size > 1):
        given = [jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype) for leaf in example]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as of the batch of one
            try:
                return batch, jax.make_jaxpr(function)(list(shapes), given)
            except Exception:  # whatever the function raises
                continue
    return 1, None


def _try(
    function: Function,
    params: Leaves,
    shapes: Leaves,
    example: Leaves,
    batch: int,
    program: Program,
    meeting: Equation | None,
    random: Sequence[Equation],
) -> None:
    """Compare batches with their examples one by one, where the program does not tell."""
    where = "" if meeting is None else f" They meet in {meeting}."
    if random:
        where += f" Random numbers are drawn in {random[0]}."
    rng = np.random.default_rng(0)
    try:
        with jax.ensure_compile_time_eval(), full_precision():  # inside the caller's jit as well
            values = [_given(leaf, shape, rng) for leaf, shape in zip(params, shapes, strict=True)]
            difference = _difference(function, values, _pool(example, rng), batch)
    except Exception as error:  # whatever the function raises
        raise ValueError(
            f"it cannot be told whether the logits of one example depend on the rest of its batch, {error}.{where}"
            + _WAY_OUT
        ) from error
    halves = {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
    is_rough = any(v.dtype in halves for equation in program.walk() for v in equation.outputs)
    if not difference < (0.03 if is_rough else 1e-3):
        raise ValueError(
            f"the logits of one example depend on the rest of its batch: those of trials differ by {difference:.2g} of "
            f"the largest from those of the example alone.{where}{_WAY_OUT}"
        )


def _given(leaf: Any, shape: Any, rng: np.random.Generator) -> Any:
    """A value of a leaf: its own; of a shape, or inside a jit, a random one."""
    if not isinstance(leaf, (jax.ShapeDtypeStruct, jax.core.Tracer)):
        return leaf
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape.shape)
    if not jnp.issubdtype(shape.dtype, jnp.inexact):
        return jnp.zeros(shape.shape, shape.dtype)
    if len(shape.shape) < 2:  # a scale, a bias or a variance
        return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape), shape.dtype)
    return jnp.asarray(rng.normal(size=shape.shape) / math.sqrt(math.prod(shape.shape[:-1])), shape.dtype)


def _pool(example: Leaves, rng: np.random.Generator) -> list[list[Array]]:
    """Different examples, each as leaves ``[1, ...]``: the first two that are given, and changes of the first."""
    of_two = [jax.ShapeDtypeStruct((2, *np.shape(leaf)[1:]), leaf.dtype) for leaf in example]
    known = [jnp.asarray(_given(leaf, shape, rng)) for leaf, shape in zip(example, of_two, strict=True)]

    def turned(x: Array) -> Array:
        return x[:, ::-1] if x.ndim > 1 else x

    def changed(x: Array, change: Callable[[Array], Array]) -> Array:
        return change(x) if jnp.issubdtype(x.dtype, jnp.floating) else turned(x)

    rows = [[x[i : i + 1] for x in known] for i in range(min(2, len(known[0])))]
    changes = (turned, lambda x: 4 * x, lambda x: jnp.full_like(x, 8 * abs(x).max()))
    return [*rows, *([changed(x, change) for x in rows[0]] for change in changes)]


def _difference(function: Function, params: Leaves, pool: Sequence[list[Array]], batch: int) -> float:
    """The largest difference of logits in batches from those of the examples alone, as a part of the largest logit."""

    def compiled(example: list[Array]) -> Callable[[list[Array]], np.ndarray]:
        run = jax.jit(function).lower(params, example).compile()
        return lambda example: np.asarray(run(params, example), np.float64)

    def together(first: int, rest: int) -> list[Array]:
        rows = [pool[first], *[pool[rest]] * (batch - 1)]
        return [jnp.concatenate(leaves) for leaves in zip(*rows, strict=True)]

    alone, several = compiled(pool[0]), compiled(together(0, 0))
    singles = [alone(example) for example in pool]
    differences = []
    for first, rest in [(0, i) for i in range(1, len(pool))] + [(i, 0) for i in range(1, len(pool))]:
        found = several(together(first, rest))
        expected = np.concatenate([singles[first], *[singles[rest]] * (batch - 1)])[: len(found)]
        if found.shape != expected.shape or len(found) not in (1, batch):
            raise ValueError(f"apply must return logits [B, C], got the shape {found.shape} of a batch of {batch}")
        if np.isfinite(expected).all():
            largest = max(np.abs(expected).max(), np.abs(found).max())
            differences.append(np.abs(found - expected).max() / largest)
    if not differences:
        raise ValueError("as the logits of trials are not finite")
    return float(np.max(differences))
