"""Models written by hand: what is no operation of the rules, or stands under a vmap, is refused by name."""

import dataclasses
import math

import chex
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error, small_images, small_model
from PIL import Image

import lrp_jax
from lrp_jax import methods
from lrp_jax.cli.models import load_model
from lrp_jax.model import digest


@dataclasses.dataclass(frozen=True)
class ByHand:
    """Two blocks of attention with two heads, without MLPs; ``change`` does one thing by itself."""

    change: str = ""
    depth: int | tuple[int, ...] = 2
    chunk: int | None = None
    grid: tuple[int, int] = (2, 2)
    readout: tuple[int, ...] = (1, 0, 0, 0, 0)

    def embed(self, params, image, rules):
        x = rules.dense(image.reshape(4, 3), params["in"], None)
        return jnp.concatenate([rules.add(params["token"], params["token"]), x])

    def block(self, params, i, tokens, rules):
        p = {name: params[name][i] for name in ("q", "bias")}
        q = rules.dense(tokens, p["q"], p["bias"]).reshape(5, 2, 3).transpose(1, 0, 2)
        x = self.attend(q, rules).transpose(1, 0, 2).reshape(5, 6)
        x = tokens + x if self.change == "add" else rules.add(tokens, x)
        return OUTSIDE[self.change](x, p["q"]) if self.change in OUTSIDE else x

    def attend(self, q, rules):
        if self.change not in OWN:
            found = rules.attention(q, q, q, 1.0, chunk=self.chunk)
            return rules.add(found, rules.attention(q, q, q, 2.0)) if self.change == "two" else found
        changes = {
            "matmul": lambda a, b: a @ b,
            "einsum": lambda a, b: jnp.einsum("hnd,hdm->hnm", a, b),
            "vmap": jax.vmap(rules.matmul),
            "vmap of one": lambda a, b: jax.vmap(rules.matmul, in_axes=(0, None))(a, b[0]),
        }
        softmax = (lambda x, _: jax.nn.softmax(x)) if self.change == "softmax" else rules.softmax
        maps = softmax(changes.get(self.change, rules.matmul)(q, q.mT), 1.0)
        return rules.matmul(rules.see(maps) if rules.see and self.change != "unseen" else maps, q)

    def read(self, params, tokens, rules):
        return rules.dense(tokens[0], params["out"] @ jnp.eye(5), None)


#: Changes of what writes its attention itself; of "unseen", nothing but that nobody sees the maps.
OWN = ("matmul", "einsum", "vmap", "vmap of one", "softmax", "unseen")


OUTSIDE = {
    "scale": lambda x, w: x * 0.5,
    "gelu": lambda x, w: jax.nn.gelu(x),
    "norm": lambda x, w: x / jnp.linalg.norm(x),
    "gate": lambda x, w: x * jax.nn.sigmoid(x),
    "negative": lambda x, w: 1 - x,
    "maximum": lambda x, w: x.max(axis=0)[None] + jnp.zeros_like(x),
    "mean": lambda x, w: jnp.broadcast_to(x.mean(axis=0), x.shape),
    "convolution": lambda x, w: jax.vmap(lambda row: jnp.convolve(row, w[0], "same"))(x),
    "jit": lambda x, w: jax.jit(lambda x: x @ w)(x),
    "remat": lambda x, w: jax.checkpoint(lambda x: x @ w)(x),
    "scan": lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, length=2)[0],
    "late in a scan": lambda x, w: jax.lax.scan(lambda c, _: ((c[1], c[0] @ w), None), (w[:5], x), length=2)[0][1],
    "while": lambda x, w: jax.lax.fori_loop(0, w.sum().astype(int), lambda _, c: c @ w, x),
    "cond": lambda x, w: jax.lax.cond(w.sum() > 0, lambda x: x @ w, lambda x: x, x),
}


def moved(x, w):
    """What may stand beside the operations: moves, constants added, and what has no derivative."""
    x = jnp.flip(jnp.pad(x, ((0, 1), (0, 0)))[:5], axis=0)[::-1] + w[0] - w.sum()
    x = jnp.where(w[:5] > 0, x, x[jnp.array([0, 1, 2, 3, 4])]).at[1].set(x[1])
    return jax.lax.stop_gradient(x) @ w + jax.lax.scan(lambda c, row: (c, row), w, x)[1]


