"""The maps of a dataset: a zarr v3 group on disk or in a bucket, written a shard of images at a time.

Letters: n images, K targets an image, C classes. The group's attribute ``lrp_jax`` says what was run; its arrays are

| array | shape | |
|---|---|---|
| ``relevance`` | ``[n, K, rows, columns]`` | NaN where there is none yet, or none for good |
| ``targets`` | int32 ``[n, K]`` | the classes explained; -1 where there are none |
| ``logits`` | ``[n, C]`` | |
| ``scale`` | float32 ``[n, K]`` | only beside float16: what relevance is to be multiplied by |
| ``names`` | bytes ``[n, longest]`` | of the images, UTF-8, zeros behind |
| ``status`` | byte ``[n]`` | 0: not yet; 1: explained; 2: could not be read |
| ``reasons`` | bytes ``[n, 256]`` | why it could not |

A shard's status is written when everything else of it is durable: what is marked is there.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrp_jax.files import needs

EXPLAINED, FAILED = 1, 2
_REASON = 256  # bytes
_CHUNK = 2**20  # bytes that are compressed together, before it
_GROUP = "zarr.json"
_ABOUT = "lrp_jax"


class StoreError(OSError):
    """A store cannot be read or written; what is marked in it is whole."""


class Layout(NamedTuple):
    """An array of a store.

    Attributes:
        dtype: of its values.
        row: the shape of what it has of an image.
        axes: the names of the row's axes.
    """

    dtype: str
    row: tuple[int, ...]
    axes: tuple[str, ...]


class Store:
    """A store that is open.

    Args:
        out: a folder, or the URL of a bucket that tensorstore knows (``gs://``, ``s3://``).

    Attributes:
        out: the same.
        about: its attribute: ``settings``, what was run, and what else was said of it; empty before it is made.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._ts = needs("tensorstore", extra="jobs")
        self.out = os.fspath(out)
        if "://" not in self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise StoreError(errno.ENOTDIR, "is a file, expected a folder for the store", self.out)
        base = self.out if "://" in self.out else {"driver": "file", "path": os.path.abspath(self.out) + "/"}
        self._base = self._done(self._ts.KvStore.open(base.rstrip("/") + "/" if isinstance(base, str) else base))
        found = self._done(self._base.read(_GROUP))
        self.about: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}
        if found.state == "value":
            group = json.loads(found.value)
            if _ABOUT not in group.get("attributes", {}):
                raise ValueError(f"{self.out} is a zarr group, but none that this library wrote.")
            self.about = group["attributes"][_ABOUT]
            self._arrays = {name: self._done(self._ts.open(self._spec(name))) for name in self.about["arrays"]}

    def create(
        self,
        settings: Mapping[str, Any],
        described: Mapping[str, Any],
        names: Sequence[str],
        layouts: Mapping[str, Layout],
        shard: int,
    ) -> None:
        """Make the store. Several processes may do so at once, if they make the same.

        Args:
            settings: what is run.
            described: what else there is to say, as JSON has it.
            names: of the images.
            layouts: of the arrays of numbers.
            shard: images that are written together, a power of two.

        Raises:
            StoreError: it cannot be written.
            ValueError: there is something else, or the beginning of another store.
        """
        width = max(len(_bytes(name)) for name in names)
        layouts = dict(layouts) | {
            "names": Layout("uint8", (width,), ("letter",)),
            "status": Layout("uint8", (), ()),
            "reasons": Layout("uint8", (_REASON,), ("letter of reason",)),
        }
        there = {key.decode().partition("/")[0] for key in self._done(self._base.list())}
        if not there <= {*layouts, _GROUP}:
            others = sorted(there - {*layouts, _GROUP})
            raise ValueError(f"{self.out} holds something else ({others[0]}): give it another place.")
        try:
            for name, layout in layouts.items():
                metadata = _metadata(layout, len(names), shard)
                self._arrays[name] = self._ts.open(self._spec(name, metadata), create=True, open=True).result()
        except ValueError as error:
            if "zarr.json" in str(error) and there:
                raise ValueError(
                    f"{self.out} holds the beginning of a run of other settings: give it another place."
                ) from error
            raise self._failed(error) from error
        self._done(self._arrays["names"].write(_texts(names, width)))
        about = {**described, "settings": dict(settings), "arrays": list(layouts)}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {_ABOUT: about}}
        self._done(self._base.write(_GROUP, json.dumps(group, indent=1).encode()))  # last: now it is a store
        self.about = json.loads(json.dumps(about))

    def __len__(self) -> int:
        return int(self._arrays["status"].shape[0])

    @property
    def shard(self) -> int:
        """Images that are written together."""
        return int(self._arrays["status"].chunk_layout.write_chunk.shape[0])

    def images(self, shard: int) -> range:
        """Those of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, len(self)))

    def names(self) -> list[str]:
        """Of the images."""
        return _strings(self.read("names"))

    def reasons(self, images: Sequence[int] | np.ndarray) -> list[str]:
        """Why images could not be read."""
        return _strings(self.read("reasons", np.asarray(images, int)))

    def read(self, name: str, images: Any = slice(None)) -> np.ndarray:
        """Values of an array.

        Args:
            name: of the array.
            images: which images, as an index of the first axis.
        """
        return np.asarray(self._done(self._arrays[name][images].read()))

    def write(self, shard: int, rows: Mapping[str, np.ndarray], failures: Mapping[int, str]) -> None:
        """Write a shard, and then its mark.

        Args:
            shard: which.
            rows: the numbers of its images, by array.
            failures: why images could not be read, by their place in the shard.

        Raises:
            StoreError: it cannot be written.
        """
        images = self.images(shard)
        place, status = slice(images.start, images.stop), np.full(len(images), EXPLAINED, np.uint8)
        status[list(failures)] = FAILED
        texts = _texts([failures.get(b, "") for b in range(len(images))], _REASON)
        for written in [self._arrays[name][place].write(of) for name, of in (*rows.items(), ("reasons", texts))]:
            self._done(written)
        self.mark(shard, status)

    def mark(self, shard: int, status: np.ndarray | int) -> None:
        """Write the status of a shard's images; 0 throughout: it is to be written anew."""
        images = self.images(shard)
        self._done(self._arrays["status"][images.start : images.stop].write(status))

    def _spec(self, name: str, metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
        spec = {"driver": "zarr3", "kvstore": (self._base / f"{name}/").spec().to_json()}
        return spec | ({"metadata": metadata} if metadata else {})

    def _done(self, future: Any) -> Any:
        try:
            return future.result()
        except ValueError as error:  # whatever the file system says
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StoreError:
        said = str(error).partition(" [tensorstore_spec=")[0].replace("\0", "/")
        return StoreError(f"{self.out} cannot be read or written: {said}")


def _metadata(layout: Layout, n: int, shard: int) -> dict[str, Any]:
    """What zarr calls an array: shards of so many images, in chunks that are compressed by themselves."""
    dtype = np.dtype(layout.dtype)
    row = dtype.itemsize * int(np.prod(layout.row))
    chunk = min(shard, 2 ** max(0, (_CHUNK // row).bit_length() - 1))
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {"level": 3}}]
    sharding = {"chunk_shape": [chunk, *layout.row], "codecs": inner}
    return {
        "shape": [n, *layout.row],
        "data_type": layout.dtype,
        "fill_value": {"f": "NaN", "i": -1, "u": 0}[dtype.kind],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *layout.row]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["image", *layout.axes],
    }


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # file names that are no UTF-8 stay what they are


def _texts(texts: Sequence[str], width: int) -> np.ndarray:
    """Texts as bytes ``[n, width]``, cut where they are longer."""
    cut = [_bytes(text)[:width] for text in texts]
    return np.frombuffer(b"".join(text.ljust(width, b"\0") for text in cut), np.uint8).reshape(len(cut), width)


def _strings(texts: np.ndarray) -> list[str]:
    return [row.tobytes().rstrip(b"\0").decode(errors="surrogateescape") for row in texts]
