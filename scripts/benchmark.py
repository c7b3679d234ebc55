"""What maps cost, in forward passes of the same model in the same run.

    python scripts/benchmark.py                                    # B/16: 1 x 1, 1 x 5 and 4 x 5 images x classes
    python scripts/benchmark.py --images 1 2 4 8 --classes 1 2 5 10
    python scripts/benchmark.py --gradient --images 1              # and the gradient of a loss on the map
    python scripts/benchmark.py --methods                          # other methods
    python scripts/benchmark.py --traced                           # the same model by lrp_jax.trace, beside ours
    python scripts/benchmark.py --accelerator                      # on a GPU or TPU: its share of the card's rate
    python scripts/benchmark.py --reference ../Transformer-Explainability   # and beside the authors' code

Each row runs in a process of its own. A forward pass and an explanation of the same images are timed in turn; cost is
the median of the pairs' ratios: seconds a map, over seconds of the forward pass an image. GFLOP are those of the matrix
products that are left once what is not used is dropped, loops counted as often as they run (the cost analysis of XLA
takes a loop's body once). Temporaries are what XLA allots beside parameters, images and results.

With ``--accelerator``, the rate that maps are set beside is that of a product of two matrices of 8,192 rows and columns
in the same precision, measured in the same process. TF32 is what the library does not use, as relevance divides by
small sums; its rows say what it would save.

A second table times other implementations beside ours, in turn, on one image and one class of the same architecture
with random weights: the authors' code, from a checkout of their repository given by ``--reference``, and what is
installed of captum, lxt and grad-cam (the extra ``bench`` installs all three and what the authors' code needs).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import itertools
import math
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

import lrp_jax
from lrp_jax import walk
from lrp_jax.rules import RULES


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


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """How long a call takes, results included."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def draw(variant: str, dtype: str, images: int) -> tuple[lrp_jax.ViT, Any, Any]:
    """The demo model, or one of a published size with random weights; and a batch of noise."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if variant == "demo":
        model, params = lrp_jax.load("demo")
    else:
        model = lrp_jax.ViT(lrp_jax.ViTConfig.from_variant(variant))
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(model.config.image_shape, jnp.float32))["params"]
    noise = np.random.default_rng(0).standard_normal((images, *model.config.image_shape))
    batch = jnp.asarray(noise, "float32" if dtype == "bfloat16" else dtype)
    return model, jax.tree.map(lambda p: p.astype(dtype), params), batch


def measure(
    variant: str, images: int, classes: int, settings: dict[str, Any], dtype: str, repeats: int, gradient: bool
) -> list[str]:
    """One row of the table; with ``gradient``, of a step of training by a loss on maps."""
    model, params, batch = draw(variant, dtype, images)
    rng = np.random.default_rng(1)
    targets = jnp.asarray(rng.integers(0, model.config.num_classes, (images, classes)))

    forward = jax.jit(lambda p, x: jax.vmap(lambda i: walk.forward(model, p, i))(x))
    mask = jnp.asarray(rng.standard_normal((images, classes, *model.grid)), batch.dtype)

    def explain(params: Any, images: Any, targets: Any) -> Any:
        return lrp_jax.explain(model, params, images, targets, **settings).relevance

    def loss(params: Any, images: Any, targets: Any) -> Any:
        return (explain(params, images, targets) * mask).sum()

    traced = jax.jit(jax.grad(loss) if gradient else explain).trace(params, batch, targets)
    used, _ = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
    start = time.perf_counter()
    compiled = traced.lower().compile()
    compile_time = time.perf_counter() - start

    calls = ((forward, params, batch), (compiled, params, batch, targets))
    forward_times, times = np.array([[seconds(*call) for call in calls] for _ in range(repeats + 1)])[1:].T
    maps = images * classes
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)
    memory = compiled.memory_analysis()
    return [
        f"{images} x {classes}",
        f"{np.median(times / forward_times) / classes:.2f}",
        f"{1e3 * np.median(forward_times) / images:.0f}",
        f"{1e3 * np.median(times) / maps:.0f}",
        f"{products(used) / 1e9 / maps:.0f}",
        f"{compile_time:.1f}",
        f"{memory.temp_size_in_bytes / 1e9:.2f}" if memory else "-",
        f"{resident:.2f}",
    ]


def of_size(variant: str, pixels: int, methods: Sequence[str], dtype: str) -> list[str]:
    """One row of the table of sizes: temporaries of one map by XLA's own analysis, of shapes alone; nothing is run."""
    model = lrp_jax.ViT(lrp_jax.ViTConfig.from_variant(variant, image_size=pixels))
    image = jax.ShapeDtypeStruct(model.config.image_shape, dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), shapes)
    batch, target = jax.ShapeDtypeStruct((1, *image.shape), dtype), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    row = [str(pixels), str(math.prod(model.grid) + model.config.prefix_tokens)]
    for method in methods:
        explain = jax.jit(lambda p, x, t, method=method: lrp_jax.explain(model, p, x, t, method=method).relevance)
        memory = explain.lower(params, batch, target).compile().memory_analysis()
        row.append(f"{memory.temp_size_in_bytes / 1e9:.2f}" if memory else "-")
    return row


