"""The attribution methods, each a function of one image, registered in :data:`METHODS` by its name.

A method is ``function(model, params, image, targets, *, options...)``: ``image`` is ``[H, W, channels]``, ``targets``
int ``[K]``, float ``[K, C]`` (weights of the logits) or None for the predicted class. It returns logits ``[C]``, the
targets and relevance ``[K, rows, cols]``, on the grid of patches or of pixels. :func:`lrp_jax.explain` batches and jits
it; options are static. To add one, decorate it with :func:`register`.

Letters: K targets, C classes, L blocks, h heads, N tokens. A attention, G and R its gradient and relevance for a
target, ``x+ = max(x, 0)``; "the row" of a matrix ``[N, N]`` is what the head reads of it: the class token's, for a
class token, and :attr:`lrp_jax.Model.readout` times the matrix in general.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.metrics import unit_range
from lrp_jax.model import Model, Params, forward, number_of_layers
from lrp_jax.propagation import at_attention, at_pixels, directions, predicted, signals
from lrp_jax.rules import GRADIENT, Rules

Maps = tuple[Array, Array, Array]
Score = Literal["logit", "softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        function: what explains one image, see the module's docstring.
        class_specific: whether the map depends on the target.
        resolution: of the map, ``"patch"`` or ``"pixel"``.
        reference: where it comes from.
        signed: whether values below zero speak against the target, instead of less for it.
    """

    function: Callable[..., Maps]
    class_specific: bool
    resolution: Literal["patch", "pixel"]
    reference: str
    signed: bool = False

    @property
    def name(self) -> str:
        """Its name in :data:`METHODS`."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def options(self) -> Mapping[str, Any]:
        """Its options and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


#: The methods by name.
METHODS: dict[str, Method] = {}


def register(
    *, class_specific: bool, resolution: Literal["patch", "pixel"], reference: str, signed: bool = False
) -> Callable[[Callable[..., Maps]], Callable[..., Maps]]:
    """Make a function a method, under its own name.

    Args:
        class_specific: whether the map depends on the target.
        resolution: of the map, ``"patch"`` or ``"pixel"``.
        reference: where it comes from.
        signed: whether values below zero speak against the target, instead of less for it; maps are drawn accordingly.

    Returns:
        The decorator. It gives the function back as it is.
    """

    def decorate(function: Callable[..., Maps]) -> Callable[..., Maps]:
        METHODS[function.__name__] = Method(function, class_specific, resolution, reference, signed)
        return function

    return decorate


# Attention and its relevance.


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, equations 13 and 14")
def transformer_attribution(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    rules: str | Rules = "stable",
) -> Maps:
    """Rollout of (G * R)+, the gradient times the relevance of the attention.

    With ``A_l = mean over heads of (G_l * R_l)+``, the map is the row of ``(I + A_{L-1}) ... (I + A_s)``.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        start_layer: s, the first block that enters the product: 0 in the paper's definition, 1 in its evaluation.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set: ``"stable"``, the paper's but for
            divisions that float32 does not blur, or ``"chefer"``, the paper's to the letter.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``start_layer`` is not a block, or ``rules`` is unknown.
    """
    _check_block(model, params, image, start_layer=start_layer)
    logits, targets, _, gradient, relevance = signals(model, params, image, targets, rules, start_layer)
    return logits, targets, _rollout(jnp.maximum(gradient * relevance, 0).mean(axis=2), model)


@register(class_specific=False, resolution="patch", reference="Chefer et al. 2021, section 4")
def raw_attention(model: Model, params: Params, image: Array, targets: Array | None) -> Maps:
    """The row of the last block's attention, mean over heads.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class; the map is the same for all.

    Returns:
        Logits, targets and relevance of one image.
    """
    logits, attention = forward(model, params, image)
    targets = predicted(logits, targets)
    return logits, targets, _for_each(targets, _patches(_row(attention[-1].mean(axis=0), model), model))


