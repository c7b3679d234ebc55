"""Runs over datasets: against plain loops, interrupted and resumed, over folders with faults."""

import json
import runpy
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import lrp_jax
from lrp_jax import cli, evaluate, metrics
from lrp_jax.datasets import DigitDataset, ImageNetFolder, ImageNetSegmentation, MaskFolder, imagenet_classes
from lrp_jax.propagation import forward


@pytest.fixture(scope="module")
def small():
    """A model of digit scenes with random weights, so that it errs."""
    config = lrp_jax.ViTConfig(
        image_size=64, patch_size=16, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=10, multi_label=True
    )
    model = lrp_jax.ViT(config)
    params = jax.jit(model.init)(jax.random.key(1), jnp.zeros(config.image_shape, jnp.float32))["params"]
    return model, jax.tree.map(lambda p: p * 3, params)


@pytest.fixture(scope="module")
def single():
    """A model of one label, 1,000 classes, of 16 x 24 pixels."""
    config = lrp_jax.ViTConfig(image_size=(16, 24), patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=8)
    model = lrp_jax.ViT(config)
    return model, jax.jit(model.init)(jax.random.key(1), jnp.zeros(config.image_shape, jnp.float32))["params"]


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]


def test_segmentation_is_a_loop_over_images(small, tmp_path):
    model, params = small
    summary = evaluate.segmentation(*small, DigitDataset(5), tmp_path, method="attention_rollout", batch_size=2)
    scenes = lrp_jax.datasets.digit_scenes(5, seed=1)
    correct, intersection, union, precision, f1, share = 0, np.zeros(2), np.zeros(2), [], [], []
    for image, masks in zip(scenes.images, scenes.masks, strict=True):
        relevance = lrp_jax.explain(model, params, image[None], method="attention_rollout").relevance[0, 0]
        heat = np.asarray(lrp_jax.heatmaps(relevance, (64, 64)))
        heat = (heat - heat.min()) / np.ptp(heat)
        found = heat > heat.mean()
        cells = masks.reshape(2, 4, 16, 4, 16).any(axis=(2, 4))
        for mask, cell in zip(masks, cells, strict=True):
            share.append(relevance[cell].sum() / sum(relevance[c].sum() for c in cells))
            correct += (found == mask).sum()
            intersection += [(~found & ~mask).sum(), (found & mask).sum()]
            union += [(~found | ~mask).sum(), (found | mask).sum()]
            precision.append(average_precision_score(np.r_[~mask.ravel(), mask.ravel()], np.r_[1 - heat, heat].ravel()))
            f1.append(f1_score(mask.ravel(), found.ravel()))
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
    for i, (image, labels) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        top = np.argsort(-forward(model, params, image)[0])[:2]
        wrong = [c for c in top if c not in labels]
        targets = [label if label in top else wrong.pop(0) for label in labels] if explained == "predicted" else labels
        assert lines(tmp_path)[i]["explained"] == list(targets)
        relevance = lrp_jax.explain(model, params, image[None], np.array([targets]), method="partial_lrp").relevance[0]
        for label, heat in zip(labels, lrp_jax.heatmaps(relevance, (64, 64)), strict=True):
            for name, sign in (("positive", -1), ("negative", 1)):
                order = np.argsort(sign * np.asarray(heat).ravel(), kind="stable")
                hits = []
                for step in range(10):
                    pixels = image.reshape(-1, 3).copy()
                    pixels[order[: int(4096 * (step / 10))]] = -1
                    logits = forward(model, params, pixels.reshape(64, 64, 3))[0]
                    hits.append(label in np.argsort(-logits)[:2])
                curves[name].append(hits)
    for name, hits in curves.items():
        expected = np.mean(hits, axis=0)
        np.testing.assert_allclose(summary.curves[f"{name} accuracy"][:10], expected, atol=1e-12)
        assert summary.figures[f"{name} AUC"].value == pytest.approx(metrics.area_under_curve(expected))
        assert summary.figures["clean accuracy"].value == pytest.approx(100 * expected[0])
    insertion = summary.curves["insertion accuracy"]
    assert insertion[-1] == summary.curves["positive accuracy"][0]  # the whole image again


