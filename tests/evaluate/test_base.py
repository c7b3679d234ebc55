"""Runs over datasets, interrupted and resumed, over folders with faults."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from helpers import Wrapped, drawn, lines
from PIL import Image

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.datasets import DigitDataset, ImageNetFolder, MaskFolder
from lrp_jax.walk import classify


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
    order = {i: np.argsort(-classify(model, params, missed.sample(i).image)) for i in range(12)}

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


PREPROCESSING = lrp_jax.Preprocessing(image_size=64)
LABELS = lrp_jax.Labels(num_classes=10, multi_label=True)


@pytest.mark.parametrize("protocol", evaluate.PROTOCOLS)
def test_any_model_is_evaluated(small, demo, tmp_path, protocol):
    """As the Vision Transformer that it is, but for the parameters that sanity checks draw."""
    run, described = evaluate.PROTOCOLS[protocol], {"preprocessing": PREPROCESSING, "labels": LABELS}
    # Pointing needs images that the model gets right.
    (vit, params), dataset = (demo, DigitDataset(12)) if protocol == "pointing" else (small, DigitDataset(2))
    options = {"method": "raw_attention", "batch_size": 2}
    expected = run(vit, params, dataset, tmp_path / "vit", **options)
    model = Wrapped(vit)
    found = run(model, params, dataset, tmp_path / "any", **options, **described)
    assert found.settings["model"] != expected.settings["model"]
    shared = [name for name in expected.figures if "correlation after" not in name]
    assert {name: found.figures[name] for name in shared} == {name: expected.figures[name] for name in shared}
    if protocol == "sanity":
        assert [name for name in found.figures if "after" in name] == ["correlation after all parameters"]
        assert found.figures["correlation after all parameters"].value < 0.9
    again = run(Wrapped(lrp_jax.ViT(vit.config)), params, dataset, tmp_path / "any", **options, **described)
    assert again == found  # the same model, made anew
    evaluate.draw_maps(Wrapped(small[0]), small[1], DigitDataset(1), tmp_path / "any.png", **described)
    evaluate.draw_maps(*small, DigitDataset(1), tmp_path / "vit.png")
    assert (tmp_path / "any.png").read_bytes() == (tmp_path / "vit.png").read_bytes()


def test_what_says_nothing_of_a_model_is_asked_for(small, tmp_path):
    model, run = Wrapped(small[0]), partial(evaluate.perturbation, dataset=DigitDataset(1), folder=tmp_path)
    for given, message in (
        ({}, "preprocessing must be Preprocessing, for a model without a ViTConfig; got None"),
        ({"preprocessing": PREPROCESSING}, "labels must be Labels, for a model without a ViTConfig; got None"),
        ({"preprocessing": PREPROCESSING, "labels": lrp_jax.Labels()}, "labels are of 1000 classes, the model has 10"),
        ({"preprocessing": LABELS, "labels": LABELS}, "preprocessing must be Preprocessing"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model, small[1], **given)
    with pytest.raises(ValueError, match="perturbation takes the options explained; got 'seed'"):
        run(*small, seed=1)


def test_a_protocol_of_ones_own(small, tmp_path):
    register = evaluate.register
    protocol = register(
        evaluate.Protocol(
            name="brightness",
            summary="how bright pictures are",
            about="The mean pixel.",
            needs=(),
            measure=lambda study: (
                lambda images, labels, masks: {"mean": images.mean(axis=(1, 2, 3)), "clean": labels > 0}
            ),
            figures=lambda study: evaluate.Figures(
                ["brightness"], lambda record: [record["mean"] * study.options["times"]], lambda means: means
            ),
            options={"times": evaluate.Option(1, "factor")},
        )
    )
    try:
        summary = protocol(*small, DigitDataset(3), tmp_path, times=2)
        expected = 2 * lrp_jax.datasets.digit_scenes(3, seed=1).images.mean()
        assert summary.figures["brightness"].value == pytest.approx(expected, rel=1e-5)
        with pytest.raises(ValueError, match="brightness has no curves"):
            evaluate.draw_curves(summary, tmp_path / "curves.png")
    finally:
        del evaluate.PROTOCOLS["brightness"]


class TestDifference:
    """Of two methods, over the same images."""

    @staticmethod
    def runs(folder, n=12, **options):
        model, params = lrp_jax.load("demo")
        return [
            evaluate.segmentation(model, params, DigitDataset(n), folder / method, method=method, batch_size=4)
            for method in ("generic_attention", "raw_attention")
        ]

    def test_it_is_that_of_the_figures(self, tmp_path):
        first, second = self.runs(tmp_path)
        found = evaluate.difference(first, second)
        for name, figure in found.items():
            assert figure.value == pytest.approx(first.figures[name].value - second.figures[name].value)
            assert figure.low <= figure.value <= figure.high
        assert found["share on target"].low > 0
        assert all(f == evaluate.Figure(0, 0, 0) for f in evaluate.difference(first, first).values())
        pair = (first.figures["mAP"], second.figures["mAP"])
        assert found["mAP"].high - found["mAP"].low < sum(f.high - f.low for f in pair)

    def test_other_images_and_protocols(self, tmp_path):
        first, _ = self.runs(tmp_path / "some")
        model, params = lrp_jax.load("demo")
        few = evaluate.segmentation(
            model, params, DigitDataset(4), tmp_path / "few", method="raw_attention", batch_size=4
        )
        assert evaluate.difference(few, first)["mIoU"].value != 0
        other = evaluate.perturbation(
            model, params, DigitDataset(4), tmp_path / "p", method="raw_attention", batch_size=4
        )
        with pytest.raises(ValueError, match="one protocol, got 'segmentation' and 'perturbation'"):
            evaluate.difference(first, other)
        with pytest.raises(ValueError, match="one dataset"):
            evaluate.difference(
                first,
                evaluate.segmentation(
                    model, params, DigitDataset(4, seed=9), tmp_path / "s", method="raw_attention", batch_size=4
                ),
            )
