"""Maps are enlarged as torch does."""

import numpy as np
import pytest

import lrp_jax


def plain_bilinear(x, size):
    """Half-pixel centres, clamped at the border (torch's ``align_corners=False``), one output at a time."""
    out = np.empty(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = (np.clip((p + 0.5) * n / m - 0.5, 0, n - 1) for p, n, m in zip((i, j), x.shape, size, strict=True))
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            upper = x[y0, z0] * (1 - (z - z0)) + x[y0, z1] * (z - z0)
            lower = x[y1, z0] * (1 - (z - z0)) + x[y1, z1] * (z - z0)
            out[i, j] = upper * (1 - (y - y0)) + lower * (y - y0)
    return out


@pytest.mark.parametrize("size", [(32, 48), (4, 6), (9, 7), (2, 3)])
def test_heatmaps(size):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    actual = lrp_jax.heatmaps(maps, size)
    assert actual.shape == (2, 3, *size)
    expected = [[plain_bilinear(m, size) for m in row] for row in maps]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_bad_heatmaps():
    with pytest.raises(ValueError, match=r"got the shape \(4,\)"):
        lrp_jax.heatmaps(np.zeros(4), (8, 8))
    with pytest.raises(ValueError, match="got \\(0, 8\\)"):
        lrp_jax.heatmaps(np.zeros((4, 4)), (0, 8))
