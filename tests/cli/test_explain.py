"""``lrp-jax explain``."""

import dataclasses
import sys

import numpy as np
import pytest
from helpers import SCENE, drawn, names
from PIL import Image

import lrp_jax
from lrp_jax import cli


def test_without_images_the_examples_are_explained(run):
    status, out, _ = run()
    assert status == 0
    assert names("lrp_jax_maps") == [f"scene-{i}.explained.png" for i in range(1, 5)]
    assert out.count("lrp_jax_maps/scene-") == 4
    assert len(out.splitlines()) == 1 + 4 * 2
    with Image.open("lrp_jax_maps/scene-1.explained.png") as panel:
        assert panel.width > 3 * 224
        assert np.ptp(np.asarray(panel)[20:200, 250:450]) > 100


def test_contrast_and_negate(run, demo):
    status, out, _ = run(SCENE, "--target", "2", "--contrast", "seven", "0", "--negate", "--npz", "--output", "maps")
    assert status == 0
    assert out.splitlines()[0].split() == ["image", "class", "logit", "panel"]
    assert "against two" in out
    assert "zero rather than seven" in out
    model, params = demo
    image = lrp_jax.preprocess(lrp_jax.read_image(SCENE), model.config)
    weights = np.zeros((1, 2, 10), np.float32)
    weights[0, 0, 2] = weights[0, 1, 7] = -1
    weights[0, 1, 0] = 1
    expected = lrp_jax.explain(model, params, image[None], weights)
    with np.load("maps/scene-1.explained.npz") as raw:
        np.testing.assert_array_equal(raw["targets"], weights[0])
        np.testing.assert_allclose(raw["relevance"], expected.relevance[0], rtol=1e-4, atol=1e-7)
        for score in raw["targets"] @ raw["logits"]:
            assert f"{score:.4f}" in out
    assert "--contrast must name two classes" in run(SCENE, "--contrast", "3", "three")[2]
    assert "got 'eel'" in run(SCENE, "--contrast", "3", "eel")[2]
    assert len(run(SCENE, "--top-k", 2, "--contrast", "3", "5")[1].splitlines()) == 1 + 3


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_single_output(run, tmp_path, multi_label):
    """Shown as it is, not as a softmax of 1; its sigmoid where it is a label."""
    config = lrp_jax.ViTConfig.from_variant("Ti/8", image_size=64, depth=1, num_classes=1, multi_label=multi_label)
    model = lrp_jax.ViT(config)
    params = drawn(model)
    params["head"]["bias"] = params["head"]["bias"] - 1.5
    lrp_jax.save(tmp_path / "one.safetensors", model, params)
    status, out, _ = run(SCENE, "--model", "one.safetensors", "--npz", "--output", "maps")
    assert status == 0
    with np.load("maps/scene-1.explained.npz") as raw:
        logit = raw["logits"][0]
        assert ("probabilities" in raw) == multi_label
    name, score = ("probability", 1 / (1 + np.exp(-logit))) if multi_label else ("output", logit)
    assert out.splitlines()[0].split() == ["image", "class", name, "panel"]
    assert f"{score:.4f}" in out
    shown = "class 0" if multi_label else "output"
    assert str(config.caption(0, np.array([logit]))).startswith(shown)
    status, out, _ = run(SCENE, "--model", "one.safetensors", "--negate", "--method", "input_x_gradient")
    assert status == 0
    assert f"against {shown}" in out
    assert f"{-logit:.4f}" in out
    for protocol in ("perturbation", "sanity"):
        with pytest.raises(ValueError, match=r"one output|has one"):
            getattr(lrp_jax.evaluate, protocol)(model, params, lrp_jax.datasets.DigitDataset(1), tmp_path / "e")
    if not multi_label:
        with pytest.raises(ValueError, match="a single output has no probability"):
            config.probabilities(np.array([logit]))


