"""Images in, pictures out: preprocessing, heat maps and overlays.

A picture is a ``PIL.Image``; an image is float32 ``[H, W, channels]``, normalised for a model.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from lrp_jax.files import needs
from lrp_jax.metrics import unit_range
from lrp_jax.vit import ViTConfig

_PANEL = 224  # smallest edge of each picture of a panel, in pixels
_FONT = 15  # height of a caption's font, in pixels
_MARGIN = 8
_WARNINGS = threading.Lock()  # their filters are the process's, and pictures are read in threads

# From none to most: matplotlib's inferno (Smith and van der Walt, CC0) at nine even places.
_COLOURS = np.array(
    [
        [0, 0, 4],
        [31, 12, 72],
        [85, 15, 109],
        [136, 34, 106],
        [186, 54, 85],
        [227, 89, 51],
        [249, 140, 10],
        [249, 201, 50],
        [252, 255, 164],
    ]
)
# From against to for, neutral at zero: Moreland 2009, "Diverging Color Maps for Scientific Visualization", which tells
# apart who sees no red or no green; matplotlib's coolwarm at nine even places.
_SIGNED_COLOURS = np.array(
    [
        [59, 76, 192],
        [98, 130, 234],
        [141, 176, 254],
        [185, 208, 249],
        [221, 220, 220],
        [245, 196, 172],
        [244, 152, 122],
        [221, 95, 75],
        [180, 4, 38],
    ]
)
_SIGNED_RANGE = 99  # percent of the pixels that the colours tell apart: a few are often far above all others

# Pillow reads HEIF with pillow-heif, and AVIF by itself from 11.3 on; the brands are those at the head of a file.
_HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"} | _AVIF_BRANDS


def picture_suffixes() -> set[str]:
    """The suffixes of pictures, in small letters; those that need the extra ``heif`` as well, installed or not."""
    return {*Image.registered_extensions(), *_HEIF_SUFFIXES}


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read a picture of any kind as upright RGB.

    Grey, palette and 16-bit pictures become 8-bit RGB, what is transparent becomes white, and the rotation that a
    camera noted in EXIF is applied.

    Args:
        path: the file.

    Returns:
        The picture, mode RGB.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no picture, is truncated or damaged, has floating-point pixels, or is HEIF or AVIF and the
            extra ``heif`` is not installed.
    """
    image = _loaded(path)
    if image.mode == "F":
        raise ValueError(f"{path} has floating-point pixels, expected 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{path} has pixels from {grey.min()} to {grey.max()}, expected 8 or 16 bits.")
        image = Image.fromarray((grey // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_mask(path: str | os.PathLike[str]) -> Image.Image:
    """Read a mask: foreground is what is not transparent and has a channel, or an index of a palette, above 0.

    Args:
        path: the file.

    Returns:
        The mask, mode 1.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no picture, is truncated or damaged, or is CMYK, YCbCr, LAB or HSV.
    """
    stored = _loaded(path)
    if stored.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f"{path} is a mask of mode {stored.mode}, expected grey, RGB, or a palette.")
    alpha = "A" in stored.mode
    pixels = np.atleast_3d(np.asarray(stored))[..., : -1 if alpha else None]
    mask = (pixels > 0).any(axis=-1)
    if stored.has_transparency_data:
        mask &= np.asarray(stored.convert("RGBA"))[..., 3] > 0
    return Image.fromarray(mask)


def _loaded(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as it is stored, upright."""
    with open(path, "rb") as file:
        try:
            with _WARNINGS, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = _opened(file)
            opened.load()
            image: Image.Image = ImageOps.exif_transpose(opened)
        except ImportError as error:
            raise ValueError(f"{path} is a HEIF or AVIF picture: {error}") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is not a picture of a known format.") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large a picture: {error}") from error
        except Exception as error:  # Pillow's many readers raise nearly any
            raise ValueError(f"{path} is a damaged picture: {error}") from error
    return image


def _opened(file: IO[bytes]) -> Image.Image:
    """Open a picture; one of HEIF, whatever its suffix, by the extra ``heif``."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        size, kind = int.from_bytes(file.read(4)), file.read(4)
        head = file.read(min(size, 256) - 8) if size > 8 else b""
        brands = {head[i : i + 4] for i in range(0, len(head), 4)}
        suffix = ".heic" if brands.isdisjoint(_AVIF_BRANDS) else ".avif"
        if kind != b"ftyp" or brands.isdisjoint(_HEIF_BRANDS) or suffix in Image.registered_extensions():
            raise
        needs("pillow_heif", extra="heif").register_heif_opener()
        return Image.open(file)


def crop(picture: Image.Image, config: ViTConfig) -> Image.Image:
    """Resize and crop a picture to what the model sees of it.

    Args:
        picture: the picture.
        config: of the model.

    Returns:
        The picture in ``config.image_size``, mode RGB, or L for a model of one channel.

    Raises:
        ValueError: the model has neither 1 nor 3 channels.
    """
    modes = {1: "L", 3: "RGB"}
    if config.channels not in modes:
        raise ValueError(f"a picture has 1 or 3 channels, the model expects {config.channels}.")
    picture = picture.convert(modes[config.channels])
    rows, cols, _ = config.image_shape
    # Of a very long strip only the middle is ever seen: not to enlarge it all.
    longest = 100 * min(picture.size)
    if max(picture.size) > longest and not isinstance(config.resize, tuple):
        width, height = (min(edge, longest) for edge in picture.size)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    if isinstance(config.resize, tuple):
        height, width = config.resize
    else:
        if config.resize is None:
            scale = max(rows / picture.height, cols / picture.width)
        else:
            scale = config.resize / min(picture.height, picture.width)
        # Rounded as torchvision does, here and below: a pixel more or less moves the whole picture.
        height, width = max(rows, int(picture.height * scale + 1e-6)), max(cols, int(picture.width * scale + 1e-6))
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling[config.interpolation.upper()])
    top, left = round((height - rows) / 2), round((width - cols) / 2)
    return picture.crop((left, top, left + cols, top + rows))


def preprocess(picture: Image.Image, config: ViTConfig) -> np.ndarray:
    """Resize, crop and normalise a picture as a model expects it.

    Args:
        picture: the picture.
        config: of the model.

    Returns:
        The image, float32 ``[H, W, channels]``.

    Raises:
        ValueError: the model has neither 1 nor 3 channels.
    """
    pixels = np.asarray(crop(picture, config), np.float32).reshape(config.image_shape) / 255
    return (pixels - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)


def heatmaps(relevance: ArrayLike, size: tuple[int, int]) -> Array:
    """Enlarge maps bilinearly, as the paper's evaluation does.

    Args:
        relevance: ``[..., rows, cols]``.
        size: (H, W) in pixels.

    Returns:
        ``[..., H, W]``.

    Raises:
        ValueError: ``relevance`` has fewer than two axes, or ``size`` is not two positive numbers.
    """
    relevance = jnp.asarray(relevance)
    if relevance.ndim < 2:
        raise ValueError(f"relevance must be [..., rows, cols], got the shape {relevance.shape}.")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (H, W), both at least 1, got {size}.")
    return jax.image.resize(relevance, (*relevance.shape[:-2], *size), "bilinear", antialias=False)


def overlay(picture: Image.Image, heatmap: ArrayLike, *, signed: bool = False) -> Image.Image:
    """Lay a heat map over the grey form of its picture.

    Args:
        picture: the picture.
        heatmap: ``[H, W]``, the size of the picture.
        signed: whether the sign says for or against (:attr:`lrp_jax.methods.Method.signed`). If so, zero is drawn
            neutral, what is below blue and what is above red, on one scale up to the 99th percentile of the absolute
            value. Otherwise the smallest value is drawn dark, the largest bright.

    Returns:
        The picture, mode RGB.

    Raises:
        ValueError: the sizes differ, or the heat map is not finite.
    """
    heat = np.asarray(heatmap, np.float64)
    if heat.shape != (picture.height, picture.width):
        raise ValueError(f"heatmap must be [H, W] = {(picture.height, picture.width)}, got the shape {heat.shape}.")
    if not np.isfinite(heat).all():
        raise ValueError("heatmap must be finite, got NaN or infinite values.")
    if signed:
        size = np.abs(heat)
        heat = (heat / (np.percentile(size, _SIGNED_RANGE) or size.max() or 1)).clip(-1, 1)
    else:
        heat = np.asarray(unit_range(heat))
    table = _SIGNED_COLOURS if signed else _COLOURS
    places = np.linspace(-1 if signed else 0, 1, len(table))
    colours = np.stack([np.interp(heat, places, channel) for channel in table.T], axis=-1)
    grey = np.asarray(picture.convert("L"), np.float64)[..., None]
    cover = 0.3 + 0.4 * np.abs(heat)[..., None]
    return Image.fromarray(((1 - cover) * grey + cover * colours).round().astype(np.uint8))


def panel(
    picture: Image.Image, maps: ArrayLike, captions: Sequence[str], *, signed: bool | Sequence[bool] = False
) -> Image.Image:
    """A picture and, beside it, the overlay of each of its maps with a caption.

    Args:
        picture: the picture, as the model sees it.
        maps: ``[K, rows, cols]``.
        captions: K lines.
        signed: whether the maps' signs say for or against, of all or of each: see :func:`overlay`.

    Returns:
        The panel, mode RGB, each picture of it enlarged to 224 pixels or more.

    Raises:
        ValueError: the numbers of maps and captions, or of maps and of ``signed``, differ.
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or len(maps) != len(captions):
        raise ValueError(f"maps must be [K, rows, cols] for {len(captions)} captions, got the shape {maps.shape}.")
    scale = max(1, _PANEL / min(picture.size))
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    large = heatmaps(maps, (picture.height, picture.width))
    signs = np.broadcast_to(signed, len(maps)).tolist()
    pictures = [picture, *(overlay(picture, heat, signed=sign) for heat, sign in zip(large, signs, strict=True))]
    font = ImageFont.load_default(_FONT)
    step = picture.width + _MARGIN
    out = Image.new("RGB", (_MARGIN + step * len(pictures), picture.height + 2 * (_MARGIN + _FONT)), "white")
    draw = ImageDraw.Draw(out)
    for k, (part, caption) in enumerate(zip(pictures, ["image", *captions], strict=True)):
        left = _MARGIN + k * step
        out.paste(part, (left, _MARGIN))
        place = (left + picture.width / 2, picture.height + _MARGIN + _FONT)
        draw.text(place, _shortened(caption, font, picture.width), fill="black", font=font, anchor="mm")
    return out


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, without its middle where it is wider than ``width`` pixels."""
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept // 2]}\u2026{text[len(text) - (kept + 1) // 2 :]}"
    return shown
