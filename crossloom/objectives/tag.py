"""A class for each word of a text: parts of speech, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.classify import listed
from crossloom.objectives.objective import Aim, Head, Objective, by_example
from crossloom.objectives.view import Shown
from crossloom.units import Array


def first_units(characters: Array, words: Sequence[tuple[int, int]], passage: int = 0) -> Array:
    """The first unit of each word, ``[W]`` int64; -1 for words of which none is there.

    Args:
        characters: ``[N, 3]``: passage, first character, one past the last (``Text.characters``).
        words: characters of each word.
        passage: in which they stand.
    """
    places = np.flatnonzero(characters[:, 0] == passage)
    found = np.full(len(words), -1, np.int64)
    for number, (first, last) in enumerate(words):
        spans = characters[places, 1:]
        inside = places[(spans[:, 0] < last) & (spans[:, 1] > first)]
        found[number] = inside[0] if len(inside) else -1
    return found


@dataclass(frozen=True, kw_only=True)
class Tag(Objective):
    """Cross entropy of each word's class on the word's first unit (BERT, section 5.3).

    The reader tells ``words`` (characters of each) and a label with as many classes. Words cut off
    at the stream's limit, and those of a class that is not listed, have no slot. The stream is text
    that tells its ``characters``.
    """

    kind: ClassVar[str] = "tag"
    stream: str = "text"
    label: str = "tags"
    classes: tuple[str, ...] | str
    """Names; or the file, below the recipe's ``data``, that lists them, one a line."""

    @property
    def scored(self) -> str:
        """The stream."""
        return self.stream

    def names(self) -> tuple[str, ...]:
        """The classes, in order.

        Raises:
            ValueError: their file cannot be read.
        """
        return listed(self.classes) if isinstance(self.classes, str) else self.classes

    @property
    def asks(self) -> frozenset[str]:
        """Which characters of the text each unit stands for."""
        return super().asks | {"characters"}

    def aim(self, shown: Shown) -> Aim:
        """A slot for each word: the number of its class, int64."""
        units = shown.units[self.stream]
        places = first_units(units.targets["characters"], shown.label("words"))
        number = {name: n for n, name in enumerate(self.names())}
        value = np.array([number.get(tag, -1) for tag in shown.label(self.label)], np.int64)
        known = (places >= 0) & (value >= 0)
        return Aim(places[known], value[known])

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """The first class."""
        return np.zeros(1, np.int64)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """A linear layer over each unit."""
        most = modalities[self.stream].longest()
        return TagHead(self.stream, widths[self.stream], len(self.names()), most)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """The stream must be shown, and tell its characters."""
        super().check(modalities)
        check_characters(self.stream, self.view.streams, modalities)


def check_characters(
    stream: str, shown: tuple[str, ...], modalities: Mapping[str, Modality]
) -> None:
    """Raise ValueError where a stream is not shown, or does not tell its characters."""
    if stream not in shown:
        raise ValueError(f"the view does not show {stream!r}; it shows {', '.join(shown)}")
    if "characters" not in modalities[stream].blank().targets:
        raise ValueError(f"stream {stream!r} does not tell its characters; set characters: true")


class TagHead(Head):
    """Logits for each unit."""

    def __init__(self, stream: str, width: int, classes: int, most: int) -> None:
        super().__init__()
        self.stream, self.most = stream, most
        self.linear = nn.Linear(width, classes)

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``correct``."""
        logits = self.linear(encoded.at(self.stream, aim.index)).float()
        each = F.cross_entropy(logits, aim.value, reduction="none")
        right = (logits.detach().argmax(1) == aim.value) * aim.weight
        return {"loss": (each * aim.weight).sum(), "correct": right.sum()}

    def predict(self, encoded: Encoded) -> Tensor:
        """Logits ``[E, most, C]`` by unit."""
        logits = self.linear(encoded.states[self.stream]).float()
        return by_example(logits, encoded.view.streams[self.stream], self.most, 0.0)
