"""``lrp-jax compare``."""

from pathlib import Path

import numpy as np
import pytest
from helpers import EXAMPLES, SCENE, names
from PIL import Image

import lrp_jax
from lrp_jax import cli, metrics
from lrp_jax.cli import compare
from lrp_jax.datasets import DigitDataset, example_scenes
from lrp_jax.methods import register

QUICK = ["--method", "raw_attention", "--method", "saliency"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder, each method as often as it must: exit status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_RUNS", 0)
    monkeypatch.setattr(compare, "_QUICK", 0)

    def run(*words):
        try:
            status = cli.main(["compare", *map(str, words)])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def seen(monkeypatch):
    """What pages are drawn of, the last one's."""
    seen = {}

    def montage(picture, heads, cells, **said):
        seen.update(picture=picture, heads=heads, cells=cells, **said)
        return lrp_jax.pictures.montage(picture, heads, cells, **said)

    monkeypatch.setattr(compare, "montage", montage)
    return seen


def columns(out):
    """The table: of each method, its figures."""
    lines = out.splitlines()[1:-1]
    return {line.split()[0]: [float(word.replace(",", "")) for word in line.split()[1:]] for line in lines}


def expected(demo, scene, method, **options):
    """A scene's maps, and mIoU and share on target of each, in %."""
    image, labels, masks = scene
    maps = lrp_jax.explain(*demo, image[None], np.asarray(labels)[None], method=method, **options).relevance[0]
    counts = metrics.segmentation_counts(lrp_jax.heatmaps(maps, (64, 64)), masks)
    overlap = (np.asarray(counts.intersection) / np.asarray(counts.union)).mean(axis=-1)
    return maps, 100 * np.stack([overlap, metrics.share_on_target(maps, masks)], axis=-1).ravel()


def test_scores_of_a_scene_are_those_of_the_metrics(run, seen, demo):
    """Of scene 17 of the evaluation, and of a picture that comes with the package, whose masks are known."""
    examples = example_scenes()
    for words, scene in (
        (["--scene", 17], DigitDataset(18).sample(17)),
        ([SCENE], (examples.images[0], examples.labels[0], examples.masks[0])),
    ):
        status, out, err = run(*words, "--method", "attnlrp", *QUICK, "--at", "pixels", "--force")
        assert status == 0, err
        found = columns(out)
        assert list(found) == ["attnlrp", "raw_attention", "saliency"]
        first, second = (demo[0].config.class_name(k) for k in scene[1])
        for name in (f"mIoU, {first}", f"share, {second}"):
            assert name in out.splitlines()[0]
        assert [head.split()[0] for head in seen["heads"]] == [first, second]
        for cell, (method, figures) in zip(seen["cells"], found.items(), strict=True):
            maps, scores = expected(demo, scene, method, **({"at": "pixels"} if method == "attnlrp" else {}))
            np.testing.assert_allclose(cell.maps, maps, rtol=0, atol=2e-2 * np.abs(maps).max())
            assert figures[0] > 0
            np.testing.assert_allclose(figures[1:], scores, atol=1.5)  # of a picture of 8 bits, in the second round
            assert [cell.signed, cell.captions[1]] == [
                method == "attnlrp",
                f"mIoU {figures[3]:.0f}, share {figures[4]:.0f}",
            ]
        assert "3 of 3 methods" in err


def test_the_page(run, seen):
    status, out, _ = run(SCENE, *QUICK, "--output", "page.png", "--top-k", 1)
    assert status == 0
    assert out.splitlines()[-1].startswith("page.png: 2 methods, scene-1.png, a forward pass takes ")
    with Image.open("page.png") as page:
        # One map a cell, 256 pixels; beside the picture there is room for text.
        assert page.size == (16 + 256 + 20 + 560 + 16, 16 + 256 + 20 + 22 + 17 + 256 + 17 + 16)
        assert np.ptp(np.asarray(page)[16:272, 16:272]) > 100
    assert seen["lines"][0] == "scene-1.png"
    assert names(".") == ["page.png"]
    before = Path("page.png").read_bytes()
    assert "page.png exists: --force replaces it" in run(SCENE, *QUICK, "--output", "page.png")[2]
    assert Path("page.png").read_bytes() == before
    assert run(SCENE, *QUICK, "--output", "page.png", "--force")[0] == 0
    assert Path("page.png").read_bytes() != before


def test_classes_of_a_picture(run, seen, demo, tmp_path):
    """The most probable ones of a picture that is not known, and those asked for: without scores."""
    shifted = Image.fromarray(np.roll(np.asarray(lrp_jax.read_image(SCENE)), 1, axis=0))
    shifted.save(tmp_path / "shifted.png")
    image = lrp_jax.preprocess(shifted, demo[0].config)
    logits = np.asarray(lrp_jax.explain(*demo, image[None], method="raw_attention").logits[0])
    status, out, _ = run("shifted.png", "--method", "saliency")
    assert status == 0
    assert seen["heads"] == [str(demo[0].config.caption(k, logits)) for k in np.argsort(-logits)[:2]]
    assert out.splitlines()[0].split() == ["method", "forward", "passes", "a", "map"]
    status, out, _ = run("--method", "saliency", "--target", "two", "--target", "9", "--force")
    assert status == 0
    assert [head.split()[0] for head in seen["heads"]] == ["two", "nine"]
    assert "mIoU, nine" in out
    assert "two" not in out
    assert seen["cells"][0].captions[0] == ""


def test_costs_are_counted_in_forward_passes(run, monkeypatch):
    """By a clock that ticks a second at each look: a run of a method takes as long as a forward pass."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(compare.time, "perf_counter", lambda: next(ticks))
    _, out, _ = run(SCENE, "--method", "raw_attention")
    assert columns(out)["raw_attention"][0] == 1
    assert "a forward pass takes 1e+03 ms" in out


@pytest.fixture
def strange():
    """A method that no model has, and one whose maps are not finite."""

    @register(class_specific=True, resolution="patch", reference="none")
    def impossible(model, params, image, targets):
        """None."""
        raise ValueError("no model\nhas it")

    @register(class_specific=True, resolution="patch", reference="none")
    def infinite(model, params, image, targets):
        """Infinite."""
        e = lrp_jax.METHODS["raw_attention"].function(model, params, image, targets)
        return e.logits, e.targets, e.relevance / 0

    yield
    for name in ("impossible", "infinite"):
        del lrp_jax.METHODS[name]


@pytest.mark.usefixtures("strange")
def test_what_cannot_be_drawn_is_named(run, seen):
    status, out, err = run(SCENE, "--method", "impossible", "--method", "infinite", "--method", "raw_attention")
    assert status == 1
    assert list(columns(out)) == ["raw_attention"]
    assert "left out: impossible: no model has it\n" in err
    assert "left out: infinite: its map is not finite." in err
    assert seen["footnotes"] == [
        "Left out: impossible: no model has it",
        "Left out: infinite: its map is not finite.",
    ]
    status, out, err = run(SCENE, "--method", "impossible", "--force")
    assert (status, out) == (2, "")
    assert "there is no map to draw: no model has it" in err


MODULE = """
import jax, jax.numpy as jnp, lrp_jax, numpy as np

def mixer():
    params = {"patches": np.random.default_rng(0).normal(size=(192, 16)).astype(np.float32) / 8}
    params["head"] = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)

    def apply(p, x):
        x = x.reshape(len(x), 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(len(x), 64, 192)
        return jax.nn.relu(x @ p["patches"]).mean(axis=1) @ p["head"]

    model = lrp_jax.trace(apply, params, jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"))
    return model, params, lrp_jax.Preprocessing(image_size=64), lrp_jax.Labels(num_classes=3)
"""


@pytest.mark.usefixtures("as_users")
def test_a_traced_model_without_attention(run, seen):
    """All that it has maps of, of whatever methods there are; that the others are left out is no failure."""
    with open("traced_mixer.py", "w") as file:
        file.write(MODULE)
    quick = ["--masks", 4, "--samples", 2, "--steps", 2]
    status, out, err = run(EXAMPLES / "scene-2.png", "--model", "traced_mixer:mixer", *quick)
    assert status == 0, err
    drawn = [cell.title for cell in seen["cells"]]
    assert list(columns(out)) == drawn
    missing = [name for note in seen["footnotes"] for name in note.split(": ")[1].split(", ")]
    assert "the model has no attention maps" in seen["footnotes"][0]
    assert sorted(drawn + missing) == sorted(lrp_jax.METHODS)
    assert {"full_lrp", "saliency", "rise"} <= set(drawn)
    assert "--samples 2" in seen["lines"][2]
    status, _, err = run("--scene", 3, "--model", "traced_mixer:mixer", "--force")
    assert status == 2
    assert "--scene is for models of digit scenes" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.png"], "none.png: No such file or directory"),
        (["text.png"], "text.png is not a picture of a known format"),
        (["--model", "none.safetensors"], "none.safetensors: No such file or directory"),
        (["--method", "gradcam"], "invalid choice: 'gradcam'"),
        (["--target", "eel"], "--target: expected an index 0 to 9 or a class name"),
        (["--top-k", "11"], "at most the model's 10 classes, got 11"),
        (["--scene", "-1"], "--scene must be at least 0, got -1"),
        (["text.png", "--scene", "1"], "IMAGE and --scene exclude each other"),
        (["--output", "."], "--output must be a file, . is a folder"),
        (["--output", "there.png"], "there.png exists: --force replaces it"),
        (["--output", "none/page.png"], "none: No such file or directory"),
        (["--output", "page.text"], "--output must end in .png"),
        (["there.png", "--output", "there.png", "--force"], "--output must not be the image itself, there.png"),
        (["--method", "saliency", "--masks", "5"], "--masks: none of the methods saliency takes it"),
        (["--method", "rise", "--masks", "0"], "there is no map to draw: masks must be"),
        (["--stages", "true"], "--stages gives several maps for a class"),
    ],
)
def test_wrong_commands(run, tmp_path, monkeypatch, words, message):
    """Refused before anything is explained."""
    monkeypatch.setattr(compare._Bench, "measured", None)
    (tmp_path / "text.png").write_text("no picture")
    lrp_jax.read_image(SCENE).save(tmp_path / "there.png")
    status, out, err = run(*words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert names(tmp_path) == ["text.png", "there.png"]
