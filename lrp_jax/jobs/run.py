"""A job: the maps of all images of a source, on all devices of this machine, in a store; resumed where it stopped.

Shards of images are dealt to processes in turn, and a process knows of the others only by the store: none waits for
another, and what one leaves undone is done by whoever runs the same again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from lrp_jax.checks import changed
from lrp_jax.jobs import pipeline
from lrp_jax.jobs.pipeline import NOT_FINITE, Progress
from lrp_jax.jobs.sources import Pictures, Source
from lrp_jax.jobs.store import EXPLAINED, FAILED, Store
from lrp_jax.jobs.work import Work, fields_of
from lrp_jax.labels import Labels
from lrp_jax.maps import centres
from lrp_jax.methods.base import is_integer
from lrp_jax.model import Model, Params, of_pictures
from lrp_jax.pictures import Preprocessing, described

_SHARD = 256  # images, at most: what a process that is killed loses
_SHARD_BYTES = 2**28  # of maps, at most


class Report(NamedTuple):
    """What became of a work.

    Attributes:
        progress: of this process, at its end.
        failures: names and reasons of the images of its share that could not be read, those of earlier runs as well.
        remaining: images that are not in the store yet: other processes' shares.
    """

    progress: Progress
    failures: Sequence[tuple[str, str]]
    remaining: int


def attribute(
    model: Model,
    params: Params,
    source: Source,
    out: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    labels: Labels | None = None,
    method: str = "transformer_attribution",
    options: Mapping[str, Any] | None = None,
    targets: ArrayLike | None = None,
    top_k: int = 1,
    dtype: str = "float32",
    upsample: bool = False,
    batch_size: int = 8,
    shard_size: int | None = None,
    process: tuple[int, int] = (0, 1),
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Report:
    """Explain all images of a source. The same call goes on where an earlier one stopped.

    An image that cannot be read is recorded with its reason, and tried again by the next call.

    Args:
        model: any model of images.
        params: its parameters.
        source: the images: :func:`lrp_jax.jobs.open_source`.
        out: the store, a folder or a URL: :mod:`lrp_jax.jobs.store` says what is in it.
        preprocessing: how images are made of pictures; None: as ``model.config`` says, of a :class:`lrp_jax.ViT`.
        labels: what the logits stand for; None: likewise.
        method: a name in :data:`lrp_jax.METHODS`.
        options: the method's own.
        targets: class indices ``[K]`` for every image, or ``[n, K]``; None: the most probable ones.
        top_k: how many of these.
        dtype: of the maps in the store. In float16 each is divided by its largest absolute value, the array ``scale``.
            float64 is also computed in.
        upsample: enlarge maps to the size of the image.
        batch_size: images at once, on each device.
        shard_size: images that are written together, a power of two; None: up to 256. A store that is there keeps its.
        process: which of the processes that share the work this is, and how many they are: see :func:`join`.
        progress: called after each batch.

    Returns:
        What was done, and what failed.

    Raises:
        ValueError: an argument is wrong, the method does not take the model, or the store holds maps of other settings.
        StoreError: the store cannot be read or written; what is in it stays good.
        ImportError: the extra ``jobs`` is not installed.
    """
    told = described(model, preprocessing, labels)
    work = Work(of_pictures(model), params, source, *told, method, dict(options or {}), top_k, dtype, upsample)
    classes = _checked(targets, work, batch_size, process)
    store = _opened(out, work, classes, shard_size, process[1])
    shards = range(process[0], math.ceil(len(store) / store.shard), process[1])
    todo = _remaining(store, work, shards)
    total, left = (sum(len(store.images(s)) for s in some) for some in (shards, todo))
    state = Progress(total - left, total)
    pipeline.run(work, store, todo, classes, batch_size, state, progress)
    return _reported(store, work.source, shards, state)


def _reported(store: Store, source: Source, shards: Sequence[int], state: Progress) -> Report:
    status = store.read("status")
    failed = [i for s in shards for i in store.images(s) if status[i] == FAILED]
    failures = zip((source.names[i] for i in failed), store.reasons(failed), strict=True)
    return Report(state, list(failures), int((status == 0).sum()))


def _opened(
    out: str | os.PathLike[str],
    work: Work,
    targets: np.ndarray | None,
    shard_size: int | None,
    process_count: int,
) -> Store:
    """The store, made or found; if found, the source gives the images that it was made for."""
    layouts, settings, names = work.layouts(targets), work.settings(targets), work.source.names
    row = np.dtype(layouts["relevance"].dtype).itemsize * math.prod(layouts["relevance"].row)
    shard = _shard(shard_size, len(names), process_count, row)
    store = Store(out)
    if not store.about:
        described_by = {
            "labels": fields_of(work.labels, Labels),
            "source": list(work.source.inputs),
            "centres": centres(work.model),
        }
        store.create(settings, described_by, names, layouts, shard)
    if difference := changed(store.about["settings"], settings):
        raise ValueError(f"{store.out} holds maps of other settings ({difference}): give it another place.")
    if missing := sorted(layouts.keys() - store.about["arrays"].keys()):
        raise ValueError(
            f"{store.out} was begun by an earlier version, without {', '.join(missing)}: give it another place."
        )
    if not store.is_of(names):
        work.source = _of_store(store, work.source)
    store.keep_names(work.source.names)
    store.consolidate()
    return store


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> tuple[int, int]:
    """Find the other processes of a job by JAX's distributed runtime, before anything else of JAX is used.

    They are let go of again once all are there, as they share nothing but the store: one that dies stops no other.

    Args:
        coordinator: host and port of process 0; None: as the environment says (TPU pods, SLURM, Kubernetes, MPI).
        count: how many processes; None: likewise.
        index: which of them this is; None: likewise.

    Returns:
        The index of this process and how many there are.

    Raises:
        ValueError: the environment does not say it either. If not all come within five minutes, JAX ends the process.
    """
    jax.distributed.initialize(coordinator, count, index)
    found = jax.process_index(), jax.process_count()
    jax.distributed.shutdown()
    return found


def _checked(targets: ArrayLike | None, work: Work, batch_size: int, process: tuple[int, int]) -> np.ndarray | None:
    """The targets, after a look at all of these."""
    n, classes = len(work.source.names), work.labels.num_classes
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}.")
    if not 0 <= process[0] < process[1]:
        raise ValueError(f"process must be (which, how many), the first from 0 and below the second; got {process}.")
    if targets is None:
        if work.labels.regression and classes > 1:
            raise ValueError(
                f"the model's {classes} outputs are numbers: targets (--target) must say which to explain."
            )
        return None
    if work.top_k != 1:
        raise ValueError("targets and top_k exclude each other: the classes are given, or the most probable ones.")
    array = np.asarray(targets)
    if (
        array.dtype.kind not in "iu"
        or array.ndim not in (1, 2)
        or not array.size
        or (array.ndim == 2 and len(array) != n)
    ):
        raise ValueError(
            f"targets must be class indices [K], or [{n}, K] of each image; got "
            f"{array.dtype} of the shape {array.shape}."
        )
    if array.min() < 0 or array.max() >= classes:
        raise ValueError(f"targets must be class indices 0 to {classes - 1}, got {array.min()} to {array.max()}.")
    return array.astype(np.int32)


def _shard(asked: int | None, n: int, processes: int, row: int) -> int:
    """Images of a shard: a power of two, such that it has a bounded size and all processes have some."""
    if asked is not None:
        if not is_integer(asked) or asked < 1 or asked & (asked - 1):
            raise ValueError(f"shard_size must be a power of two, got {asked}.")
        return min(asked, 1 << (n - 1).bit_length())
    most = max(1, min(_SHARD, n // (4 * processes), _SHARD_BYTES // row))
    return 1 << most.bit_length() - 1


def _of_store(store: Store, source: Source) -> Source:
    """The source, with the images that the store was made for: some may have vanished since."""
    stored, names = store.names(), list(source.names)
    if not store.is_of(stored):
        raise ValueError(
            f"{store.out} was begun with other images, and left before it said which: give it another place."
        )
    more, fewer = sorted(set(names) - set(stored)), sorted(set(stored) - set(names))
    if isinstance(source, Pictures) and fewer and not more:
        return Pictures(stored, source.root, source.inputs, levels=source.levels, channels=source.channels)
    those = f"{len(more)} images of the input are not in it, {len(fewer)} of its images are not in the input"
    first = f"; first {[*more, *fewer][0]}" if more or fewer else ", but their order or number is another"
    raise ValueError(f"{store.out} is of other images ({those}{first}): give it another place.")


def _remaining(store: Store, work: Work, shards: Sequence[int]) -> list[int]:
    """The shards that are not done; those of which an image can be read now that could not are no longer."""
    status, sizes, todo, failed = store.read("status"), store.read("bytes"), [], []
    for shard in shards:
        images = store.images(shard)
        if not status[images].all():
            todo.append(shard)
            continue
        now = np.array([work.source.size(i) for i in images])
        others = np.flatnonzero((status[images] == EXPLAINED) & (now >= 0) & (now != sizes[images]))
        if others.size:
            name = work.source.names[images[others[0]]]
            raise ValueError(
                f"{store.out} holds maps of other images: {name} had {sizes[images[others[0]]]} bytes, and has "
                f"{now[others[0]]} now. Give it another place."
            )
        failed += [i for i in images if status[i] == FAILED]
    reasons = store.reasons(failed)
    again = [i for i, reason in zip(failed, reasons, strict=True) if reason != NOT_FINITE]
    with ThreadPoolExecutor() as pool:
        can_be_read = [not isinstance(found, str) for found in pool.map(work.read, again)]
    for shard in sorted({i // store.shard for i, can in zip(again, can_be_read, strict=True) if can}):
        store.mark(shard, 0)
        todo.append(shard)
    return sorted(todo)
