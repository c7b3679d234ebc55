"""Pictures made of several images."""

import numpy as np
import pytest

from lrp_jax.datasets import Composites, DigitDataset, Sample, disjoint_groups
from lrp_jax.datasets.composites import _boxes


class Ramps:
    """Image i is i + row / 100, so that one sees which rows of it are where."""

    name, labels_per_image, masks_of_labels = "ramps", 1, False

    def __init__(self, rows, cols):
        self.shape = rows, cols

    def __len__(self):
        return 4

    def key(self, i):
        return f"ramp {i}"

    def sample(self, i):
        image = (
            np.full((*self.shape, 1), i, np.float32) + np.arange(self.shape[0], dtype=np.float32)[:, None, None] / 100
        )
        return Sample(image, np.array([i + 10]), None)


def test_four_images_are_shrunk():
    dataset = Composites(Ramps(8, 12), [[3, 0, 1, 2]])
    assert (len(dataset), dataset.cells, dataset.labels_per_image, dataset.masks_of_labels) == (1, 4, 4, True)
    assert dataset.name == "ramps, 4 in a picture"
    assert dataset.key(0) == "ramp 3 + ramp 0 + ramp 1 + ramp 2"
    image, labels, masks = dataset.sample(0)
    assert image.shape == (8, 12, 1)
    assert image.dtype == np.float32
    assert labels.tolist() == [13, 10, 11, 12]
    for k, (i, box) in enumerate(zip((3, 0, 1, 2), np.ndindex(2, 2), strict=True)):
        expected = np.zeros((8, 12), bool)
        expected[4 * box[0] : 4 * box[0] + 4, 6 * box[1] : 6 * box[1] + 6] = True
        np.testing.assert_array_equal(masks[k], expected)
        inner = image[expected].reshape(4, 6)[1:3]  # rows 2 and 3, 4 and 5, with half of those beside them
        np.testing.assert_allclose(inner, i + np.broadcast_to(np.array([[0.025], [0.045]]), (2, 6)), atol=1e-6)


def test_two_images_are_cut_to_their_middle():
    image, _, masks = Composites(Ramps(8, 8), [[3, 1]]).sample(0)
    np.testing.assert_allclose(image[:, 0, 0], [3.02, 3.03, 3.04, 3.05, 1.02, 1.03, 1.04, 1.05], rtol=1e-6)
    assert masks[0, :4].all()
    assert not masks[0, 4:].any()
    np.testing.assert_array_equal(masks[1], ~masks[0])
    image, _, masks = Composites(Ramps(4, 8), [[3, 1]]).sample(0)  # side by side
    np.testing.assert_allclose(image[0, :, 0], [3, 3, 3, 3, 1, 1, 1, 1])
    assert masks[0, :, :4].all()


@pytest.mark.parametrize("cells", [2, 4])
def test_cells_of_odd_pictures_cover_them(cells):
    covered = np.zeros((7, 9), int)
    for box in _boxes(cells, 7, 9):
        covered[box] += 1
    assert (covered == 1).all()
    image, _, _ = Composites(Ramps(7, 9), [list(range(cells))]).sample(0)
    assert image.shape == (7, 9, 1)


def test_labels_of_an_image_have_its_cell():
    _, labels, masks = Composites(DigitDataset(4), [[0, 1]]).sample(0)
    assert labels.tolist() == [*DigitDataset(4).sample(0).labels, *DigitDataset(4).sample(1).labels]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[2], ~masks[1])


def test_bad_groups_are_refused():
    for groups in ([], [[0, 1, 2]], [[0, 1], [0, 1, 2, 3]]):
        with pytest.raises(ValueError, match="groups must all hold 2 or all hold 4 images"):
            Composites(DigitDataset(4), groups)


def test_groups_have_different_classes():
    rng = np.random.default_rng(0)
    labels = [[int(c)] for c in rng.choice(5, 200, p=[0.35, 0.2, 0.2, 0.15, 0.1])]
    for size in (2, 4):
        groups = disjoint_groups(labels, size, seed=1)
        used = [i for group in groups for i in group]
        assert len(set(used)) == len(used)
        assert all(len({labels[i][0] for i in group}) == size for group in groups)
        counts = np.bincount(np.ravel(labels))
        # As many as there can be: G, where classes give each at most G, and G groups are filled.
        most = max(g for g in range(201) if np.minimum(counts, g).sum() >= g * size)
        assert len(groups) == most
        assert groups == disjoint_groups(labels, size, seed=1)
        assert groups != disjoint_groups(labels, size, seed=2)
    assert len({tuple(labels[i][0] for i in group) for group in groups}) > 5  # not always one order


def test_groups_of_several_labels_are_disjoint():
    labels = [[0, 1], [1, 2], [1, 0], [2, 3], [4, 5]]
    groups = disjoint_groups(labels, 2, seed=0)
    assert len(groups) == 2
    for a, b in groups:
        assert not set(labels[a]) & set(labels[b])
    assert disjoint_groups(labels[:3], 2, seed=0) == []
    assert disjoint_groups([[0], [0]], 2, seed=0) == []
    assert disjoint_groups([], 2, seed=0) == []
