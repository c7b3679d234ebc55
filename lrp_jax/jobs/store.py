"""The maps of a dataset: a zarr v3 group on disk or in a bucket, written a shard of images at a time.

Letters: n images, K targets an image, C classes. The group's attribute ``lrp_jax`` says what was run; its arrays are

| array | shape | |
|---|---|---|
| ``relevance`` | ``[n, K, rows, columns]`` | NaN where there is none yet, or none for good |
| ``targets`` | int32 ``[n, K]`` | the classes explained; -1 where there are none |
| ``logits`` | ``[n, C]`` | |
| ``scale`` | float32 ``[n, K]`` | only beside float16: what relevance is to be multiplied by |
| ``box`` | float64 ``[n, 4]`` | which part of its picture a map covers: :func:`lrp_jax.pictures.seen_box` |
| ``names`` | bytes ``[n, longest]`` | of the images, UTF-8, zeros behind |
| ``status`` | byte ``[n]`` | 0: not yet; 1: explained; 2: could not be read |
| ``reasons`` | bytes ``[n, 256]`` | why it could not |
| ``bytes`` | int64 ``[n]`` | the length of its file, by which a picture that has changed is noticed |

The group is written first, by one of the processes that begin it, and says what all of them do; what the arrays are is
added when they are made (zarr's consolidated metadata, which xarray looks for). A shard's status is
written when everything else of it is durable: what is marked is there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrp_jax.datasets import is_left_behind
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

    Raises:
        StoreError: it cannot be read.
        ValueError: there is something else.
        ImportError: the extra ``jobs`` is not installed.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._ts = needs("tensorstore", extra="jobs")
        self.out = os.fspath(out)
        if not self.out:
            raise ValueError("the store must be a folder or a URL, got ''.")
        if "://" not in self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise StoreError(errno.ENOTDIR, "is a file, expected a folder for the store", self.out)
        if any("\ud800" <= c <= "\udfff" for c in self.out):
            raise ValueError(f"the path of the store must be UTF-8, got {self.out!r}.")
        base = self.out if "://" in self.out else {"driver": "file", "path": os.path.abspath(self.out) + "/"}
        self._base = self._done(self._ts.KvStore.open(base.rstrip("/") + "/" if isinstance(base, str) else base))
        self.about: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}
        found = self._done(self._base.read(_GROUP))
        if found.state == "value":
            self._open(found.value)

    def create(
        self,
        settings: Mapping[str, Any],
        described: Mapping[str, Any],
        names: Sequence[str],
        layouts: Mapping[str, Layout],
        shard: int,
    ) -> None:
        """Make the store, unless another process was first: then open what that one made.

        Args:
            settings: what is run.
            described: what else there is to say, as JSON has it.
            names: of the images.
            layouts: of the arrays of numbers.
            shard: images that are written together, a power of two.

        Raises:
            StoreError: it cannot be written.
            ValueError: there is something else.
        """
        found = self._done(self._base.read(_GROUP))
        if found.state != "value":
            keys = [key.decode(errors="surrogateescape") for key in self._done(self._base.list())]
            others = sorted(key for key in keys if not is_left_behind(Path(key)))
            if others:
                raise ValueError(f"{self.out} holds something else ({others[0]}): give it another place.")
            arrays = {name: layout._asdict() for name, layout in (dict(layouts) | _texts_of(names)).items()}
            sizes = {"images": len(names), "shard": shard, "names": _digest(names), "arrays": arrays}
            attributes = {_ABOUT: {**described, "settings": dict(settings), **sizes}}
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            data = json.dumps(group, indent=1).encode()
            self._done(self._base.write(_GROUP, data, if_equal=found.stamp.generation))  # no other was first
            found = self._done(self._base.read(_GROUP))
        self._open(found.value)

    def _open(self, group: bytes) -> None:
        """Open the arrays that a group says there are, or make them."""
        try:
            attributes = json.loads(group).get("attributes", {})
        except ValueError as error:
            raise StoreError(f"{self.out}/{_GROUP} is damaged: {error}") from error
        if _ABOUT not in attributes:
            raise ValueError(f"{self.out} is a zarr group, but none that this library wrote.")
        self.about = attributes[_ABOUT]
        for name, layout in self.about["arrays"].items():
            metadata = _metadata(Layout(**layout), self.about["images"], self.about["shard"])
            self._arrays[name] = self._done(self._ts.open(self._spec(name, metadata), create=True, open=True))

    def __len__(self) -> int:
        return int(self.about["images"])

    @property
    def shard(self) -> int:
        """Images that are written together."""
        return int(self.about["shard"])

    def images(self, shard: int) -> range:
        """Those of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, len(self)))

    def is_of(self, names: Sequence[str]) -> bool:
        """Whether it is of images of these names, in this order."""
        return bool(self.about["names"] == _digest(names))

    def keep_names(self, names: Sequence[str]) -> None:
        """Write the names that it is of, unless they are there."""
        if not self.is_of(self.names()):
            width = self.about["arrays"]["names"]["row"][0]
            self._done(self._arrays["names"].write(_texts(names, width)))

    def consolidate(self) -> None:
        """Write what the arrays are into the group as well, where readers look for it; they never change.

        Every process may do this: all write the same, whole.
        """
        found = self._done(self._base.read(_GROUP))
        group = json.loads(found.value)
        if "consolidated_metadata" not in group:
            read = {name: self._base.read(f"{name}/{_GROUP}") for name in self._arrays}
            arrays = {name: json.loads(self._done(future).value) for name, future in read.items()}
            told = {"kind": "inline", "must_understand": False, "metadata": arrays}
            data = json.dumps(group | {"consolidated_metadata": told}, indent=1).encode()
            self._done(self._base.write(_GROUP, data, if_equal=found.stamp.generation))

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
        reasons = [failures.get(b, "").encode(errors="replace")[:_REASON] for b in range(len(images))]
        texts = _texts([reason.decode(errors="ignore") for reason in reasons], _REASON)
        for written in [self._arrays[name][place].write(of) for name, of in (*rows.items(), ("reasons", texts))]:
            self._done(written)
        self.mark(shard, status)

    def mark(self, shard: int, status: np.ndarray | int) -> None:
        """Write the status of a shard's images; 0 throughout: it is to be written anew."""
        images = self.images(shard)
        self._done(self._arrays["status"][images.start : images.stop].write(status))

    def _spec(self, name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": (self._base / f"{name}/").spec().to_json(), "metadata": metadata}

    def _done(self, future: Any) -> Any:
        try:
            return future.result()
        except (OSError, ValueError) as error:  # whatever the file system says
            said = str(error).partition(" [tensorstore_spec=")[0].replace(r"\x00", "/")
            raise StoreError(f"{self.out} cannot be read or written: {said}") from error


def _texts_of(names: Sequence[str]) -> dict[str, Layout]:
    """Of the arrays that every store has."""
    longest = max(max(len(_bytes(name)) for name in names), 1)
    return {
        "names": Layout("uint8", (longest,), ("letter",)),
        "status": Layout("uint8", (), ()),
        "reasons": Layout("uint8", (_REASON,), ("letter of reason",)),
        "bytes": Layout("int64", (), ()),
    }


def _digest(names: Sequence[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(_bytes(name) + b"\0")
    return found.hexdigest()[:16]


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
