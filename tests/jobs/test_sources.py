"""Where the images of a job come from."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

import lrp_jax
from lrp_jax.jobs import ArrayFile, Pictures, TarShards, image_of, open_source

PREPARED = lrp_jax.Preprocessing(image_size=8, mean=(0.5,), std=(0.25,))


def picture(seed, size=(10, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def add(file, name, data, kind=tarfile.REGTYPE):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = len(data), kind
    file.addfile(entry, io.BytesIO(data))


def png(seed):
    out = io.BytesIO()
    picture(seed).save(out, "png")
    return out.getvalue()


def test_a_folder_and_a_list(tmp_path):
    for name in ("b.png", "a/é.png", "a/c/d.png", ".hidden.png"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(len(name)).save(tmp_path / "x" / name)
    (tmp_path / "x" / "notes.txt").write_text("none")
    source = open_source([tmp_path / "x"])
    assert source.names == ["a/c/d.png", "a/é.png", "b.png"]
    np.testing.assert_array_equal(source.read(2), picture(5))
    (tmp_path / "list.txt").write_text("x/b.png\n\nx/a/c/d.png\r\nmissing.png\n")
    listed = open_source([tmp_path / "list.txt"])
    assert listed.names == ["x/b.png", "x/a/c/d.png", "missing.png"]
    np.testing.assert_array_equal(listed.read(1), picture(9))
    with pytest.raises(FileNotFoundError):
        listed.read(2)
    several = open_source([tmp_path / "x" / "b.png", tmp_path / "x" / "a" / "é.png"])
    assert isinstance(several, Pictures)
    np.testing.assert_array_equal(several.read(0), picture(5))


@pytest.mark.parametrize("shape", [(5, 10, 12, 3), (5, 10, 12, 1), (5, 10, 12)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_bytes_in_an_array_are_pictures(tmp_path, shape, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"x.{suffix}"
    np.save(path, pixels) if suffix == "npy" else np.savez(path, images=pixels, labels=np.arange(5))
    source = open_source([path])
    assert source.names == ["0", "1", "2", "3", "4"]
    for i in (3, 0):
        np.testing.assert_array_equal(np.asarray(source.read(i)).reshape(shape[1:]), pixels[i])
    image = image_of(source.read(4), PREPARED, np.dtype("float32"))
    expected = lrp_jax.preprocess(Image.fromarray(pixels[4].squeeze()), PREPARED)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_floating_point_images_are_taken_as_they_are(tmp_path, order, dtype):
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(images, order=order))
    source = ArrayFile(tmp_path / "x.npy")
    for i in range(3):
        found = image_of(source.read(i), PREPARED, np.dtype("float64"))
        assert found.dtype == np.dtype("float64")
        np.testing.assert_array_equal(found, images[i])
    with pytest.raises(ValueError, match=r"expected an image of the shape \(8, 8, 3\), got \(8, 8, 2\)"):
        image_of(images[0, ..., :2], PREPARED, np.dtype("float32"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        image_of(np.full((8, 8, 3), np.nan), PREPARED, np.dtype("float32"))


def test_tar_shards(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            add(file, "dir", b"", tarfile.DIRTYPE)
            for i in range(3):
                add(file, f"dir/{i}.png", png(3 * shard + i))
                add(file, f"dir/{i}.cls", b"7")
            add(file, "dir/" + "long" * 60 + ".JPG", b"no picture")
    source = open_source([tmp_path])
    assert isinstance(source, TarShards)
    assert source.names[:5] == [
        *("0.tar/dir/0", "0.tar/dir/1", "0.tar/dir/2"),
        *("0.tar/dir/" + "long" * 60, "1.tar/dir/0"),
    ]
    for place, seed in ((0, 0), (2, 2), (5, 4)):
        np.testing.assert_array_equal(source.read(place), picture(seed))
    with pytest.raises(ValueError, match=r"^0.tar/dir/long.* is not a picture"):
        source.read(3)
    assert open_source([tmp_path / "1.tar", tmp_path / "0.tar"]).names[0] == "1.tar/dir/0"


def test_tar_shards_of_equal_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "0.tar", "w") as file:
            add(file, "0.png", png(ord(folder)))
            add(file, "._0.png", b"left behind by macOS")
            add(file, "__MACOSX/0.png", b"likewise")
    source = open_source([tmp_path / "a" / "0.tar", tmp_path / "b" / "0.tar"])
    assert source.names == ["a/0.tar/0", "b/0.tar/0"]


@pytest.fixture
def shard(tmp_path):
    """Writes a tar file of files that hold their own names' pictures, and opens it."""

    def opened(*names, **options):
        with tarfile.open(tmp_path / "x.tar", "w") as file:
            for i, name in enumerate(names):
                add(file, name, png(i))
        return open_source([tmp_path / "x.tar"], **options)

    return opened


