"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then decay to ``floor``."""

    shape: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    """``inverse_sqrt``: with the root of the step, whatever the number of steps (Vaswani et al.
    2017, section 5.3; XLM's ``adam_inverse_sqrt``)."""
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
        if self.shape == "inverse_sqrt":
            return max(self.floor, (max(1.0, warmup) / max(1, step)) ** 0.5)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.floor + (1 - self.floor) * left