def unrolled(config: lrp_jax.ViTConfig) -> Callable[..., Any]:
    """The same model as users write it, a loop in Python over a list of blocks: ``(params, images) -> logits``."""
    heads, grid, patch = config.num_heads, config.grid, config.patch_size

    def dense(p: Any, x: Any) -> Any:
        return x @ p["kernel"] + p["bias"]

    def norm(p: Any, x: Any, epsilon: float) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]

    def block(p: Any, x: Any) -> Any:
        qkv = dense(p["attn"]["qkv"], norm(p["norm1"], x, config.norm_epsilon))
        q, k, v = qkv.reshape(*x.shape[:2], 3, heads, -1).transpose(2, 0, 3, 1, 4)
        attention = jax.nn.softmax(q @ k.mT / math.sqrt(q.shape[-1]), axis=-1)
        x = x + dense(p["attn"]["proj"], (attention @ v).transpose(0, 2, 1, 3).reshape(x.shape))
        y = jax.nn.gelu(dense(p["mlp"]["fc1"], norm(p["norm2"], x, config.norm_epsilon)), approximate=False)
        return x + dense(p["mlp"]["fc2"], y)

    def apply(params: Any, images: Any) -> Any:
        x = images.reshape(len(images), grid[0], patch[0], grid[1], patch[1], -1).transpose(0, 1, 3, 2, 4, 5)
        x = dense(params["patch_embed"], x.reshape(len(images), grid[0] * grid[1], -1))
        token = jnp.broadcast_to(params["cls_token"], (len(images), *params["cls_token"].shape))
        x = jnp.concatenate([token, x], axis=1) + params["pos_embed"]
        for p in params["blocks"]:
            x = block(p, x)
        return dense(params["head"], norm(params["norm"], x[:, 0], config.final_norm_epsilon))

    return apply


def traced(variant: str, as_list: bool, settings: dict[str, Any], dtype: str, repeats: int) -> list[str]:
    """One row of the table of traced models: the same map by a traced model and by ours, in turn."""
    model, params, batch = draw(variant, dtype, 1)
    target = jnp.zeros((1, 1), int)
    given = params

    def apply(p: Any, x: Any) -> Any:
        return jax.vmap(lambda image: model.apply({"params": p}, image))(x)

    if as_list:
        apply, depth = unrolled(model.config), model.config.depth
        given = params | {"blocks": [jax.tree.map(lambda p, i=i: p[i], params["blocks"]) for i in range(depth)]}
    jax.block_until_ready((given, batch))  # what is drawn in the background would be timed
    start = time.perf_counter()
    jax.make_jaxpr(apply)(given, batch)
    middle = time.perf_counter()
    found = lrp_jax.trace(apply, given, batch)
    tracing = time.perf_counter() - middle

    calls, compile_times, temporaries = [], [], []
    for m, p in ((found, given), (model, params)):
        explain = jax.jit(lambda p, x, t, m=m: lrp_jax.explain(m, p, x, t, **settings).relevance)
        lowered = explain.lower(p, batch, target)
        begin = time.perf_counter()
        calls.append((lowered.compile(), p, batch, target))
        compile_times.append(time.perf_counter() - begin)
        memory = calls[-1][0].memory_analysis()
        temporaries.append(memory.temp_size_in_bytes / 1e9 if memory else math.nan)
    times = np.array([[seconds(*call) for call in calls] for _ in range(repeats + 1)])[1:]
    return [
        "unrolled blocks, a list" if as_list else "our model",
        f"{middle - start:.2f}",
        f"{tracing:.2f}",
        " / ".join(f"{t:.1f}" for t in compile_times),
        " / ".join(f"{size:.2f}" for size in temporaries),
        " / ".join(f"{1e3 * t:.0f}" for t in np.median(times, axis=0)),
        f"{np.median(times[:, 0] / times[:, 1]):.2f}",
    ]


