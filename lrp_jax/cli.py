"""The command line: ``lrp-jax``."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import itertools
import json
import os
import sys
import warnings
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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import lrp_jax
from lrp_jax import evaluate
from lrp_jax.attribution import explain
from lrp_jax.checkpoint import listed, load, save
from lrp_jax.convert import FAMILIES, PREPROCESSING, convert_with_summary
from lrp_jax.datasets import (
    Dataset,
    DigitDataset,
    ImageNetFolder,
    ImageNetSegmentation,
    MaskFolder,
    pictures_in,
    sees_scenes,
)
from lrp_jax.files import needs, replacing
from lrp_jax.images import crop, panel, preprocess, read_image
from lrp_jax.labels import Vocabulary, class_names_in, imagenet_classes
from lrp_jax.methods import METHODS
from lrp_jax.model import forward
from lrp_jax.vit import Params, ViT, ViTConfig

_EXAMPLES = Path(__file__).parent / "data" / "examples"

_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after ``lrp-jax``; None: those of the process.

    Returns:
        The exit status: 0, everything asked for was done; 1, some images could not be explained (they are named on
        standard error), or the device failed; 2, the command was wrong and nothing was done, or no image could be
        evaluated; 130, interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("lrp-jax: interrupted; the files written so far are whole.", file=sys.stderr)
        return _INTERRUPTED
    except (ImportError, OSError, ValueError) as error:
        print(f"lrp-jax: error: {_one_line(error)}", file=sys.stderr)
        return _MISUSED
    except jax.errors.JaxRuntimeError as error:
        hint = " Try a smaller --batch-size." if "RESOURCE_EXHAUSTED" in str(error) else ""
        print(f"lrp-jax: error: {_one_line(error)}{hint}", file=sys.stderr)
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lrp-jax", description="Class-specific relevance maps for Vision Transformers."
    )
    parser.add_argument("--version", action="version", version=f"lrp-jax {lrp_jax.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "explain",
        help="write a panel for each image: the image and a map for each class explained",
        description="Write a panel for each image: the image and, for each class explained, the overlay of its map. "
        "Without images, explains the example scenes that come with the package.",
    )
    command.set_defaults(run=_explain_command)
    command.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    command.add_argument("--model", default="demo", help="'demo' or the path of a checkpoint (default: demo)")
    command.add_argument(
        "--target",
        action="append",
        metavar="CLASS",
        help="explain this class, by name or index; may be given several times (default: the most probable ones)",
    )
    command.add_argument(
        "--top-k", type=_positive, metavar="K", help="explain the K most probable classes (default: 2, if it has two)"
    )
    command.add_argument(
        "--contrast",
        action="append",
        nargs=2,
        metavar=("A", "B"),
        help="explain what speaks for class A rather than class B; may be given several times",
    )
    command.add_argument("--negate", action="store_true", help="explain what speaks against each of these instead")
    _add_method(command)
    command.add_argument(
        "--output", type=Path, default=Path("lrp_jax_maps"), metavar="FOLDER", help="(default: %(default)s)"
    )
    command.add_argument("--npz", action="store_true", help="also write the raw maps of each image as .npz")
    command.add_argument(
        "--batch-size", type=_positive, default=8, metavar="B", help="images explained at once (default: 8)"
    )

    command = commands.add_parser(
        "methods",
        help="list the methods and their options",
        description="List the attribution methods, or tell all about one.",
    )
    command.set_defaults(run=_methods_command)
    command.add_argument("name", nargs="?", choices=list(METHODS), metavar="METHOD")

    command = commands.add_parser(
        "evaluate",
        help="measure how good a method's maps are over a dataset",
        description="Measure how good a method's maps are over a dataset. Results go to a folder; an interrupted run "
        "goes on where it stopped.",
    )
    protocols = command.add_subparsers(metavar="PROTOCOL", required=True)
    for name, what, dataset in (
        (
            "segmentation",
            "whether maps find the pixels of the class: pixel accuracy, mIoU, mAP, mF1",
            "'digits', gtsegs_ijcv.mat of ImageNet-Segmentation, or a folder with images/ and masks/ (default: digits)",
        ),
        (
            "perturbation",
            "what becomes of a prediction as pixels are removed: areas under curves",
            "'digits', or a folder of pictures: a folder a class, or with --labels (default: digits)",
        ),
        (
            "sanity",
            "whether maps depend on the parameters and on the class: rank correlations",
            "'digits', or a folder of pictures: a folder a class, or with --labels (default: digits)",
        ),
    ):
        protocol = protocols.add_parser(name, help=what, description=f"Measure {what}.")
        protocol.set_defaults(run=_evaluate_command, protocol=name)
        protocol.add_argument("--dataset", default="digits", metavar="DATASET", help=dataset)
        protocol.add_argument("--model", default="demo", help="'demo' or the path of a checkpoint (default: demo)")
        _add_method(protocol)
        protocol.add_argument(
            "--images", type=_positive, metavar="N", help="at most N, evenly spaced; digits: N scenes (1000)"
        )
        protocol.add_argument(
            "--batch-size", type=_positive, default=8, metavar="B", help="images evaluated at once (default: 8)"
        )
        protocol.add_argument("--correct-only", action="store_true", help="only images that are classified right")
        protocol.add_argument(
            "--output", type=Path, metavar="FOLDER", help="(default: lrp_jax_results/PROTOCOL-METHOD)"
        )
        if name == "perturbation":
            protocol.add_argument(
                "--explained", choices=["predicted", "true"], default="predicted", help="class (default: %(default)s)"
            )
        if name != "segmentation":
            protocol.add_argument("--labels", type=Path, metavar="FILE", help="the class of each picture of one folder")
            protocol.add_argument(
                "--crop",
                action="store_true",
                help="prepare pictures as for the model, to compare the clean accuracy with a published one; without, "
                "they are resized to the model's size as in the paper",
            )

    command = commands.add_parser(
        "convert",
        help="turn published weights into a checkpoint",
        description="Turn published weights (timm, Hugging Face, torchvision, Google, the paper's authors) into a "
        "checkpoint for --model. What they are is recognised from their names.",
    )
    command.set_defaults(run=_convert_command)
    command.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help=".safetensors (or its .index.json), .npz, .msgpack, .bin, .pt or .pth; config.json beside it is read too",
    )
    command.add_argument("destination", type=Path, metavar="DEST.safetensors")
    command.add_argument("--force", action="store_true", help="replace DEST if it exists")
    command.add_argument("--family", choices=list(FAMILIES), help="(default: recognised)")
    command.add_argument(
        "--key", metavar="PATH", help="which of several models in SOURCE, such as teacher or checkpoint.model"
    )
    command.add_argument("--num-heads", type=_positive, metavar="H", help="where the source does not say")
    command.add_argument(
        "--image-size",
        type=_positive,
        nargs="+",
        metavar="PIXELS",
        help="edge, or rows and columns; the position embeddings are resampled (default: as trained)",
    )
    command.add_argument(
        "--preprocessing", choices=list(PREPROCESSING), help="as published there (default: as the source says)"
    )
    command.add_argument("--labels", metavar="FILE", help="the classes' names, one a line, or 'imagenet1k'")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any other field of lrp_jax.ViTConfig, e.g. gelu=quick, final_norm_epsilon=1e-5 or mean=[0.5,0.5,0.5]",
    )
    return parser


def _add_method(command: argparse.ArgumentParser) -> None:
    """``--method``, and a flag for every option of any method."""
    command.add_argument(
        "--method",
        choices=list(METHODS),
        default="transformer_attribution",
        metavar="METHOD",
        help="see lrp-jax methods (default: %(default)s)",
    )
    group = command.add_argument_group("options of methods (with their defaults)")
    takers: dict[str, list[str]] = {}
    for method in METHODS.values():
        for option, default in method.options.items():
            takers.setdefault(option, []).append(f"{method.name} ({default})")
    for option, methods in takers.items():
        flag = f"--{option.replace('_', '-')}"
        group.add_argument(
            flag,
            type=_value,
            default=argparse.SUPPRESS,
            dest=f"option {option}",
            metavar="VALUE",
            help=", ".join(methods),
        )


def _method_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of methods that were given."""
    given = ((name.removeprefix("option "), value) for name, value in vars(options).items() if name[:7] == "option ")
    return dict(given)


