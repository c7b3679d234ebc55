"""How any function in JAX becomes a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.program import Equation, Program, Variable, activate, deactivate, flatten, prune
from lrp_jax.rules.composite import is_written_at
from lrp_jax.tracing import batch, derivatives, given, layout, products
from lrp_jax.tracing import channels as orders
from lrp_jax.tracing.chain import broken_chain, moved_by_inputs, queried
from lrp_jax.tracing.derivatives import UnsupportedError
from lrp_jax.tracing.model import Example, Params, Traced
from lrp_jax.tracing.pairs import make_real
from lrp_jax.tracing.places import locate
from lrp_jax.tracing.precision import lift, working
from lrp_jax.tracing.reading import Reading, reading
from lrp_jax.tracing.recognise import recognise, spans
from lrp_jax.tracing.reordered import reordered
from lrp_jax.tracing.rolling import roll, select_first
from lrp_jax.tracing.steps import Recognised, Site
from lrp_jax.tracing.tokens import begin_at, embeddings
from lrp_jax.tracing.units import may_be_whole


def trace(
    apply: Callable[[Params, Example], Array],
    params: Params,
    images: Example,
    *,
    grid: tuple[int, ...] | None = None,
    prefix: int | None = None,
    readout: Sequence[float] | None = None,
    explain_wrt: str | int | None = None,
    position: int | None = None,
    channels: str | None = None,
    attention: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Traced:
    """Make a model of any function in JAX, unmodified.

    The program of the function is recognised by its structure: what its equations compute, not what they are called.
    Whatever relevance passes through is an operation of the rules, or is refused.

    Args:
        apply: the model, ``(params, images) -> logits [B, C]``.
        params: its parameters, any pytree of arrays; or of ``jax.ShapeDtypeStruct``.
        images: an example batch, or its shapes: floats ``[B, H, W, channels]`` or ``[B, channels, H, W]``, or features
            of parts ``[B, N, D]``; integers ``[B, N]`` for tokens; or several inputs, a sequence or a mapping. The
            model is traced for these shapes, of any B, and takes images in this order.
        grid: of the patches, (rows, columns), which are then the last tokens, row by row; None: found.
        prefix: tokens before the patches, to go with ``grid``; None: all that are no patches.
        readout: how much of the output comes from each token, ``[N]``, the prefix first; None: found.
        explain_wrt: which of several inputs is explained, a key or an index.
        position: which position of outputs ``[B, N, C]`` is explained: -1 for the next token of a causal model.
        channels: where images have their channels, ``"first"`` or ``"last"``; None: found.
        attention: the lines of the products of attention with values, as ``["model.py:12"]``, ``*`` for any letters,
            where these are not what was recognised: products of other lines are none. None: found.
        chunk: how many queries of an attention are computed at once; None: by size.

    Returns:
        The model: for :func:`lrp_jax.explain` and all else that takes one.

    Raises:
        UnsupportedError: the program has equations of which no operation is known; all are named.
        ValueError: an argument or the result is not as expected, the logits of an example depend on the rest of its
            batch, or the layout of the tokens is unclear.
    """
    jaxpr, parameters, explained = _jaxpr(apply, params, images, explain_wrt, position)
    program, place, embed = flatten(jaxpr, may_be_whole), parameters + explained, None
    if jnp.issubdtype(program.inputs[place].dtype, jnp.integer):
        embed, place = _embedding(program, program.inputs[place]), len(program.inputs) - 1
    order, recognised = _recognised(program, place, parameters, channels, attention, chunk, is_image=embed is None)
    return Traced(
        **_layout(recognised, place, parameters, grid, prefix, readout),
        program=recognised,
        embedding=embed,
        params_structure=jax.tree.structure(params),
        example_structure=jax.tree.structure(images),
        explained=explained,
        channels=order,
        leaving=locate(recognised, _names(params), place),
        jaxpr=jaxpr,
    )


def _jaxpr(
    apply: Callable[..., Any], params: Params, images: Example, explain_wrt: str | int | None, position: int | None
) -> tuple[Any, int, int]:
    """The jaxpr of a function of leaves, how many of its inputs are parameters, and which of the rest is explained."""
    leaves, example = given.flattened(apply, params, images)
    explained, shapes = given.explained(images, example, explain_wrt), list(map(given.shape, leaves))
    one = [jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for leaf in map(given.shape, example)]
    function = _of_leaves(apply, (jax.tree.structure(params), jax.tree.structure(images)), position)
    jaxpr = given.hints(one, explained)(jax.make_jaxpr(function))(shapes, one)
    batch.check(function, leaves, shapes, example, jaxpr)
    return jaxpr, len(leaves), explained


def _of_leaves(
    apply: Callable[..., Any], structures: tuple[Any, Any], position: int | None
) -> Callable[[list[Any], list[Any]], Array]:
    """A function of the leaves of parameters and example."""

    def function(*leaves: list[Any]) -> Array:
        return _logits(apply(*map(jax.tree.unflatten, structures, leaves)), position)

    return function


def _names(params: Params) -> list[str]:
    """The names of parameters, as ``"blocks/mlp/fc1/kernel"``."""

    def part(key: Any) -> str:
        return str(next(getattr(key, of) for of in ("key", "name", "idx") if hasattr(key, of)))

    return ["/".join(map(part, path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _recognised(
    program: Program,
    place: int,
    params: int,
    channels: str | None,
    attention: Sequence[str] | None,
    chunk: int | None,
    *,
    is_image: bool,
) -> tuple[str | None, Recognised]:
    """Where images have their channels, and the program in operations, repeated blocks in a loop.

    Images are taken channels last from here on. The parameters are the first inputs, and the example is at a place.
    """
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise ValueError(f"chunk must be a number of queries, an integer of at least 1; got {chunk!r}.")
    image = program.inputs[place]
    has_channels = is_image and len(image.shape) == 4
    if channels is not None and not (has_channels and channels in orders.ORDERS):
        raise ValueError(f"channels must be 'first' or 'last', of images of four axes; got {channels!r} for {image}.")
    prune(program)
    if is_image and len(image.shape) == 3:
        orders.check_features(program, image, program.inputs[:params])
    order = channels or (orders.find(program, image, program.inputs[:params]) if has_channels else None)
    if order is None and has_channels:
        order = orders.assumed(image)
    if order == "first":
        orders.door(program, place)
    example = program.inputs[place]

    def mark() -> bool:
        prune(program)
        (active,) = activate(program, [variable is example for variable in program.inputs])
        return active

    active = mark()
    derivatives.check(program)
    if not active:
        raise ValueError("the output does not depend on the example, differentiably.")
    deactivate(program)
    unknown: list[Equation] = []
    if make_real(program, may_be_whole, unknown):
        if unknown:
            raise UnsupportedError(_unsupported(unknown))
        mark()
        deactivate(program)
    read = {v for equation in program.equations for v in equation.inputs}
    if attention is not None:
        _tell(program, attention)
    lift(program, working([example, *read.intersection(program.inputs[:params])]))
    select_first(program)
    while roll(program, spans(program)):
        mark()
        deactivate(program)
    recognised = recognise(program, {example} if is_image else set(), unknown)
    if unknown:
        raise UnsupportedError(_unsupported(unknown))
    _set_chunk(recognised, chunk)
    return order, recognised


def _set_chunk(program: Recognised, chunk: int | None) -> None:
    """Say how many queries of each attention are computed at once."""
    for step, _ in program.walk():
        if step.region is not None:
            step.region.chunk = chunk


def _tell(program: Program, lines: Sequence[str]) -> None:
    """Mark the products of two activations as attention with values, or as none, by the lines of the caller."""
    if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"attention must be a list of lines, as ['model.py:12']; got {lines!r}.")
    products = [e for e in program.walk() if e.primitive == "dot_general" and all(v.active for v in e.inputs)]
    for product in products:
        product.attends = any(is_written_at(product.place, line) for line in lines)
    for line in lines:
        if not any(is_written_at(product.place, line) for product in products):
            places = "".join(f"\n  {place}" for place in dict.fromkeys(product.place for product in products))
            raise ValueError(f"no product of two activations is written at {line!r} of attention; they are at{places}")


def _logits(found: Any, position: int | None) -> Array:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(found)]
    if len(shapes) != 1:
        raise ValueError(f"apply must return logits [B, C], one array; got {len(shapes)} arrays of shapes {shapes}.")
    (logits,) = jax.tree.leaves(found)
    if position is not None:
        if logits.ndim != 3 or not -logits.shape[1] <= position < logits.shape[1]:
            raise ValueError(
                f"position {position} is for outputs [B, N, C] that have it; got the shape {logits.shape}."
            )
        logits = logits[:, position]
    if logits.ndim != 2:
        hint = " Say which position is explained: position=-1 for the last." if logits.ndim == 3 else ""
        raise ValueError(f"apply must return logits [B, C], got the shape {logits.shape}.{hint}")
    return logits


def _embedding(program: Program, tokens: Variable) -> Recognised:
    """The program up to the embeddings of token inputs; the rest begins there."""
    found = embeddings(program, tokens)
    if len(found) != 1:
        more = "".join(f"\n  {equation}" for equation in found)
        raise ValueError(
            f"token inputs are explained at their embeddings, the one place where they choose rows of a table; found "
            f"{len(found)} such places.{more}"
        )
    (output,) = found[0].outputs
    if math.prod(output.shape[:-2]) != 1:
        raise ValueError(f"token inputs must be [B, N], whose embeddings are [B, N, D]; got {output}.")
    before = begin_at(program, found[0])
    prune(before)
    return recognise(before, set(), [])


def _unsupported(unknown: Sequence[Equation]) -> str:
    lines = dict.fromkeys(f"  {equation}" for equation in unknown)
    return (
        f"no operation is known of {len(lines)} equations that relevance passes through:\n"
        + "\n".join(lines)
        + "\nSay what they are by lrp_jax.tracing.register(primitive)."
    )


def _not_square(sites: Sequence[Site], *, is_told: bool) -> str:
    """Which attention is not of all tokens with all, so that none can be multiplied; empty: none.

    The last may pool by one learned query, or have fewer queries than tokens, if the readout is told.
    """
    for site in sites:
        shape = site.inputs[0].shape
        queries, keys = 1 if site.query is None else shape[site.query], shape[site.key]
        is_last = site is sites[-1]
        is_known = is_told or site.rows is not None or (site.learned and queries == 1)
        if queries == keys or (is_last and queries <= keys and is_known):
            continue
        why = f"its attention is of {queries} queries over {keys} keys ({site.equations[0].line})"
        if is_last and queries < keys:
            told = f"[1] + [0] * {keys - 1}" if queries == 1 else f"{keys} weights, of which {queries} are not 0"
            return f"{why}, of which tokens cannot be told: lrp_jax.trace takes readout={told}, no patches first"
        return why
    return ""


def _layout(program: Recognised, example: int, parameters: int, *told: Any) -> dict[str, Any]:
    """Grid, readout and order of the tokens; attention that is not of them is not handed out."""
    axes = max(len(program.inputs[example].shape) - 2, 1)  # an image is [1, H, W, channels], features are [1, N, D]
    found = _find_layout(program, example, parameters, axes, *told)
    for step, _ in program.walk():
        if isinstance(step, Site):
            step.handed_out = not found["without_attention"]
    return found


_TOLD = " (lrp_jax.trace takes attention=, the lines of the products of attention with values)"


def _find_layout(
    program: Recognised,
    example: int,
    parameters: int,
    axes: int,
    grid: tuple[int, ...] | None,
    prefix: int | None,
    readout: Sequence[float] | None,
) -> dict[str, Any]:
    """Grid, readout and order of the tokens, found or given; or why there are no attention maps."""
    sites = [step for step, _ in program.walk() if isinstance(step, Site)]
    shapes = {(math.prod(s.inputs[0].shape[i] for i in s.heads), s.inputs[0].shape[s.key]) for s in sites}
    nothing = {"grid": grid or (1,) * axes, "reading": Reading(), "order": None, "without_chain": "", "of_tokens": None}
    if len(shapes) != 1:
        among = ", ".join(f"{h} heads of {n} tokens" for h, n in sorted(shapes))
        why = f"its attention is of different sizes: {among}" if sites else "it has no attention"
        matmul = any(step.operation is not None and step.operation.name == "matmul" for step, _ in program.walk())
        why += _TOLD if matmul or sites else ""
        return nothing | {"without_attention": why}
    if _is_of_some(sites[-1]):
        sites[-1].rows = queried(program, example, sites[-1])
    not_square = _not_square(sites, is_told=readout is not None)
    if not_square:
        return nothing | {"without_attention": not_square}
    moved = reordered(program, example, axes)
    if moved:
        return nothing | {"without_attention": f"its tokens are put in an order that values choose, {moved}"}
    ((_, n),) = shapes
    explained = {product for site in sites for product in site.products}
    for step, _ in program.walk():
        matmul = step.operation is not None and step.operation.name == "matmul"
        unknown = matmul and step.equations[0] not in explained and not products.is_of_each(step.equations[0], n)
        unknown = unknown and step.equations[0].attends is None
        if unknown or n in step.weighted:
            why = f"it has a product of two activations that is no attention it is known to be, {step.equations[0]}"
            return nothing | {"without_attention": why + _TOLD * matmul}
    order: np.ndarray | None = None
    centres: layout.Centres | None = None
    if grid is None:
        moved, _ = moved_by_inputs(program)
        if moved:
            return nothing | {"without_attention": f"which part of an input a token is of, the input says, {moved}"}
        try:
            grid, order, centres = layout.tokens(program, example, sites[0], axes)
        except layout.UnclearError as unclear:
            if unclear.is_local:
                return nothing | {"without_attention": str(unclear)}
            raise ValueError(f"{unclear}: give grid=(rows, columns), if the patches are the last tokens.") from None
    if (prefix is not None and prefix + math.prod(grid) != n) or math.prod(grid) > n:
        raise ValueError(f"grid {grid} and prefix {prefix} must add up to the {n} tokens.")
    read = reading(program, sites[-1], parameters) if readout is None else _given(readout, n, order, sites[-1])
    ordered = order is None or np.array_equal(order, np.arange(n))
    return {
        "grid": grid,
        "reading": read,
        "order": None if ordered else order,
        "of_tokens": centres if axes == 2 else None,
        "without_attention": "",
        "without_chain": broken_chain(program, example, is_read_alike=read.of_inputs is None),
    }


def _is_of_some(site: Site) -> bool:
    """Whether attention has queries of some tokens alone."""
    queries = 1 if site.query is None else site.inputs[0].shape[site.query]
    return queries < site.inputs[0].shape[site.key] and not site.learned


def _given(readout: Sequence[float], n: int, order: np.ndarray | None, last: Site) -> Reading:
    """The weights of n tokens that the caller gives, the prefix first, in the order of the program's tokens."""
    weights = np.asarray(readout, np.float64)
    if weights.shape != (n,):
        raise ValueError(f"readout must be the weights of the {n} tokens, got the shape {weights.shape}.")
    weights = weights if order is None else weights[np.argsort(order)]
    if _is_of_some(last) and last.rows is None:
        queries = 1 if last.query is None else last.inputs[0].shape[last.query]
        read = np.flatnonzero(weights)
        if len(read) != queries or np.ptp(read) != queries - 1:
            raise ValueError(
                f"readout must be of the {queries} tokens, next to each other, that the last attention has queries of "
                f"({last.product.line}); got weights of {len(read)} tokens."
            )
        last.rows = int(read[0]), int(read[-1]) + 1
    return Reading(weights)
