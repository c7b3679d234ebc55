"""A page of a store: thumbnails with their maps, to be looked through by class, by failure, and by how unlike they are.

It is read from its folder by any browser, without a server: ``index.html``, ``data.js`` and the thumbnails.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from lrp_jax.checks import visible
from lrp_jax.datasets import spaced
from lrp_jax.files import DATA, filling, replacing, replacing_folder
from lrp_jax.jobs.sources import Source, open_source
from lrp_jax.jobs.store import EXPLAINED, FAILED, Store
from lrp_jax.labels import Labels
from lrp_jax.maps import heatmaps
from lrp_jax.methods import METHODS
from lrp_jax.pictures import Preprocessing, limits_of, note_bands, overlay, preprocess, save, scale_of_colours

LIMIT = 20_000
_THUMBNAILS = "thumbnails"
_HEIGHT = 128  # of a thumbnail, in pixels
_FOLDER = 1000  # thumbnails in a folder
_COMPARED = 16  # rows and columns of maps that are compared, at most


class Page(NamedTuple):
    """What a gallery shows.

    Attributes:
        images: how many.
        explained: of how many that are explained.
        failed: how many could not be read.
        missing: names of pictures that are no longer there, whose thumbnails have the map alone.
    """

    images: int
    explained: int
    failed: int
    missing: list[str]


def gallery(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source: Source | None = None,
    limit: int = LIMIT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Page:
    """Write a page of a store's maps.

    Args:
        store: what :func:`lrp_jax.jobs.attribute` wrote, whole or as far as it is.
        out: the folder to write.
        source: the images; None: where the store says that they were.
        limit: at most so many images, evenly spaced.
        progress: called with the number of thumbnails written, and of all.

    Returns:
        What it shows.

    Raises:
        OSError: the store is not there, or the folder cannot be written.
        ValueError: it is no store, or holds no maps yet; or nothing says where its images are.
        ImportError: the extra ``jobs`` is not installed.
    """
    opened = Store(store)
    if not opened.about:
        raise ValueError(f"{opened.out} is no store of maps.")
    status = opened.read("status")
    explained = np.flatnonzero(status == EXPLAINED)
    failed = np.flatnonzero(status == FAILED)
    if not len(explained) + len(failed):
        raise ValueError(f"{opened.out} holds no maps yet.")
    shown = explained[np.asarray(spaced(limit, len(explained)), int)]
    drawer = _Drawer(opened, reopened(opened) if source is None else source)
    note_bands(opened.out, drawer.preprocessing.channels)
    with filling(out), replacing_folder(Path(out) / _THUMBNAILS) as folder:
        data = _data(opened, drawer, drawer.columns(shown, folder, progress), explained, failed)
        with replacing(Path(out) / "index.html") as temporary:
            temporary.write_bytes((DATA / "gallery.html").read_bytes())
        with replacing(Path(out) / "data.js") as temporary:
            temporary.write_text(f"const GALLERY = {json.dumps(data)};\n")
    return Page(len(shown), len(explained), len(failed), drawer.missing)


def _data(
    opened: Store, drawer: _Drawer, columns: dict[str, list[Any]], explained: np.ndarray, failed: np.ndarray
) -> dict[str, Any]:
    """What data.js says."""
    settings, names = opened.about["settings"], opened.names()
    labels, shown = drawer.labels, len(columns["name"])
    some = "" if shown == len(explained) else f" of {len(explained):,}, evenly spaced"
    return {
        "title": Path(opened.out).name,
        "about": f"{settings['method']}, model {settings['model']}: {shown:,} images{some}, "
        f"{len(failed):,} failed, {len(opened) - len(explained) - len(failed):,} not explained yet",
        "classes": [_shown(labels.class_name(k)) for k in range(labels.num_classes)],
        "percent": labels.has_probabilities,
        "regression": labels.regression,
        "signed": drawer.signed,
        "colours": _colours(drawer.signed),
        "images": columns,
        "failed": [[_shown(names[i]), _shown(why)] for i, why in zip(failed, opened.reasons(failed), strict=True)],
    }


def likeness(maps: np.ndarray) -> np.ndarray:
    """How like all others each map is: the mean cosine of the angles between them, in [-1, 1].

    Args:
        maps: ``[n, ...]``, finite.

    Returns:
        ``[n]``; of a map of zeros, 0.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    sizes = np.linalg.norm(flat, axis=1, keepdims=True)
    units = flat / np.where(sizes > 0, sizes, 1)
    return (units @ units.sum(axis=0) - (units**2).sum(axis=1)) / max(1, len(maps) - 1)


def reopened(store: Store, inputs: Sequence[str | os.PathLike[str]] = ()) -> Source:
    """The images of a store, opened as they were for it.

    Args:
        store: the store.
        inputs: where they are now; without any, where the store says that they were.
    """
    paths, settings = inputs or store.about.get("source", ()), store.about.get("settings", {})
    levels, channels = settings.get("levels"), settings.get("preprocessing", {}).get("channels", 3)
    try:
        if paths:
            levels = levels and tuple(levels)
            return open_source(paths, member=settings.get("member"), levels=levels, channels=channels)
    except (OSError, ValueError) as error:
        if inputs:
            raise
        raise ValueError(f"the images of {store.out} are no longer where they were ({error}): say where.") from error
    raise ValueError(f"{store.out} does not say where its images are: say it.")


