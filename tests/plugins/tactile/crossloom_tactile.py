"""Touch: pressure of 16 taxels over time, in windows of four readings."""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import BadSample, make_units


@dataclass(frozen=True, kw_only=True)
class Tactile(Modality):
    kind: ClassVar[str] = "tactile"
    field: str = "tactile.npy"
    taxels: int = 16
    window: int = 4
    reach: int = 64

    def decode(self, sample, rng):
        if self.field not in sample:
            raise BadSample("missing member", f"no {self.field}")
        raw = np.load(io.BytesIO(sample[self.field]), allow_pickle=False)
        count = min(len(raw) // self.window, self.reach)
        unit = raw[: count * self.window].reshape(count, -1).astype(np.float32)
        return make_units(
            {"pressure": unit}, targets={"pressure": unit.copy()}, group=np.arange(count) // 2
        )

    def blank(self):
        zero = np.zeros((1, self.window * self.taxels), np.float32)
        return make_units({"pressure": zero}, targets={"pressure": zero.copy()})

    def longest(self):
        return self.reach

    def predictable(self):
        return {"pressure": Target(dim=self.window * self.taxels, form="vector")}

    def embedder(self, width):
        return TactileEmbedder(self, width)


class TactileEmbedder(Embedder):
    def __init__(self, spec, width):
        super().__init__()
        self.pressure = nn.Linear(spec.window * spec.taxels, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.position = nn.Embedding(spec.reach, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, stream):
        x = self.pressure(stream.content["pressure"])
        x = torch.where(stream.hidden[:, None], self.mask, x)
        return self.norm(x + self.position(stream.position))
