"""What all commands share: errors and exit statuses."""

import os
import signal
import subprocess
import sys
import time
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
    assert not Path("lrp_jax_maps").exists()


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


# A command that compiles for minutes: a program that grows by unrolling, so that no Python runs meanwhile.
COMPILING = """
import signal, sys, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal: what runs in the background ignores it
import jax, jax.numpy as jnp
from lrp_jax import cli
from lrp_jax.files import replacing

def run(options):
    def slow(x):
        for _ in range(1000):
            x = jnp.sort(jnp.sin(x @ x), axis=0)
        return x
    lowered = jax.jit(slow).lower(jnp.ones((8, 8)))
    with replacing("half.txt") as temporary:
        temporary.write_text("half")
        print("compiling", flush=True)
        lowered.compile()

cli.methods.run = run
sys.exit(cli.main(["methods"]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_that_compiles(tmp_path, number, status):
    """At once, and nothing half-written stays."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "compiling\n", process.stderr.read()
    assert names(tmp_path) != []
    time.sleep(0.5)
    process.send_signal(number)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert time.monotonic() - begun < 20  # of a busy machine; alone, 0.6
    assert "the files written so far are whole" in err
    assert "Traceback" not in err
    assert names(tmp_path) == []
