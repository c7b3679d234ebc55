"""Pointing: maps on the image of the class that is asked, of several in one picture."""

import dataclasses
import json
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import drawn, lines
from PIL import Image

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.datasets import Composites, DigitDataset, ImageNetFolder, MaskFolder, Sample

RUN = {"method": "input_x_gradient", "batch_size": 4}


@dataclasses.dataclass(frozen=True)
class Colours:
    """An image of class c is 1 in channel c and ``leak`` in the next one; those in ``wrong`` have another label."""

    classes: tuple[int, ...]
    leak: float = 0.5
    wrong: tuple[int, ...] = ()
    channels: int = 4
    name: ClassVar[str] = "colours"
    labels_per_image: ClassVar[int] = 1
    masks_of_labels: ClassVar[bool] = False

    def __len__(self):
        return len(self.classes)

    def key(self, i):
        return f"colour {i}"

    def sample(self, i):
        image = np.zeros((8, 8, self.channels), np.float32)
        image[..., self.classes[i]] = 1
        image[..., (self.classes[i] + 1) % self.channels] = self.leak
        label = (self.classes[i] + (i in self.wrong)) % self.channels
        return Sample(image, np.array([label]), None)


def colour_model(channels=4, axis=3):
    """A logit is the sum of its channel, so that gradient x input is the image's channel of the class; traced."""
    params = jnp.eye(channels, dtype=jnp.float32)
    images = np.ones((1, *np.insert([8, 8], axis - 1, channels)), np.float32)
    others = tuple({1, 2, 3} - {axis})
    model = lrp_jax.trace(lambda params, images: images.sum(axis=others) @ params, params, images)
    told = {
        "preprocessing": lrp_jax.Preprocessing(image_size=8, channels=channels, mean=(0.0,), std=(1.0,)),
        "labels": lrp_jax.Labels(num_classes=channels),
    }
    return (model, params), told


def values(summary):
    return {name: figure.value for name, figure in summary.figures.items()}


@pytest.mark.parametrize("axis", [1, 3])
def test_four_cells_by_hand(tmp_path, axis):
    """A map has 1 in each pixel of its cell and 1/2 in those of the class before: 2 / 3, and 1 / 3 for three others."""
    model, told = colour_model(axis=axis)
    dataset = Colours((0, 1, 2, 3) * 3, wrong=(1, 6))
    summary = evaluate.pointing(*model, dataset, tmp_path, **RUN, **told)
    assert summary.images == 2  # there are two right ones of the classes 1 and 2
    assert values(summary) == pytest.approx(
        {
            "share asked": 200 / 3,
            "share other": 100 / 9,
            "pointing accuracy": 100,
            "chance": 25,
            "clean accuracy": 100,
        }
    )
    for line in lines(tmp_path):
        assert sorted(line["labels"]) == [0, 1, 2, 3]
    used = [key for line in lines(tmp_path) for key in line["image"].split(" + ")]
    assert len(set(used)) == 8
    assert not {"colour 1", "colour 6"} & set(used)


def test_two_cells_by_hand(tmp_path):
    """Of classes 0 and 1: all of the map of 0 lies on its cell; a third of that of 1 lies on the cell of 0."""
    model, told = colour_model()
    summary = evaluate.pointing(*model, Colours((0, 0, 1, 1)), tmp_path, cells=2, **RUN, **told)
    assert summary.images == 2
    for line in lines(tmp_path):
        by_class = dict(zip(line["labels"], zip(line["asked"], line["other"], strict=True), strict=True))
        assert by_class[0] == pytest.approx((1, 1 / 3))
        assert by_class[1] == pytest.approx((2 / 3, 0))
    assert values(summary)["share asked"] == pytest.approx(500 / 6)
    assert values(summary)["share other"] == pytest.approx(100 / 6)


def test_the_largest_value_may_lie_elsewhere(tmp_path):
    """The image of class 0 has more of class 1 than that of class 1: of its map 0.5 / 1.4 lies on its own cell."""
    model, told = colour_model()

    class Dim(Colours):
        def sample(self, i):
            sample = super().sample(i)
            return sample._replace(image=sample.image * 0.5) if self.classes[i] == 1 else sample

    summary = evaluate.pointing(*model, Dim((0, 1), leak=0.9), tmp_path, cells=2, **RUN, **told)
    assert values(summary)["pointing accuracy"] == pytest.approx(50)
    assert values(summary)["share asked"] == pytest.approx(50 * (1 + 0.5 / 1.4))


