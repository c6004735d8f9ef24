"""The contract of an objective, and of the head that holds its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded, Stream
from crossloom.modalities.modality import Modality
from crossloom.objectives.view import Shown, View
from crossloom.units import Array, keyed_rng


@dataclass(frozen=True)
class Aim:
    """What is scored in one example: ``K`` slots."""

    index: Array
    """``[K]`` int64: places among the units shown of the stream that ``scored`` names; 0 where the
    example as a whole is."""
    value: Array
    """``[K, ...]``."""
    trust: Array | None = None
    """``[K]`` float32, how far each value is trusted: a factor on its loss. A slot counts as one in
    the mean however little it is trusted (LXMERT's confidences)."""

    def __post_init__(self) -> None:
        if len(self.index) != len(self.value):
            raise ValueError(f"{len(self.index)} places for {len(self.value)} values")
        if self.trust is not None and len(self.trust) != len(self.index):
            raise ValueError(f"{len(self.index)} places for {len(self.trust)} trusts")


class Head(nn.Module, ABC):
    """All parameters of an objective."""

    @abstractmethod
    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Weighted sums over the slots, float32 scalars: ``"loss"``, and what meters show.

        Meters (``"correct"``, …) are sums over slots too, detached; the loop divides all of them by
        the summed weights of the global batch. One is no scalar: ``"by_language"``, see
        :meth:`~crossloom.batch.AimBatch.by_language`.
        """

    def settle(self) -> None:
        """Called once after each optimiser step, on every process."""
        return

    def followers(self) -> list[tuple[nn.Module, nn.Module]]:
        """Slow modules of the head, each with the module that it follows."""
        return []

    def predict(self, encoded: Encoded) -> Tensor:
        """Per example, ``[E, ...]``: what evaluation reads (scores, logits, an embedding)."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing per example")

    def operations(self, slots: float) -> float:
        """Floating-point operations of a forward pass over so many slots: of linear layers."""
        return operations(self, slots)

    def borrow(self, other: Head) -> None:
        """Use another head's part instead of an own one: its transform, or its pooler.

        What is borrowed must not be registered as a submodule: its owner saves and counts it.

        Raises:
            ValueError: this head, or the other, has no such part, or they differ in shape.
        """
        raise ValueError(f"{type(self).__name__} has nothing that another head could lend")


def operations(module: nn.Module, rows: float) -> float:
    """Floating-point operations of a module's linear layers over so many rows each."""
    linear = (m for m in module.modules() if isinstance(m, nn.Linear))
    return sum(2 * rows * m.in_features * m.out_features for m in linear)


def lend(borrower: Head, lender: Head, part: str) -> None:
    """Put ``lender``'s module in place of ``borrower``'s, without registering it there.

    Raises:
        ValueError: the lender has no such module of its own, or it differs in shape.
    """
    own, other = getattr(borrower, part), lender._modules.get(part)
    if other is None:
        raise ValueError(f"that objective has no {part} of its own")
    # what modules print tells them apart where their parameters do not: activations, pools
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
    mean: str = ""
    """Objectives of one name here have one mean: their losses are summed over the slots of all of
    them (words and codes as one sequence: CogView), not each over its own. Empty for a mean of its
    own. Losses are told of each objective's own slots all the same."""
    shares: str = ""
    """Objective whose head lends this one its transform (LXMERT's heads on regions have one between
    them) or its pooler (what tells matches and answers questions there); empty for an own one."""

    @property
    def scored(self) -> str:
        """The stream whose units the aim indexes, or ``""`` when examples are scored."""
        return ""

    @property
    def asks(self) -> frozenset[str]:
        """The targets that its aims and its view ask of streams, by name."""
        asked = {getattr(self, "target", ""), *(h.permute for h in self.view.hide.values())}
        return frozenset(asked - {""})

    @property
    def depth(self) -> int:
        """The layer whose states are scored, counted from 1; 0 for the last."""
        return 0

    @property
    def inertia(self) -> float | None:
        """Momentum of the slow encoders that the head asks for; None when it asks for none."""
        return None

    @property
    def own_passes(self) -> bool:
        """Whether the head makes all passes itself (``Encoded.anew``): it is given no states."""
        return False

    @property
    def beside(self) -> tuple[str, ...]:
        """Objectives whose heads are asked about the same batch: drawn whenever this one is."""
        return ()

    @property
    def generates(self) -> str:
        """The stream that is said unit by unit, or ``""``: no unit may come to know a later one."""
        return ""

    @property
    def chosen(self) -> str:
        """The stream one of whose units another stream asks for, or ``""``: it must read others."""
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

    @property
    def room(self) -> int | None:
        """Examples that a step may have, over all processes; None for any number."""
        return None

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
        if self.scored in self.view.hide and self.view.hide[self.scored].relaid:
            raise ValueError(
                f"view {self.view.name!r} merges, deletes or moves units of {self.scored!r}, which "
                "cannot be scored then; score a second stream, tied to it, that shows it clean"
            )

    def check_others(self, others: Mapping[str, Objective]) -> None:
        """Raise ValueError when an objective that this one leans on is missing or does not fit."""
        for name in self.beside:
            need(name, others)


def need(name: str, others: Mapping[str, Objective]) -> Objective:
    """Another objective of the recipe.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in others:
        raise ValueError(f"there is no objective {name!r}; there are {', '.join(others)}")
    return others[name]


def mark(key: str) -> Array:
    """A 63-bit hash of an example's sample, int64 ``[]``, at least 1: tells its other examples."""
    return np.array(keyed_rng(key.split("#")[0]).integers(1, 2**63 - 1), np.int64)


def by_example(rows: Tensor, flat: Stream, most: int, empty: float) -> Tensor:
    """Values of a stream's units, ``[N, ...]``, example by example.

    Args:
        rows: one for each unit.
        flat: the stream.
        most: units that an example has at most.
        empty: where an example has fewer.

    Returns:
        ``[E, most, ...]``.
    """
    place = torch.arange(most, device=rows.device)
    index = (flat.start[:, None] + place).clamp(max=len(rows) - 1)
    there = (place < flat.length[:, None]).reshape(*index.shape, *[1] * (rows.dim() - 1))
    return rows[index].masked_fill(~there, empty)


def example_aim(value: Array) -> Aim:
    """One slot that scores the example as a whole; ``value`` is ``[...]``."""
    return Aim(np.zeros(1, np.int64), value[None])
