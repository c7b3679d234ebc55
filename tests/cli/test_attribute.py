"""``lrp-jax attribute`` and ``lrp-jax gallery``."""

import json

import numpy as np
import pytest
import zarr
from helpers import SCENE
from PIL import Image

from lrp_jax import cli
from lrp_jax.cli import console


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in a folder with pictures: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")

    def run(*words):
        try:
            status = cli.main(list(map(str, words)))
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


def test_a_job_and_its_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_EVERY", 0)
    status, out, err = run("attribute", "pictures", "--out", "maps.zarr", "--target", "seven", "--target", 2)
    assert status == 0
    assert "maps.zarr: 5 images explained in" in out
    assert "waiting for input" in out
    assert "5 of 5 images are done" in out
    assert "explaining: 5 of 5 images" in err
    assert zarr.open_group("maps.zarr", mode="r")["targets"][:].tolist() == [[7, 2]] * 5
    (tmp_path / "pictures" / "damaged.png").write_bytes(b"")
    command = ("attribute", "pictures", "--out", "more.zarr", "--method", "raw_attention")
    for flags, expected in (((), 1), (("--allow-failures",), 0), ((), 1)):
        status, out, err = run(*command, *flags)
        assert status == expected
        assert "lrp-jax: failed: damaged.png: " in err
        assert "1 of 6 images failed" in err
        assert "6 of 6 images are done" in out
    assert "0 images explained" in out
    status, out, _ = run("gallery", "more.zarr", "page")
    assert status == 0
    assert "page/index.html: 5 images, 1 failures" in out
    data = (tmp_path / "page" / "data.js").read_text()
    assert json.loads(data[len("const GALLERY = ") : -2])["title"] == "more.zarr"
    status, _, err = run("gallery", "more.zarr", "page")
    assert (status, "is not empty: --force writes into it" in err) == (2, True)
    (tmp_path / "pictures").rename(tmp_path / "moved")
    assert "no longer where they were" in run("gallery", "more.zarr", "page", "--force")[2]
    status, out, _ = run("gallery", "more.zarr", "page", "--force", "--input", "moved", "--images", 2)
    assert (status, "2 images of 5, evenly spaced" in out) == (0, True)


def test_bad_commands(run):
    for words, message in (
        (("missing", "--out", "m.zarr"), "input must be a folder"),
        (("missing.npy", "--out", "m.zarr"), "missing.npy"),
        (("pictures", "--out", "m.zarr", "--target", "eel"), "got 'eel'"),
        (("pictures", "--out", "m.zarr", "--target", 1, "--top-k", 2), "exclude each other"),
        (("pictures", "--out", "m.zarr", "--process-index", 1), "go with --distributed"),
        (("pictures", "--out", "m.zarr", "--shard-size", 6), "must be a power of two"),
        (("pictures", "--out", "m.zarr", "--distributed", "--coordinator", "host"), "must be HOST:PORT, got 'host'"),
        (("pictures", "--out", "m.zarr", "--method", "rise", "--masks", 0), "masks"),
        (("pictures", "--out", "pictures"), "holds something else"),
        (("pictures", "--out", SCENE), "is a file"),
    ):
        status, out, err = run("attribute", *words)
        assert status in (1, 2), words
        assert out == ""
        assert message in err
        assert "Traceback" not in err
    assert run("gallery", "missing.zarr", "page")[0] == 2