def reference(path: str, config: lrp_jax.ViTConfig, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward pass and the map of the authors' code: (image ``[1, channels, H, W]``), and (image, target)."""
    import torch

    sys.path.insert(0, path)
    from baselines.ViT.ViT_LRP import VisionTransformer  # type: ignore[import-not-found]

    model = VisionTransformer(
        img_size=config.image_shape[0],
        patch_size=config.image_shape[0] // config.grid[0],
        in_chans=config.channels,
        num_classes=config.num_classes,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        qkv_bias=config.qkv_bias,
    )
    model = model.eval().to(device)

    def explain(image: Any, target: int) -> Any:  # as their LRP.generate_LRP, which runs on CUDA only
        one_hot = torch.nn.functional.one_hot(torch.tensor([target]), config.num_classes).float().to(device)
        model.zero_grad()
        (one_hot * model(image)).sum().backward(retain_graph=True)
        with contextlib.redirect_stdout(io.StringIO()):  # their add rule prints a line a call
            return model.relprop(one_hot, method="transformer_attribution", start_layer=0, alpha=1)

    return model, explain


def peer(name: str, config: lrp_jax.ViTConfig, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward pass and the map of another library on torchvision's Vision Transformer, as of :func:`reference`."""
    import torch
    from torchvision.models import vision_transformer  # type: ignore[import-untyped]

    if name == "lxt":
        from lxt.efficient import monkey_patch, monkey_patch_zennit  # type: ignore[import-not-found]
        from zennit.composites import LayerMapComposite  # type: ignore[import-untyped]
        from zennit.rules import Gamma  # type: ignore[import-untyped]

        monkey_patch(vision_transformer)
        monkey_patch_zennit()

    model = vision_transformer.VisionTransformer(
        image_size=config.image_shape[0],
        patch_size=config.image_shape[0] // config.grid[0],
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.width,
        mlp_dim=config.mlp_dim,
        num_classes=config.num_classes,
    )
    torch.nn.init.normal_(model.heads.head.weight, std=0.02)
    model = model.eval().to(device)
    forward = torch.no_grad()(model)

    if name == "captum":
        from captum.attr import InputXGradient  # type: ignore[import-untyped]

        return forward, lambda image, target: InputXGradient(model).attribute(image.requires_grad_(), target=target)
    if name == "grad-cam":
        from pytorch_grad_cam import GradCAM  # type: ignore[import-untyped]
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # type: ignore[import-untyped]

        def grid(tokens: Any) -> Any:
            return tokens[:, 1:].mT.reshape(len(tokens), -1, *config.grid)

        cam = GradCAM(model, [model.encoder.layers[-1].ln_1], reshape_transform=grid)
        return forward, lambda image, target: cam(image, [ClassifierOutputTarget(target)])

    rules = LayerMapComposite([(torch.nn.Conv2d, Gamma(100.0)), (torch.nn.Linear, Gamma(0.05))])

    def explain(image: Any, target: int) -> Any:
        image = image.detach().requires_grad_()
        rules.register(model)
        model(image)[0, target].backward()
        rules.remove()
        return image * image.grad

    return forward, explain


PEERS = {  # module to look for, what is timed
    "captum": ("captum", "input x gradient"),
    "grad-cam": ("pytorch_grad_cam", "GradCAM at the last block"),
    "lxt": ("lxt", "AttnLRP, gamma rules"),
}


def compare(variant: str, name: str, path: str | None, settings: dict[str, Any], repeats: int) -> list[str]:
    """One row of the second table."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    model, params, image = draw(variant, "float32", 1)
    target = jnp.zeros((1, 1), int)
    ours = jax.jit(lambda p, x, t: lrp_jax.explain(model, p, x, t, **settings).relevance)
    forward, explain = reference(path, model.config, device) if path else peer(name, model.config, device)
    theirs = torch.tensor(np.asarray(image).transpose(0, 3, 1, 2), device=device)

    def run(function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()

    calls = ((run, forward, theirs), (run, explain, theirs, 0), (ours, params, image, target))
    times = np.array([[seconds(*call) for call in calls] for _ in range(repeats + 1)])[1:]
    forward_time, their_time, our_time = np.median(times, axis=0)
    return [
        name,
        "transformer attribution" if path else PEERS[name][1],
        f"{1e3 * forward_time:.0f}",
        f"{1e3 * their_time:.0f}",
        f"{np.median(times[:, 1] / times[:, 0]):.2f}",
        f"{1e3 * our_time:.0f}",
        f"{np.median(times[:, 1] / times[:, 2]):.2f}",
    ]


#: Of ``--accelerator``: dtype of the parameters, precision of the products, and what a row calls them.
PRECISIONS = (
    ("float32", "highest", "float32"),
    ("float32", "tensorfloat32", "float32, TF32"),
    ("bfloat16", "highest", "bfloat16 parameters"),
)
ACCELERATED = list(itertools.product(("B/16", "L/16"), (1, 8, 64), PRECISIONS))
COLUMNS = ("model", "images", "precision", "s a map", "share of the card's rate, %", "forward passes a map", "peak, GB")


def accelerated(variant: str, images: int, dtype: str, precision: str, called: str, repeats: int) -> list[str]:
    """A row of what maps cost on an accelerator, one class an image."""
    import lrp_jax.attribution

    def precisely() -> Any:
        return jax.default_matmul_precision(precision)

    lrp_jax.attribution.full_precision = walk.full_precision = precisely  # the library's own is "highest"
    model, params, batch = draw(variant, dtype, images)
    targets = jnp.zeros((images, 1), jnp.int32)

    def explain(params: Any, images: Any, targets: Any) -> Any:
        return lrp_jax.explain(model, params, images, targets).relevance

    @jax.jit
    def forward(params: Any, images: Any) -> Any:
        with precisely():
            return jax.vmap(lambda image: walk.forward(model, params, image))(images)

    traced = jax.jit(explain).trace(params, batch, targets)
    used, _ = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
    compiled = traced.lower().compile()
    calls = ((forward, params, batch), (compiled, params, batch, targets))
    forward_time, time_of_maps = np.median([[seconds(*call) for call in calls] for _ in range(repeats + 1)][1:], axis=0)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    square = jnp.ones((8192, 8192), batch.dtype)
    with precisely():
        product = jax.jit(jnp.dot)
        rate = 2 * 8192**3 / np.median([seconds(product, square, square) for _ in range(repeats + 1)][1:])
    return [
        *(variant, str(images), called, f"{time_of_maps / images:.5f}"),
        f"{100 * products(used) / time_of_maps / rate:.0f}",
        *(f"{time_of_maps / forward_time:.2f}", f"{peak / 1e9:.2f}"),
    ]


def accelerate(repeats: int) -> None:
    """Print the table of an accelerator; where there is none, what it would be."""
    head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
    if jax.default_backend() == "cpu":
        print("No accelerator here, so nothing was measured. On one, this prints its name and\n")
        print(head)
        for variant, images, (*_, called) in ACCELERATED:
            print(f"| {variant} | {images} | {called} |{' not measured |' * (len(COLUMNS) - 3)}")
        return
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n\n{head}", flush=True)
    for variant, images, precision in ACCELERATED:
        try:
            apart(accelerated, variant, images, *precision, repeats)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"| {variant} | {images} | {precision[-1]} |{' out of memory |' * (len(COLUMNS) - 3)}", flush=True)


def apart(function: Callable[..., list[str]], *arguments: Any) -> None:
    """Print the row that ``function`` returns, run in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("| " + " | ".join(pool.apply(function, arguments)) + " |", flush=True)


#: Methods that take a few passes, in a table of their own.
METHODS: dict[str, dict[str, Any]] = {
    "transformer attribution": {"method": "transformer_attribution"},
    "generic attention": {"method": "generic_attention"},
    "LeGrad": {"method": "legrad"},
    "AttnLRP": {"method": "attnlrp"},
    "AttnLRP, gamma": {"method": "attnlrp", "gamma": 0.05},
    "AttnLRP, gamma everywhere": {"method": "attnlrp", "gamma": 0.05, "gamma_at": "all"},
    "CP-LRP": {"method": "cp_lrp"},
    "CP-LRP, gamma": {"method": "cp_lrp", "gamma": 0.05},
    "CP-LRP, gamma everywhere": {"method": "cp_lrp", "gamma": 0.05, "gamma_at": "all"},
    "CP-LRP, summed over blocks": {"method": "cp_lrp", "at": "blocks"},
    "Ali et al.": {"method": "ali_lrp"},
    "LibraGrad": {"method": "libragrad"},
    "LibraGrad, FullGrad": {"method": "libragrad", "full": True},
    "gated LRP": {"method": "gated_lrp"},
    "gated LRP, two views": {"method": "gated_lrp", "at": "pixels", "two_views": True},
}


def of_method(variant: str, title: str, dtype: str, repeats: int) -> list[str]:
    """One row of the table of methods, one image and class."""
    return [title, *measure(variant, 1, 1, METHODS[title], dtype, repeats, gradient=False)[1:]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="B/16", help="demo, or a size such as B/16, with random weights")
    parser.add_argument("--images", type=int, nargs="+", help="numbers of images, each with each of --classes")
    parser.add_argument("--classes", type=int, nargs="+", default=[1])
    parser.add_argument("--rules", choices=list(RULES), default="stable")
    parser.add_argument("--start-layer", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "bfloat16"), default="float32", help="of the parameters"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--reference", metavar="PATH", help="a checkout of hila-chefer/Transformer-Explainability")
    parser.add_argument(
        "--gradient", action="store_true", help="of a loss on the maps by all parameters, the maps included"
    )
    parser.add_argument(
        "--traced", action="store_true", help="instead: the same model by lrp_jax.trace, one image and class"
    )
    parser.add_argument("--methods", action="store_true", help="instead: other methods, one image and class")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="PIXELS", help="instead: temporaries of one map of images of some sizes"
    )
    parser.add_argument(
        "--accelerator",
        action="store_true",
        help="instead: B/16 and L/16, 1, 8 and 64 images, in several precisions, on a GPU or TPU",
    )
    options = parser.parse_args()

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # each row's process needs the card's memory
    if options.accelerator:
        accelerate(options.repeats)
        return
    if options.traced and (options.gradient or options.reference or options.images or options.classes != [1]):
        parser.error("--traced is of one image and one class, without --images, --classes, --gradient and --reference.")
    if options.reference and not os.path.exists(os.path.join(options.reference, "baselines", "ViT", "ViT_LRP.py")):
        parser.error(f"--reference must be a checkout with baselines/ViT/ViT_LRP.py, got {options.reference!r}.")

    sizes = itertools.product(options.images, options.classes) if options.images else ((1, 1), (1, 5), (4, 5))
    settings = {"rules": options.rules, "start_layer": options.start_layer}
    print(
        f"{options.model}, {options.dtype}, rules {options.rules}, jax {jax.__version__} on {jax.default_backend()}\n"
    )
    if options.sizes:
        methods = ("transformer_attribution", "attnlrp", "cp_lrp", "gated_lrp", "attention_rollout")
        print(f"temporaries, GB\n\n| pixels | tokens | {' | '.join(methods)} |\n|" + "---|" * 7, flush=True)
        for pixels in options.sizes:
            apart(of_size, options.model, pixels, methods, options.dtype)
        return
    if options.methods:
        print("| method | forward passes a map | forward, ms | a map, ms | GFLOP a map |", end="")
        print(" compile, s | temporaries, GB | resident peak, GB |\n|" + "---|" * 8, flush=True)
        for title in METHODS:
            apart(of_method, options.model, title, options.dtype, options.repeats)
        return
    what = "map and gradient" if options.gradient else "map"
    if options.traced:
        print("| traced | make_jaxpr, s | trace, s | compile, s, / ours | temporaries, GB, / ours |", end="")
        print(" a map, ms, / ours | its time / ours |\n|" + "---|" * 7, flush=True)
        for as_list in (False, True):
            apart(traced, options.model, as_list, settings, options.dtype, options.repeats)
        return
    print(f"| images x classes | forward passes a {what} | forward, ms | a {what}, ms | GFLOP a {what} |", end="")
    print(" compile, s | temporaries, GB | resident peak, GB |\n|" + "---|" * 8, flush=True)
    for images, classes in sizes:
        apart(measure, options.model, images, classes, settings, options.dtype, options.repeats, options.gradient)

    if options.gradient:
        return
    peers = [(name, None) for name, (module, _) in PEERS.items() if importlib.util.find_spec(module)]
    if options.reference:
        peers.insert(0, ("authors", os.path.abspath(options.reference)))
    if peers:
        print("\n| implementation | method | its forward, ms | its map, ms | its forward passes a map |", end="")
        print(" our map, ms | its time / ours |\n|" + "---|" * 7, flush=True)
    for name, path in peers:
        apart(compare, options.model, name, path, settings, options.repeats)


if __name__ == "__main__":
    main()
