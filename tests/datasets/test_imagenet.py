"""ImageNet as it is published."""

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from helpers import write_gtsegs
from PIL import Image

import lrp_jax
from lrp_jax.datasets import ImageNetFolder, ImageNetSegmentation, MaskFolder


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
