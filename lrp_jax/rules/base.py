"""What a rule set is, how a rule is written, and the ordinary operations.

Notation: x, a and b are activations, w parameters, z what the equation divides by, R the relevance of the output.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from lrp_jax.rules.attention import See, over_queries

#: The name of what products with parameters give, for the policies of ``jax.checkpoint``.
PRODUCT = "product"

Operation = Callable[..., Array]
Product = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Rules:
    """A set of operations, each with one way to send relevance backward.

    Attributes:
        name: how the set is called in messages, and in :data:`lrp_jax.RULES`.
        dense: ``(x [..., I], kernel [..., I, O], bias [O] or None) -> [..., O]``, ``x @ kernel + bias``. With
            ``product=``, another product of an activation with parameters, linear in both: a convolution.
        patch_embed: the same for the first such product on the way from the pixels.
        matmul: ``(a [..., n, m], b [..., m, p]) -> [..., n, p]``, the product of two activations.
        add: ``(a, b) -> a + b`` for two activations of one shape (a residual connection).
        multiply: ``(a, b) -> a * b`` for two activations of one shape, a the gate. With ``gated=False``, neither is.
        mean: ``(x [n, D]) -> [D]``, the mean over the first axis (pooling). With ``function=``, ``(x, *parameters) ->
            function(x, *parameters)``, other sums of values of x: running sums, or the sums of segments.
        softmax: ``(x, scale) -> softmax(scale * x)`` over the last axis. With ``function=``, ``(x, *parameters) ->
            function(x, *parameters)``, another form of it, of the shape of ``x``.
        layer_norm: ``(x [..., D], scale [D], bias [D], epsilon) -> [..., D]``. With ``function=``, another
            normalisation, or what is linear in the channels of x, as for softmax.
        activation: ``(function, x, *parameters) -> function(x, *parameters)``, elementwise or at least of the shape of
            ``x``.
        times_values: whether what is sent back are gradients, so that relevance is these times the values that stand
            there; else it is relevance.
        places: the rules at a place, of a set that is not the same everywhere: see :meth:`at`.
        rounds: whether the operations of a traced program give the values of the program where it rounds them, as to
            bfloat16, and not what they compute themselves.
        see: what looks at the maps of :meth:`attention`; None: nothing does.
    """

    name: str
    dense: Callable[..., Array]
    patch_embed: Callable[..., Array]
    matmul: Callable[[Array, Array], Array]
    add: Callable[[Array, Array], Array]
    multiply: Callable[..., Array]
    mean: Callable[..., Array]
    softmax: Callable[..., Array]
    layer_norm: Callable[..., Array]
    activation: Callable[..., Array]
    times_values: bool = False
    places: Callable[..., Rules] | None = None
    rounds: bool = True
    see: See | None = None

    def attention(self, q: Array, k: Array, v: Array, scale: float, *, chunk: int | None = None) -> Array:
        """``softmax(scale * q k^T) v``, by the set's own products and softmax: here attention maps are seen.

        Args:
            q: queries ``[..., n, d]``.
            k: keys ``[..., N, d]``.
            v: values ``[..., N, e]``.
            scale: of the products of queries and keys.
            chunk: how many queries are computed at once; None: by size. The map of all of them is never in memory.

        Returns:
            ``[..., n, e]``.
        """

        def of_queries(rules: Rules, q: Array) -> Array:
            maps = rules.softmax(rules.matmul(q, k.mT), scale)
            if rules.see is not None:
                maps = rules.see(maps.reshape(-1, *maps.shape[-2:])).reshape(maps.shape)
            return rules.matmul(maps, v)

        return over_queries(self, of_queries, [q], chunk, width=k.shape[-2] * math.prod(q.shape[:-2]))

    def at(self, **place: Any) -> Rules:
        """The rules at a place, or at what is known of it so far: the more is told, the fewer may apply.

        Models say where their operations stand. Which rules hold where is said by :func:`lrp_jax.composite`.

        Args:
            **place: ``part``, one of :data:`PARTS`; ``depth``, the number of a block, and ``blocks``, of how many;
                ``parameters``, the names of what the operation reads, as ``"blocks/mlp/fc1/kernel"``; ``line``, where
                it is written, as ``"model.py:12"``; ``tokens``, the axes of its result that are of tokens, where
                features are not the last axis alone.

        Returns:
            The set itself, if it is the same everywhere.
        """
        if self.places is None:
            return self
        found = self.places(**place)
        return found if self.see is None else dataclasses.replace(found, see=self.see)


_OTHERS = ("name", "times_values", "places", "rounds", "see")
#: The operations of a rule set.
OPERATIONS = tuple(f.name for f in dataclasses.fields(Rules) if f.name not in _OTHERS)
#: The parts of a model: before the blocks; the attention of a block, with its norm and its residual addition; the rest
#: of a block; and what comes after them.
PARTS = ("embedding", "attention", "mlp", "head")
#: Rule sets of relevance by name.
RULES: dict[str, Rules] = {}


def register(rules: Rules) -> Rules:
    """Make a rule set known by its name, and give it back."""
    RULES[rules.name] = rules
    return rules


def named(rules: str | Rules) -> Rules:
    """The rule set of a name in :data:`RULES`, or the one that is given.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(rules, Rules):
        return rules
    if rules not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)}, or a Rules; got {rules!r}.")
    return RULES[rules]