def test_raw_maps_are_those_of_explain(run, demo):
    status, out, _ = run(
        SCENE, "--target", "seven", "--target", "0", "--npz", "--output", "new/maps", "--start-layer", 1
    )
    assert status == 0
    assert names("new/maps") == ["scene-1.explained.npz", "scene-1.explained.png"]
    model, params = demo
    image = lrp_jax.preprocess(lrp_jax.read_image(SCENE), model.config)
    expected = lrp_jax.explain(model, params, image[None], np.array([[7, 0]]), start_layer=1)
    with np.load("new/maps/scene-1.explained.npz") as raw:
        np.testing.assert_array_equal(raw["targets"], [7, 0])
        np.testing.assert_allclose(raw["relevance"], expected.relevance[0], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(raw["logits"], expected.logits[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(raw["probabilities"], 1 / (1 + np.exp(-raw["logits"])), rtol=1e-5)
        for name, k in (("seven", 7), ("zero", 0)):
            assert f"{name}" in out
            assert f"{raw['probabilities'][k]:.4f}" in out


def test_many_images_in_batches(run, tmp_path):
    """Uneven batches, a folder, equal names, pictures of other sizes and modes; one result each."""
    scene = lrp_jax.read_image(SCENE)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        scene.save(tmp_path / folder / "scene.png")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    scene.resize((100, 80)).convert("L").save(tmp_path / "a" / "grey.jpg")
    status, out, err = run("a", "b/scene.png", SCENE, "--batch-size", 3, "--npz", "--top-k", 3)
    assert status == 0
    assert "explaining: 4 of 4 images" in err
    assert names("lrp_jax_maps") == sorted(
        f"{stem}.{suffix}"
        for stem in ("grey.explained", "scene.explained", "scene.explained-2", "scene-1.explained")
        for suffix in ("png", "npz")
    )
    maps = [np.load(f"lrp_jax_maps/{stem}.npz")["relevance"] for stem in ("scene.explained", "scene-1.explained")]
    np.testing.assert_allclose(*maps, rtol=1e-3, atol=1e-6)
    assert len(out.splitlines()) == 1 + 4 * 3


def test_damaged_images_are_skipped_and_named(run, tmp_path):
    (tmp_path / "cut.png").write_bytes(SCENE.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("no picture")
    status, out, err = run("cut.png", SCENE, "text.png")
    assert status == 1
    assert "skipped: cut.png is a damaged picture" in err
    assert "skipped: text.png is not a picture" in err
    assert "2 of 3 images were skipped" in err
    assert names("lrp_jax_maps") == ["scene-1.explained.png"]
    assert "scene-1.explained.png" in out


def test_what_cannot_be_written_is_skipped_and_named(run, tmp_path):
    long = "b" * 245 + ".png"
    lrp_jax.read_image(SCENE).save(tmp_path / long)
    status, out, err = run(long, SCENE)
    assert status == 1
    assert "File name too long" in err
    assert "scene-1.explained.png" in out


def test_inputs_are_never_overwritten(run, tmp_path):
    taken = tmp_path / "scene.explained.png"
    for path in (taken, tmp_path / "scene.png"):
        lrp_jax.read_image(SCENE).save(path)
    before = taken.read_bytes()
    status, _, _ = run("scene.png", "scene.explained.png", "--output", ".")
    assert status == 0
    assert taken.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("crane", "--target: 'crane' is the name of class 0 and 4: say index:0 or index:4."),
        ("1", "--target: '1' is the name of class 5 and the index of class 1: say index:1 or index:5."),
        ("Six", "--target: expected an index 0 to 9 or a class name (six, ...); got 'Six'."),
    ],
)
def test_a_target_that_could_be_two_classes_is_refused(run, monkeypatch, demo, target, message):
    model, params = demo
    names = ("crane", "one", "two", "three", "crane", "1", "six", "seven", "eight", "nine")
    named = lrp_jax.ViT(dataclasses.replace(model.config, class_names=names))
    monkeypatch.setattr(cli.models, "load", lambda _: (named, params))
    status, out, err = run(SCENE, "--target", target)
    assert (status, out, err) == (2, "", f"lrp-jax: error: {message}\n")


def test_pictures_that_need_an_extra_are_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "EXTENSION", {k: v for k, v in Image.registered_extensions().items() if k != ".heic"})
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "phone" / "._a.HEIC").write_bytes(b"AppleDouble")
    told = 'skipped: phone/a.HEIC is a HEIF or AVIF picture: pillow_heif is needed here: pip install "lrp-jax[heif]".'
    status, out, err = run("phone")
    assert (status, out) == (1, "")
    assert told in err
    assert "1 of 1 images were skipped" in err
    lrp_jax.read_image(SCENE).save(tmp_path / "phone" / "b.png")
    status, out, err = run("phone")
    assert status == 1
    assert told in err
    assert "1 of 2 images were skipped" in err
    assert "b.explained.png" in out


