"""Functions whose logits of one example depend on the rest of its batch are refused, all others are taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrp_jax
from lrp_jax.tracing import batch

pytestmark = pytest.mark.usefixtures("as_users")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 3))
SHAPES = {
    "patch": (48, 6),
    "square": (6, 6),
    "head": (6, 5),
    "router": (6, 3),
    "experts": (3, 6, 6),
    "token": (1, 1, 6),
}
PARAMS = {name: RNG.normal(size=shape) / np.sqrt(shape[-2]) for name, shape in SHAPES.items()}


def tokens(p, x):
    return x.reshape(-1, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 4, 48) @ p["patch"]


def attend(p, t, keys=None):
    keys = t if keys is None else keys
    return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", t @ p["square"], keys)) @ keys


def read(p, t):
    return t.mean(1) @ p["head"]


def flat(p, x):
    """Batch and tokens in one axis, as mixtures of experts are written."""
    t = tokens(p, x).reshape(-1, 6)
    r = jax.nn.softmax(t @ p["router"])
    chosen = jax.nn.one_hot(jnp.argmax(r, -1), 3) * r
    return read(p, jnp.einsum("te,tef->tf", chosen, jnp.einsum("td,edf->tef", t, p["experts"])).reshape(len(x), 4, 6))


def class_token(p, x):
    token = jnp.tanh(jnp.tile(p["token"], (len(x), 1, 1)) @ p["square"])
    return attend(p, jnp.concatenate([token, tokens(p, x)], 1))[:, 0] @ p["head"]


def heads_with_the_batch(p, x):
    t = tokens(p, x).reshape(len(x), 4, 2, 3).transpose(0, 2, 1, 3).reshape(-1, 4, 3)
    t = jax.nn.softmax(t @ t.mT) @ t
    return read(p, t.reshape(len(x), 2, 4, 3).swapaxes(1, 2).reshape(len(x), 4, 6))


def tokens_first(p, x):
    t = tokens(p, x).swapaxes(0, 1)
    return read(p, (t.reshape(-1, 6) @ p["square"]).reshape(t.shape).swapaxes(0, 1))


def recurrent(p, x):
    def step(h, t):
        return jnp.tanh(h @ p["square"] + t), None

    return jax.lax.scan(step, jnp.zeros((len(x), 6)), tokens(p, x).swapaxes(0, 1))[0] @ p["head"]


def windows(p, x):
    t = jnp.roll(x, -1, 1)[..., :1] * p["token"][0]
    t = t.reshape(len(x), 2, 4, 2, 4, 6).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 6)
    return read(p, attend(p, t).reshape(len(x), 64, 6))


def end_token(p, x):
    t = tokens(p, x)
    return t[jnp.arange(len(x)), jnp.argmax(t[..., 0], 1)] @ p["head"]


def written(p, x):
    t = tokens(p, x)
    return read(p, t.at[jnp.arange(len(x)), jnp.argmax(t[..., 0], 1)].add(1.0).at[:, 0].set(0.0))


def pooled(p, x):
    query = jnp.repeat(p["token"], len(x), 0) @ p["square"]
    return attend(p, query, tokens(p, x))[:, 0] @ p["head"]


def two_views(p, x):
    a, b = jnp.split(flat(p, jnp.concatenate([x, x[:, :, ::-1]])), 2)
    return a + b


def sorted_by_expert(p, x):
    """Each token has its own expert: sorted over the batch, and back. Only numbers can tell."""
    t = tokens(p, x).reshape(-1, 6)
    chosen = jnp.argmax(t @ p["router"], -1)
    order = jnp.argsort(chosen)
    y = jax.lax.ragged_dot(t[order], p["experts"], jnp.bincount(chosen, length=3).astype(jnp.int32))
    return read(p, y[jnp.argsort(order)].reshape(len(x), 4, 6))


def one_by_one(p, x):
    return jnp.stack([flat(p, image[None])[0] for image in x])


PROVEN = {
    f.__name__: f
    for f in (flat, class_token, heads_with_the_batch, tokens_first, recurrent, windows, end_token, written, pooled)
}
PROVEN |= {
    "two views": two_views,
    "taken along": lambda p, x: jnp.take_along_axis(flat(p, x), jnp.argsort(flat(p, x)), 1),
    "of one batch size": lambda p, x: flat(p, x.reshape(1, 8, 8, 3)),
    "vmap": lambda p, x: jax.vmap(lambda image: flat(p, image[None])[0])(x),
    "map": lambda p, x: jax.lax.map(lambda image: flat(p, image[None])[0], x),
    "sort of tokens": lambda p, x: jnp.sort(tokens(p, x), 1)[:, -1] @ p["head"],
    "pooling": lambda p, x: nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)) @ p["head"][:3],
    "loop": lambda p, x: read(p, jax.lax.fori_loop(0, 2, lambda i, t: jnp.tanh(t @ p["square"]), tokens(p, x))),
}
TRIED = {"sorted by expert": sorted_by_expert, "one by one": one_by_one, "the first": lambda p, x: flat(p, x[:1])}


def checked(apply, params, images):
    """What trace asks, of parameters or of their shapes."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    def function(leaves, example):
        return apply(jax.tree.unflatten(structure, leaves), *example)

    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    batch.check(function, leaves, shapes, [images], jax.make_jaxpr(function)(shapes, [one]))


