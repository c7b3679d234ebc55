"""``lrp-jax explain`` of pictures of all kinds, and of files that are none."""

import os
import tarfile

import jax
import numpy as np
import pytest
from helpers import SCENE, drawn, names
from PIL import Image

import lrp_jax
from lrp_jax import cli


@pytest.fixture
def tiny(tmp_path):
    """Save a tiny model of some fields; its path."""

    def save(**fields):
        config = lrp_jax.ViTConfig(
            **{"image_size": 32, "patch_size": 8, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8} | fields
        )
        model = lrp_jax.ViT(config)
        path = tmp_path / "tiny.safetensors"
        lrp_jax.save(path, model, jax.tree.map(lambda p: np.asarray(p, np.float32), drawn(model)))
        return path

    return save


def picture(path, size=(300, 500), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def test_target_and_top_k_exclude_each_other(run):
    status, out, err = run(SCENE, "--target", "three", "--top-k", 2)
    assert (status, out) == (2, "")
    assert "--target and --top-k exclude each other" in err


def test_the_same_command_writes_the_same_files(run, tmp_path, tiny):
    """Panels among the pictures are left aside, what is no file is named, and names steer no terminal."""
    folder, model = tmp_path / "d", tiny(num_classes=2, class_names=("red\x1b[31m", "line\nbreak"))
    picture(folder / "a.png")
    picture(folder / "b\x1b]0;title\x07.png")
    (folder / "text\x1b.png").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    for again in (False, True):
        status, out, err = run("d", "--model", model, "--output", "d")
        assert status == 1
        assert "skipped: d/pipe.png is a pipe, a socket or a device, expected a file." in err
        assert err.count(r"text\x1b.png") == 1
        assert ("was written by lrp_jax, and is left aside" in err) == again
        assert ("1 more, each of which was written" in err) == again
        assert r"d/b\x1b]0;title\x07.png" in out
        assert r"red\x1b[31m" in out
        assert r"line\nbreak" in out
        assert not {"\x1b", "\x07"} & set(out + err)
        assert names(folder) == [
            *("a.explained.png", "a.png", "b\x1b]0;title\x07.explained.png", "b\x1b]0;title\x07.png", "pipe.png"),
            "text\x1b.png",
        ]


def test_maps_say_which_part_of_the_picture_they_cover(run, tmp_path, tiny):
    """In its own pixels, turned upright; and are drawn there."""
    model = tiny(num_classes=2, resize=40)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a" / "wide.png", (300, 600))
    picture(tmp_path / "a" / "turned.png", (300, 600), exif=exif)
    status, _, err = run("a", "--model", model, "--npz", "--on-original", "--output", "o")
    assert status == 0, err
    boxes = {"wide": ((600, 300), (180, 30, 420, 270)), "turned": ((300, 600), (30, 180, 270, 420))}
    for name, (size, box) in boxes.items():
        with np.load(f"o/{name}.explained.npz") as raw:
            np.testing.assert_array_equal(raw["size"], size)
            np.testing.assert_allclose(raw["box"], box, rtol=1e-12)
            captions = [f"class {k} {raw['probabilities'][k]:.1%}" for k in raw["targets"]]
            whole = lrp_jax.read_image(f"a/{name}.png")
            expected = lrp_jax.panel(whole, raw["relevance"], captions, title="transformer_attribution", box=box)
        np.testing.assert_array_equal(Image.open(f"o/{name}.explained.png"), expected)


def test_what_was_squashed_is_shown_in_its_own_shape(run, tmp_path, tiny):
    picture(tmp_path / "a.png", (100, 200))
    status, _, err = run("a.png", "--model", tiny(num_classes=2, resize=(32, 32), crop=False), "--output", "o")
    assert status == 0, err
    with Image.open("o/a.explained.png") as panel:
        assert panel.width == 3 * (448 + 8) + 8


def test_outputs_of_a_regression_are_no_probabilities(run, tmp_path, tiny):
    model = tiny(num_classes=3, regression=True, class_names=("age", "haemoglobin", "height"))
    picture(tmp_path / "a.png")
    status, out, err = run("a.png", "--model", model, "--npz", "--output", "o")
    assert status == 0, err
    assert out.splitlines()[0].split() == ["image", "output", "estimate", "panel"]
    with np.load("o/a.explained.npz") as raw:
        assert "probabilities" not in raw
        np.testing.assert_array_equal(raw["targets"], [0, 1, 2])  # all, in order
        for name, estimate in zip(("age", "haemoglobin", "height"), raw["logits"], strict=True):
            assert f"{name} {estimate:.4f}" in " ".join(out.split())
    status, out, err = run("a.png", "--model", model, "--top-k", 2)
    assert (status, out) == (2, "")
    assert "--top-k is for classes" in err
    with pytest.raises(ValueError, match="outputs are numbers: targets"):
        lrp_jax.jobs.attribute(
            *lrp_jax.load(model), lrp_jax.jobs.open_source([tmp_path / "a.png"]), tmp_path / "m.zarr"
        )


@pytest.mark.parametrize("protocol", ["perturbation", "sanity", "pointing"])
def test_a_regression_is_not_evaluated_as_a_classifier(tmp_path, tiny, masked, protocol):
    model, params = lrp_jax.load(tiny(num_classes=3, regression=True))
    dataset = lrp_jax.datasets.MaskFolder(masked, model.config)
    with pytest.raises(ValueError, match="outputs that are numbers"):
        getattr(lrp_jax.evaluate, protocol)(model, params, dataset, tmp_path / "e")


def test_more_bands_than_colours(run, tmp_path, tiny):
    """From .npy; which three are shown is said. Others are refused."""
    model = tiny(num_classes=2, channels=5)
    bands = np.random.default_rng(0).integers(0, 256, (32, 32, 5), np.uint8)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "five.npy", bands)
    np.save(tmp_path / "a" / "four.npy", bands[..., :4])
    picture(tmp_path / "a" / "colours.png")
    status, _, err = run("a", "--model", model, "--npz", "--output", "o")
    assert status == 1
    assert "five.npy has 5 bands: shown is bands 1, 2 and 3 as red, green and blue." in err
    assert "four.npy has the shape (32, 32, 4), expected [H, W, 5]" in err
    assert "colours.png is no TIFF and no .npy: expected one of the model's 5 bands" in err
    loaded, params = lrp_jax.load(model)
    expected = lrp_jax.explain(loaded, params, (bands[None] / 255 - 0.5).astype(np.float32) / np.float32(0.5))
    with np.load("o/five.explained.npz") as raw:
        np.testing.assert_allclose(raw["logits"], expected.logits[0], rtol=1e-4, atol=1e-5)
    with Image.open("o/five.explained.png") as panel:
        shown = Image.fromarray(bands[..., :3]).resize((224, 224), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(panel)[31:255, 8:232], shown)


