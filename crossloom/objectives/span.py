"""Where in a text the answer is: its first and its last unit."""

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
from crossloom.objectives.objective import Aim, Head, Objective, by_example, example_aim
from crossloom.objectives.tag import check_characters
from crossloom.objectives.view import Shown
from crossloom.units import Array


def units_of_span(characters: Array, span: tuple[int, int], passage: int) -> tuple[int, int]:
    """First and last unit of a span of a passage; (0, 0) where it is not all there.

    Args:
        characters: ``[N, 3]``: passage, first character, one past the last (``Text.characters``).
        span: first character, one past the last.
        passage: in which it stands.
    """
    first, past = span
    own = characters[:, 0] == passage
    inside = np.flatnonzero(own & (characters[:, 1] < past) & (characters[:, 2] > first))
    if len(inside) == 0:
        return 0, 0
    begin, end = int(inside[0]), int(inside[-1])
    whole = characters[begin, 1] <= first and characters[end, 2] >= past
    return (begin, end) if whole else (0, 0)


@dataclass(frozen=True, kw_only=True)
class Span(Objective):
    """Mean of the cross entropies of an answer's first and last unit, among all of the example's.

    BERT, section 4.2. The reader tells the answer as characters of the last passage; where the
    window shown does not hold it whole, both are the first unit (as BERT's code for SQuAD does).
    The stream is text that tells its ``characters``.
    """

    kind: ClassVar[str] = "span"
    stream: str = "text"
    label: str = "answer"
    passage: int = 1
    """The passage that is searched: 1 is the second, after the question."""

    @property
    def asks(self) -> frozenset[str]:
        """Which characters of the text each unit stands for."""
        return super().asks | {"characters"}

    def aim(self, shown: Shown) -> Aim:
        """One slot: first and last unit of the answer, ``[1, 2]`` int64."""
        characters = shown.units[self.stream].targets["characters"]
        span = units_of_span(characters, shown.label(self.label), self.passage)
        return example_aim(np.array(span, np.int64))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """The first unit."""
        return np.zeros((1, 2), np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Two scores for each unit."""
        return SpanHead(self.stream, widths[self.stream], modalities[self.stream].longest())

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, and tell its characters."""
        super().check(modalities)
        check_characters(self.stream, self.view.streams, modalities)


class SpanHead(Head):
    """Scores of each unit as the first and as the last of the answer."""

    def __init__(self, stream: str, width: int, most: int) -> None:
        super().__init__()
        self.stream, self.most = stream, most
        self.linear = nn.Linear(width, 2)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``: both ends are right."""
        scores = self.predict(encoded).index_select(0, aim.index)
        each = F.cross_entropy(scores, aim.value, reduction="none").mean(1)
        right = (scores.detach().argmax(1) == aim.value).all(1) * aim.weight
        return {"loss": (each * aim.weight).sum(), "correct": right.sum()}

    def predict(self, encoded: Encoded) -> Tensor:
        """Scores ``[E, most, 2]``, -inf where an example has no unit."""
        scores = self.linear(encoded.states[self.stream]).float()
        return by_example(scores, encoded.view.streams[self.stream], self.most, -torch.inf)
