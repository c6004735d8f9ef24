"""Which component a micro-batch is drawn from: by weight, drift-free, without state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from crossloom.units import Array, keyed_rng


class Mixture:
    """A repeating schedule of components whose shares are the weights.

    A cycle of ``cycle`` micro-batches gives each component its share (largest remainders) in a
    seeded shuffle; so over any whole cycles the shares are exact, and both the component of
    micro-batch n and how many came from it before are found directly. Weights may change at given
    micro-batches: each component goes on where it was, and nothing is repeated or left out.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        seed: int,
        cycle: int = 1000,
        changes: Sequence[tuple[int, Mapping[str, float]]] = (),
        alike: int = 1,
    ) -> None:
        """Set up the schedule.

        Args:
            weights: of all components; 0 for those that come in later.
            seed: of the shuffle.
            cycle: micro-batches after which the schedule repeats.
            changes: (micro-batch, weights from there on), ascending; components left out weigh 0.
            alike: so many micro-batches in a row are of one component, and count as one in a cycle;
                changes must begin at a multiple of it.

        Raises:
            ValueError: no weight is positive, one is negative or of an unknown component, or the
                changes do not ascend, or begin among micro-batches that are alike.
        """
        self.names = tuple(weights)
        self.alike = alike
        begins = [0, *(begin for begin, _ in changes)]
        if any(begin % alike for begin in begins):
            raise ValueError(f"changes of a mixture must begin at multiples of {alike}: {begins}")
        begins = [begin // alike for begin in begins]
        if sorted(set(begins)) != begins:
            raise ValueError(f"changes of a mixture must ascend from micro-batch 1: {begins[1:]}")
        self._begins = begins
        self._cycles = [
            _Cycle(self.names, some, cycle, keyed_rng(seed, "mixture", *key))
            for some, key in zip(
                [weights, *(some for _, some in changes)],
                [(), *((begin,) for begin in begins[1:])],
                strict=True,
            )
        ]
        #: what each component had given when each of the schedules began
        self._given = [np.zeros(len(self.names), np.int64)]
        for number, length in enumerate(np.diff(begins)):
            self._given.append(self._given[-1] + self._cycles[number].given(int(length)))

    @property
    def quota(self) -> Array:
        """Micro-batches of each component in a cycle of the first schedule."""
        return self._cycles[0].quota

    def at(self, micro: int) -> tuple[str, int]:
        """The component of a micro-batch, and its number among that component's own."""
        turn, place = divmod(micro, self.alike)
        which = bisect_right(self._begins, turn) - 1
        component, before = self._cycles[which].at(turn - self._begins[which])
        before += int(self._given[which][component])
        return self.names[component], before * self.alike + place

    def given(self, micro: int) -> Array:
        """Micro-batches of each component among the first ``micro``, in the order of ``names``."""
        turn, place = divmod(micro, self.alike)
        which = bisect_right(self._begins, turn) - 1
        cycle = self._cycles[which]
        found = self._given[which] + cycle.given(turn - self._begins[which])
        found *= self.alike
        if place:
            found[cycle.at(turn - self._begins[which])[0]] += place
        return found


class _Cycle:
    """One schedule: a shuffled cycle, repeated."""

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float],
        cycle: int,
        rng: np.random.Generator,
    ) -> None:
        values = np.array([weights.get(n, 0.0) for n in names], np.float64)
        if len(values) == 0 or values.min() < 0 or values.sum() <= 0 or set(weights) - set(names):
            raise ValueError(
                f"mixture weights must be non-negative, one positive, of {', '.join(names)}: "
                f"{dict(weights)}"
            )
        exact = values / values.sum() * cycle
        quota = np.floor(exact).astype(np.int64)
        # a positive weight always gets a turn
        quota = np.where((values > 0) & (quota == 0), 1, quota)
        for name in np.argsort(-(exact - quota), kind="stable")[: max(0, cycle - quota.sum())]:
            quota[name] += 1
        self.quota: Array = quota
        self._slots = rng.permutation(np.repeat(np.arange(len(names)), quota))
        self._before = np.zeros(len(self._slots), np.int64)
        for component in range(len(names)):
            mine = self._slots == component
            self._before[mine] = np.arange(int(mine.sum()))

    def at(self, micro: int) -> tuple[int, int]:
        """Number of the component, and how many of its micro-batches came before."""
        turn, place = divmod(micro, len(self._slots))
        component = int(self._slots[place])
        return component, turn * int(self.quota[component]) + int(self._before[place])

    def given(self, micro: int) -> Array:
        """Micro-batches of each component among the first ``micro``."""
        turns, rest = divmod(micro, len(self._slots))
        counted = np.bincount(self._slots[:rest], minlength=len(self.quota))
        found: Array = turns * self.quota + counted
        return found


def temperature(counts: Mapping[str, float], alpha: float) -> dict[str, float]:
    """Shares proportional to ``count ** alpha`` (XLM-R: 0.3; 1 is as they come)."""
    raised = {k: v**alpha if v > 0 else 0.0 for k, v in counts.items()}
    total = sum(raised.values())
    return {k: v / total for k, v in raised.items()} if total else raised
