"""A traced model: what :func:`lrp_jax.trace` makes of any function in JAX."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.model import Checked
from lrp_jax.rules import Rules
from lrp_jax.tracing import layout, report
from lrp_jax.tracing.interpret import run
from lrp_jax.tracing.program import Equation, Program, Variable, activate, deactivate, flatten, prune
from lrp_jax.tracing.recognise import Recognised, Site, recognise, spans
from lrp_jax.tracing.rolling import roll, select_first
from lrp_jax.tracing.tokens import begin_at, embeddings
from lrp_jax.tracing.units import may_be_whole

Params = Any
#: An example batch: an array, or several in a sequence or a mapping.
Example = Any


class UnsupportedError(ValueError):
    """A model has equations of which no operation is known."""


class Given(NamedTuple):
    """The parameters of a model together with the inputs that are not explained, of one example."""

    params: Params
    others: Sequence[Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Traced(Checked):
    """A model that was traced; a :class:`lrp_jax.Model`, with what was recognised: print it.

    It has no parameters of its own, and explains any of the structure, shapes and dtypes that it was traced with.

    Attributes:
        grid: of the tokens that are patches, (rows, columns); of a model of token inputs, (tokens,).
        readout: how much of the output comes from each token, ``[N]``; None: the last attention is a pooling attention,
            or there is no attention.
        without_attention: why there are no attention maps; empty if there are.
        program: what it runs.
        embed: what makes activations of token inputs; None for an image.
        params_structure: of the parameters.
        example_structure: of the example.
        explained: which leaf of the example is explained.
        order: the places of its tokens in the program, the prefix first; None: they are in order.
        jaxpr: of the function.
    """

    grid: tuple[int, ...]
    readout: np.ndarray | None
    without_attention: str
    program: Recognised
    embed: Recognised | None
    params_structure: Any
    example_structure: Any
    explained: int
    order: np.ndarray | None
    jaxpr: Any

    @property
    def is_image(self) -> bool:
        """Whether an image is explained, and there is no other input."""
        return self.embed is None and self.example_structure.num_leaves == 1

    def prepare(self, params: Params, example: Example) -> tuple[Any, Array]:
        """The parameters and the activations that are explained of one example.

        Args:
            params: the parameters.
            example: the inputs of one example, without batch axis.

        Returns:
            What ``forward`` takes: parameters, with the inputs that are not explained; and the image, or the
            embeddings ``[N, D]`` of the tokens.
        """
        if self.is_image:
            return params, example
        leaves, _ = jax.tree.flatten(example)
        if self.embed is None:
            others = [leaf for i, leaf in enumerate(leaves) if i != self.explained]
            return Given(params, others), leaves[self.explained]
        values = self._values(self.embed.inputs, [*self._leaves(params), *(leaf[None] for leaf in leaves)])
        (found,), _ = run(self.embed, _NOTHING, values, None)
        return Given(params, leaves), found.reshape(found.shape[-2:])

    def forward(self, params: Params, image: Array, taps: Array | None, rules: Rules) -> tuple[Array, Array]:
        """Classify one example with the operations of ``rules``: see :class:`lrp_jax.Model` and :meth:`prepare`."""
        (logits,), parts = run(self.program, rules, self._inputs(params, image), self._unordered(taps))
        if self.without_attention:
            return logits.reshape(-1), jnp.zeros((0, 0, 0, 0), logits.dtype)
        attention = jnp.concatenate(parts)
        if self.order is not None:
            attention = attention[:, :, self.order[:, None], self.order]
        return logits.reshape(-1), attention

    @functools.cached_property
    def stages(self) -> list[layout.Stage]:
        """Where all relevance passes through tokens or a feature map, one for each resolution."""
        if self.embed is not None or not self.is_image:
            return []
        return layout.stages(self.program, len(self.program.inputs) - 1, 2)

    def zeros_at_stages(self) -> tuple[Array, ...]:
        """What is added at the stages, to read relevance there."""
        return tuple(jnp.zeros(s.variable.shape, s.variable.dtype) for s in self.stages)

    def forward_through_stages(
        self, params: Params, image: Array, added: Sequence[Array], rules: Rules
    ) -> tuple[Array, None]:
        """The logits, after something is added at each stage."""
        there = {stage.variable: x for stage, x in zip(self.stages, added, strict=True)}
        (logits,), _ = run(self.program, rules, self._inputs(params, image), None, there)
        return logits.reshape(-1), None

    def check(self, examples: Example) -> Example:
        """A batch of examples as arrays ``[B, ...]``, of the shapes and dtypes that the model was traced with."""
        leaves, structure = jax.tree.flatten(examples)
        variables = (self.program if self.embed is None else self.embed).inputs[-len(leaves) :]
        if structure != self.example_structure:
            raise ValueError(f"the inputs must be {self.example_structure}, as the model was traced; got {structure}.")
        arrays = [jnp.asarray(leaf) for leaf in leaves]
        for array, variable in zip(arrays, variables, strict=True):
            if array.shape[1:] != variable.shape[1:] or array.dtype != variable.dtype or array.ndim == 0:
                expected = f"{variable.dtype}[B,{','.join(map(str, variable.shape[1:]))}]"
                raise ValueError(f"an input must be {expected}, got {array.dtype}{list(array.shape)}.")
        if len({len(array) for array in arrays}) != 1:
            raise ValueError(f"the inputs must be of one batch, got {[array.shape for array in arrays]}.")
        return jax.tree.unflatten(structure, arrays)

    def report(self) -> list[report.Line]:
        """Every operation, with the line of your code."""
        return report.lines(self.program)

    def __str__(self) -> str:
        sites = [(step, n) for step, n in self.program.walk() if isinstance(step, Site)]
        lines = []
        if self.without_attention:
            lines.append(f"no attention maps: {self.without_attention}")
        else:
            attention = sites[-1][0].inputs[0]
            heads = math.prod(attention.shape[i] for i in sites[0][0].heads)
            n = sites[0][0].inputs[0].shape[sites[0][0].key]
            prefix = n - math.prod(self.grid)
            lines.append(f"{sum(n for _, n in sites)} blocks of attention, {heads} heads, {n} tokens")
            lines.append(f"grid {' x '.join(map(str, self.grid))}, {prefix} other tokens, readout: {self._readout()}")
        return "\n".join([*lines, "", report.table(self.program)])

    def __repr__(self) -> str:
        return f"Traced({self.fingerprint})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the function that was traced: functions that compute different things have different ones."""
        digest = hashlib.sha256(str(self.jaxpr).encode())
        for constant in self.jaxpr.consts:
            digest.update(np.ascontiguousarray(constant).tobytes())
        return digest.hexdigest()[:16]

    def _readout(self) -> str:
        if self.readout is None:
            return "a pooling attention"
        read = np.flatnonzero(self.readout)
        if len(read) == 1:
            return f"token {read[0]}"
        return f"the mean of {len(read)} tokens" if np.ptp(self.readout[read]) < 1e-9 else "weights of the tokens"

    def _leaves(self, params: Params) -> list[Any]:
        leaves, structure = jax.tree.flatten(params)
        if structure != self.params_structure:
            raise ValueError(f"params must be {self.params_structure}, as the model was traced; got {structure}.")
        return leaves

    def _inputs(self, params: Params, image: Array) -> list[Any]:
        others = []
        if not self.is_image:
            if not isinstance(params, Given):
                raise ValueError("forward of a model of several inputs takes what prepare gives.")
            params, others = params
        leaves = self._leaves(params)
        if self.embed is not None:
            values = [*leaves, *(leaf[None] for leaf in others), image.reshape(self.program.inputs[-1].shape)]
        else:
            example = [leaf[None] for leaf in others]
            example.insert(self.explained, image[None])
            values = [*leaves, *example]
        return self._values(self.program.inputs, values)

    def _values(self, variables: Sequence[Variable], values: Sequence[Any]) -> list[Any]:
        values = [jnp.asarray(v) if not isinstance(v, Array) else v for v in values]
        for variable, value in zip(variables, values, strict=True):
            if variable.shape != value.shape or variable.dtype != value.dtype:
                raise ValueError(
                    f"the model was traced with an array {variable}, got "
                    f"{value.dtype}[{','.join(map(str, value.shape))}]: trace it again for other shapes and dtypes."
                )
        return values

    def _unordered(self, taps: Array | None) -> Array | None:
        if taps is None or self.order is None:
            return taps
        inverse = np.argsort(self.order)
        return taps[:, :, inverse[:, None], inverse]