def test_another_method(run, demo):
    options = ["--method", "occlusion", "--window", "[32,16]", "--stride", "16", "--baseline", "-1"]
    status, _, _ = run(SCENE, *options, "--npz", "--target", "7")
    assert status == 0
    model, params = demo
    image = lrp_jax.preprocess(lrp_jax.read_image(SCENE), model.config)
    expected = lrp_jax.explain(
        model, params, image[None], [7], method="occlusion", window=(32, 16), stride=16, baseline=-1
    )
    with np.load("lrp_jax_maps/scene-1.explained.npz") as raw:
        np.testing.assert_allclose(raw["relevance"], expected.relevance[0], atol=1e-4)
        captions = [f"seven {raw['probabilities'][7]:.1%}"]
        drawn = lrp_jax.panel(lrp_jax.read_image(SCENE), raw["relevance"], captions, signed=True, title="occlusion")
    np.testing.assert_array_equal(Image.open("lrp_jax_maps/scene-1.explained.png"), drawn)


def test_pictures_are_cropped_once(run, tmp_path):
    """Of a model whose pictures are enlarged before the crop: not enlarged and cropped again."""
    config = lrp_jax.ViTConfig(
        image_size=16, patch_size=8, resize=24, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=3
    )
    model = lrp_jax.ViT(config)
    params = drawn(model)
    lrp_jax.save(tmp_path / "enlarging.safetensors", model, params)
    status, *_ = run(SCENE, "--model", tmp_path / "enlarging.safetensors", "--npz", "--output", tmp_path / "maps")
    assert status == 0
    image = lrp_jax.preprocess(lrp_jax.read_image(SCENE), config)
    with np.load(tmp_path / "maps" / "scene-1.explained.npz") as raw:
        np.testing.assert_allclose(raw["logits"], lrp_jax.explain(model, params, image[None]).logits[0], rtol=1e-5)


MODULE = """
import jax, lrp_jax

def traced():  # channels first, which pictures do not have
    model, params = lrp_jax.load("demo")
    apply = lambda p, x: jax.vmap(lambda image: model.apply({"params": p}, image.transpose(1, 2, 0)))(x)
    shape = jax.ShapeDtypeStruct((1, 3, 64, 64), "float32")
    return lrp_jax.trace(apply, params, shape), params, model.config, model.config

def three():
    return 1, 2, 3

def strange():
    return *lrp_jax.load("demo"), 3, 4

def modelless():
    return 1, 2, 3, 4

number = 5
"""


def test_a_model_of_an_import_string(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]
    with open("mine.py", "w") as file:
        file.write(MODULE)
    status, out, err = run(SCENE, "--model", "mine:traced", "--npz", "--output", "traced")
    assert status == 0, err
    assert out.count("traced/") == 1
    run(SCENE, "--npz", "--output", "own")
    (a, b) = (np.load(f"{folder}/{SCENE.stem}.explained.npz") for folder in ("traced", "own"))
    np.testing.assert_allclose(a["relevance"], b["relevance"], rtol=0, atol=1e-4 * np.abs(b["relevance"]).max())
    for source, message in {
        "mine:three": "four; got 3 values",
        "mine:strange": "got a int instead of a Preprocessing",
        "mine:modelless": "model must be what lrp_jax.load or lrp_jax.trace gives",
        "mine:number": "expected a function, got a int",
        "mine:nothing": "mine has no nothing",
        "nowhere:at_all": "there is no module nowhere",
    }.items():
        status, out, err = run(SCENE, "--model", source)
        assert (status, out) == (2, "")
        assert message in err
    status, _, err = run(SCENE, "--model", "mine:traced", "--method", "full_lrp", "--stages", "true")
    assert status == 2
    assert "--stages" in err
