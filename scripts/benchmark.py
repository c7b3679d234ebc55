"""What maps cost, in forward passes of the same model in the same run.

    python scripts/benchmark.py                                    # B/16: 1 x 1, 1 x 5 and 4 x 5 images x classes
    python scripts/benchmark.py --images 1 2 4 8 --classes 1 2 5 10

Each row runs in a process of its own. A forward pass and an explanation are timed in turn; cost is the median of the
pairs' ratios: seconds of an explanation, over seconds of a forward pass of one image, over the number of maps. GFLOP
are those of the matrix products in the program as traced, before XLA drops what is not used, loops counted as often as
they run (XLA's own count takes a loop's body once). Temporaries are what XLA allots beside parameters, images and
results.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrp_jax
from lrp_jax.rules import GRADIENT, RULES


def products(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products of a program."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[d] for d in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * products(inner)
    return total


def measure(variant: str, images: int, classes: int, settings: dict[str, Any], dtype: str, repeats: int) -> list[str]:
    """One row of the table."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if variant == "demo":
        model, params = lrp_jax.load("demo")
    else:
        model = lrp_jax.ViT(lrp_jax.ViTConfig.from_variant(variant))
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(model.config.image_shape, jnp.float32))["params"]
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    kind = "float32" if dtype == "bfloat16" else dtype
    rng = np.random.default_rng(0)
    batch = jnp.asarray(rng.standard_normal((images, *model.config.image_shape)), kind)
    targets = jnp.asarray(rng.integers(0, model.config.num_classes, (images, classes)))

    forward = jax.jit(lambda p, x: jax.vmap(lambda i: model.forward(p, i, None, GRADIENT)[0])(x))
    explain = jax.jit(lambda p, x, t: lrp_jax.explain(model, p, x, t, **settings).relevance)
    traced = explain.trace(params, batch, targets)
    start = time.perf_counter()
    compiled = traced.lower().compile()
    compile_time = time.perf_counter() - start

    def seconds(function: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        return time.perf_counter() - start

    seconds(forward, params, batch[:1])
    seconds(compiled, params, batch, targets)
    pairs = [(seconds(forward, params, batch[:1]), seconds(compiled, params, batch, targets)) for _ in range(repeats)]
    maps = images * classes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)
    memory = compiled.memory_analysis()
    return [
        f"{images} x {classes}",
        f"{np.median([e / f for f, e in pairs]) / maps:.2f}",
        f"{1e3 * np.median([f for f, _ in pairs]):.0f}",
        f"{1e3 * np.median([e for _, e in pairs]) / maps:.0f}",
        f"{products(traced.jaxpr) / 1e9 / maps:.0f}",
        f"{compile_time:.1f}",
        f"{memory.temp_size_in_bytes / 1e9:.2f}" if memory else "-",
        f"{resident:.2f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="B/16", help="demo, or a size such as B/16, with random weights")
    parser.add_argument("--images", type=int, nargs="+", help="numbers of images, each with each of --classes")
    parser.add_argument("--classes", type=int, nargs="+", default=[1])
    parser.add_argument("--rules", choices=list(RULES), default="chefer")
    parser.add_argument("--start-layer", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16"), default="float32", help="of the parameters"
    )
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    sizes = itertools.product(options.images, options.classes) if options.images else ((1, 1), (1, 5), (4, 5))
    settings = {"rules": options.rules, "start_layer": options.start_layer}
    print(
        f"{options.model}, {options.dtype}, rules {options.rules}, jax {jax.__version__} on {jax.default_backend()}\n"
    )
    print("| images x classes | forward passes a map | forward, ms | a map, ms | GFLOP a map | compile, s |", end="")
    print(" temporaries, GB | resident peak, GB |\n|" + "---|" * 8, flush=True)
    for images, classes in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (options.model, images, classes, settings, options.dtype, options.repeats))
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