@register(class_specific=False, resolution="patch", reference="Abnar and Zuidema 2020, section 3")
def attention_rollout(
    model: Model, params: Params, image: Array, targets: Array | None, *, start_layer: int = 0
) -> Maps:
    """The row of the product of all blocks' attention, mean over heads plus identity, rows scaled to sum 1.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class; the map is the same for all.
        start_layer: the first block that enters the product; 1 in the evaluation of Chefer et al.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``start_layer`` is not a block.
    """
    _check_block(model, params, image, start_layer=start_layer)
    logits, attention = forward(model, params, image)
    targets = predicted(logits, targets)
    relevance = _rollout(attention[None, start_layer:].mean(axis=2), model, scaled=True)
    return logits, targets, _for_each(targets, relevance[0])


@register(class_specific=True, resolution="patch", reference="Selvaraju et al. 2017, on attention: Chefer et al. 2021")
def attention_gradcam(model: Model, params: Params, image: Array, targets: Array | None) -> Maps:
    """GradCAM with the last block's heads for channels: their rows, weighted by the gradient's mean.

    With a and g the rows of A and G at the patches, the map is ``(mean over heads of (mean g) a)+``, scaled to [0, 1].

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.

    Returns:
        Logits, targets and relevance of one image.
    """
    logits, targets, attention, gradient = at_attention(model, params, image, targets, GRADIENT, -1)
    weight = _patches(_row(gradient[:, 0], model), model).mean(axis=(2, 3), keepdims=True)  # [K, h, 1, 1]
    cam = jnp.maximum((weight * _patches(_row(attention[-1], model), model)[None]).mean(axis=1), 0)
    return logits, targets, unit_range(cam)


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, section 4; Voita et al. 2019")
def partial_lrp(
    model: Model, params: Params, image: Array, targets: Array | None, *, rules: str | Rules = "baseline"
) -> Maps:
    """The row of R+, the relevance of the last block's attention, mean over heads.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``rules`` is unknown.
    """
    return single_block(model, params, image, targets, gradient=False, rules=rules)


@register(
    class_specific=True, resolution="pixel", reference="Bach et al. 2015; z-B rule: Montavon et al. 2017", signed=True
)
def full_lrp(
    model: Model, params: Params, image: Array, targets: Array | None, *, rules: str | Rules = "baseline"
) -> Maps:
    """Relevance propagated through all blocks to the pixels, summed over channels.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``rules`` is unknown.
    """
    logits, targets, pixels = at_pixels(model, params, image, targets, rules)
    return logits, targets, pixels.sum(axis=-1)


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, table 3 (without gradient)")
def lrp_rollout(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    start_layer: int = 0,
    rules: str | Rules = "baseline",
) -> Maps:
    """Rollout of R+, the relevance of the attention: transformer attribution without the gradient.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        start_layer: the first block that enters the product.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set. The ablation of the paper's
            table 3 has those of transformer attribution.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``start_layer`` is not a block, or ``rules`` is unknown.
    """
    _check_block(model, params, image, start_layer=start_layer)
    logits, targets, _, relevance = at_attention(model, params, image, targets, rules, start_layer)
    return logits, targets, _rollout(jnp.maximum(relevance, 0).mean(axis=2), model)


@register(class_specific=True, resolution="patch", reference="Chefer et al. 2021, table 3 (one block)")
def single_block(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    block: int = -1,
    gradient: bool = True,
    rules: str | Rules = "stable",
) -> Maps:
    """The row of one block's (G * R)+, mean over heads: transformer attribution without the rollout.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        block: which block; negative: counted from the end. The paper has 1 and the last.
        gradient: whether the relevance is multiplied by the gradient.
        rules: of the relevance, a name in :data:`lrp_jax.rules.RULES` or a rule set.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: ``block`` is not a block, or not the last of a model that pools by attention, whose other blocks
            have no row that the head reads; ``gradient`` is not a truth value; or ``rules`` is unknown.
    """
    if not isinstance(gradient, bool):
        raise ValueError(f"gradient must be True or False, got {gradient!r}.")
    layers = _check_block(model, params, image, negative=True, block=block)
    if model.readout is None and block not in (-1, layers - 1):
        raise ValueError(f"block must be the last, {layers - 1}, of a model that pools by attention; got {block}.")
    if gradient:
        logits, targets, _, gradients, relevance = signals(model, params, image, targets, rules, block)
        relevance = gradients * relevance
    else:
        logits, targets, _, relevance = at_attention(model, params, image, targets, rules, block)
    return logits, targets, _patches(_row(jnp.maximum(relevance[:, 0], 0).mean(axis=1), model), model)


