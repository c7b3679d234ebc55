"""``lrp-jax compare``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from lrp_jax import metrics
from lrp_jax.attribution import explain
from lrp_jax.cli.arguments import (
    add_classes,
    add_levels,
    add_method_options,
    add_model,
    check_destination,
    check_one_map,
    flag,
    image_in,
    targets_in,
)
from lrp_jax.cli.console import FAILED, one_line, print_table, progress, say, table
from lrp_jax.cli.models import Loaded, load_model
from lrp_jax.datasets import DigitDataset, example_scenes, scene_pixels, sees_scenes
from lrp_jax.files import DATA, replacing
from lrp_jax.labels import Vocabulary
from lrp_jax.maps import centres, heatmaps, placed
from lrp_jax.methods import METHODS
from lrp_jax.model import full_precision, prepared
from lrp_jax.pictures import Cell, montage, note_bands, save
from lrp_jax.walk import classify

_EXAMPLE = DATA / "examples" / "scene-3.png"  # that of README.md
# A method is run for each class, and on until it has run so often, unless that takes long; what is quick, for longer.
_RUNS = 7
_QUICK, _LONG = 0.25, 2.0  # seconds
_FORWARD_RUNS = 3  # of the forward pass, before each run of a method


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "compare",
        help="draw the maps of every method for one image on one page, with what they cost",
        description="Draw the maps of every method for one image on one page, with what each costs in forward passes "
        "of the model and, of a digit scene, how well it finds each digit. What a model has no maps of is named and "
        "left out.",
    )
    command.set_defaults(run=run)
    command.add_argument(
        "image",
        nargs="?",
        type=Path,
        metavar="IMAGE",
        help="a picture; those that come with the package are known as digit scenes (default: one of these)",
    )
    command.add_argument(
        "--scene", type=int, metavar="N", help="instead of IMAGE: digit scene N, as lrp-jax evaluate numbers them"
    )
    add_levels(command)
    add_model(command)
    add_classes(command, default="both digits of a scene, else ")
    command.add_argument(
        "--method",
        action="append",
        choices=list(METHODS),
        metavar="METHOD",
        help="draw this method, see lrp-jax methods; may be given several times (default: all)",
    )
    add_method_options(command)
    command.add_argument(
        "--output",
        type=Path,
        default=Path("lrp_jax_methods.png"),
        metavar="FILE",
        help="the picture to write (default: %(default)s)",
    )
    command.add_argument("--force", action="store_true", help="replace FILE if it exists")


def run(options: argparse.Namespace) -> int:
    """Compute the maps method by method, print what they cost, and draw them."""
    _check_output(options)
    settings = _settings(options)
    loaded = load_model(options.model)
    asked, count = targets_in(options, loaded.labels, Vocabulary(loaded.labels))
    subject = _picture(options, loaded) if options.scene is None else _scene(options.scene, loaded)
    bench = _Bench(loaded, subject, asked, count, known=not options.top_k)
    left_out: dict[str, list[str]] = {}  # names, by reason
    with progress("comparing", len(settings), unit="methods") as (advance, errors):

        def tell(names: list[str], reason: str) -> None:
            errors.print(f"lrp-jax: left out: {', '.join(names)}: {reason}", markup=False)

        # All are read before the first is run: what is told wrongly is named at once.
        programs = {}
        for name, told in settings.items():
            advance(0, f"reading {name}")
            try:
                programs[name] = bench.program(name, told)
            except ValueError as error:
                left_out.setdefault(one_line(error), []).append(name)
        for reason, names in left_out.items():
            tell(names, reason)
        found = {}
        for done, name in enumerate(list(programs), start=len(settings) - len(programs)):
            advance(done, name)
            try:
                found[name] = bench.measured(programs.pop(name))
            except (ValueError, jax.errors.JaxRuntimeError) as error:  # memory, for one
                left_out.setdefault(one_line(error), []).append(name)
                tell([name], one_line(error))
        advance(len(settings))
    if not found:
        raise ValueError(f"there is no map to draw: {'; '.join(left_out)}")
    _print_table(bench, found)
    with replacing(options.output) as temporary:
        save(_page(options, bench, found, left_out), temporary)
    say(f"{options.output}: {len(found)} methods, {bench.subject.name}, {bench.said}")
    return FAILED if left_out and options.method else 0


class _Subject(NamedTuple):
    """What is explained.

    Attributes:
        name: what the page calls it.
        picture: as the model sees it.
        image: ``[H, W, channels]``.
        labels: its classes, where they are known.
        masks: bool ``[classes, H, W]``, where each of them is.
    """

    name: str
    picture: Image.Image
    image: np.ndarray
    labels: list[int]
    masks: np.ndarray | None


class _Maps(NamedTuple):
    """What a method gave.

    Attributes:
        maps: ``[K, rows, cols]``.
        scores: in %, of each map by name; of a map whose place is not known, none.
        passes: forward passes that one takes, by the medians of several runs of both in turn.
    """

    maps: np.ndarray
    scores: list[dict[str, float]]
    passes: float


class _Bench:
    """Where methods explain one image, one class a run, and are timed beside the forward pass.

    Args:
        loaded: the model.
        subject: the image.
        asked: classes to explain; if none:
        count: how many of the most probable ones,
        known: or rather those of the subject, if it has some.
    """

    def __init__(self, loaded: Loaded, subject: _Subject, asked: list[int], count: int, *, known: bool) -> None:
        self.model, self.params, self.labels, self.subject = loaded.model, loaded.params, loaded.labels, subject
        self.image = jnp.asarray(subject.image)[None]

        @jax.jit
        def forward(params: Any, images: Array) -> Array:
            with full_precision():
                return jax.vmap(lambda x: classify(self.model, *prepared(self.model, params, x)))(images)

        self.forward = forward.trace(self.params, self.image).lower().compile()
        self.forward_times: list[float] = []
        self.logits = np.asarray(self.forward(self.params, self.image))[0]
        probable = np.argsort(-self.logits, kind="stable")[:count].tolist()
        self.targets: list[int] = asked or (known and subject.labels) or probable
        self.captions = [self.labels.caption(target, self.logits) for target in self.targets]

    def program(self, name: str, settings: dict[str, Any]) -> Any:
        """The program of one map; a ValueError, if the model has no such map or an option is wrong."""

        @jax.jit
        def relevance(params: Any, images: Array, targets: Array) -> Array:
            maps = explain(self.model, params, images, targets, method=name, **settings).relevance
            return placed(maps, (images.shape[1], images.shape[2]), centres(self.model))

        return relevance.trace(self.params, self.image, jnp.zeros((1, 1), jnp.int32))

    def measured(self, program: Any) -> _Maps:
        """A map of each class, and what one takes."""
        compiled, count = program.lower().compile(), len(self.targets)
        maps: list[np.ndarray] = []
        times: list[float] = []
        forward_times: list[float] = []
        begun = time.perf_counter()
        while len(times) < count or time.perf_counter() - begun < (_LONG if len(times) < _RUNS else _QUICK):
            target = jnp.asarray([[self.targets[len(times) % count]]], jnp.int32)
            forward_times += [_timed(self.forward, self.params, self.image)[1] for _ in range(_FORWARD_RUNS)]
            relevance, seconds = _timed(compiled, self.params, self.image, target)
            maps.append(np.asarray(relevance)[0, 0])
            times.append(seconds)
        drawn = np.stack(maps[:count])
        if not np.isfinite(drawn).all():
            raise ValueError("its map is not finite.")
        scores = [_scores(one, target, self.subject) for one, target in zip(drawn, self.targets, strict=True)]
        self.forward_times += forward_times
        return _Maps(drawn, scores, float(np.median(times) / np.median(forward_times)))

    @property
    def said(self) -> str:
        """What costs are counted in."""
        return f"a forward pass takes {1e3 * np.median(self.forward_times):.3g} ms on {jax.devices()[0].device_kind}"


def _check_output(options: argparse.Namespace) -> None:
    """Refuse, before anything is computed, what could not be written."""
    path = options.output
    check_destination(path, force=options.force, called="--output")
    writers = sorted(suffix for suffix, name in Image.registered_extensions().items() if name in Image.SAVE)
    if path.suffix.lower() not in writers:
        raise ValueError(f"--output must end in .png or the suffix of another kind of picture, got {path}.")
    if options.image and options.scene is not None:
        raise ValueError("IMAGE and --scene exclude each other.")
    if path.exists() and options.image and options.image.exists() and path.samefile(options.image):
        raise ValueError(f"--output must not be the image itself, {path}.")


def _settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The methods to draw, each with the options that it takes."""
    check_one_map(options)
    names = list(dict.fromkeys(options.method or METHODS))
    for option in options.method_options:
        if not any(option in METHODS[name].options for name in names):
            raise ValueError(f"{flag(option)}: none of the methods {', '.join(names)} takes it.")
    return {
        name: {option: v for option, v in options.method_options.items() if option in METHODS[name].options}
        for name in names
    }


