"""Models written by hand: what is no operation of the rules, or stands under a vmap, is refused by name."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import methods


@dataclasses.dataclass(frozen=True)
class ByHand:
    """Two blocks of attention with two heads, without MLPs; ``change`` does one thing by itself."""

    change: str = ""
    grid: tuple[int, int] = (2, 2)
    readout: tuple[int, ...] = (1, 0, 0, 0, 0)

    def forward(self, params, image, taps, rules):
        changes = {
            "matmul": lambda a, b: a @ b,
            "einsum": lambda a, b: jnp.einsum("hnd,hdm->hnm", a, b),
            "vmap": jax.vmap(rules.matmul),
            "vmap of one": lambda a, b: jax.vmap(rules.matmul, in_axes=(0, None))(a, b[0]),
        }
        matmul = changes.get(self.change, rules.matmul)
        add = jnp.add if self.change == "add" else rules.add
        softmax = (lambda x, _: jax.nn.softmax(x)) if self.change == "softmax" else rules.softmax
        x = rules.dense(image.reshape(4, 3), params["in"], None)
        x = jnp.concatenate([rules.add(params["token"], params["token"]), x])
        attention = []
        for layer in range(2):
            q = rules.dense(x, params["q"], params["bias"]).reshape(5, 2, 3).transpose(1, 0, 2)
            a = softmax(matmul(q, q.mT), 1.0)
            if taps is not None and self.change != "taps":
                a = a + taps[layer]
            x = add(x, rules.matmul(a, q).transpose(1, 0, 2).reshape(5, 6))
            if self.change in OUTSIDE:
                x = OUTSIDE[self.change](x, params["q"])
            attention.append(a)
        return rules.dense(x[0], params["out"] @ jnp.eye(5), None), jnp.stack(attention)


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
    shapes = {"in": (3, 6), "token": (1, 6), "q": (6, 6), "bias": (6,), "out": (6, 5)}
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
        ("taps", "must add the taps"),
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
        def forward(self, *arguments):
            runs.append(1)
            return super().forward(*arguments)

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

        def forward(self, params, image, taps, rules):
            x = rules.dense(image.reshape(4, 3), params["in"], None)
            x = jnp.concatenate([params["cls"], x])
            attention = rules.softmax(rules.matmul(x, x.T), 1.0)[None]
            if taps is not None:
                attention = attention + taps[0]
            x = rules.add(x, rules.matmul(attention[0], x))
            return rules.dense(x[0], params["out"], None), attention[None]

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
