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
VL-BERT        LN(LN(relu(feature and waves of the box)) + word + the text's rows), the text's LN;
               an end after the last
Oscar          one layer for feature and box 6, no LN
VLP            LN(relu(relu(feature)) + relu(box 5, confidence, classes) + segment), the text's LN
Unicoder-VL    LN(feature + box 5 + word + segment), the text's LN
ImageBERT      LN(feature + box 5 + segment + one position row), the text's LN
M3P            LN(feature + box 5), both of length one before their layers
=============  =========================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from crossloom.modalities.arrays import read_arrays
from crossloom.modalities.boxes import encoded, overlap_groups, shares
from crossloom.modalities.modality import Modality, Target
from crossloom.modalities.names import Names
from crossloom.modalities.region_embedding import RegionEmbedder
from crossloom.units import Array, BadSample, Sample, Units, make_units

Norm = Literal["norm_of_norms", "mean_of_norms", "norm_of_sum", "none"]
Activation = Literal["none", "relu", "tanh"]
Part = Literal["norm", "segment", "position", "token"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regions(Modality):
    """Detector features with boxes.

    Content: ``feature`` (float32 ``[N, F]``), ``box`` (float32 ``[N, box]``, as the embedder reads
    it), ``corners`` (float32 ``[N, 4]``, x1, y1, x2, y2 in 0..1: where it is, for whoever asks).
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
    sines and cosines of centre, width and height in per cent (``waves``, VL-BERT, section 3.2); 0
    for no box (VisualBERT)."""
    waves: int = 256
    """Wavelengths of each of these sines and cosines: a box is eight times as many numbers. With
    far more of them than features, boxes drown what is in them."""
    limit: int = 36
    """Most regions used, the first ones."""
    overlap: float = 0.5
    """Regions whose boxes overlap at least so much (intersection over union), directly or through
    others, form a group: hidden by group, none can be read off its neighbour."""
    overall: bool = False
    """Put a unit for the whole image first (ViLBERT's global feature): never hidden, its box is the
    image, its feature the mean of the regions that are *not* hidden, which the embedder takes. A
    mean taken before hiding would tell what is hidden (as it does in VOLTA)."""
    end: bool = False
    """Put a unit after the last region that says no more than that: never hidden, a learned vector
    in place of a feature, and the row of positions after the regions' (VL-BERT's ``[END]``)."""
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
        if self.end and self.positions == 1:
            raise ValueError("end takes the second row of positions: set positions to 2 or more")
        if self.segments and not 0 <= self.segment < self.segments:
            raise ValueError(f"segment {self.segment} is no row of a table of {self.segments}")
        if self.features < 1 or self.limit < 1:
            raise ValueError(f"features {self.features} and limit {self.limit} must be at least 1")
        if self.waves < 1:
            raise ValueError(f"waves {self.waves} must be at least 1")
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
        corners = shares(box, size, self.field)
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
        content = {
            "feature": feature,
            "box": encoded(corners, self.box),
            "corners": corners.astype(np.float32),
        }
        if self.chances:
            content["classes"] = targets["classes"].copy()
        if self.end:
            content = {k: _append(v, 0) for k, v in content.items()}
            nothing = {"class": -1, "attribute": -1, "classes": 1 / max(1, self.classes)}
            targets = {k: _append(v, nothing.get(k, 0)) for k, v in targets.items()}
            group, maskable = _append(group, group.max() + 1), _append(maskable, False)
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
            "box": encoded(np.zeros((1, 4), np.float32), self.box),
            "corners": np.zeros((1, 4), np.float32),
        }
        if self.chances:
            content["classes"] = targets["classes"].copy()
        return make_units(content, targets=targets)

    def longest(self) -> int:
        """The limit, the whole image, and the end."""
        return self.limit + int(self.overall) + int(self.end)

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

    def asked(self, targets: frozenset[str]) -> Regions:
        """Without classes, names and attributes, unless they are asked for or shown."""
        classes = self.chances or targets & {"class", "classes", "token"}
        return dataclasses.replace(
            self,
            classes=self.classes if classes else 0,
            names=self.names if "token" in targets else None,
            attributes=self.attributes if "attribute" in targets else 0,
        )

    def embedder(self, width: int) -> RegionEmbedder:
        """Linear layers for feature and box, joined and normed as the fields say."""
        return RegionEmbedder(self, width)


def _prepend(first: Any, rest: Array) -> Array:
    """``rest`` with one row before it."""
    return np.concatenate([np.asarray(first, rest.dtype)[None], rest])


def _append(rest: Array, last: Any) -> Array:
    """``rest`` with one row of a number after it."""
    return np.concatenate([rest, np.full_like(rest[:1], last)])
