"""The contract of an objective, and of the head that holds its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.view import Shown, View
from crossloom.units import Array


@dataclass(frozen=True)
class Aim:
    """What is scored in one example: ``K`` slots."""

    index: Array  #: [K] int64 into the example's units of ``objective.stream``; zeros per example
    value: Array  #: [K, ...]

    def __post_init__(self) -> None:
        if len(self.index) != len(self.value):
            raise ValueError(f"{len(self.index)} places for {len(self.value)} values")


class Head(nn.Module, ABC):
    """All parameters of an objective."""

    @abstractmethod
    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Weighted sums over the slots, float32 scalars: ``"loss"``, and what meters show.

        Meters (``"correct"``, …) are sums over slots too, detached; the loop divides all of them by
        the summed weights of the global batch.
        """

    def predict(self, encoded: Encoded) -> Tensor:
        """Per example, ``[E, ...]``: what evaluation reads (scores, logits, an embedding)."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing per example")

    def borrow(self, other: Head) -> None:
        """Use another head's part instead of an own one: its transform, or its pooler.

        What is borrowed must not be registered as a submodule: its owner saves and counts it.

        Raises:
            ValueError: this head, or the other, has no such part, or they differ in shape.
        """
        raise ValueError(f"{type(self).__name__} has nothing that another head could lend")


def lend(borrower: Head, lender: Head, part: str) -> None:
    """Put ``lender``'s module in place of ``borrower``'s, without registering it there.

    Raises:
        ValueError: the lender has no such module of its own, or it differs in shape.
    """
    own, other = getattr(borrower, part), lender._modules.get(part)
    if other is None:
        raise ValueError(f"that objective has no {part} of its own")
    shapes = [[p.shape for p in m.parameters()] for m in (own, other)]
    if shapes[0] != shapes[1] or repr(own) != repr(other):
        raise ValueError(f"that objective's {part} is made otherwise")
    delattr(borrower, part)
    # straight into the instance, past nn.Module's registration
    borrower.__dict__[part] = other


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A view, an aim, a head, a loss. Subclasses set ``kind``, the name in recipes."""

    kind: ClassVar[str]
    separable: ClassVar[bool] = True
    """False when examples of the global batch interact (contrast): no gradient accumulation."""
    view: View
    weight: float = 1.0
    shares: str = ""
    """Objective whose head lends this one its transform (LXMERT's heads on regions have one between
    them) or its pooler (what tells matches and answers questions there); empty for an own one."""

    @property
    def scored(self) -> str:
        """The stream whose units the aim indexes, or ``""`` when examples are scored."""
        return ""

    @abstractmethod
    def aim(self, shown: Shown) -> Aim:
        """What to score in one example, from clean units, before anything is corrupted away."""

    @abstractmethod
    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """A value for one slot of weight zero, ``[1, ...]``: the head runs even when not drawn."""

    @abstractmethod
    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A fresh head; ``widths`` are the plan's, by stream."""

    def slots(self, examples: int) -> int | None:
        """A fixed number of slots per micro-batch, the rest blank; None for as many as are."""
        return None

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """Raise ValueError, naming what is on offer, when streams or targets do not exist."""
        for stream in self.view.decoded:
            if stream not in modalities:
                offer = ", ".join(modalities)
                raise ValueError(
                    f"view {self.view.name!r}: no stream {stream!r}; there are {offer}"
                )


def example_aim(value: Array) -> Aim:
    """One slot that scores the example as a whole; ``value`` is ``[...]``."""
    return Aim(np.zeros(1, np.int64), value[None])