def _no_rule(*_: Any, **__: Any) -> Any:
    raise AssertionError("no rule is applied to what depends on no example")


_NOTHING = Rules(**{f.name: "nothing" if f.name == "name" else _no_rule for f in dataclasses.fields(Rules)})


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
) -> Traced:
    """Make a model of any function in JAX, unmodified.

    The program of the function is recognised by its structure: what its equations compute, not what they are called.
    Whatever relevance passes through is an operation of the rules, or is refused.

    Args:
        apply: the model, ``(params, images [B, H, W, channels]) -> logits [B, C]``.
        params: its parameters, any pytree of arrays; or of ``jax.ShapeDtypeStruct``.
        images: an example batch, or its shapes: floats ``[B, H, W, channels]``, integers ``[B, N]`` for token inputs; or
            several inputs, as a sequence or a mapping of them. The model is traced for these shapes, of any B.
        grid: of the tokens that are patches, (rows, columns); None: found. If it is given, the patches are the last
            tokens, row by row.
        prefix: tokens before the patches, to go with ``grid``; None: all that are no patches.
        readout: how much of the output comes from each token, ``[N]``, the prefix first; None: found.
        explain_wrt: which of several inputs is explained, a key or an index.
        position: which position of outputs ``[B, N, C]`` is explained: -1 for the next token of a causal model.

    Returns:
        The model: for :func:`lrp_jax.explain` and all else that takes one.

    Raises:
        UnsupportedError: the program has equations of which no operation is known; all are named.
        ValueError: an argument or the function's result has the wrong shape, or the layout of the tokens is unclear.
    """
    leaves, structure = jax.tree.flatten(params)
    example, example_structure = jax.tree.flatten(images)
    explained = _explained(images, example, explain_wrt)
    shapes = [_shape(leaf) for leaf in leaves]
    one = [jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for leaf in map(_shape, example)]

    def function(leaves: list[Any], example: list[Any]) -> Any:
        found = apply(jax.tree.unflatten(structure, leaves), jax.tree.unflatten(example_structure, example))
        return _logits(found, position)

    jaxpr = jax.make_jaxpr(function)(shapes, one)
    program = flatten(jaxpr, may_be_whole)
    place = len(leaves) + explained
    embed = None
    if jnp.issubdtype(example[explained].dtype, jnp.integer):
        embed = _embedding(program, program.inputs[place])
        place = len(program.inputs) - 1
    prune(program)
    (active,) = activate(program, [i == place for i in range(len(program.inputs))])
    if not active:
        raise ValueError("the output does not depend on the example, differentiably.")
    deactivate(program)
    select_first(program)
    while roll(program, spans(program)):
        prune(program)
        activate(program, [i == place for i in range(len(program.inputs))])
        deactivate(program)
    unknown: list[Equation] = []
    recognised = recognise(program, {program.inputs[place]} if embed is None else set(), unknown)
    if unknown:
        raise UnsupportedError(_unsupported(unknown))
    found = _layout(recognised, place, 1 if embed is not None else 2, grid, prefix, readout)
    return Traced(
        **found,
        program=recognised,
        embed=embed,
        params_structure=structure,
        example_structure=example_structure,
        explained=explained,
        jaxpr=jaxpr,
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.canonicalize_dtype(jax.dtypes.result_type(leaf)))


