"""What can be explained: a model of one image, made of the operations of a rule set.

Axis letters: C classes, L blocks, h heads, N tokens (class and other prefix tokens first, then the patches row by row).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from lrp_jax.files import plain
from lrp_jax.rules import Rules

Params = Any


class Place(Protocol):
    """Where relevance can be read: tokens or a feature map."""

    def zeros(self) -> Array:
        """What is added there."""
        ...

    def maps(self, relevance: Array) -> Array:
        """Relevance of this shape, summed over channels, on the grid, ``[rows, cols]``."""
        ...


class Model(Protocol):
    """What can be explained: a hashable value (it is a static argument of ``jax.jit``) with the first six members.

    A model is ``embed``, then ``block`` after block, then ``read``. They compute what depends on the image with the
    operations of ``rules``, which take leading axes of their own accord: none stands under a ``jax.vmap``. Beside them
    values are only moved (reshaped, sliced, concatenated) and have constants added. Methods that propagate relevance
    refuse anything else.

    The other members have an answer for models that do not say: see :func:`ask`.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in (rows, columns): the last rows * columns tokens, row by row."""
        ...

    @property
    def readout(self) -> ArrayLike | Callable[[Params, Array], Array] | None:
        """How much of the head's input comes from each token, ``[N]``: what a rollout starts from.

        It is 1, 0, 0, ... for a class token and 1 / patches for a mean. Where it is another for each input, as for the
        last token that is no padding, it is a function ``(params, image) -> [N]``. None: ``read`` pools by attention,
        whose one query tells.
        """
        ...

    @property
    def depth(self) -> int | tuple[int, ...]:
        """How many blocks there are, whose parameters have the same shapes; or several such numbers, in order.

        Each number is one compiled loop, in which the number of a block is traced; of a single block it is an integer.
        """
        ...

    def embed(self, params: Params, image: Array, rules: Rules) -> Array:
        """The tokens ``[N, D]`` of an image ``[H, W, channels]``.

        Args:
            params: the parameters, any pytree.
            image: the image.
            rules: the operations to use.
        """
        ...

    def block(self, params: Params, i: Any, tokens: Array, rules: Rules) -> Array:
        """The tokens that leave a block, of those that enter; its attention is ``rules.attention``.

        Args:
            params: the parameters.
            i: the number of the block, an integer or a traced one: ``jax.tree.map(lambda p: p[i], params["blocks"])``
                are its parameters.
            tokens: ``[N, D]``.
            rules: the operations to use.
        """
        ...

    def read(self, params: Params, tokens: Array, rules: Rules) -> Array:
        """The logits ``[C]`` of the tokens that leave the last block.

        Args:
            params: the parameters.
            tokens: ``[N, D]``, or those that the last block computes.
            rules: the operations to use.
        """
        ...

    # What traced models answer otherwise.

    @property
    def without_attention(self) -> str:
        """Why it has no attention maps; empty if it has."""
        return ""

    @property
    def without_chain(self) -> str:
        """Why its attention is no chain of blocks, each after the other; empty if it is."""
        return ""

    @property
    def without_tokens(self) -> str:
        """Why the tokens that enter its blocks cannot be told; empty if they can."""
        return ""

    @property
    def order(self) -> np.ndarray | None:
        """The places of its tokens, the prefix first; None: they are in order."""
        return None

    @property
    def content(self) -> Place | None:
        """The tokens to which position embeddings are added; None: none are."""
        return None

    @property
    def is_checked(self) -> bool:
        """Whether relevance is known to pass through operations alone, so that it needs no probe."""
        return False

    @property
    def is_image(self) -> bool:
        """Whether an image is explained, and there is no other input."""
        return True

    @property
    def unrounded(self) -> Model | None:
        """The model without its rounding to half precision or less; None: it has none."""
        return None

    @property
    def segments(self) -> Sequence[Any]:
        """Pieces of the program between which all relevance passes tokens or a feature map, one for each resolution."""
        return ()

    @property
    def explains(self) -> str:
        """What is explained: ``"pixels"``, ``"embeddings"`` of tokens, or ``"features"``."""
        return "pixels"

    def prepare(self, params: Params, example: Any) -> tuple[Params, Array]:
        """What ``embed`` takes, of one example: of an image, tokens or several inputs, in their own order of axes.

        Args:
            params: the parameters.
            example: its inputs, without batch axis.

        Returns:
            Parameters, with what is not explained; and what is, an image or embeddings ``[N, D]``.
        """
        return params, example

    def bound(self, params: Params, image: Array) -> Params:
        """What all parts take as parameters, of those that ``embed`` takes and an image."""
        return params

    def rules_at(self, i: int, rules: Rules) -> Rules:
        """The rules in a block, equal for blocks that one loop may run."""
        return rules.at(depth=i, blocks=sum(depth(self)))

    def arrange(self, tokens: Array) -> Array:
        """Those of tokens ``[..., N]`` at blocks that are patches, as a grid ``[..., rows, cols]``."""
        return on_grid(tokens, self.grid)

    def of_pictures(self) -> Model:
        """The model of images channels last, as :func:`lrp_jax.preprocess` makes them."""
        return self

    def check(self, examples: Any) -> Any:
        """A batch of examples as arrays ``[B, ...]``, or a ValueError."""
        return examples


def ask(model: Model, member: str) -> Any:
    """A member of :class:`Model` that not all have: the model's own, or the answer of one that does not say."""
    if hasattr(type(model), member) or hasattr(model, member):
        return getattr(model, member)
    answer = getattr(Model, member)
    return answer.__get__(model) if isinstance(answer, property) else partial(answer, model)


