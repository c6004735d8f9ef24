"""The summary of a set of shards: what each holds, in sum, kept as one JSON file beside them.

The order of examples needs to know how many each shard has, and nothing else. So a run reads the
summary when it starts, and a shard's index when one of its samples is due: nothing that grows with
the number of samples is read at the start. A row is good for a tar of the size and time that it
tells; others are made anew, from the indexes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.data_pipelines import cache, index
from crossloom.data_pipelines.index import Index

NAME = "shards.summary.json"
#: Of the rows, and of the indexes that they sum up.
FORMAT = f"1.{index.FORMAT}"


@dataclass(frozen=True, slots=True)
class Listed:
    """What samples list, in sum."""

    samples: int = 0
    items: Mapping[str, int] = field(default_factory=dict)  #: how many: ``questions``, ``texts.en``
    having: Mapping[str, int] = field(default_factory=dict)  #: how many samples list any of them


@dataclass(frozen=True, slots=True)
class Totals:
    """What a shard holds, in sum."""

    size: int = 0  #: of the tar in bytes
    modified: int = 0  #: the tar's time in nanoseconds, 0 where it has none that means anything
    listed: Listed = Listed()
    faults: tuple[tuple[Mapping[str, int], int], ...] = ()
    """Of the samples that cannot be used: what one lists, and how many list that."""
    damage: tuple[str, str] | None = None  #: kind and message, when the tar goes no further

    def counts_like(self, other: Totals) -> bool:
        """Whether every reader finds as many examples in the one as in the other."""
        return (self.listed, self.faults) == (other.listed, other.faults)


def one(items: Mapping[str, int]) -> Listed:
    """What one sample lists."""
    return Listed(1, items, {x: int(n > 0) for x, n in items.items()})


def totals(found: Index) -> Totals:
    """An index, summed up."""
    entries = found.entries
    many = np.bincount(entries.kind, minlength=len(entries.kinds)).tolist()
    items, having = dict[str, int](), dict[str, int]()
    for kind, count in zip(entries.kinds, many, strict=True):
        for name, number in kind.items.items():
            items[name] = items.get(name, 0) + number * count
            having[name] = having.get(name, 0) + (count if number else 0)
    faults = ((k.items, n) for k, n in zip(entries.kinds, many, strict=True) if k.faulty)
    listed = Listed(len(entries), items, having)
    return Totals(found.size, found.modified, listed, tuple(faults), found.damage)


def places(folder: str) -> tuple[Path, Path]:
    """Where the summary of a folder's shards may lie: there, or among indexes kept elsewhere."""
    return Path(folder) / NAME, elsewhere(folder, index.folder())


def elsewhere(folder: str, into: str) -> Path:
    """The summary of a folder's shards in a folder of indexes."""
    place = Path(folder).resolve()
    return Path(into).expanduser() / f"{place.name}-{cache.digest(str(place))}.summary.json"


def load(place: Path) -> dict[str, Totals]:
    """The rows of a summary by the tar's name; none if there is no summary that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return parse(place.read_bytes())
    return {}


def add(folder: str, rows: Mapping[str, Totals], into: str = "") -> bool:
    """Add rows to the summary of a folder's shards, and drop those of tars that are gone.

    Args:
        folder: of the tars.
        rows: by the tar's name.
        into: folder of indexes; beside the tars when empty, or, where that cannot be written, where
            indexes of read-only stores are.

    Returns:
        Whether it could be written.
    """
    there = set(os.listdir(folder or "."))
    choice = (elsewhere(folder, into),) if into else places(folder)
    # two processes may do this at a time: what the later one does not know is summed up again
    return any(
        save(place, {n: t for n, t in {**load(place), **rows}.items() if n in there})
        for place in choice
    )


def parse(data: bytes) -> dict[str, Totals]:
    """The rows of a summary, by the tar's name.

    Raises:
        ValueError: it is none, or of another format.
    """
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            raise ValueError("another format")
        return {str(name): _totals(row) for name, row in content["shards"].items()}
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a summary ({type(error).__name__}: {error})") from None


def _totals(row: Any) -> Totals:
    size, modified, samples, items, having, faults, damage = row
    if any(n < 0 for n in (samples, *items.values(), *having.values(), *(n for _, n in faults))):
        raise ValueError("a count below zero")
    wrong = (str(damage[0]), str(damage[1])) if damage else None
    listed = Listed(samples, items, having)
    return Totals(int(size), int(modified), listed, tuple((x, n) for x, n in faults), wrong)


def save(place: Path, rows: Mapping[str, Totals]) -> bool:
    """Write a summary; False where that cannot be done."""
    content = {
        name: (t.size, t.modified, t.listed.samples, t.listed.items, t.listed.having, t.faults,
               t.damage)
        for name, t in sorted(rows.items())
    }  # fmt: skip
    return index.write(place, {"format": FORMAT, "shards": content})
