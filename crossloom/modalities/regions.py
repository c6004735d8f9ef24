"""Image regions: what an object detector saw, as feature vectors with boxes and classes.

The member is an ``npz`` with ``features`` (float ``[R, F]``), ``boxes`` (float ``[R, 4]``, x1, y1,
x2, y2 in pixels), ``size`` (``[2]``, width and height in pixels) and, where classes are predicted,
``probabilities`` (float ``[R, C]``, class 0 = background) or ``labels`` (int ``[R]``), or both.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Sample, Units, make_units

Norm = Literal["norm_of_norms", "mean_of_norms", "norm_of_sum"]


@dataclass(frozen=True, kw_only=True)
class Regions(Modality):
    """Detector features with boxes.

    Content: ``feature`` (float32 ``[N, F]``), ``box`` (float32 ``[N, box]``, in 0..1).
    Targets: ``feature`` (vector), ``class`` (index: the label where there are labels, else the most
    probable class but background, as UNITER's MRC does; trusted as far as it is probable),
    ``classes`` (distribution).
    """

    kind: ClassVar[str] = "regions"
    field: str = "regions.npz"
    features: int = 2048
    """Size F of a feature vector."""
    classes: int = 1601
    """Number C of classes, background (0) included; 0 when none are to be predicted."""
    box: Literal[4, 5, 7] = 7
    """Numbers that encode a box, all in shares of width and height: 4 corners (LXMERT); 5 with the
    share of area (ViLBERT); 7 with width, height and their product (UNITER)."""
    limit: int = 36
    """Most regions used, the first ones."""
    overlap: float = 0.5
    """Regions whose boxes overlap at least so much (intersection over union), directly or through
    others, form a group: hidden by group, none can be read off its neighbour."""
    overall: bool = False
    """Put a unit for the whole image first (ViLBERT's global feature): never hidden, its box is the
    image, its feature the mean of the regions that are *not* hidden, which the embedder takes. A
    mean taken before hiding would tell what is hidden (as it does in VOLTA)."""
    norm: Norm = "norm_of_norms"
    """How feature and box are joined: norm of the sum of both normed (UNITER), mean of both normed
    (LXMERT), norm of their sum (ViLBERT)."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.features < 1 or self.limit < 1:
            raise ValueError(f"features {self.features} and limit {self.limit} must be at least 1")
        if self.classes < 0 or self.classes == 1:
            raise ValueError(
                f"classes is {self.classes}; write 0 for none, else count background: 2 or more"
            )
        if not self.overlap > 0:
            raise ValueError(f"overlap is {self.overlap}; it is a share, in 0..1 and above 0")

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the regions; nothing is random.

        Raises:
            BadSample: "missing member", "undecodable", "wrong type", "wrong shape",
                "NaN features", "box outside image", "empty stream".
        """
        arrays = read_arrays(sample, self.field)
        feature = self._array(arrays, "features", (None, self.features))[: self.limit]
        box = self._array(arrays, "boxes", (len(arrays["features"]), 4))[: self.limit]
        size = self._array(arrays, "size", (2,))
        if len(feature) == 0:
            raise BadSample("empty stream", f"{self.field}: no regions; at least one is expected")
        feature = np.ascontiguousarray(feature, np.float32)
        if not np.isfinite(feature).all():
            bad = int((~np.isfinite(feature)).any(1).sum())
            raise BadSample(
                "NaN features",
                f"{self.field}: features of {bad} of {len(feature)} regions are not all finite",
            )
        corners = _shares(box, size, self.field)
        targets: dict[str, Array] = {"feature": feature.copy()}
        if self.classes:
            targets |= self._classes(arrays, len(arrays["features"]))
        group = overlap_groups(corners, self.overlap)
        maskable = np.ones(len(feature), bool)
        if self.overall:
            # what the embedder shows is its own mean; this one is never read, nor predicted
            feature = _prepend(feature.mean(0), feature)
            corners = _prepend(np.array([0, 0, 1, 1], np.float32), corners)
            group, maskable = _prepend(0, group + 1), _prepend(False, maskable)
            first: dict[str, Any] = {k: v.mean(0) for k, v in targets.items() if v.ndim == 2}
            targets = {k: _prepend(first.get(k, -1), v) for k, v in targets.items()}
        return make_units(
            {"feature": feature, "box": _encode(corners, self.box)},
            targets=targets,
            maskable=maskable,
            group=group,
        )

    def _array(self, arrays: Mapping[str, Array], name: str, shape: tuple[Any, ...]) -> Array:
        if name not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise BadSample("missing member", f"{self.field} has no {name!r}; it has {found}")
        value = arrays[name]
        if value.dtype.kind not in "fiu":
            raise BadSample(
                "wrong type", f"{self.field}: {name} is of type {value.dtype}; expected numbers"
            )
        fits = value.ndim == len(shape) and all(
            n is None or n == m for n, m in zip(shape, value.shape, strict=False)
        )
        if not fits:
            expected = ", ".join("R" if n is None else str(n) for n in shape)
            raise BadSample(
                "wrong shape",
                f"{self.field}: {name} has shape {list(value.shape)}; expected [{expected}]",
            )
        return value

    def _classes(self, arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
        label = chance = None
        if "labels" in arrays:
            label = self._array(arrays, "labels", (count,))[: self.limit].astype(np.int64)
            if label.min() < 0 or label.max() >= self.classes:
                raise BadSample(
                    "wrong shape",
                    f"{self.field}: labels are {label.min()}..{label.max()}; "
                    f"expected 0..{self.classes - 1} ({self.classes} classes)",
                )
        if label is None or "probabilities" in arrays:
            chance = self._array(arrays, "probabilities", (count, self.classes))[: self.limit]
            chance = chance.astype(np.float32)
            total = chance.sum(1, keepdims=True)
            # not(...) so that NaN fails too; half precision over 1601 classes is off by 1 %
            if not (np.abs(total - 1).max() <= 0.05 and chance.min() >= 0):
                raise BadSample(
                    "NaN features",
                    f"{self.field}: probabilities sum to {total.min():.3g}..{total.max():.3g}, the "
                    f"least is {chance.min():.3g}; expected none below 0 and rows that sum to 1",
                )
            chance = chance / total
        if label is None:
            assert chance is not None
            label = chance[:, 1:].argmax(1).astype(np.int64) + 1
        if chance is None:
            chance = np.eye(self.classes, dtype=np.float32)[label]
        trust = chance[np.arange(len(label)), label]
        return {"class": label, "classes": chance, "class.trust": trust}

    def blank(self) -> Units:
        """One region of zeros."""
        targets: dict[str, Array] = {"feature": np.zeros((1, self.features), np.float32)}
        if self.classes:
            targets["class"] = np.zeros(1, np.int64)
            targets["class.trust"] = np.zeros(1, np.float32)
            targets["classes"] = np.full((1, self.classes), 1 / self.classes, np.float32)
        content = {
            "feature": np.zeros((1, self.features), np.float32),
            "box": np.zeros((1, self.box), np.float32),
        }
        return make_units(content, targets=targets)

    def longest(self) -> int:
        """The limit, and the whole image."""
        return self.limit + int(self.overall)

    def predictable(self) -> Mapping[str, Target]:
        """Feature and classes."""
        offer = {"feature": Target(dim=self.features, form="vector")}
        if self.classes:
            offer["class"] = Target(dim=self.classes, form="index", trusted=True)
            offer["classes"] = Target(dim=self.classes, form="distribution")
        return offer

    def embedder(self, width: int) -> RegionEmbedder:
        """Linear layers for feature and box, joined as ``norm`` says."""
        return RegionEmbedder(self.features, self.box, width, self.norm, self.dropout, self.overall)


def read_arrays(sample: Sample, field: str) -> dict[str, Array]:
    """The arrays of regions, in our layout or in others'.

    ``field`` is an ``npz``; where there is none, each array is a member of its own
    (``features.npy``, ``boxes.npy``, ``size.npy``, …). Bottom-up-attention's names are known:
    ``x``, ``bbox``, ``image_w`` and ``image_h`` (with ``num_bbox`` rows that count).

    Raises:
        BadSample: missing, truncated, or neither npz nor npy.
    """
    single = {k.removesuffix(".npy").rpartition(".")[2]: k for k in sample if k.endswith(".npy")}
    if field in sample or not single:
        arrays = read_npz(sample, field)
    else:
        arrays = {}
        for name, member in single.items():
            try:
                arrays[name] = _array(sample[member])
            except Exception as error:  # as in an npz
                raise BadSample(
                    "undecodable", f"{member}: not a readable npy ({type(error).__name__}: {error})"
                ) from None
    if "x" not in arrays or "features" in arrays:
        return arrays
    count = int(arrays["num_bbox"]) if arrays.get("num_bbox", _NONE).size == 1 else None
    arrays["features"] = arrays["x"][:count]
    if "bbox" in arrays:
        arrays["boxes"] = arrays["bbox"][:count]
    if all(arrays.get(n, _NONE).size == 1 for n in ("image_w", "image_h")):
        arrays["size"] = np.array([arrays[n].item() for n in ("image_w", "image_h")])
    return arrays


_NONE = np.zeros(0)


def read_npz(sample: Sample, field: str) -> dict[str, Array]:
    """The arrays of an ``npz`` member; never unpickles.

    NumPy's own reader spends half a millisecond on parsing headers of small arrays; here a header
    that was seen before is not parsed again.

    Raises:
        BadSample: missing, truncated, or not an npz.
    """
    if field not in sample:
        found = ", ".join(sorted(sample)) or "nothing"
        raise BadSample("missing member", f"no {field}; the sample has {found}")
    try:
        with zipfile.ZipFile(io.BytesIO(sample[field])) as archive:
            return {
                info.filename.removesuffix(".npy"): _array(_stored(sample[field], info, archive))
                for info in archive.infolist()
            }
    except Exception as error:
        # damaged bytes make the zip and header parsers raise almost anything (zlib.error,
        # NotImplementedError, RuntimeError, tokenize.TokenError, …), and none may end a run
        raise BadSample(
            "undecodable", f"{field}: not a readable npz ({type(error).__name__}: {error})"
        ) from None


def _stored(data: bytes, info: zipfile.ZipInfo, archive: zipfile.ZipFile) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    content = data[start : start + info.file_size]
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"checksum of {info.filename} differs")
    return content


def _array(data: bytes) -> Array:
    version, (size,) = data[6:8], struct.unpack_from("<H", data, 8)
    if data[:6] != b"\x93NUMPY" or version != b"\x01\x00":
        array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        return array
    shape, fortran, dtype = _header(data[: 10 + size])
    count = math.prod(shape)
    array = np.frombuffer(data, dtype, count, offset=10 + size)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


@lru_cache(maxsize=4096)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are never loaded")
    return shape, fortran, dtype


def _prepend(first: Any, rest: Array) -> Array:
    """``rest`` with one row before it."""
    return np.concatenate([np.asarray(first, rest.dtype)[None], rest])


def _shares(box: Array, size: Array, field: str) -> Array:
    """Corners in 0..1. Overhang of a pixel, or of half a per cent, is cut off; more is an error."""
    width, height = (float(x) for x in size)
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise BadSample("box outside image", f"{field}: size {width}x{height}; expected pixels")
    scale = np.array([width, height, width, height], np.float32)
    corners = box.astype(np.float32) / scale
    # detectors differ by one in whether x2 is the last pixel or the one after it
    slack = np.maximum(1 / scale, 0.005) + 1e-6
    inside = (corners >= -slack).all(1) & (corners <= 1 + slack).all(1)
    inside &= (corners[:, 2:] >= corners[:, :2]).all(1)
    if not inside.all():
        bad = box[int(np.argmin(inside))].tolist()
        raise BadSample(
            "box outside image",
            f"{field}: box {bad} in an image of {width:.0f}x{height:.0f}; "
            "expected x1 <= x2, y1 <= y2 in pixels, inside the image",
        )
    return corners.clip(0, 1)


def _encode(corners: Array, numbers: int) -> Array:
    size = corners[:, 2:] - corners[:, :2]
    area = size[:, :1] * size[:, 1:]
    parts = {4: [corners], 5: [corners, area], 7: [corners, size, area]}[numbers]
    return np.concatenate(parts, axis=1).astype(np.float32)


def overlap_groups(corners: Array, threshold: float) -> Array:
    """Group numbers ``[R]``: connected by intersection over union of at least ``threshold``."""
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    area = (corners[:, 2:] - corners[:, :2]).prod(1)
    union = area[:, None] + area[None, :] - shared
    near = shared >= threshold * np.maximum(union, 1e-12)
    group = np.arange(len(corners), dtype=np.int64)
    if near.sum() > len(corners):
        while True:
            reached = np.where(near, group[None, :], len(corners)).min(1)
            reached = np.minimum(reached, group)
            if (reached == group).all():
                break
            group = reached
    return group


class RegionEmbedder(Embedder):
    """Feature and box to a vector; a hidden region shows a learned feature in its own box.

    UNITER, ``model/model.py``: zero plus a learned vector, before the linear layer.
    """

    def __init__(
        self,
        features: int,
        box: int,
        width: int,
        norm: Norm,
        dropout: float,
        overall: bool = False,
    ) -> None:
        super().__init__()
        self.how = norm
        self.overall = overall
        self.feature = nn.Linear(features, width)
        self.box = nn.Linear(box, width)
        self.mask = nn.Parameter(torch.zeros(features))
        each = norm != "norm_of_sum"
        self.feature_norm = nn.LayerNorm(width) if each else nn.Identity()
        self.box_norm = nn.LayerNorm(width) if each else nn.Identity()
        self.norm = nn.Identity() if norm == "mean_of_norms" else nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        dtype = self.feature.weight.dtype
        feature = stream.content["feature"]
        seen = torch.where(stream.hidden[:, None], self.mask, feature.to(dtype))
        if self.overall:
            mean = self._visible_mean(stream, feature)
            seen = torch.where((stream.position == 0)[:, None], mean.to(dtype), seen)
        box = self.box(stream.content["box"].to(dtype))
        total = self.feature_norm(self.feature(seen)) + self.box_norm(box)
        if self.how == "mean_of_norms":
            total = total / 2
        return self.dropout(self.norm(total))

    def _visible_mean(self, stream: Stream, feature: Tensor) -> Tensor:
        """For each unit, the mean feature ``[N, F]`` of its example's visible regions.

        The mask where all are hidden.
        """
        visible = ~stream.hidden & (stream.position > 0)
        # where, not a product: a hidden NaN must not reach the sum
        shown = torch.where(visible[:, None], feature, torch.zeros_like(feature))
        examples = len(stream.length)
        total = feature.new_zeros(examples, feature.shape[1]).index_add(0, stream.example, shown)
        count = feature.new_zeros(examples).index_add(0, stream.example, visible.to(feature.dtype))
        mean = total / count.clamp(min=1)[:, None]
        mean = torch.where((count > 0)[:, None], mean, self.mask.to(feature.dtype))
        return mean.index_select(0, stream.example)

    def tied(self, target: str) -> Tensor | None:
        """The feature layer's weight, transposed, for the target ``feature`` (UNITER)."""
        return self.feature.weight.T if target == "feature" else None