def of_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("name", PROVEN)
def test_the_program_tells_that_examples_are_apart(name, monkeypatch):
    monkeypatch.setattr(batch, "_difference", lambda *_: pytest.fail("numbers were needed"))
    checked(PROVEN[name], of_shapes(PARAMS), of_shapes(IMAGES))


@pytest.mark.parametrize("name", TRIED)
def test_numbers_tell_where_the_program_does_not(name):
    checked(TRIED[name], PARAMS, IMAGES)
    checked(TRIED[name], of_shapes(PARAMS), of_shapes(IMAGES))


def with_capacity(p, x):
    t = tokens(p, x).reshape(-1, 6)
    chosen = jax.nn.one_hot(jnp.argmax(t @ p["router"], -1), 3)
    kept = chosen * (jnp.cumsum(chosen, 0) <= len(t) / 2)
    return read(p, jnp.einsum("te,tef->tf", kept, jnp.einsum("td,edf->tef", t, p["experts"])).reshape(len(x), 4, 6))


def chosen_by_experts(p, x):
    t = tokens(p, x).reshape(-1, 6)
    scores, places = jax.lax.top_k(jax.nn.softmax(t @ p["router"]).T, len(t) // 2)
    y = jnp.einsum("ecd,edf->ecf", t[places], p["experts"]) * scores[..., None]
    return read(p, jnp.zeros_like(t).at[places.reshape(-1)].add(y.reshape(-1, 6)).reshape(len(x), 4, 6))


def normalised(p, x):
    t = tokens(p, x)
    return read(p, (t - t.mean((0, 1))) / t.std((0, 1)))


def over_a_named_axis(p, x):
    return jax.vmap(lambda t: (t - jax.lax.pmean(t, "batch")).mean(0) @ p["head"], axis_name="batch")(tokens(p, x))


def noise(p, x):
    t = tokens(p, x)
    return read(p, jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, t.shape), t, 0))


MIXED = {f.__name__: f for f in (with_capacity, chosen_by_experts, normalised, over_a_named_axis, noise)} | {
    "similarity": lambda p, x: jax.nn.softmax(flat(p, x) @ flat(p, x).T) @ flat(p, x),
    "centred": lambda p, x: read(p, tokens(p, x - x.mean(0))),
    "its neighbour": lambda p, x: flat(p, x) + jnp.roll(flat(p, x), 1, 0),
    "the size": lambda p, x: flat(p, x) / len(x),
    "its place": lambda p, x: flat(p, x) + jnp.arange(len(x))[:, None],
    "rows by place": lambda p, x: flat(p, x) + p["head"][jnp.arange(len(x)), jnp.argmax(flat(p, x), -1)][:, None],
    "the mean of all": lambda p, x: flat(p, x).mean(0, keepdims=True),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_depends_on_the_batch_is_refused(name):
    with pytest.raises(ValueError, match=r"rest of its batch(.|\n)*deterministic=True"):
        lrp_jax.trace(MIXED[name], of_shapes(PARAMS), of_shapes(IMAGES))


def test_it_is_told_inside_of_a_jit():
    @jax.jit
    def explained(params, images):
        model = lrp_jax.trace(TRIED["sorted by expert"], params, images)
        return model.grid

    with pytest.raises(ValueError, match="rest of its batch"):
        jax.jit(lambda p, x: lrp_jax.trace(normalised, p, x))(PARAMS, IMAGES)
    with pytest.raises(lrp_jax.tracing.UnsupportedError, match="ragged_dot"):
        explained(PARAMS, IMAGES)


class Module(nnx.Module):
    def __init__(self, *layers):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(layer(rngs=rngs) for layer in layers)
        self.head = nnx.Linear(3, 5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("layer", [lambda rngs: nnx.BatchNorm(3, rngs=rngs), lambda rngs: nnx.Dropout(0.5, rngs=rngs)])
def test_modules_of_nnx_begin_in_training_mode(layer):
    module, images = Module(layer), IMAGES.astype(np.float32)
    graph, state = nnx.split(module)
    with pytest.raises(ValueError, match=r"module\.eval\(\)"):
        lrp_jax.trace(lambda state, images: nnx.merge(graph, state)(images), state, images)
    module.eval()
    graph, state = nnx.split(module)
    lrp_jax.trace(lambda state, images: nnx.merge(graph, state)(images), state, images)


def test_linen_in_training_mode():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            return nn.Dense(5)(nn.BatchNorm(use_running_average=not train)(x).mean((1, 2)))

    module, images = Linen(), IMAGES.astype(np.float32)
    variables = module.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="use_running_average=True"):
        lrp_jax.trace(lambda v, x: module.apply(v, x, mutable=["batch_stats"])[0], variables, images)
    lrp_jax.trace(lambda v, x: module.apply(v, x, train=False), variables, images)


def test_random_numbers_that_are_the_same_for_each_example_are_named():
    key = jax.random.key(0)

    def apply(p, x):
        return read(p, jnp.sin(tokens(p, x) @ jax.random.normal(key, (6, 6))))

    with pytest.warns(UserWarning, match=r"random_bits of .*test_batch.py"):
        lrp_jax.trace(apply, PARAMS, IMAGES)
