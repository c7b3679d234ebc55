"""Runs over datasets: against plain loops, interrupted and resumed, over folders with faults."""

import dataclasses
import json
import runpy
import shutil
from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import lrp_jax
from lrp_jax import cli, evaluate, metrics
from lrp_jax.datasets import DigitDataset, ImageNetFolder, ImageNetSegmentation, MaskFolder
from lrp_jax.labels import imagenet_classes
from lrp_jax.model import forward


def drawn(model, seed=1):
    """Random parameters."""
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros(model.config.image_shape, jnp.float32))["params"]


@pytest.fixture(scope="module")
def small():
    """A model of digit scenes with random weights, so that it errs."""
    config = lrp_jax.ViTConfig(
        image_size=64, patch_size=16, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=10, multi_label=True
    )
    model = lrp_jax.ViT(config)
    return model, jax.tree.map(lambda p: p * 3, drawn(model))


@pytest.fixture(scope="module")
def single():
    """A model of one label, 1,000 classes, of 16 x 24 pixels."""
    config = lrp_jax.ViTConfig(image_size=(16, 24), patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=8)
    model = lrp_jax.ViT(config)
    return model, drawn(model)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]


def test_segmentation_is_a_loop_over_images(small, tmp_path):
    model, params = small
    summary = evaluate.segmentation(*small, DigitDataset(5), tmp_path, method="partial_lrp", batch_size=2)
    scenes = lrp_jax.datasets.digit_scenes(5, seed=1)
    correct, intersection, union, precision, f1, share = 0, np.zeros(2), np.zeros(2), [], [], []
    for image, labels, masks in zip(*scenes, strict=True):
        maps = lrp_jax.explain(model, params, image[None], labels[None], method="partial_lrp").relevance[0]
        cells = masks.reshape(2, 4, 16, 4, 16).any(axis=(2, 4))
        for relevance, mask, cell in zip(maps, masks, cells, strict=True):
            heat = np.asarray(lrp_jax.heatmaps(relevance, (64, 64)))
            heat = (heat - heat.min()) / (np.ptp(heat) or 1)
            found = heat > heat.mean()
            on = [np.maximum(relevance, 0)[c].sum() for c in (cell, *cells)]
            share.append(on[0] / (sum(on[1:]) or 1))
            correct += (found == mask).sum()
            intersection += [(~found & ~mask).sum(), (found & mask).sum()]
            union += [(~found | ~mask).sum(), (found | mask).sum()]
            precision.append(average_precision_score(np.r_[~mask.ravel(), mask.ravel()], np.r_[1 - heat, heat].ravel()))
            f1.append(f1_score(mask.ravel(), found.ravel()))
    assert 0 < np.mean(share) < 1
    expected = {
        "pixel accuracy": correct / (10 * 64 * 64),
        "mIoU": (intersection / union).mean(),
        "mAP": np.mean(precision),
        "mF1": np.mean(f1),
        "share on target": np.mean(share),
    }
    for name, value in expected.items():
        assert summary.figures[name].value == pytest.approx(100 * value, rel=1e-4)
        assert summary.figures[name].low <= summary.figures[name].value <= summary.figures[name].high
    assert summary.images == 5
    assert (
        json.loads((tmp_path / "summary.json").read_text())["figures"]["mIoU"]["value"] == summary.figures["mIoU"].value
    )


