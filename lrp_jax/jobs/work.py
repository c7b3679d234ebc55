"""What a job does with a batch, whatever the images: the program, what is stored of it, and what it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrp_jax.attribution import explain, most_probable
from lrp_jax.jobs.sources import Source, image_of
from lrp_jax.jobs.store import Layout
from lrp_jax.labels import Labels
from lrp_jax.maps import centres, heatmaps
from lrp_jax.methods import METHODS
from lrp_jax.methods.base import is_integer
from lrp_jax.model import Model, Params, ask, digest
from lrp_jax.pictures import Box, Preprocessing, box_of
from lrp_jax.version import __version__
from lrp_jax.walk import number_of_classes

DTYPES = ("float32", "float16", "float64")


@dataclasses.dataclass
class Work:
    """What is done with each image; see :func:`lrp_jax.jobs.attribute` for the fields.

    Raises:
        ValueError: one of them is wrong.
    """

    model: Model
    params: Params
    source: Source
    preprocessing: Preprocessing
    labels: Labels
    method: str
    options: dict[str, Any]
    top_k: int
    dtype: str
    upsample: bool

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}.")
        if self.dtype == "float64" and jnp.result_type(float) != np.float64:
            raise ValueError("float64 needs jax_enable_x64: set JAX_ENABLE_X64=1.")
        if not is_integer(self.top_k) or not 1 <= self.top_k <= self.labels.num_classes:
            raise ValueError(f"top_k must be 1 to the model's {self.labels.num_classes} classes, got {self.top_k}.")
        if not ask(self.model, "is_image"):
            raise ValueError("jobs explain images; this model takes something else.")
        if not len(self.source.names):
            raise ValueError("the source holds no images.")
        opened, channels = getattr(self.source, "channels", None), self.preprocessing.channels
        if opened not in (None, channels) and not {opened, channels} <= {1, 3}:
            raise ValueError(
                f"the source is of pictures of {opened} channels, the model has {channels}: open_source(..., "
                f"channels={channels}) reads bands from TIFF and .npy."
            )
        one = jax.ShapeDtypeStruct(self.preprocessing.image_shape, self.computed)
        classes = number_of_classes(self.model, self.params, one)
        if classes != self.labels.num_classes:
            raise ValueError(f"labels are of {self.labels.num_classes} classes, the model has {classes}.")

    @property
    def computed(self) -> np.dtype:
        """The dtype that images have."""
        return np.dtype("float64" if self.dtype == "float64" else "float32")

    def _example(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.preprocessing.image_shape), self.computed)

    def program(self, params: Params, images: Array, targets: Array | None) -> dict[str, Array]:
        """What is stored of a batch."""
        if targets is None and self.top_k > 1:
            targets = most_probable(self.model, params, images, self.top_k)
        found = explain(self.model, params, images, targets, method=self.method, **self.options)
        maps, scale = found.relevance, {}
        if not isinstance(maps, jax.Array):
            raise ValueError(f"{self.method} gives several maps for a class, with these options: use Python.")
        if self.upsample and maps.shape[-2:] != self.preprocessing.image_shape[:2]:
            maps = heatmaps(maps, self.preprocessing.image_shape[:2], centres=centres(self.model))
        if self.dtype == "float16":
            largest = jnp.abs(maps).max(axis=(-2, -1))
            maps = maps / jnp.where(largest > 0, largest, 1)[..., None, None]
            scale = {"scale": largest.astype(jnp.float32)}
        logits = found.logits.astype(self.computed)
        targets = found.targets.astype(jnp.int32)
        return {"relevance": maps.astype(self.dtype), "targets": targets, "logits": logits} | scale

    def layouts(self, targets: np.ndarray | None) -> dict[str, Layout]:
        """Of the arrays that the program fills, and of the boxes."""
        axes = {
            "relevance": ("target", "row", "column"),
            "targets": ("target",),
            "logits": ("class",),
            "scale": ("target",),
        }
        one = None if targets is None else jnp.asarray(targets[:1] if targets.ndim == 2 else targets[None])
        found = jax.eval_shape(self.program, self.params, self._example(), one)
        layouts = {name: Layout(str(x.dtype), x.shape[1:], axes[name]) for name, x in found.items()}
        return layouts | {"box": Layout("float64", (4,), ("edge",))}

    def settings(self, targets: np.ndarray | None) -> dict[str, Any]:
        """What maps depend on, as JSON has it."""
        if targets is None:
            explained: Any = f"the {self.top_k} most probable"
        elif targets.ndim == 1:
            explained = targets.tolist()
        else:
            explained = f"of each image, {hashlib.sha256(targets.tobytes()).hexdigest()[:16]}"
        return {
            **self.source.kind,
            "model": digest(self.params, self.model, self.preprocessing, self.labels),
            "method": self.method,
            "options": METHODS[self.method].recorded(self.options),
            "targets": explained,
            "dtype": self.dtype,
            "upsample": self.upsample,
            "preprocessing": fields_of(self.preprocessing, Preprocessing),
            "lrp_jax": __version__,
            "jax": jax.__version__,
        }

    def read(self, i: int) -> tuple[np.ndarray, Box] | str:
        """Image i, and which part it is of its picture; or why it cannot be read."""
        try:
            found = self.source.read(i)
            return image_of(found, self.preprocessing, self.computed), box_of(found, self.preprocessing)
        except (OSError, ValueError) as error:
            return " ".join(str(error).split())


def fields_of(config: Any, kind: type) -> dict[str, Any]:
    """The fields that a configuration has as one of a kind."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(kind)}
