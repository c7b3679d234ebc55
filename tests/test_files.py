"""Files whole or not at all, on a disk that is full."""

import json
import os

import numpy as np
import pytest
from helpers import names
from PIL import Image

import lrp_jax
from lrp_jax import cli
from lrp_jax.evaluate.results import append
from lrp_jax.files import filling, read_text, replacing, replacing_folder
from lrp_jax.jobs.sources import open_source
from lrp_jax.weights.readers import read_weights

DATA = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
WRITERS = {
    "bytes.jax": lambda path: path.write_bytes(DATA.tobytes()),
    "text.json": lambda path: path.write_text(json.dumps(DATA.tolist())),
    "picture.png": lambda path: Image.fromarray(DATA).save(path),
    "picture.jpg": lambda path: Image.fromarray(DATA).save(path, quality=100),
    "arrays.npz": lambda path: np.savez_compressed(path, images=DATA),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_by_the_file(tmp_path, full_disk, name):
    (tmp_path / name).write_bytes(b"before")
    with pytest.raises(OSError, match=r"File too large|encoder error") as raised, replacing(tmp_path / name) as path:
        WRITERS[name](path)
    assert raised.value.filename == str(tmp_path / name)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"before"


def test_a_folder_is_whole_or_as_before(tmp_path, full_disk):
    (tmp_path / "page" / "thumbnails").mkdir(parents=True)
    (tmp_path / "page" / "thumbnails" / "before.jpg").write_bytes(b"before")

    def write(place, count):
        with filling(place), replacing_folder(place / "thumbnails") as folder:
            (folder / "0.jpg").write_bytes(DATA.tobytes()[:count])

    for place in (tmp_path / "page", tmp_path / "new" / "page"):
        with pytest.raises(OSError, match="File too large") as raised:
            write(place, 5000)
        assert raised.value.filename == str(place / "thumbnails")
    assert names(tmp_path) == ["page"]
    assert names(tmp_path / "page" / "thumbnails") == ["before.jpg"]
    for place in (tmp_path / "page", tmp_path / "new" / "page"):
        write(place, 100)
        assert names(place) == ["thumbnails"]
        assert names(place / "thumbnails") == ["0.jpg"]


def test_results_name_their_file(tmp_path, full_disk):
    with pytest.raises(OSError, match="File too large") as raised:
        append(tmp_path, {}, [{"image": str(i), "figures": [0.1] * 9} for i in range(100)])
    assert raised.value.filename == str(tmp_path / "results.jsonl")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "none" / "x.png"):
        pass
    assert raised.value.filename == str(tmp_path / "none" / "x.png")


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "x.png"):
        (tmp_path / "other").read_bytes()
    assert raised.value.filename == str(tmp_path / "other")


def test_a_command_says_it_in_one_line(tmp_path, monkeypatch, capsys, full_disk):
    def run(options):
        with replacing("maps.jax") as path:
            path.write_bytes(DATA.tobytes())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.export, "run", run)
    assert cli.main(["export", "maps.jax"]) == 2
    assert capsys.readouterr().err == "lrp-jax: error: maps.jax: File too large\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("labels.txt", read_text),
        ("w.safetensors", lrp_jax.load),
        ("w.bin", read_weights),
        ("a.tar", lambda path: open_source([path])),
        ("a.npy", lambda path: open_source([path])),
        ("a.png", lrp_jax.read_image),
    ],
)
def test_a_pipe_is_named_and_not_waited_for(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe, a socket or a device, expected a file"):
        read(tmp_path / name)
