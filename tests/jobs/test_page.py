"""The page of a store."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers import small_images, small_model
from PIL import Image

from lrp_jax.jobs import Pictures, Store, attribute, gallery, open_source
from lrp_jax.jobs.page import likeness
from lrp_jax.pictures import seen_box

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
N = 9


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of pictures, one of which cannot be read, with names that are no HTML."""
    place = tmp_path_factory.mktemp("page")
    (place / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(place / "pictures" / f"{i} <b>&'\".png")
    (place / "pictures" / "damaged.png").write_bytes(b"no picture")
    model, params = small_model()
    source = open_source([place / "pictures"])
    attribute(model, params, source, place / "maps.zarr", top_k=2, dtype="float64", shard_size=2)
    found = gallery(place / "maps.zarr", place / "out", source=source)
    return place, found


def said(place):
    text = (place / "out" / "data.js").read_text()
    return json.loads(re.fullmatch(r"const GALLERY = (.*);\n", text, re.DOTALL)[1])


def test_what_it_says(page):
    place, found = page
    assert found == (N, N, 1, [])
    data = said(place)
    assert [len(column) for column in data["images"].values()] == [N] * 7
    assert data["failed"][0][0] == "damaged.png"
    assert "not a picture" in data["failed"][0][1]
    assert data["classes"] == [f"class {k}" for k in range(5)]
    assert (data["signed"], len(data["colours"])) == (False, 9)
    boxes = Store(place / "maps.zarr").read("box")
    seen = seen_box((24, 20), small_model()[0].config)
    np.testing.assert_array_equal(boxes[:N], [seen] * N)  # pictures of 24 x 20
    assert np.isnan(boxes[N]).all()  # of what could not be read
    images = data["images"]
    for i, file in enumerate(images["thumbnail"]):
        assert images["name"][i] == f"{i} <b>&'\".png"
        assert images["targets"][i][0] == images["predicted"][i]
        assert images["scores"][i][0] == images["score"][i] > images["scores"][i][1] > 0
        with Image.open(place / "out" / file) as strip:
            assert strip.size == (3 * 128 + 8, 128)
            assert np.ptp(np.asarray(strip)[:, :128]) > 100


def test_likeness_is_the_mean_cosine():
    maps = np.random.default_rng(0).normal(size=(6, 3, 4))
    maps[2] = 0
    found = likeness(maps)
    for i in range(6):
        cosines = [
            (maps[i] * maps[j]).sum() / max(np.linalg.norm(maps[i]) * np.linalg.norm(maps[j]), 1e-300)
            for j in range(6)
            if j != i
        ]
        assert found[i] == pytest.approx(np.mean(cosines), abs=1e-12)
    assert likeness(np.ones((1, 2, 2))).tolist() == [0]


def test_images_that_are_gone(page, tmp_path):
    place, _ = page
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    (tmp_path / "pictures" / "3 <b>&'\".png").unlink()
    source = open_source([tmp_path / "pictures"])
    found = gallery(place / "maps.zarr", tmp_path / "out", source=source, limit=5)
    assert found == (5, N, 1, ["3 <b>&'\".png"])
    assert gallery(place / "maps.zarr", tmp_path / "out", limit=2) == (2, N, 1, [])  # where the store says
    named = Pictures(source.names[:1], source.root)
    attribute(*small_model(), named, tmp_path / "one.zarr", dtype="float64")
    with pytest.raises(ValueError, match="does not say where its images are"):
        gallery(tmp_path / "one.zarr", tmp_path / "out")
    with pytest.raises(ValueError, match="is no store of maps"):
        gallery(tmp_path / "missing.zarr", tmp_path / "out")


def test_names_that_repeat_and_nothing_but_failures(tmp_path):
    """A picture is found by its place; a page of failures alone is a page."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    colours = ((255, 0, 0), (0, 255, 0))
    for i, colour in enumerate(colours):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "list.txt").write_text("0.png\n1.png\n0.png\nbad.png\n")
    source = open_source([tmp_path / "list.txt"])
    report = attribute(*small_model(), source, tmp_path / "maps.zarr", dtype="float64")
    assert len(report.failures) == 1
    assert gallery(tmp_path / "maps.zarr", tmp_path / "out") == (3, 3, 1, [])
    for i, colour in enumerate((*colours, colours[0])):
        with Image.open(tmp_path / "out" / "thumbnails" / "0000" / f"{i:07d}.jpg") as strip:
            assert np.abs(np.asarray(strip, int)[60, 60] - colour).max() < 10
    Image.new("RGB", (20, 20)).save(tmp_path / "2.png")
    (tmp_path / "list.txt").write_text("2.png\n0.png\n1.png\n0.png\n")
    found = gallery(tmp_path / "maps.zarr", tmp_path / "out", source=open_source([tmp_path / "list.txt"]))
    assert found.missing == ["0.png", "0.png"]  # of which of the two is not said
    attribute(*small_model(), open_source([tmp_path / "bad.png"]), tmp_path / "bad.zarr", dtype="float64")
    assert gallery(tmp_path / "bad.zarr", tmp_path / "none") == (0, 0, 1, [])
    assert (tmp_path / "none" / "index.html").exists()


def test_arrays_have_thumbnails_as_well(tmp_path):
    np.save(tmp_path / "x.npy", np.asarray(small_images(3)))
    source = open_source([tmp_path / "x.npy"])
    attribute(*small_model(), source, tmp_path / "maps.zarr", method="full_lrp", dtype="float64")
    assert gallery(tmp_path / "maps.zarr", tmp_path / "out", source=source) == (3, 3, 0, [])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("hash_", "there", "figures"),
    [
        ("", "page 1 of 1, 1 to 9 of 9", 9),
        ("show=unlike", "page 1 of 1, 1 to 9 of 9", 9),
        ("show=failed", "damaged.png is not a picture", 0),
        ("name=3+%3C", "page 1 of 1, 1 to 1 of 1", 1),
        ("class=CLASS&order=unsure", "map of class", None),
    ],
)
def test_in_a_browser(page, hash_, there, figures):
    """From a file, without a server."""
    place, _ = page
    predicted = said(place)["images"]["predicted"]
    address = f"file://{place}/out/index.html#{hash_.replace('CLASS', str(predicted[0]))}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert there in dom
    assert dom.count("<figure>") == (predicted.count(predicted[0]) if figures is None else figures)
    assert "<b>" not in dom  # names are text
