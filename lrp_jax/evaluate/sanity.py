"""Sanity checks: whether maps depend on the parameters and on the class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax import metrics
from lrp_jax.evaluate.base import Option, Protocol, register
from lrp_jax.evaluate.study import Figures, Measure, Record, Study
from lrp_jax.model import Params
from lrp_jax.vit import ViT
from lrp_jax.walk import classify


class Cascade(NamedTuple):
    """Parameters that are drawn anew, more and more of them.

    Attributes:
        stages: what is drawn at each stage, beside all that was before.
        params: of a stage, by its number.
    """

    stages: list[str]
    params: Callable[[int], Params]


def cascade(study: Study) -> Cascade:
    """The stages of a Vision Transformer, from the head down; of any other model one, all parameters.

    A Vision Transformer's are drawn as it was initialised. Another model does not say how: the values of each of its
    parameters are shuffled.
    """
    model, params, key = study.model, study.params, jax.random.key(study.options["seed"])
    if not isinstance(model, ViT):
        return Cascade(["all parameters"], lambda stage: _shuffled(params, key))
    depth, image = model.config.depth, jnp.zeros(model.config.image_shape, jnp.float32)

    @functools.cache
    def draw() -> Params:
        drawn = jax.jit(model.init)(key, image)["params"]
        return jax.tree.map(lambda new, old: new.astype(old.dtype), drawn, params)

    def randomised(stage: int) -> Params:
        """The parameters after a stage, 0 being the head's; stage s has drawn the last s blocks."""
        drawn, first = draw(), depth - min(stage, depth)
        below = {"patch_embed", "pos_embed", "cls_token", "norm_pre", "blocks"} & params.keys()
        mixed = {name: drawn[name] if name not in below else params[name] for name in params}
        mixed["blocks"] = jax.tree.map(
            lambda new, old: jnp.asarray(old).at[first:].set(new[first:]), drawn["blocks"], params["blocks"]
        )
        return mixed if stage <= depth else drawn

    return Cascade(["head", *(f"block {layer}" for layer in reversed(range(depth))), "embeddings"], randomised)


def _shuffled(params: Params, key: Array) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    mixed = [jax.random.permutation(k, jnp.ravel(x)).reshape(x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, mixed)


def measure(study: Study) -> Measure:
    """Rank correlations of an image's maps."""
    if study.labels.num_classes < 2 or study.labels.regression:
        found = "one" if study.labels.num_classes < 2 else "outputs that are numbers"
        raise ValueError(f"sanity compares the maps of two classes, the model has {found}.")
    params, stages = study.params, cascade(study)

    @jax.jit
    def two_most_probable(params: Params, images: Array, labels: Array) -> tuple[Array, Array]:
        logits = jax.vmap(partial(classify, study.model, params))(images)
        return jax.lax.top_k(logits, 2)[1], jax.vmap(metrics.hits)(logits, labels)

    def measure(images: np.ndarray, labels: np.ndarray, _: np.ndarray) -> dict[str, Any]:
        targets, hits = two_most_probable(params, images, labels)

        def maps(params: Params) -> np.ndarray:
            return np.asarray(study.explain(params, images, targets).relevance)

        before = maps(params)
        after = [metrics.spearman(before[:, 0], maps(stages.params(s))[:, 0]) for s in range(len(stages.stages))]
        classes = metrics.spearman(before[:, 0], before[:, 1])
        return {"classes": classes, "stages": np.stack(after, axis=1), "clean": hits}

    return measure


def figures(study: Study) -> Figures:
    """A correlation for the classes and for each stage."""

    def values(record: Record) -> list[float]:
        return [record["classes"], *record["stages"], 100 * float(np.mean(record["clean"] or [np.nan]))]

    names = [f"correlation after {stage}" for stage in cascade(study).stages]
    return Figures(["correlation of two classes", *names, "clean accuracy"], values, lambda means: means)


sanity = register(
    Protocol(
        name="sanity",
        summary="whether maps depend on the parameters and on the class: rank correlations",
        about="""Whether maps depend on the model and on the class (Adebayo et al. 2018, cascading randomisation).

The parameters of a Vision Transformer are drawn anew from the head down: first what lies above the blocks, then block
after block from the last, then the embeddings. Of another model the values of each parameter are shuffled, of all at
once. The figures are Spearman's rank correlations, each a mean over images: of the map of the predicted class before
and after each stage, and of the maps of the two most probable classes. Near 1, the map does not look at the parameters,
or at the class.

Option seed: of the drawn parameters.""",
        needs=(),
        measure=measure,
        figures=figures,
        options={"seed": Option(0, "of the drawn parameters")},
        modules=("scipy.stats",),
    )
)