# The gradient at the pixels.


@register(class_specific=True, resolution="pixel", reference="Simonyan et al. 2014, section 3")
def saliency(model: Model, params: Params, image: Array, targets: Array | None) -> Maps:
    """The gradient's largest absolute value over channels.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.

    Returns:
        Logits, targets and relevance of one image.
    """
    logits, targets, gradient = at_pixels(model, params, image, targets, GRADIENT)
    return logits, targets, jnp.abs(gradient).max(axis=-1)


@register(class_specific=True, resolution="pixel", reference="Shrikumar et al. 2016, arXiv 1605.01713", signed=True)
def input_x_gradient(model: Model, params: Params, image: Array, targets: Array | None) -> Maps:
    """The image times the gradient, summed over channels.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.

    Returns:
        Logits, targets and relevance of one image.
    """
    logits, targets, gradient = at_pixels(model, params, image, targets, GRADIENT)
    return logits, targets, (image[None] * gradient).sum(axis=-1)


@register(class_specific=True, resolution="pixel", reference="Smilkov et al. 2017, arXiv 1706.03825")
def smoothgrad(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    chunk: int = 1,
) -> Maps:
    """Saliency of the mean gradient of noisy copies of the image.

    Sample i adds ``noise * (largest - smallest value of the image) * normal(fold_in(key(seed), i))``, the same for
    every image.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        samples: number of copies.
        noise: standard deviation of the noise, in parts of the image's range.
        seed: of the noise.
        chunk: how many copies of an image are run at once; memory grows with it.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: an option is out of range.
    """
    _check_counts(samples=samples, chunk=chunk)
    _check_seed(seed)
    if not _is_real(noise) or noise < 0:
        raise ValueError(f"noise must be a number of at least 0, got {noise!r}.")
    logits, _ = forward(model, params, image)
    targets = predicted(logits, targets)
    deviation = noise * (image.max() - image.min())

    def gradient(i: Array) -> Array:
        sample = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), image.shape, image.dtype)
        return at_pixels(model, params, image + deviation * sample, targets, GRADIENT)[2]

    mean = _weighted_sum(gradient, jnp.arange(samples), np.full(samples, 1 / samples), chunk)
    return logits, targets, jnp.abs(mean).max(axis=-1)


@register(class_specific=True, resolution="pixel", reference="Sundararajan et al. 2017, equation 1", signed=True)
def integrated_gradients(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    steps: int = 50,
    baseline: float | tuple[float, ...] = 0.0,
    chunk: int = 1,
) -> Maps:
    """The gradient integrated from a baseline to the image, times their difference, summed over channels.

    The map sums up to the difference of the logits, but for the error of the quadrature (Gauss-Legendre).

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        steps: points of the quadrature.
        baseline: value of all pixels, or of each channel, in the normalised scale: 0 is the mean colour.
        chunk: how many points are run at once; memory grows with it.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: an option is out of range.
    """
    _check_counts(steps=steps, chunk=chunk)
    base = _colour(baseline, image)
    logits, _ = forward(model, params, image)
    targets = predicted(logits, targets)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]

    def gradient(alpha: Array) -> Array:
        return at_pixels(model, params, base + alpha * (image - base), targets, GRADIENT)[2]

    mean = _weighted_sum(gradient, jnp.asarray((points + 1) / 2, image.dtype), weights / 2, chunk)
    return logits, targets, ((image - base)[None] * mean).sum(axis=-1)


# Black boxes: only forward passes.


