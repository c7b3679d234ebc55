"""Scripts, run end to end."""

import dataclasses
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import drawn, write_gtsegs

import lrp_jax

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_tables_of_an_imagenet_folder(single, imagenet, masked, tmp_path, capsys):
    """The script's path to the real tables, end to end, and again from what it wrote."""
    path, _, _ = imagenet
    model = lrp_jax.ViT(dataclasses.replace(single[0].config, depth=2))
    lrp_jax.save(tmp_path / "vit.safetensors", model, drawn(model))
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", masked)
    tables = runpy.run_path(str(SCRIPTS / "reproduce_tables.py"))["main"]
    words = ["--model", tmp_path / "vit.safetensors", "--imagenet", path / "val", "--output", tmp_path / "tables"]
    words += ["--segmentation", tmp_path / "gtsegs_ijcv.mat", "--method", "raw_attention", "--method", "lrp_rollout"]
    tables(list(map(str, words)))
    out, _ = capsys.readouterr()
    assert "6 images, clean accuracy" in out
    assert "Table 2: segmentation, 5 images" in out
    for title in ("raw attention", "LRP rollout"):
        assert out.count(f"| {title} |") == 3
    assert out.count("| without the gradient |") == 1
    assert not {"↑", "↓"} & set(out)  # they compare with transformer attribution, which was not asked for
    tables(list(map(str, words)))
    assert capsys.readouterr().out == out


def test_peers_without_pytorch():
    script = str(SCRIPTS / "check_peers.py")
    block = f"import sys, runpy; sys.modules['timm'] = None; runpy.run_path({script!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", block, "--help"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "is needed: pip install torch" in ran.stderr


def test_candidates_on_composites(single, tmp_path, capsys, monkeypatch):
    """The share that the script prints is that of a loop; labels of one picture are refused."""
    monkeypatch.syspath_prepend(SCRIPTS)
    model = lrp_jax.ViT(dataclasses.replace(single[0].config, depth=2))
    params = drawn(model)
    lrp_jax.save(tmp_path / "vit.safetensors", model, params)
    rng, (height, width, _) = np.random.default_rng(0), model.config.image_shape
    pixels = rng.integers(0, 256, (2, *model.config.image_shape), np.uint8)
    labels, masks = np.array([[0, 1], [1, 2]]), np.zeros((2, 2, height, width), bool)
    masks[:, 0, :, : width // 2], masks[:, 1, :, width // 2 :] = True, True
    packed = {"images": pixels, "masks": np.packbits(masks, axis=-1)}
    np.savez(tmp_path / "composites.npz", labels=labels, **packed)
    np.savez(tmp_path / "single.npz", labels=np.array([[0, -1], [1, 2]]), **packed)
    script = runpy.run_path(str(SCRIPTS / "search_maps.py"))
    try:
        words = ["--model", tmp_path / "vit.safetensors", "--row", "transformer attribution", "--composites"]
        script["main"]([*map(str, words), str(tmp_path / "composites.npz")])
        with pytest.raises(SystemExit, match="labels must be two or more an image"):
            script["main"]([*map(str, words), str(tmp_path / "single.npz")])
    finally:
        del lrp_jax.METHODS["squared"]
    images = (pixels / 255 - model.config.mean) / model.config.std
    maps = lrp_jax.explain(model, params, images.astype(np.float32), labels, start_layer=1).relevance
    rows, cols = (size // grid for size, grid in zip((height, width), model.grid, strict=True))
    positive = np.kron(np.maximum(maps, 0), np.ones((rows, cols)))
    asked = np.mean([positive[i, j][masks[i, j]].sum() / positive[i, j].sum() for i, j in np.ndindex(2, 2)])
    assert f"| transformer attribution | {asked:.3f} | {1 - asked:.3f} |" in capsys.readouterr().out
