"""Images and parameters on meshes of devices: the same maps, split as the images are."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

TESTS = Path(__file__).parent

# In a process of its own, as the number of devices is told before JAX starts. Maps without a mesh are what is right.
PROGRAM = """
import contextlib
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
import lrp_jax
from helpers import small_images, small_model

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
model, params = small_model(depth=1)
images, targets = small_images(4), np.array([[0, 3], [1, 1], [2, 4], [0, 0]])


def on_mesh(tree, spec):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), tree)


split = on_mesh(params, lambda p: P(*[None] * (p.ndim - 1), "model") if p.shape[-1] % 2 == 0 else P())
placed, whole = on_mesh(images, lambda _: P("data")), on_mesh(params, lambda _: P())
enter = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh
traced = lrp_jax.trace(lambda p, x: jax.vmap(lambda i: model.apply({"params": p}, i))(x), params, images)
rules = lrp_jax.composite([(lrp_jax.Where("dense"), "cp_lrp")], "attnlrp")


def maps(params, images, model=model, **options):
    return lrp_jax.explain(model, params, images, targets, **options).relevance


def report(params, images):
    return lrp_jax.conservation(model, params, images, targets).blocks


def gradient(params, images):
    return jax.grad(lambda p, x: (maps(p, x) ** 2).sum(), argnums=(0, 1))(params, images)


def enlarged(params, images):
    return lrp_jax.heatmaps(maps(params, images, method="raw_attention"), (16, 16))


def of_pixels(params, images):
    return maps(params, images, model=traced, method="full_lrp")


def counted(params, images):
    return jnp.array([match.operations for match in lrp_jax.matches(model, params, images, rules)])


for function, entered, jit, params_there, batched in (
    (maps, False, False, split, True),
    (of_pixels, True, True, whole, True),
    (report, False, False, split, False),
    (gradient, True, True, split, False),
    (enlarged, False, True, whole, True),
    (counted, False, False, split, False),
):
    right = jax.jit(function)(params, images)
    with enter(mesh) if entered else contextlib.nullcontext():
        found = (jax.jit(function) if jit else function)(params_there, placed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=str(function))
        assert not batched or a.sharding.spec[0] == "data", (function, a.sharding)
exported = lrp_jax.export(model, whole, method="raw_attention", platforms=["cpu"], example=images)
right = maps(params, images, method="raw_attention")
for x in (images, placed):
    np.testing.assert_allclose(jax.jit(exported.call)(x)["relevance"], right[:, :1], rtol=1e-9)
print("right")
"""


@pytest.mark.skipif(not hasattr(jax.sharding, "auto_axes"), reason="before JAX 0.7, axes are Auto")
@pytest.mark.slow
def test_maps_on_a_mesh_are_those_without():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=600)
    assert ran.stdout.strip() == "right", ran.stderr
