"""Choosing among named classes: the head of VQA and of natural language inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, example_aim, lend
from crossloom.objectives.pool import Pooler
from crossloom.objectives.pooled import Pooled
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Classify(Pooled):
    """Predict a label that the reader provides: a class name, or scores in 0..1 by class name.

    ``softmax`` is cross entropy against the scores as given; ``sigmoid`` is binary cross entropy
    summed over classes (VQA with soft scores, Anderson et al. 2018); ``distribution`` is cross
    entropy against the scores divided by their sum: what sampling one answer in proportion to its
    score (LXMERT's pre-training on questions) is on average. Examples whose label names no known
    class have all-zero scores under ``sigmoid``, and no slot otherwise.

    In a view that shows each example ``twice``, both summaries are read side by side (the "pair" of
    LXMERT and UNITER for NLVR2).
    """

    kind: ClassVar[str] = "classify"
    label: str
    classes: tuple[str, ...] | str
    """Names; or the file, below the recipe's ``data``, that lists them, one a line."""
    count: int = 0
    """Number of classes there must be: with it, a model can be built without the file. 0 for as
    many as there are."""
    form: Literal["softmax", "sigmoid", "distribution"] = "softmax"
    hidden: bool = True
    """A layer of twice the width between summary and logits (LXMERT, UNITER); without it they are
    linear in the summary (BERT, XLM-R)."""
    matched_only: bool = True
    """Skip examples whose streams do not belong together: their label is another's (LXMERT)."""

    @property
    def last(self) -> str:
        """Name within the head of the layer that has a row for each class."""
        return f"mlp.{3 if self.hidden else 0}"

    def names(self) -> tuple[str, ...]:
        """The classes, in order.

        Raises:
            ValueError: their file cannot be read, or there are not as many as ``count`` says.
        """
        found = listed(self.classes) if isinstance(self.classes, str) else self.classes
        if self.count and len(found) != self.count:
            where = self.classes if isinstance(self.classes, str) else "classes"
            raise ValueError(
                f"{where}: {len(found)} classes; the objective says count {self.count}"
            )
        return found

    def _size(self) -> int:
        return self.count or len(self.names())

    def _none(self) -> Aim:
        return Aim(np.zeros(0, np.int64), np.zeros((0, self._size()), np.float32))

    def aim(self, shown: Shown) -> Aim:
        """One slot with a score for each class, ``[1, C]`` float32."""
        if self.matched_only and not shown.matched:
            return self._none()
        given = shown.label(self.label)
        scores = np.zeros(self._size(), np.float32)
        places = _places(self.names())
        for name, score in ({given: 1.0} if isinstance(given, str) else given).items():
            if name in places:
                scores[places[name]] = score
        if self.form != "sigmoid" and scores.sum() == 0:
            return self._none()
        if self.form == "distribution":
            scores /= scores.sum()
        return example_aim(scores)

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """No score for any class."""
        return np.zeros((1, self._size()), np.float32)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Pooler, perhaps a hidden layer, logits."""
        return ClassifyHead(
            self.pooler(widths), self._size(), self.form, self.view.rows, self.hidden
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """No row may show another example."""
        super().check(modalities)
        if self.view.against:
            raise ValueError(f"view {self.view.name!r}: drop against, which ranking alone reads")


@lru_cache(maxsize=8)
def listed(path: str) -> tuple[str, ...]:
    """Classes as a file lists them, one a line.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return tuple(x for x in Path(path).read_text("utf-8").split("\n") if x)
    except OSError as error:
        raise ValueError(
            f"{path}: the list of classes cannot be read ({error.strerror}); `crossloom shards "
            "make` writes one, or give the objective's classes themselves"
        ) from None


@lru_cache(maxsize=8)
def _places(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: place for place, name in enumerate(names)}


class ClassifyHead(Head):
    """Logits for each class from pooled streams."""

    def __init__(
        self, pooler: Pooler, classes: int, form: str, rows: int = 1, hidden: bool = True
    ) -> None:
        super().__init__()
        self.form, self.rows = form, rows
        self.pooler = pooler
        width = pooler.width
        layers: list[nn.Module] = []
        if hidden:
            layers = [nn.Linear(rows * width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width)]
        last = nn.Linear(2 * width if hidden else rows * width, classes)
        self.mlp = nn.Sequential(*layers, last)

    def borrow(self, other: Head) -> None:
        """Use another head's pooler."""
        lend(self, other, "pooler")

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``: the score of the most likely class."""
        logits = self.predict(encoded).index_select(0, aim.index // self.rows)
        if self.form != "sigmoid":
            each = F.cross_entropy(logits, aim.value, reduction="none")
        else:
            each = F.binary_cross_entropy_with_logits(logits, aim.value, reduction="none").sum(1)
        best = logits.detach().argmax(1, keepdim=True)
        correct = (aim.value.gather(1, best).squeeze(1) * aim.weight).sum()
        return {"loss": (each * aim.weight).sum(), "correct": correct}

    def predict(self, encoded: Encoded) -> Tensor:
        """Logits ``[E, C]``, E examples, each of so many rows."""
        pooled = self.pooler(encoded).unflatten(0, (-1, self.rows)).flatten(1)
        logits: Tensor = self.mlp(pooled).float()
        return logits
