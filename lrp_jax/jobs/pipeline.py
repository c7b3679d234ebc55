"""Images read ahead, explained on all devices of this machine, and written beside it, in bounded memory."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrp_jax.jobs.sources import Source
from lrp_jax.jobs.store import Store
from lrp_jax.jobs.work import Work
from lrp_jax.meshes import entered
from lrp_jax.pictures import Box

#: Why an image has no map although it can be read.
NOT_FINITE = "its logits or its map are not finite."
_AHEAD = 4  # batches that are read ahead


@dataclasses.dataclass
class Progress:
    """How far a process is.

    Attributes:
        done: images of its share that are in the store, or on their way there.
        total: images of its share.
        failed: how many of those done could not be read.
        explained: images since it began.
        seconds: since it began to explain.
        waited: seconds of these in which it waited for ``"input"``, ``"device"`` and ``"store"``.
    """

    done: int
    total: int
    failed: int = 0
    explained: int = 0
    seconds: float = 0.0
    waited: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(("input", "device", "store"), 0))


class _Batch(NamedTuple):
    """Images of the source, and what they are; zeros behind them, and where one could not be read.

    Boxes ``[b, 4]`` say which part of its picture each image is; NaN where one could not be read.
    """

    places: list[int]
    images: np.ndarray
    boxes: np.ndarray
    failures: dict[int, str]


def _batches(work: Work, places: Sequence[int], size: int, state: Progress) -> Iterator[_Batch]:
    """Batches of one shape, some of them read ahead."""
    pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 2))
    asked: collections.deque[tuple[list[int], list[Future[tuple[np.ndarray, Box] | str]]]] = collections.deque()
    starts = iter(range(0, len(places), size))
    try:
        while True:
            for start in starts:
                some = list(places[start : start + size])
                asked.append((some, [pool.submit(work.read, i) for i in some]))
                if len(asked) > _AHEAD:
                    break
            if not asked:
                return
            some, futures = asked.popleft()
            with _waiting(state, "input"):
                found = [future.result() for future in futures]
            images = np.zeros((size, *work.preprocessing.image_shape), work.computed)
            boxes, failures = np.full((len(some), 4), np.nan), {}
            for b, one in enumerate(found):
                if isinstance(one, str):
                    failures[b] = one
                else:
                    images[b], boxes[b] = one
            yield _Batch(some, images, boxes, failures)
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _waiting(state: Progress, what: str) -> Iterator[None]:
    """Counts the seconds spent inside as waiting for something."""
    start = time.perf_counter()
    try:
        yield
    finally:
        state.waited[what] += time.perf_counter() - start


def run(
    work: Work,
    store: Store,
    todo: Sequence[int],
    targets: np.ndarray | None,
    batch_size: int,
    state: Progress,
    progress: Callable[[Progress], None],
) -> None:
    """Explain the images of shards and write them.

    Args:
        work: what is done with each.
        store: where it goes.
        todo: the shards.
        targets: classes ``[K]``, or ``[n, K]``; None: the most probable.
        batch_size: images at once, on each device.
        state: how far this process is; it is brought up to date.
        progress: called with it after each batch.

    Raises:
        StoreError: the store cannot be written.
    """
    progress(state)
    places = [i for shard in todo for i in store.images(shard)]
    if not places:
        return
    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices), ("images",))
    split, whole = NamedSharding(mesh, PartitionSpec("images")), NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(work.params, whole)
    size = min(batch_size, math.ceil(len(places) / len(devices))) * len(devices)
    program, begun = jax.jit(work.program), time.perf_counter()
    writer = _Writer(store, work.source, todo, state)
    computing: collections.deque[tuple[_Batch, Any]] = collections.deque()

    def collect() -> None:
        batch, results = computing.popleft()
        with _waiting(state, "device"):
            rows = {name: np.array(x[: len(batch.places)]) for name, x in jax.device_get(results).items()}
            rows["box"] = batch.boxes
        writer.take(batch, rows)
        state.done, state.failed = state.done + len(batch.places), state.failed + len(batch.failures)
        state.explained += len(batch.places) - len(batch.failures)
        state.seconds = time.perf_counter() - begun
        progress(state)

    with writer, entered(mesh):
        for batch in _batches(work, places, size, state):
            own = None
            if targets is not None:
                own = np.zeros((size, targets.shape[-1]), np.int32)
                own[: len(batch.places)] = targets if targets.ndim == 1 else targets[batch.places]
                own = jax.device_put(own, split)
            computing.append((batch, program(params, jax.device_put(batch.images, split), own)))
            if len(computing) > 1:
                collect()
        while computing:
            collect()
    state.seconds = time.perf_counter() - begun


class _Writer:
    """Gathers rows into shards, and writes those that are full beside the computation, one after the other."""

    def __init__(self, store: Store, source: Source, todo: Sequence[int], state: Progress) -> None:
        self.store, self.source, self.state = store, source, state
        self.order = collections.deque(todo)
        self.rows: list[tuple[dict[str, np.ndarray], dict[int, str]]] = []
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.count = 0

    def take(self, batch: _Batch, rows: dict[str, np.ndarray]) -> None:
        """The rows of a batch: the next of the shards that are to be written."""
        floating = [array.reshape(len(array), -1) for array in rows.values() if array.dtype.kind == "f"]
        finite = np.all([np.isfinite(array).all(axis=1) for array in floating], axis=0)
        batch.failures.update((int(b), NOT_FINITE) for b in np.flatnonzero(~finite) if b not in batch.failures)
        for b in batch.failures:
            for array in rows.values():
                array[b] = np.nan if array.dtype.kind == "f" else -1
        start = 0
        while start < len(batch.places):
            images = self.store.images(self.order[0])
            stop = min(len(batch.places), start + len(images) - self.count)
            failures = {self.count + b - start: why for b, why in batch.failures.items() if start <= b < stop}
            self.rows.append(({name: array[start:stop] for name, array in rows.items()}, failures))
            self.count, start = self.count + stop - start, stop
            if self.count == len(images):
                self._write(self.order.popleft())

    def _write(self, shard: int) -> None:
        rows = {name: np.concatenate([part[name] for part, _ in self.rows]) for name in self.rows[0][0]}
        failures = {place: why for _, some in self.rows for place, why in some.items()}
        self.rows, self.count = [], 0
        self._wait()
        self.writing = self.pool.submit(self._store, shard, rows, failures)

    def _store(self, shard: int, rows: dict[str, np.ndarray], failures: dict[int, str]) -> None:
        rows["bytes"] = np.array([self.source.size(i) for i in self.store.images(shard)], np.int64)
        self.store.write(shard, rows, failures)

    def _wait(self) -> None:
        if self.writing is not None:
            with _waiting(self.state, "store"):
                self.writing.result()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self.pool.shutdown()
