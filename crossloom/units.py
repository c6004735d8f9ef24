"""The currency of the data side: units, fates and keyed randomness. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
#: One sample as a modality sees it: shard members by extension (bytes), and whatever the
#: component's reader chose for this visit (``"text"``: a tuple of :class:`Passage`).
Sample = Mapping[str, Any]


class BadSample(ValueError):
    """One sample cannot be used. ``kind`` is a short name under which such samples are counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


class Defect(NamedTuple):
    """What is wrong with one sample, or with a shard as a whole (``key`` is then empty)."""

    shard: str
    key: str
    kind: str
    message: str


class Fate(IntEnum):
    """What becomes of one unit in one view."""

    KEEP = 0  #: untouched, not predicted
    HIDE = 1  #: replaced by the modality's mask, predicted
    SWAP = 2  #: replaced by another value, predicted (discrete units, regions)
    SHOW = 3  #: left visible, predicted
    DROP = 4  #: not shown at all, not predicted


@dataclass(frozen=True)
class Passage:
    """A piece of text in one language (a BCP-47-like code; ``""`` when unknown)."""

    language: str
    text: str
    refers: tuple[tuple[int, int, int], ...] = ()
    """(first character, one past the last, region): words that refer to a region of the image, by
    its number in the sample."""
    switched: tuple[tuple[int, int, str], ...] = ()
    """(first character, one past the last, language): parts in another language than the rest."""
    bound: tuple[tuple[int, int, int], ...] = ()
    """(first character, one past the last, number): words of one number, in this passage or in
    another of the text, share a fate: a word and its translation (UC2's co-masking)."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """One example of one stream, clean: nothing in here is ever corrupted in place.

    ``content`` holds what the embedder reads, ``targets`` what may be predicted, both by name with
    a first axis of ``N`` units; ``whole`` holds arrays of the whole example (an image for a tower).
    """

    content: Mapping[str, Array]
    """By name, ``[N, ...]``."""
    position: Array
    """``[N]`` int64, the place of each unit in its stream; need not be unique (TLM restarts it)."""
    maskable: Array
    """``[N]`` bool, False for units that are never hidden (``<s>``, the whole-image region)."""
    group: Array
    """``[N]`` int64; units of one group share a fate when a view asks for it."""
    targets: Mapping[str, Array] = field(default_factory=dict)
    """By name, ``[N, ...]``; never shares memory with what a corrupted view shows."""
    whole: Mapping[str, Array] = field(default_factory=dict)
    """By name, ``[...]``, one value for the example."""
    languages: tuple[tuple[str, int], ...] = ()
    """Of each passage of a text: the code of its language, and the place of its first unit."""

    def __len__(self) -> int:
        return len(self.position)


def make_units(
    content: Mapping[str, Array],
    *,
    count: int | None = None,
    targets: Mapping[str, Array] | None = None,
    whole: Mapping[str, Array] | None = None,
    position: Array | None = None,
    maskable: Array | None = None,
    group: Array | None = None,
    languages: tuple[tuple[str, int], ...] = (),
) -> Units:
    """Units with the usual defaults: positions and groups 0..N-1, everything maskable.

    Raises:
        ValueError: when an array's first axis is not the number of units.
    """
    n = count if count is not None else len(next(iter(content.values())))
    order = np.arange(n, dtype=np.int64)
    units = Units(
        content=content,
        targets=targets or {},
        whole=whole or {},
        position=order if position is None else position,
        maskable=np.ones(n, bool) if maskable is None else maskable,
        group=order if group is None else group,
        languages=languages,
    )
    per_unit = {**units.content, **{f"target {k}": v for k, v in units.targets.items()}}
    per_unit |= {"position": units.position, "maskable": units.maskable, "group": units.group}
    for name, value in per_unit.items():
        if len(value) != n:
            raise ValueError(f"{name} has {len(value)} entries for {n} units")
    return units


class _Key(np.random.bit_generator.ISeedSequence):
    """A Philox key, handed over as a seed.

    Given as ``key``, NumPy asks the system for a seed too, which takes longer than all the rest.
    """

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Array:
        """The key."""
        return np.frombuffer(self.digest, dtype)


def keyed_rng(*key: object) -> np.random.Generator:
    """A generator that depends on its key alone: not on order of calls, process or machine.

    The key's parts (strings and integers) are hashed to the 128-bit key of a Philox generator.
    """
    digest = blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(_Key(digest)))  # type: ignore[arg-type]
