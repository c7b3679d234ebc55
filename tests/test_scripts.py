"""Scripts, run end to end."""

import dataclasses
import runpy
from pathlib import Path

from helpers import drawn, write_gtsegs

import lrp_jax


def test_tables_of_an_imagenet_folder(single, imagenet, masked, tmp_path, capsys):
    """The script's path to the real tables, end to end, and again from what it wrote."""
    path, _, _ = imagenet
    model = lrp_jax.ViT(dataclasses.replace(single[0].config, depth=2))
    lrp_jax.save(tmp_path / "vit.safetensors", model, drawn(model))
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", masked)
    tables = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "reproduce_tables.py"))["main"]
    words = ["--model", tmp_path / "vit.safetensors", "--imagenet", path / "val", "--output", tmp_path / "tables"]
    words += ["--segmentation", tmp_path / "gtsegs_ijcv.mat", "--method", "raw_attention", "--method", "lrp_rollout"]
    tables(list(map(str, words)))
    out, _ = capsys.readouterr()
    assert "6 images, clean accuracy" in out
    assert "Table 2: segmentation, 5 images" in out
    for title in ("raw attention", "LRP rollout"):
        assert out.count(f"| {title} |") == 3
    assert out.count("| without the gradient |") == 1
    tables(list(map(str, words)))
    assert capsys.readouterr().out == out