def rule(primal: Callable[..., Array | tuple[Array, Array]]) -> Callable[[Callable[..., Any]], Operation]:
    """Make an operation of the equation by which it sends relevance backward.

    The equation is a function of the operation's inputs, of z and of R, and gives the relevance of the first inputs::

        @rule(jnp.add)
        def proportional_add(a, b, z, r):
            s = safe_divide(r, z)
            return a * s, b * s

    Inputs that it gives no relevance are parameters, whose cotangent is 0. Keyword arguments of the equation are
    options of the rule, not traced: bind them with ``functools.partial``. Those of ``primal``, as the ``product`` of
    :func:`dense`, are given to both.

    Args:
        primal: the operation, ``(*inputs) -> z``; or ``-> (value, z)``, where the equation is not of its value.

    Returns:
        The decorator. It turns the equation into an operation with the values of ``primal``.
    """
    shared = keywords(primal)

    def decorate(equation: Callable[..., Any]) -> Operation:
        known = keywords(equation)

        @functools.wraps(equation)
        def operation(*inputs: Any, **options: Any) -> Array:
            is_array = [isinstance(x, Array) for x in inputs]
            of_primal = {name: option for name, option in options.items() if name in shared}
            if None not in known and not known >= options.keys():
                raise ValueError(
                    f"the rule {equation.__name__} does not know {', '.join(options.keys() - known)}: give it such a "
                    "keyword argument, or use another rule set."
                )

            @jax.custom_vjp
            def value(*arrays: Array) -> Array:
                return run(*arrays)[0]

            def run(*arrays: Array) -> tuple[Array, tuple[Any, ...]]:
                result = primal(*merge(is_array, arrays, inputs), **of_primal)
                value, z = result if isinstance(result, tuple) else (result, result)
                return value, (arrays, z)

            def backward(residuals: tuple[Any, ...], r: Array) -> tuple[Array | None, ...]:
                arrays, z = residuals
                found = equation(*merge(is_array, arrays, inputs), z, r, **options)
                relevance = found if isinstance(found, tuple) else (found,)
                # An operation of one dtype may compute in another, as a softmax in float32.
                typed = tuple(x if x is None else x.astype(a.dtype) for x, a in zip(relevance, arrays, strict=False))
                return typed + (None,) * (len(arrays) - len(typed))

            value.defvjp(run, backward)
            return value(*(x for x in inputs if isinstance(x, Array)))

        return operation

    return decorate