OUTSIDE["moves"] = moved


@pytest.fixture(scope="module")
def params():
    shapes = {"in": (3, 6), "token": (1, 6), "q": (2, 6, 6), "bias": (2, 6), "out": (6, 5)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: jax.random.normal(key, shapes[name], jnp.float64) for key, name in zip(keys, shapes, strict=True)}


IMAGES = jax.random.normal(jax.random.key(1), (1, 2, 2, 3), jnp.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("matmul", r"dot_general of float64\[2,5,3\] and float64\[2,3,5\] \(.*test_model\.py:\d+"),
        ("einsum", "by itself .*dot_general"),
        ("vmap", r"rules\.matmul under a jax\.vmap"),
        ("vmap of one", r"rules\.matmul under a jax\.vmap"),
        ("add", "by itself .*add of"),
        ("softmax", "by itself .*exp of"),
        *((name, "by itself .* of float64") for name in OUTSIDE if name != "moves"),
    ],
)
@pytest.mark.parametrize("method", ["transformer_attribution", "lrp_rollout"])
def test_what_relevance_would_miss_is_refused(params, change, message, method):
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        lrp_jax.explain(ByHand(change), params, IMAGES, method=method)


@pytest.mark.parametrize("change", ["", "moves"])
def test_what_carries_relevance_is_accepted(params, change):
    with jax.numpy_rank_promotion("allow"):
        for method in ("transformer_attribution", "full_lrp"):
            relevance = lrp_jax.explain(ByHand(change), params, IMAGES, method=method).relevance
            assert np.abs(relevance).max() > 0


def test_attention_that_nobody_sees_is_told(params):
    """A model that multiplies by itself with the operations of rules has relevance, and no attention maps."""
    model = ByHand("unseen")
    expected = lrp_jax.explain(ByHand(), params, IMAGES, method="full_lrp").relevance
    np.testing.assert_allclose(
        lrp_jax.explain(model, params, IMAGES, method="full_lrp").relevance, expected, rtol=1e-12
    )
    message = r"has no attention maps, 0 of its 2 blocks call rules\.attention: use .* as full_lrp"
    for method in ("transformer_attribution", "raw_attention", "attention_gradcam", "legrad", "gated_lrp"):
        with pytest.raises(ValueError, match=message):
            lrp_jax.explain(model, params, IMAGES, method=method)
    with pytest.raises(ValueError, match=message):
        lrp_jax.attention_signals(model, params, IMAGES)


def test_a_block_of_two_attentions_has_rollouts_alone(params):
    apart = ByHand("two"), ByHand()
    for method in ("raw_attention", "attention_gradcam", "legrad"):
        with pytest.raises(ValueError, match="block 0 computes 2 attentions, for which there are rollouts"):
            lrp_jax.explain(ByHand("two"), params, IMAGES, method=method)
    for method in ("transformer_attribution", "attention_rollout", "full_lrp"):
        maps = [lrp_jax.explain(model, params, IMAGES, method=method).relevance for model in apart]
        assert np.abs(maps[0] - maps[1]).max() > 0


#: Methods that look at blocks, and their options.
OF_BLOCKS = {name: {} for name, method in methods.METHODS.items() if method.resolution == "patch"} | {
    "transformer_attribution": {"start_layer": 1},
    "libragrad": {"full": True, "at": "blocks"},
}


@pytest.mark.parametrize("method", OF_BLOCKS)
def test_loops_and_chunks_change_nothing(params, method):
    """Blocks in a loop or each by itself; 2 of 5 queries at once, so that the last chunk is not whole."""
    options, targets = OF_BLOCKS[method], np.array([[0, 3]])
    each, loop, chunks = (
        lrp_jax.explain(ByHand(**fields), params, IMAGES, targets, method=method, **options).relevance
        for fields in ({"depth": (1, 1)}, {"depth": 2}, {"depth": (1, 1), "chunk": 2})
    )
    assert np.abs(each).max() > 0
    np.testing.assert_allclose(loop, each, rtol=0, atol=1e-14 * np.abs(each).max())
    np.testing.assert_allclose(chunks, each, rtol=0, atol=1e-12 * np.abs(each).max())


