"""``lrp-jax explain``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image
from rich.table import Table

from lrp_jax.attribution import explain, most_probable
from lrp_jax.checks import visible
from lrp_jax.cli.arguments import (
    add_batch_size,
    add_classes,
    add_images,
    add_levels,
    add_method,
    add_model,
    check_one_map,
    class_index,
    image_in,
    pictures_named,
    targets_in,
)
from lrp_jax.cli.console import FAILED, add_row, one_line, print_table, progress, table, warn
from lrp_jax.cli.models import load_model
from lrp_jax.files import filling, replacing
from lrp_jax.labels import Caption, Labels, Vocabulary
from lrp_jax.maps import centres, placed
from lrp_jax.methods import METHODS
from lrp_jax.model import Model, Params
from lrp_jax.pictures import (
    Box,
    Preprocessing,
    box_of,
    in_shape,
    note_bands,
    panel,
    save,
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "explain",
        help="write a panel for each image: the image and a map for each class explained",
        description="Write a panel for each image: the image and, for each class explained, the overlay of its map. "
        "Without images, explains the example scenes that come with the package. For a model of other than 1 or 3 "
        "channels an image is a TIFF or a .npy of as many bands, of which three are shown.",
    )
    command.set_defaults(run=run)
    add_images(command)
    add_levels(command)
    add_model(command)
    add_classes(command)
    command.add_argument(
        "--contrast",
        action="append",
        nargs=2,
        metavar=("A", "B"),
        help="explain what speaks for class A rather than class B; may be given several times",
    )
    command.add_argument("--negate", action="store_true", help="explain what speaks against each of these instead")
    add_method(command)
    command.add_argument(
        "--output", type=Path, default=Path("lrp_jax_maps"), metavar="FOLDER", help="(default: %(default)s)"
    )
    command.add_argument(
        "--on-original",
        action="store_true",
        help="draw the maps on the whole picture, instead of on the part of it that the model sees",
    )
    command.add_argument(
        "--npz",
        action="store_true",
        help="also write the raw maps of each image as .npz, with the box on the picture that they cover",
    )
    add_batch_size(command, "explained")


def run(options: argparse.Namespace) -> int:
    """Explain the pictures, batch by batch; those that cannot be are named."""
    model, params, preprocessing, labels = load_model(options.model)
    check_one_map(options)
    explained = _compiled(model, labels, options)
    paths = pictures_named(options.images, preprocessing.channels)
    panels = _panels(paths, options.output)
    size = min(options.batch_size, len(paths))
    shape = (size, *preprocessing.image_shape)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, {options.output} is a file.")

    score = "probability" if labels.has_probabilities else "estimate" if labels.regression else "output"
    kind = "output" if labels.regression else "class"
    rows = table("image", kind, "logit" if options.contrast or options.negate else score, "panel")
    read = partial(_Subject.read, preprocessing=preprocessing, options=options)
    write = partial(
        _write,
        labels=labels,
        options=options,
        place=partial(placed, size=preprocessing.image_shape[:2], centres=centres(model)),
    )
    skipped = []
    with progress("explaining", len(paths)) as (advance, errors), filling(options.output):
        # The method's own word on its options, before anything is written.
        jax.eval_shape(explained, params, jax.ShapeDtypeStruct(shape, jnp.float32))

        def skip(path: Path, error: Exception) -> None:
            skipped.append(path)
            said = one_line(error)
            named = any(visible(file.name) in said for file in (path, panels[path]))
            said = said if named else f"{visible(str(path))}: {said}"
            errors.print(f"lrp-jax: skipped: {said}", markup=False)

        for start in range(0, len(paths), size):
            subjects = _read(paths[start : start + size], read, skip)
            if subjects:
                images = np.zeros(shape, np.float32)  # every batch has one size, so that one compilation serves all
                for b, subject in enumerate(subjects.values()):
                    images[b] = subject.image
                results = jax.tree.map(np.asarray, explained(params, images))
                for b, (path, subject) in enumerate(subjects.items()):
                    try:
                        found = {name: of[b] for name, of in results.items()}
                        captions = write(panels[path], subject, found)
                    except OSError as error:
                        skip(path, error)
                    else:
                        _add_rows(rows, path, panels[path], captions)
            advance(min(start + size, len(paths)))
    if rows.row_count:
        print_table(rows)
    if skipped:
        warn(f"{len(skipped)} of {len(paths)} images were skipped.")
    return FAILED if skipped else 0


class _Subject(NamedTuple):
    """What is explained.

    Attributes:
        image: as it enters the model.
        shown: what is drawn, the part that the model sees or the whole picture.
        size: width and height of the picture.
        box: the part of it that the model sees.
    """

    image: np.ndarray
    shown: Image.Image
    size: tuple[int, int]
    box: Box

    @classmethod
    def read(cls, path: Path, *, preprocessing: Preprocessing, options: argparse.Namespace) -> _Subject:
        """The picture of a file, or its bands."""
        found, image = image_in(path, preprocessing, options.levels)
        box, seen = box_of(found, preprocessing), preprocessing.picture(image)
        whole = found if isinstance(found, Image.Image) else seen if isinstance(found, np.ndarray) else found.shown
        note_bands(str(path), preprocessing.channels)
        return cls(image, whole if options.on_original else in_shape(seen, box), whole.size, box)


def _read(
    paths: Sequence[Path], read: Callable[[Path], _Subject], skip: Callable[[Path, Exception], None]
) -> dict[Path, _Subject]:
    """The pictures of a batch that can be read."""
    subjects = {}
    for path in paths:
        try:
            subjects[path] = read(path)
        except (OSError, ValueError) as error:
            skip(path, error)
    return subjects


def _write(
    path: Path,
    subject: _Subject,
    result: dict[str, np.ndarray],
    *,
    labels: Labels,
    options: argparse.Namespace,
    place: Callable[[np.ndarray], Any],
) -> list[Caption]:
    """Write the panel (and the raw maps) of one picture; what each map explains."""
    captions = [labels.caption(target, result["logits"]) for target in result["targets"]]
    drawn = panel(
        subject.shown,
        place(result["relevance"]),
        list(map(str, captions)),
        signed=METHODS[options.method].signed,
        title=options.method,
        box=subject.box if options.on_original else None,
    )
    with replacing(path) as temporary:
        save(drawn, temporary)
    if options.npz:
        with replacing(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **result, box=subject.box, size=subject.size)
    return captions


def _add_rows(rows: Table, path: Path, panel: Path, captions: Sequence[Caption]) -> None:
    for k, caption in enumerate(captions):
        names = ("", "") if k else (str(path), str(panel))
        add_row(rows, names[0], caption.name, f"{caption.score:.4f}", names[1])


def _compiled(
    model: Model, labels: Labels, options: argparse.Namespace
) -> Callable[[Params, ArrayLike], dict[str, Array]]:
    """The function from parameters and images to what is written for them."""
    settings, vocabulary = options.method_options, Vocabulary(labels)
    classes, count = targets_in(options, labels, vocabulary)
    contrasts = [[class_index("--contrast", word, vocabulary) for word in words] for words in options.contrast or ()]
    for (first, second), words in zip(contrasts, options.contrast or (), strict=True):
        if first == second:
            raise ValueError(f"--contrast must name two classes, got {words[0]!r} and {words[1]!r}.")
    if contrasts and not options.target:
        classes = []
    one_hot = np.eye(labels.num_classes, dtype=np.float32)
    sign = -1 if options.negate else 1
    firsts, seconds = np.array(contrasts, int).reshape(-1, 2).T
    differences = one_hot[firsts] - one_hot[seconds]

    def targets_of(params: Params, images: Array) -> Array:
        """Classes ``[B, K]``, or where there are other directions, weights of the logits ``[B, K, C]``."""
        if classes or (contrasts and not options.top_k):
            targets = jnp.broadcast_to(jnp.asarray(classes, jnp.int32), (len(images), len(classes)))
        else:
            targets = most_probable(model, params, images, count)
        if not contrasts and not options.negate:
            return targets
        others = jnp.broadcast_to(differences, (len(images), *differences.shape))
        return sign * jnp.concatenate([jax.nn.one_hot(targets, labels.num_classes, dtype=jnp.float32), others], axis=1)

    @jax.jit
    def run(params: Params, images: Array) -> dict[str, Array]:
        explanation = explain(model, params, images, targets_of(params, images), method=options.method, **settings)
        chances = {"probabilities": labels.probabilities(explanation.logits)} if labels.has_probabilities else {}
        return dataclasses.asdict(explanation) | chances

    return run


def _panels(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the panel of each picture goes: no two to one place, and none onto a picture."""
    panels = {}
    taken = {path.resolve() for path in paths}
    for path in paths:
        candidates = (
            folder / f"{path.stem}.explained{suffix}.png" for suffix in itertools.chain([""], itertools.count(-2, -1))
        )
        panels[path] = next(candidate for candidate in candidates if candidate.resolve() not in taken)
        taken.add(panels[path].resolve())
    return panels
