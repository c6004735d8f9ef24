"""Which component a micro-batch is drawn from: by weight, drift-free, without state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from crossloom.units import Array, keyed_rng


class Mixture:
    """A repeating schedule of components whose shares are the weights.

    A cycle of ``cycle`` micro-batches gives each component its share (largest remainders) in a
    seeded shuffle; so over any whole cycles the shares are exact, and both the component of
    micro-batch n and how many came from it before are found directly.
    """

    def __init__(self, weights: Mapping[str, float], *, seed: int, cycle: int = 1000) -> None:
        """Set up the schedule.

        Raises:
            ValueError: no weight is positive, or one is negative.
        """
        values = np.array(list(weights.values()), np.float64)
        if len(values) == 0 or values.min() < 0 or values.sum() <= 0:
            raise ValueError(f"mixture weights must be non-negative, one positive: {dict(weights)}")
        self.names = tuple(weights)
        self.seed = seed
        exact = values / values.sum() * cycle
        quota = np.floor(exact).astype(np.int64)
        # a positive weight always gets a turn
        quota = np.where((values > 0) & (quota == 0), 1, quota)
        for name in np.argsort(-(exact - quota), kind="stable")[: max(0, cycle - quota.sum())]:
            quota[name] += 1
        self.quota: Array = quota

    @cached_property
    def _cycle(self) -> tuple[Array, Array]:
        slots = np.repeat(np.arange(len(self.names)), self.quota)
        slots = keyed_rng(self.seed, "mixture").permutation(slots)
        before = np.zeros(len(slots), np.int64)
        for component in range(len(self.names)):
            mine = slots == component
            before[mine] = np.arange(int(mine.sum()))
        return slots, before

    def at(self, micro: int) -> tuple[str, int]:
        """The component of a micro-batch, and its number among that component's own."""
        slots, before = self._cycle
        turn, place = divmod(micro, len(slots))
        component = int(slots[place])
        return self.names[component], turn * int(self.quota[component]) + int(before[place])


def temperature(counts: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Shares proportional to ``count ** alpha`` (XLM: 0.7, XLM-R: 0.3; 1 is as they come)."""
    raised = {k: v**alpha if v > 0 else 0.0 for k, v in counts.items()}
    total = sum(raised.values())
    return {k: v / total for k, v in raised.items()} if total else raised
