"""Images as patches: raw pixels through a linear layer, or through an image tower by name.

Images stay uint8 until they are on the device, where they are normalised.

Towers by name: any model of timm that gives a square grid of features, and open_clip's image towers
(its own vision transformers, its ResNets, and those it takes from timm). Nothing is downloaded:
weights come from a file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.modalities.pictures import EXTENSIONS, Augment, cut, decode_image, fit
from crossloom.units import Array, BadSample, Sample, Units, make_units

#: Channel statistics of CLIP's towers (``open_clip/constants.py``), for ``mean``, ``deviation``.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Patches(Modality):
    """Square patches of a square picture; with ``summary``, a unit for all of it comes first.

    Linear layer: content ``pixels`` (uint8 ``[N, patch · patch · 3]``, row by row, channels last);
    target ``pixels`` (vector, float32), each patch brought to mean 0 and deviation 1 (MAE, arXiv
    2111.06377, section 3 "Reconstruction target"; deviation over n, its code has n - 1).

    Tower: ``whole["image"]`` (uint8 ``[3, size, size]``), no target; units are the summary and the
    tower's grid of features, row by row.

    Evaluation decodes with :meth:`steady`, which augments nothing.
    """

    kind: ClassVar[str] = "patches"
    field: str = "image"
    """A member, or ``"image"`` for whichever of jpg, jpeg, png, webp there is; of samples with
    several pictures ``"0"`` for whichever of 0.jpg, 0.jpeg …, ``"1"`` for the next."""
    size: int = 224
    """Side of the picture in pixels, after cropping and resizing."""
    patch: int = 16
    """Side of a patch in pixels."""
    tower: str = ""
    """Empty for a linear layer; ``timm:NAME`` or ``open_clip:NAME`` for a tower's tokens."""
    weights: str = ""
    """File with the tower's weights (safetensors, or torch without pickled objects)."""
    summary: bool = True
    """A unit before the patches, never hidden: learned for the linear layer; a tower's class token
    or what its learned pooling gives. Towers that have neither (convolutional ones) get none."""
    augment: Augment | None = None
    """None: all of the picture, squeezed to the square."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels, in 0..1 (ImageNet's; write :data:`CLIP_MEAN` for towers of CLIP)."""
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    affine: bool = True
    """A bias in the linear layer over pixels."""
    norm: bool = True
    """A layer norm over the embedding of a linear layer's patches; CLIP has it, other pre-norm
    towers leave it to the Transformer."""
    marked: bool = False
    """A learned vector added to every unit last, which says that it is of a picture (the modality
    type of single-stream models without a norm over the sum)."""
    max_pixels: int = 100_000_000
    """Larger pictures are refused before they are decoded."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.patch < 1:
            raise ValueError(f"size {self.size} and patch {self.patch} must be at least 1")
        if not self.tower and self.size % self.patch:
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Patches of the (cropped, resized) picture.

        Raises:
            BadSample: "missing member", "undecodable", "image too large".
        """
        picture = decode_image(*self._member(sample), self.max_pixels)
        picture = fit(picture, self.size, self.augment, rng)
        if self.tower:
            return self._whole(picture)
        content = cut(picture, self.patch)
        return self._units(content)

    def _whole(self, picture: Array) -> Units:
        shape = tower_shape(self.tower, self.size, self.summary)
        maskable = np.ones(shape.units, bool)
        maskable[: shape.first] = False
        return make_units({}, count=shape.units, whole={"image": picture}, maskable=maskable)

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
        names: tuple[str, ...] = (self.field,)  # which callers who have no file name use
        if self.field == "image":
            names = (*EXTENSIONS, *names)
        elif self.field.isdecimal():
            names = (*(f"{self.field}.{extension}" for extension in EXTENSIONS), *names)
        for name in names:
            if name in sample:
                return sample[name], name
        found = ", ".join(sorted(sample)) or "nothing"
        raise BadSample(
            "missing member", f"no picture ({', '.join(names)}); the sample has {found}"
        )

    def steady(self) -> Patches:
        """Without augmentation: the picture squeezed to the square."""
        return replace(self, augment=None)

    def blank(self) -> Units:
        """A grey picture's units; for the linear layer one patch (and the summary)."""
        if self.tower:
            return self._whole(np.full((3, self.size, self.size), 127, np.uint8))
        return self._units(np.full((1, 3 * self.patch**2), 127, np.uint8))

    def longest(self) -> int:
        """Patches, and the summary."""
        if self.tower:
            return tower_shape(self.tower, self.size, self.summary).units
        return (self.size // self.patch) ** 2 + int(self.summary)

    def predictable(self) -> Mapping[str, Target]:
        """Pixels of a patch, for the linear layer."""
        return {} if self.tower else {"pixels": Target(dim=3 * self.patch**2, form="vector")}

    def embedder(self, width: int) -> Embedder:
        """A linear layer over pixels with learned positions, or a tower with a projection."""
        if self.tower:
            return TowerEmbedder(self, width)
        return PatchEmbedder(self, width)


class PatchEmbedder(Embedder):
    """Normalised pixels through a linear layer; learned positions; a mask for hidden patches."""

    def __init__(self, spec: Patches, width: int) -> None:
        super().__init__()
        count = (spec.size // spec.patch) ** 2
        self.summary = nn.Parameter(torch.zeros(width)) if spec.summary else None
        self.pixels = nn.Linear(3 * spec.patch**2, width, bias=spec.affine)
        self.mask = nn.Parameter(torch.zeros(width))
        self.position = nn.Embedding(count + int(spec.summary), width)
        self.norm = nn.LayerNorm(width) if spec.norm else nn.Identity()
        self.mark = nn.Parameter(torch.zeros(width)) if spec.marked else None
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
        x = self.dropout(self.norm(x + self.position(stream.position)))
        return x if self.mark is None else x + self.mark


@dataclass(frozen=True)
class TowerShape:
    """What a tower gives for a picture."""

    first: int  #: 1 when a summary comes first, else 0
    side: int  #: cells on each side of the grid
    summary: int  #: width of the summary, 0 for none
    inner: int  #: width of a cell's features

    @property
    def units(self) -> int:
        """Summary and cells."""
        return self.first + self.side**2


@lru_cache(maxsize=8)
def tower_shape(name: str, size: int, summary: bool) -> TowerShape:
    """The shape of a tower's output, found by a pass without memory or arithmetic.

    Raises:
        ValueError: unknown tower; it gives no square grid, or none that divides ``size``.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            tower = make_tower(name, size).eval()
            found = tower_features(tower, torch.zeros(1, 3, size, size), summary)
    except (NotImplementedError, RuntimeError):  # it looks at values while it is made or run
        with torch.no_grad():
            tower = make_tower(name, size).eval()
            found = tower_features(tower, torch.zeros(1, 3, size, size), summary)
    pooled, cells = found
    side = math.isqrt(cells.shape[1])
    if side**2 != cells.shape[1]:
        raise ValueError(f"tower {name}: {cells.shape[1]} features are no square grid of cells")
    # A cell must stand for size / side pixels exactly, or hiding would paint over other ones.
    times = size / side / _patch_of(tower)
    if not (times.is_integer() and int(times).bit_count() == 1):
        raise ValueError(
            f"tower {name}: its {side} cells a side do not divide size {size}; "
            "choose a size that is a multiple of the tower's stride"
        )
    width = 0 if pooled is None else int(pooled.shape[1])
    return TowerShape(int(pooled is not None), side, width, int(cells.shape[2]))


def _patch_of(tower: Any) -> int:
    """Side in pixels of what the tower cuts first, 1 for convolutional towers.

    A cell is that many pixels times a power of two: towers of windows merge four into one.
    """
    embed = getattr(getattr(tower, "trunk", tower), "patch_embed", tower)
    side = getattr(embed, "patch_size", 1)
    return int(side[0] if isinstance(side, tuple | list) else side)


def make_tower(name: str, size: int) -> nn.Module:
    """A tower with random weights.

    Raises:
        ValueError: not ``timm:NAME`` or ``open_clip:NAME`` of a known model, or a NAME that would
            be downloaded.
    """
    kind, _, model = name.partition(":")
    if kind not in ("timm", "open_clip") or not model or ":" in model:
        raise ValueError(
            f"tower {name!r}: write timm:NAME or open_clip:NAME, NAME as the library lists it; "
            "weights of a hub are given as a file (weights: PATH)"
        )
    if kind == "timm":
        import timm

        if not timm.is_model(model):
            raise _unknown(name, timm.list_models())
        options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
        try:
            return timm.create_model(model, img_size=size, **options)
        except TypeError:  # convolutional models take pictures of any size
            return timm.create_model(model, **options)
    import open_clip

    if model not in open_clip.list_models():
        raise _unknown(name, open_clip.list_models())
    # pretrained_hf: without it, models with a text tower of a hub would fetch that tower
    device = torch.empty(0).device  # create_model moves the model, from "meta" too
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that the weights are random: they are meant to be
    try:
        whole: Any = open_clip.create_model(
            model, pretrained=None, force_image_size=size, pretrained_hf=False, device=device
        )
    finally:
        logging.disable(before)
    return whole.visual


def _unknown(name: str, models: list[str]) -> ValueError:
    near = ", ".join(get_close_matches(name.partition(":")[2], models, 5, 0.5)) or "nothing like it"
    return ValueError(f"tower {name!r}: the library has no such model; it has {near}")


def tower_features(tower: nn.Module, image: Tensor, summary: bool) -> tuple[Tensor | None, Tensor]:
    """A tower's summary ``[E, S]`` (None when not wanted, or it has none), and cells ``[E, T, C]``.

    Raises:
        ValueError: a tower that does not show its grid.
    """
    part: Any = tower
    if hasattr(part, "trunk"):  # open_clip's wrapper around a model of timm
        cells = part.trunk.forward_features(image)
        pooled = part.head(part.trunk.forward_head(cells)) if summary else None
        return pooled, _grid(part.trunk, cells)
    if hasattr(part, "attnpool"):  # open_clip's ResNet
        cells = part.stem(image)
        for layer in (part.layer1, part.layer2, part.layer3, part.layer4):
            cells = layer(cells)
        return (part.attnpool(cells) if summary else None), cells.flatten(2).transpose(1, 2)
    if hasattr(part, "output_tokens"):  # open_clip's vision transformer
        if part.attn_pool is not None or part.pool_type not in ("tok", "avg"):
            raise ValueError("this tower of open_clip pools its tokens; choose one that keeps them")
        part.output_tokens = True
        pooled, cells = part(image)
        return (pooled if summary else None), cells
    cells = part.forward_features(image)
    if not summary:
        return None, _grid(part, cells)
    if getattr(part, "attn_pool", None) is not None:
        return part.forward_head(cells, pre_logits=True), _grid(part, cells)
    token = cells[:, 0] if getattr(part, "num_prefix_tokens", 0) else None
    return token, _grid(part, cells)


def _grid(tower: Any, cells: Tensor) -> Tensor:
    """``[E, T, C]`` of timm's features: class and register tokens dropped, maps flattened."""
    if cells.dim() == 4:  # a map; transformers of windows put channels last
        last = cells.shape[-1] == getattr(tower, "num_features", -1)
        return cells.flatten(1, 2) if last else cells.flatten(2).transpose(1, 2)
    return cells[:, getattr(tower, "num_prefix_tokens", 0) :]


def _freeze_unused(tower: nn.Module, summary: bool) -> None:
    """Parameters that take no part get no gradient; some optimisers fail on those that miss one."""
    part: Any = tower
    unused: list[Any] = []
    if hasattr(part, "trunk"):
        if not summary:
            unused = [part.head, *(_heads(part.trunk))]
    elif hasattr(part, "attnpool"):
        unused = [] if summary else [part.attnpool]
    elif hasattr(part, "output_tokens"):
        if part.final_ln_after_pool and not summary:
            unused = [part.ln_post]
        if part.proj is not None and not summary:
            part.proj.requires_grad_(False)
    elif not (summary and getattr(part, "attn_pool", None) is not None):
        unused = _heads(part)
    for module in unused:
        module.requires_grad_(False)


def _heads(tower: Any) -> list[nn.Module]:
    """What a model of timm has after ``forward_features``."""
    found = (getattr(tower, name, None) for name in ("attn_pool", "fc_norm", "head"))
    return [part for part in found if isinstance(part, nn.Module)]


class TowerEmbedder(Embedder):
    """A tower's features, projected.

    Towers mix all pixels, so a hidden unit's content would be in its neighbours if it were covered
    afterwards. Hidden cells are therefore painted over, with the mean colour, before the tower
    sees the picture (``size / side`` pixels a side, whatever the reach of the tower's features).
    """

    def __init__(self, spec: Patches, width: int) -> None:
        super().__init__()
        self.shape = tower_shape(spec.tower, spec.size, spec.summary)
        self.tower = make_tower(spec.tower, spec.size)
        self.tower.keeps_weights = True  # type: ignore[assignment]
        _freeze_unused(self.tower, spec.summary)
        if spec.weights:
            load_tower(self.tower, spec.weights)
        self.project = nn.Linear(self.shape.inner, width)
        self.summary = nn.Linear(self.shape.summary, width) if self.shape.first else None
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(spec.deviation).view(3, 1, 1) * 255, persistent=False
        )

    def train(self, mode: bool = True) -> TowerEmbedder:
        """Norms over a batch keep the statistics that came with the weights.

        Those of a pass would depend on how passes are made, and on pictures that stand in where
        there are none.
        """
        super().train(mode)
        for module in self.tower.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        side, first = self.shape.side, self.shape.first
        image = (stream.whole["image"].to(self.project.weight.dtype) - self.mean) / self.deviation
        cell = image.shape[-1] // side
        hidden = stream.hidden.view(-1, first + side**2)[:, first:].view(-1, 1, side, side)
        hidden = hidden.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
        image = torch.where(hidden, torch.zeros_like(image), image)
        pooled, cells = tower_features(self.tower, image, self.summary is not None)
        x = self.project(cells)
        if self.summary is not None:
            assert pooled is not None
            x = torch.cat([self.summary(pooled)[:, None], x], 1)
        return self.norm(x.flatten(0, 1))


def load_tower(tower: nn.Module, path: str) -> None:
    """Fill a tower from a file: its own weights, a whole CLIP's, or a checkpoint of open_clip.

    Weights of a classifier, or of a text tower, are left aside.

    Raises:
        ValueError: no such file, not weights, or some of the tower's are missing or of other shape.
    """
    try:
        found = _read_weights(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file; give the tower's weights as weights: PATH"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{path}: not a file of weights ({type(error).__name__}); "
            "expected safetensors, or tensors saved by torch.save"
        ) from None
    found = {k.removeprefix("module."): v for k, v in found.items()}
    if any(k.startswith("visual.") for k in found):
        found = {k[7:]: v for k, v in found.items() if k.startswith("visual.")}
    wanted = tower.state_dict()
    missing = [k for k in wanted if k not in found]
    other = [
        f"{k} {list(found[k].shape)}, expected {list(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    if missing or other:
        raise ValueError(
            f"{path}: does not fit the tower; {len(missing)} of {len(wanted)} weights missing"
            f"{' (' + ', '.join(missing[:3]) + ', …)' if missing else ''}, {len(other)} of another "
            f"shape{' (' + '; '.join(other[:3]) + ')' if other else ''}"
        )
    tower.load_state_dict({k: found[k] for k in wanted})


def _read_weights(path: str) -> Mapping[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("state_dict", content)
