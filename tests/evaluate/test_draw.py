"""Pictures of runs."""

import pytest

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.datasets import DigitDataset


@pytest.mark.parametrize("method", ["saliency", "occlusion"])
def test_maps_are_drawn_by_their_sign(small, tmp_path, monkeypatch, method):
    drawn = []
    monkeypatch.setattr(evaluate.draw, "panel", lambda *panel, **how: drawn.append(how) or lrp_jax.panel(*panel, **how))
    evaluate.draw_maps(*small, DigitDataset(2), tmp_path / "maps.png", method=method, images=1)
    assert drawn == [{"signed": lrp_jax.METHODS[method].signed, "title": method}]
