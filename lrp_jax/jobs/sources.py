"""Where the images of a job come from: folders, lists, arrays, tar shards; read one by one, in any order."""

from __future__ import annotations

import hashlib
import io
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from lrp_jax.checks import listed
from lrp_jax.datasets import is_left_behind, pictures_in
from lrp_jax.files import read_text, regular
from lrp_jax.pictures import (
    Bands,
    Levels,
    Picture,
    Preprocessing,
    checked_levels,
    is_picture,
    preprocess,
    read_picture,
)

_SAMPLED = 64  # images of an array, by which another is told from it


class Source(Protocol):
    """Images in an order of their own, each with a name."""

    @property
    def kind(self) -> Mapping[str, Any]:
        """What it is, as JSON has it: the same wherever the images lie."""
        ...

    @property
    def inputs(self) -> Sequence[str]:
        """What :func:`open_source` makes it of, absolute paths; empty, if of nothing."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of the images, in order."""
        ...

    def size(self, i: int) -> int:
        """How many bytes image i has in its file; -1 if it is not there."""
        ...

    def read(self, i: int) -> Picture:
        """Image i: a picture; its bands; or an array ``[H, W, channels]``, normalised already.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it is damaged.
        """
        ...


class Pictures:
    """Files of pictures.

    Args:
        names: their paths, seen from ``root``.
        root: a folder.
        inputs: what they were found by.
        levels: the samples that are black and white in pictures of more than 8 bits: :func:`lrp_jax.read_image`.
        channels: of the model that the pictures are for: :func:`lrp_jax.pictures.read_picture`.
    """

    def __init__(
        self,
        names: Sequence[str],
        root: str | os.PathLike[str] = ".",
        inputs: Sequence[str | os.PathLike[str]] = (),
        *,
        levels: Levels | None = None,
        channels: int = 3,
    ) -> None:
        self.names, self.root, self.inputs = list(names), Path(root), list(map(os.path.abspath, inputs))
        self.levels, self.channels = checked_levels(levels), channels
        self.kind = {"input": "pictures"} | _said(levels)

    def size(self, i: int) -> int:
        """How many bytes picture i has; -1 if it is not there."""
        try:
            return (self.root / self.names[i]).stat().st_size
        except OSError:
            return -1

    def read(self, i: int) -> Picture:
        """Picture i, upright."""
        return read_picture(self.root / self.names[i], self.channels, levels=self.levels)


