"""``lrp-jax explain``."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image
from rich.table import Table

from lrp_jax.attribution import explain, most_probable
from lrp_jax.cli.arguments import (
    add_batch_size,
    add_classes,
    add_images,
    add_method,
    add_model,
    check_one_map,
    class_index,
    pictures_named,
    targets_in,
)
from lrp_jax.cli.console import FAILED, one_line, print_table, progress, table
from lrp_jax.cli.models import load_model
from lrp_jax.files import replacing
from lrp_jax.labels import Caption, Labels, Vocabulary
from lrp_jax.maps import Centres, centres, placed
from lrp_jax.methods import METHODS
from lrp_jax.model import Model, Params
from lrp_jax.pictures import Preprocessing, crop, panel, read_image


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "explain",
        help="write a panel for each image: the image and a map for each class explained",
        description="Write a panel for each image: the image and, for each class explained, the overlay of its map. "
        "Without images, explains the example scenes that come with the package.",
    )
    command.set_defaults(run=run)
    add_images(command)
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
    command.add_argument("--npz", action="store_true", help="also write the raw maps of each image as .npz")
    add_batch_size(command, "explained")


def run(options: argparse.Namespace) -> int:
    """Explain the pictures, batch by batch; those that cannot be are named."""
    model, params, preprocessing, labels = load_model(options.model)
    check_one_map(options)
    explained = _compiled(model, labels, options)
    paths = pictures_named(options.images)
    panels = _panels(paths, options.output)
    size = min(options.batch_size, len(paths))
    shape = (size, *preprocessing.image_shape)
    jax.eval_shape(explained, params, jax.ShapeDtypeStruct(shape, jnp.float32))  # the method's own word on its options
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, {options.output} is a file.")
    options.output.mkdir(parents=True, exist_ok=True)

    score = "probability" if labels.has_probabilities else "output"
    rows = table("image", "class", "logit" if options.contrast or options.negate else score, "panel")
    write = partial(_write, labels=labels, signed=METHODS[options.method].signed, npz=options.npz, cells=centres(model))
    skipped = []
    with progress("explaining", len(paths), hidden=len(paths) == size) as (advance, errors):

        def skip(path: Path, error: Exception) -> None:
            skipped.append(path)
            errors.print(f"lrp-jax: skipped: {one_line(error)}", markup=False)

        for start in range(0, len(paths), size):
            pictures = _read(paths[start : start + size], preprocessing, skip)
            if pictures:
                images = np.zeros(shape, np.float32)  # every batch has one size, so that one compilation serves all
                for b, picture in enumerate(pictures.values()):
                    images[b] = preprocessing.image(picture)
                results = jax.tree.map(np.asarray, explained(params, images))
                for b, (path, picture) in enumerate(pictures.items()):
                    try:
                        captions = write(panels[path], picture, {name: of[b] for name, of in results.items()})
                    except OSError as error:
                        skip(path, error)
                    else:
                        _add_rows(rows, path, panels[path], captions)
            advance(min(start + size, len(paths)))
    if rows.row_count:
        print_table(rows)
    if skipped:
        print(f"lrp-jax: {len(skipped)} of {len(paths)} images were skipped.", file=sys.stderr)
    return FAILED if skipped else 0


def _read(
    paths: Sequence[Path], preprocessing: Preprocessing, skip: Callable[[Path, Exception], None]
) -> dict[Path, Image.Image]:
    """The pictures of a batch that can be read, as the model sees them."""
    pictures = {}
    for path in paths:
        try:
            pictures[path] = crop(read_image(path), preprocessing)
        except (OSError, ValueError) as error:
            skip(path, error)
    return pictures


def _write(
    path: Path,
    picture: Image.Image,
    result: dict[str, np.ndarray],
    *,
    labels: Labels,
    signed: bool,
    npz: bool,
    cells: Centres | None,
) -> list[Caption]:
    """Write the panel (and the raw maps) of one picture; what each map explains."""
    captions = [labels.caption(target, result["logits"]) for target in result["targets"]]
    maps = placed(result["relevance"], (picture.height, picture.width), cells)
    with replacing(path) as temporary:
        panel(picture, maps, list(map(str, captions)), signed=signed).save(temporary)
    if npz:
        with replacing(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **result)
    return captions


def _add_rows(rows: Table, path: Path, panel: Path, captions: Sequence[Caption]) -> None:
    for k, caption in enumerate(captions):
        names = ("", "") if k else (str(path), str(panel))
        rows.add_row(names[0], caption.name, f"{caption.score:.4f}", names[1])


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