def test_maps_of_zeros_count_as_chance(tmp_path):
    model, told = colour_model()

    class Black(Colours):
        def sample(self, i):
            return super().sample(i)._replace(image=np.zeros((8, 8, 4), np.float32))

    found = values(evaluate.pointing(*model, Black((0, 1, 2, 3)), tmp_path, **RUN, **told))
    assert [found[name] for name in ("share asked", "share other", "pointing accuracy")] == pytest.approx([25] * 3)


def test_a_method_that_is_not_class_specific_is_at_chance(demo, tmp_path):
    run = {"batch_size": 4, "seed": 3}
    dataset = DigitDataset(24)
    for cells in (2, 4):
        agnostic = evaluate.pointing(*demo, dataset, tmp_path / f"{cells}", method="raw_attention", cells=cells, **run)
        chance = pytest.approx(100 / cells, abs=1e-3)
        found = values(agnostic)
        assert (found["share asked"], found["share other"], found["pointing accuracy"]) == (chance, chance, chance)
    specific = values(evaluate.pointing(*demo, dataset, tmp_path / "specific", method="saliency", **run))
    assert specific["share asked"] > 27 > 24 > specific["share other"]
    assert specific["share asked"] + 3 * specific["share other"] == pytest.approx(100, abs=1e-3)


