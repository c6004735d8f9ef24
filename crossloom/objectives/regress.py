"""Learning the vector that a teacher gives of an example: distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, example_aim
from crossloom.objectives.pool import Pool, Summary
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Regress(Objective):
    """Predict a vector that the reader tells of the example: squared error, mean over its numbers.

    A text tower learns what another makes of the English text from the translation (multilingual
    CLIP by teacher learning, Carlsson et al. 2022, section 3; after Reimers & Gurevych 2020).
    """

    kind: ClassVar[str] = "regress"
    stream: str = "text"
    """Whose summary is projected."""
    label: str = "vector"
    """The reader's label."""
    dim: int
    """Numbers of the vector."""
    pool: Pool = "mean"

    def aim(self, shown: Shown) -> Aim:
        """One slot with the vector, ``[1, dim]`` float32.

        Raises:
            ValueError: the reader tells none, or one of another size.
        """
        value = np.asarray(shown.label(self.label), np.float32)
        if value.shape != (self.dim,):
            raise ValueError(
                f"{shown.key}: {self.label} has shape {list(value.shape)}; the objective on view "
                f"{self.view.name!r} says dim {self.dim}: set it to the teacher's"
            )
        return example_aim(value)

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Zeros."""
        return np.zeros((1, self.dim), np.float32)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A summary and a linear layer with bias."""
        return RegressHead(self, widths[self.stream])

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, and be the example's own."""
        super().check(modalities)
        if self.stream not in self.view.streams:
            raise ValueError(f"view {self.view.name!r} does not show {self.stream}")
        if self.view.mismatched or self.view.rows > 1:
            raise ValueError(
                f"view {self.view.name!r}: drop mismatch, twice and against; a vector is of one "
                "example as it is"
            )


class RegressHead(Head):
    """A projection into the teacher's space."""

    layer = 0  #: whose states are read: the last

    def __init__(self, spec: Regress, width: int) -> None:
        super().__init__()
        self.stream = spec.stream
        self.summary = Summary(spec.stream, width, spec.pool)
        self.project = nn.Linear(width, spec.dim)

    def features(self, encoded: Encoded, stream: str) -> Tensor:
        """Vectors ``[E, dim]`` in the teacher's space, float32, of the stream summarised."""
        if stream != self.stream:
            raise ValueError(f"this objective makes vectors of {self.stream!r}, not of {stream!r}")
        out: Tensor = self.project(self.summary(encoded)).float()
        return out

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Squared error, and ``cosine``: of prediction and vector."""
        out = self.predict(encoded).index_select(0, aim.index)
        value = aim.value.to(out.dtype)
        loss = ((out - value).pow(2).mean(1) * aim.weight).sum()
        cosine = (F.cosine_similarity(out.detach(), value, dim=1) * aim.weight).sum()
        return {"loss": loss, "cosine": cosine}

    def predict(self, encoded: Encoded) -> Tensor:
        """Vectors ``[E, dim]``."""
        return self.features(encoded, self.stream)
