"""``lrp-jax evaluate``."""

from pathlib import Path

from helpers import names
from PIL import Image

import lrp_jax
from lrp_jax import cli
from lrp_jax.cli.console import warnings_told


def test_command_line(single, imagenet, tmp_path, monkeypatch, capsys):
    path, _, _ = imagenet
    monkeypatch.chdir(tmp_path)
    lrp_jax.save("vit.safetensors", *single)
    bad = path / "val" / "n01440764" / "ILSVRC2012_val_1.JPEG"
    bad.write_bytes(b"no picture")
    words = ["evaluate", "perturbation", "--dataset", str(path / "val"), "--model", "vit.safetensors"]
    words += ["--method", "raw_attention", "--batch-size", "4"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out.startswith("3 folders by synset: n01440764 is 0, n02123045 is 281, n15075141 is 999\n")
    assert "clean accuracy" in out
    assert "5 images, raw_attention: lrp_jax_results/perturbation-raw_attention" in out
    assert "skipped: n01440764/ILSVRC2012_val_1.JPEG" in err
    assert "1 of 6 images were skipped" in err
    folder = Path("lrp_jax_results/perturbation-raw_attention")
    assert sorted(p.name for p in folder.iterdir()) == [
        "curves.png",
        "maps.png",
        "results.jsonl",
        "settings.json",
        "summary.json",
    ]
    with Image.open(folder / "maps.png") as picture:
        assert picture.height > 4 * 224  # the first four that can be read
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 800
    # What another run left is drawn anew.
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "maps.png").write_bytes(b"old")
    assert cli.main([*words, "--images", "2", "--output", "used"]) == 1
    Image.open("used/maps.png").close()
    (tmp_path / "empty").mkdir()
    for more, message in (
        (["--dataset", "none"], "none: No such file or directory"),
        (["--dataset", "empty"], "holds no folders"),
        (["--dataset", "digits", "--model", "demo", "--crop"], "--labels, --crop and --levels are for folders"),
        (["--dataset", "digits"], "--dataset digits is for models of digit scenes"),
        (["--start-layer", "1"], "takes no options; got 'start_layer'"),
        (["--explained", "true"], "holds a run of other settings (explained 'predicted', not 'true')"),
    ):
        assert cli.main(words + more) == 2
        assert message in capsys.readouterr().err


def test_how_pictures_were_labelled_is_printed(tmp_path, capsys):
    for picture in ("2/a.png", "10/a.png", "flat/a.png"):
        (tmp_path / "set" / picture).parent.mkdir(parents=True)
        (tmp_path / "set" / picture).touch()
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=3)
    words = ["evaluate", "sanity", "--dataset", str(tmp_path / "set")]
    with warnings_told():
        cli.evaluate._dataset(cli._parser().parse_args(words), config, config)
    out, err = capsys.readouterr()
    assert out == ("3 folders by order of names, as torchvision's ImageFolder: 10 is 0, 2 is 1, flat is 2\n")
    assert err == (
        f"lrp-jax: warning: {tmp_path / 'set'}: the folder '10' is class 0 by order of names, as torchvision's "
        "ImageFolder, but would be class 1 by order of numbers (2 of 3 folders differ); a file of labels says what is "
        "meant.\n"
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("set/2/a.png,2\nset/10/a.png,0\nset/flat/a.png,1\nset/b.png,1\n")
    cli.evaluate._dataset(cli._parser().parse_args([*words, "--labels", str(labels)]), config, config)
    out, err = capsys.readouterr()
    assert out == f"{labels}: 4 labels, by index, 1 of them of pictures that are not there\n"
    assert not err


def test_pointing(tmp_path, capsys):
    """The table is of the composites, and so are the maps."""
    words = ["evaluate", "pointing", "--images", "12", "--method", "raw_attention", "--pointing-cells", "2"]
    words += ["--output", str(tmp_path / "run")]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    rows = {line[:17].strip(): line[17:].split() for line in out.splitlines()[1:6]}
    assert rows["share asked"] == rows["share other"] == rows["chance"] == ["50.00", "50.00", "to", "50.00"]
    assert "An image has 4 labels" in out
    assert f"6 images, raw_attention: {tmp_path / 'run'}" in out
    assert "pointing: 12 of 12 images" in err
    assert "pointing: 6 of 6 images" in err
    assert names(tmp_path / "run") == ["chosen.json", "maps.png", "results.jsonl", "settings.json", "summary.json"]
    with Image.open(tmp_path / "run" / "maps.png") as picture:
        assert picture.width > 5 * 64  # a picture and four maps
    assert cli.main([*words, "--pointing-seed", "1"]) == 2
    assert "holds a run of other settings (seed 0, not 1)" in capsys.readouterr().err