def _value(text: str) -> Any:
    """A number, a truth value, a tuple of them, or else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
    return tuple(value) if isinstance(value, list) else value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return int(text)


def _explain_command(options: argparse.Namespace) -> int:
    model, params = load(options.model)
    run, signed = _compiled(model, options), METHODS[options.method].signed
    paths = _pictures(options.images or [_EXAMPLES])
    panels = _panels(paths, options.output)
    size = min(options.batch_size, len(paths))
    shape = (size, *model.config.image_shape)
    jax.eval_shape(run, params, jax.ShapeDtypeStruct(shape, jnp.float32))  # the method's own word on its options
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, {options.output} is a file.")
    options.output.mkdir(parents=True, exist_ok=True)

    score = "probability" if model.config.has_probabilities else "output"
    score = "logit" if options.contrast or options.negate else score
    table = Table("image", "class", score, "panel", box=None, pad_edge=False)
    skipped = []
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def skip(path: Path, error: Exception) -> None:
        skipped.append(path)
        errors.print(f"lrp-jax: skipped: {_one_line(error)}", markup=False)

    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=len(paths) == size) as progress:
        task = progress.add_task("", total=len(paths))
        for start in range(0, len(paths), size):
            pictures = {}
            for path in paths[start : start + size]:
                try:
                    pictures[path] = crop(read_image(path), model.config)
                except (OSError, ValueError) as error:
                    skip(path, error)
            if pictures:
                images = np.zeros(shape, np.float32)  # every batch has one size, so that one compilation serves all
                for b, picture in enumerate(pictures.values()):
                    images[b] = preprocess(picture, model.config)
                results = jax.tree.map(np.asarray, run(params, images))
                for b, (path, picture) in enumerate(pictures.items()):
                    result = {name: values[b] for name, values in results.items()}
                    try:
                        rows = _write(panels[path], picture, result, model.config, signed=signed, npz=options.npz)
                    except OSError as error:
                        skip(path, error)
                        continue
                    for k, row in enumerate(rows):
                        table.add_row(*(("", *row, "") if k else (str(path), *row, str(panels[path]))))
            progress.advance(task, min(size, len(paths) - start))
    if table.row_count:
        _print_table(table)
    if skipped:
        print(f"lrp-jax: {len(skipped)} of {len(paths)} images were skipped.", file=sys.stderr)
    return _FAILED if skipped else 0


def _methods_command(options: argparse.Namespace) -> int:
    if options.name:
        method = METHODS[options.name]
        print(f"{method.name}: {inspect.getdoc(method.function)}\n\nReference: {method.reference}")
        return 0
    table = Table("method", "resolution", "classes", "options", "what", "reference", box=None, pad_edge=False)
    for method in METHODS.values():
        taken = " ".join(f"{name}={default}" for name, default in method.options.items())
        classes = "differ" if method.class_specific else "share one"
        table.add_row(method.name, method.resolution, classes, taken, method.summary, method.reference)
    _print_table(table)
    return 0


def _evaluate_command(options: argparse.Namespace) -> int:
    model, params = load(options.model)
    dataset = _dataset(options, model.config)
    folder = options.output or Path("lrp_jax_results") / f"{options.protocol}-{options.method}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder, {folder} is a file.")
    settings: dict[str, Any] = {
        "method": options.method,
        "options": _method_options(options),
        "batch_size": min(options.batch_size, len(dataset)),
        "correct_only": options.correct_only,
    }
    if options.protocol == "perturbation":
        settings["explained"] = options.explained
        needs("matplotlib.figure", extra="evaluate")  # now, not at the end
    begun = (folder / "settings.json").exists()
    columns = (TextColumn(options.protocol), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(dataset))
        run = getattr(evaluate, options.protocol)
        summary = run(
            model, params, dataset, folder, **settings, progress=lambda done, _: progress.update(task, completed=done)
        )
    table = Table("figure", "value", "95% interval", box=None, pad_edge=False)
    for name, figure in summary.figures.items():
        table.add_row(name, f"{figure.value:.2f}", f"{figure.low:.2f} to {figure.high:.2f}")
    _print_table(table)
    if dataset.labels_per_image > 1:
        print(f"An image has {dataset.labels_per_image} labels: a hit is a label among as many of the largest logits.")
    if "clean accuracy" not in summary.figures:
        why = "The model has one output" if model.config.num_classes == 1 else "The dataset has no labels"
        print(f"{why}: no clean accuracy.")
    if summary.curves:
        evaluate.draw_curves(summary, folder / "curves.png")
    maps = folder / "maps.png"
    if not begun or not maps.exists():
        evaluate.draw_maps(model, params, dataset, maps, method=options.method, options=settings["options"])
    print(f"{summary.images} images, {options.method}: {folder}")
    for image, reason in summary.skipped.items():
        print(f"lrp-jax: skipped: {image}: {reason}", file=sys.stderr)
    if summary.skipped:
        print(
            f"lrp-jax: {len(summary.skipped)} of {len(dataset)} images were skipped; to try them again, give another "
            "--output.",
            file=sys.stderr,
        )
    return _FAILED if summary.skipped else 0


def _dataset(options: argparse.Namespace, config: ViTConfig) -> Dataset:
    if options.dataset == "digits":
        if not sees_scenes(config):
            raise ValueError("--dataset digits is for models of digit scenes, such as 'demo'; give another --dataset.")
        if options.protocol != "segmentation" and (options.labels or options.crop):
            raise ValueError("--labels and --crop are for folders of pictures; give a --dataset.")
        return DigitDataset(options.images or 1000)
    path = Path(options.dataset)
    if options.protocol != "segmentation":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            folder = ImageNetFolder(path, config, labels=options.labels, images=options.images, squash=not options.crop)
        for warning in caught:
            print(f"lrp-jax: warning: {warning.message}", file=sys.stderr)
        print(folder.note)
        return folder
    dataset = ImageNetSegmentation if path.suffix == ".mat" else MaskFolder
    return dataset(path, config, images=options.images)


def _convert_command(options: argparse.Namespace) -> int:
    if options.destination.suffix != ".safetensors":
        raise ValueError(f"DEST must end in .safetensors, got {str(options.destination)!r}.")
    if options.destination.exists() and not options.force:
        raise ValueError(f"{options.destination} exists: --force replaces it.")
    if not options.destination.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(options.destination.parent))
    fields: dict[str, Any] = {}
    for assignment in options.set:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set must be FIELD=VALUE, got {assignment!r}.")
        fields[name] = _value(text)
    if options.num_heads:
        fields["num_heads"] = options.num_heads
    if options.image_size:
        if len(options.image_size) > 2:
            raise ValueError(f"--image-size must be one or two numbers, got {len(options.image_size)}.")
        fields["image_size"] = (options.image_size[0], options.image_size[-1])
    if options.labels:
        known = options.labels == "imagenet1k"
        fields["class_names"] = tuple(n for _, n in imagenet_classes()) if known else class_names_in(options.labels)
    given = {"family": options.family, "preprocessing": options.preprocessing, "key": options.key}
    found = convert_with_summary(options.source, **given, **fields)
    save(options.destination, found.model, found.params)
    config = found.model.config
    parameters = sum(p.size for p in jax.tree.leaves(found.params))
    rows, cols, _ = config.image_shape
    print(f"{options.destination}: weights of {FAMILIES[found.family].title}, {parameters:,} parameters")
    print(
        f"{config.depth} blocks of width {config.width}, {config.num_heads} heads, {rows} x {cols} pixels in "
        f"{config.grid[0]} x {config.grid[1]} patches, readout {config.readout}, {config.num_classes} classes"
    )
    print(f"pixels: mean {config.mean}, std {config.std}, resize {config.resize}, {config.interpolation}")
    for note in found.notes:
        print(f"note: {note}")
    if shared := Vocabulary(config).shared():
        print(f"note: --target takes by index what several classes are called: {listed(shared)}")
    if found.ignored:
        print(f"ignored: {', '.join(found.ignored)}")
    return 0


def _compiled(model: ViT, options: argparse.Namespace) -> Callable[[Params, ArrayLike], dict[str, Array]]:
    """The function from parameters and images to what is written for them."""
    config = model.config
    settings = _method_options(options)
    vocabulary = Vocabulary(config)
    classes = list(dict.fromkeys(_class_index("--target", word, vocabulary) for word in options.target or ()))
    contrasts = [[_class_index("--contrast", word, vocabulary) for word in words] for words in options.contrast or ()]
    for (first, second), words in zip(contrasts, options.contrast or (), strict=True):
        if first == second:
            raise ValueError(f"--contrast must name two classes, got {words[0]!r} and {words[1]!r}.")
    count = options.top_k or min(2, config.num_classes)
    if count > config.num_classes:
        raise ValueError(f"--top-k must be at most the model's {config.num_classes} classes, got {count}.")
    one_hot = np.eye(config.num_classes, dtype=np.float32)
    sign = -1 if options.negate else 1
    firsts, seconds = np.array(contrasts, int).reshape(-1, 2).T
    differences = one_hot[firsts] - one_hot[seconds]

    def targets_of(params: Params, images: Array) -> Array:
        """Classes ``[B, K]``, or where there are other directions, weights of the logits ``[B, K, C]``."""
        if classes or (contrasts and not options.top_k):
            targets = jnp.broadcast_to(jnp.asarray(classes, jnp.int32), (len(images), len(classes)))
        else:
            logits, _ = jax.vmap(partial(forward, model, params))(images)
            _, targets = jax.lax.top_k(logits, count)
        if not contrasts and not options.negate:
            return targets
        others = jnp.broadcast_to(differences, (len(images), *differences.shape))
        return sign * jnp.concatenate([jax.nn.one_hot(targets, config.num_classes, dtype=jnp.float32), others], axis=1)

    @jax.jit
    def run(params: Params, images: Array) -> dict[str, Array]:
        explanation = explain(model, params, images, targets_of(params, images), method=options.method, **settings)
        chances = {"probabilities": config.probabilities(explanation.logits)} if config.has_probabilities else {}
        return dataclasses.asdict(explanation) | chances

    return run


def _print_table(table: Table) -> None:
    if sys.stdout is not None:  # a file or a pipe has no width
        Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False).print(table)


def _write(
    path: Path, picture: Image.Image, result: dict[str, np.ndarray], config: ViTConfig, *, signed: bool, npz: bool
) -> list[tuple[str, str]]:
    """Write the panel (and the raw maps) of one picture; the name and the score of what each map explains."""
    targets, logits = result["targets"], result["logits"]
    captions = [config.caption(target, logits) for target in targets]
    with replacing(path) as temporary:
        panel(picture, result["relevance"], captions, signed=signed).save(temporary)
    if npz:
        with replacing(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **result)
    return [(config.target_name(target), f"{config.target_score(target, logits):.4f}") for target in targets]


def _pictures(arguments: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named."""
    paths = []
    for argument in arguments:
        if argument.is_dir():
            paths += pictures_in(argument)
        elif argument.exists():
            paths.append(argument)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(argument))
    unique: dict[Path, Path] = {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


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


def _class_index(option: str, word: str, vocabulary: Vocabulary) -> int:
    """The class of a name or an index."""
    try:
        return vocabulary.index(word)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
