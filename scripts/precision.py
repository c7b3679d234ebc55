"""How far low precision moves a map from the map of the same rules in float64, and what the stable rules change.

    python scripts/precision.py                      # the demo model on 1,000 digit scenes
    python scripts/precision.py --model B/16 --images 8    # a random Vision Transformer on random images
    python scripts/precision.py --methods            # the methods beside it, in float32
    python scripts/precision.py --methods --model vit.safetensors --composites composites.npz

Error: largest difference over largest value, a map. Correlation: Spearman's, a map. Share and mIoU, for digit scenes:
of the mass that falls on either digit, the part on the one asked for (masks dilated to the patch grid); the mean
intersection over union of digit and background, for the enlarged map cut at its mean.

The products that accelerators round by default are emulated: operands cut to tf32 (GPU) or bfloat16 (TPU), sums exact.
COMPOSITES are as of ``composites.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import composites
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from reproduce_tables import ROWS

import lrp_jax
from lrp_jax import metrics
from lrp_jax.rules import CHEFER, RULES, Rules, stable

Transform = Callable[[Callable[..., Array]], Callable[..., Array]]
OPERATIONS = [name for name in lrp_jax.rules.OPERATIONS if name != "patch_embed"]
EPSILONS = (0.001, 0.01, 0.03, 0.1, 0.3)


@dataclasses.dataclass(frozen=True)
class Cast:
    """A model that computes in another dtype throughout."""

    model: lrp_jax.ViT
    dtype: Any

    @property
    def grid(self) -> tuple[int, int]:
        """As of the model."""
        return self.model.grid

    @property
    def readout(self) -> Any:
        """As of the model."""
        return self.model.readout

    @property
    def depth(self) -> tuple[int, ...]:
        """As of the model."""
        return self.model.depth

    def embed(self, params: Any, image: Array, rules: Rules) -> Array:
        """As of the model."""
        return self.model.embed(cast(params, self.dtype), image.astype(self.dtype), rules)

    def block(self, params: Any, i: Any, tokens: Array, rules: Rules) -> Array:
        """As of the model."""
        return self.model.block(cast(params, self.dtype), i, tokens, rules)

    def read(self, params: Any, tokens: Array, rules: Rules) -> Array:
        """As of the model."""
        return self.model.read(cast(params, self.dtype), tokens, rules)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its arrays in ``dtype``."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def in_dtype(operation: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    """The operation, and its backward pass, computed in ``dtype`` between arrays of float64."""

    def call(*arguments: Any) -> Array:
        low = [a.astype(dtype) if isinstance(a, jax.Array) else a for a in arguments]
        return operation(*low).astype(jnp.float64)

    return call


def rounding_products(function: Callable[..., Array], mantissa: int) -> Callable[..., Array]:
    """The function with the operands of every matrix product cut to so many bits."""

    def evaluate(jaxpr: Any, consts: Sequence[Any], *arguments: Any) -> list[Any]:
        values = dict(zip(jaxpr.constvars + jaxpr.invars, [*consts, *arguments], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            inputs, parameters = list(map(read, equation.invars)), equation.params
            name = equation.primitive.name
            inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
            if name == "dot_general":
                inputs = [jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=mantissa) for x in inputs]
            if name == "scan":
                body = jax.make_jaxpr(lambda *x, inner=inner: evaluate(inner.jaxpr, inner.consts, *x))(*inner.in_avals)
                outputs = equation.primitive.bind(*inputs, **(parameters | {"jaxpr": body}))
            elif inner is not None:
                outputs = evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), *inputs)
            else:
                outputs = equation.primitive.bind(*inputs, **parameters)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return list(map(read, jaxpr.outvars))

    def call(*arguments: Any) -> Array:
        leaves, structure = jax.tree.flatten(arguments)
        closed = jax.make_jaxpr(lambda *x: function(*jax.tree.unflatten(structure, x)))(*leaves)
        (output,) = evaluate(closed.jaxpr, closed.consts, *leaves)
        return output

    return call


class Study:
    """Maps of one model and one set of images, in any precision, by any method and under any rules."""

    def __init__(self, model: lrp_jax.ViT, params: Any, images: np.ndarray, targets: np.ndarray, batch: int) -> None:
        self.model, self.params, self.images, self.targets, self.batch = model, params, images, targets, batch

    def maps(
        self, rules: Rules | None, precision: str, transform: Transform | None = None, /, **how: Any
    ) -> np.ndarray:
        """Maps ``[n, K, rows, cols]``, float64; ``how`` is the method and its options."""
        how = how if rules is None else how | {"rules": rules}
        dtype = jnp.float64 if precision == "float64" else jnp.float32
        model = Cast(self.model, jnp.bfloat16) if precision == "bfloat16 throughout" else self.model
        params = cast(self.params, jnp.bfloat16 if precision == "bfloat16 parameters" else dtype)

        def relevance(params: Any, images: Array, targets: Array) -> Array:
            return lrp_jax.explain(model, params, images, targets, **how).relevance

        run = jax.jit(transform(relevance) if transform else relevance)
        parts = [
            np.asarray(run(params, self.images[i : i + self.batch].astype(dtype), self.targets[i : i + self.batch]))
            for i in range(0, len(self.images), self.batch)
        ]
        return np.concatenate(parts).astype(np.float64)


def agreement(maps: np.ndarray, reference: np.ndarray) -> str:
    """Columns of a table: error and correlation."""
    largest = np.abs(reference).max(axis=(-2, -1))
    error = (np.abs(maps - reference).max(axis=(-2, -1)) / np.where(largest > 0, largest, 1)).ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = metrics.spearman(maps, reference).ravel()
    errors = " | ".join(f"{e:.0e}" for e in (np.median(error), np.quantile(error, 0.99), error.max()))
    correlations = (np.median(correlation), np.quantile(correlation, 0.01), correlation.min())
    return errors + " | " + " | ".join(f"{c:.4f}" for c in correlations)


def specificity(maps: np.ndarray, masks: np.ndarray) -> str:
    """Columns of a table: share of the mass on the asked digit, and mean intersection over union."""
    counts = metrics.segmentation_counts(lrp_jax.heatmaps(maps, masks.shape[2:]), masks)
    overlap = (counts.intersection / counts.union).mean()
    return f"{metrics.share_on_target(maps, masks).mean():.4f} | {overlap:.4f}"


def table(title: str, columns: str) -> None:
    """Print the head of a Markdown table."""
    print(f"\n**{title}**\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)


def draw(source: str, count: int) -> tuple[lrp_jax.ViT, Any, Any, Any, Any]:
    """A model, its parameters, images, targets and masks; of a random model, without masks."""
    if source == "demo" or os.path.exists(source):
        return *lrp_jax.load(source), *lrp_jax.datasets.digit_scenes(count, seed=1, split="test")
    model = lrp_jax.ViT(lrp_jax.ViTConfig.from_variant(source))
    shape = model.config.image_shape
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape, jnp.float32))["params"]
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, *shape), np.float32)
    return model, params, images, rng.integers(0, model.config.num_classes, (count, 1)), None


QUALITY = "error: median | 99 % | worst | correlation: median | 1 % | worst"


def precisions(title: str, study: Study) -> None:
    """Print the table of precisions."""
    table(
        f"{title}: precision against float64 of the same rules, {study.targets.size} maps",
        f"rules | precision | {QUALITY}",
    )
    for rules in RULES.values():
        reference = study.maps(rules, "float64")
        for precision in ("float32", "bfloat16 parameters", "bfloat16 throughout"):
            print(f"| {rules.name} | {precision} | {agreement(study.maps(rules, precision), reference)} |", flush=True)
        for name, bits in (("tf32 products", 10), ("bfloat16 products", 7)):
            maps = study.maps(rules, "float32", lambda f, bits=bits: rounding_products(f, bits))
            print(f"| {rules.name} | {name} | {agreement(maps, reference)} |", flush=True)


def origins(title: str, study: Study, exact: np.ndarray) -> None:
    """Print the table of single rules in float32."""
    table(
        f"{title}: where the error of the exact rules comes from, {exact.shape[0] * exact.shape[1]} maps",
        f"in float32 | {QUALITY}",
    )
    for name in OPERATIONS:
        rules = dataclasses.replace(CHEFER, name=name, **{name: in_dtype(getattr(CHEFER, name), jnp.float32)})
        print(f"| the rule of {name} | {agreement(study.maps(rules, 'float64'), exact)} |", flush=True)
    lowered = {name: in_dtype(getattr(CHEFER, name), jnp.float32) for name in OPERATIONS}
    rules = dataclasses.replace(CHEFER, name="all", **lowered)
    print(f"| all rules | {agreement(study.maps(rules, 'float64'), exact)} |", flush=True)
    print(f"| all rules and the model | {agreement(study.maps(CHEFER, 'float32'), exact)} |", flush=True)


def epsilons(title: str, study: Study, exact: np.ndarray, masks: np.ndarray | None) -> None:
    """Print the table of epsilons."""
    columns = "99 % error, float32 | 1 % correlation, bfloat16 parameters | median distance from exact"
    table(
        f"{title}: epsilon of the stable rules",
        f"epsilon | {columns}{' | share | mIoU' if masks is not None else ''}",
    )
    for epsilon in (0.0, *EPSILONS):
        rules = stable(epsilon) if epsilon else CHEFER
        reference = study.maps(rules, "float64")
        error = agreement(study.maps(rules, "float32"), reference).split(" | ")[1]
        correlation = agreement(study.maps(rules, "bfloat16 parameters"), reference).split(" | ")[4]
        distance = agreement(reference, exact).split(" | ")[0]
        ending = f" | {specificity(reference, masks)}" if masks is not None else ""
        print(f"| {epsilon or 'exact'} | {error} | {correlation} | {distance}{ending} |", flush=True)


def methods(title: str, study: Study) -> None:
    """Print the table of methods."""
    table(f"{title}: float32 against float64, {study.targets.size} maps", f"method | {QUALITY}")
    for row in ROWS:
        if row.method in ("rise", "occlusion"):  # of forward passes alone, and many of them
            continue
        how = row.options | {"method": row.method}
        maps, reference = (study.maps(None, precision, **how) for precision in ("float32", "float64"))
        print(f"| {row.title} | {agreement(maps, reference)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, a checkpoint, or a size (B/16) with random weights")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--study", type=int, default=200, help="images for the tables of single rules and of epsilon")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--methods", action="store_true", help="the table of methods alone")
    parser.add_argument("--composites", type=Path, help="pictures side by side, to be explained")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.composites is None:
        model, params, images, targets, masks = draw(options.model, options.images)
    else:
        model, params = lrp_jax.load(options.model)
        images, labels, masks = composites.read(options.composites, model.config)
        images, targets, masks = images[: options.images], labels[: options.images, :2], None
    study = Study(model, params, images, targets, min(options.batch, len(images)))
    if options.methods:
        methods(options.model, study)
        return
    precisions(options.model, study)
    few = slice(options.study)
    part = Study(model, params, images[few], targets[few], study.batch)
    exact = part.maps(CHEFER, "float64")
    origins(options.model, part, exact)
    epsilons(options.model, part, exact, None if masks is None else masks[few])


if __name__ == "__main__":
    main()