@pytest.mark.parametrize("explained", ["predicted", "true"])
def test_perturbation_is_a_loop_over_images(small, tmp_path, explained):
    model, params = small
    summary = evaluate.perturbation(
        *small, DigitDataset(3), tmp_path, method="partial_lrp", explained=explained, batch_size=2
    )
    scenes = lrp_jax.datasets.digit_scenes(3, seed=1)
    curves = {"positive": [], "negative": []}
    chances = {"positive": [], "negative": [], "insertion": []}
    for i, (image, labels) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        top = np.argsort(-forward(model, params, image)[0])[:2]
        wrong = [c for c in top if c not in labels]
        targets = [label if label in top else wrong.pop(0) for label in labels] if explained == "predicted" else labels
        assert lines(tmp_path)[i]["explained"] == list(targets)
        relevance = lrp_jax.explain(model, params, image[None], np.array([targets]), method="partial_lrp").relevance[0]
        for label, heat in zip(labels, lrp_jax.heatmaps(relevance, (64, 64)), strict=True):
            for name, sign in (("positive", -1), ("negative", 1)):
                order = np.argsort(sign * np.asarray(heat).ravel(), kind="stable")
                hits, probabilities = [], []
                for step in range(11):
                    pixels = image.reshape(-1, 3).copy()
                    pixels[order[: int(4096 * (step / 10))]] = -1
                    logits = forward(model, params, pixels.reshape(64, 64, 3))[0]
                    hits.append(label in np.argsort(-logits)[:2])
                    probabilities.append(1 / (1 + np.exp(-logits[label])))
                curves[name].append(hits[:10])
                chances[name].append(probabilities)
            order = np.argsort(-np.asarray(heat).ravel(), kind="stable")
            blurred = scipy.ndimage.gaussian_filter(image, (5, 5, 0), truncate=1, mode="nearest")
            pixels, probabilities = blurred.reshape(-1, 3), []
            for step in range(11):
                pixels[order[: int(4096 * (step / 10))]] = image.reshape(-1, 3)[order[: int(4096 * (step / 10))]]
                logits = forward(model, params, pixels.reshape(64, 64, 3))[0]
                probabilities.append(1 / (1 + np.exp(-logits[label])))
            chances["insertion"].append(probabilities)
    for name, hits in curves.items():
        expected = np.mean(hits, axis=0)
        np.testing.assert_allclose(summary.curves[f"{name} accuracy"][:10], expected, atol=1e-12)
        assert summary.figures[f"{name} AUC"].value == pytest.approx(metrics.area_under_curve(expected))
        assert summary.figures["clean accuracy"].value == pytest.approx(100 * expected[0])
    for name, values in chances.items():
        np.testing.assert_allclose(summary.curves[f"{name} probability"], np.mean(values, axis=0), atol=1e-4)
    means = {name: np.mean(values, axis=0) for name, values in chances.items()}
    areas = {
        "positive AUC, probability": means["positive"][:10],
        "negative AUC, probability": means["negative"][:10],
        "deletion": means["positive"],
        "insertion": means["insertion"],
    }
    for name, values in areas.items():
        assert summary.figures[name].value == pytest.approx(metrics.area_under_curve(values), abs=0.01)
    insertion = summary.curves["insertion accuracy"]
    assert insertion[-1] == summary.curves["positive accuracy"][0]  # the whole image again


def test_sanity_draws_the_parameters_from_the_head_down(small, tmp_path):
    model = lrp_jax.ViT(dataclasses.replace(small[0].config, depth=2))
    params = jax.tree.map(lambda p: np.asarray(p * 3), drawn(model))  # of numpy, as safetensors gives them
    run = (model, params, DigitDataset(3), tmp_path / "a")
    summary = evaluate.sanity(*run, method="saliency", batch_size=2, seed=4)
    scenes = lrp_jax.datasets.digit_scenes(3, seed=1)
    new = drawn(model, seed=4)
    head = params | {"head": new["head"], "norm": new["norm"]}
    last = jax.tree.map(lambda old, new: np.stack([old[0], new[1]]), params["blocks"], new["blocks"])
    stages = {"head": head, "block 1": head | {"blocks": last}, "block 0": head | {"blocks": new["blocks"]}}
    stages["embeddings"] = new
    logits = np.array([forward(model, params, image)[0] for image in scenes.images])
    targets = np.argsort(-logits, axis=1)[:, :2]
    before = lrp_jax.explain(model, params, scenes.images, targets, method="saliency").relevance
    expected = metrics.spearman(before[:, 0], before[:, 1]).mean()
    assert summary.figures["correlation of two classes"].value == pytest.approx(expected, abs=1e-3)
    for name, mixed in stages.items():
        after = lrp_jax.explain(model, mixed, scenes.images, targets, method="saliency").relevance
        expected = metrics.spearman(before[:, 0], after[:, 0]).mean()
        assert summary.figures[f"correlation after {name}"].value == pytest.approx(expected, abs=1e-3)
    assert len(summary.figures) == 6
    agnostic = evaluate.sanity(*small, DigitDataset(2), tmp_path / "b", method="raw_attention", batch_size=2)
    assert agnostic.figures["correlation of two classes"].value == pytest.approx(1)
    assert agnostic.figures["correlation after head"].value == pytest.approx(1)