def _explained(images: Example, leaves: Sequence[Any], explain_wrt: str | int | None) -> int:
    """Which leaf of the example is explained."""
    names = list(images) if isinstance(images, Mapping) else list(range(len(leaves)))
    if len(leaves) == 1 and explain_wrt is None:
        return 0
    order = sorted(names) if isinstance(images, Mapping) else names
    if explain_wrt not in names:
        raise ValueError(
            f"explain_wrt must say which of the inputs is explained, one of {', '.join(map(repr, order))}; got "
            f"{explain_wrt!r}."
        )
    return order.index(explain_wrt)


def _logits(found: Any, position: int | None) -> Array:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(found)]
    if len(shapes) != 1:
        raise ValueError(f"apply must return logits [B, C], one array; got {len(shapes)} arrays of shapes {shapes}.")
    (logits,) = jax.tree.leaves(found)
    if position is not None:
        if logits.ndim != 3 or not -logits.shape[1] <= position < logits.shape[1]:
            raise ValueError(f"position {position} is for outputs [B, N, C] that have it; got the shape {logits.shape}.")
        logits = logits[:, position]
    if logits.ndim != 2 or logits.shape[0] != 1:
        hint = " Say which position is explained: position=-1 for the last." if logits.ndim == 3 else ""
        raise ValueError(f"apply must return logits [B, C] of a batch of B = 1, got the shape {logits.shape}.{hint}")
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


def _layout(
    program: Recognised,
    example: int,
    axes: int,
    grid: tuple[int, ...] | None,
    prefix: int | None,
    readout: Sequence[float] | None,
) -> dict[str, Any]:
    """Grid, readout and order of the tokens, found or given; or why there are no attention maps."""
    sites = [step for step, _ in program.walk() if isinstance(step, Site)]
    shapes = {(math.prod(s.inputs[0].shape[i] for i in s.heads), s.inputs[0].shape[s.key]) for s in sites}
    nothing = {"grid": grid or (1,) * axes, "readout": None, "order": None}
    if len(shapes) != 1:
        among = ", ".join(f"{h} heads of {n} tokens" for h, n in sorted(shapes))
        why = f"its attention is of different sizes: {among}" if sites else "it has no attention"
        return nothing | {"without_attention": why}
    ((_, n),) = shapes
    order: np.ndarray | None = None
    if grid is None:
        try:
            grid, order = layout.tokens(program, example, sites[0], axes)
        except layout.Unclear as unclear:
            if unclear.is_local:
                return nothing | {"without_attention": str(unclear)}
            raise ValueError(f"{unclear}: give grid=(rows, columns), if the patches are the last tokens.") from None
    if prefix is not None and prefix + math.prod(grid) != n or math.prod(grid) > n:
        raise ValueError(f"grid {grid} and prefix {prefix} must add up to the {n} tokens.")
    if readout is None:
        try:
            weights = layout.readout(program, sites[-1])
        except layout.Unclear as unclear:
            raise ValueError(f"{unclear}: give readout=, the weights of the {n} tokens.") from None
        weights = weights if weights is None or order is None else weights[order]
    else:
        weights = np.asarray(readout, np.float64)
        if weights.shape != (n,):
            raise ValueError(f"readout must be the weights of the {n} tokens, got the shape {weights.shape}.")
    ordered = order is None or np.array_equal(order, np.arange(n))
    return {"grid": grid, "readout": weights, "order": None if ordered else order, "without_attention": ""}
