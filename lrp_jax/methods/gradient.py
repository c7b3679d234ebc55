"""Maps that are made of the gradient at the pixels."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.methods.base import check_counts, check_seed, colour, is_real, register, weighted_sum
from lrp_jax.model import Model, Params
from lrp_jax.rules import GRADIENT
from lrp_jax.signals import Explanation, predicted, signals_at_pixels
from lrp_jax.walk import classify


@register(class_specific=True, resolution="pixel", reference="Simonyan et al. 2014, section 3")
def saliency(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """The gradient's largest absolute value over channels."""
    pixels = signals_at_pixels(model, params, image, targets, GRADIENT)
    return dataclasses.replace(pixels, relevance=jnp.abs(pixels.relevance).max(axis=-1))


@register(class_specific=True, resolution="pixel", reference="Shrikumar et al. 2016, arXiv 1605.01713", signed=True)
def input_x_gradient(model: Model, params: Params, image: Array, targets: Array | None) -> Explanation:
    """The image times the gradient, summed over channels."""
    pixels = signals_at_pixels(model, params, image, targets, GRADIENT)
    return dataclasses.replace(pixels, relevance=(image[None] * pixels.relevance).sum(axis=-1))


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
) -> Explanation:
    """Saliency of the mean gradient of noisy copies of the image.

    Sample i adds ``noise * (largest - smallest value of the image) * normal(fold_in(key(seed), i))``, the same for
    every image.

    Options:
        samples: number of copies.
        noise: standard deviation of the noise, in parts of the image's range.
        seed: of the noise.
        chunk: how many copies of an image are run at once; memory grows with it.

    Raises:
        ValueError: an option is out of range.
    """
    check_counts(samples=samples, chunk=chunk)
    check_seed(seed)
    if not is_real(noise) or noise < 0:
        raise ValueError(f"noise must be a number of at least 0, got {noise!r}.")
    logits = classify(model, params, image)
    targets = predicted(logits, targets)
    deviation = noise * (image.max() - image.min())

    def gradient(i: Array) -> Array:
        sample = jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), image.shape, image.dtype)
        return signals_at_pixels(model, params, image + deviation * sample, targets, GRADIENT).relevance

    mean = weighted_sum(gradient, jnp.arange(samples), np.full(samples, 1 / samples), chunk)
    return Explanation(logits, targets, jnp.abs(mean).max(axis=-1))


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
) -> Explanation:
    """The gradient integrated from a baseline to the image, times their difference, summed over channels.

    The map sums up to the difference of the logits, but for the error of the quadrature (Gauss-Legendre).

    Options:
        steps: points of the quadrature.
        baseline: value of all pixels, or of each channel, in the normalised scale: 0 is the mean colour.
        chunk: how many points are run at once; memory grows with it.

    Raises:
        ValueError: an option is out of range.
    """
    check_counts(steps=steps, chunk=chunk)
    base = colour(baseline, image)
    logits = classify(model, params, image)
    targets = predicted(logits, targets)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]

    def gradient(alpha: Array) -> Array:
        return signals_at_pixels(model, params, base + alpha * (image - base), targets, GRADIENT).relevance

    mean = weighted_sum(gradient, jnp.asarray((points + 1) / 2, image.dtype), weights / 2, chunk)
    return Explanation(logits, targets, ((image - base)[None] * mean).sum(axis=-1))
