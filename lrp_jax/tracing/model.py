"""A traced model: what :func:`lrp_jax.trace` makes of any function in JAX."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.model import without_addresses
from lrp_jax.program import Variable
from lrp_jax.rules import GRADIENT, Rules
from lrp_jax.rules.taps import everywhere
from lrp_jax.tracing import given, layout, report
from lrp_jax.tracing.constants import constants
from lrp_jax.tracing.interpret import Turn, read, run, run_steps
from lrp_jax.tracing.reading import Reading, wanted
from lrp_jax.tracing.segments import Segments, between, segments
from lrp_jax.tracing.steps import Recognised, Site

Params = Any
#: An example batch: an array, or several in a sequence or a mapping.
Example = Any


class Given(NamedTuple):
    """The parameters of a model together with the inputs of one example: those that are not explained, and the one."""

    params: Params
    others: Sequence[Any]
    image: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class OfEach:
    """The readout of a traced model that is another for each input; or that cannot be told, which its call says.

    As an array it is NaN: there are no weights without an input.

    Attributes:
        model: the model.
    """

    model: Traced

    def __call__(self, params: Any, image: Array) -> Array:
        """The weights of the tokens, ``[N]``.

        Args:
            params: as ``embed`` takes them.
            image: likewise.

        Raises:
            ValueError: which tokens the head reads cannot be told.
        """
        reading, order = self.model.reading, self.model.order
        if reading.of_inputs is None:
            raise ValueError(
                f"{reading.unclear}: {wanted(self.model.tokens)}. "
                f"Methods of the {self.model.explains}, and attnlrp and its kin, need none."
            )
        weights = reading.of_inputs(self.model.inputs(params, image))
        return weights if order is None else weights[order]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.full(self.model.tokens, np.nan, dtype)


@dataclasses.dataclass(frozen=True)
class _OfBlock:
    """The rules at a place in a block, equal where those of all its steps are; and which block it is."""

    of_steps: tuple[Rules, ...]
    block: int = dataclasses.field(compare=False)
    rules: Rules = dataclasses.field(compare=False)

    def __call__(self, **place: Any) -> Rules:
        return self.rules.at(**place)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Traced:
    """A model that was traced; a :class:`lrp_jax.Model`, with what was recognised: print it.

    It has no parameters of its own, and explains any of the structure, shapes and dtypes that it was traced with.

    Attributes:
        grid: of the tokens that are patches, (rows, columns); of a model of token inputs, (tokens,).
        reading: what the head reads, see :attr:`readout`.
        without_attention: why there are no attention maps; empty if there are.
        without_chain: why its attention is no chain of blocks; empty if it is, or if there is none.
        program: what it runs.
        embedding: what makes activations of token inputs; None for an image.
        params_structure: of the parameters.
        example_structure: of the example.
        explained: which leaf of the example is explained.
        channels: which axis of the images that are explained has the channels, ``"first"`` or ``"last"``; the program,
            and so every method, has them last. None: no images are explained.
        rounds: whether values are the program's own where it rounds them more than relevance is, as to bfloat16.
        order: the places of its tokens in the program, the prefix first; None: they are in order.
        of_tokens: the centres of the tokens that are patches, see :attr:`centres`.
        leaving: what leaves the last block of attention; None: that cannot be told.
        jaxpr: of the function.
    """

    grid: tuple[int, ...]
    reading: Reading
    without_attention: str
    without_chain: str
    program: Recognised
    embedding: Recognised | None
    params_structure: Any
    example_structure: Any
    explained: int
    order: np.ndarray | None
    of_tokens: layout.Centres | None
    leaving: Variable | None
    jaxpr: Any
    channels: str | None
    rounds: bool = True

    @property
    def is_image(self) -> bool:
        """Whether an image ``[H, W, channels]`` is explained, and there is no other input."""
        if self.embedding is not None or not jax.tree_util.treedef_is_leaf(self.example_structure):
            return False
        return len(self.program.inputs[-1].shape) == 4

    @property
    def explains(self) -> str:
        """What is explained: ``"pixels"``, ``"embeddings"`` of tokens, or ``"features"``."""
        rank = len(self.program.inputs[self._place].shape)
        return "embeddings" if self.embed is not None else "features" if rank < 4 else "pixels"

    @functools.cached_property
    def readout(self) -> np.ndarray | OfEach | None:
        """How much of the output comes from each token, ``[N]``; a function, where that depends on the input.

        None: the last attention is a pooling attention, or there is no attention.
        """
        weights = self.reading.weights
        if weights is not None:
            return weights if self.order is None else weights[self.order]
        return OfEach(self) if self.reading.of_inputs or self.reading.unclear else None

    def prepare(self, params: Params, example: Example) -> tuple[Any, Array]:
        """The parameters and the activations that are explained of one example.

        Args:
            params: the parameters.
            example: the inputs of one example, without batch axis.

        Returns:
            What ``embed`` takes: parameters, with the inputs that are not explained; and the image, or the
            embeddings ``[N, D]`` of the tokens.
        """
        leaves, _ = jax.tree.flatten(example)
        if self.embedding is None:
            image = self._in_precision(self._channels_last(leaves[self.explained]))
            others = [leaf for i, leaf in enumerate(leaves) if i != self.explained]
            return (params if self.is_image else Given(params, others)), image
        values = self._values(self.embedding.inputs, [*self._leaves(params), *(leaf[None] for leaf in leaves)])
        (found,) = run(self.embedding, GRADIENT, values)
        return Given(params, leaves), self._in_precision(found.reshape(found.shape[-2:]))

    def _in_precision(self, explained: Any) -> Any:
        """What is explained, in the precision of relevance."""
        variable = self.program.inputs[self._place]
        return explained if variable.own is None else explained.astype(variable.dtype)

    def _channels_last(self, image: Any) -> Any:
        if self.channels != "first":
            return image
        *size, channels = self.program.inputs[self._place].shape[1:]
        if jnp.shape(image) != (channels, *size):
            raise ValueError(
                f"images must be {[channels, *size]}, channels first as the model was traced; got "
                f"{list(jnp.shape(image))}."
            )
        return jnp.moveaxis(image, 0, -1)

    def of_pictures(self) -> Traced:
        """The model of images channels last, as :func:`lrp_jax.preprocess` makes them."""
        return self if self.channels != "first" else dataclasses.replace(self, channels="last")

    is_checked = True

    @functools.cached_property
    def blocks(self) -> Segments | None:
        """The program cut at its blocks of attention; None, if they cannot be told."""
        stage = self.entering
        if stage is None or (not self.without_attention and stage.grid != self.grid):  # pixels are no tokens
            return None
        return segments(self.program, self._place, stage, self.leaving)

    @functools.cached_property
    def entering(self) -> layout.Stage | None:
        """What enters the first block of attention, with its grid; None: that cannot be told."""
        return layout.entering(self.program, self._place, len(self.grid)) if self.program.sites else None

    @property
    def without_tokens(self) -> str:
        """Why the tokens that enter its blocks cannot be told; empty if they can."""
        return "" if self.blocks else self.without_attention or "where they enter its blocks cannot be told"

    @property
    def depth(self) -> tuple[int, ...]:
        """How many blocks each loop runs."""
        return self.blocks.depth if self.blocks else ()

    def embed(self, params: Params, image: Array, rules: Rules) -> Array:
        """The tokens ``[N, D]`` that enter the first block; without blocks, the logits."""
        values, rules = self.inputs(params, image), self._rules(rules)
        if self.blocks is None:
            return run(self.program, rules, values)[0].reshape(-1)
        return self.blocks.before(values, rules)

    def block(self, params: Params, i: Any, tokens: Array, rules: Rules) -> Array:
        """The tokens ``[N, D]`` that leave a block; without an end that is told, the logits."""
        assert self.blocks is not None
        first = rules.places.block if isinstance(rules.places, _OfBlock) else i
        return self.blocks.block(self.inputs(params, None), i, first, tokens, self._rules(rules))

    def read(self, params: Params, tokens: Array, rules: Rules) -> Array:
        """The logits ``[C]`` of the tokens that leave the last block."""
        if self.blocks is None:
            return tokens
        return self.blocks.after(self.inputs(params, None), tokens, self._rules(rules))

    def rules_at(self, i: int, rules: Rules) -> Rules:
        """The rules in a block, see :class:`lrp_jax.Model`."""
        assert self.blocks is not None
        found = rules.at(depth=i, blocks=sum(self.depth))
        of_steps = () if found.places is None else tuple(self.blocks.rules(i, self._rules(found)))
        return dataclasses.replace(found, places=_OfBlock(of_steps, i, found))

    def arrange(self, tokens: Array) -> Array:
        """Those of tokens ``[..., N]`` at blocks that are patches, as a grid ``[..., rows, cols]``."""
        assert self.entering is not None
        return tokens[..., self.entering.order].reshape(*tokens.shape[:-1], *self.entering.grid)

    @functools.cached_property
    def unrounded(self) -> Traced | None:
        """The model without its rounding to half precision or less; None: it has none."""
        is_low = any(jnp.finfo(variable.own).bits < 32 for variable in self.rounded())
        return dataclasses.replace(self, rounds=False) if is_low and self.rounds else None

    def rounded(self) -> list[Variable]:
        """What the program has in less precision than relevance."""
        return [v for step, _ in self.program.walk() for v in step.outputs if v.own is not None]

    def _rules(self, rules: Rules) -> Rules:
        return rules if self.rounds else everywhere(rules, lambda of, _: dataclasses.replace(of, rounds=False), ())

    @functools.cached_property
    def segments(self) -> list[tuple[Any, layout.Stage | None]]:
        """Pieces of the program between tokens or feature maps, one for each resolution, and these.

        Each is a function ``(params, image, value, rules) -> value``; the last gives the logits.
        """
        if not self.is_image:
            return []
        stages = layout.stages(self.program, len(self.program.inputs) - 1, 2)
        variables = [stage.variable for stage in stages]
        ends = [*variables, self.program.outputs[0]]
        pieces = [functools.partial(self._between, a, b) for a, b in zip([None, *variables], ends, strict=True)]
        return list(zip(pieces, [*stages, None], strict=True))

    def _between(
        self, start: Variable | None, end: Variable, params: Params, image: Array, value: Array, rules: Rules
    ) -> Array:
        known = constants(self.program, self.inputs(params, image)) | ({} if start is None else {start: value})
        run_steps(between(self.program, start, end), self._rules(rules), known, Turn(blocks=self.program.blocks))
        found: Array = read(end, known)
        return found

    @functools.cached_property
    def centres(self) -> layout.Centres | None:
        """Where the rows and columns of patches have their centres, in parts of the image's height and width.

        For :func:`lrp_jax.heatmaps`. None: the patches fill the image.
        """
        if not self.without_attention or not self.is_image:
            return self.of_tokens
        return self.entering.centres if self.blocks and self.entering else None

    @property
    def _place(self) -> int:
        """Which of the program's inputs is explained."""
        if not self.is_image and self.embedding is None:
            return self.params_structure.num_leaves + self.explained
        return len(self.program.inputs) - 1  # an image, or embeddings

    @functools.cached_property
    def content(self) -> layout.Stage | None:
        """What position embeddings are added to; None, if they are not, or more than once."""
        additions = [s for s in self.program.steps if s.operation and s.operation.name == "add"]
        found = [s for s in additions if s.place.part == "embedding" and len(s.active) == 1]
        if len(found) != 1:
            return None
        return layout.stage(self.program, self._place, found[0].active[0], len(self.grid))

    @property
    def example(self) -> Any:
        """Shapes and dtypes of a batch of one."""
        variables = (self.program if self.embedding is None else self.embedding).inputs[
            -self.example_structure.num_leaves :
        ]
        shapes = [v.shape[1:] for v in variables]
        if self.channels == "first":
            *size, channels = shapes[self.explained]
            shapes[self.explained] = (channels, *size)
        return self.example_structure.unflatten(
            jax.ShapeDtypeStruct((1, *shape), v.own or v.dtype) for shape, v in zip(shapes, variables, strict=True)
        )

    def check(self, examples: Example) -> Example:
        """A batch of examples as arrays ``[B, ...]``, of the shapes and dtypes that the model was traced with."""
        leaves, structure = jax.tree.flatten(examples)
        variables = jax.tree.leaves(self.example)
        if structure != self.example_structure:
            raise ValueError(f"the inputs must be {self.example_structure}, as the model was traced; got {structure}.")
        arrays = [jnp.asarray(leaf) for leaf in leaves]
        for array, variable in zip(arrays, variables, strict=True):
            if array.shape[1:] != variable.shape[1:] or array.dtype != variable.dtype or array.ndim == 0:
                expected = f"{variable.dtype}[B,{','.join(map(str, variable.shape[1:]))}]"
                raise ValueError(f"an input must be {expected}, got {array.dtype}{list(array.shape)}.")
        if len({array.shape[0] for array in arrays}) != 1:
            raise ValueError(f"the inputs must be of one batch, got {[array.shape for array in arrays]}.")
        return jax.tree.unflatten(structure, arrays)

    def report(self) -> list[report.Line]:
        """Every operation, with the line of your code."""
        return report.lines(self.program)

    def __str__(self) -> str:
        return report.described(self)

    def __repr__(self) -> str:
        return f"Traced({self.fingerprint})"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the function that was traced: functions that compute different things have different ones."""
        digest = hashlib.sha256(without_addresses(str(self.jaxpr)).encode())
        digest.update(str(self.program.inputs[self._place]).encode())  # where its channels are
        for constant in self.jaxpr.consts:
            digest.update(np.ascontiguousarray(constant).tobytes())
        return digest.hexdigest()[:16]

    @property
    def tokens(self) -> int:
        """How many tokens attend; 0 without attention."""
        sites = (step for step, _ in self.program.walk() if isinstance(step, Site))
        return next((site.inputs[0].shape[site.key] for site in sites), 0)

    def _leaves(self, params: Params) -> list[Array]:
        return given.matched(params, self.params_structure, self.program.inputs[: self.params_structure.num_leaves])

    def bound(self, params: Params, image: Array) -> Given:
        """The parameters with the image, of which blocks may read what has no derivative."""
        given = params if isinstance(params, Given) else Given(params, [])
        return given._replace(image=image)

    def inputs(self, params: Params, image: Array | None) -> list[Any]:
        """The values of the program's inputs; None: that of :meth:`bound`. Arguments as of ``embed``."""
        if not isinstance(params, Given):
            if not self.is_image:
                raise ValueError("a model of several inputs takes the parameters that prepare gives.")
            params = Given(params, [])
        image = params.image if image is None else image
        leaves, others = self._leaves(params.params), params.others
        if self.embedding is not None:
            shape = self.program.inputs[-1].shape
            values = [*leaves, *(leaf[None] for leaf in others), None if image is None else image.reshape(shape)]
        else:
            example = [leaf[None] for leaf in others]
            example.insert(self.explained, None if image is None else image[None])
            values = [*leaves, *example]
        return self._values(self.program.inputs, values)

    def _values(self, variables: Sequence[Variable], values: Sequence[Any]) -> list[Any]:
        values = [v if v is None or isinstance(v, Array) else jnp.asarray(v) for v in values]
        for variable, value in zip(variables, values, strict=True):
            if value is not None and (variable.shape != value.shape or variable.dtype != value.dtype):
                raise ValueError(
                    f"the model was traced with an array {variable}, got "
                    f"{value.dtype}[{','.join(map(str, value.shape))}]: trace it again for other shapes and dtypes."
                )
        return values