def _scene(number: int, loaded: Loaded) -> _Subject:
    """A scene, of which all is known."""
    if not sees_scenes(loaded.preprocessing, loaded.labels):
        raise ValueError("--scene is for models of digit scenes, such as 'demo'; give an IMAGE.")
    if number < 0:
        raise ValueError(f"--scene must be at least 0, got {number}.")
    dataset = DigitDataset(number + 1)
    image, labels, masks = dataset.sample(number)
    assert labels is not None
    picture = loaded.preprocessing.picture(image)
    return _Subject(f"scene {number} of {dataset.name}", picture, image, labels.tolist(), masks)


def _picture(options: argparse.Namespace, loaded: Loaded) -> _Subject:
    """A picture; of one that comes with the package, what is known of its scene."""
    path, pixels = options.image or _EXAMPLE, loaded.preprocessing
    _, image = image_in(path, pixels, options.levels)
    picture = pixels.picture(image)
    note_bands(str(path), pixels.channels)
    if sees_scenes(pixels, loaded.labels):
        known, shown = example_scenes(), np.asarray(picture).astype(int)
        for i, of_scene in enumerate(scene_pixels(known)):
            if np.abs(of_scene - shown).max() <= 1:
                return _Subject(path.name, picture, image, known.labels[i].tolist(), known.masks[i])
    return _Subject(path.name, picture, image, [], None)


