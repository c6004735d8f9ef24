"""Preferring what belongs together to what does not: retrieval trained by choice or by margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.match import MatchHead
from crossloom.objectives.objective import Aim, Head, example_aim
from crossloom.objectives.pool import Pooler
from crossloom.objectives.pooled import Pooled
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Rank(Pooled):
    """Score an example above its rows ``against`` others (see :class:`View`).

    ``softmax``: cross entropy of choosing the example among all rows (ViLBERT, section 3.2 "caption
    -based image retrieval": one of four). ``triplet``: the mean over the others of
    ``max(0, margin + σ(other) - σ(example))`` (UNITER, ``model/itm.py``).

    The score is the log-odds of a :class:`Match` head, and the parameters are named alike, so that
    what pre-training learned of matching is taken over, and either serves to evaluate.
    """

    kind: ClassVar[str] = "rank"
    form: Literal["softmax", "triplet"] = "softmax"
    margin: float = 0.2
    hard: int = 0
    """Train against so many of the others only, those that the model itself scores highest; the
    view's ``against`` is then the pool that they are mined from. 0 for all."""

    def aim(self, shown: Shown) -> Aim:
        """One slot, where there are others to be preferred to."""
        if not shown.rivals:
            return Aim(np.zeros(0, np.int64), np.zeros(0, np.int64))
        return example_aim(np.array(0, np.int64))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """The first row is right, as always."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Pooler and two logits, as of a match."""
        return RankHead(self.pooler(widths), self)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The view must show matching examples, and others, as many as are to be mined."""
        super().check(modalities)
        if not self.view.against:
            raise ValueError(f"view {self.view.name!r}: set view.against, the streams of others")
        if self.view.mismatched:
            raise ValueError(
                f"view {self.view.name!r}: drop mismatch; what is preferred to others must match"
            )
        if not 0 <= self.hard <= len(self.view.against):
            raise ValueError(
                f"hard is {self.hard}; view {self.view.name!r} shows each example against "
                f"{len(self.view.against)} others"
            )


class RankHead(MatchHead):
    """Log-odds of a match for each row, compared within an example."""

    def __init__(self, pooler: Pooler, spec: Rank) -> None:
        super().__init__(pooler)
        self.rows, self.form = spec.view.rows, spec.form
        self.margin, self.hard = spec.margin, spec.hard

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``: the example scores above all others."""
        scores = self.predict(encoded).unflatten(0, (-1, self.rows))
        scores = scores.index_select(0, aim.index // self.rows)
        right, wrong = scores[:, :1], scores[:, 1:]
        if self.hard:
            wrong = wrong.topk(self.hard, dim=1).values
        if self.form == "softmax":
            each = F.cross_entropy(torch.cat([right, wrong], 1), aim.value, reduction="none")
        else:
            each = F.relu(self.margin + wrong.sigmoid() - right.sigmoid()).mean(1)
        correct = ((right > wrong).all(1) * aim.weight).sum().detach()
        return {"loss": (each * aim.weight).sum(), "correct": correct}
