"""The contract of a modality.

A modality is one frozen dataclass. It is its own configuration (what the recipe's YAML shows), it
pickles into the data workers, and it makes the module that embeds its units. It knows nothing of
objectives, models or training; any objective works with any modality that declares the target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.units import Array, Sample, Units


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something a hidden unit can be asked for.

    Forms: ``index`` (int64 ``[N]``, a class in ``0..dim-1``, negative where there is none),
    ``distribution`` (float ``[N, dim]``, non-negative, summing to one), ``vector``
    (float ``[N, dim]``).
    """

    dim: int
    form: Literal["index", "distribution", "vector"]
    trusted: bool = False
    """Whether ``Units.targets`` also holds ``"NAME.trust"``, float32 ``[N]`` in 0..1: how far each
    value is trusted (a detector's confidence)."""
    barred: tuple[int, ...] = ()
    """Classes that no hidden unit has (special ids of a vocabulary), as far as they are known: what
    a head fills in or draws for itself is none of them."""


class Embedder(nn.Module, ABC):
    """Turns the units of a stream into vectors."""

    lenders: tuple[str, ...] = ()
    """Streams whose embedders lend parts to this one (:meth:`borrow`)."""
    looks_at: tuple[str, ...] = ()
    """Other streams of the view whose content the embedding of this one uses: an image's feature
    on its caption's words. Where there are any, ``forward`` is given a second argument, those of
    them that are in the view and may be read there, by name; hidden content stays out of use."""

    @abstractmethod
    def forward(self, stream: Stream) -> Tensor:
        """Vectors ``[N, width]``. Where ``stream.hidden``, the content must not be used."""

    def borrow(self, embedders: Mapping[str, Embedder]) -> None:
        """Take what this embedder shares with others of the model (a norm, a table); here none.

        Called once, after all are made. What is borrowed must not be registered as a submodule:
        each parameter has one owner, so that it is saved and counted once.

        Raises:
            ValueError: what is to be shared does not exist.
        """

    def tied(self, target: str) -> Tensor | None:
        """A weight ``[dim, width]`` that a head may share for a target, or None (the default)."""
        return None


@dataclass(frozen=True, kw_only=True)
class Modality(ABC):
    """Turns shard members into units. Subclasses set ``kind``, the name in recipes."""

    kind: ClassVar[str]
    field: str
    """The member of a sample that is read, e.g. ``"text"``, ``"regions.npz"``, ``"flac"``."""
    own: ClassVar[tuple[str, ...]] = ("field",)
    """Fields in which streams with one embedder (a recipe's ``tied``) may differ."""

    @abstractmethod
    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """The clean units of one sample; ``rng`` is for augmentation and depends on the example.

        Raises:
            BadSample: the member is missing or cannot be used; the sample is counted and skipped.
        """

    @abstractmethod
    def blank(self) -> Units:
        """One unit of nothing, shaped like any other: keeps every parameter in every step."""

    @abstractmethod
    def longest(self) -> int:
        """The most units that ``decode`` can return."""

    @abstractmethod
    def embedder(self, width: int) -> Embedder:
        """A fresh module that embeds this modality's units; ``width`` is the model's."""

    def loose(self, sample: Sample, rng: np.random.Generator) -> Units:
        """The clean units of one sample, not cut: what :meth:`packed` takes.

        Raises:
            BadSample: as :meth:`decode` does.
        """
        return self.decode(sample, rng)

    def packed(self, units: Sequence[Units]) -> list[tuple[int, Units]]:
        """Samples laid end to end, and cut into examples of at most :meth:`longest` units.

        Args:
            units: of each sample, as :meth:`loose` gives them.

        Returns:
            For each example, the number of the sample that it begins in, and its units.

        Raises:
            TypeError: samples of this modality cannot be joined.
        """
        raise TypeError(f"{self.kind}: samples of this modality cannot be laid end to end")

    def predictable(self) -> Mapping[str, Target]:
        """The targets on offer, by name; they are keys of ``Units.targets``."""
        return {}

    def asked(self, targets: frozenset[str]) -> Modality:
        """The same modality without targets that nobody asks for, nor their arrays.

        What is embedded stays as it is. The default is the modality itself.

        Args:
            targets: by name, those that are asked for; some may be other streams'.
        """
        return self

    swapped: ClassVar[tuple[str, ...]] = ()
    """Content that swapped units take from a random unit of another example of the micro-batch,
    for continuous modalities (LXMERT's regions); by name."""

    def substitute(
        self, units: Units, fate: Array, rng: np.random.Generator
    ) -> Mapping[str, Array]:
        """The content a corrupted view shows, given each unit's :class:`~crossloom.units.Fate`.

        Discrete modalities return new ids for hidden and swapped units (copies, never the input).
        Continuous ones return the content unchanged: their embedder covers ``stream.hidden``.
        """
        return units.content

    def steady(self) -> Modality:
        """The same modality without augmentation: what evaluation decodes with."""
        return self

    def identity(self) -> str:
        """What must agree between a saved run and its reuse (a vocabulary's hash), or ``""``."""
        return ""
