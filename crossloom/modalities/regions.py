"""Image regions: what an object detector saw, as feature vectors with boxes and classes.

The member is an ``npz`` with ``features`` (float ``[R, F]``), ``boxes`` (float ``[R, 4]``, x1, y1,
x2, y2 in pixels), ``size`` (``[2]``, width and height in pixels) and, where classes are predicted,
``probabilities`` (float ``[R, C]``, class 0 = background) or ``labels`` (int ``[R]``), or both.
Optional: ``confidence`` (float ``[R]``, of the label), ``attributes`` (int ``[R]``, negative for
none) and ``attribute_confidence`` (float ``[R]``).

How published systems embed a region, in the fields of :class:`Regions` (``feature`` and ``box`` are
linear layers, LN a layer norm):

=============  =========================================================================
UNITER         LN(LN(feature) + LN(box 7) + row 1 of the text's segment table)
LXMERT         (LN(feature) + LN(box 4)) / 2
ViLBERT        LN(feature + box 5), the whole image first
VisualBERT     LN(feature + own position row + own segment row), the text's LN; no box
VL-BERT        LN(LN(relu(feature and waves of the box)) + word + the text's rows), the text's LN
Oscar          one layer for feature and box 6, no LN
VLP            LN(relu(relu(feature)) + relu(box 5, confidence, classes) + segment), the text's LN
Unicoder-VL    LN(feature + box 5 + word + segment), the text's LN
ImageBERT      LN(feature + box 5 + segment + one position row), the text's LN
M3P            LN(feature + box 5), both of length one before their layers
=============  =========================================================================
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.modalities.names import Names
from crossloom.units import Array, BadSample, Sample, Units, make_units

Norm = Literal["norm_of_norms", "mean_of_norms", "norm_of_sum", "none"]
Activation = Literal["none", "relu", "tanh"]
Part = Literal["norm", "segment", "position", "token"]
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}
#: Wavelengths of each of the four numbers of a box in VL-BERT, and their base.
_WAVES, _WAVE_BASE = 256, 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions(Modality):
    """Detector features with boxes.

    Content: ``feature`` (float32 ``[N, F]``), ``box`` (float32 ``[N, box]``, in 0..1).
    Targets: ``feature`` (vector), ``class`` (index: the label where there are labels, else the most
    probable class but background, as UNITER's MRC does; trusted as far as the detector is sure, or
    it is probable), ``classes`` (distribution), ``attribute`` (index, trusted), ``token`` (index: a
    word piece of the class's name, where there are ``names``).
    """

    kind: ClassVar[str] = "regions"
    swapped: ClassVar[tuple[str, ...]] = ("feature",)
    field: str = "regions.npz"
    features: int = 2048
    """Size F of a feature vector."""
    classes: int = 1601
    """Number C of classes, background (0) included; 0 when none are to be predicted."""
    background: bool = True
    """Count background as a class. False: ``classes`` are those of objects alone, from 0, one less
    than the arrays number them (LXMERT: 1600), and regions of background have no class."""
    attributes: int = 0
    """Number of attributes, as the array numbers them; 0 when none are to be predicted."""
    names: Names | None = None
    """What classes are called, to ask hidden regions for a word piece of it (UC2)."""
    box: Literal[0, 4, 5, 6, 7, "waves"] = 7
    """Numbers that encode a box, all in shares of width and height: 4 corners (LXMERT); 5 with the
    share of area (ViLBERT); 6 with width and height (Oscar); 7 with their product too (UNITER);
    sines and cosines of centre, width and height in per cent, 512 each (``waves``, VL-BERT, section
    3.2); 0 for no box (VisualBERT)."""
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
    """How feature and box are normed: norm of the sum of both normed (UNITER), mean of both normed
    (LXMERT), norm of their sum (ViLBERT), not at all (Oscar)."""
    join: Literal["sum", "concat"] = "sum"
    """A linear layer each and their sum, or one layer over both end to end (Oscar, VL-BERT)."""
    hidden: int = 0
    """Width of a first layer on the feature alone (VLP: the detector's last); 0 for none."""
    activation: Activation = "none"
    """After each of these linear layers (VL-BERT, VLP: relu; B2T2: tanh)."""
    chances: bool = False
    """Show the detector's class probabilities and the highest of them beside the box, each of both
    normed without parameters (VLP); a hidden region shows none."""
    unit_length: bool = False
    """Bring features and boxes to length one before their layers, zeros left as they are (M3P);
    targets stay."""
    gain: float = 1.0
    """Start of the gain of the feature's norm (VL-BERT: 0, so that training starts from BERT)."""
    mask: Literal["learned", "zero"] = "learned"
    """The feature of a hidden region: a learned vector, zeros at the start (UNITER, VL-BERT), or
    zeros (ViLBERT, LXMERT, Unicoder-VL)."""
    word: bool = False
    """Add a learned vector that says "region", another where it is hidden (VL-BERT's ``[IMG]``)."""
    segments: int = 0
    """Rows of a table of segments of its own; 0 for none."""
    segment: int = 0
    """Row that regions take in the table of segments."""
    positions: int = 0
    """Rows of a table of positions of its own, of which all regions take the first (VisualBERT,
    ImageBERT); 0 for none."""
    lent: Mapping[Part, str] = dataclasses.field(default_factory=dict)
    """Parts that are another stream's, by part: ``{norm: text}`` for one last norm for words and
    regions, ``segment`` for a row of its table, ``position`` for its table's row after its last
    unit (VL-BERT), ``token`` for its table of word pieces, with which ``names`` are decoded."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        joined = self.join == "sum" and self.box != 0
        if self.norm == "mean_of_norms" and not joined:
            raise ValueError("norm mean_of_norms needs a box, and join: sum")
        if self.chances and not (self.classes and joined):
            raise ValueError("chances needs classes, a box, and join: sum")
        if "norm" in self.lent and self.norm not in ("norm_of_norms", "norm_of_sum"):
            raise ValueError(f"lent: norm {self.norm} has no last norm that could be lent")
        for part, rows in (("segment", self.segments), ("position", self.positions)):
            if part in self.lent and rows:
                raise ValueError(f"{part}s is {rows}, but lent says that the table is another's")
        if self.segments and not 0 <= self.segment < self.segments:
            raise ValueError(f"segment {self.segment} is no row of a table of {self.segments}")
        if self.features < 1 or self.limit < 1:
            raise ValueError(f"features {self.features} and limit {self.limit} must be at least 1")
        if self.names and not self.classes:
            raise ValueError("names needs classes, which it names")
        if self.classes < 0 or self.classes == 1:
            raise ValueError(
                f"classes is {self.classes}; write 0 for none, else count background: 2 or more"
            )
        if not self.overlap > 0:
            raise ValueError(f"overlap is {self.overlap}; it is a share, in 0..1 and above 0")

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the regions; nothing is random but the pieces of ``names`` asked for.

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
        if self.names:
            number = targets["class"] + (0 if self.background else 1)
            targets["token"] = self.names.ask(number, sample, rng)
        if self.attributes:
            targets |= self._attributes(arrays, len(arrays["features"]))
        group = overlap_groups(corners, self.overlap)
        maskable = np.ones(len(feature), bool)
        if self.overall:
            # what the embedder shows is its own mean; this one is never read, nor predicted
            feature = _prepend(feature.mean(0), feature)
            corners = _prepend(np.array([0, 0, 1, 1], np.float32), corners)
            group, maskable = _prepend(0, group + 1), _prepend(False, maskable)
            first: dict[str, Any] = {k: v.mean(0) for k, v in targets.items() if v.ndim == 2}
            first |= {k: 0 for k, v in targets.items() if v.ndim == 1 and v.dtype.kind == "f"}
            targets = {k: _prepend(first.get(k, -1), v) for k, v in targets.items()}
        content = {"feature": feature, "box": _encode(corners, self.box)}
        if self.chances:
            content["classes"] = targets["classes"].copy()
        return make_units(
            content,
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
        without = 0 if self.background else 1
        stored = self.classes + without
        if "labels" in arrays:
            label = self._array(arrays, "labels", (count,))[: self.limit].astype(np.int64)
            if label.min() < 0 or label.max() >= stored:
                raise BadSample(
                    "wrong shape",
                    f"{self.field}: labels are {label.min()}..{label.max()}; "
                    f"expected 0..{stored - 1} ({stored} classes)",
                )
        if label is None or "probabilities" in arrays:
            chance = self._array(arrays, "probabilities", (count, stored))[: self.limit]
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
            chance = np.eye(stored, dtype=np.float32)[label]
        label, chance = label - without, chance[:, without:]
        sure = np.where(label >= 0, chance[np.arange(len(label)), label], 0)
        if without:  # of the objects alone; of none where all is background
            total = chance.sum(1, keepdims=True)
            even = np.full_like(chance, 1 / self.classes)
            chance = np.where(total > 0, chance / np.maximum(total, 1e-30), even)
        sure = self._confidence(arrays, "confidence", count, sure.astype(np.float32))
        return {"class": label, "classes": chance, "class.trust": sure}

    def _attributes(self, arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
        label = self._array(arrays, "attributes", (count,))[: self.limit].astype(np.int64)
        if label.max() >= self.attributes:
            raise BadSample(
                "wrong shape",
                f"{self.field}: attributes are {label.min()}..{label.max()}; "
                f"expected less than {self.attributes}",
            )
        sure = np.ones(len(label), np.float32)
        sure = self._confidence(arrays, "attribute_confidence", count, sure)
        return {"attribute": label, "attribute.trust": sure}

    def _confidence(
        self, arrays: Mapping[str, Array], name: str, count: int, otherwise: Array
    ) -> Array:
        if name not in arrays:
            return otherwise
        value = self._array(arrays, name, (count,))[: self.limit].astype(np.float32)
        if not (value.min() >= 0 and value.max() <= 1):  # NaN fails too
            raise BadSample(
                "NaN features",
                f"{self.field}: {name} is {value.min():.3g}..{value.max():.3g}; expected 0..1",
            )
        return value

    def blank(self) -> Units:
        """One region of zeros."""
        targets: dict[str, Array] = {"feature": np.zeros((1, self.features), np.float32)}
        if self.classes:
            targets["class"] = np.zeros(1, np.int64)
            targets["class.trust"] = np.zeros(1, np.float32)
            targets["classes"] = np.full((1, self.classes), 1 / self.classes, np.float32)
        if self.names:
            targets["token"] = np.full(1, -1, np.int64)
        if self.attributes:
            targets["attribute"] = np.zeros(1, np.int64)
            targets["attribute.trust"] = np.zeros(1, np.float32)
        content = {
            "feature": np.zeros((1, self.features), np.float32),
            "box": _encode(np.zeros((1, 4), np.float32), self.box),
        }
        if self.chances:
            content["classes"] = targets["classes"].copy()
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
        if self.names:
            offer["token"] = Target(dim=self.names.pieces, form="index")
        if self.attributes:
            offer["attribute"] = Target(dim=self.attributes, form="index", trusted=True)
        return offer

    def embedder(self, width: int) -> RegionEmbedder:
        """Linear layers for feature and box, joined and normed as the fields say."""
        return RegionEmbedder(self, width)


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


def _encode(corners: Array, form: int | str) -> Array:
    """Boxes as numbers, float32 ``[R, 0..7]``; for waves, centre, width and height in per cent."""
    size = corners[:, 2:] - corners[:, :2]
    area = size[:, :1] * size[:, 1:]
    parts = {
        0: [corners[:, :0]],
        4: [corners],
        5: [corners, area],
        6: [corners, size],
        7: [corners, size, area],
        "waves": [50 * (corners[:, :2] + corners[:, 2:]), 100 * size],
    }[form]
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


def waves(box: Tensor) -> Tensor:
    """Sines, then cosines, of each number at 256 wavelengths: ``[N, 4]`` to ``[N, 4 · 512]``.

    VL-BERT, section 3.2, after Relation Networks: number / 1000^(i/256) for i in 0..255.
    """
    scale = _WAVE_BASE ** (torch.arange(_WAVES, device=box.device, dtype=box.dtype) / _WAVES)
    phase = box[:, :, None] / scale
    return torch.cat([phase.sin(), phase.cos()], dim=2).flatten(1)


class RegionEmbedder(Embedder):
    """Feature and box to a vector; a hidden region shows a mask's feature in its own box.

    UNITER, ``model/model.py``: zero plus a learned vector, before the linear layer.
    """

    def __init__(self, spec: Regions, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.looks_at = (spec.lent["position"],) if "position" in spec.lent else ()
        numbers = {0: 0, "waves": 8 * _WAVES}.get(spec.box, spec.box)
        assert isinstance(numbers, int)
        activation = _ACTIVATIONS[spec.activation]
        beside = numbers if spec.join == "concat" else 0
        inputs = (spec.hidden or spec.features) + beside
        self.first = (
            nn.Sequential(nn.Linear(spec.features, spec.hidden), activation())
            if spec.hidden
            else nn.Identity()
        )
        self.feature = nn.Linear(inputs, width)
        self.activation = activation()
        # with join: concat the box has no layer of its own
        alone = spec.join == "sum" and numbers > 0
        chances = spec.classes + 1 if spec.chances else 0
        self.box = nn.Linear(numbers + chances, width) if alone else None
        learned = spec.mask == "learned"
        self.mask = nn.Parameter(torch.zeros(spec.features)) if learned else None
        each = spec.norm in ("norm_of_norms", "mean_of_norms")
        self.feature_norm = nn.LayerNorm(width) if each else nn.Identity()
        if isinstance(self.feature_norm, nn.LayerNorm):
            nn.init.constant_(self.feature_norm.weight, spec.gain)
        self.box_norm = nn.LayerNorm(width) if each and alone else nn.Identity()
        last = spec.norm in ("norm_of_norms", "norm_of_sum") and "norm" not in spec.lent
        self.norm = nn.LayerNorm(width) if last else nn.Identity()
        self.word = nn.Embedding(2, width) if spec.word else None
        self.segment = nn.Embedding(spec.segments, width) if spec.segments else None
        self.position = nn.Embedding(spec.positions, width) if spec.positions else None
        self.dropout = nn.Dropout(spec.dropout)
        frame = _encode(np.array([[0, 0, 1, 1]], np.float32), spec.box)
        self.frame: Tensor
        self.register_buffer("frame", torch.from_numpy(frame), persistent=False)
        self._lent: dict[str, nn.Module] = {}

    def borrow(self, embedders: Mapping[str, Embedder]) -> None:
        """Use parts of other streams' embedders, as ``Regions.lent`` says.

        Raises:
            ValueError: there is no such stream or part, or it has too few rows.
        """
        for part, stream in self.spec.lent.items():
            module = getattr(embedders.get(stream), part, None)
            if not isinstance(module, nn.Module):
                raise ValueError(f"lent.{part}: stream {stream!r} has no {part} to lend")
            rows = module.num_embeddings if isinstance(module, nn.Embedding) else 0
            if part == "segment" and self.spec.segment >= rows:
                raise ValueError(f"segment {self.spec.segment}: {stream!r} has no such row")
            if part == "position" and getattr(embedders[stream], "spare", 0) < 1:
                raise ValueError(
                    f"lent.position: {stream!r} has no row after its longest text; "
                    "let its positions exceed its limit"
                )
            # a mapping, so that the part stays registered with its owner alone
            self._lent[part] = module

    def _part(self, name: Part) -> nn.Module | None:
        if name not in self.spec.lent:
            return getattr(self, name)
        if name not in self._lent:
            raise ValueError(f"lent.{name}: embedders lend in a model; none has lent here yet")
        return self._lent[name]

    def forward(self, stream: Stream, others: Mapping[str, Stream] | None = None) -> Tensor:
        """``[N, width]``; ``others``: the streams that are looked at."""
        total = self.joined(stream)
        if self.word is not None:
            total = total + self.word(stream.hidden.long())
        if (segment := self._part("segment")) is not None:
            total = total + segment(torch.full_like(stream.position, self.spec.segment))
        if (position := self._part("position")) is not None:
            total = total + position(self._places(stream, others or {}))
        norm = self._part("norm")
        assert norm is not None
        return self.dropout(norm(total))

    def joined(self, stream: Stream) -> Tensor:
        """Feature and box joined, before what all regions share: ``[N, width]``."""
        feature, box = self._projected(self.visible(stream), stream.content["box"], stream)
        total = self.feature_norm(feature)
        if box is not None:
            total = total + self.box_norm(box)
        return total / 2 if self.spec.norm == "mean_of_norms" else total

    def projected(self, stream: Stream) -> Tensor:
        """What words that refer to a region are shown of it, ``[N, width]``: no norm yet."""
        feature, box = self._projected(self.visible(stream), stream.content["box"], stream)
        return feature if box is None else feature + box

    def whole(self, stream: Stream) -> Tensor:
        """What words are shown of the whole image, ``[E, width]``: no norm yet.

        The mean of the visible regions, in the box of the image.
        """
        mean = self.mean(stream)
        feature, box = self._projected(mean, self.frame.expand(len(mean), -1), None)
        return feature if box is None else feature + box

    def _projected(
        self, feature: Tensor, box: Tensor, stream: Stream | None
    ) -> tuple[Tensor, Tensor | None]:
        dtype = self.feature.weight.dtype
        feature, box = feature.to(dtype), box.to(dtype)
        if self.spec.unit_length:
            feature, box = F.normalize(feature, dim=1), F.normalize(box, dim=1)
        feature = self.first(feature)
        if self.spec.box == "waves":
            box = waves(box)
        if self.spec.join == "concat":
            feature = torch.cat([box, feature], dim=1)
        feature = self.activation(self.feature(feature))
        if self.box is None:
            return feature, None
        if self.spec.chances:
            shown = box.new_zeros(len(box), self.spec.classes)
            if stream is not None:
                shown = torch.where(stream.hidden[:, None], shown, stream.content["classes"])
            box = torch.cat([box, shown.amax(1, keepdim=True)], dim=1)
            box = torch.cat([F.layer_norm(x, x.shape[1:]) for x in (box, shown)], dim=1)
        return feature, self.activation(self.box(box))

    def visible(self, stream: Stream) -> Tensor:
        """The features shown, ``[N, F]``: the mask's where hidden, first the mean of the rest."""
        feature = stream.content["feature"]
        seen = torch.where(stream.hidden[:, None], self._masked(feature), feature)
        if self.spec.overall:
            mean = self.mean(stream).index_select(0, stream.example)
            seen = torch.where((stream.position == 0)[:, None], mean, seen)
        return seen

    def _masked(self, like: Tensor) -> Tensor:
        if self.mask is None:
            return like.new_zeros(self.spec.features)
        return self.mask.to(like.dtype)

    def mean(self, stream: Stream) -> Tensor:
        """The mean feature ``[E, F]`` of each example's visible regions; the mask if all are hid.

        The mean takes no hidden region, whose feature it would tell (VL-BERT takes them out too;
        ViLBERT and VOLTA do so in part).
        """
        feature = stream.content["feature"]
        visible = ~stream.hidden
        if self.spec.overall:
            visible = visible & (stream.position > 0)
        # where, not a product: a hidden NaN must not reach the sum
        shown = torch.where(visible[:, None], feature, torch.zeros_like(feature))
        examples = len(stream.length)
        total = feature.new_zeros(examples, feature.shape[1]).index_add(0, stream.example, shown)
        count = feature.new_zeros(examples).index_add(0, stream.example, visible.to(feature.dtype))
        mean = total / count.clamp(min=1)[:, None]
        return torch.where((count > 0)[:, None], mean, self._masked(feature))

    def _places(self, stream: Stream, others: Mapping[str, Stream]) -> Tensor:
        """Row of each region in the table of positions, ``[N]``."""
        owner = others.get(self.spec.lent.get("position", ""))
        if owner is None:
            return torch.zeros_like(stream.position)
        return owner.length.index_select(0, stream.example)

    def tied(self, target: str) -> Tensor | None:
        """The feature layer's weight, transposed, for the target ``feature`` (UNITER).

        For ``token``, the table of word pieces that a text lends.
        """
        if target == "token" and "token" in self._lent:
            return self._lent["token"].weight  # type: ignore[return-value]
        plain = self.spec.join == "sum" and not self.spec.hidden
        return self.feature.weight.T if target == "feature" and plain else None
