"""What the loop asks of an engine: one step, and its state in and out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from crossloom.batch import Batch
from crossloom.models.model import CrossloomModel

#: Sums over slots by objective and meter ("loss", "correct", …), local to the process.
Sums = dict[str, dict[str, Tensor]]

#: Whether a step is to be taken, by the norm of its gradient.
Accept = Callable[[float], bool]


def add(total: Sums, sums: Sums) -> None:
    """Take further sums into a total, detached."""
    for name, meters in sums.items():
        mine = total.setdefault(name, {})
        for meter, value in meters.items():
            mine[meter] = mine[meter] + value.detach() if meter in mine else value.detach()


class Engine(Protocol):
    """Runs steps on a model by some means of distribution."""

    model: CrossloomModel
    """The bare model."""

    def expect(self, batch: Batch) -> None:
        """Begin to bring a batch to the device, ahead of the step that runs it."""

    def step(
        self,
        number: int,
        batches: Sequence[Batch],
        counts: Mapping[str, float],
        accept: Accept = math.isfinite,
    ) -> Sums:
        """Forward and backward over the batches, then one update, if the gradient is accepted.

        Args:
            number: of the step, which decides the learning rate and the dropout.
            batches: this process's share, as NumPy arrays.
            counts: by objective, summed weights over all processes and batches of the step.
            accept: told the gradient's norm over all processes, before clipping; where it says no,
                nothing changes: neither weights nor the optimiser, queues or averages.

        Returns:
            Local sums, detached; ``"step"`` holds ``"norm"``, the gradient's norm before clipping.
        """

    def evaluate(self, batches: Sequence[Batch]) -> Sums:
        """Local sums over the batches, without dropout or gradient; nothing changes."""

    def state(self) -> dict[str, Tensor]:
        """Everything that must be saved beside the weights, by name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` gave.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
