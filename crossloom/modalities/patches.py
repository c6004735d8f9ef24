"""Images as patches: raw pixels through a linear layer, or through an image tower by name.

Images stay uint8 until they are on the device, where they are normalised.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Sample, Units, make_units

#: Members looked for when ``field`` is ``"image"``.
EXTENSIONS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random resized crop, and perhaps a mirror image (captions may name sides: off)."""

    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    ratio: tuple[float, float] = (0.75, 1.333)
    """Width over height of the crop."""
    flip: float = 0.0
    """Probability of mirroring."""


@dataclass(frozen=True, kw_only=True)
class Patches(Modality):
    """Square patches of a square picture; with ``summary``, a learned unit comes first.

    Target: ``pixels`` (vector), each patch brought to mean 0 and deviation 1 (MAE, section 4.1).
    """

    kind: ClassVar[str] = "patches"
    field: str = "image"
    """A member, or ``"image"`` for whichever of jpg, jpeg, png, webp there is."""
    size: int = 224
    """Side of the picture in pixels, after cropping and resizing."""
    patch: int = 16
    """Side of a patch in pixels."""
    tower: str = ""
    """Empty for a linear layer; ``timm:NAME`` or ``open_clip:NAME`` for a tower's tokens."""
    weights: str = ""
    """File with the tower's weights (safetensors, or torch without pickled objects)."""
    summary: bool = True
    """A learned unit before the patches (linear layer only; towers have their own)."""
    augment: Augment | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels, in 0..1 (ImageNet's)."""
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_pixels: int = 100_000_000
    """Larger pictures are refused before they are decoded."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Patches of the (cropped, resized) picture."""
        picture = decode_image(*self._member(sample), self.max_pixels)
        picture = fit(picture, self.size, self.augment, rng)
        if self.tower:
            count, _ = _tower_shape(self.tower, self.size)
            return make_units({}, count=count, whole={"image": picture})
        content = cut(picture, self.patch)
        return self._units(content)

    def _units(self, content: Array) -> Units:
        pixels = content.astype(np.float32) / 255
        centred = pixels - pixels.mean(1, keepdims=True)
        target = centred / np.sqrt(centred.var(1, keepdims=True) + 1e-6)
        maskable = np.ones(len(content), bool)
        if self.summary:
            content = np.concatenate([np.zeros_like(content[:1]), content])
            target = np.concatenate([np.zeros_like(target[:1]), target])
            maskable = np.concatenate([[False], maskable])
        return make_units(
            {"pixels": content}, targets={"pixels": target.astype(np.float32)}, maskable=maskable
        )

    def _member(self, sample: Sample) -> tuple[bytes, str]:
        names = EXTENSIONS if self.field == "image" else (self.field,)
        for name in names:
            if name in sample:
                return sample[name], name
        found = ", ".join(sorted(sample))
        raise BadSample("missing member", f"none of {', '.join(names)}; it has {found}")

    def steady(self) -> Patches:
        """Without augmentation: the picture squeezed to the square."""
        return replace(self, augment=None)

    def blank(self) -> Units:
        """A grey picture's units (for the linear layer, one of them)."""
        if self.tower:
            grey = np.full((3, self.size, self.size), 127, np.uint8)
            return make_units(
                {}, count=_tower_shape(self.tower, self.size)[0], whole={"image": grey}
            )
        units = self._units(np.full((1, 3 * self.patch**2), 127, np.uint8))
        return units

    def longest(self) -> int:
        """Patches, and the summary."""
        if self.tower:
            return _tower_shape(self.tower, self.size)[0]
        return (self.size // self.patch) ** 2 + int(self.summary)

    def predictable(self) -> Mapping[str, Target]:
        """Pixels of a patch, for the linear layer."""
        return {} if self.tower else {"pixels": Target(dim=3 * self.patch**2, form="vector")}

    def embedder(self, width: int) -> Embedder:
        """A linear layer over pixels with learned positions, or a tower with a projection."""
        if self.tower:
            return TowerEmbedder(self, width)
        return PatchEmbedder(self, width)


def decode_image(data: bytes, name: str, max_pixels: int) -> Array:
    """A picture as uint8 ``[3, height, width]`` RGB.

    Raises:
        BadSample: it does not decode, or its header says it is too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSample("image too large", f"{name}: {width}x{height} pixels")
            if image.mode in ("P", "LA", "RGBA", "PA"):
                # transparent parts show white, as a page would
                image = image.convert("RGBA")
                page = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(page, image)
            array = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("undecodable", f"{name}: {error}") from None
    return array.transpose(2, 0, 1)


def fit(picture: Array, size: int, augment: Augment | None, rng: np.random.Generator) -> Array:
    """The picture as uint8 ``[3, size, size]``: a random crop, or all of it squeezed."""
    import torchvision.transforms.v2.functional as transforms

    tensor = torch.from_numpy(np.ascontiguousarray(picture))
    if augment is None:
        out = transforms.resize(tensor, [size, size], antialias=True)
        return out.numpy()
    height, width = picture.shape[1:]
    area = height * width * rng.uniform(*augment.scale)
    ratio = float(np.exp(rng.uniform(*np.log(augment.ratio))))
    wide = min(width, max(1, round(float(np.sqrt(area * ratio)))))
    high = min(height, max(1, round(float(np.sqrt(area / ratio)))))
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    out = transforms.resized_crop(tensor, top, left, high, wide, [size, size], antialias=True)
    if augment.flip and rng.random() < augment.flip:
        out = transforms.horizontal_flip(out)
    return out.numpy()


def cut(picture: Array, patch: int) -> Array:
    """``[3, S, S]`` to ``[(S / patch)², patch · patch · 3]``, row by row."""
    side = picture.shape[1] // patch
    grid = picture.reshape(3, side, patch, side, patch).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(grid.reshape(side * side, -1))


class PatchEmbedder(Embedder):
    """Normalised pixels through a linear layer; learned positions; a mask for hidden patches."""

    def __init__(self, spec: Patches, width: int) -> None:
        super().__init__()
        count = (spec.size // spec.patch) ** 2
        self.summary = nn.Parameter(torch.zeros(width)) if spec.summary else None
        self.pixels = nn.Linear(3 * spec.patch**2, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.position = nn.Embedding(count + int(spec.summary), width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(spec.dropout)
        self.register_buffer("mean", torch.tensor(spec.mean) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(spec.deviation) * 255, persistent=False)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        raw = stream.content["pixels"].unflatten(1, (-1, 3)).to(self.pixels.weight.dtype)
        x = self.pixels(((raw - self.mean) / self.deviation).flatten(1))
        x = torch.where(stream.hidden[:, None], self.mask, x)
        if self.summary is not None:
            x = torch.where((stream.position == 0)[:, None], self.summary, x)
        return self.dropout(self.norm(x + self.position(stream.position)))


@lru_cache(maxsize=8)
def _tower_shape(name: str, size: int) -> tuple[int, int]:
    """Tokens and width that a tower gives for a picture."""
    with torch.inference_mode():
        tokens = _tokens(name, _make_tower(name, size).eval(), torch.zeros(1, 3, size, size))
    return int(tokens.shape[1]), int(tokens.shape[2])


def _make_tower(name: str, size: int) -> nn.Module:
    kind, _, model = name.partition(":")
    if kind == "timm":
        import timm

        options: dict[str, Any] = {"img_size": size} if "vit" in model or "swin" in model else {}
        return timm.create_model(model, pretrained=False, num_classes=0, **options)
    if kind == "open_clip":
        import open_clip

        whole: Any = open_clip.create_model(model, pretrained=None, force_image_size=size)
        visual = whole.visual
        visual.output_tokens = True
        return visual
    raise ValueError(f"tower {name!r}: write timm:NAME or open_clip:NAME")


def _tokens(name: str, tower: nn.Module, image: Tensor) -> Tensor:
    """``[E, tokens, width]`` of a tower's last features."""
    if name.startswith("timm:"):
        out = tower.forward_features(image)  # type: ignore[operator]
        if out.dim() == 4:  # a convolutional map; timm's transformers of windows put channels last
            last = out.shape[-1] == getattr(tower, "num_features", -1)
            out = out.flatten(1, 2) if last else out.flatten(2).transpose(1, 2)
        return out
    _, tokens = tower(image)
    return tokens


class TowerEmbedder(Embedder):
    """A tower's tokens, projected. Hidden tokens are covered after the tower has run.

    Towers mix all pixels, so a hidden token's content is in its neighbours: views must not hide
    units of a stream with a tower (it offers no target either).
    """

    def __init__(self, spec: Patches, width: int) -> None:
        super().__init__()
        self.name = spec.tower
        self.tower = _make_tower(spec.tower, spec.size)
        self.tower.keeps_weights = True  # type: ignore[assignment]
        if spec.weights:
            self.tower.load_state_dict(_read_weights(spec.weights))
        _, inner = _tower_shape(spec.tower, spec.size)
        self.project = nn.Linear(inner, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(spec.deviation).view(3, 1, 1) * 255, persistent=False
        )

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        image = (stream.whole["image"].to(self.mask.dtype) - self.mean) / self.deviation
        tokens = _tokens(self.name, self.tower, image)
        x = self.project(tokens).flatten(0, 1)
        return self.norm(torch.where(stream.hidden[:, None], self.mask, x))


def _read_weights(path: str) -> Mapping[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
