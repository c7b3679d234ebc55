"""How a picture becomes an image for a model, and back.

A picture is a ``PIL.Image``, or :class:`lrp_jax.pictures.Bands` for models of other than 1 or 3 channels; an image is
float32 ``[H, W, channels]``, normalised for a model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from lrp_jax.checks import check_choice, check_model, check_positive, check_truth, pair, set_field
from lrp_jax.labels import Labels
from lrp_jax.pictures.bands import Bands, Picture

Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box"]
_LARGEST = 16  # times the image: what a file promises is allotted for each picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures are prepared for a model. Hashable. A :class:`lrp_jax.ViTConfig` is one, of its model.

    Attributes:
        image_size: pixels, ``int`` or (rows, columns).
        channels: channels of the image.
        mean: of each channel (of one for all), for pixels in [0, 1]; ``(pixel - mean) / std`` enters the model.
        std: likewise.
        resize: before the crop: ``int``, pixels of the shorter edge (the aspect is kept); (rows, columns), exactly
            (the aspect is not kept); None, the smallest size that covers ``image_size`` (the aspect is kept).
        crop: whether the centre of ``image_size`` is then cut out.
        interpolation: of the resize.

    Raises:
        ValueError: a field has a wrong type or value, or two do not go together.
    """

    image_size: int | tuple[int, int] = 224
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: int | tuple[int, int] | None = None
    crop: bool = True
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_positive(self, "channels")
        check_truth(self, "crop")
        check_choice(self, "interpolation", get_args(Interpolation))
        set_field(self, "image_size", pair("image_size", self.image_size))
        for name in ("mean", "std"):
            set_field(self, name, self._of_channels(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")
        rows, cols, _ = self.image_shape
        if isinstance(self.resize, int) and not self.resize >= max(rows, cols):
            raise ValueError(f"resize ({self.resize}) must be at least the larger edge of image_size {(rows, cols)}.")
        if self.resize is not None and not isinstance(self.resize, int):
            set_field(self, "resize", pair("resize", self.resize))
            if any(r < s for r, s in zip(self.resize, (rows, cols), strict=True)):
                raise ValueError(f"resize {self.resize} must be at least image_size {(rows, cols)} in both directions.")
        if self.resize is not None and max(pair("resize", self.resize)) > _LARGEST * max(rows, cols):
            raise ValueError(f"resize ({self.resize}) must be at most {_LARGEST} times image_size {(rows, cols)}.")
        if not self.crop and self.resize != (rows, cols):
            raise ValueError(f"without crop, resize must be image_size {(rows, cols)}, got {self.resize}.")

    def _of_channels(self, name: str, given: Any) -> tuple[float, ...]:
        if not isinstance(given, (tuple, list)) or not all(isinstance(v, (int, float)) for v in given):
            raise ValueError(f"{name} must hold 1 or {self.channels} finite numbers, got {given!r}.")
        values = tuple(map(float, given))
        if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
            raise ValueError(f"{name} must hold 1 or {self.channels} finite numbers, got {values}.")
        return values

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image, (H, W, channels)."""
        return *pair("image_size", self.image_size), self.channels

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in [0, 1], ``[..., channels]``, as they enter the model, float32."""
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def image(self, picture: Image.Image) -> np.ndarray:
        """The image, float32 ``[H, W, channels]``, of a picture that :func:`crop` gave."""
        return self.normalise(np.asarray(picture, np.float32).reshape(self.image_shape) / 255)

    def picture(self, image: np.ndarray) -> Image.Image:
        """The picture that an image ``[H, W, channels]`` shows; of its bands, if it has others than colours, three."""
        return Bands(self.pixels(image)).shown

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The pixels in [0, 1] that an image ``[H, W, channels]`` is made of."""
        return (image * np.asarray(self.std) + np.asarray(self.mean)).clip(0, 1)


#: Left, top, right and bottom edge of a part of a picture, in its pixels. Its own edges are 0 and its width or height.
Box = tuple[float, float, float, float]


class _Plan(NamedTuple):
    """How a picture of some size is resized and cropped.

    Attributes:
        first: what is cut out of it before, in whole pixels.
        size: to which width and height that is resized.
        corner: left and top of what is cut out of that.
    """

    first: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int]


def _plan(size: tuple[int, int], preprocessing: Preprocessing) -> _Plan:
    """The plan of a picture of this width and height."""
    (rows, cols, _), resize = preprocessing.image_shape, preprocessing.resize
    (width, height), left, top = size, 0, 0
    # Of a very long strip only the middle is ever seen: not to enlarge it all.
    longest = 100 * min(size)
    if max(size) > longest and not isinstance(resize, tuple):
        width, height = min(width, longest), min(height, longest)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
    first = (left, top, left + width, top + height)
    if isinstance(resize, tuple):
        height, width = resize
    else:
        scale = max(rows / height, cols / width) if resize is None else resize / min(height, width)
        # Rounded as torchvision does, here and below: a pixel more or less moves the whole picture.
        height, width = max(rows, int(height * scale + 1e-6)), max(cols, int(width * scale + 1e-6))
    return _Plan(first, (width, height), (round((width - cols) / 2), round((height - rows) / 2)))


def seen_box(size: tuple[int, int], preprocessing: Preprocessing) -> Box:
    """The part of a picture that a model sees, and that its maps cover.

    Args:
        size: width and height of the picture, upright: that of what :func:`lrp_jax.read_image` gives.
        preprocessing: of the model.

    Returns:
        Its left, top, right and bottom edge in pixels of the picture, fractions included: column x reaches from x to
        x + 1, so that (0, 0, width, height) is all of it.
    """
    first, (width, height), (left, top) = _plan(size, preprocessing)
    rows, cols, _ = preprocessing.image_shape
    across, down = (first[2] - first[0]) / width, (first[3] - first[1]) / height
    return (
        first[0] + left * across,
        first[1] + top * down,
        first[0] + (left + cols) * across,
        first[1] + (top + rows) * down,
    )


def box_of(picture: Picture, preprocessing: Preprocessing) -> Box:
    """The part of what :func:`lrp_jax.pictures.read_picture` read that a model sees: :func:`seen_box`.

    Args:
        picture: a picture; of an image that is normalised already the model sees all.
        preprocessing: of the model.
    """
    if isinstance(picture, np.ndarray):
        return 0.0, 0.0, float(picture.shape[1]), float(picture.shape[0])
    return seen_box(picture.size, preprocessing)


def crop(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop a picture to what the model sees: :func:`seen_box` says which part that is.

    Args:
        picture: the picture.
        preprocessing: of the model.

    Returns:
        The picture in ``preprocessing.image_size``, mode RGB, or L for a model of one channel.

    Raises:
        ValueError: the model has neither 1 nor 3 channels.
    """
    modes, channels = {1: "L", 3: "RGB"}, preprocessing.channels
    if channels not in modes:
        raise ValueError(
            f"a picture has 1 or 3 channels, the model expects {channels}: lrp_jax.pictures.read_picture reads bands "
            "from a TIFF or a .npy."
        )
    return _cut(picture.convert(modes[channels]), preprocessing)


def crop_bands(picture: Bands, preprocessing: Preprocessing) -> Bands:
    """Resize and crop a picture of any number of bands as :func:`crop` does one of grey or colours.

    Args:
        picture: the picture.
        preprocessing: of the model.

    Raises:
        ValueError: the model has another number of channels.
    """
    if picture.pixels.shape[2] != preprocessing.channels:
        found = picture.pixels.shape[2]
        raise ValueError(f"the picture has {found} bands, the model expects {preprocessing.channels}.")
    bands = [np.asarray(_cut(Image.fromarray(b), preprocessing)) for b in np.moveaxis(picture.pixels, -1, 0)]
    return Bands(np.stack(bands, axis=-1).clip(0, 1))


def _cut(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    first, size, (left, top) = _plan(picture.size, preprocessing)
    if first != (0, 0, *picture.size):
        picture = picture.crop(first)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    rows, cols, _ = preprocessing.image_shape
    return picture.crop((left, top, left + cols, top + rows))


def preprocess(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """Resize, crop and normalise a picture as a model expects it.

    Args:
        picture: the picture, or what else :func:`lrp_jax.pictures.read_picture` read: bands, or an image ``[H, W,
            channels]`` that is normalised already and stays as it is.
        preprocessing: of the model; a :class:`lrp_jax.ViTConfig` is one.

    Returns:
        The image, float32 ``[H, W, channels]``.

    Raises:
        ValueError: the model has another number of channels; or an image that is normalised has another shape, or holds
            what is not finite.
    """
    if isinstance(picture, Image.Image):
        return preprocessing.image(crop(picture, preprocessing))
    if isinstance(picture, Bands):
        return preprocessing.normalise(crop_bands(picture, preprocessing).pixels)
    if picture.shape != preprocessing.image_shape:
        raise ValueError(f"expected an image of the shape {preprocessing.image_shape}, got {picture.shape}.")
    if not np.isfinite(picture).all():
        raise ValueError("the image has pixels that are NaN or infinite.")
    return picture


def described(model: Any, preprocessing: Preprocessing | None, labels: Labels | None) -> tuple[Preprocessing, Labels]:
    """How images were made of pictures and what logits stand for, as given or as a ViT's own configuration says.

    Args:
        model: the model.
        preprocessing: as given, or None.
        labels: as given, or None.

    Raises:
        ValueError: it is no model; or one is not given, and the model has no configuration.
    """
    check_model(model)
    config = getattr(model, "config", None)
    pixels, classes = preprocessing or config, labels or config
    if not isinstance(pixels, Preprocessing):
        raise ValueError(
            f"preprocessing must be Preprocessing, for a model without a ViTConfig; got {preprocessing!r}."
        )
    if not isinstance(classes, Labels):
        raise ValueError(f"labels must be Labels, for a model without a ViTConfig; got {labels!r}.")
    return pixels, classes