def test_sanity_draws_the_parameters_from_the_head_down(small, tmp_path):
    model, params = small
    summary = evaluate.sanity(*small, DigitDataset(3), tmp_path / "a", method="saliency", batch_size=2, seed=4)
    scenes = lrp_jax.datasets.digit_scenes(3, seed=1)
    drawn = jax.jit(model.init)(jax.random.key(4), jnp.zeros((64, 64, 3), jnp.float32))["params"]
    head = params | {"head": drawn["head"], "norm": drawn["norm"]}
    stages = {"head": head, "block 0": head | {"blocks": drawn["blocks"]}, "embeddings": drawn}
    logits = np.array([forward(model, params, image)[0] for image in scenes.images])
    targets = np.argsort(-logits, axis=1)[:, :2]
    before = lrp_jax.explain(model, params, scenes.images, targets, method="saliency").relevance
    expected = metrics.spearman(before[:, 0], before[:, 1]).mean()
    assert summary.figures["correlation of two classes"].value == pytest.approx(expected, abs=1e-3)
    for name, mixed in stages.items():
        after = lrp_jax.explain(model, mixed, scenes.images, targets, method="saliency").relevance
        expected = metrics.spearman(before[:, 0], after[:, 0]).mean()
        assert summary.figures[f"correlation after {name}"].value == pytest.approx(expected, abs=1e-3)
    assert len(summary.figures) == 5
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
    every = evaluate.perturbation(*small, DigitDataset(12), tmp_path / "a", method="raw_attention", batch_size=6)
    right = sum(all(line["clean"]) for line in lines(tmp_path / "a"))
    assert 0 < every.figures["clean accuracy"].value < 100
    if right:
        some = evaluate.perturbation(
            *small, DigitDataset(12), tmp_path / "a", method="raw_attention", batch_size=6, correct_only=True
        )
        assert some.images == right
        assert some.figures["clean accuracy"].value == 100
    else:
        with pytest.raises(ValueError, match="no image could be evaluated"):
            evaluate.perturbation(
                *small, DigitDataset(12), tmp_path / "a", method="raw_attention", batch_size=6, correct_only=True
            )


def test_bad_settings_leave_no_folder(small, tmp_path):
    for arguments, message in (
        ({"method": "gradcam"}, "method must be one of"),
        ({"options": {"rules": "lrp"}}, "rules must be one of"),
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
        Image.fromarray(mask).save(tmp_path / "masked" / "masks" / f"{i}.png")
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
            mask = np.asarray(Image.open(masked / "masks" / f"{i}.png")) // 255
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


def test_other_folders_are_classes_in_order(imagenet):
    path, _, _ = imagenet
    for count, names in ((3, ()), (3, ("b", "n01440764", "n02123045"))):
        config = lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=count, class_names=names)
        assert int(ImageNetFolder(path / "val", config).sample(0).labels[0]) == 0
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
    (tmp_path / "empty").mkdir()
    for more, message in (
        (["--dataset", "none"], "none: No such file or directory"),
        (["--dataset", "empty"], "holds no folders"),
        (["--dataset", "digits"], "--dataset digits is for models of digit scenes"),
        (["--start-layer", "1"], "takes no options; got 'start_layer'"),
        (["--explained", "true"], "holds a run of other settings (explained 'predicted', not 'true')"),
    ):
        assert cli.main(words + more) == 2
        assert message in capsys.readouterr().err


def test_tables_of_an_imagenet_folder(single, imagenet, masked, tmp_path, capsys):
    """The script's path to the real tables, end to end, and again from what it wrote."""
    path, _, _ = imagenet
    lrp_jax.save(tmp_path / "vit.safetensors", *single)
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
