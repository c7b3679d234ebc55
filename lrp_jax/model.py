"""What can be explained: a model of one image, made of the operations of a rule set.

Axis letters: C classes, L blocks, h heads, N tokens (class and other prefix tokens first, then the patches row by row).
"""

from __future__ import annotations

import abc
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.files import plain
from lrp_jax.meshes import automatic
from lrp_jax.rules import GRADIENT, Rules

Params = Any


class Model(Protocol):
    """What can be explained: a hashable value (it is a static argument of ``jax.jit``) with these three members."""

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns): the last rows * columns tokens, row by row."""
        ...

    @property
    def readout(self) -> ArrayLike | Callable[[Params, Array], Array] | None:
        """How much of the head's input comes from each token, ``[N]``: what a rollout starts from.

        It is 1, 0, 0, ... for a class token and 1 / patches for a mean. Where it is another for each input, as for the
        last token that is no padding, it is a function ``(params, image) -> [N]``. None: the last attention is a
        pooling attention, and its first row tells.
        """
        ...

    def forward(self, params: Params, image: Array, taps: Array | None, rules: Rules) -> tuple[Array, Array]:
        """Classify one image with the operations of ``rules``.

        What depends on the image is computed by them, and they take leading axes of their own accord: none stands
        under a ``jax.vmap`` inside this function. Beside them values are only moved (reshaped, sliced, concatenated)
        and have constants added. Methods that propagate relevance refuse anything else.

        Args:
            params: the parameters, any pytree.
            image: ``[H, W, channels]``.
            taps: ``[l, h, N, N]``, to be added to the last l of the attention; None: nothing to add.
            rules: the operations to use.

        Returns:
            Logits ``[C]`` and attention probabilities ``[L, h, N, N]``, a pooling attention last, its query in row 0.
        """
        ...


class Place(Protocol):
    """Where relevance can be read: tokens or a feature map, perhaps of several blocks."""

    def zeros(self) -> Array:
        """What is added there."""
        ...

    def maps(self, relevance: Array) -> Array:
        """Relevance of this shape, summed over channels, on the grid of each block, ``[blocks, rows, cols]``."""
        ...

    def totals(self, relevance: Array) -> Array:
        """The sum of relevance of this shape, of each block, ``[blocks]``; of all tokens, not of the patches alone."""
        ...


@runtime_checkable
class WithBlocks(Protocol):
    """What a model has beside :class:`Model`, whose relevance at its tokens can be read."""

    @property
    def blocks(self) -> Sequence[Place]:
        """The tokens that enter the blocks, in order."""
        ...

    def forward_through(
        self,
        params: Params,
        image: Array,
        taps: Array | None,
        rules: Rules,
        places: Sequence[Any],
        added: Sequence[Array],
    ) -> tuple[Array, Array, Sequence[Array]]:
        """As ``forward``, with something added at some places.

        Args:
            params: the parameters.
            image: ``[H, W, channels]``.
            taps: as of ``forward``.
            rules: the operations to use.
            places: some of ``blocks``.
            added: of the shapes of their ``zeros``.

        Returns:
            Logits ``[C]`` and attention, as of ``forward``, and what is at these places, with what was added.
        """
        ...


@runtime_checkable
class WithTokens(WithBlocks, Protocol):
    """What a model has beside :class:`WithBlocks`, whose blocks can be taken apart."""

    @property
    def content(self) -> Place | None:
        """The tokens to which position embeddings are added; None: none are."""
        ...

    def forward_apart(self, params: Params, image: Array, entering: Sequence[Array], taps: Array) -> Array:
        """The tokens that leave each block, ``[L, N, D]``, of what is said to enter it.

        Args:
            params: the parameters.
            image: ``[H, W, channels]``, for what else is read of it.
            entering: at ``blocks``, as ``forward_through`` gives it.
            taps: ``[l, h, N, N]``, to be added to the attention of the last l blocks, a pooling attention left out.
        """
        ...

    def read(self, params: Params, image: Array, tokens: Array) -> Array:
        """The logits ``[C]`` of tokens ``[N, D]`` that leave the last block.

        Args:
            params: the parameters.
            image: ``[H, W, channels]``, for what else is read of it.
            tokens: the tokens, in the place of its own.
        """
        ...


class Checked:
    """A model of which more is known: relevance passes through operations alone, so that it needs no probe.

    Attributes:
        without_attention: why it has no attention maps; empty if it has.
        without_chain: why its attention is no chain of blocks, each after the other; empty if it is.
        order: the places of its tokens, the prefix first; None: they are in order.
    """

    without_attention: str
    without_chain: str
    order: np.ndarray | None

    @property
    @abc.abstractmethod
    def is_image(self) -> bool:
        """Whether an image is explained, and there is no other input."""

    @property
    @abc.abstractmethod
    def explains(self) -> str:
        """What is explained: ``"pixels"``, ``"embeddings"`` of tokens, or ``"features"``."""

    @abc.abstractmethod
    def prepare(self, params: Params, example: Any) -> tuple[Params, Array]:
        """What ``forward`` takes, of one example: of an image, tokens or several inputs, in their own order of axes.

        Args:
            params: the parameters.
            example: its inputs, without batch axis.

        Returns:
            Parameters, with what is not explained; and what is, an image or embeddings ``[N, D]``.
        """

    @abc.abstractmethod
    def of_pictures(self) -> Checked:
        """The model of images channels last, as :func:`lrp_jax.preprocess` makes them."""

    @property
    @abc.abstractmethod
    def unrounded(self) -> Checked | None:
        """The model without its rounding to half precision or less; None: it has none."""

    @property
    @abc.abstractmethod
    def stages(self) -> Sequence[Place]:
        """Where all relevance passes through tokens or a feature map, one for each resolution."""

    @abc.abstractmethod
    def check(self, examples: Any) -> Any:
        """A batch of examples as arrays ``[B, ...]``, or a ValueError."""


class Output(NamedTuple):
    """What a model says of one image.

    Attributes:
        logits: ``[C]``.
        attention: probabilities ``[L, h, N, N]``.
    """

    logits: Array
    attention: Array


def full_precision() -> AbstractContextManager[None]:
    """On accelerators products round by default, but relevance divides by small sums: maps are computed within this."""
    return jax.default_matmul_precision("highest")


@partial(jax.jit, static_argnames="model")
def classify(model: Model, params: Params, image: Array) -> Output:
    """What a model says of an image ``[H, W, channels]``, in full precision as maps are."""
    with full_precision():
        return automatic(lambda given: Output(*model.forward(given[0], given[1], None, GRADIENT)))((params, image))


def prepared(model: Model, params: Params, example: Any) -> tuple[Params, Array]:
    """What ``forward`` takes: an image channels last, tokens as their embeddings, beside other inputs."""
    return model.prepare(params, example) if isinstance(model, Checked) else (params, example)


def of_pictures(model: Any) -> Any:
    """A model of images channels last, as :func:`lrp_jax.preprocess` makes them, whatever it takes."""
    return model.of_pictures() if isinstance(model, Checked) else model


def number_of_classes(model: Model, params: Params, example: Any) -> int:
    """C, how many logits a model has."""
    return jax.eval_shape(lambda p, e: classify(model, *prepared(model, p, e)), params, example).logits.shape[0]


def number_of_layers(model: Model, params: Params, image: Array) -> int:
    """L, how many attention maps a model has.

    Raises:
        ValueError: it has none.
    """
    if isinstance(model, Checked) and model.without_attention:
        raise ValueError(
            f"the model has no attention maps, {model.without_attention}: use a method of the {model.explains}, as "
            "full_lrp."
        )
    return classify.eval_shape(model, params, image).attention.shape[0]


def check_chain(model: Model) -> None:
    """Refuse a model whose attention is no chain of blocks, for what goes from each block to the one before it."""
    if isinstance(model, Checked) and model.without_chain:
        raise ValueError(
            f"the model is no chain of blocks, which rollouts and methods of one block need: {model.without_chain}. "
            f"Use a method of the {model.explains}, as full_lrp or input_x_gradient."
        )


def readout(model: Model, params: Params, image: Array) -> Array | None:
    """How much of the head's input comes from each token of an image, ``[N]``; None: see :attr:`Model.readout`.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.

    Raises:
        ValueError: the model has no chain of blocks, at whose end the head reads; or which tokens cannot be told.
    """
    check_chain(model)
    found = model.readout
    if found is None:
        return None
    return found(params, image) if callable(found) else jnp.asarray(found)


def without_addresses(text: str) -> str:
    """What ``repr`` says of functions, but for where they lie in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def digest(params: Params, *said: Any) -> str:
    """A hash of parameters and of whatever else, by its repr; functions count by their names."""
    with np.printoptions(threshold=sys.maxsize):
        text = without_addresses(repr(said))
    found = hashlib.sha256(text.encode())
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        array = plain(value)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def zero_taps(model: Model, params: Params, image: Array, start_layer: int) -> Array:
    """Zeros to be added to the attention of block ``start_layer`` and those above it."""
    layers, shape = number_of_layers(model, params, image), classify.eval_shape(model, params, image).attention
    return jnp.zeros((len(range(layers)[start_layer:]), *shape.shape[1:]), shape.dtype)
