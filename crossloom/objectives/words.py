"""A sentence among words: its own words are told from others that lie near it.

HICTL's word-level contrast (Wei et al., ICLR 2021, arXiv 2007.15960). No code was released, and
what was to hand of the paper is its beginning: it distinguishes the words that are semantically
related to a sentence from a cross-lingual vocabulary. The rest is read as follows. The sentence is
the vector of a pair of translations in one row. Positives are the words of both, as a bag, by their
embeddings; each is told from the same negatives, which are drawn from the vocabulary with the
softmax of their scores for chances. Scores are cosines over a temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality, Target
from crossloom.objectives.hard import draw_some
from crossloom.objectives.objective import Aim, Head, Objective
from crossloom.objectives.pool import Pool, Summary
from crossloom.objectives.reconstruct import LOGITS_AT_ONCE, blank_target, check_target
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Words(Objective):
    """Contrast the summary of a stream with the embeddings of its units' classes.

    A slot for each class that is in an example, hidden or not, once. The mean is over slots, not
    first over those of an example.
    """

    kind: ClassVar[str] = "words"
    stream: str = "text"
    target: str = "token"
    negatives: int = 512
    """Classes drawn for each example, each once and none of its own. Drawing follows from seed,
    step and process, as dropout does; on data held back the nearest are taken."""
    temperature: float = 0.1
    pool: Pool = "first"

    def __post_init__(self) -> None:
        if self.negatives < 1 or not self.temperature > 0:
            raise ValueError(
                f"negatives {self.negatives} must be at least 1, temperature "
                f"{self.temperature} above 0"
            )

    def aim(self, shown: Shown) -> Aim:
        """The classes of the maskable units, clean."""
        units = shown.units[self.stream]
        found = np.unique(units.targets[self.target][units.maskable])
        found = found[found >= 0]
        return Aim(np.zeros(len(found), np.int64), found)

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Class 0."""
        return blank_target(modalities[self.stream].predictable()[self.target])

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """No parameters, as long as the summary has none."""
        return WordsHead(
            self, widths[self.stream], modalities[self.stream].predictable()[self.target]
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, and its units have classes."""
        super().check(modalities)
        if self.stream not in self.view.streams:
            raise ValueError(f"view {self.view.name!r} does not show {self.stream!r}")
        check_target(modalities[self.stream], self.stream, self.target, "cross_entropy")


class WordsHead(Head):
    """Cosines of a summary with rows of the embedder's table."""

    def __init__(self, spec: Words, width: int, target: Target) -> None:
        super().__init__()
        self.stream, self.target = spec.stream, spec.target
        self.negatives = min(spec.negatives, target.dim)
        self.temperature = spec.temperature
        self.summary = Summary(spec.stream, width, spec.pool)
        self.barred: Tensor
        barred = torch.tensor(target.barred, dtype=torch.int64)
        self.register_buffer("barred", barred, persistent=False)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss of each word against its example's negatives, and ``correct`` above all of them."""
        table = encoded.embedders[self.stream].tied(self.target)  # type: ignore[operator]
        if table is None:
            raise ValueError(f"stream {self.stream!r} has no table of {self.target!r} embeddings")
        if table.shape[1] != encoded.states[self.stream].shape[1]:
            raise ValueError(f"the table of {self.stream!r} has another width (inner) than it")
        asker = F.normalize(self.summary(encoded).float(), dim=1) / self.temperature
        drawn, none = self._draw(asker.detach(), table.detach(), aim)
        # products and sums, not matrix products, which autocast would make in half precision
        other = F.normalize(F.embedding(drawn, table).float(), dim=2)
        others = (other * asker[:, None]).sum(2).masked_fill(none, -torch.inf)
        word = F.normalize(F.embedding(aim.value, table).float(), dim=1)
        own = (word * asker.index_select(0, aim.index)).sum(1)
        against = others.logsumexp(1).index_select(0, aim.index)
        most = others.detach().amax(1).index_select(0, aim.index)
        loss = (F.softplus(against - own) * aim.weight).sum()
        return {"loss": loss, "correct": ((own.detach() > most) * aim.weight).sum()}

    @torch.no_grad()
    def _draw(self, asker: Tensor, table: Tensor, aim: AimBatch) -> tuple[Tensor, Tensor]:
        """Negatives ``[E, n]`` int64, and where there is none for want of classes, bool.

        Some examples' scores of the whole vocabulary exist at a time.
        """
        rows = torch.arange(len(asker), device=asker.device)
        unit = F.normalize(table.float(), dim=1)
        drawn, none = [], []
        for some in rows.split(max(1, LOGITS_AT_ONCE // len(table))):
            scores = (asker.index_select(0, some) @ unit.T).float()
            barred = torch.zeros_like(scores, dtype=torch.bool).index_fill_(1, self.barred, True)
            # classes of other examples' rows fall on a row that is thrown away
            place = aim.index - some[0]
            place = torch.where((place >= 0) & (place < len(some)), place, len(some))
            own = torch.zeros(len(some) + 1, len(table), dtype=torch.bool, device=some.device)
            own = own.index_put((place, aim.value), torch.ones_like(place, dtype=torch.bool))
            barred |= own[:-1]
            found = draw_some(scores, barred, self.negatives, self.training)
            drawn.append(found)
            none.append(barred.gather(1, found))
        return torch.cat(drawn), torch.cat(none)
