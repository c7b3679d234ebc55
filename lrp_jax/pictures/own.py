"""Pictures that the library writes, told from those that it is given: no command explains its own panels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

#: What a PNG of this library says of its origin, as text.
MARK = {"Software": "lrp_jax"}
_HEAD = 512  # bytes, among which the text stands


def save(picture: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture, a PNG with the mark, with options of Pillow.

    Raises:
        OSError: the file cannot be written, for the system's own reason: Pillow's writers do not say which it is.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        for key, text in MARK.items():
            options["pnginfo"].add_text(key, text)
    data = io.BytesIO()
    picture.save(data, kind, **options)
    path.write_bytes(data.getvalue())


def is_own(path: Path) -> bool:
    """Whether a file is a PNG with the mark."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return all(f"tEXt{key}\0{text}".encode() in head for key, text in MARK.items())