def keywords(function: Callable[..., Any]) -> set[str | None]:
    """The keyword-only arguments of a function; None among them if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    return {
        None if p.kind is p.VAR_KEYWORD else p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)
    }


def merge(choose: Sequence[bool], chosen: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """The next of ``chosen`` where ``choose`` says so, and what is at that place of ``others`` elsewhere."""
    upcoming = iter(chosen)
    return [next(upcoming) if choice else other for choice, other in zip(choose, others, strict=True)]


def of_arrays(function: Operation, arguments: Sequence[Any], options: Mapping[str, Any]) -> Operation:
    """A function of the arrays among some arguments, the rest and its options bound."""
    is_array = [isinstance(argument, Array) for argument in arguments]
    return lambda *arrays: function(*merge(is_array, arrays, arguments), **options)


def safe_divide(a: Array, b: Array) -> Array:
    """``a / (b + 1e-9)``, and 0 where ``b`` is 0."""
    denominator = b + 1e-9
    denominator = jnp.where(denominator == 0, 1e-9, denominator)
    return jnp.where(b == 0, 0, a / denominator)


def stable_divide(r: Array, z: Array, magnitude: Array, epsilon: float) -> Array:
    """``S = R / z`` of a rule whose z is a sum of terms, and ``magnitude`` the sum of their absolute values.

    Rounding errs in z by a part of the magnitude, and so the quotient is wrong where z is small beside it. With
    ``epsilon``, ``S = R z / (z^2 + (epsilon magnitude)^2)``: R / z where z is large beside ``epsilon magnitude``,
    and going through 0 with z, without a jump, where it is not. Without, the safe division.
    """
    if not epsilon:
        return safe_divide(r, z)
    magnitude = jnp.maximum(magnitude, 1e-9)  # as in the safe division; the square is above float32's smallest number
    ratio = z / magnitude
    return r * ratio / (magnitude * (ratio * ratio + epsilon * epsilon))


# The ordinary operations.


def product(x: Array, kernel: Array, bias: Array | None, *, product: Product = jnp.matmul) -> tuple[Array, Array]:
    """The value of ``dense``, and the product without the bias: in rules that divide by it the bias takes no part."""
    z = checkpoint_name(product(x, kernel), PRODUCT)
    return (z if bias is None else z + jnp.broadcast_to(bias, z.shape)), z


def transposed(product: Product, x: Array, kernel: Array, s: Array) -> Array:
    """What a product sends back to ``x``: ``s @ kernel.T`` for a matrix product."""
    if product is jnp.matmul:
        return s @ kernel.mT
    return jax.linear_transpose(lambda x: product(x, kernel), x)(s)[0]


def dense(x: Array, kernel: Array, bias: Array | None, *, product: Product = jnp.matmul) -> Array:
    """See :class:`Rules`."""
    z = checkpoint_name(product(x, kernel), PRODUCT)
    return z if bias is None else z + jnp.broadcast_to(bias, z.shape)


def multiply(a: Array, b: Array, *, gated: bool = True) -> Array:
    """See :class:`Rules`."""
    return a * b


def average(x: Array) -> Array:
    """The usual pooling."""
    return x.mean(axis=0)


def mean(x: Array, *parameters: Any, function: Callable[..., Array] = average) -> Array:
    """See :class:`Rules`."""
    return function(x, *parameters)


def scaled_softmax(x: Array, scale: float) -> Array:
    """The usual softmax."""
    return jax.nn.softmax(x * scale, axis=-1)


def softmax(x: Array, *parameters: Any, function: Callable[..., Array] = scaled_softmax) -> Array:
    """See :class:`Rules`."""
    return function(x, *parameters)


def normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """The usual layer norm."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scale, bias = jnp.broadcast_to(scale, x.shape), jnp.broadcast_to(bias, x.shape)
    return centred * jax.lax.rsqrt(variance + epsilon) * scale + bias


def layer_norm(x: Array, *parameters: Any, function: Callable[..., Array] = normalised) -> Array:
    """See :class:`Rules`."""
    return function(x, *parameters)


def activation(function: Callable[..., Array], x: Array, *parameters: Any) -> Array:
    """See :class:`Rules`."""
    return function(x, *parameters)


#: The ordinary operations: the backward pass is the gradient.
GRADIENT = Rules(
    name="gradient",
    dense=dense,
    patch_embed=dense,
    matmul=jnp.matmul,
    add=jnp.add,
    multiply=multiply,
    mean=mean,
    softmax=softmax,
    layer_norm=layer_norm,
    activation=activation,
)
