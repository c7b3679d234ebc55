"""Segmentation is a loop over images."""

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.datasets import DigitDataset


def test_segmentation_is_a_loop_over_images(small, tmp_path):
    model, params = small
    summary = evaluate.segmentation(*small, DigitDataset(5), tmp_path, method="saliency", batch_size=2)
    scenes = lrp_jax.datasets.digit_scenes(5, seed=1)
    correct, intersection, union, precision, f1, share = 0, np.zeros(2), np.zeros(2), [], [], []
    # Of pixels, as no two are equal: where cells of a map are 0, rounding decides which of their pixels comes first.
    for image, labels, masks in zip(*scenes, strict=True):
        maps = lrp_jax.explain(model, params, image[None], labels[None], method="saliency").relevance[0]
        for relevance, mask in zip(maps, masks, strict=True):
            heat = np.asarray(lrp_jax.heatmaps(relevance, (64, 64)))
            heat = (heat - heat.min()) / (np.ptp(heat) or 1)
            found = heat > heat.mean()
            on = [np.maximum(relevance, 0)[m].sum() for m in (mask, *masks)]
            share.append(on[0] / (sum(on[1:]) or 1))
            correct += (found == mask).sum()
            intersection += [(~found & ~mask).sum(), (found & mask).sum()]
            union += [(~found | ~mask).sum(), (found | mask).sum()]
            precision.append(average_precision_score(np.r_[~mask.ravel(), mask.ravel()], np.r_[1 - heat, heat].ravel()))
            f1.append(f1_score(mask.ravel(), found.ravel()))
    assert 0 < np.mean(share) < 1
    expected = {
        "pixel accuracy": correct / (10 * 64 * 64),
        "mIoU": (intersection / union).mean(),
        "mAP": np.mean(precision),
        "mF1": np.mean(f1),
        "share on target": np.mean(share),
    }
    for name, value in expected.items():
        assert summary.figures[name].value == pytest.approx(100 * value, rel=1e-4)
        assert summary.figures[name].low <= summary.figures[name].value <= summary.figures[name].high
    assert summary.images == 5
    assert (
        json.loads((tmp_path / "summary.json").read_text())["figures"]["mIoU"]["value"] == summary.figures["mIoU"].value
    )
