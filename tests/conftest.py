"""Float64 everywhere, and no silent promotion of dtypes or ranks."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import lrp_jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compilation is nearly all that the tests take

GOLDEN = Path(__file__).parent / "golden"


def relative_error(actual, expected):
    """Largest error over largest value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


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


@pytest.fixture(autouse=True, scope="module")
def _free_programs():
    """Give compiled programs back: a process may map only so much memory, and beyond it the compiler crashes."""
    yield
    jax.clear_caches()
