"""Images with their channels first or last: recognised, and explained alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import attribution, program
from lrp_jax.tracing import channels

pytestmark = pytest.mark.usefixtures("as_users")

WIDTH = 6


def drawn(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


# The first product of images [B, H, W, C] with parameters, in the ways in which people write it: parameters of a size,
# and the function to [B, ..., WIDTH].


def conv(size, spec="NHWC", window=4, stride=4, padding="VALID"):
    kernel = drawn(1, window, window, size[2], WIDTH)

    def first(kernel, x):
        x = x.transpose([0, *("HWC".index(letter) + 1 for letter in spec[1:])])
        z = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=(spec, "HWIO", "NHWC"))
        return z.reshape(len(z), -1, WIDTH)

    return kernel, first


def patches(size, p=4):
    rows, columns, c = size[0] // p, size[1] // p, size[2]
    kernel = drawn(1, p * p * c, WIDTH)

    def first(kernel, x):
        x = x.reshape(-1, rows, p, columns, p, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, p * p * c) @ kernel

    return kernel, first


def contracted(size, p=4):
    kernel = drawn(1, p, p, size[2], WIDTH)

    def first(kernel, x):
        x = x.reshape(-1, size[0] // p, p, size[1] // p, p, size[2])
        return jnp.einsum("bhpwqc,pqcd->bhwd", x, kernel).reshape(len(x), -1, WIDTH)

    return kernel, first


def pointwise(size):
    return drawn(1, size[2], WIDTH), lambda kernel, x: (x @ kernel).reshape(len(x), -1, WIDTH)


def depthwise(size):
    kernel = drawn(1, 2, 2, 1, size[2]), drawn(2, size[2], WIDTH)

    def first(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel[0], (2, 2), "VALID", dimension_numbers=numbers, feature_group_count=size[2]
        )
        return (x @ kernel[1]).reshape(len(x), -1, WIDTH)

    return kernel, first


def pooled(size):
    return drawn(1, size[2], WIDTH), lambda kernel, x: (x.mean(axis=(1, 2)) @ kernel)[:, None]


def in_grey(size):
    """Channels summed up by numbers that are no parameters."""
    kernel = drawn(1, 4, 4, WIDTH)

    def first(kernel, x):
        x = x.mean(axis=-1).reshape(-1, size[0] // 4, 4, size[1] // 4, 4)
        return jnp.einsum("bhpwq,pqd->bhwd", x, kernel).reshape(len(x), -1, WIDTH)

    return kernel, first


def enlarged(size):
    kernel, then = contracted((2 * size[0], 2 * size[1], size[2]))

    def first(kernel, x):
        return then(kernel, jax.image.resize(x, (len(x), 2 * size[0], 2 * size[1], size[2]), "bilinear"))

    return kernel, first


def repeated(size):
    kernel, then = contracted((2 * size[0], 2 * size[1], size[2]))
    return kernel, lambda kernel, x: then(kernel, jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


def normalised(size):
    """In another order of channels, each of mean 0."""
    kernel, then = contracted(size)

    def first(kernel, x):
        x = x[..., np.arange(size[2])[::-1]]
        return then(kernel, (x - x.mean(axis=(1, 2), keepdims=True)) / 2)

    return kernel, first


def one_by_one(size):
    kernel, first = contracted(size)
    return kernel, lambda kernel, x: jax.vmap(lambda image: first(kernel, image[None])[0])(x)


def padded(size):
    kernel, then = contracted((size[0] + 4, size[1], size[2]))
    return kernel, lambda kernel, x: then(kernel, jnp.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0))))


FIRST = {
    "conv": conv,
    "conv of NCHW": lambda size: conv(size, "NCHW"),
    "conv with overlap": lambda size: conv(size, window=3, stride=2, padding="SAME"),
    "space to depth": patches,
    "split axes": contracted,
    "pointwise": pointwise,
    "depthwise": depthwise,
    "pooled": pooled,
    "in grey": in_grey,
    "enlarged": enlarged,
    "repeated": repeated,
    "normalised": normalised,
    "one by one": one_by_one,
    "padded": padded,
}


def network(first, size):
    kernel, f = FIRST[first](size)
    params = {"kernel": kernel, "w": drawn(3, WIDTH, WIDTH), "out": drawn(4, WIDTH, 3)}

    def apply(params, x):
        x = jnp.tanh(f(params["kernel"], x) / 4)
        x = x + jnp.tanh(x @ params["w"])
        return x.mean(axis=1) @ params["out"]

    return params, apply


SIZES = {"colours": (8, 12, 3), "grey": (12, 8, 1), "bands": (8, 12, 16), "cube": (8, 8, 8)}


def found(apply, params, images):
    """The order, before anything else is recognised."""
    leaves, structure = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(lambda leaves, x: apply(structure.unflatten(leaves), x))(leaves, images)
    flat = program.flatten(jaxpr, lambda primitives: False)
    return channels.find(flat, flat.inputs[-1], flat.inputs[:-1])


def moved(apply):
    """The function of images channels first."""
    return lambda params, images: apply(params, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("first", FIRST)
def test_the_order_of_axes_is_found(first, size):
    params, apply = network(first, size)
    images = drawn(5, 1, *size)
    assert found(apply, params, images) == "last"
    assert found(moved(apply), params, images.transpose(0, 3, 1, 2)) == "first"


def attentive(params, x):
    """A class token and attention, its patches of different height and width."""
    x = jnp.einsum("bhpwqc,pqcd->bhwd", x.reshape(-1, 2, 4, 6, 2, 2), params["kernel"]).reshape(len(x), 12, WIDTH)
    x = jnp.concatenate([jnp.broadcast_to(params["token"], (len(x), 1, WIDTH)), x], axis=1) + params["positions"]
    a = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x @ params["q"], x) / 3, axis=-1)
    x = x + a @ (x @ params["v"])
    return x[:, 0] @ params["out"]


SHAPES = {"kernel": (4, 2, 2, WIDTH), "token": (1, 1, WIDTH), "positions": (13, WIDTH), "q": (WIDTH, WIDTH)}
PARAMS = {name: drawn(i, *shape) for i, (name, shape) in enumerate({**SHAPES, "v": (6, 6), "out": (6, 3)}.items())}
IMAGES = drawn(9, 2, 8, 12, 2)
FIRST_IMAGES = IMAGES.transpose(0, 3, 1, 2)
QUICK = {
    "smoothgrad": {"samples": 2},
    "integrated_gradients": {"steps": 3, "baseline": (0.5, -1.0)},
    "rise": {"masks": 3},
    "occlusion": {"baseline": (0.5, -1.0)},
}


@pytest.fixture(scope="module")
def models():
    with jax.numpy_rank_promotion("allow"):
        last, first = (lrp_jax.trace(f, PARAMS, x) for f, x in ((attentive, IMAGES), (moved(attentive), FIRST_IMAGES)))
    assert (last.channels, first.channels) == ("last", "first")
    assert first.grid == last.grid == (2, 6)
    assert "images of 8 x 12 pixels and 2 channels, channels first" in str(first)
    assert first.example.shape == (1, 2, 8, 12)
    return last, first


@pytest.mark.parametrize("method", lrp_jax.METHODS)
def test_maps_of_both_orders_are_the_same(models, method):
    last, first = (
        lrp_jax.explain(model, PARAMS, images, np.array([[0, 2], [1, 0]]), method=method, **QUICK.get(method, {}))
        for model, images in zip(models, (IMAGES, FIRST_IMAGES), strict=True)
    )
    np.testing.assert_allclose(first.logits, last.logits, rtol=1e-12)
    np.testing.assert_allclose(first.relevance, last.relevance, rtol=1e-9, atol=1e-12)


def test_pixels_are_those_of_a_gradient(models):
    gradient = jax.grad(lambda x: moved(attentive)(PARAMS, x)[:, 1].sum())(FIRST_IMAGES)
    found = lrp_jax.explain(models[1], PARAMS, FIRST_IMAGES, np.array([1, 1]), method="input_x_gradient")
    np.testing.assert_allclose(found.relevance[:, 0], (gradient * FIRST_IMAGES).sum(axis=1), rtol=1e-9)


def test_all_that_takes_images_takes_them_in_the_order_of_the_model(models):
    _, first = models
    assert attribution.most_probable(first, PARAMS, FIRST_IMAGES, 2).shape == (2, 2)
    assert lrp_jax.attention_signals(first, PARAMS, FIRST_IMAGES).relevance.shape == (2, 1, 1, 1, 13, 13)
    assert lrp_jax.conservation(first, PARAMS, FIRST_IMAGES).gap < 1e-9
    exported = lrp_jax.export(first, PARAMS, platforms=["cpu"], upsample=True)
    assert exported.in_avals[0].shape[1:] == (2, 8, 12)
    assert exported.out_avals[1].shape[2:] == (8, 12)
    with pytest.raises(
        ValueError, match=r"must be \[2, 8, 12\], channels first as the model was traced; got \[8, 12, 2\]"
    ):
        lrp_jax.explain(first, PARAMS, IMAGES)


def test_an_image_among_several_inputs_is_moved_as_well(models):
    inputs = {"image": FIRST_IMAGES, "scale": np.ones((2, 1))}
    model = lrp_jax.trace(
        lambda p, x: moved(attentive)(p, x["image"]) * x["scale"], PARAMS, inputs, explain_wrt="image"
    )
    assert model.channels == "first"
    for method in ("input_x_gradient", "transformer_attribution"):
        found = lrp_jax.explain(model, PARAMS, inputs, method=method)
        expected = lrp_jax.explain(models[0], PARAMS, IMAGES, method=method)
        np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def flat(params, x):
    return x.reshape(len(x), -1) @ params


@pytest.mark.parametrize("size", [(4, 6, 4), (1, 28, 28)])
def test_what_the_program_does_not_tell_is_asked_for(size):
    images, params = drawn(0, 1, *size), drawn(1, int(np.prod(size)), 3)
    with pytest.raises(ValueError, match="channels='last' for images"):
        lrp_jax.trace(flat, params, images)
    for order in ("first", "last"):
        shape = images.shape[2:] if order == "first" else images.shape[1:3]
        model = lrp_jax.trace(flat, params, images, channels=order)
        assert lrp_jax.explain(model, params, images, method="saliency").relevance.shape == (1, 1, *shape)
    with pytest.raises(ValueError, match="channels must be 'first' or 'last'"):
        lrp_jax.trace(flat, params, images, channels="NCHW")


def test_the_shortest_axis_has_the_channels_if_it_is_last_and_nothing_tells():
    images, params = drawn(0, 1, 6, 5, 3), drawn(1, 90, 3)
    assert lrp_jax.trace(flat, params, images).channels == "last"


GREY, WEIGHTS = drawn(6, 2, 8, 12), drawn(7, 16, 3)


def patches_of_grey(params, x):
    return (x.reshape(-1, 2, 4, 3, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 6, 16) @ params).mean(1)


def convolution_of_grey(params, x):
    return jax.lax.conv_general_dilated(x[:, None], params.T.reshape(3, 1, 4, 4), (4, 4), "VALID").mean((2, 3))


def layer_of_grey(params, x):
    return x.reshape(len(x), -1) @ jnp.tile(params, (6, 1))


def pixels_of_grey(params, x):
    return jnp.einsum("bhw,hwk->bk", x, jnp.tile(params, (6, 1)).reshape(8, 12, 3))


@pytest.mark.parametrize("apply", [patches_of_grey, convolution_of_grey, layer_of_grey, pixels_of_grey])
@pytest.mark.parametrize("first", [lambda x: x, lambda x: (x - 0.5) / 0.2, lambda x: x[..., None][..., 0]])
def test_grey_images_are_not_taken_for_features(apply, first):
    with pytest.raises(ValueError, match=r"\[1, 8, 12\].*model .*test_channels\.py.*images\[\.\.\., None\]"):
        lrp_jax.trace(lambda params, x: apply(params, first(x)), WEIGHTS, GREY)
    model = lrp_jax.trace(lambda params, x: apply(params, first(x[..., 0])), WEIGHTS, GREY[..., None])
    found = lrp_jax.explain(model, WEIGHTS, GREY[..., None], method="saliency")
    assert found.relevance.shape == (2, 1, 8, 12)


FEATURES = {
    "in groups": lambda p, x: jnp.tanh(x.reshape(-1, 8, 3, 4)).reshape(-1, 8, 12) @ p[:12],
    "heads apart": lambda p, x: jnp.einsum("bnhd,hdk->bnhk", x.reshape(-1, 8, 3, 4), p[:12].reshape(3, 4, 3)).sum(2),
    "two in one": lambda p, x: jnp.tanh(x.reshape(-1, 4, 24)) @ jnp.concatenate([p[:12], p[:12]]),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_split_are_no_grey_images(name):
    def apply(params, x):
        return FEATURES[name](params, x).mean(axis=1)

    model = lrp_jax.trace(apply, WEIGHTS, GREY)
    gradient = jax.grad(lambda x: apply(WEIGHTS, x)[:, 1].sum())(GREY)
    found = lrp_jax.explain(model, WEIGHTS, GREY, np.array([1, 1]), method="input_x_gradient")
    np.testing.assert_allclose(found.relevance[:, 0], (gradient * GREY).sum(axis=-1), rtol=1e-9)
