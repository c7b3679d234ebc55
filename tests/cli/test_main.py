"""What all commands share: errors and exit statuses."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers import SCENE, names

import lrp_jax
from lrp_jax import cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.png"], "none.png: No such file or directory"),
        (["--model", "none.safetensors"], "none.safetensors: No such file or directory"),
        (["--model", SCENE], "scene-1.png is not a readable .safetensors file"),
        (["--target", "10"], "index 0 to 9 or a class name (zero, one, two, ...); got '10'"),
        (["--target", "sevn"], "or a class name (seven, ...); got 'sevn'"),
        (["--top-k", "11"], "at most the model's 10 classes, got 11"),
        (["--top-k", "0"], "expected a number of at least 1, got 0"),
        (["--top-k", "many"], "expected a number of at least 1, got many"),
        (["--method", "gradcam"], "invalid choice: 'gradcam'"),
        (["--start-layer", "6"], "start_layer must be a block, 0 to 5; got 6"),
        (["--rules", "none"], "or a Rules; got 'none'"),
        (["--method", "rise", "--rules", "chefer"], "method 'rise' takes the options masks, cells"),
        (["--method", "occlusion", "--window", "[8,8,8]"], "window must be one or two integers"),
        (["--batch-size", "-1"], "expected a number of at least 1, got -1"),
        (["--output", SCENE], "--output must be a folder"),
        (["empty"], "empty: the folder holds no pictures"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_commands(run, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    status, out, err = run(*words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert names(tmp_path) == ["empty"]


def test_interruption(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.explain, "panel", interrupt)
    status, _, err = run(SCENE)
    assert status == 130
    assert "interrupted" in err
    assert names("lrp_jax_maps") == []


def test_installed_command():
    """The console script, in a process of its own."""
    command = Path(sys.executable).with_name("lrp-jax")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert result.stdout.strip() == f"lrp-jax {lrp_jax.__version__}"


@pytest.mark.parametrize("message", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: no device"])
def test_the_device_fails(monkeypatch, capsys, message):
    def fail(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(cli.models, "load", fail)
    assert cli.main(["explain"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lrp-jax: error: {message}")
    assert ("--batch-size" in error) == ("memory" in message)