def _shown(name: str) -> str:
    """A name as text, whatever the bytes of the file's."""
    return visible(name.encode(errors="surrogateescape").decode(errors="replace"))


def _colours(signed: bool) -> list[str]:
    """The colours of maps from the first to the last, as CSS has them."""
    pixels = np.asarray(scale_of_colours((9, 1), signed=signed))[0]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in pixels.tolist()]


class _Drawer:
    """Draws thumbnails, and gathers what the page says of them."""

    def __init__(self, store: Store, source: Source) -> None:
        about = store.about
        said: dict[str, Any] = about["settings"]["preprocessing"]
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        self.store, self.source = store, source
        self.preprocessing, self.labels = Preprocessing(**fields), Labels(**about["labels"])
        method = METHODS.get(about["settings"]["method"])
        self.signed = method is not None and method.signed
        self.place = _places(store, source)
        self.missing: list[str] = []
        rows, cols, _ = self.preprocessing.image_shape
        self.size = (max(1, round(cols * _HEIGHT / rows)), _HEIGHT)  # as Pillow has it, width first

    def columns(self, shown: np.ndarray, folder: Path, progress: Callable[[int, int], None]) -> dict[str, list[Any]]:
        """What data.js says of the images; their thumbnails are written into the folder."""
        columns: dict[str, list[Any]] = {
            name: [] for name in ("name", "thumbnail", "predicted", "score", "targets", "scores")
        }
        compared, names = [], self.store.names()
        progress(0, len(shown))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(shown), 256):
                some = shown[start : start + 256]
                maps, targets = self.store.read("relevance", some).astype(np.float32), self.store.read("targets", some)
                if "scale" in self.store.about["arrays"]:
                    maps *= self.store.read("scale", some)[..., None, None]
                logits = self.store.read("logits", some)
                scores = np.asarray(self.labels.probabilities(logits)) if self.labels.has_probabilities else logits
                files = [f"{(start + b) // _FOLDER:04d}/{start + b:07d}.jpg" for b in range(len(some))]
                paths = [folder / file for file in files]
                for parent in {path.parent for path in paths}:
                    parent.mkdir(exist_ok=True)
                large = np.asarray(heatmaps(maps, self.size[::-1], centres=self.store.about.get("centres")))
                list(pool.map(self._draw, paths, some, (names[i] for i in some), large))
                compared.append(_reduced(maps[:, 0]))
                predicted = logits.argmax(axis=1)
                columns["name"] += [_shown(names[i]) for i in some]
                columns["thumbnail"] += [f"{_THUMBNAILS}/{file}" for file in files]
                columns["predicted"] += predicted.tolist()
                columns["score"] += _rounded(np.take_along_axis(scores, predicted[:, None], 1)[:, 0])
                columns["targets"] += targets.tolist()
                columns["scores"] += [_rounded(of) for of in np.take_along_axis(scores, targets, 1)]
                progress(start + len(some), len(shown))
        return columns | {"likeness": _rounded(likeness(np.concatenate(compared))) if compared else []}

    def _draw(self, path: Path, i: int, name: str, maps: np.ndarray) -> None:
        """A picture and, beside it, the overlay of each of its maps."""
        picture = self._picture(int(i), name)
        limits = limits_of(maps, signed=self.signed)
        parts = [picture, *(overlay(picture, heat, signed=self.signed, limits=limits) for heat in maps)]
        strip = Image.new("RGB", (sum(part.width + 4 for part in parts) - 4, self.size[1]), "white")
        for i, part in enumerate(parts):
            strip.paste(part, (i * (self.size[0] + 4), 0))
        save(strip, path, quality=85)

    def _picture(self, i: int, name: str) -> Image.Image:
        try:
            image = preprocess(self.source.read(self.place[i]), self.preprocessing)
            picture = self.preprocessing.picture(image)
        except (KeyError, OSError, ValueError):
            self.missing.append(name)
            picture = Image.new("L", self.size, 128)
        return picture.resize(self.size, Image.Resampling.BICUBIC).convert("RGB")


def _places(store: Store, source: Source) -> dict[int, int]:
    """Where the images of the store are in the source: all in order, or by their names, if each is there once."""
    if store.is_of(source.names):
        return {i: i for i in range(len(store))}
    count, place = Counter(source.names), {name: i for i, name in enumerate(source.names)}
    names = store.names()
    twice = Counter(names)
    return {i: place[name] for i, name in enumerate(names) if count[name] == twice[name] == 1}


def _reduced(maps: np.ndarray) -> np.ndarray:
    """Maps ``[b, rows, cols]`` of few enough rows and columns to be kept, all of them."""
    size = tuple(min(_COMPARED, edge) for edge in maps.shape[1:])
    return np.asarray(jax.image.resize(maps, (len(maps), *size), "bilinear"))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