def test_the_shares_are_those_of_the_pictures(demo, tmp_path):
    """A plain loop over the composites and their labels; each scene has two, which are asked on one cell."""
    dataset = DigitDataset(24)
    summary = evaluate.pointing(*demo, dataset, tmp_path, method="saliency", batch_size=4)
    composites = evaluate.pointing.measured(dataset, tmp_path)
    assert (len(composites), composites.labels_per_image) == (summary.images, 8)
    asked, other = [], []
    for i in range(len(composites)):
        image, labels, masks = composites.sample(i)
        assert len(set(labels.tolist())) == 8
        assert masks.sum(axis=0).tolist() == np.full((64, 64), 2).tolist()
        maps = np.maximum(lrp_jax.explain(*demo, image[None], labels[None], method="saliency").relevance[0], 0)
        shares = np.array([[m[mask].sum() / m.sum() for mask in masks] for m in maps])
        for k in range(8):
            asked.append(shares[k, k])
            other += [shares[j, k] for j in range(8) if j // 2 != k // 2]
    assert values(summary)["share asked"] == pytest.approx(100 * np.mean(asked), rel=1e-4)
    assert values(summary)["share other"] == pytest.approx(100 * np.mean(other), rel=1e-4)


def test_an_odd_grid_of_patches_is_divided(tmp_path):
    config = lrp_jax.ViTConfig(image_size=12, patch_size=4, channels=4, width=8, depth=1, num_heads=2, mlp_dim=8)
    model = lrp_jax.ViT(dataclasses.replace(config, num_classes=4))
    params = drawn(model)

    class Guessed(Colours):
        def sample(self, i):
            image = np.random.default_rng(i).normal(size=(12, 12, 4)).astype(np.float32) * 3
            label = int(lrp_jax.explain(model, params, image[None], method="raw_attention").targets[0, 0])
            return Sample(image, np.array([label]), None)

    dataset = Guessed(tuple(range(16)))
    summary = evaluate.pointing(model, params, dataset, tmp_path, method="raw_attention", cells=2, batch_size=4)
    composites = evaluate.pointing.measured(dataset, tmp_path)
    image, labels, _ = composites.sample(0)
    e = lrp_jax.explain(model, params, image[None], labels[None], method="raw_attention")
    rows = np.asarray(e.relevance[0, 0]).sum(axis=1)  # 3, the border halves the second
    upper = (rows[0] + rows[1] / 2) / rows.sum()
    assert lines(tmp_path)[0]["asked"] == pytest.approx([upper, 1 - upper], rel=1e-5)
    assert values(summary)["share asked"] == pytest.approx(50)


def test_the_choice_depends_on_the_seed_alone(tmp_path):
    model, told = colour_model()
    dataset = Colours((0, 1, 2, 3) * 8)
    keys = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        evaluate.pointing(*model, dataset, tmp_path / name, seed=seed, **RUN, **told)
        keys.append([line["image"] for line in lines(tmp_path / name)])
    assert keys[0] == keys[1] != keys[2]


def test_an_interrupted_run_goes_on(tmp_path):
    model, told = colour_model()
    dataset = Colours((0, 1, 2, 3) * 5)
    run = {"method": "input_x_gradient", "batch_size": 2, **told}
    expected = evaluate.pointing(*model, dataset, tmp_path / "whole", **run)
    broken, seen = tmp_path / "broken", []

    def interrupt(at):
        def progress(done, total):
            seen.append((done, total))
            if (done, total) == at:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        evaluate.pointing(*model, dataset, broken, **run, progress=interrupt((8, 20)))
    assert not broken.exists()
    with pytest.raises(KeyboardInterrupt):
        evaluate.pointing(*model, dataset, broken, **run, progress=interrupt((4, 5)))
    assert len(lines(broken)) == 4
    seen.clear()
    assert evaluate.pointing(*model, dataset, broken, **run, progress=interrupt(None)) == expected
    assert seen == [(4, 5), (5, 5)]  # nothing is classified again
    for name in ("chosen.json", "results.jsonl", "summary.json", "settings.json"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # Another run is refused before anything is classified.
    for other, message in (({"cells": 2}, "cells 4, not 2"), ({"seed": 1}, "seed 0, not 1")):
        seen.clear()
        with pytest.raises(ValueError, match=rf"holds a run of other settings \({message}\)"):
            evaluate.pointing(*model, dataset, broken, **run, **other, progress=interrupt(None))
        assert not seen
    with pytest.raises(ValueError, match="images 20, not 16"):
        evaluate.pointing(*model, Colours((0, 1, 2, 3) * 4), broken, **run)
    for damaged in ("{", "[1]", "{}"):
        (broken / "chosen.json").write_text(damaged)
        with pytest.raises(ValueError, match="holds damaged results"):
            evaluate.pointing(*model, dataset, broken, **run)
    (broken / "chosen.json").unlink()
    with pytest.raises(ValueError, match="holds damaged results"):
        evaluate.pointing(*model, dataset, broken, **run)


def test_what_cannot_be_is_refused(single, masked, tmp_path):
    model, told = colour_model()
    seen = []
    run = {**RUN, **told, "progress": lambda *done: seen.append(done)}
    for dataset, own, message in (
        (Colours((0, 1, 2, 3)), {"cells": 3}, "cells must be one of 2, 4; got 3"),
        (Colours((0, 1, 2, 3)), {"cells": 2.0}, r"cells must be one of 2, 4; got 2\.0"),
        (Colours((0, 1, 2, 3)), {"seed": -1}, "seed must be an integer of at least 0"),
        (DigitDataset(4), {}, "4 images of digit scenes.* are of 8 different classes, the model has 4"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.pointing(*model, dataset, tmp_path / "run", **run, **own)
    assert not seen
    with pytest.raises(
        ValueError,
        match="pointing needs 4 images of different classes that the model gets right; of the 5 images of colours, 4 "
        "are right, of 3 classes, and 0 cannot be read",
    ):
        evaluate.pointing(*model, Colours((0, 1, 2, 3, 0), wrong=(1,)), tmp_path / "run", **run)
    with pytest.raises(ValueError, match="pointing needs labels here"):
        evaluate.pointing(*single, MaskFolder(masked, single[0].config), tmp_path / "run")
    with pytest.raises(ValueError, match="different classes, the model has one"):
        evaluate.pointing(lrp_jax.ViT(lrp_jax.ViTConfig(num_classes=1)), {}, DigitDataset(2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_pictures(tmp_path):
    """What cannot be read is left aside and named; what is wrong is in no picture."""
    model, told = colour_model(channels=3)
    told["labels"] = lrp_jax.Labels(num_classes=3, class_names=("red", "green", "blue"))
    for i, name in enumerate(("red", "green", "blue")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for j in range(3):
            pixels = np.zeros((20, 30, 3), np.uint8)
            pixels[..., i] = 255 if j else 0
            pixels[..., (i + 1) % 3] = 0 if j else 255  # the first picture of each shows the next class
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{j}.png")
    (tmp_path / "set" / "red" / "2.png").write_bytes(b"no picture")
    dataset = ImageNetFolder(tmp_path / "set", told["preprocessing"], told["labels"])
    summary = evaluate.pointing(*model, dataset, tmp_path / "run", cells=2, **RUN, **told)
    assert summary.images == 2
    assert list(summary.skipped) == ["red/2.png"]
    assert json.loads((tmp_path / "run" / "chosen.json").read_text())["skipped"] == dict(summary.skipped)
    assert values(summary)["share asked"] == pytest.approx(100)
    assert not any("0.png" in line["image"] for line in lines(tmp_path / "run"))
    composites = evaluate.pointing.measured(dataset, tmp_path / "run")
    assert isinstance(composites, Composites)
    evaluate.draw_maps(*model, composites, tmp_path / "maps.png", method="input_x_gradient", **told)
    again = evaluate.pointing(*model, dataset, tmp_path / "run", cells=2, **RUN, **told)
    assert again == summary