def on_grid(tokens: Array, grid: tuple[int, ...]) -> Array:
    """The last of tokens ``[..., N]``, which are the cells of a grid, as ``[..., rows, cols]``."""
    return tokens[..., tokens.shape[-1] - math.prod(grid) :].reshape(*tokens.shape[:-1], *grid)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens ``[N, D]`` of which the last are patches; a :class:`Place`."""

    shape: tuple[int, int]
    grid: tuple[int, int]

    def zeros(self) -> Array:
        """What is added there."""
        return jnp.zeros(self.shape, jnp.float32)

    def maps(self, relevance: Array) -> Array:
        """Relevance of the patches, summed over channels, ``[rows, cols]``."""
        return on_grid(relevance.sum(axis=-1), self.grid)


def full_precision() -> AbstractContextManager[None]:
    """On accelerators products round by default, but relevance divides by small sums: maps are computed within this."""
    return jax.default_matmul_precision("highest")


def prepared(model: Model, params: Params, example: Any) -> tuple[Params, Array]:
    """What ``embed`` takes: an image channels last, tokens as their embeddings, beside other inputs."""
    found: tuple[Params, Array] = ask(model, "prepare")(params, example)
    return found


def of_pictures(model: Any) -> Any:
    """A model of images channels last, as :func:`lrp_jax.preprocess` makes them, whatever it takes."""
    return ask(model, "of_pictures")()


def depth(model: Model) -> tuple[int, ...]:
    """How many blocks each loop of a model runs."""
    found = model.depth
    return (found,) * (found > 0) if isinstance(found, int) else tuple(found)


def check_tokens(model: Model) -> None:
    """Refuse a model whose blocks cannot be told, for what is read at the tokens that enter them."""
    why = ask(model, "without_tokens") or ("" if depth(model) else "it has no blocks")
    if why:
        raise ValueError(f"the model has no tokens to read relevance at, {why}; attnlrp and its kin have at='pixels'.")


def check_chain(model: Model) -> None:
    """Refuse a model whose attention is no chain of blocks, for what goes from each block to the one before it."""
    if why := ask(model, "without_chain"):
        raise ValueError(
            f"the model is no chain of blocks, which methods of attention need: {why}. "
            f"Use a method of the {ask(model, 'explains')}, as full_lrp or input_x_gradient."
        )


def readout(model: Model, params: Params, image: Array) -> Array | None:
    """How much of the head's input comes from each token of an image, ``[N]``; None: see :attr:`Model.readout`.

    In the order of the model's tokens, as attention is.

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
    found = found(params, image) if callable(found) else jnp.asarray(found)
    order = ask(model, "order")
    return found if order is None else found[np.argsort(order)]


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