@register(class_specific=True, resolution="pixel", reference="Zeiler and Fergus 2014, section 4.2", signed=True)
def occlusion(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    baseline: float | tuple[float, ...] = 0.0,
    chunk: int = 16,
) -> Maps:
    """By how much the logit falls when a window is covered, mean over the windows that cover a pixel.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        window: edge of the window, or its rows and columns, in pixels; None: two patches, or the image.
        stride: step of the window, or its rows and columns, in pixels; None: one patch.
        baseline: what the window is filled with, one value or one for each channel, in the normalised scale: 0 is the
            mean colour.
        chunk: how many windows of an image are run at once; memory grows with it.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: an option is out of range.
    """
    _check_counts(chunk=chunk)
    size = image.shape[0], image.shape[1]
    patch = size[0] // model.grid[0], size[1] // model.grid[1]
    window = _pair("window", window, (min(2 * patch[0], size[0]), min(2 * patch[1], size[1])))
    stride = _pair("stride", stride, patch)
    if any(w > s for w, s in zip(window, size, strict=True)) or any(w < s for w, s in zip(window, stride, strict=True)):
        raise ValueError(f"window must be at most the image, {size}, and at least the stride, {stride}; got {window}.")
    base = _colour(baseline, image)
    logits, _ = forward(model, params, image)
    targets = predicted(logits, targets)
    weights = directions(targets, logits)
    # Windows that reach over the edge are cut there.
    starts = [np.arange(math.ceil((s - w) / d) + 1) * d for s, w, d in zip(size, window, stride, strict=True)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)

    def fall(corner: Array) -> Array:
        rows, cols = (
            (jnp.arange(s) >= c) & (jnp.arange(s) < c + w) for s, c, w in zip(size, corner, window, strict=True)
        )
        covered = rows[:, None] & cols[None]
        difference = weights @ (logits - forward(model, params, jnp.where(covered[..., None], base, image))[0])
        # The last map counts the windows.
        return jnp.append(difference, jnp.ones((), logits.dtype))[:, None, None] * covered[None].astype(logits.dtype)

    *falls, windows = _weighted_sum(fall, jnp.asarray(corners), np.ones(len(corners)), chunk)
    return logits, targets, jnp.stack(falls) / windows[None]


