"""Do the streams belong together? ITM and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.contrast import Contrast, ContrastHead
from crossloom.objectives.hard import draw_some
from crossloom.objectives.objective import Aim, Head, Objective, example_aim, lend, mark, need
from crossloom.objectives.pool import Pooler
from crossloom.objectives.pooled import Pooled
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Match(Pooled):
    """Tell matching from mismatched examples: two classes, 1 = match (UNITER's convention).

    The view mismatches one of its streams (ITM), or the reader the second passage of a text
    (BERT's next-sentence prediction, Unicoder's paraphrase classification), or a contrastive head
    chooses mismatches that are hard (``mined``; ALBEF, Li et al. 2021, section 3.2).
    """

    kind: ClassVar[str] = "match"
    passages: bool = False
    """The reader mismatches passages (its ``mismatch``), not the view a stream."""
    which: bool = False
    """Tell also which of the streams of ``view.mismatch`` is another example's. Class 0 is then a
    match, class i the i-th of these streams (Oscar+: tags, text)."""
    mined: str = ""
    """A contrastive objective on the same two streams. Each example is scored as it is, with a hard
    second stream and with a hard first one: drawn from this process's batch, with the softmax of
    that objective's scores for chances, from other samples. The drawing follows from seed, step and
    process, as dropout does, and differs with the number of processes; on data held back the
    hardest are taken."""

    def aim(self, shown: Shown) -> Aim:
        """One slot: 1 when matched, or as ``which`` says; the sample's hash with ``mined``.

        Raises:
            ValueError: passages should be mismatched, and the reader does not.
        """
        if self.passages and "matched" not in shown.labels:
            raise ValueError(
                f"view {self.view.name!r}: its match objective needs a reader that mismatches "
                "passages; set the component's reader to `parallel` with mismatch=0.5"
            )
        if self.mined:
            return example_aim(mark(shown.key))
        if self.which:
            number = 1 + self.view.mismatched.index(shown.taken) if shown.taken else 0
            return example_aim(np.array(number, np.int64))
        return example_aim(np.array(int(shown.matched), np.int64))

    @property
    def beside(self) -> tuple[str, ...]:
        """The objective that mines."""
        return (self.mined,) if self.mined else ()

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Class 0."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Pooler and logits."""
        pooler = self.pooler(widths)
        if self.mined:
            return MinedHead(pooler, self.mined)
        return MatchHead(pooler, len(self.view.mismatched) if self.which else 0)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The view (or the reader) must mismatch."""
        super().check(modalities)
        ways = bool(self.view.mismatched) + self.passages + bool(self.mined)
        if ways != 1 or (self.which and not self.view.mismatched):
            raise ValueError(
                f"view {self.view.name!r}: set view.mismatch, or passages where a reader "
                "mismatches, or mined; one of them, and `which` with the first only"
            )

    def check_others(self, others: Mapping[str, Objective]) -> None:
        """The objective that mines must contrast the view's two streams, matched."""
        super().check_others(others)
        if not self.mined:
            return
        miner = need(self.mined, others)
        fits = isinstance(miner, Contrast) and not miner.view.mismatched
        if not fits or sorted(miner.pair) != sorted(self.view.streams):  # type: ignore[attr-defined]
            raise ValueError(
                f"mined: {self.mined!r} must be a contrast of {' and '.join(self.view.streams)}, "
                "the two streams of this view, without mismatch"
            )


class MatchHead(Head):
    """Logits from pooled streams: no match, match; or match, and each of ``kinds`` mismatches."""

    def __init__(self, pooler: Pooler, kinds: int = 0) -> None:
        super().__init__()
        self.pooler = pooler
        self.match = 0 if kinds else 1  #: the class of a match
        self.score = nn.Linear(pooler.width, 1 + kinds if kinds else 2)

    def logits(self, encoded: Encoded) -> Tensor:
        """``[E, classes]`` float32."""
        out: Tensor = self.score(self.pooler(encoded)).float()
        return out

    def borrow(self, other: Head) -> None:
        """Use another head's pooler."""
        lend(self, other, "pooler")

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Cross entropy and ``correct``."""
        logits = self.logits(encoded).index_select(0, aim.index)
        loss = (F.cross_entropy(logits, aim.value, reduction="none") * aim.weight).sum()
        correct = ((logits.detach().argmax(1) == aim.value) * aim.weight).sum()
        return {"loss": loss, "correct": correct}

    def predict(self, encoded: Encoded) -> Tensor:
        """Log-odds of a match, ``[E]``."""
        logits = self.logits(encoded)
        other = [c for c in range(logits.shape[1]) if c != self.match]
        return logits[:, self.match] - logits[:, other].logsumexp(1)


class MinedHead(MatchHead):
    """Scores each example beside two hard mismatches, in another pass over all of them."""

    def __init__(self, pooler: Pooler, miner: str) -> None:
        super().__init__(pooler)
        self.miner = miner

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Mean cross entropy of the three pairs of each slot, and ``correct``."""
        miner, other, _ = encoded.beside(self.miner)
        assert isinstance(miner, ContrastHead)
        first, second = miner.pair
        with torch.no_grad():
            sample, weight = (
                x.new_zeros(encoded.view.examples).index_copy(0, aim.index, x)
                for x in (aim.value, aim.weight)
            )
            barred = (sample[:, None] == sample) | (weight == 0)
            scores = miner.scores(other)
            seconds, firsts = (draw_hard(s, barred, self.training) for s in (scores, scores.T))
        own = torch.arange(len(sample), device=sample.device)
        mixed = self.logits(
            encoded.again({first: torch.cat([own, firsts]), second: torch.cat([seconds, own])})
        )
        true = torch.stack([self.logits(encoded), *mixed.chunk(2)])  # [3, E, 2]
        target = torch.zeros_like(true[..., 0], dtype=torch.int64)
        target[0] = 1
        # where the batch holds no other sample, there is no mismatch to score
        some = (~barred).any(1).to(true.dtype)
        share = torch.stack([torch.ones_like(some), some, some])
        share = share / share.sum(0) * weight
        each = F.cross_entropy(true.flatten(0, 1), target.flatten(), reduction="none")
        right = true.detach().argmax(2) == target
        return {"loss": (each.view_as(share) * share).sum(), "correct": (right * share).sum()}


def draw_hard(scores: Tensor, barred: Tensor, drawn: bool = True) -> Tensor:
    """One column for each row, ``[E]`` int64: :func:`~crossloom.objectives.hard.draw_some`."""
    return draw_some(scores, barred, 1, drawn)[:, 0]
