"""Jobs: maps equal those of explain, whatever interrupts them."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from helpers import relative_error, small_images, small_model
from PIL import Image

import lrp_jax
from lrp_jax.jobs import Pictures, Store, StoreError, attribute, open_source
from lrp_jax.jobs.store import Layout

N = 13


@pytest.fixture
def place(tmp_path):
    """Images in float64, as an array; and pictures."""
    np.save(tmp_path / "x.npy", np.asarray(small_images(N)))
    rng = np.random.default_rng(0)
    for i in range(N):
        (tmp_path / "pictures" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / str(i % 2) / f"{i:02d}.png")
    return tmp_path


def job(place, out="maps.zarr", *, source="x.npy", **settings):
    """A job on the small model in float64."""
    settings = {"dtype": "float64", "batch_size": 4, "shard_size": 2} | settings
    return attribute(*small_model(), open_source([place / source]), place / out, **settings)


def arrays(path):
    """What any zarr library reads."""
    return {name: array[:] for name, array in zarr.open_group(path, mode="r").arrays()}


def assert_same(path, other):
    found, expected = arrays(path), arrays(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 3}, {"targets": [4, 0]}, {"targets": np.arange(2 * N).reshape(N, 2) % 5}, {"method": "full_lrp"}],
    ids=lambda settings: "-".join(settings),
)
def test_maps_are_those_of_explain(place, settings):
    report = job(place, **settings)
    assert (report.progress.done, report.progress.total, report.remaining, report.failures) == (N, N, 0, [])
    found = arrays(place / "maps.zarr")
    model, params = small_model()
    images = small_images(N)
    targets = settings.get("targets")
    if "top_k" in settings:
        targets = np.argsort(-found["logits"], axis=1)[:, :3]
    elif targets is not None:
        targets = np.broadcast_to(targets, (N, 2)).astype(np.int32)
    e = lrp_jax.explain(model, params, images, targets, method=settings.get("method", "transformer_attribution"))
    assert relative_error(found["relevance"], e.relevance) < 1e-10
    assert relative_error(found["logits"], e.logits) < 1e-10
    np.testing.assert_array_equal(found["targets"], e.targets)
    np.testing.assert_array_equal(found["status"], 1)
    assert [bytes(name).rstrip(b"\0").decode() for name in found["names"]] == [str(i) for i in range(N)]
    group = zarr.open_group(place / "maps.zarr", mode="r")
    about = group.attrs["lrp_jax"]
    assert about["settings"]["method"] == settings.get("method", "transformer_attribution")
    assert about["settings"]["lrp_jax"] == lrp_jax.__version__
    assert about["labels"]["num_classes"] == 5
    assert group["relevance"].metadata.dimension_names == ("image", "target", "row", "column")
    assert group["relevance"].shards[0] == 2
    consolidated = zarr.open_consolidated(place / "maps.zarr", mode="r")
    for name, array in zarr.open_group(place / "maps.zarr", mode="r", use_consolidated=False).arrays():
        assert repr(consolidated[name].metadata) == repr(array.metadata)
    assert len(list(consolidated.arrays())) == len(list(group.arrays()))


@pytest.mark.parametrize("method", ["transformer_attribution", "full_lrp"])
def test_sizes_and_dtypes(place, method):
    model, params = small_model(jnp.float32)
    source = open_source([place / "pictures"])
    images = np.stack([lrp_jax.preprocess(source.read(i), model.config) for i in range(N)])
    expected = lrp_jax.heatmaps(lrp_jax.explain(model, params, images, method=method).relevance, (16, 16))
    for dtype, tolerance in (("float32", 1e-6), ("float16", 5e-4)):
        attribute(model, params, source, place / dtype, dtype=dtype, upsample=True, method=method)
        found = arrays(place / dtype)
        assert found["relevance"].dtype == dtype
        maps = found["relevance"].astype(np.float32)
        if dtype == "float16":
            np.testing.assert_allclose(np.abs(maps).max((-2, -1)), 1, rtol=1e-3)
            maps = maps * found["scale"][..., None, None]
        errors = np.abs(maps - expected).max((-2, -1)) / np.abs(expected).max((-2, -1))
        assert errors.max() < tolerance  # of each map's largest value


@pytest.mark.parametrize("done", [0, 4, 8])
def test_an_interrupted_job_goes_on(place, done):
    def interrupt(state):
        if state.done >= done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(place, progress=interrupt)
    there = int((Store(place / "maps.zarr").read("status") > 0).sum())
    assert there <= done
    report = job(place, batch_size=3)  # neither batches nor shards need be the same
    assert report.progress.explained == N - there
    assert report.progress.done == N
    job(place, "undisturbed.zarr")
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")
    assert job(place).progress.explained == 0


@pytest.mark.parametrize("step", ["write", "mark"])
@pytest.mark.parametrize("nth", [0, 3])
def test_a_store_that_cannot_be_written(place, monkeypatch, step, nth):
    """Between a shard's data and its mark as well."""
    with monkeypatch.context() as patch:
        whole, calls = getattr(Store, step), []

        def fails(self, *arguments):
            calls.append(arguments)
            if len(calls) > nth:
                raise StoreError("no space left")
            whole(self, *arguments)

        patch.setattr(Store, step, fails)
        with pytest.raises(StoreError, match="no space left"):
            job(place)
    assert int((Store(place / "maps.zarr").read("status") > 0).sum()) == 2 * nth
    job(place)
    job(place, "undisturbed.zarr")
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")


