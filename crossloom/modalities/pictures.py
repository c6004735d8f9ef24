"""Pictures as arrays: decoded, cropped at random, resized, cut in patches."""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.units import Array, BadSample

#: Members looked for when ``field`` is ``"image"``, or with ``0.`` before them when it is ``"0"``.
EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random resized crop; mirror image and colours only when asked for.

    Captions name sides and colours, so that ``flip`` and ``jitter`` would make them false.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    ratio: tuple[float, float] = (0.75, 1.333)
    """Width over height of the crop."""
    flip: float = 0.0
    """Probability of mirroring."""
    jitter: float = 0.0
    """Brightness, contrast and saturation are multiplied by numbers in 1 - jitter..1 + jitter."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {self.scale}: write two shares, the lower first, in 0..1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {self.ratio}: write two numbers above 0, the lower first")
        if not (0 <= self.flip <= 1 and 0 <= self.jitter < 1):
            raise ValueError(f"flip {self.flip} and jitter {self.jitter} must be in 0..1")


def decode_image(data: bytes, name: str, max_pixels: int) -> Array:
    """A picture as uint8 ``[3, height, width]`` RGB.

    Transparent parts show white, as a page would; 16 bits a channel keep their upper eight; the
    orientation that a camera noted (EXIF) is not applied, boxes and captions rarely know of it.

    Raises:
        BadSample: "undecodable"; "image too large" (its header says more than ``max_pixels``).
    """
    from PIL import Image

    size = _jpeg_size(data)
    if size:
        _check_size(*size, name, max_pixels)
        with suppress(RuntimeError):  # Pillow reads some files that it does not
            return _decode_jpeg(data)
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            _check_size(*image.size, name, max_pixels)
            return _rgb(image).transpose(2, 0, 1)
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("image too large", f"{name}: {error}") from None
    except Exception as error:
        # Pillow's plugins raise almost anything on damaged bytes, and none may end a run
        raise BadSample(
            "undecodable", f"{name}: not a readable picture ({type(error).__name__}: {error})"
        ) from None


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels, from the header alone.

    Raises:
        BadSample: "undecodable".
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception as error:  # as in :func:`decode_image`
        raise BadSample(
            "undecodable", f"{name}: not a readable picture ({type(error).__name__}: {error})"
        ) from None


def _check_size(width: int, height: int, name: str, most: int) -> None:
    if width * height > most:
        raise BadSample(
            "image too large", f"{name}: {width}x{height} pixels; expected at most {most}"
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a grey or coloured JPEG; None for anything else.

    Pillow opens a file in as much time as a small one takes to decode; ITU T.81, annex B, has the
    frame header in the first segment from 0xC0 to 0xCF that defines no table.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        code = data[at + 1]
        if code == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width, channels = struct.unpack(">HHB", data[at + 5 : at + 10])
            return (width, height) if channels in (1, 3) and width and height else None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _decode_jpeg(data: bytes) -> Array:
    """The picture through torchvision: Pillow's pixels in two thirds of the time."""
    from torchvision.io import ImageReadMode

    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    # the operator itself: what torchvision wraps around it takes a twentieth as long as decoding
    decoded = torch.ops.image.decode_jpeg(buffer, ImageReadMode.RGB.value, False)
    array: Array = decoded.numpy()
    return array


def _rgb(image: Any) -> Array:
    """``[height, width, 3]`` of a Pillow image of any mode."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255: all white
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(page, image)
    return np.asarray(image.convert("RGB"))


def fit(picture: Array, size: int, augment: Augment | None, rng: np.random.Generator) -> Array:
    """The picture as uint8 ``[3, size, size]``: a random crop, or all of it squeezed.

    Its memory may hold pixel after pixel (a view): stacking in a batch copies once, not twice.
    torchvision's own random transforms draw from torch's global generator; here every number comes
    from ``rng``, so that a picture depends on its example alone.
    """
    # decoders give pixel after pixel: no copy is made to lay channel after channel
    tensor = torch.from_numpy(picture if picture.flags.writeable else picture.copy())
    if augment is None:
        return _resize(tensor, size).numpy()
    height, width = picture.shape[1:]
    area = height * width * rng.uniform(*augment.scale)
    ratio = math.exp(rng.uniform(math.log(augment.ratio[0]), math.log(augment.ratio[1])))
    wide = min(width, max(1, round(math.sqrt(area * ratio))))
    high = min(height, max(1, round(math.sqrt(area / ratio))))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    out = _resize(tensor[:, top : top + high, left : left + wide], size)
    if augment.flip and rng.random() < augment.flip:
        out = out.flip(-1)
    if augment.jitter:
        import torchvision.transforms.v2.functional as transforms

        factors = rng.uniform(1 - augment.jitter, 1 + augment.jitter, 3)
        out = transforms.adjust_brightness(out, float(factors[0]))
        out = transforms.adjust_contrast(out, float(factors[1]))
        out = transforms.adjust_saturation(out, float(factors[2]))
    return out.numpy()


def _resize(picture: Tensor, size: int) -> Tensor:
    """uint8 ``[3, size, size]``, antialiased: torchvision's ``resize`` without its dispatch."""
    shape = (size, size)
    if picture.shape[1:] == shape:
        return picture
    return F.interpolate(picture[None], shape, mode="bilinear", antialias=True)[0]


def cut(picture: Array, patch: int) -> Array:
    """``[3, S, S]`` to ``[(S / patch)², patch · patch · 3]``, row by row."""
    side = picture.shape[1] // patch
    grid = picture.reshape(3, side, patch, side, patch).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(grid.reshape(side * side, -1))