class ArrayFile:
    """The images of a ``.npy``, read one by one, or of a ``.npz``, held in memory.

    Bytes ``[n, H, W]`` or ``[n, H, W, C]``, of one channel, three, or as many as the model has, are pictures;
    floating-point ``[n, H, W, channels]`` are images that are normalised for the model already.

    Args:
        path: the file. A ``.npz`` holds one array, or several and one of them is ``images``.
        channels: of the model that the pictures are for.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such file, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], *, channels: int = 3) -> None:
        self.path, self.inputs = Path(path), [os.path.abspath(path)]
        array, bands = self._loaded(), sorted({1, 3, channels})
        is_grey = array.ndim == 3 and channels in (1, 3)
        pictures = array.dtype == np.uint8 and (is_grey or (array.ndim == 4 and array.shape[3] in bands))
        is_one = array.ndim == 3 and channels not in (1, 3) and array.shape[2] == channels
        images = array.dtype.kind == "f" and array.dtype.itemsize in (4, 8) and array.ndim == 4
        if not (pictures or images) or not array.size:
            raise ValueError(
                f"{path} must hold pictures, bytes [n, H, W] or [n, H, W, {' or '.join(map(str, bands))}], or images "
                f"normalised for the model, float32 or float64 [n, H, W, channels]; got {array.dtype} of the shape "
                f"{array.shape}.{' A picture in a file of its own is read from its folder.' if is_one else ''}"
            )
        self.names = [str(i) for i in range(len(array))]
        some = np.unique(np.linspace(0, len(array) - 1, _SAMPLED).round().astype(int))
        sample = hashlib.sha256(np.ascontiguousarray(array[some]).tobytes()).hexdigest()[:16]
        self.kind = {"input": "array", "dtype": str(array.dtype), "shape": list(array.shape), "sample": sample}
        # What is mapped counts as the process's memory; each image is read from the file instead.
        self.offset: int | None = None
        self.array = np.asarray(array)
        if isinstance(array, np.memmap) and array.flags.c_contiguous:
            self.offset, self.array = array.offset, np.empty((0, *array.shape[1:]), array.dtype)
        self.dtype, self.shape = array.dtype, array.shape[1:]
        self.channels = array.shape[3] if array.ndim == 4 else 1

    def _loaded(self) -> np.ndarray:
        try:
            with regular(self.path).open("rb") as file:
                if file.read(2) != b"PK":
                    return np.asanyarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
                file.seek(0)
                found = np.load(file, allow_pickle=False)
                key = found.files[0] if len(found.files) == 1 else "images"
                if key in found.files:
                    return np.asarray(found[key])
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path} is no array of numbers, or a damaged one: {error}") from error
        raise ValueError(f"{self.path} must hold one array, or one named images; got {listed(found.files)}.")

    def size(self, i: int) -> int:
        """How many bytes image i has."""
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self, i: int) -> Picture:
        """Image i; a picture where the file holds bytes."""
        if self.offset is None:
            image = self.array[i]
        else:
            data = _part(self.path, self.offset + i * self.size(i), self.size(i))
            image = np.frombuffer(data, self.dtype).reshape(self.shape)
        if image.dtype != np.uint8:
            return image
        if self.channels not in (1, 3):
            return Bands(image.astype(np.float32) / 255)
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)


class Member(NamedTuple):
    """A file in a tar shard.

    Attributes:
        name: of the file.
        offset: where its bytes begin.
        size: how many they are.
    """

    name: str
    offset: int
    size: int


#: The value of ``member`` for tar files that do not keep WebDataset's convention.
EVERY_PICTURE = "*"


class TarShards:
    """The pictures in tar files, in the order of the files and of what is in them.

    By WebDataset's convention, files whose names are equal up to the first dot (the key) are one sample, and the rest
    of each name says what it is of the sample: of ``007.jpg``, ``007.seg.png`` and ``007.cls``, the picture is
    ``007.jpg``. A sample is named by its shard and key, ``train-000.tar/007``.

    Args:
        paths: the files, not compressed.
        member: which member of each sample is explained, what follows the key: ``"jpg"``, ``"rgb.png"``. None: the
            one picture, or the one of several that has no second dot. ``"*"``: every picture is an image of its own,
            under its whole name.
        levels: as of :class:`Pictures`.
        channels: likewise.

    Raises:
        OSError: there is no such file.
        ValueError: it is no tar file, is compressed, or holds no pictures; or samples have several pictures.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        member: str | None = None,
        levels: Levels | None = None,
        channels: int = 3,
    ) -> None:
        self.paths, self.inputs = [Path(path) for path in paths], list(map(os.path.abspath, paths))
        self.member = member if member is None else member.removeprefix(".").lower()
        self.levels, self.channels = checked_levels(levels), channels
        self.kind = {"input": "tar shards"} | ({} if self.member is None else {"member": self.member}) | _said(levels)
        self.names: list[str] = []
        self.members: list[tuple[int, Member | None]] = []
        folder = os.path.commonpath([os.path.dirname(path) for path in self.inputs])
        chosen: list[str | None] = []
        beside: set[str] = set()  # what stands beside the picture of a sample is no picture of another
        for shard, path in enumerate(self.paths):
            samples = self._samples(path)
            prefix = Path(os.path.relpath(self.inputs[shard], folder)).as_posix()
            for key, pictures in samples.items():
                extension = self._chosen(path, key, pictures)
                self.names.append(f"{prefix}/{key}")
                self.members.append((shard, None if extension is None else pictures[extension]))
                chosen.append(extension)
                beside |= pictures.keys() - {extension}
        if self.member is None:
            self.members = [
                (shard, None if extension in beside else member)
                for (shard, member), extension in zip(self.members, chosen, strict=True)
            ]
        if not any(member for _, member in self.members):
            raise ValueError(f"no sample has a picture {self.member!r}; the first, {self.names[0]}, has others.")

    def _samples(self, path: Path) -> dict[str, dict[str, Member]]:
        """The pictures of each sample that has any, by key, and by what follows the key."""
        samples = dict[str, dict[str, Member]]()
        try:
            with tarfile.open(regular(path), "r:", errorlevel=2) as file:
                for entry in file:
                    file.members = []  # type: ignore[attr-defined]  # it would keep them all
                    name = PurePosixPath(entry.name)
                    if (
                        entry.isreg()
                        and is_picture(name, self.channels)
                        and not any(map(is_left_behind, _levels(name)))
                    ):
                        extension = name.name.partition(".")[2]
                        key, extension = entry.name[: len(entry.name) - len(extension) - 1], extension.lower()
                        if self.member == EVERY_PICTURE:
                            key = entry.name
                        found = Member(entry.name, entry.offset_data, entry.size)
                        if extension in (sample := samples.setdefault(key, {})):
                            raise ValueError(f"{path} holds two files for one: {sample[extension].name}, {entry.name}.")
                        sample[extension] = found
                self._check_end(path, file.offset)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is no tar file, or is damaged or compressed: {error}") from error
        if not samples:
            raise ValueError(f"{path} holds no pictures.")
        return samples

    def _chosen(self, path: Path, key: str, pictures: Mapping[str, Member]) -> str | None:
        """Which member of a sample is its picture; None: it has others, but not this one."""
        if self.member == EVERY_PICTURE:
            return next(iter(pictures))
        if self.member is not None:
            return self.member if self.member in pictures else None
        plain = [extension for extension in pictures if "." not in extension]
        among = plain or list(pictures)
        if len(among) > 1:
            raise ValueError(
                f"{path}: the sample {key} has several pictures, {listed([pictures[e].name for e in among], 4)}: say "
                f"which member of each sample is meant, as {among[0]!r} (--member), or {EVERY_PICTURE!r} for all."
            )
        return among[0]

    @staticmethod
    def _check_end(path: Path, offset: int) -> None:
        """Refuse a file of which not all was found: ``tarfile`` takes a damaged header for the end."""
        with open(path, "rb") as file:
            file.seek(offset)
            while data := file.read(2**20):
                if any(data):
                    raise ValueError(f"{path} is damaged at byte {offset}, or several tar files in one.")

    def size(self, i: int) -> int:
        """How many bytes picture i has; -1 if its sample lacks it."""
        _, member = self.members[i]
        return -1 if member is None else member.size

    def read(self, i: int) -> Picture:
        """Picture i, upright."""
        shard, member = self.members[i]
        if member is None:
            raise ValueError(f"{self.names[i]} has no picture {self.member or 'of its own'}, others only.")
        data = _part(self.paths[shard], member.offset, member.size)
        name = f"{self.paths[shard].name}/{member.name}"
        return read_picture(io.BytesIO(data), self.channels, name=name, levels=self.levels)