def test_images_that_cannot_be_read(place):
    """Are named, without a map, and tried again."""
    job(place, "undisturbed.zarr", source="pictures")
    corrupt, vanished = place / "pictures" / "0" / "02.png", place / "pictures" / "1" / "05.png"
    whole = corrupt.read_bytes(), vanished.read_bytes()
    corrupt.write_bytes(whole[0][:90])

    def vanish(state):
        vanished.unlink(missing_ok=True)

    report = job(place, source="pictures", progress=vanish)
    (first, damaged), (second, missing) = report.failures
    assert (first, second) == ("0/02.png", "1/05.png")
    assert "damaged" in damaged
    assert "No such file" in missing
    assert report.progress.failed == 2
    assert report.progress.explained == N - 2
    found, names = arrays(place / "maps.zarr"), Store(place / "maps.zarr").names()
    failed = [names.index(name) for name, _ in report.failures]
    assert np.flatnonzero(found["status"] == 2).tolist() == failed
    assert np.isnan(found["relevance"][failed]).all()
    assert (found["targets"][failed] == -1).all()
    assert not np.isnan(np.delete(found["relevance"], failed, 0)).any()
    again = job(place, source="pictures")  # the listing lacks the one that vanished
    assert again.failures == report.failures
    assert again.progress.explained == 0
    corrupt.write_bytes(whole[0])
    assert job(place, source="pictures").failures == [("1/05.png", missing)]
    vanished.write_bytes(whole[1])
    assert not job(place, source="pictures").failures
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")


def test_another_job_in_the_same_place_is_refused(place):
    job(place)
    for changed, message in (
        ({"method": "rise", "options": {"masks": 4}}, r"method 'transformer_attribution', not 'rise'"),
        ({"options": {"start_layer": 1}}, "start_layer"),
        ({"top_k": 2}, "the 1 most probable', not 'the 2 most"),
        ({"upsample": True}, "upsample False, not True"),
        ({"source": "pictures"}, "input 'array', not 'pictures'"),
    ):
        with pytest.raises(ValueError, match=rf"holds maps of other settings \(.*{message}"):
            job(place, **changed)
    model, params = small_model()
    with pytest.raises(ValueError, match="model '"):
        attribute(
            model, {**params, "x": jnp.zeros(1)}, open_source([place / "x.npy"]), place / "maps.zarr", dtype="float64"
        )
    job(place, "pictures.zarr", source="pictures")
    shutil.copy(place / "pictures" / "0" / "02.png", place / "pictures" / "more.png")
    with pytest.raises(ValueError, match=r"1 images of the input are not in it, 0 of its .* first more.png"):
        job(place, "pictures.zarr", source="pictures")
    with pytest.raises(ValueError, match="holds something else"):
        job(place, "pictures")
    with pytest.raises(StoreError, match="is a file"):
        job(place, "x.npy")
    with pytest.raises(ValueError, match="got ''"):
        attribute(*small_model(), open_source([place / "x.npy"]), "", dtype="float64")
    np.save(place / "y.npy", np.asarray(small_images(N))[::-1])
    with pytest.raises(ValueError, match="sample"):
        job(place, source="y.npy")
    picture = place / "pictures" / "0" / "04.png"
    Image.open(picture).resize((9, 9)).save(picture)
    (place / "pictures" / "more.png").unlink()
    with pytest.raises(ValueError, match=r"holds maps of other images: 0/04.png had \d+ bytes"):
        job(place, "pictures.zarr", source="pictures")
    with pytest.raises(ValueError, match="but their order or number is another"):
        attribute(
            *small_model(),
            Pictures(Store(place / "pictures.zarr").names()[::-1], place / "pictures"),
            place / "pictures.zarr",
            dtype="float64",
        )
    rules = dataclasses.replace(lrp_jax.BASELINE, name="stable")
    with pytest.raises(ValueError, match="'stable' names others"):
        job(place, options={"rules": rules})
    (place / "maps.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr.json is damaged"):
        job(place)
    zarr.open_group(place / "other.zarr", mode="w")
    with pytest.raises(ValueError, match="none that this library wrote"):
        job(place, "other.zarr")


