"""Image regions: what an object detector saw, as feature vectors with boxes and classes.

The member is an ``npz`` with ``features`` (float ``[R, F]``), ``boxes`` (float ``[R, 4]``, x1, y1,
x2, y2 in pixels), ``size`` (``[2]``, width and height in pixels) and, where classes are predicted,
``probabilities`` (float ``[R, C]``, class 0 = background) or ``labels`` (int ``[R]``).
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

    Targets: ``feature`` (vector), ``class`` (index: the most probable class but background),
    ``classes`` (distribution).
    """

    kind: ClassVar[str] = "regions"
    field: str = "regions.npz"
    features: int = 2048
    """Size F of a feature vector."""
    classes: int = 1601
    """Number C of classes, background (0) included; 0 when the member has none."""
    box: Literal[4, 5, 7] = 7
    """Numbers that encode a box, all in shares of width and height: 4 corners (LXMERT); 5 with the
    share of area (ViLBERT); 7 with width, height and their product (UNITER)."""
    limit: int = 36
    """Most regions used, the first ones."""
    overlap: float = 0.5
    """Regions whose boxes overlap at least so much (intersection over union), directly or through
    others, form a group: hidden by group, none can be read off its neighbour."""
    norm: Norm = "norm_of_norms"
    """How feature and box are joined: norm of the sum of both normed (UNITER), mean of both normed
    (LXMERT), norm of their sum (ViLBERT)."""
    dropout: float = 0.1

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the regions."""
        arrays = read_npz(sample, self.field)
        feature = self._array(arrays, "features", (None, self.features))[: self.limit]
        box = self._array(arrays, "boxes", (len(arrays["features"]), 4))[: self.limit]
        size = self._array(arrays, "size", (2,))
        if len(feature) == 0:
            raise BadSample("empty stream", f"{self.field}: no regions")
        if not np.isfinite(feature).all():
            raise BadSample("NaN features", f"{self.field}: features are not all finite")
        corners = _shares(box, size, self.field)
        feature = np.ascontiguousarray(feature, np.float32)
        targets: dict[str, Array] = {"feature": feature.copy()}
        if self.classes:
            targets |= self._classes(arrays, len(arrays["features"]))
        return make_units(
            {"feature": feature, "box": _encode(corners, self.box)},
            targets=targets,
            group=overlap_groups(corners, self.overlap),
        )

    def _array(self, arrays: Mapping[str, Array], name: str, shape: tuple[Any, ...]) -> Array:
        if name not in arrays:
            found = ", ".join(arrays)
            raise BadSample("missing member", f"{self.field} has no {name!r}; it has {found}")
        value = arrays[name]
        fits = value.ndim == len(shape) and all(
            n is None or n == m for n, m in zip(shape, value.shape, strict=False)
        )
        if not fits:
            raise BadSample("wrong shape", f"{self.field}: {name} is {value.shape}, not {shape}")
        return value

    def _classes(self, arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
        if "labels" in arrays and "probabilities" not in arrays:
            label = self._array(arrays, "labels", (count,))[: self.limit].astype(np.int64)
            if label.min(initial=0) < 0 or label.max(initial=0) >= self.classes:
                raise BadSample(
                    "wrong shape", f"{self.field}: labels beyond {self.classes} classes"
                )
            return {"class": label, "classes": np.eye(self.classes, dtype=np.float32)[label]}
        chance = self._array(arrays, "probabilities", (count, self.classes))[: self.limit]
        chance = chance.astype(np.float32)
        total = chance.sum(1, keepdims=True)
        if not np.isfinite(total).all() or (np.abs(total - 1) > 0.05).any():
            raise BadSample("NaN features", f"{self.field}: probabilities do not sum to one")
        return {"class": chance[:, 1:].argmax(1).astype(np.int64) + 1, "classes": chance / total}

    def blank(self) -> Units:
        """One region of zeros."""
        targets: dict[str, Array] = {"feature": np.zeros((1, self.features), np.float32)}
        if self.classes:
            targets["class"] = np.zeros(1, np.int64)
            targets["classes"] = np.full((1, self.classes), 1 / self.classes, np.float32)
        content = {
            "feature": np.zeros((1, self.features), np.float32),
            "box": np.zeros((1, self.box), np.float32),
        }
        return make_units(content, targets=targets)

    def longest(self) -> int:
        """The limit."""
        return self.limit

    def predictable(self) -> Mapping[str, Target]:
        """Feature and classes."""
        offer = {"feature": Target(dim=self.features, form="vector")}
        if self.classes:
            offer["class"] = Target(dim=self.classes, form="index")
            offer["classes"] = Target(dim=self.classes, form="distribution")
        return offer

    def embedder(self, width: int) -> RegionEmbedder:
        """Linear layers for feature and box, joined as ``norm`` says."""
        return RegionEmbedder(self.features, self.box, width, self.norm, self.dropout)


def read_npz(sample: Sample, field: str) -> dict[str, Array]:
    """The arrays of an ``npz`` member; never unpickles.

    NumPy's own reader spends half a millisecond on parsing headers of small arrays; here a header
    that was seen before is not parsed again.

    Raises:
        BadSample: missing, truncated, or not an npz.
    """
    if field not in sample:
        raise BadSample("missing member", f"no {field}; it has {', '.join(sorted(sample))}")
    try:
        with zipfile.ZipFile(io.BytesIO(sample[field])) as archive:
            return {
                info.filename.removesuffix(".npy"): _array(_stored(sample[field], info, archive))
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, struct.error) as error:
        raise BadSample("undecodable", f"{field}: {error}") from None


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


def _shares(box: Array, size: Array, field: str) -> Array:
    """Corners in 0..1; half a per cent of overhang is cut off, more is an error."""
    width, height = (float(x) for x in size)
    if not (width > 0 and height > 0 and np.isfinite(box).all()):
        raise BadSample(
            "box outside image", f"{field}: size {width}x{height}, boxes {box.tolist()}"
        )
    corners = box.astype(np.float32) / np.array([width, height, width, height], np.float32)
    if corners.min() < -0.005 or corners.max() > 1.005 or (corners[:, 2:] < corners[:, :2]).any():
        worst = box[int(np.abs(corners - 0.5).max(1).argmax())].tolist()
        raise BadSample("box outside image", f"{field}: box {worst} in {width:.0f}x{height:.0f}")
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
    """Feature and box to a vector; a hidden region shows a learned feature in its box."""

    def __init__(self, features: int, box: int, width: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.how = norm
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
        seen = torch.where(stream.hidden[:, None], self.mask, stream.content["feature"])
        total = self.feature_norm(self.feature(seen)) + self.box_norm(
            self.box(stream.content["box"])
        )
        if self.how == "mean_of_norms":
            total = total / 2
        return self.dropout(self.norm(total))

    def tied(self, target: str) -> Tensor | None:
        """The feature layer's weight, transposed, for the target ``feature`` (UNITER)."""
        return self.feature.weight.T if target == "feature" else None
