"""``lrp-jax conservation``."""

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.cli import main


def test_the_report_is_that_of_python(capsys, tmp_path):
    scenes = lrp_jax.datasets.example_scenes()
    picture = Image.fromarray(lrp_jax.datasets.scene_pixels(scenes)[0])
    picture.save(tmp_path / "scene.png")
    arguments = ["conservation", str(tmp_path / "scene.png"), "--target", "three", "--target", "5"]
    assert main([*arguments, "--plot", str(tmp_path / "plot.png")]) == 0
    printed, said = capsys.readouterr()
    assert said.startswith("accounting for relevance: the program is compiled first")
    model, params = lrp_jax.load("demo")
    image = lrp_jax.preprocess(picture, model.config)[None].astype(float)
    assert printed == f"{lrp_jax.conservation(model, params, image, np.array([[3, 5]]))}\n"
    assert "libragrad, mean of 2 maps" in printed
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 500
    assert main([*arguments, "--plot", str(tmp_path / "plot.png")]) == 2
    assert "--force replaces it" in capsys.readouterr().err


def test_the_scenes_that_come_with_the_package(capsys):
    assert main(["conservation", "--rules", "stable", "--top-k", "1"]) == 0
    assert "stable, mean of 4 maps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png: No such file"),
        (["--target", "cat"], "--target"),
        (["--top-k", "11"], "--top-k must be at most the model's 10 classes"),
        (["--plot", "missing/plot.png"], "missing: No such file"),
        (["--model", "missing"], "missing"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(["conservation", *arguments]) == 2
    assert message in capsys.readouterr().err
