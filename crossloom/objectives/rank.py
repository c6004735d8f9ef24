"""Preferring what is right to what is not: a pair to mismatched ones, an answer to the others."""

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
    """Score one row of an example above its others (see :class:`View`).

    That is the first where they are shown ``against`` other examples. Where other streams of the
    example itself take a place (``twice``: answers to choose from), ``label`` tells which is right.

    ``softmax``: cross entropy of choosing the right row among all (ViLBERT, section 3.2 "caption
    -based image retrieval", "visual commonsense reasoning": one of four). ``triplet``: the mean
    over the others of ``max(0, margin + σ(other) - σ(right))`` (UNITER, ``model/itm.py``).
    ``sigmoid``: the mean over all rows of the binary cross entropy of each by itself (B2T2).

    The score is the log-odds of a :class:`Match` head, and the parameters are named alike, so that
    what pre-training learned of matching is taken over, and either serves to evaluate.
    """

    kind: ClassVar[str] = "rank"
    form: Literal["softmax", "triplet", "sigmoid"] = "softmax"
    label: str = ""
    """The reader's label that numbers the right row of a view that shows some ``twice``; an example
    whose label is None is not trained on."""
    margin: float = 0.2
    hard: int = 0
    """Train against so many of the others only, those that the model itself scores highest; the
    view's other rows are then the pool that they are mined from. 0 for all."""

    def aim(self, shown: Shown) -> Aim:
        """The right row, where there are others that it is to be preferred to.

        Raises:
            ValueError: the label numbers no row.
        """
        right = shown.label(self.label) if self.label else 0 if shown.rivals else None
        if right is None:
            return Aim(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if right not in range(self.view.rows):
            raise ValueError(
                f"{shown.key}: label {self.label!r} is {right!r}, of {self.view.rows} rows"
            )
        return example_aim(np.array(right, np.int64))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """The first row is right."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Pooler and two logits, as of a match."""
        return RankHead(self.pooler(widths), self)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The view must show matching examples, and others, as many as are to be mined."""
        super().check(modalities)
        if self.view.rows == 1:
            raise ValueError(
                f"view {self.view.name!r}: set view.against, the streams of others, or view.twice, "
                "the streams to choose from"
            )
        if bool(self.view.twice) != bool(self.label):
            raise ValueError(
                f"view {self.view.name!r}: label numbers the right one of rows that show some "
                "streams twice; set both or neither"
            )
        if self.view.mismatched:
            raise ValueError(
                f"view {self.view.name!r}: drop mismatch; what is preferred to others must match"
            )
        if not 0 <= self.hard < self.view.rows:
            raise ValueError(
                f"hard is {self.hard}; view {self.view.name!r} shows each example against "
                f"{self.view.rows - 1} others"
            )


class RankHead(MatchHead):
    """Log-odds of a match for each row, compared within an example."""

    def __init__(self, pooler: Pooler, spec: Rank) -> None:
        super().__init__(pooler)
        self.rows, self.form = spec.view.rows, spec.form
        self.choices = bool(spec.view.twice)
        self.margin, self.hard = spec.margin, spec.hard

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``: the right row scores above all others."""
        scores = super().predict(encoded).unflatten(0, (-1, self.rows))
        scores = scores.index_select(0, aim.index // self.rows)
        place = aim.value[:, None]
        others = torch.arange(self.rows - 1, device=scores.device)
        right, wrong = scores.gather(1, place), scores.gather(1, others + (others >= place))
        if self.hard:
            wrong = wrong.topk(self.hard, dim=1).values
        every = torch.cat([right, wrong], 1)
        if self.form == "softmax":
            each = F.cross_entropy(every, torch.zeros_like(aim.value), reduction="none")
        elif self.form == "sigmoid":
            truth = torch.zeros_like(every)
            truth[:, 0] = 1
            each = F.binary_cross_entropy_with_logits(every, truth, reduction="none").mean(1)
        else:
            each = F.relu(self.margin + wrong.sigmoid() - right.sigmoid()).mean(1)
        correct = ((right > wrong).all(1) * aim.weight).sum().detach()
        return {"loss": (each * aim.weight).sum(), "correct": correct}

    def predict(self, encoded: Encoded) -> Tensor:
        """Log-odds of a match ``[E]``, or of each of the rows to choose from, ``[E, rows]``."""
        scores = super().predict(encoded)
        return scores.unflatten(0, (-1, self.rows)) if self.choices else scores
