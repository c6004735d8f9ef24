"""The order of examples, as arithmetic.

A source holds ``N`` examples (a sample, or one listed item of it). In each epoch the shards are
permuted, all examples are laid on a line shard after shard, and the line is cut into ``V`` equal
arcs, one for each *virtual reader*; an arc is cut into equal windows of at most ``window``
examples, and each is shuffled. A reader goes along its arc epoch after epoch. So each reader
touches few shards, shards of any size (and fewer shards than readers) are fine, every example comes
once in each epoch of its reader, and the example at any place is found without having read those
before it.

The readers form groups of ``together``; those of a group lie far apart on the line. Micro-batch
``m`` of a source takes equal parts from the readers of group ``m mod (V / together)``; ranks and
workers only divide the micro-batches among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from crossloom.units import Array, keyed_rng

#: Version of this arithmetic: runs saved under another one go on with other examples.
VERSION = 2
#: Most readers that a micro-batch draws from: each costs a process one more shard at a time.
TOGETHER = 16


@dataclass(frozen=True)
class Place:
    """Where an example lies."""

    epoch: int
    shard: int
    example: int  #: number of the example within the shard


def divide(total: int, readers: int, window: int, examples: int) -> tuple[int, int]:
    """How many readers a source has, and how many of them share a micro-batch.

    As many readers as there are windows, ``readers`` at most: a source that one window holds has
    one reader, and is shuffled perfectly. A micro-batch draws from all of them, or 16, equally: the
    number divides ``examples``. Groups are so few that each has four micro-batches an epoch, so
    that none holds an example twice (but where it spans the end of one epoch and the next).

    Args:
        total: examples of the source.
        readers: most readers.
        window: most examples shuffled together.
        examples: in a micro-batch.
    """
    wanted = min(readers, -(-total // window))
    shares = [n for n in range(1, min(readers, TOGETHER, total) + 1) if examples % n == 0]
    together = next((n for n in shares if n >= wanted), shares[-1])
    groups = min(-(-wanted // together), readers // together, total // (4 * examples))
    return together * max(1, groups), together


class Order:
    """Who comes when, for one source."""

    def __init__(
        self,
        counts: Sequence[int] | Array,
        *,
        seed: int,
        readers: int = 64,
        window: int = 4096,
        together: int = 1,
    ) -> None:
        """Set up the order.

        Args:
            counts: examples in each shard.
            seed: of the shuffles.
            readers: number of virtual readers V; at most N are used.
            window: most examples shuffled together within an arc; 2 bytes each.
            together: readers that share each micro-batch.

        Raises:
            ValueError: there is no example, or readers cannot be grouped so.
        """
        self.counts = np.asarray(counts, np.int64)
        self.total = int(self.counts.sum())
        if self.total == 0:
            raise ValueError("no examples")
        self.seed, self.window, self.together = seed, window, together
        self.readers = min(readers, self.total)
        if self.readers % together:
            raise ValueError(f"{self.readers} readers cannot form groups of {together}")
        self._line = lru_cache(maxsize=8)(self._make_line)
        self._shuffled = lru_cache(maxsize=1024)(self._make_shuffle)

    def arc(self, reader: int) -> tuple[int, int]:
        """Begin and end of a reader's arc on the line of examples."""
        return (
            reader * self.total // self.readers,
            (reader + 1) * self.total // self.readers,
        )

    def at(self, reader: int, position: int) -> Place:
        """The example that a reader meets at a position of its endless walk."""
        begin, end = self.arc(reader)
        epoch, step = divmod(position, end - begin)
        # windows of equal size: a short last one would come from a single shard
        windows = -(-(end - begin) // self.window)
        number = ((step + 1) * windows - 1) // (end - begin)
        first, after = (n * (end - begin) // windows for n in (number, number + 1))
        start = begin + first
        on_line = start + int(self._shuffled(epoch, start, after - first)[step - first])
        shards, starts = self._line(epoch)
        which = int(np.searchsorted(starts, on_line, side="right")) - 1
        return Place(epoch, int(shards[which]), on_line - int(starts[which]))

    def micro(self, number: int, examples: int) -> list[Place]:
        """The examples of one micro-batch, a turn of each reader after the other.

        Raises:
            ValueError: its readers cannot share it equally.
        """
        share, rest = divmod(examples, self.together)
        if rest:
            raise ValueError(f"{self.together} readers cannot share {examples} examples equally")
        groups = self.readers // self.together
        turn, group = divmod(number, groups)
        return [
            self.at(group + groups * member, turn * share + i)
            for i in range(share)
            for member in range(self.together)
        ]

    def _make_line(self, epoch: int) -> tuple[Array, Array]:
        """Shards with examples in the epoch's order, and where each begins on the line."""
        shards = keyed_rng(self.seed, "shards", epoch).permutation(np.flatnonzero(self.counts))
        counts = self.counts[shards]
        return shards, np.cumsum(counts) - counts

    def _make_shuffle(self, epoch: int, start: int, size: int) -> Array:
        found = keyed_rng(self.seed, "window", epoch, start).permutation(size)
        return found.astype(np.uint16 if size <= 1 << 16 else np.int64)