@pytest.mark.parametrize("method", ["transformer_attribution", "attention_rollout"])
def test_chunks_of_queries_of_a_vit(method):
    """One that pools by attention, which has one query."""
    model, params = small_model(depth=1, readout="attention", prefix_tokens=0)
    images, targets = small_images(1), np.array([[0, 3]])
    whole, chunks = (
        lrp_jax.explain(m, params, images, targets, method=method) for m in (model, lrp_jax.ViT(model.config, chunk=5))
    )
    assert np.abs(whole.relevance).max() > 0
    assert relative_error(chunks.relevance, whole.relevance) < 1e-12
    assert relative_error(chunks.logits, whole.logits) < 1e-12


def test_methods_without_relevance_take_any_model(params):
    """Their maps are right whatever the model is made of."""
    expected = lrp_jax.explain(ByHand(), params, IMAGES, method="attention_gradcam").relevance
    for change in ("matmul", "vmap", "add"):
        for method in ("saliency", "attention_rollout", "occlusion"):
            lrp_jax.explain(ByHand(change), params, IMAGES, method=method)
        found = lrp_jax.explain(ByHand(change), params, IMAGES, method="attention_gradcam").relevance
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_probe_runs_once(params):
    runs = []

    @dataclasses.dataclass(frozen=True)
    class Counting(ByHand):
        def embed(self, *arguments):
            runs.append(1)
            return super().embed(*arguments)

    for _ in range(3):
        lrp_jax.explain(Counting(), params, IMAGES)
        first = len(runs)
    lrp_jax.explain(Counting(), params, IMAGES + 1)
    assert len(runs) == first


def test_every_method_of_relevance_is_probed(params):
    of_relevance = [name for name, method in methods.METHODS.items() if "rules" in method.options]
    assert len(of_relevance) >= 5
    for name in of_relevance:
        with pytest.raises(ValueError, match="by itself"):
            lrp_jax.explain(ByHand("add"), params, IMAGES, method=name)
    with pytest.raises(ValueError, match="by itself"):
        lrp_jax.attention_signals(ByHand("add"), params, IMAGES)


def test_any_pure_function_can_be_explained():
    """A model without Flax: one attention layer between two products."""

    @dataclasses.dataclass(frozen=True)
    class Plain:
        grid: tuple[int, int] = (2, 2)
        readout: tuple[int, ...] = (1, 0, 0, 0, 0)

        depth: int = 1

        def embed(self, params, image, rules):
            return jnp.concatenate([params["cls"], rules.dense(image.reshape(4, 3), params["in"], None)])

        def block(self, params, i, tokens, rules):
            return rules.add(tokens, rules.attention(tokens, tokens, tokens, 1.0))

        def read(self, params, tokens, rules):
            return rules.dense(tokens[0], params["out"], None)

    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (3, 6), jnp.float64),
        "cls": jax.random.normal(keys[1], (1, 6), jnp.float64),
        "out": jax.random.normal(keys[2], (6, 5), jnp.float64),
    }
    images = jax.random.normal(keys[3], (2, 2, 2, 3), jnp.float64)
    explanation = lrp_jax.explain(Plain(), params, images, jnp.array([[0, 1], [2, 3]]))
    chex.assert_shape(explanation.relevance, (2, 2, 2, 2))
    chex.assert_tree_all_finite(explanation)


@pytest.mark.parametrize("heads", [(), (1, 2), (2, 1, 1)], ids=str)
def test_attention_has_any_axes_of_heads(params, heads):
    """Its maps are those of all heads in one axis."""

    @dataclasses.dataclass(frozen=True)
    class Shaped(ByHand):
        heads: tuple[int, ...] = ()

        def attend(self, q, rules):
            some = q[: math.prod(self.heads)]
            shaped = some.reshape(*self.heads, *q.shape[1:])
            found = rules.attention(shaped, shaped, shaped, 1.0).reshape(some.shape)
            return jnp.concatenate([found, q[len(found) :]])

    for method in ("transformer_attribution", "attention_rollout", "attention_gradcam"):
        expected, found = (
            lrp_jax.explain(Shaped(heads=shape), params, IMAGES, [[0, 3]], method=method).relevance
            for shape in ((math.prod(heads),), heads)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * np.abs(expected).max())


