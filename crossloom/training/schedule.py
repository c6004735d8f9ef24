"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then decay to ``floor``."""

    shape: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.1
    """Steps of warm-up; a share of all steps when below 1."""
    floor: float = 0.0
    """Last factor, 0..1."""

    def factor(self, step: int, steps: int) -> float:
        """Factor on the rate in step 0, 1, … of ``steps``."""
        warmup = self.warmup * steps if self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1.0, steps - warmup))
        if self.shape == "constant":
            return 1.0
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left
