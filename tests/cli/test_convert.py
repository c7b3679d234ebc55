"""``lrp-jax convert``."""

from pathlib import Path

import numpy as np
from helpers import PARITY, SCENE

import lrp_jax
from lrp_jax import cli


def test_convert(tmp_path, monkeypatch, capsys):
    """From a file of another library to a panel."""
    monkeypatch.chdir(tmp_path)
    with np.load(PARITY / "torchvision-vit.npz") as file:
        weights = {k.removeprefix("weights/"): v for k, v in file.items() if k.startswith("weights/")}
    np.savez("weights.npz", **weights)
    Path("labels.txt").write_text("\n".join("abcde"))
    words = ["convert", "weights.npz", "vit.safetensors", "--num-heads", "4", "--labels", "labels.txt"]
    assert cli.main(words) == 0
    output = capsys.readouterr().out
    assert "weights of torchvision" in output
    assert "note: pictures: mean 0.485 0.456 0.406" in output
    assert f"{sum(w.size for w in weights.values()):,} parameters" in output
    model, _ = lrp_jax.load("vit.safetensors")
    assert model.config.class_names == tuple("abcde")
    assert model.config.mean == (0.485, 0.456, 0.406)
    assert cli.main(["explain", str(SCENE), "--model", "vit.safetensors", "--target", "c"]) == 0
    assert Path("lrp_jax_maps/scene-1.explained.png").exists()

    Path("four.txt").write_text("a\nb\nc\nd\n")
    Path("gap.txt").write_text("a\n\nc\nd\ne\n")
    before = Path("vit.safetensors").read_bytes()
    capsys.readouterr()
    for change, message in (
        ([], "vit.safetensors exists: --force replaces it"),
        (["--force", "--set", "gelu"], "--set must be FIELD=VALUE, got 'gelu'"),
        (["--force", "--set", "gelu=fast"], "gelu must be one of exact, tanh, quick; got 'fast'"),
        (["--force", "--image-size", "1", "2", "3"], "--image-size must be one or two numbers"),
        (["--force", "--labels", "none.txt"], "none.txt: No such file"),
        (["--force", "--labels", "four.txt"], "class_names must hold 5 names or none, got 4"),
        (["--force", "--labels", "gap.txt"], "gap.txt, line 2: expected the name of a class, got a blank line"),
        (["--force", "--labels", "weights.npz"], "weights.npz is no text in UTF-8"),
    ):
        assert cli.main(words + change) == 2
        assert message in capsys.readouterr().err
    assert Path("vit.safetensors").read_bytes() == before
    assert cli.main([*words, "--force", "--image-size", "48", "32", "--set", "gelu=tanh"]) == 0
    assert "resampled from 4 x 4 to 6 x 4" in capsys.readouterr().out
    assert cli.main([*words[:2], "v\x1b[31m.safetensors", *words[3:]]) == 0
    assert r"v\x1b[31m.safetensors: weights of" in capsys.readouterr().out
    config = lrp_jax.load("vit.safetensors")[0].config
    assert (config.gelu, config.grid) == ("tanh", (6, 4))
    Path("labels.txt").write_bytes("\ufeffcrane\r\nb\r\ncrane, bird\r\ncrane\r\nb\r\n\r\n".encode())
    assert cli.main([*words, "--force"]) == 0
    assert "note: --target takes by index what several classes are called: 'crane' (0, 3), 'b' (1, 4)" in (
        capsys.readouterr().out
    )
    assert lrp_jax.load("vit.safetensors")[0].config.class_names == ("crane", "b", "crane, bird", "crane", "b")