def test_an_interrupted_run_goes_on(small, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = evaluate.perturbation(*small, DigitDataset(7), whole, method="raw_attention", batch_size=2)

    def interrupt(done, total):
        assert total == 7
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.perturbation(*small, DigitDataset(7), broken, method="raw_attention", batch_size=2, progress=interrupt)
    assert len(lines(broken)) == 4
    with (broken / "results.jsonl").open("a") as file:  # half a batch, half a line
        file.write('{"image": "scene 4"}\n{"image": "sce')
    seen = []
    again = evaluate.perturbation(
        *small,
        DigitDataset(7),
        broken,
        method="raw_attention",
        batch_size=2,
        progress=lambda done, _: seen.append(done),
    )
    assert seen == [4, 6, 7]
    assert again == expected
    for name in ("results.jsonl", "summary.json", "settings.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    # A finished run is not run again; another one needs another folder.
    evaluate.perturbation(
        *small, DigitDataset(7), whole, method="raw_attention", batch_size=2, progress=lambda done, _: seen.append(done)
    )
    assert seen[3:] == [7]
    with pytest.raises(ValueError, match=r"holds a run of other settings \(method 'raw_attention', not 'partial_lrp'"):
        evaluate.perturbation(*small, DigitDataset(7), whole, method="partial_lrp", batch_size=2)


def test_only_what_is_classified_right(small, tmp_path):
    model, params = small
    missed = DigitDataset(12)
    order = {i: np.argsort(-forward(model, params, missed.sample(i).image)[0]) for i in range(12)}

    class HalfRight(DigitDataset):
        def sample(self, i):
            return super().sample(i)._replace(labels=order[i][:2] if i % 2 else order[i][-2:])

    run = {"method": "raw_attention", "batch_size": 6}
    every = evaluate.perturbation(*small, HalfRight(12), tmp_path, **run)
    assert every.figures["clean accuracy"].value == 50
    some = evaluate.perturbation(*small, HalfRight(12), tmp_path, **run, correct_only=True)
    assert (some.images, some.figures["clean accuracy"].value) == (6, 100)
    assert (
        some.curves["positive accuracy"][-1]
        == np.mean([line["hits"]["positive"] for line in lines(tmp_path)[1::2]], axis=(0, 1))[-1]
    )

    order = {i: ranked[::-1] if i % 2 else ranked for i, ranked in order.items()}
    with pytest.raises(ValueError, match="0 of 12 were skipped, none is classified right"):
        evaluate.perturbation(*small, HalfRight(12), tmp_path / "none", **run, correct_only=True)


@pytest.mark.parametrize("change", ["labels", "images", "lines"])
def test_results_of_other_images_are_not_taken(single, imagenet, tmp_path, change):
    path, _, _ = imagenet
    config, run = single[0].config, {"method": "raw_attention", "batch_size": 2}

    def dataset():
        return ImageNetFolder(path / "val", config, images=4)

    def interrupt(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate.sanity(*single, dataset(), tmp_path / "run", **run, progress=interrupt)
    if change == "labels":
        (path / "val" / "n02123045").rename(path / "val" / "n02123394")
        message = "holds a run of other settings .*dataset"
    else:
        results = tmp_path / "run" / "results.jsonl"
        text = results.read_text()
        results.write_text(text.replace("_1.JPEG", "_7.JPEG") if change == "images" else text * 3)
        message = "holds results of other images"
    with pytest.raises(ValueError, match=message):
        evaluate.sanity(*single, dataset(), tmp_path / "run", **run)


def test_damaged_results_are_not_taken(single, masked, tmp_path):
    run = partial(evaluate.segmentation, *single, MaskFolder(masked, single[0].config), tmp_path, batch_size=2)
    run(method="raw_attention")
    whole = {name: (tmp_path / name).read_bytes() for name in ("settings.json", "results.jsonl")}
    for name, text in (
        ("settings.json", b"{"),
        ("settings.json", b"[1]"),
        ("results.jsonl", b"{}\n"),
        ("results.jsonl", b"1\n"),
        ("results.jsonl", b"{\n"),
        ("results.jsonl", b"\xff\n"),
    ):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match="holds damaged results"):
            run(method="raw_attention")
        assert (tmp_path / name).read_bytes() == text
        (tmp_path / name).write_bytes(whole[name])
    with pytest.raises(ValueError, match="segmentation needs labels here"):
        run(method="raw_attention", correct_only=True)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"holds results without settings\.json"):
        run(method="raw_attention")


def test_rules_of_one_name_are_not_mixed_up(single, masked, tmp_path):
    run = partial(evaluate.segmentation, *single, MaskFolder(masked, single[0].config), tmp_path, batch_size=2)
    own = dataclasses.replace(lrp_jax.CHEFER, add=lrp_jax.BASELINE.add)
    with pytest.raises(ValueError, match="'chefer' names others"):
        run(options={"rules": own})
    named = run(options={"rules": dataclasses.replace(own, name="mixed")})
    assert named.settings["options"]["rules"] == "mixed"


def test_bad_settings_leave_no_folder(small, tmp_path):
    for arguments, message in (
        ({"method": "gradcam"}, "method must be one of"),
        ({"options": {"rules": "lrp"}}, "rules must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"explained": "both"}, "explained must be one of predicted, true; got 'both'"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.perturbation(*small, DigitDataset(2), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="two classes, the model has one"):
        evaluate.sanity(lrp_jax.ViT(lrp_jax.ViTConfig(num_classes=1)), {}, DigitDataset(2), tmp_path / "run")


@pytest.fixture
def masked(tmp_path):
    """Five pictures with masks, of different sizes."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "masked" / folder).mkdir(parents=True)
    for i in range(5):
        size = (20 + i, 30)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "masked" / "images" / f"{i}.png")
        mask = np.zeros(size, np.uint8)
        mask[5:15, 10:25] = 255
        stored = mask.astype(np.uint16) // 255 if i == 0 else mask  # one of 16 bits
        Image.fromarray(stored).save(tmp_path / "masked" / "masks" / f"{i}.png")
    return tmp_path / "masked"


def test_faults_are_skipped_and_named(single, masked, tmp_path):
    (masked / "images" / "1.png").write_bytes((masked / "images" / "1.png").read_bytes()[:300])
    Image.new("L", (5, 5)).save(masked / "masks" / "3.png")
    summary = evaluate.segmentation(*single, MaskFolder(masked, single[0].config), tmp_path / "run", batch_size=2)
    assert summary.images == 3
    assert list(summary.skipped) == ["1.png", "3.png"]
    assert "damaged" in summary.skipped["1.png"]
    assert "the mask has (5, 5) pixels, its picture (30, 23)" in summary.skipped["3.png"]
    assert [line["image"] for line in lines(tmp_path / "run")] == [f"{i}.png" for i in range(5)]
    assert "clean accuracy" not in summary.figures

    # A whole batch of them, and nothing else.
    for i in range(4):
        (masked / "images" / f"{i}.png").write_bytes(b"no picture")
    dataset = MaskFolder(masked, single[0].config)
    assert evaluate.segmentation(*single, dataset, tmp_path / "batches", batch_size=2).images == 1
    (masked / "images" / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"5 of 5 were skipped, the first because .*0\.png is not a picture"):
        evaluate.segmentation(*single, dataset, tmp_path / "all", batch_size=2)

    (masked / "masks" / "2.png").unlink()
    with pytest.raises(ValueError, match="holds no mask of 2"):
        MaskFolder(masked, single[0].config)


def write_gtsegs(path, masked):
    """The pictures and masks of a folder, in the layout of ImageNet-Segmentation's file."""
    with h5py.File(path, "w") as file:
        reference = h5py.special_dtype(ref=h5py.Reference)
        images, masks = (file.create_dataset(f"value/{name}", (5, 1), dtype=reference) for name in ("img", "gt"))
        for i in range(5):
            pixels = np.asarray(Image.open(masked / "images" / f"{i}.png"))
            mask = (np.asarray(Image.open(masked / "masks" / f"{i}.png")) > 0).astype(np.uint8)
            images[i, 0] = file.create_dataset(f"refs/image{i}", data=pixels.transpose(2, 1, 0)).ref
            cell = file.create_dataset(f"refs/cell{i}", (1, 1), dtype=reference)
            cell[0, 0] = file.create_dataset(f"refs/mask{i}", data=mask.T).ref
            masks[i, 0] = cell.ref


def test_imagenet_segmentation_is_read_as_published(single, masked, tmp_path):
    write_gtsegs(tmp_path / "gtsegs.mat", masked)
    config = single[0].config
    folder, mat = MaskFolder(masked, config), ImageNetSegmentation(tmp_path / "gtsegs.mat", config)
    assert len(mat) == 5
    for i in range(5):
        for ours, theirs in zip(folder.sample(i), mat.sample(i), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    picture = lrp_jax.read_image(masked / "images" / "0.png").resize((24, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(mat.sample(0).image, np.asarray(picture) / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="is not the HDF5 file of ImageNet-Segmentation"):
        ImageNetSegmentation(masked / "images" / "0.png", config)


@pytest.fixture
def imagenet(tmp_path):
    """Synset folders of six pictures, and the same pictures in one folder."""
    rng = np.random.default_rng(0)
    synsets = ["n02123045", "n01440764", "n15075141"]
    classes = [synset for synset, _ in imagenet_classes()]
    for i in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
        for folder in (tmp_path / "val" / synsets[i % 3], tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"ILSVRC2012_val_{i}.JPEG")
    return tmp_path, synsets, [classes.index(synset) for synset in synsets]


def test_what_a_protocol_needs_is_named(single, imagenet, masked, tmp_path):
    config = single[0].config
    with pytest.raises(ValueError, match="segmentation needs masks"):
        evaluate.segmentation(*single, ImageNetFolder(imagenet[0] / "val", config), tmp_path / "a")
    with pytest.raises(ValueError, match="perturbation needs labels"):
        evaluate.perturbation(*single, MaskFolder(masked, config), tmp_path / "b")
    with pytest.raises(ValueError, match="segmentation needs labels here"):
        evaluate.segmentation(*single, MaskFolder(masked, config), tmp_path / "c", correct_only=True)
    config = lrp_jax.ViTConfig(image_size=64, patch_size=16, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=3)
    model = lrp_jax.ViT(config)
    with pytest.raises(ValueError, match=r"has the classes .*, the model 0 to 2"):
        evaluate.perturbation(model, drawn(model), DigitDataset(2), tmp_path / "d", method="raw_attention")
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_imagenet_folders(single, imagenet):
    path, synsets, indices = imagenet
    config = single[0].config
    dataset = ImageNetFolder(path / "val", config)
    assert [dataset.key(i) for i in range(2)] == ["n01440764/ILSVRC2012_val_1.JPEG", "n01440764/ILSVRC2012_val_4.JPEG"]
    assert [int(dataset.sample(i).labels[0]) for i in range(6)] == [0, 0, indices[0], indices[0], 999, 999]
    assert [dataset.key(i)[:9] for i in range(6)][::2] == [
        ImageNetFolder(path / "val", config, images=3).key(i)[:9] for i in range(3)
    ]

    names = [f"ILSVRC2012_val_{i}" for i in range(6)]
    (path / "val.txt").write_text("".join(f"{n}.JPEG {indices[i % 3]}\n" for i, n in enumerate(names)))
    rows = "".join(f"{n},{synsets[i % 3]} 1 2 3 4\n" for i, n in enumerate(names))
    (path / "solution.csv").write_text("ImageId,PredictionString\n" + rows)
    (path / "kit").mkdir()
    (path / "kit" / "truth.txt").write_text("".join(f"{3 - i % 3}\n" for i in range(6)))
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O")]
    table = np.array([[(3 - k, synset)] for k, synset in enumerate(synsets)], kind)
    scipy.io.savemat(path / "kit" / "meta.mat", {"synsets": table})
    for labels in (path / "val.txt", path / "solution.csv", path / "kit" / "truth.txt"):
        dataset = ImageNetFolder(path / "flat", config, labels=labels)
        assert [int(dataset.sample(i).labels[0]) for i in range(6)] == [indices[i % 3] for i in range(6)]

    squashed, cropped = (
        ImageNetFolder(path / "val", config, squash=squash).sample(0).image for squash in (True, False)
    )
    picture = lrp_jax.read_image(path / "val" / "n01440764" / "ILSVRC2012_val_1.JPEG")
    np.testing.assert_array_equal(cropped, lrp_jax.preprocess(picture, config))
    assert np.abs(squashed - cropped).max() > 0.01

    for text, message in (
        (b"", "is not the development kit's"),
        (b"noise" * 100, "is not the development kit's"),
        (None, "No such file"),
    ):
        (path / "kit" / "meta.mat").unlink()
        if text is not None:
            (path / "kit" / "meta.mat").write_bytes(text)
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{message}.*meta\.mat|meta\.mat {message}"):
            ImageNetFolder(path / "flat", config, labels=path / "kit" / "truth.txt")
    (path / "kit" / "truth.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match=r"truth\.txt is no text"):
        ImageNetFolder(path / "flat", config, labels=path / "kit" / "truth.txt")


def test_other_folders_are_classes_in_order(imagenet):
    path, _, _ = imagenet
    for folder in ("2", "10"):
        (path / "numbered" / folder).mkdir(parents=True)
        shutil.copy(path / "flat" / "ILSVRC2012_val_0.JPEG", path / "numbered" / folder / "a.JPEG")
    with pytest.warns(UserWarning, match="the folder '2' is class 0 by order of numbers"):
        dataset = ImageNetFolder(path / "numbered", lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=2))
    assert [(dataset.key(i), int(dataset.sample(i).labels[0])) for i in range(2)] == [("2/a.JPEG", 0), ("10/a.JPEG", 1)]
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=3)
    assert int(ImageNetFolder(path / "val", config).sample(0).labels[0]) == 0
    config = dataclasses.replace(config, class_names=("b", "n01440764", "n02123045"))
    with pytest.raises(ValueError, match="such as 'n01440764', but not 'n15075141'"):
        ImageNetFolder(path / "val", config)
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=5)
    with pytest.raises(ValueError, match="3 folders, the model has 5 classes, and 'n01440764' is none"):
        ImageNetFolder(path / "val", config)
    with pytest.raises(ValueError, match="no folders, one a class"):
        ImageNetFolder(path / "flat", config)
    (path / "val.txt").write_text("other.JPEG 1\n")
    with pytest.raises(ValueError, match="has no label of ILSVRC2012_val_0"):
        ImageNetFolder(path / "flat", config, labels=path / "val.txt")


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
        (["--dataset", "digits", "--model", "demo", "--crop"], "--labels and --crop are for folders"),
        (["--dataset", "digits"], "--dataset digits is for models of digit scenes"),
        (["--start-layer", "1"], "takes no options; got 'start_layer'"),
        (["--explained", "true"], "holds a run of other settings (explained 'predicted', not 'true')"),
    ):
        assert cli.main(words + more) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["saliency", "occlusion"])
def test_maps_are_drawn_by_their_sign(small, tmp_path, monkeypatch, method):
    drawn = []
    monkeypatch.setattr(evaluate, "panel", lambda *panel, **how: drawn.append(how) or lrp_jax.panel(*panel, **how))
    evaluate.draw_maps(*small, DigitDataset(2), tmp_path / "maps.png", method=method, images=1)
    assert drawn == [{"signed": lrp_jax.METHODS[method].signed}]


def test_how_pictures_were_labelled_is_printed(tmp_path, capsys):
    for picture in ("2/a.png", "10/a.png", "flat/a.png"):
        (tmp_path / "set" / picture).parent.mkdir(parents=True)
        (tmp_path / "set" / picture).touch()
    config = lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=3)
    words = ["evaluate", "sanity", "--dataset", str(tmp_path / "set")]
    cli._dataset(cli._parser().parse_args(words), config)
    out, err = capsys.readouterr()
    assert out == ("3 folders by order of names, as torchvision's ImageFolder: 10 is 0, 2 is 1, flat is 2\n")
    assert err == (
        f"lrp-jax: warning: {tmp_path / 'set'}: the folder '10' is class 0 by order of names, as torchvision's "
        "ImageFolder, but would be class 1 by order of numbers (2 of 3 folders differ); a file of labels says what is "
        "meant.\n"
    )
    labels = tmp_path / "labels.csv"
    labels.write_text("set/2/a.png,2\nset/10/a.png,0\nset/flat/a.png,1\nset/b.png,1\n")
    cli._dataset(cli._parser().parse_args([*words, "--labels", str(labels)]), config)
    out, err = capsys.readouterr()
    assert out == f"{labels}: 4 labels, by index, 1 of them of pictures that are not there\n"
    assert not err


def test_tables_of_an_imagenet_folder(single, imagenet, masked, tmp_path, capsys):
    """The script's path to the real tables, end to end, and again from what it wrote."""
    path, _, _ = imagenet
    model = lrp_jax.ViT(dataclasses.replace(single[0].config, depth=2))
    lrp_jax.save(tmp_path / "vit.safetensors", model, drawn(model))
    write_gtsegs(tmp_path / "gtsegs_ijcv.mat", masked)
    tables = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "reproduce_tables.py"))["main"]
    words = ["--model", tmp_path / "vit.safetensors", "--imagenet", path / "val", "--output", tmp_path / "tables"]
    words += ["--segmentation", tmp_path / "gtsegs_ijcv.mat", "--method", "raw_attention", "--method", "lrp_rollout"]
    tables(list(map(str, words)))
    out, _ = capsys.readouterr()
    assert "6 images, clean accuracy" in out
    assert "Table 2: segmentation, 5 images" in out
    for title in ("raw attention", "LRP rollout"):
        assert out.count(f"| {title} |") == 3
    assert out.count("| without the gradient |") == 1
    tables(list(map(str, words)))
    assert capsys.readouterr().out == out