class Linen(flax.linen.Module):
    """What users of Flax try first."""

    @flax.linen.compact
    def __call__(self, images):
        return flax.linen.Dense(3)(images.reshape(len(images), -1))


def of(package, **members):
    """An object of a class of another library, which need not be installed."""
    return type("Classifier", (), {"__module__": package, **members})()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Linen(), r"got a Linen. Trace it first: model = lrp_jax.trace\(module.apply, variables, images\)"),
        (flax.nnx.Linear(3, 3, rngs=flax.nnx.Rngs(0)), r"got a Linear. .*nnx.split\(module\).*lrp_jax.trace"),
        (of("equinox._module", __call__=lambda self, x: x), r"equinox.partition\(module.*lrp_jax.trace"),
        (of("haiku._src.transform"), r"lrp_jax.trace\(lambda params, x: transformed.apply\(params, None, x\)"),
        (of("keras.src.models"), r"lrp_jax.trace\(lambda state, x: module.stateless_call"),
        (of("transformers.models.vit"), r"lrp_jax.trace\(.*params=params\).logits"),
        (Linen().apply, "got a function. Trace it first"),
        (lambda params, images: images, r"got a function. .*lrp_jax.trace\(function, params, images\)"),
        (lrp_jax.ViT, "got the class ViT: make one of it"),
        (
            {"kernel": 0},
            r"grid, readout, depth, embed, block, read .*got a dict. The order of the arguments is model, params, im",
        ),
        (("model", "params"), "lrp_jax.load .*got a tuple"),
        ("demo", "lrp_jax.load .*got a str"),
        (of("mine", grid=(1, 1), readout=None), "got a Classifier, which lacks depth, embed, block, read"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_is_no_model_is_told_how_to_become_one(model, message):
    with pytest.raises(ValueError, match=message):
        lrp_jax.explain(model, {}, np.zeros((1, 8, 8, 3), np.float32))


def test_every_function_that_takes_a_model_looks_at_it(tmp_path, monkeypatch):
    module, params, images = Linen(), {}, np.zeros((1, 8, 8, 3), np.float32)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    source, digits = lrp_jax.jobs.open_source([tmp_path]), lrp_jax.datasets.DigitDataset(2)
    rules = lrp_jax.composite([(lrp_jax.Where("dense"), "cp_lrp")], "attnlrp")
    calls = [
        lambda: lrp_jax.explain(module, params, images),
        lambda: lrp_jax.attention_signals(module, params, images),
        lambda: lrp_jax.conservation(module, params, images),
        lambda: lrp_jax.matches(module, params, images, rules),
        lambda: lrp_jax.export(module, params),
        lambda: lrp_jax.save(tmp_path / "x.safetensors", module, params),
        lambda: lrp_jax.jobs.attribute(module, params, source, tmp_path / "maps.zarr"),
        *(
            lambda protocol=protocol: protocol(module, params, digits, tmp_path / "results")
            for protocol in lrp_jax.evaluate.PROTOCOLS.values()
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"lrp_jax.trace\(module.apply"):
            call()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def load():\n    return (lambda params, images: images), {}, None, None\n")
    with pytest.raises(ValueError, match=r"--model mine:load: model must be .*got a function"):
        load_model("mine:load")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != "") == ["0.png", "mine.py"]


def test_the_digest_is_of_values():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = (array, jnp.asarray(array), np.asfortranarray(array), array.astype(">f4"), np.repeat(array, 2, 1)[:, ::2])
    assert len({digest({"a": values}) for values in same}) == 1
    others = (array.reshape(3, 2), array.view(np.int32), array + 1)
    assert len({digest({"a": values}) for values in (array, *others)}) == 4
