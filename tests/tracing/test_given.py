"""What trace and explain are given: each error names the leaf, what was expected, and how to pick it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax

pytestmark = pytest.mark.usefixtures("as_users")

IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
PARAMS = {"head": {"kernel": np.ones((3, 5)), "bias": np.arange(5.0)}}


def head(p, x):
    return jnp.tanh(x).mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


def with_leaf(leaf):
    return {"head": PARAMS["head"] | {"act": leaf}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((head, with_leaf(jax.nn.gelu), IMAGES), r"params\['head'\]\['act'\] must be an array, got .*eqx.partition"),
        ((head, with_leaf("gelu"), IMAGES), r"params\['head'\]\['act'\] must be an array, got str 'gelu'"),
        ((head, with_leaf(np.array(["a"])), IMAGES), r"\['act'\] must be an array"),
        ((head, with_leaf(np.array([{}])), IMAGES), r"\['act'\] must be an array"),
        ((head, nn.Dense(3), IMAGES), r"params must be an array, got Dense.*of linen, give what init gave"),
        ((head, [PARAMS, nn.Dense(3)], IMAGES), r"params\[1\] must be an array"),
        ((PARAMS, head, IMAGES), "apply must be a function of parameters and images, got dict"),
        ((head, IMAGES, PARAMS), r"trace takes \(apply, params, images\)"),
        ((head, IMAGES, np.ones(5)), r"trace takes \(apply, params, images\)"),
        ((head, PARAMS, (IMAGES * 9).astype(np.uint8)), r"integers are tokens, \[B, N\], got uint8\[2, 4, 4, 3\]"),
        ((head, PARAMS, IMAGES[0]), r"float64\[B,4,3\], .* One image is a batch of one, images\[None\]"),
        ((head, PARAMS, IMAGES[..., 0]), r"grey ones have an axis of one channel, images\[..., None\]"),
        ((head, PARAMS, IMAGES.astype(np.float16)), "must be float32 or float64, .* got float16"),
        ((head, PARAMS, jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16)), "got bfloat16"),
        ((head, PARAMS, IMAGES > 0), "got bool"),
        ((head, PARAMS, "cat.png"), "images must be an array, got str 'cat.png'"),
        ((head, PARAMS, None), "images must be an array, or several, got NoneType"),
        ((head, PARAMS, {"x": IMAGES, "train": False}), r"images\['train'\] is a number, False"),
    ],
)
def test_what_is_given_is_checked_before_it_is_traced(arguments, message):
    with pytest.raises(ValueError, match=message):
        lrp_jax.trace(*arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": PARAMS["head"]["kernel"].astype(np.float32)}, r"\['kernel'\] must be float64\[3,5\].*got float32"),
        (
            {"bias": np.ones(4)},
            r"params\['head'\]\['bias'\] must be float64\[5\], as the model was traced, got .*\[4\]",
        ),
        ({"scale": np.ones(5)}, r"unknown params\['head'\]\['scale'\]"),
    ],
)
def test_parameters_are_those_that_were_traced(changed, message):
    model = lrp_jax.trace(head, PARAMS, IMAGES)
    with pytest.raises(ValueError, match=message):
        lrp_jax.explain(model, {"head": PARAMS["head"] | changed}, IMAGES, method="input_x_gradient")
    with pytest.raises(ValueError, match=r"missing params\['head'\]\['bias'\], params\['head'\]\['kernel'\]"):
        lrp_jax.explain(model, {}, IMAGES, method="input_x_gradient")


class Callable:
    def __init__(self, function):
        self.function = function

    def __call__(self, p, x):
        return self.function(p, x)

    def method(self, p, x):
        return self(p, x)


@pytest.mark.parametrize(
    "wrapped",
    [
        jax.jit,
        Callable,
        lambda f: Callable(f).method,
        lambda f: functools.partial(lambda factor, p, x: factor * f(p, x), 1),
        lambda f: jax.jit(functools.partial(f)),
    ],
)
def test_functions_of_all_sorts(wrapped):
    """One function object may be traced for several models."""
    apply = wrapped(head)
    wide = {"head": {"kernel": np.ones((3, 7)), "bias": np.ones(7)}}
    models = [lrp_jax.trace(apply, params, IMAGES) for params in (PARAMS, wide)]
    for model, params in zip(models, (PARAMS, wide), strict=True):
        found = lrp_jax.explain(model, params, IMAGES, method="input_x_gradient")
        np.testing.assert_allclose(found.logits, head(params, IMAGES), rtol=1e-12)


def test_a_mapping_of_one_is_explained():
    model = lrp_jax.trace(lambda p, x: head(p, x["image"]), PARAMS, {"image": IMAGES})
    found, expected = (
        lrp_jax.explain(m, PARAMS, x, [1, 2], method="input_x_gradient").relevance
        for m, x in ((model, {"image": IMAGES}), (lrp_jax.trace(head, PARAMS, IMAGES), IMAGES))
    )
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-12)
