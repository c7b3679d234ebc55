"""Products are explained as functions, not as programs: wherever their axes, scales and biases are written."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax.rules import ATTNLRP, base, with_gamma
from lrp_jax.tracing.interpret import run
from lrp_jax.walk import forward

pytestmark = pytest.mark.usefixtures("as_users")

N, D, HEADS = 6, 6, 2  # as many tokens as features: axes are not told apart by their sizes
PATCHES = 5


# A layer: a product, then scales and shifts of its features. Layouts write it differently.

STAGES = ("mul", "add", "sub", "from", "neg", "div", "number", "norm")


def layer(rng, inputs, outputs):
    """Its kernel, and what follows, as names of stages with their constants."""
    kernel = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
    stages = []
    for i, name in enumerate(rng.choice(STAGES, rng.integers(1, 4))):
        count = {"neg": 0, "norm": 3}.get(name, 1)
        constants = [rng.normal(size=outputs) for _ in range(count)]
        if name == "number":
            constants = [float(rng.choice([0.5, -2.0])) if i == 0 else -2.0]  # above 0 and last, it is no part of it
        if name == "div":
            constants = [np.abs(constants[0]) + 0.5]
        stages.append((str(name), constants))
    return {"kernel": kernel, "stages": [constants for _, constants in stages]}, [name for name, _ in stages]


def staged(name, z, c):
    if name == "norm":  # a batch norm at inference
        return (z - c[0]) * c[1] + c[2]
    return {
        "mul": lambda: z * c[0],
        "add": lambda: c[0] + z,
        "sub": lambda: z - c[0],
        "from": lambda: c[0] - z,
        "neg": lambda: -z,
        "div": lambda: z / c[0],
        "number": lambda: c[0] * z,
    }[name]()


def plain(names, p, x, rng):
    """``x @ w + b``, scales in the kernel."""
    outputs = p["kernel"].shape[1]

    def after(z):
        for name, constants in zip(names, p["stages"], strict=True):
            z = staged(name, z, constants)
        return z

    bias = after(jnp.zeros(outputs))
    return x @ (p["kernel"] * (after(jnp.ones(outputs)) - bias)) + bias


class Laid:
    """An array ``[b, n, features]`` in some layout: the letters of its axes, of which features may have several."""

    def __init__(self, array, axes, features):
        self.array, self.axes, self.features = array, axes, features

    def move(self, rng):
        """One random move that keeps features apart."""
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        kind = rng.choice(["transpose", "split", "squeeze", "expand", "merge", "reverse"])
        if kind == "transpose":
            order = rng.permutation(len(self.axes))
            return Laid(self.array.transpose(order), "".join(self.axes[i] for i in order), self.features)
        if kind == "split" and self.features == "o" and sizes["o"] % 2 == 0 and "o" in self.axes:
            at = self.axes.index("o")
            shape = (*self.array.shape[:at], 2, sizes["o"] // 2, *self.array.shape[at + 1 :])
            return Laid(self.array.reshape(shape), self.axes.replace("o", "hd"), "hd")
        if kind == "merge" and "hd" in self.axes:
            at = self.axes.index("hd")
            shape = (*self.array.shape[:at], -1, *self.array.shape[at + 2 :])
            return Laid(self.array.reshape(shape), self.axes.replace("hd", "o"), "o")
        if kind == "squeeze" and "b" in self.axes:
            return Laid(self.array.squeeze(self.axes.index("b")), self.axes.replace("b", ""), self.features)
        if kind == "expand" and "b" not in self.axes:
            return Laid(self.array[None], "b" + self.axes, self.features)
        return self

    def constant(self, c):
        """A constant of all features, where the array has them."""
        if jnp.ndim(c) == 0:
            return c
        sizes = dict(zip(self.axes, self.array.shape, strict=True))
        c = c.reshape([sizes[letter] for letter in self.features])
        order = sorted(range(len(self.features)), key=lambda i: self.axes.index(self.features[i]))
        c = c.transpose(order)
        return jnp.expand_dims(c, [i for i, letter in enumerate(self.axes) if letter not in self.features])

    def apply(self, name, constants):
        return Laid(staged(name, self.array, [self.constant(c) for c in constants]), self.axes, self.features)

    def back(self):
        array, axes = self.array, self.axes
        if "b" not in axes:
            array, axes = array[None], "b" + axes
        array = array.transpose([axes.index(letter) for letter in "bn" + self.features])
        return array.reshape(*array.shape[:2], -1)


def left(w, x):
    return Laid(jax.lax.dot_general(w, x, (((0,), (2,)), ((), ()))), "obn", "o")


PRODUCTS = {
    "right": lambda w, x: Laid(x @ w, "bno", "o"),
    "left": left,
    "vmap": lambda w, x: Laid(jax.vmap(jax.vmap(lambda token: w.T @ token))(x), "bno", "o"),
    "of columns": lambda w, x: Laid(jax.vmap(lambda one: w.T @ one.T)(x), "bon", "o"),
    "vectorized": lambda w, x: Laid(jnp.vectorize(lambda t, w: t @ w, signature="(k),(k,o)->(o)")(x, w), "bno", "o"),
    "tensordot": lambda w, x: Laid(jnp.tensordot(w, x, ((0,), (2,))), "obn", "o"),
    "features in the middle": lambda w, x: Laid(jnp.einsum("bnk,ko->bon", x, w), "bon", "o"),
    "tokens first": lambda w, x: Laid(jnp.einsum("ko,bnk->nbo", w, x), "nbo", "o"),
    "heads": lambda w, x: Laid(jnp.einsum("bnk,khd->bhnd", x, w.reshape(len(w), 2, -1)), "bhnd", "hd"),
    "each head": lambda w, x: Laid(jax.vmap(lambda w: x @ w, 1)(w.reshape(len(w), 2, -1)), "hbnd", "hd"),
    "convolution": lambda w, x: Laid(
        jax.lax.conv_general_dilated(x, w[None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")), "bno", "o"
    ),
    "channels first": lambda w, x: Laid(
        jax.lax.conv_general_dilated(x.mT, w.T[..., None], (1,), "VALID", dimension_numbers=("NCW", "OIW", "NCW")),
        "bon",
        "o",
    ),
}


def laid_out(names, p, x, rng):
    """The same in a random layout."""
    flat = x if x.ndim == 3 else x[:, None]
    z = PRODUCTS[rng.choice([*PRODUCTS])](p["kernel"], flat)
    for name, constants in zip(names, p["stages"], strict=True):
        for _ in range(rng.integers(4)):
            z = z.move(rng)
        z = z.apply(name, constants)
    for _ in range(rng.integers(3)):
        z = z.move(rng)
    return z.back().reshape(*x.shape[:-1], -1)


def in_parts(names, p, x, rng):
    """In two products or one that is split, each part with its own scales and biases, or all with those of all."""
    half = p["kernel"].shape[1] // 2
    cuts = [slice(None, half), slice(half, None)]
    kind = rng.choice(["one product", "one affine", "neither", "stacked"])
    wholes = {"one product": 0, "one affine": len(names), "neither": rng.integers(len(names) + 1), "stacked": 0}
    if kind == "one product":
        z = x @ p["kernel"] if rng.integers(2) else jnp.moveaxis(jnp.einsum("ko,b...k->ob...", p["kernel"], x), 0, -1)
        parts = [z[..., cut] for cut in cuts] if rng.integers(2) else jnp.split(z, [half], axis=-1)
    else:
        parts = [x @ p["kernel"][:, cut] for cut in cuts]
    before = len(names) - int(wholes[kind])
    for name, constants in list(zip(names, p["stages"], strict=True))[:before]:
        cut_of = [[c if jnp.ndim(c) == 0 else c[cut] for c in constants] for cut in cuts]
        parts = [staged(name, z, c) for z, c in zip(parts, cut_of, strict=True)]
    if kind == "stacked":
        z = jnp.stack(parts)
        return jnp.concatenate([z[0], z[1]], axis=-1)
    z = jnp.concatenate(parts, axis=-1)
    for name, constants in list(zip(names, p["stages"], strict=True))[before:]:
        z = staged(name, z, constants)
    return z


# A model of such layers.

SIZES = {"patches": (12, D), "qkv": (D, 3 * D), "out": (D, D), "in": (D, 2 * D), "mlp": (2 * D, D), "head": (D, 4)}


@functools.cache
def parameters(seed):
    rng = np.random.default_rng(seed)
    made = {name: layer(rng, *sizes) for name, sizes in SIZES.items()}
    params = {name: p for name, (p, _) in made.items()}
    params |= {
        "token": rng.normal(size=(1, D)),
        "positions": rng.normal(size=(N, D)),
        "norms": rng.normal(size=(2, 2, D)),
    }
    return params, {name: stages for name, (_, stages) in made.items()}


def normed(p, t, rng, transposed):
    scale, shift = p
    axis = -1
    if transposed:
        t, scale, shift, axis = t.mT, scale[:, None], shift[:, None], 1
    t = t - t.mean(axis, keepdims=True)
    t = t / jnp.sqrt((t * t).mean(axis, keepdims=True) + 1e-6)
    if transposed == 1:
        return (t * scale + shift).mT
    return t.mT * scale[:, 0] + shift[:, 0] if transposed else t * scale + shift


def classify(names, write, seed, params, x):
    """``write``: how layers are written, ``(names, p, x, rng)``."""
    rng = np.random.default_rng(seed)
    is_plain = write is plain

    def dense(name, x):
        return write(names[name], params[name], x, rng)

    x = x.reshape(-1, PATCHES, 2, 2, 3).reshape(-1, PATCHES, 12)
    t = jnp.concatenate([jnp.broadcast_to(params["token"], (len(x), 1, D)), dense("patches", x)], axis=1)
    how = 0 if is_plain else rng.integers(3)
    positions = params["positions"]
    t = [lambda: t + positions, lambda: (positions.T + t.mT).mT, lambda: t - -positions][how]()
    qkv = dense("qkv", normed(params["norms"][0], t, rng, 0 if is_plain else rng.integers(3)))
    q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / 3**0.5, k)
    o = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v).reshape(t.shape)
    t = t + dense("out", o)
    y = jax.nn.relu(dense("in", normed(params["norms"][1], t, rng, 0 if is_plain else rng.integers(3))))
    t = t + dense("mlp", y)
    return dense("head", t[:, 0])


X = np.random.default_rng(1).normal(size=(1, 2 * PATCHES, 2, 3))


def recorded(apply, params):
    """What the rules see of a model: columns of kernels with their biases, and values of all else, in any order."""
    columns, others = {}, {}

    def dense(x, kernel, bias, *, product=jnp.matmul):
        z = base.dense(x, kernel, bias, product=product)
        bias = 0 if bias is None else bias
        if product is not jnp.matmul:  # a convolution of one row
            is_first = z.shape[-1] != kernel.shape[-1]
            kernel, bias = (kernel[..., 0].T, jnp.ravel(bias)) if is_first else (kernel[0], jnp.ravel(bias))
        seen = jnp.concatenate([kernel, jnp.broadcast_to(bias, (*kernel.shape[:-2], 1, kernel.shape[-1]))], axis=-2)
        columns.setdefault(seen.shape[-2], []).extend(np.moveaxis(seen, -2, -1).reshape(-1, seen.shape[-2]))
        return z

    def kept(name):
        def operation(*inputs, **options):
            found = getattr(base.GRADIENT, name)(*inputs, **options)
            others.setdefault(name, []).append([np.sort(np.ravel(x)) for x in (*inputs[: 1 + (name != "mean")], found)])
            return found

        return operation

    rules = dataclasses.replace(
        base.GRADIENT, dense=dense, patch_embed=dense, **{name: kept(name) for name in ("matmul", "add", "mean")}
    )
    model = lrp_jax.trace(apply, params, X)
    found = {"logits": run(model.program, rules, model.inputs(params, jnp.asarray(X[0])))[0][0]}
    found |= {f"{k} inputs": np.array(sorted(map(tuple, np.round(c, 9)))) for k, c in columns.items()}
    return found | others


@pytest.mark.parametrize("write", [laid_out, in_parts])
@pytest.mark.parametrize("seed", range(6))
def test_rules_see_one_product_in_every_layout(seed, write):
    """Its kernel with all scales, and its bias with all shifts; positions are an addition, and no bias is."""
    params, names = parameters(seed % 3)
    found = recorded(functools.partial(classify, names, write, seed), params)
    expected = recorded(functools.partial(classify, names, plain, 0), params)
    assert found.keys() == expected.keys()
    for name in expected:
        for a, b in zip(found[name], expected[name], strict=True):
            for x, y in zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]:
                np.testing.assert_allclose(x, y, rtol=0, atol=2e-9, err_msg=name)


METHODS = {
    "transformer_attribution": {},
    "gamma": {"method": "full_lrp", "rules": with_gamma(ATTNLRP, 0.1, "all")},
    "FullGrad": {"method": "libragrad", "full": True},
    "at blocks": {"method": "cp_lrp", "at": "blocks"},
}


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_the_layout(method):
    maps = []
    for write in (plain, laid_out):
        params, names = parameters(0)
        model = lrp_jax.trace(functools.partial(classify, names, write, 3), params, X)
        maps.append(lrp_jax.explain(model, params, X, jnp.array([1]), **{"method": method} | METHODS[method]).relevance)
    np.testing.assert_allclose(maps[1], maps[0], rtol=0, atol=1e-11 * np.abs(maps[0]).max())


@pytest.mark.parametrize("write", [plain, laid_out, in_parts])
def test_conservation_closes_in_every_layout(write):
    params, names = parameters(1)
    model = lrp_jax.trace(functools.partial(classify, names, write, 5), params, X)
    assert lrp_jax.conservation(model, params, X, jnp.array([1])).gap < 1e-12


# Single products, on pixels [1, 4, 3, 6].

PIXELS = np.random.default_rng(2).normal(size=(1, 4, 3, 6))
DRAWN = np.random.default_rng(3)
GIVEN = {
    name: DRAWN.normal(size=shape)
    for name, shape in {
        "w": (6, 6), "b": (6,), "s": (6,), "head": (6, 2), "qkv": (6, 18), "c": (18,), "tokens": (12,),
        "positions": (12, 6), "depthwise": (3, 3, 1, 6), "grouped": (1, 1, 3, 6), "each": (2, 3, 3),
    }.items()
}  # fmt: skip
ORDER = np.array([3, 0, 5, 1, 2, 4])


def tokens(x):
    return x.reshape(1, 12, 6)


def convolved(x, w, s, b, groups):
    z = jax.lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME", feature_group_count=groups
    )
    return (jnp.moveaxis(z, 1, -1) * s + b).reshape(1, 12, 6)


def scanned(p, x):
    def step(t, p):
        w, b, s = p
        return t + ((w.T @ t[0].T).T + b)[None] * s, None

    t = tokens(x) @ p["w"]
    return jax.lax.scan(step, t, (jnp.stack([p["w"]] * 2), jnp.stack([p["b"]] * 2), jnp.stack([p["s"]] * 2)))[0]


#: What is one operation each, with its scales and shifts: the same written plainly, where there is another way.
WHOLE = {
    "a bias of three parts and heads": (
        lambda p, x: (
            ((tokens(x) @ p["qkv"]).reshape(1, 12, 3, 2, 3) + p["c"].reshape(3, 2, 3)).sum(2).reshape(1, 12, 6)
        ),
        lambda p, x: (tokens(x) @ p["qkv"] + p["c"]).reshape(1, 12, 3, 2, 3).sum(2).reshape(1, 12, 6),
    ),
    "parts one by one": (
        lambda p, x: sum(map(jnp.add, *(jnp.split(a, 3, -1) for a in (tokens(x) @ p["qkv"], p["c"])))),
        lambda p, x: sum(jnp.split(tokens(x) @ p["qkv"] + p["c"], 3, -1)),
    ),
    "depthwise": (
        lambda p, x: convolved(x, p["depthwise"], p["s"], p["b"], 6),
        lambda p, x: convolved(x, p["depthwise"] * p["s"], 1.0, p["b"], 6),
    ),
    "grouped": (
        lambda p, x: convolved(x, p["grouped"], p["s"], p["b"], 2),
        lambda p, x: convolved(x, p["grouped"] * p["s"], 1.0, p["b"], 2),
    ),
    "a kernel for each group": (
        lambda p, x: (
            (jnp.einsum("ngi,gio->gno", x.reshape(12, 2, 3), p["each"]) + p["b"].reshape(2, 1, 3))
            .transpose(1, 0, 2)
            .reshape(1, 12, 6)
        ),
        None,
    ),
    "a token": (
        lambda p, x: ((tokens(x) @ p["w"])[:, 2] * p["s"] + p["b"])[:, None],
        lambda p, x: (tokens(x) @ (p["w"] * p["s"]) + p["b"])[:, 2:3],
    ),
    "another order": (
        lambda p, x: (tokens(x) @ p["w"])[..., ORDER] - p["b"],
        lambda p, x: (tokens(x) @ p["w"] - p["b"][np.argsort(ORDER)])[..., ORDER],
    ),
    "repeated": (
        lambda p, x: (jnp.repeat(tokens(x) @ p["w"], 2, axis=-1) + jnp.repeat(p["b"], 2))[..., ::2],
        lambda p, x: tokens(x) @ p["w"] + p["b"],
    ),
    "a bias at every token": (
        lambda p, x: (
            (tokens(x) @ p["w"]).mT.reshape(1, 2, 3, 12) + jnp.tile(p["b"].reshape(2, 3)[..., None], (1, 1, 12))
        ),
        lambda p, x: (tokens(x) @ p["w"] + p["b"]).mT.reshape(1, 2, 3, 12),
    ),
}


def seen(function, params=GIVEN):
    """The operations of a function, but for moves, with its values."""

    def apply(p, x):
        y = function(p, x)
        return y.reshape(1, -1)[:, :2] if y.size < 12 else y.reshape(1, -1)[:, ::7]

    model = lrp_jax.trace(apply, params, PIXELS)
    return [line.operation for line in model.report() if line.operation != "move"], model


@pytest.mark.parametrize("name", WHOLE)
def test_scales_and_shifts_are_of_the_product_before_them(name):
    function, plainly = WHOLE[name]
    operations, model = seen(function)
    assert operations[0] == "patch_embed"
    assert set(operations[1:]) <= {"mean", "add", "activation"}  # a sum is a mean, times a number
    pairs = [relevance_of(m) for m in (model, seen(plainly)[1])] if plainly else [relevance_of(model)]
    for a, b in zip(pairs[0], pairs[-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def relevance_of(model):
    """Logits, then relevance by three sets."""
    found = []
    for rules in (lrp_jax.RULES["stable"], lrp_jax.RULES["libragrad"], with_gamma(ATTNLRP, 0.1, "all")):
        logits, pull = jax.vjp(lambda x, r=rules: forward(model, GIVEN, x, r), jnp.asarray(PIXELS[0]))
        found += [logits, *pull(jnp.ones_like(logits))]
    return found


#: What is no part of a product, and the operations that are seen.
APART = {
    "a scale of tokens": (
        lambda p, x: (tokens(x) @ p["w"] + p["b"]) * p["tokens"][:, None] + p["s"],
        ["patch_embed", "activation", "layer_norm"],
    ),
    "a scale of tokens, features first": (
        lambda p, x: (jnp.einsum("bnk,ko->bon", tokens(x), p["w"]) + p["b"][:, None]) * p["tokens"] + p["s"][:, None],
        ["patch_embed", "activation", "layer_norm"],
    ),
    "positions, and a bias": (
        lambda p, x: (tokens(x) @ p["w"]).mT + p["positions"].T + p["b"][:, None],
        ["patch_embed", "add"],
    ),
    "positions taken away": (lambda p, x: (tokens(x) @ p["w"]).mT - p["positions"].T, ["patch_embed", "add"]),
    "a bias of a class token as well": (
        lambda p, x: jnp.concatenate([p["w"][None, :1], tokens(x) @ p["w"]], 1).mT + p["b"][:, None],
        ["patch_embed", "layer_norm"],
    ),
    "positions beside a class token": (
        lambda p, x: jnp.concatenate([p["w"][None, :1], tokens(x) @ p["w"]], 1)[:, :12].mT + p["positions"].T,
        ["patch_embed", "add"],
    ),
    "a bias of heads after an activation": (
        lambda p, x: jax.nn.relu(tokens(x) @ p["w"]).reshape(12, 2, 3).transpose(1, 0, 2) + p["b"].reshape(2, 1, 3),
        ["patch_embed", "activation", "layer_norm"],
    ),
    "a shift of half of the readers": (
        lambda p, x: (lambda z: (z + p["b"]) @ p["w"] + z)(tokens(x) @ p["w"]),
        ["patch_embed", "layer_norm", "dense", "add"],
    ),
    "a bias of more digits than those before": (  # the value is the model's own
        lambda p, x: (tokens(x) @ p["w"]).astype(jnp.float32).astype(jnp.float64) + p["b"],
        ["patch_embed"],
    ),
    "a bias of a sum whose terms are read": (
        lambda p, x: (lambda y, t: (y + t + p["b"]) @ p["w"] + y)(tokens(x) @ p["w"], jnp.tanh(tokens(x))),
        ["patch_embed", "activation", "add", "layer_norm", "dense", "add"],
    ),
    "a bias of a sum of which a part is read": (
        lambda p, x: (lambda s: jnp.concatenate([s[..., :3] + p["b"][:3], s[..., 2:5]], -1))(
            tokens(x) @ p["w"] + jnp.tanh(tokens(x))
        ),
        ["patch_embed", "activation", "add", "layer_norm"],
    ),
    "a scale by the result": (
        lambda p, x: (lambda z: z / jax.lax.stop_gradient(jnp.abs(z).max()))(tokens(x) @ p["w"]),
        ["patch_embed", "activation"],
    ),
    "a scale above 0": (lambda p, x: (tokens(x) @ p["w"] + p["b"]) * 0.5, ["patch_embed", "activation"]),
    "blocks in a loop": (scanned, ["patch_embed", "scan", "dense", "add"]),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_no_part_of_a_product(name):
    function, expected = APART[name]
    assert seen(function)[0] == expected


# A product, a bias, and another term that is read beside: one map, in whatever order they are added.

SUMS = {
    "to the product": lambda t, y, b: t + (y + b),
    "to the sum": lambda t, y, b: (t + y) + b,
    "first": lambda t, y, b: b + (y + t),
    "to the other term": lambda t, y, b: (t + b) + y,
    "to the other term, behind": lambda t, y, b: y + (b + t),
    "taken away": lambda t, y, b: (y + t) - (-b),
    "to the sum, scaled": lambda t, y, b: (t + (y / -2) * -2) + b,
    "to the sum, transposed": lambda t, y, b: ((t + y).mT + b[:, None]).mT,
    "to the sum, in heads": lambda t, y, b: (
        ((t + y).reshape(*t.shape[:2], 2, 3) + b.reshape(2, 3)).transpose(2, 1, 0, 3).transpose(2, 1, 0, 3)
    ).reshape(t.shape),
    "to the sum, in parts": lambda t, y, b: (
        lambda s: jnp.concatenate([s[..., :2] + b[:2], s[..., 2:] + b[2:]], axis=-1)
    )(t + y),
    "in two parts": lambda t, y, b: (0.25 * b + t) + y + 0.75 * b,
    "before positions": lambda t, y, b: ((t + y) + jnp.ones((1, 12, 1)) * 0.0) + b,
}


def summed(add, dtype, p, x):
    t = add(jnp.tanh(tokens(x)), tokens(x) @ p["w"], p["b"])
    y = (jax.nn.relu(t).astype(dtype) @ p["w"].astype(dtype)).astype(t.dtype) * -jnp.abs(p["s"])
    return add(t, y, p["b"] / 2)


@pytest.mark.parametrize("name", SUMS)
def test_a_bias_is_of_the_product_in_any_order_of_a_sum(name):
    """Relevance and values; also after a cast, through which a scale and a bias are folded."""
    model, plainly = (seen(functools.partial(summed, SUMS[of], jnp.float64))[1] for of in (name, "to the product"))
    for a, b in zip(relevance_of(model), relevance_of(plainly), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def test_scales_and_biases_go_through_casts():
    """Values are rounded where the program rounds them, and relevance is that of the same product without casts."""
    low, high = (seen(functools.partial(summed, SUMS["to the sum"], of))[1] for of in (jnp.bfloat16, jnp.float64))
    assert [line.operation for line in low.report() if line.operation != "move"] == [
        line.operation for line in high.report() if line.operation != "move"
    ]
    logits, *found = relevance_of(low)
    function = functools.partial(summed, SUMS["to the product"], jnp.bfloat16)
    np.testing.assert_allclose(logits, function(GIVEN, PIXELS).reshape(-1)[::7], rtol=1e-12)
    for a, b in zip([logits, *found], relevance_of(high), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.03 * np.abs(b).max())


def test_of_two_products_one_has_the_bias():
    """That without a bias, or the nearest to the output, or that of later parameters; in any order."""

    def bias(function):
        model = seen(function)[1]
        return relevance_of(model)[2:]

    def one(p, x):
        return tokens(x) @ p["w"]

    def two(p, x):
        return jnp.tanh(tokens(x)) @ p["qkv"][:, :6]

    def deep(p, x):
        return jax.nn.relu(two(p, x)) @ p["w"]

    ways = [
        [lambda p, x: (one(p, x) + p["b"]) + two(p, x), lambda p, x: two(p, x) + (p["b"] + one(p, x))],
        [
            lambda p, x: (one(p, x) + two(p, x)) + p["b"],
            lambda p, x: p["b"] + (two(p, x) + one(p, x)),
            lambda p, x: two(p, x) + (one(p, x) + p["b"]),
        ],
        [
            lambda p, x: (one(p, x) + deep(p, x)) + p["b"],
            lambda p, x: p["b"] + (deep(p, x) + one(p, x)),
            lambda p, x: one(p, x) + (deep(p, x) + p["b"]),
        ],
        [
            lambda p, x: (one(p, x) + (deep(p, x) + p["c"][:6])) + p["b"],
            lambda p, x: (one(p, x) + p["b"]) + (deep(p, x) + p["c"][:6]),
        ],
    ]
    for first, *others in ways:
        for other in others:
            for a, b in zip(bias(other), bias(first), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())