def test_one_of_two_jobs_that_begin_at_once_is_refused(place, monkeypatch):
    """Whatever one does between another's look and its beginning; of two alike, both write one store."""
    whole = Store.create

    def late(self, *arguments):
        monkeypatch.setattr(Store, "create", whole)
        job(place, method="raw_attention", process=(0, 2))
        whole(self, *arguments)

    monkeypatch.setattr(Store, "create", late)
    with pytest.raises(ValueError, match="method 'raw_attention', not 'transformer_attribution'"):
        job(place)
    monkeypatch.setattr(Store, "create", late)
    shutil.rmtree(place / "maps.zarr")
    assert job(place, method="raw_attention", shard_size=8).progress.explained == 6
    assert Store(place / "maps.zarr").shard == 2


@pytest.mark.parametrize("step", ["_open", "keep_names"])
def test_a_store_that_is_only_begun(place, monkeypatch, step):
    """By another number of processes, too."""
    with monkeypatch.context() as patch:
        patch.setattr(Store, step, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job(place, source="pictures", shard_size=None, process=(0, 2))
    (place / "pictures" / "0" / ".DS_Store").write_bytes(b"")
    job(place, source="pictures", shard_size=None)
    job(place, "undisturbed.zarr", source="pictures")
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")


def test_what_is_not_finite_has_no_map(place):
    """Neither an image, nor what a model makes of one; and neither is computed again and again."""
    images = np.asarray(small_images(N)).copy()
    images[3, 0, 0, 0], images[7] = np.nan, 1e300
    np.save(place / "x.npy", images)
    model, params = small_model(jnp.float32)
    source = open_source([place / "x.npy"])
    for explained in (N - 2, 0):
        report = attribute(model, params, source, place / "maps.zarr")
        assert report.progress.explained == explained
        assert [name for name, _ in report.failures] == ["3", "7"]
        assert "NaN or infinite in float32" in report.failures[1][1]
    broken = jax.tree.map(lambda p: p * jnp.nan, params)
    for _ in range(2):
        report = attribute(model, broken, source, place / "broken.zarr")
        assert report.progress.explained in (0, N)
        assert len(report.failures) == N
    assert "not finite" in report.failures[0][1]


def test_processes_share_the_work(place):
    """A shard each in turn; none needs another."""
    report = job(place, process=(1, 3))
    assert (report.progress.total, report.remaining) == (4, N - 4)
    assert np.flatnonzero(arrays(place / "maps.zarr")["status"]).tolist() == [2, 3, 8, 9]
    job(place, process=(2, 3))
    assert job(place, process=(0, 1)).progress.explained == N - 8  # whoever is left does the rest
    job(place, "undisturbed.zarr")
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")


def test_bad_arguments(place):
    model, _ = small_model()
    for settings, message in (
        ({"method": "magic"}, "method must be one of"),
        ({"options": {"magic": 1}}, "takes the options"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, float64; got 'int8'"),
        ({"top_k": 6}, "top_k must be 1 to the model's 5 classes, got 6"),
        ({"targets": [5]}, "targets must be class indices 0 to 4, got 5"),
        ({"targets": [0.5]}, "targets must be class indices"),
        ({"targets": np.zeros((3, 1), int)}, rf"or \[{N}, K\] of each image; got int64 of the shape \(3, 1\)"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"top_k": True}, "top_k must be 1 to"),
        ({"top_k": 2, "targets": [1]}, "targets and top_k exclude each other"),
        ({"shard_size": 3}, "shard_size must be a power of two, got 3"),
        ({"process": (2, 2)}, "process must be"),
        ({"labels": lrp_jax.Labels(num_classes=4)}, "labels are of 4 classes, the model has 5"),
    ):
        with pytest.raises(ValueError, match=message):
            job(place, **settings)
        assert not (place / "maps.zarr").exists()
    tokens = lrp_jax.trace(lambda p, x: p[x].mean(1), jnp.ones((7, 5)), jnp.zeros((2, 4), jnp.int32))
    prepared = {"preprocessing": model.config, "labels": model.config}
    with pytest.raises(ValueError, match="jobs explain images"):
        attribute(tokens, jnp.ones((7, 5)), open_source([place / "x.npy"]), place / "maps.zarr", **prepared)


# In a process of its own: devices are simulated, and processes are found and killed.
DEVICES = """
import sys
import jax, numpy as np
from helpers import small_images, small_model
from lrp_jax.jobs import attribute, open_source
from lrp_jax.jobs.work import Work
from jax.sharding import Mesh, NamedSharding, PartitionSpec
assert len(jax.local_devices()) == 8
model, params = small_model()
source = open_source([sys.argv[1] + "/x.npy"])
split = NamedSharding(Mesh(np.asarray(jax.devices()), ("images",)), PartitionSpec("images"))
images = jax.device_put(small_images(16), split)
for method in sys.argv[2:]:
    attribute(model, params, source, f"{sys.argv[1]}/{method}", method=method, dtype="float64", batch_size=2, top_k=2)
    work = Work(model, params, source, model.config, model.config, method, {}, 2, "float64", False)
    text = jax.jit(work.program).lower(params, images, None).compile().as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in text, (method, word)
"""
DIFFERENT = ("transformer_attribution", "full_lrp", "attention_rollout", "smoothgrad", "occlusion")

KILLED = """
import os, signal, sys
from lrp_jax import cli
from lrp_jax.jobs import Store
step, nth = sys.argv[1], int(sys.argv[2])
whole, calls = getattr(Store, step), []
def dies(self, *arguments):
    calls.append(arguments)
    if len(calls) > nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *arguments)
setattr(Store, step, dies)
sys.exit(cli.main(sys.argv[3:]))
"""


def start(code, *words, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    tests = str(Path(__file__).parent.parent)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": tests}
    for option in ("enable_x64", "disable_most_optimizations", "compilation_cache_dir"):
        environment[f"JAX_{option.upper()}"] = str(jax.config.values[f"jax_{option}"])
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_eight_devices_give_the_same_maps_without_talking(place):
    process = start(DEVICES, place, *DIFFERENT, devices=8)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    model, params = small_model()
    for method in DIFFERENT:
        found = arrays(place / method)
        expected = lrp_jax.explain(model, params, small_images(N), found["targets"], method=method)
        assert relative_error(found["relevance"], expected.relevance) < 1e-10, method
        np.testing.assert_array_equal(found["targets"], np.argsort(-np.asarray(expected.logits), axis=1)[:, :2])


@pytest.mark.slow
def test_a_killed_process_takes_no_other_with_it(place, free_port):
    """One of two dies between a shard's data and its mark; the other ends its share, and one of them does the rest."""
    lrp_jax.save(place / "m.safetensors", *small_model(jnp.float32))
    settings = ["--model", place / "m.safetensors", "--dtype", "float64", "--shard-size", 2]
    command = ["attribute", place / "pictures", "--out", place / "maps.zarr", *settings]
    both = ["--distributed", "--coordinator", f"localhost:{free_port}", "--process-count", 2, "--process-index"]
    processes = [start(KILLED, "mark", nth, *command, *both, i) for i, nth in enumerate((1, 99))]
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for *_, code in ended] == [-9, 0], ended
    assert "6 of 6 images are done" in ended[1][0]
    process = start(KILLED, "mark", 99, *command)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "5 images explained" in out
    model, params = lrp_jax.load(place / "m.safetensors")
    attribute(
        *(model, params, open_source([place / "pictures"]), place / "undisturbed.zarr"), dtype="float64", shard_size=2
    )
    assert_same(place / "maps.zarr", place / "undisturbed.zarr")


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.astype(">f4"),
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
)
def test_a_store_keeps_values_however_they_lie_in_memory(tmp_path, layout):
    values = layout(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    store = Store(tmp_path / "maps.zarr")
    store.create({}, {}, ["a", "b"], {"relevance": Layout("float32", (3, 4), ("target", "class"))}, shard=2)
    store.write(0, {"relevance": values}, {})
    np.testing.assert_array_equal(Store(tmp_path / "maps.zarr").read("relevance"), values)
