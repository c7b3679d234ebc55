"""Float64 everywhere, and no silent promotion of dtypes or ranks."""

import gc
import json
import os
import resource
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest
from helpers import GOLDEN, drawn
from PIL import Image

import lrp_jax
from lrp_jax.labels import imagenet_classes

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compilation is nearly all that the tests take: without optimisation, without XLA's fusion emitters (two thirds of it),
# by one thread, as each core has a test of its own, and each program once for all of them. 0.12 does not know the first
# flag, and an unknown one ends the process.
if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
gc.set_threshold(50_000, 20, 100)  # tracing makes many small objects, and collecting them was a tenth of it


@pytest.fixture(scope="session")
def golden():
    """The reference values of the authors' code on random models."""
    with np.load(GOLDEN / "vit_random.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_weights(golden):
    """Weights under timm's names, float64."""
    return {k.removeprefix("weights/"): v.astype(np.float64) for k, v in golden.items() if k.startswith("weights/")}


@pytest.fixture(scope="session")
def golden_model(golden, golden_weights):
    """The reference model, converted."""
    num_heads = json.loads(str(golden["config"]))["num_heads"]
    return lrp_jax.convert(golden_weights, num_heads=num_heads, final_norm_epsilon=1e-5)


@pytest.fixture(scope="session")
def golden_images(golden):
    """``[3, 32, 32, 3]``, float64."""
    return golden["images"].astype(np.float64).transpose(0, 2, 3, 1)


@pytest.fixture(scope="session")
def demo():
    """The model that comes with the package."""
    return lrp_jax.load("demo")


@pytest.fixture
def optimised():
    """For what computes longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def as_users():
    """Models are written as users write them, whose arrays promote as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 KiB: the operating system says so as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Give compiled programs back: a process may map only so much memory, and beyond it the compiler crashes."""
    yield
    jax.clear_caches()


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