@register(class_specific=True, resolution="pixel", reference="Petsiuk et al. 2018, equation 6")
def rise(
    model: Model,
    params: Params,
    image: Array,
    targets: Array | None,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    score: Score = "softmax",
    seed: int = 0,
    chunk: int = 16,
) -> Maps:
    """Mean of random masks, weighted by the target's score under the mask.

    A mask is a grid of ``cells * cells`` zeros and ones, enlarged bilinearly and shifted at random by up to a cell
    (:func:`rise_mask`); the image is multiplied by it.

    Args:
        model: the model.
        params: its parameters.
        image: ``[H, W, channels]``.
        targets: int ``[K]``, float ``[K, C]``, or None for the predicted class.
        masks: number of masks, the same for every image.
        cells: edge of the grid.
        keep: probability that a cell is kept.
        score: ``"softmax"`` (the paper's) or ``"sigmoid"`` of the logits, or the logit itself.
        seed: of the masks.
        chunk: how many masks of an image are run at once; memory grows with it.

    Returns:
        Logits, targets and relevance of one image.

    Raises:
        ValueError: an option is out of range.
    """
    _check_counts(masks=masks, cells=cells, chunk=chunk)
    _check_seed(seed)
    if not _is_real(keep) or not 0 < keep < 1:
        raise ValueError(f"keep must be a probability between 0 and 1, got {keep!r}.")
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}; got {score!r}.")
    squash = {"logit": lambda x: x, "softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[score]
    logits, _ = forward(model, params, image)
    if score == "softmax" and logits.size == 1:
        raise ValueError("score must be 'logit' or 'sigmoid' for a model of one output, whose softmax is always 1.")
    targets = predicted(logits, targets)
    weights = directions(targets, logits)

    def weighted(i: Array) -> Array:
        mask = rise_mask(jax.random.fold_in(jax.random.key(seed), i), image.shape[:2], cells, keep).astype(image.dtype)
        scores = weights @ squash(forward(model, params, image * mask[..., None])[0])
        return scores[:, None, None] * mask[None]

    return logits, targets, _weighted_sum(weighted, jnp.arange(masks), np.full(masks, 1 / (masks * keep)), chunk)


def rise_mask(key: Array, size: tuple[int, ...], cells: int, keep: float) -> Array:
    """A random mask of RISE, ``[H, W]`` in [0, 1].

    Args:
        key: of the draws.
        size: (H, W).
        cells: edge of the grid of zeros and ones.
        keep: probability of a one.

    Returns:
        The mask.
    """
    cell = tuple(math.ceil(s / cells) for s in size)
    of_cells, of_shift = jax.random.split(key)
    grid = jax.random.bernoulli(of_cells, keep, (cells, cells)).astype(jnp.float32)
    large = jax.image.resize(grid, tuple((cells + 1) * c for c in cell), "bilinear")
    shift = jax.random.randint(of_shift, (2,), 0, jnp.asarray(cell))
    return jax.lax.dynamic_slice(large, shift, size)


# What the methods share.


def _row(matrix: Array, model: Model) -> Array:
    """What the head reads of matrices ``[..., N, N]``: their row, ``[..., N]``."""
    if model.readout is None:
        return matrix[..., 0, :]
    return jnp.einsum("n,...nm->...m", jnp.asarray(model.readout, matrix.dtype), matrix)


def _rollout(matrices: Array, model: Model, *, scaled: bool = False) -> Array:
    """The row of ``(I + M_{l-1}) ... (I + M_0)`` at the patches, ``[K, rows, cols]``, for M ``[K, l, N, N]``.

    ``scaled`` divides each row of ``I + M`` by its sum.
    """
    if model.readout is None:
        row, matrices = matrices[:, -1, 0], matrices[:, :-1]
    else:
        row = jnp.broadcast_to(jnp.asarray(model.readout, matrices.dtype), matrices.shape[::3])
    for layer in reversed(range(matrices.shape[1])):
        matrix = matrices[:, layer]
        if scaled:
            row = row / (1 + matrix.sum(axis=-1))
        row += jnp.einsum("kn,knm->km", row, matrix)
    return _patches(row, model)


def _patches(row: Array, model: Model) -> Array:
    """The patches of ``row`` ``[..., N]``, as a grid ``[..., rows, cols]``."""
    rows, cols = model.grid
    return row[..., row.shape[-1] - rows * cols :].reshape(*row.shape[:-1], rows, cols)


def _for_each(targets: Array, relevance: Array) -> Array:
    """One map for all targets."""
    return jnp.broadcast_to(relevance, (len(targets), *relevance.shape))


def _weighted_sum(function: Callable[[Array], Array], inputs: Array, weights: np.ndarray, chunk: int) -> Array:
    """The sum of ``weights[i] * function(inputs[i])``, ``chunk`` of them at a time."""
    chunk = min(chunk, len(weights))
    missing = -len(weights) % chunk
    inputs = jnp.concatenate([inputs, inputs[:missing]]).reshape(-1, chunk, *inputs.shape[1:])
    shape = jax.eval_shape(function, inputs[0, 0])
    weights = np.append(weights, np.zeros(missing)).reshape(-1, chunk).astype(shape.dtype)

    def step(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        some, of_some = part
        return total + jnp.tensordot(of_some, jax.vmap(function)(some), axes=1), None

    return jax.lax.scan(step, jnp.zeros(shape.shape, shape.dtype), (inputs, jnp.asarray(weights)))[0]


def _check_block(model: Model, params: Params, image: Array, *, negative: bool = False, **option: Any) -> int:
    """The number of blocks, after a look at an option that is one of them."""
    ((name, value),) = option.items()
    layers = number_of_layers(model, params, image)
    lowest = -layers if negative else 0
    if not _is_integer(value) or not lowest <= value < layers:
        raise ValueError(f"{name} must be a block, {lowest} to {layers - 1}; got {value!r}.")
    return layers


def _check_counts(**options: Any) -> None:
    for name, value in options.items():
        if not _is_integer(value) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def _check_seed(seed: Any) -> None:
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer of at least 0 and below 2**32, got {seed!r}.")


def _pair(name: str, value: Any, default: tuple[int, int]) -> tuple[int, int]:
    rows, cols = pair = (
        default if value is None else value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    )
    if not all(_is_integer(v) and v >= 1 for v in pair):
        raise ValueError(f"{name} must be one or two integers of at least 1, got {value!r}.")
    return rows, cols


def _colour(value: Any, image: Array) -> Array:
    """``value``, a number or one for each channel, as an array ``[1, 1, 1 or channels]``."""
    values = value if isinstance(value, tuple) else (value,)
    if len(values) not in (1, image.shape[-1]) or not all(_is_real(v) for v in values):
        raise ValueError(f"baseline must be 1 or {image.shape[-1]} finite numbers, got {value!r}.")
    return jnp.asarray(values, image.dtype).reshape(1, 1, -1)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