def test_every_command_takes_the_bands_of_the_model(run, tmp_path, tiny, capsys):
    """By one reader: a folder, a shard and an array of bytes give a job the same images."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("tensorstore")
    path = tiny(num_classes=2, channels=5)
    model, params = lrp_jax.load(path)
    bands = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 5), np.uint8)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "0.npy", bands[0])
    tifffile.imwrite(tmp_path / "a" / "1.tif", bands[1], photometric="minisblack", planarconfig="contig")
    np.save(tmp_path / "all.npy", bands)
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        shard.add(tmp_path / "a" / "0.npy", "0.npy")
        shard.add(tmp_path / "a" / "1.tif", "1.tif")
    images = (bands / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    for name in ("a", "a.tar", "all.npy"):
        source = lrp_jax.jobs.open_source([name], channels=5)
        found = [lrp_jax.jobs.image_of(source.read(i), model.config, np.dtype("float32")) for i in range(2)]
        np.testing.assert_allclose(found, images, rtol=1e-6, atol=1e-6)
    job = ["attribute", "a", "--model", str(path), "--method", "raw_attention", "--out", "a.zarr"]
    assert cli.main(job) == 0
    expected = lrp_jax.explain(model, params, images, method="raw_attention")
    np.testing.assert_allclose(lrp_jax.jobs.Store("a.zarr").read("relevance"), expected.relevance, rtol=1e-4)
    assert cli.main(["gallery", "a.zarr", "page"]) == 0
    assert "shown is bands 1, 2 and 3" in capsys.readouterr().err
    assert cli.main(["conservation", "a", "--model", str(path), "--top-k", "1"]) == 0
    report = lrp_jax.conservation(model, params, images.astype(float), rules="libragrad")
    assert str(report) in capsys.readouterr().out
    command = ["compare", "a/1.tif", "--model", str(path), "--method", "raw_attention", "--output", "p.png"]
    assert cli.main(command) == 0
    assert "a/1.tif has 5 bands: shown is bands 1, 2 and 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["attribute", "compare", "conservation"])
def test_pictures_of_too_few_bands_are_named(run, tmp_path, tiny, command, capsys):
    picture(tmp_path / "a.png")
    more = ["--out", "m.zarr"] if command == "attribute" else []
    assert cli.main([command, "a.png", "--model", str(tiny(num_classes=2, channels=5)), *more]) in (1, 2)
    assert "a.png is no TIFF and no .npy: expected one of the model's 5 bands" in capsys.readouterr().err


def test_a_source_of_other_channels_is_refused_before_anything_is_computed(tmp_path, tiny):
    model, params = lrp_jax.load(tiny(num_classes=2, channels=5))
    np.save(tmp_path / "four.npy", np.zeros((2, 32, 32, 4), np.float32))
    picture(tmp_path / "a.png")
    for name, channels in (("four.npy", 4), ("a.png", 3)):
        source = lrp_jax.jobs.open_source([tmp_path / name])
        with pytest.raises(ValueError, match=rf"of pictures of {channels} channels, the model has 5: .*channels=5"):
            lrp_jax.jobs.attribute(model, params, source, tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_datasets_take_the_bands_of_the_model(tmp_path):
    config = lrp_jax.ViTConfig(image_size=8, patch_size=4, channels=5, num_classes=1, class_names=("a",))
    bands = np.random.default_rng(0).integers(0, 256, (8, 8, 5), np.uint8)
    for folder in ("images", "masks", "a"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "images" / "x.npy", bands)
    Image.fromarray(bands[..., 0] // 128).save(tmp_path / "masks" / "x.png")
    (tmp_path / "by-class" / "a").mkdir(parents=True)
    np.save(tmp_path / "by-class" / "a" / "x.npy", bands)
    masks = lrp_jax.datasets.MaskFolder(tmp_path, config)
    classes = lrp_jax.datasets.ImageNetFolder(tmp_path / "by-class", config)
    for dataset in (masks, classes):
        np.testing.assert_allclose(dataset.sample(0).image, bands / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(masks.sample(0).masks[0], bands[..., 0] > 127)


def test_twelve_bits_are_said(run, tmp_path, tiny):
    model = tiny(num_classes=2, channels=1)
    samples = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    samples[0, 0] = 4095
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray(samples).save(tmp_path / "a" / f"{i}.png")
    status, _, err = run("a", "--model", model, "--output", "o")
    assert status == 0
    assert err.count("makes use of 12 of its 16 bits") == 2
    assert "a/0.png makes use" in err
    assert "2 more, each of which makes use" in err
    status, _, err = run("a", "--model", model, "--levels", 0, 4095, "--npz", "--output", "o")
    assert status == 0
    assert "bits" not in err
    image = np.floor(samples[None, ..., None] * 255.0 / 4095).astype(np.float32) / 255
    expected = lrp_jax.explain(*lrp_jax.load(model), (image - np.float32(0.5)) / np.float32(0.5))
    with np.load("o/0.explained.npz") as raw:
        np.testing.assert_allclose(raw["logits"], expected.logits[0], rtol=1e-4, atol=1e-5)


def test_a_full_disk_names_the_picture(run, tmp_path, tiny, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.explain, "save", full)
    picture(tmp_path / "cat.png")
    status, out, err = run("cat.png", "--model", tiny(num_classes=2), "--output", "o")
    assert (status, out) == (1, "")
    assert "cat" in err
    assert "No space left on device" in err
    assert "o" not in names(".")


def test_levels_are_checked_first(run):
    for levels in ((9, 1), (0, "nan")):
        status, out, err = run(SCENE, "--levels", *levels)
        assert (status, out) == (2, "")
        assert err.startswith("lrp-jax explain: error: argument --levels: levels must be the samples (black, white)")
        assert err.count("\n") == 1
