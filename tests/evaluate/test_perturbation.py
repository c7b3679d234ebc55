"""Perturbation is a loop over images."""

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from helpers import lines

import lrp_jax
from lrp_jax import evaluate, metrics
from lrp_jax.datasets import DigitDataset
from lrp_jax.walk import classify


@pytest.mark.parametrize("explained", ["predicted", "true"])
def test_perturbation_is_a_loop_over_images(small, tmp_path, explained):
    model, params = small
    summary = evaluate.perturbation(
        *small, DigitDataset(3), tmp_path, method="partial_lrp", explained=explained, batch_size=2
    )
    scenes = lrp_jax.datasets.digit_scenes(3, seed=1)
    curves = {"positive": [], "negative": []}
    chances = {"positive": [], "negative": [], "insertion": []}
    for i, (image, labels) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        top = np.argsort(-classify(model, params, image))[:2]
        wrong = [c for c in top if c not in labels]
        targets = [label if label in top else wrong.pop(0) for label in labels] if explained == "predicted" else labels
        assert lines(tmp_path)[i]["explained"] == list(targets)
        relevance = lrp_jax.explain(model, params, image[None], np.array([targets]), method="partial_lrp").relevance[0]
        for label, heat in zip(labels, lrp_jax.heatmaps(relevance, (64, 64)), strict=True):
            for name, sign in (("positive", -1), ("negative", 1)):
                order = np.argsort(sign * np.asarray(heat).ravel(), kind="stable")
                hits, probabilities = [], []
                for step in range(11):
                    pixels = image.reshape(-1, 3).copy()
                    pixels[order[: int(4096 * (step / 10))]] = -1
                    logits = classify(model, params, pixels.reshape(64, 64, 3))
                    hits.append(label in np.argsort(-logits)[:2])
                    probabilities.append(1 / (1 + np.exp(-logits[label])))
                curves[name].append(hits[:10])
                chances[name].append(probabilities)
            order = np.argsort(-np.asarray(heat).ravel(), kind="stable")
            blurred = scipy.ndimage.gaussian_filter(image, (5, 5, 0), truncate=1, mode="nearest")
            pixels, probabilities = blurred.reshape(-1, 3), []
            for step in range(11):
                pixels[order[: int(4096 * (step / 10))]] = image.reshape(-1, 3)[order[: int(4096 * (step / 10))]]
                logits = classify(model, params, pixels.reshape(64, 64, 3))
                probabilities.append(1 / (1 + np.exp(-logits[label])))
            chances["insertion"].append(probabilities)
    for name, hits in curves.items():
        expected = np.mean(hits, axis=0)
        np.testing.assert_allclose(summary.curves[f"{name} accuracy"][:10], expected, atol=1e-12)
        assert summary.figures[f"{name} AUC"].value == pytest.approx(metrics.area_under_curve(expected))
        assert summary.figures["clean accuracy"].value == pytest.approx(100 * expected[0])
    for name, values in chances.items():
        np.testing.assert_allclose(summary.curves[f"{name} probability"], np.mean(values, axis=0), atol=1e-4)
    means = {name: np.mean(values, axis=0) for name, values in chances.items()}
    areas = {
        "positive AUC, probability": means["positive"][:10],
        "negative AUC, probability": means["negative"][:10],
        "deletion": means["positive"],
        "insertion": means["insertion"],
    }
    for name, values in areas.items():
        assert summary.figures[name].value == pytest.approx(metrics.area_under_curve(values), abs=0.01)
    insertion = summary.curves["insertion accuracy"]
    assert insertion[-1] == summary.curves["positive accuracy"][0]  # the whole image again
