"""Train the demo model on digit scenes and write the checkpoint that the package ships.

    pip install -e ".[train]"
    python scripts/train_demo.py

A small Vision Transformer learns slowly from image labels alone. Three things make an hour on two CPU cores
enough: a loss on every patch token beside the one on the image (token labelling, Jiang et al. 2021, arXiv
2104.10858), position embeddings that start as sines and cosines of the place (Vaswani et al. 2017; learned from
there), and queries and keys that start equal (after mimetic initialisation, Trockman and Kolter 2023, arXiv
2305.09828), so that a token begins by attending to its neighbours.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import lrp_jax
from lrp_jax.datasets import SCENE_MEAN, SCENE_SIZE, SCENE_STD, DigitScenes, digit_scenes

Params = Any

CONFIG = lrp_jax.ViTConfig(
    image_size=SCENE_SIZE,
    patch_size=8,
    width=128,
    depth=6,
    num_heads=4,
    mlp_dim=256,
    num_classes=10,
    mean=(SCENE_MEAN,),
    std=(SCENE_STD,),
    multi_label=True,
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
)
SIZES = ("--width", "--depth", "--num-heads", "--mlp-dim", "--patch-size")
TOKEN_WEIGHT = 4.0


def initial_params(model: lrp_jax.ViT, seed: int) -> Params:
    """Random parameters, but for the position embeddings and the keys (see above)."""
    config = model.config
    params = model.init(jax.random.key(seed), jnp.zeros(config.image_shape))["params"]
    rows, cols = config.grid
    places = np.mgrid[:rows, :cols].reshape(2, -1, 1) * np.pi / 2
    angles = places * 100.0 ** (-np.arange(config.width // 4) / (config.width // 4))
    embedding = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    params["pos_embed"] = params["pos_embed"].at[1:].set(embedding)
    query, _, value = jnp.split(params["blocks"]["attn"]["qkv"]["kernel"] * np.sqrt(2), 3, axis=-1)
    params["blocks"]["attn"]["qkv"]["kernel"] = jnp.concatenate([query, query, value], axis=-1)
    return params


def losses(model: lrp_jax.ViT, params: Params, scenes: DigitScenes) -> tuple[Array, Array]:
    """Cross entropy (sum over the classes) of the images and, on average, of their patch tokens."""
    rows, cols = model.config.grid

    def forward(image: Array) -> tuple[Array, Array]:
        logits, state = model.apply({"params": params}, image, mutable="intermediates")
        (tokens,) = state["intermediates"]["tokens"]
        return logits, tokens[-rows * cols :] @ params["head"]["kernel"] + params["head"]["bias"]

    logits, token_logits = jax.vmap(forward)(scenes.images)
    classes = jax.nn.one_hot(scenes.labels, model.config.num_classes)  # [B, 2, C]
    height, width, _ = model.config.image_shape
    masks = scenes.masks.reshape(-1, 2, rows, height // rows, cols, width // cols)
    covered = jnp.minimum(4 * masks.mean(axis=(3, 5)), 1).reshape(-1, 2, rows * cols)
    token_classes = jnp.einsum("bdc,bdn->bnc", classes, covered)
    image_loss = optax.sigmoid_binary_cross_entropy(logits, classes.sum(axis=1)).sum(axis=-1).mean()
    return image_loss, optax.sigmoid_binary_cross_entropy(token_logits, token_classes).sum(axis=-1).mean()


def accuracy(model: lrp_jax.ViT, params: Params, scenes: DigitScenes) -> float:
    """The share of scenes whose two classes have the two highest logits."""
    forward = jax.jit(jax.vmap(lambda image: model.apply({"params": params}, image)))
    parts = [forward(part) for part in np.array_split(scenes.images, max(1, len(scenes.images) // 100))]
    best = np.sort(np.argsort(np.concatenate(parts), axis=-1)[:, -2:], axis=-1)
    return float((best == np.sort(scenes.labels, axis=-1)).all(axis=-1).mean())


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("another model")
    sizes = [flag[2:].replace("-", "_") for flag in SIZES]
    for flag, name in zip(SIZES, sizes, strict=True):
        group.add_argument(flag, type=int, default=getattr(CONFIG, name))
    parser.add_argument("--output", type=Path, default=Path(lrp_jax.__file__).parent / "data" / "demo.safetensors")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)

    model = lrp_jax.ViT(dataclasses.replace(CONFIG, **{name: getattr(options, name) for name in sizes}))
    params = initial_params(model, options.seed)
    peak = options.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0, peak, min(100, options.steps // 2), options.steps, peak / 100)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    state = optimiser.init(params)

    @jax.jit
    def step(params: Params, state: Any, scenes: DigitScenes) -> tuple[Params, Any, Array]:
        def loss(params: Params) -> tuple[Array, Array]:
            image_loss, token_loss = losses(model, params, scenes)
            return image_loss + TOKEN_WEIGHT * token_loss, jnp.stack([image_loss, token_loss])

        gradient, parts = jax.grad(loss, has_aux=True)(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, parts

    def batch(i: int) -> DigitScenes:
        return digit_scenes(options.batch_size, seed=options.seed * 10**6 + i, split="train")

    held_out = digit_scenes(1000, seed=0, split="test")
    print(f"{sum(p.size for p in jax.tree.leaves(params)):,} parameters, {options.steps} steps", flush=True)
    start, recent = time.monotonic(), []
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(batch, 0)
        for i in range(1, options.steps + 1):
            scenes, upcoming = upcoming.result(), executor.submit(batch, i)
            params, state, parts = step(params, state, scenes)
            recent.append(np.asarray(parts))
            if i % 200 == 0 or i == options.steps:
                image_loss, token_loss = np.mean(recent, axis=0)
                recent.clear()
                print(
                    f"step {i:5d}  {(time.monotonic() - start) / 60:5.1f} min  image loss {image_loss:.3f}  "
                    f"token loss {token_loss:.3f}  held-out accuracy {accuracy(model, params, held_out):.3f}",
                    flush=True,
                )
    lrp_jax.save(options.output, model, params)
    print(f"wrote {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
