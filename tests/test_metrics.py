"""Segmentation and perturbation against the authors' values, the rest against plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import GOLDEN, small_images, small_model

import lrp_jax
from lrp_jax import metrics
from lrp_jax.walk import forward


@pytest.fixture(scope="module")
def segmentation():
    with np.load(GOLDEN / "segmentation_metrics.npz") as file:
        golden = dict(file)
    return golden, lrp_jax.heatmaps(golden["relevance"], (224, 224))


def test_segmentation_counts_equal_the_authors(segmentation):
    golden, maps = segmentation
    counts = metrics.segmentation_counts(maps, golden["mask"])
    np.testing.assert_array_equal(counts.correct, golden["pixel_correct"])
    np.testing.assert_array_equal(counts.labeled, golden["pixel_labeled"])
    np.testing.assert_array_equal(counts.intersection, golden["intersection"])
    np.testing.assert_array_equal(counts.union, golden["union"])
    assert counts.correct.sum() / counts.labeled.sum() == pytest.approx(golden["pixel_accuracy"], rel=1e-12)
    overlap = counts.intersection.sum(axis=0) / counts.union.sum(axis=0)
    assert overlap.mean() == pytest.approx(golden["mean_iou"], rel=1e-12)


def test_average_precision_equals_the_authors(segmentation):
    pytest.importorskip("sklearn")
    golden, maps = segmentation  # float32, as theirs were
    values = [metrics.average_precision(*pair) for pair in zip(maps, golden["mask"], strict=True)]
    np.testing.assert_allclose(values, golden["average_precision"], rtol=1e-7)
    assert np.mean(values) == pytest.approx(golden["mean_ap"], rel=1e-7)


def test_constant_maps_find_nothing():
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    counts = metrics.segmentation_counts(np.full((4, 4), 7.0), mask)
    np.testing.assert_array_equal(counts.intersection, [8, 0])
    np.testing.assert_array_equal(counts.union, [16, 8])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\) and \(8, 8\)"):
        metrics.segmentation_counts(np.zeros((4, 4)), np.zeros((8, 8)))


def test_perturbation_equals_the_authors(golden_model):
    """Where no two pixels of equal relevance lie on either side of the cut; torch's choice is in test_live_parity."""
    with np.load(GOLDEN / "perturbation.npz") as file:
        golden = dict(file)
    images = (golden["images"].transpose(0, 2, 3, 1) - 0.5) / 0.5
    maps = lrp_jax.heatmaps(golden["relevance"], (32, 32))
    counts = np.array([int(1024 * (step / 10)) for step in range(1, 10)])
    compared = 0
    for sign, name in ((1, "positive"), (-1, "negative")):
        for b in range(6):
            ranks = metrics.ranks(sign * maps[b])
            logits = metrics.perturbed_logits(*golden_model, images[b], ranks, counts, np.full(3, -1.0))
            in_order = np.sort(sign * np.asarray(maps[b]).ravel())[::-1]
            for step, count in enumerate(counts):
                if in_order[count - 1] > in_order[count]:
                    np.testing.assert_allclose(logits[step], golden[f"{name}_logits"][step, b], atol=1e-9)
                    compared += 1
    assert compared > 50


def test_area_under_curve_equals_the_authors():
    with np.load(GOLDEN / "perturbation.npz") as file:
        clean = (file["clean_logits"].argmax(axis=1) == file["target"]).mean()
        for name in ("positive", "negative"):
            curve = [clean, *file[f"{name}_accuracy"]]
            assert metrics.area_under_curve(curve) == pytest.approx(file[f"{name}_auc"], abs=1e-12)


def test_the_most_relevant_pixels_go_first():
    relevance = jnp.array([[3.0, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(metrics.ranks(relevance), [[0, 3], [2, 1]])
    model, params = small_model()
    image = small_images(1)[0]
    relevance = jax.random.normal(jax.random.key(0), (16, 16), jnp.float64)
    colour = jnp.array([1.0, 2.0, 3.0], jnp.float64)
    logits = metrics.perturbed_logits(model, params, image, metrics.ranks(relevance), np.array([0, 100]), colour)
    changed = np.array(image)
    changed[relevance >= np.sort(relevance.ravel())[-100]] = colour
    for expected, actual in zip((image, changed), logits, strict=True):
        np.testing.assert_allclose(forward(model, params, expected, lrp_jax.GRADIENT), actual, rtol=1e-10)


def test_spearman():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 3, 4, 4))
    expected = [scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.spearman(a, b), expected, rtol=1e-12)
    assert metrics.spearman(np.ones((4, 4)), a[0]) == 0


def test_bootstrap_interval_of_a_mean():
    values = np.random.default_rng(1).normal(size=(400, 1))
    low, high = metrics.bootstrap_interval(lambda means: means, values)
    error = values.std() / 20
    np.testing.assert_allclose([low[0], high[0]], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.2 * error)


def test_shares_count_pixels():
    """Patches that a border divides, negative relevance, and maps that are negative everywhere."""
    rng = np.random.default_rng(3)
    relevance, masks = rng.normal(size=(2, 3, 3, 5)), rng.random((2, 4, 6, 20)) < 0.3
    relevance[0, 1] = -1
    expected = np.zeros((2, 3, 4))
    for n, k, m in np.ndindex(expected.shape):
        pixels = np.maximum(relevance[n, k], 0).repeat(2, axis=0).repeat(4, axis=1)
        pixels = pixels if pixels.any() else np.ones((6, 20))
        expected[n, k, m] = pixels[masks[n, m]].sum() / pixels.sum()
    np.testing.assert_allclose(metrics.shares(relevance, masks), expected, rtol=1e-12)
    # The middle of 3 x 3 patches lies on all four quarters, and a grid need not fit the pixels.
    middle, quarters = np.zeros((1, 3, 3)), np.zeros((4, 8, 8), bool)
    middle[0, 1, 1] = 1
    for k in range(4):
        quarters[k, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = True
    np.testing.assert_allclose(metrics.shares(middle, quarters), [[0.25] * 4])
    for shapes in (((3, 2, 4), (2, 3, 6, 8)), ((2, 4), (2, 4)), ((5, 3, 2, 4), (4, 3, 6, 8))):
        with pytest.raises(ValueError, match=r"relevance must be \[..., K, rows, cols\] and masks"):
            metrics.shares(*map(np.ones, shapes))


def test_share_on_target_is_a_loop_over_cells():
    """Maps coarser than the masks, negative relevance, masks that overlap, and a map of nothing."""
    rng = np.random.default_rng(2)
    relevance, masks = rng.normal(size=(5, 3, 2, 4)), rng.random((5, 3, 6, 8)) < 0.2
    relevance[0, 1] = -1
    expected = np.zeros((5, 3))
    for n, k in np.ndindex(5, 3):
        on = np.zeros(3)
        for j, row, col in np.ndindex(3, 2, 4):
            if masks[n, j, 3 * row : 3 * row + 3, 2 * col : 2 * col + 2].any():
                on[j] += max(relevance[n, k, row, col], 0)
        expected[n, k] = on[k] / on.sum() if on.sum() else 0
    np.testing.assert_allclose(metrics.share_on_target(relevance, masks), expected, rtol=1e-12)
    assert metrics.share_on_target(np.ones((2, 4, 4)), np.ones((2, 4, 4))) == pytest.approx(0.5)
    for shape in ((5, 3, 7, 8), (5, 2, 6, 8), (6, 8)):
        with pytest.raises(ValueError, match="multiples of rows and cols; got"):
            metrics.share_on_target(relevance, np.ones(shape, bool))