SAMPLE = ("a/0.v.jpg", "0.jpg", "0.seg.png", "0.depth.png", "0.cls", "1.seg.png", "1.JPG", "2.seg.png", "LICENSE")


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (None, {"a/0": 0, "0": 1, "1": 6, "2": None}),  # a mask alone is no picture where it stands beside one
        ("jpg", {"a/0": None, "0": 1, "1": 6, "2": None}),
        (".seg.PNG", {"a/0": None, "0": 2, "1": 5, "2": 7}),
        ("*", {name: i for i, name in enumerate(SAMPLE) if name.endswith(("g", "G"))}),
    ],
)
def test_what_lies_beside_the_picture_of_a_sample_is_left_aside(shard, member, expected):
    source = shard(*SAMPLE, member=member)
    assert source.names == [f"x.tar/{key}" for key in expected]
    for i, seed in enumerate(expected.values()):
        if seed is None:
            assert source.size(i) == -1
            with pytest.raises(ValueError, match=f"^{source.names[i]} has no picture"):
                source.read(i)
        else:
            np.testing.assert_array_equal(source.read(i), picture(seed))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.jpg", "0.png"], r"sample 0 has several pictures, 0.jpg, 0.png: .*--member"),
        (["0.left.png", "0.right.png"], r"several pictures, 0.left.png, 0.right.png"),
        (["0.jpg", "1.jpg", "0.jpg"], r"two files for one: 0.jpg, 0.jpg"),
        (["a.cls"], "holds no pictures"),
    ],
)
def test_samples_of_several_pictures_are_refused(shard, names, message):
    with pytest.raises(ValueError, match=message):
        shard(*names)


def test_a_member_that_no_sample_has_is_refused(shard, tmp_path):
    with pytest.raises(ValueError, match=r"no sample has a picture 'webp'; the first, x.tar/0"):
        shard("0.jpg", member="webp")
    (tmp_path / "0.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="member chooses of the samples of tar shards"):
        open_source([tmp_path / "0.png"], member="png")


def test_a_damaged_tar_is_refused(tmp_path):
    """``tarfile`` takes a damaged header after the first for the end."""
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for i in range(3):
            add(file, f"{i}.png", b"x" * 100)
    data = bytearray((tmp_path / "x.tar").read_bytes())
    cut, joined = data[:2100], data + data
    data[1024:1400] = b"?" * 376
    for i, bad in enumerate((data, cut, joined)):
        (tmp_path / f"{i}.tar").write_bytes(bad)
        with pytest.raises(ValueError, match=r"is damaged|several tar files"):
            open_source([tmp_path / f"{i}.tar"])


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source([tmp_path])
    with pytest.raises(ValueError, match="is a pipe, a socket or a device"):
        source.read(0)


def test_files_that_change_while_a_job_runs(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), np.float32))
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        add(file, "a.png", png(0))
    array, shards = ArrayFile(tmp_path / "x.npy"), TarShards([tmp_path / "x.tar"])
    for path in (tmp_path / "x.npy", tmp_path / "x.tar"):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="is cut short"):
        array.read(3)
    with pytest.raises(ValueError, match="is cut short"):
        shards.read(0)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError):
        array.read(0)


def test_bad_input(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(5))
    np.save(tmp_path / "four.npy", np.zeros((2, 8, 8, 4), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8, 3), np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY no")
    (tmp_path / "damaged.npz").write_bytes(b"PK no")
    np.savez(tmp_path / "whole.npz", images=np.zeros((20, 8, 8, 3), np.uint8))
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "half.npz").write_bytes(whole[:900])
    whole[2000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(whole)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("none")
    (tmp_path / "damaged.tar").write_bytes(b"no tar file at all" * 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    for path, mode in (("both/a.tar", "w"), ("packed.tar", "w:gz"), ("labels.tar", "w")):
        with tarfile.open(tmp_path / path, mode) as file:
            add(file, "a.cls", b"7")
    picture(0).save(tmp_path / "both" / "a.png")
    for name, message in (
        ("labels.npy", r"must hold pictures, bytes .* got int64 of the shape \(5,\)"),
        ("four.npy", r"got uint8 of the shape \(2, 8, 8, 4\)"),
        ("none.npy", r"shape \(0, 8, 8, 3\)"),
        ("object.npy", "no array of numbers"),
        ("two.npz", "must hold one array, or one named images; got a, b"),
        ("damaged.npy", "a damaged one"),
        ("damaged.npz", "a damaged one"),
        ("half.npz", "a damaged one"),
        ("flipped.npz", "a damaged one"),
        ("empty.txt", "names no pictures"),
        ("notes.md", r"input must be a folder, .* got .*notes.md"),
        ("damaged.tar", "is no tar file, or is damaged or compressed"),
        ("packed.tar", "compressed"),
        ("labels.tar", "holds no pictures"),
        ("empty", "holds no pictures"),
        ("both", "holds pictures as well as tar files"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source([tmp_path / name])
    for name in ("missing.npy", "missing.png", "missing.tar"):
        with pytest.raises(FileNotFoundError):
            open_source([tmp_path / name])
    with pytest.raises(ValueError, match="got nothing"):
        open_source([])
    with pytest.raises(ValueError, match=r"got .*labels.npy"):
        open_source([tmp_path / "labels.npy", tmp_path / "both" / "a.png"])
