"""Maps without this library: a function in StableHLO, for any batch, that JAX can load and call, with flatbuffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from lrp_jax.attribution import explain, most_probable
from lrp_jax.checks import check_model
from lrp_jax.maps import centres, heatmaps
from lrp_jax.meshes import entered
from lrp_jax.model import Model, Params, prepared
from lrp_jax.pictures import Preprocessing
from lrp_jax.tracing import Traced
from lrp_jax.walk import number_of_classes

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    model: Model,
    params: Params,
    *,
    method: str = "transformer_attribution",
    takes_targets: bool = False,
    top_k: int = 1,
    upsample: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    example: Any = None,
    **options: Any,
) -> jax.export.Exported:
    """Make a function of images, parameters and method included, that does not need this library.

    ``path.write_bytes(export(...).serialize())`` keeps it (serialising needs the extra ``export``), and elsewhere, with
    jax and flatbuffers, ``jax.export.deserialize(path.read_bytes()).call(images)`` gives a mapping of ``logits``
    ``[B, C]``, ``targets`` ``[B, K]`` and ``relevance``, as of :class:`lrp_jax.Explanation`, for any number of images,
    under ``jit`` as well.

    Args:
        model: the model.
        params: its parameters.
        method: a name in :data:`lrp_jax.METHODS`.
        takes_targets: whether the function takes class indices, int32 ``[B, K]`` of any K, beside the images. Out of
            range, they get a map of zeros.
        top_k: otherwise, how many of the most probable classes it explains.
        upsample: enlarge maps to the size of the image.
        platforms: where it shall run, of :data:`PLATFORMS`.
        example: a batch, or its shapes and dtypes, which the function takes of any number; None: as the model was
            traced, or float32 images as ``model.config`` says.
        **options: the method's own.

    Returns:
        The function: https://docs.jax.dev/en/latest/export/export.html.

    Raises:
        ValueError: an argument is wrong, or nothing says what the model takes.
    """
    _check(model, platforms)
    batch, classes = jax.export.symbolic_shape("batch, classes")
    example = _example(model, example)
    _check_top_k(model, params, example, top_k, takes_targets)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), example)

    def function(images: Any, targets: Array | None = None) -> dict[str, Array]:
        if targets is None and top_k > 1:
            targets = most_probable(model, params, images, top_k)
        found = explain(model, params, images, targets, method=method, **options)
        maps = found.relevance
        if upsample:
            if not isinstance(images, Array) or images.ndim != 4 or not isinstance(maps, Array):
                raise ValueError("upsample is for one map of an image; this model or method has something else.")
            image = jax.eval_shape(lambda p, e: prepared(model, p, e)[1], params, images[0])
            maps = heatmaps(maps, (image.shape[0], image.shape[1]), centres=centres(model))
        return {"logits": found.logits, "targets": found.targets, "relevance": maps}

    inputs = [given, *[jax.ShapeDtypeStruct((batch, classes), jnp.int32)] * takes_targets]
    params = jax.device_get(params)
    with _apart():
        return jax.export.export(jax.jit(function), platforms=list(platforms))(*inputs)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Leave what is of this machine out of programs: the mesh of its devices, and the paths of its source files."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*")
    try:
        with entered(Mesh(np.asarray(jax.local_devices()[:1]), ("alone",))):
            yield
    finally:
        jax.config.update(option, before)


def _check(model: Model, platforms: Sequence[str]) -> None:
    check_model(model)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}; got {', '.join(platforms) or 'none'}.")


def _check_top_k(model: Model, params: Params, example: Any, top_k: int, takes_targets: bool) -> None:
    if top_k < 1 or (takes_targets and top_k != 1):
        raise ValueError(f"top_k must be at least 1, and is not for a function that takes targets; got {top_k}.")
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), example)
    if top_k > (count := number_of_classes(model, params, one)):
        raise ValueError(f"top_k must be at most the model's {count} classes, got {top_k}.")


def _example(model: Model, example: Any) -> Any:
    """What the model takes, shapes and dtypes of a batch."""
    if example is not None:
        return example
    if isinstance(model, Traced):
        return model.example
    config = getattr(model, "config", None)
    if not isinstance(config, Preprocessing):
        raise ValueError("example must be a batch, for a model that is neither traced nor has a ViTConfig; got None.")
    return jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
