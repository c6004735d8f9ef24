"""Do the streams belong together? ITM and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, example_aim, lend
from crossloom.objectives.pool import Pool, Pooler
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Match(Objective):
    """Tell matching from mismatched examples: two classes, 1 = match (UNITER's convention).

    Either the view mismatches one of its streams (ITM), or the reader the second passage of a text
    (BERT's next-sentence prediction, Unicoder's paraphrase classification).
    """

    kind: ClassVar[str] = "match"
    pooled: tuple[str, ...] = ("text",)
    """Streams whose summaries are read; the product of two for dual-stream models."""
    pool: Pool = "first"
    combine: Literal["product", "sum"] = "product"
    passages: bool = False
    """The reader mismatches passages (its ``mismatch``), not the view a stream."""

    def aim(self, shown: Shown) -> Aim:
        """One slot: 1 when matched.

        Raises:
            ValueError: passages should be mismatched, and the reader does not.
        """
        if self.passages and "matched" not in shown.labels:
            raise ValueError(
                f"view {self.view.name!r}: its match objective needs a reader that mismatches "
                "passages; set the component's reader to `parallel` with mismatch=0.5"
            )
        return example_aim(np.array(int(shown.matched), np.int64))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Class 0."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Pooler and two logits."""
        return MatchHead(Pooler(self.pooled, dict(widths), self.pool, self.combine))

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The view (or the reader) must mismatch, and the pooled streams be shown."""
        super().check(modalities)
        if bool(self.view.mismatch) == self.passages:
            raise ValueError(
                f"view {self.view.name!r}: set view.mismatch, or passages where a reader mismatches"
            )
        if strange := [s for s in self.pooled if s not in self.view.streams]:
            raise ValueError(f"view {self.view.name!r} does not show {', '.join(strange)}")


class MatchHead(Head):
    """Two logits from pooled streams."""

    def __init__(self, pooler: Pooler) -> None:
        super().__init__()
        self.pooler = pooler
        self.score = nn.Linear(pooler.width, 2)

    def borrow(self, other: Head) -> None:
        """Use another head's pooler."""
        lend(self, other, "pooler")

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Cross entropy and ``correct``."""
        logits = self.score(self.pooler(encoded)).float().index_select(0, aim.index)
        loss = (F.cross_entropy(logits, aim.value, reduction="none") * aim.weight).sum()
        correct = ((logits.detach().argmax(1) == aim.value) * aim.weight).sum()
        return {"loss": loss, "correct": correct}

    def predict(self, encoded: Encoded) -> Tensor:
        """Log-odds of a match, ``[E]``."""
        logits = self.score(self.pooler(encoded)).float()
        return logits[:, 1] - logits[:, 0]