def _timed(function: Callable[..., Array], *arguments: Any) -> tuple[Array, float]:
    """A result, and the seconds until it was there."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start


def _scores(relevance: np.ndarray, target: int, subject: _Subject) -> dict[str, float]:
    """How well a map ``[rows, cols]`` finds its class, in %: mIoU, and the share on target."""
    if subject.masks is None or target not in subject.labels:
        return {}
    own, masks = subject.labels.index(target), subject.masks
    counts = metrics.segmentation_counts(heatmaps(relevance, masks[own].shape), masks[own])
    overlap = np.asarray(counts.intersection) / np.asarray(counts.union)
    share = np.nan
    if all(edge % cells == 0 for edge, cells in zip(masks[own].shape, relevance.shape, strict=True)):
        share = float(metrics.share_on_target(np.stack([relevance] * len(masks)), masks)[own])
    return {"mIoU": 100 * float(overlap.mean()), "share": 100 * share}


def _passes(of: _Maps) -> str:
    return f"{of.passes:,.{0 if of.passes >= 100 else 1}f}"


def _print_table(bench: _Bench, found: dict[str, _Maps]) -> None:
    """A row a method: what a map costs and, where the answer is known, how good it is."""
    columns = [
        (f"{score}, {caption.name}", k, score)
        for k, caption in enumerate(bench.captions)
        for score in next(iter(found.values())).scores[k]
    ]
    rows = table("method", "forward passes a map", *(title for title, *_ in columns))
    for name, of in found.items():
        rows.add_row(name, _passes(of), *(f"{of.scores[k][score]:.2f}" for _, k, score in columns))
    print_table(rows)


def _page(
    options: argparse.Namespace, bench: _Bench, found: dict[str, _Maps], left_out: dict[str, list[str]]
) -> Image.Image:
    """The maps of all methods, each with its cost and scores."""
    cells = []
    for name, of in found.items():
        scores = [", ".join(f"{score} {value:.0f}" for score, value in each.items()) for each in of.scores]
        passes = _passes(of)
        note = f"{passes} forward pass{'' if passes == '1.0' else 'es'}"
        cells.append(Cell(name, note, of.maps, METHODS[name].signed, scores))
    lines = [bench.subject.name, f"model {options.model}; {bench.said}"]
    lines += [", ".join(f"{flag(option)} {value}" for option, value in options.method_options.items())]
    if any(any(of.scores) for of in found.values()):
        lines.append(
            "in %: mIoU of the pixels above the map's mean; share, of the relevance on digits, of the map's own"
        )
    footnotes = [f"Left out: {', '.join(names)}: {reason}" for reason, names in left_out.items()]
    heads = list(map(str, bench.captions))
    return montage(bench.subject.picture, heads, cells, lines=list(filter(None, lines)), footnotes=footnotes)