def _said(levels: Levels | None) -> dict[str, Any]:
    return {} if levels is None else {"levels": list(levels)}


def _levels(name: PurePosixPath) -> list[PurePosixPath]:
    return [name, *name.parents[:-1]]


def _part(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{path} is cut short: expected {size} bytes at {offset}, got {len(data)}.")
    return data


def open_source(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    member: str | None = None,
    levels: Levels | None = None,
    channels: int = 3,
) -> Source:
    """The images that paths name.

    Args:
        inputs: a folder of pictures (with those in its folders) or of tar shards; a ``.txt`` with the path of a picture
            on each line, seen from its folder; a ``.npy`` or ``.npz``; or any number of pictures, or of ``.tar``.
        member: of tar shards, which member of each sample is explained: see :class:`TarShards`.
        levels: the samples that are black and white in pictures of more than 8 bits: :func:`lrp_jax.read_image`.
        channels: of the model. For other than 1 or 3, pictures are TIFF and ``.npy`` of as many bands.

    Raises:
        OSError: there is no such file or folder.
        ValueError: it is nothing of this, or holds no pictures.
    """
    paths = [Path(path) for path in inputs]
    suffixes = {path.suffix.lower() for path in paths}
    shards = sorted(paths[0].glob("*.tar")) if len(paths) == 1 and paths[0].is_dir() else []
    if suffixes == {".tar"} or shards:
        if shards and any(is_picture(p, channels) for p in paths[0].iterdir()):
            raise ValueError(f"{paths[0]} holds pictures as well as tar files: name those that are meant.")
        return TarShards(shards or paths, member=member, levels=levels, channels=channels)
    if member is not None:
        raise ValueError(f"member chooses of the samples of tar shards, and the input is none; got {member!r}.")
    if len(paths) == 1:
        (path,) = paths
        if path.is_dir():
            names = [str(p.relative_to(path).as_posix()) for p in pictures_in(path, nested=True, channels=channels)]
            return Pictures(names, path, [path], levels=levels, channels=channels)
        if suffixes == {".txt"}:
            names = [line for line in read_text(path).split("\n") if line.strip()]
            if not names:
                raise ValueError(f"{path} names no pictures.")
            return Pictures(names, path.parent, paths, levels=levels, channels=channels)
        if suffixes <= {".npy", ".npz"}:
            return ArrayFile(path, channels=channels)
    wrong = [str(p) for p in paths if not is_picture(p, channels)]
    if wrong or not paths:
        raise ValueError(
            "input must be a folder, a .txt, a .npy or .npz, or any number of .tar or of pictures; got "
            f"{listed(wrong, 3) or 'nothing'}."
        )
    for path in paths:
        path.stat()
    return Pictures([str(path) for path in paths], inputs=paths, levels=levels, channels=channels)


def image_of(found: Picture, preprocessing: Preprocessing, dtype: np.dtype) -> np.ndarray:
    """What is read of a source, as an image for the model ``[H, W, channels]``.

    Args:
        found: a picture, its bands, or an image normalised already.
        preprocessing: of the model.
        dtype: of the image.

    Raises:
        ValueError: the model has another number of channels, or the image another size, or pixels that are not finite.
    """
    with np.errstate(over="ignore"):
        image = preprocess(found, preprocessing).astype(dtype)
    if not np.isfinite(image).all():
        raise ValueError(f"the image has pixels that are NaN or infinite in {dtype}.")
    return image
