"""Summaries of an encoded example, shared by the heads that score examples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from crossloom.batch import Encoded

Pool = Literal["first", "mean"]


def summary(encoded: Encoded, stream: str, pool: Pool) -> Tensor:
    """``[E, D]``: the first unit's state, or the mean over the example's units."""
    return encoded.anchor(stream) if pool == "first" else encoded.mean(stream)


class Pooler(nn.Module):
    """Summaries of one or two streams, each through a linear layer and an activation.

    Several streams are combined by element-wise product (ViLBERT) or sum; they must then have been
    brought to one width, which is the first stream's.
    """

    def __init__(
        self,
        streams: tuple[str, ...],
        widths: dict[str, int],
        pool: Pool = "first",
        combine: Literal["product", "sum"] = "product",
    ) -> None:
        super().__init__()
        self.streams, self.pool, self.combine = streams, pool, combine
        self.width = widths[streams[0]]
        self.dense = nn.ModuleDict({s: nn.Linear(widths[s], self.width) for s in streams})

    def forward(self, encoded: Encoded) -> Tensor:
        """``[E, width]``."""
        parts = [torch.tanh(self.dense[s](summary(encoded, s, self.pool))) for s in self.streams]
        out = parts[0]
        for part in parts[1:]:
            out = out * part if self.combine == "product" else out + part
        return out
