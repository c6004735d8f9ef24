"""Objectives that read a summary of the example: what tells matches and chooses classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Objective
from crossloom.objectives.pool import Pool, Pooler


@dataclass(frozen=True, kw_only=True)
class Pooled(Objective):
    """How streams are summarised for a head; see :class:`~crossloom.objectives.pool.Pooler`."""

    pooled: tuple[str, ...] = ("text",)
    """Streams whose summaries are read; the product of two for dual-stream models."""
    pool: Pool = "first"
    combine: Literal["product", "sum"] = "product"
    width: int = 0
    """To which summaries are brought; 0 for the first stream's (ViLBERT: 1024)."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Of the summaries (ViLBERT: relu)."""
    dropout: float = 0.0
    """Of what heads read of the summaries, in training (ViLBERT: 0.1)."""

    @property
    def pooling(self) -> dict[str, Any]:
        """The fields that say so, by name: with them, another objective summarises likewise."""
        inherited = {f.name for f in fields(Objective)}
        return {f.name: getattr(self, f.name) for f in fields(Pooled) if f.name not in inherited}

    def pooler(self, widths: Mapping[str, int]) -> Pooler:
        """A fresh pooler; ``widths`` are the plan's, by stream."""
        return Pooler(
            self.pooled, widths, self.pool, self.combine, self.width, self.activation, self.dropout
        )

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The streams pooled must be shown."""
        super().check(modalities)
        if strange := [s for s in self.pooled if s not in self.view.streams]:
            raise ValueError(f"view {self.view.name!r} does not show {', '.join(strange)}")
