"""Sanity checks draw parameters anew."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import drawn

import lrp_jax
from lrp_jax import evaluate, metrics
from lrp_jax.datasets import DigitDataset
from lrp_jax.walk import classify


def test_sanity_draws_the_parameters_from_the_head_down(small, tmp_path):
    model = lrp_jax.ViT(dataclasses.replace(small[0].config, depth=2))
    params = jax.tree.map(lambda p: np.asarray(p * 3), drawn(model))  # of numpy, as safetensors gives them
    run = (model, params, DigitDataset(3), tmp_path / "a")
    summary = evaluate.sanity(*run, method="saliency", batch_size=2, seed=4)
    scenes = lrp_jax.datasets.digit_scenes(3, seed=1)
    new = jax.jit(model.init)(jax.random.key(4), scenes.images[0])["params"]
    head = params | {"head": new["head"], "norm": new["norm"]}
    last = jax.tree.map(lambda old, new: np.stack([old[0], new[1]]), params["blocks"], new["blocks"])
    stages = {"head": head, "block 1": head | {"blocks": last}, "block 0": head | {"blocks": new["blocks"]}}
    stages["embeddings"] = new
    logits = np.array([classify(model, params, image) for image in scenes.images])
    targets = np.argsort(-logits, axis=1)[:, :2]
    before = lrp_jax.explain(model, params, scenes.images, targets, method="saliency").relevance
    expected = metrics.spearman(before[:, 0], before[:, 1]).mean()
    assert summary.figures["correlation of two classes"].value == pytest.approx(expected, abs=1e-3)
    for name, mixed in stages.items():
        after = lrp_jax.explain(model, mixed, scenes.images, targets, method="saliency").relevance
        expected = metrics.spearman(before[:, 0], after[:, 0]).mean()
        assert summary.figures[f"correlation after {name}"].value == pytest.approx(expected, abs=1e-3)
    assert len(summary.figures) == 6
    agnostic = evaluate.sanity(*small, DigitDataset(2), tmp_path / "b", method="raw_attention", batch_size=2)
    assert agnostic.figures["correlation of two classes"].value == pytest.approx(1)
    assert agnostic.figures["correlation after head"].value == pytest.approx(1)
