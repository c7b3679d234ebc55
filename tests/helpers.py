"""What several test files share."""

import dataclasses
import functools
import json
import re
import unicodedata
import warnings
import zipfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import lrp_jax
from lrp_jax.datasets import ImageNetFolder
from lrp_jax.labels import imagenet_classes
from lrp_jax.methods.modified import TOKENS
from lrp_jax.model import ask
from lrp_jax.signals import walk
from lrp_jax.walk import forward
from lrp_jax.weights.convert import convert_with_summary

GOLDEN = Path(__file__).parent / "golden"


def relative_error(actual, expected):
    """Largest error over largest value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


PARITY = Path(__file__).parent / "parity"

CASES = range(6)


@functools.cache
def small_model(dtype=jnp.float64, **fields):
    config = lrp_jax.ViTConfig(
        **{"image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32, "num_classes": 5}
        | fields
    )
    model = lrp_jax.ViT(config)
    # Larger than initialised, for logits and attention that vary.
    return model, jax.tree.map(lambda p: (p * 2).astype(dtype), drawn(model))


def small_images(n, dtype=jnp.float64, shape=(16, 16, 3)):
    return jax.random.normal(jax.random.key(2), (n, *shape), dtype)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A model that another one is made of."""

    model: object

    grid = property(lambda self: self.model.grid)
    readout = property(lambda self: self.model.readout)
    depth = property(lambda self: self.model.depth)

    def embed(self, params, image, rules):
        return self.model.embed(params, image, rules)

    def block(self, params, i, tokens, rules):
        return self.model.block(params, i, tokens, rules)

    def read(self, params, tokens, rules):
        return self.model.read(params, tokens, rules)


def at_blocks(model, params, image, targets, rules):
    """The relevance of the patches at what enters each block, summed over channels, ``[K, L, rows, cols]``."""
    return ask(model, "arrange")(walk(model, params, image, targets, rules, tokens=TOKENS).tokens[0])


TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def propagate(operation, inputs, relevance):
    """Output, and the relevance of the inputs given that of the output."""
    output, vjp = jax.vjp(operation, *map(jnp.asarray, inputs))
    return output, [np.asarray(r) for r in vjp(jnp.asarray(relevance, output.dtype))]


def logit(model, params, target):
    return jax.jit(lambda image: forward(model, params, image, lrp_jax.GRADIENT)[target])


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a zip of torch with its pickle changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def config_of(names, count=None):
    return lrp_jax.ViTConfig(image_size=16, patch_size=8, num_classes=count or len(names), class_names=names)


def touch(folder, *names):
    """Empty files: which class a picture is of does not depend on what is in it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


DECOMPOSED = unicodedata.normalize("NFD", "café")


BIRDS = ("crane", "tabby cat", "crane", "Golden Retriever", "7", "golden-retriever", "café")


DIGITS = tuple(map(str, range(10)))


ONE_BASED = tuple(map(str, range(1, 12)))


SYNSETS = tuple(synset for synset, _ in imagenet_classes())


def read(path, config, **options):
    """The dataset, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = ImageNetFolder(path, config, **options)
    return dataset, [str(warning.message) for warning in caught]


def drawn(model, seed=1):
    """Random parameters, as the model initialises them but by NumPy: nothing is compiled."""
    image = jax.ShapeDtypeStruct(model.config.image_shape, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name, shape = path[-1].key, shape.shape
        if name in ("scale", "bias"):
            return jnp.full(shape, name == "scale", jnp.float32)
        limit = (6 / sum(shape[-2:])) ** 0.5
        drawn = rng.uniform(-limit, limit, shape) if name == "kernel" else rng.normal(0, 0.02, shape)
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, *languages):
    """The blocks of a page of documentation: language and code."""
    return [(language, code) for language, code in BLOCK.findall(page.read_text()) if language in languages]


def promised(text):
    """What comments say that a print gives."""
    return re.findall(r"^print\(.*#\s+(\S.*)$", text, re.MULTILINE)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]


def write_gtsegs(path, masked):
    """The pictures and masks of a folder, in the layout of ImageNet-Segmentation's file."""
    with h5py.File(path, "w") as file:
        reference = h5py.special_dtype(ref=h5py.Reference)
        images, masks = (file.create_dataset(f"value/{name}", (5, 1), dtype=reference) for name in ("img", "gt"))
        for i in range(5):
            pixels = np.asarray(Image.open(masked / "images" / f"{i}.png"))
            mask = (np.asarray(Image.open(masked / "masks" / f"{i}.png")) > 0).astype(np.uint8)
            images[i, 0] = file.create_dataset(f"refs/image{i}", data=pixels.transpose(2, 1, 0)).ref
            cell = file.create_dataset(f"refs/cell{i}", (1, 1), dtype=reference)
            cell[0, 0] = file.create_dataset(f"refs/mask{i}", data=mask.T).ref
            masks[i, 0] = cell.ref


EXAMPLES = Path(lrp_jax.__file__).parent / "data" / "examples"


SCENE = EXAMPLES / "scene-1.png"


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


GIVEN = {"num_heads": 4, "final_norm_epsilon": 1e-5}


def case(name):
    with np.load(PARITY / f"{name}.npz") as file:
        arrays = dict(file)
    weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return weights, json.loads(str(arrays["fields"])), arrays["image"], arrays["logits"]


def starts(name, **fields):
    weights, heads, _, _ = case(name)
    return [note.split(";")[0] for note in convert_with_summary(weights, **(heads | fields)).notes]


def google(seed=0, depth=2):
    """Random weights of Google's names, as a tree: 16 channels, two heads, three classes."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def norm():
        return {"scale": drawn(16), "bias": drawn(16)}

    def dense(rows, cols):
        return {"kernel": drawn(rows, cols), "bias": drawn(cols)}

    def block():
        attention = {name: {"kernel": drawn(16, 2, 8), "bias": drawn(2, 8)} for name in ("query", "key", "value")}
        attention["out"] = {"kernel": drawn(2, 8, 16), "bias": drawn(16)}
        mlp = {"Dense_0": dense(16, 32), "Dense_1": dense(32, 16)}
        norms = {"LayerNorm_0": norm(), "LayerNorm_2": norm()}
        return {**norms, "MultiHeadDotProductAttention_1": attention, "MlpBlock_3": mlp}

    blocks = {f"encoderblock_{i}": block() for i in range(depth)}
    positions = {"posembed_input": {"pos_embedding": drawn(1, 5, 16)}, "encoder_norm": norm()}
    embedding = {"kernel": drawn(4, 4, 3, 16), "bias": drawn(16)}
    return {"cls": drawn(1, 1, 16), "embedding": embedding, "Transformer": positions | blocks, "head": dense(16, 3)}
