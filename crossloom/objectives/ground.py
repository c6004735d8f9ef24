"""Which unit of a picture a text refers to: phrase grounding by scoring regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, by_example, example_aim
from crossloom.objectives.view import Shown
from crossloom.units import Array


def overlaps(boxes: Array, box: Array) -> Array:
    """Intersection over union of each box ``[R, 4]`` with one ``[4]``: corners, any one unit."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / np.maximum(area - shared, 1e-12)


@dataclass(frozen=True, kw_only=True)
class Ground(Objective):
    """Score every unit of ``stream`` by how well its box fits the one that the reader knows.

    ``sigmoid``: binary cross entropy, summed over an example's units, against the overlap where it
    is at least ``threshold``, else 0 (ViLBERT, section 3.2 "grounding referring expressions"; its
    code keeps the overlap as a soft target). ``softmax``: cross entropy of choosing the unit that
    overlaps most among the example's (UNITER, appendix A.1); examples without a unit over the
    threshold have no slot.

    Units have boxes when their content has ``corners``: x1, y1, x2, y2 in 0..1.
    """

    kind: ClassVar[str] = "ground"
    stream: str = "image"
    label: str = "box"
    """The reader's label that holds the box: corners in 0..1."""
    form: Literal["sigmoid", "softmax"] = "sigmoid"
    threshold: float = 0.5
    most: int = 101
    """Most units that an example has (ViLBERT: 100 regions and the whole image)."""

    @property
    def chosen(self) -> str:
        """The stream."""
        return self.stream

    def aim(self, shown: Shown) -> Aim:
        """One slot if the example matches: each unit's overlap, -1 where none is to be chosen."""
        if not shown.matched:  # the box is of another picture
            return Aim(np.zeros(0, np.int64), np.zeros((0, self.most), np.float32))
        units = shown.units[self.stream]
        found = overlaps(units.content["corners"], np.asarray(shown.label(self.label)))
        value = np.full(self.most, -1, np.float32)
        # a unit for the whole image is no answer
        value[: len(found)] = np.where(units.maskable, found, -1)
        if self.form == "softmax" and value.max() < self.threshold:
            return Aim(np.zeros(0, np.int64), np.zeros((0, self.most), np.float32))
        return example_aim(value)

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """One unit, which overlaps with nothing."""
        value = np.full((1, self.most), -1, np.float32)
        value[:, 0] = 0
        return value

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A linear score for each unit."""
        return GroundHead(self, widths[self.stream])

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, its units have boxes, and ``most`` suffice."""
        super().check(modalities)
        if self.stream not in self.view.streams:
            raise ValueError(f"view {self.view.name!r} does not show {self.stream!r}")
        if "corners" not in modalities[self.stream].blank().content:
            raise ValueError(
                f"stream {self.stream!r} is of kind {modalities[self.stream].kind!r}, whose units "
                "have no boxes; grounding needs regions"
            )
        if (longest := modalities[self.stream].longest()) > self.most:
            raise ValueError(f"{self.stream!r} has up to {longest} units; set most={longest}")


class GroundHead(Head):
    """A score for each unit."""

    def __init__(self, spec: Ground, width: int) -> None:
        super().__init__()
        self.stream, self.form = spec.stream, spec.form
        self.threshold, self.most = spec.threshold, spec.most
        self.score = nn.Linear(width, 1)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``: the best unit overlaps by the threshold."""
        there = aim.value >= 0
        scores = self.predict(encoded).index_select(0, aim.index).masked_fill(~there, -torch.inf)
        if self.form == "sigmoid":
            target = aim.value * (aim.value >= self.threshold)
            # where nothing is to be chosen the score must not reach the loss, not even as inf · 0
            known = scores.masked_fill(~there, 0)
            each = F.binary_cross_entropy_with_logits(known, target, reduction="none")
            each = (each * there).sum(1)
        else:
            each = F.cross_entropy(scores, aim.value.argmax(1), reduction="none")
        best = scores.detach().argmax(1, keepdim=True)
        right = aim.value.gather(1, best).squeeze(1) >= self.threshold
        return {"loss": (each * aim.weight).sum(), "correct": (right * aim.weight).sum()}

    def predict(self, encoded: Encoded) -> Tensor:
        """Scores ``[E, most]``, -inf where an example has no unit."""
        score = self.score(encoded.states[self.stream]).squeeze(1).float()
        return by_example(score, encoded.view.streams[self.stream], self.most, -torch.inf)
