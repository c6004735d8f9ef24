"""The order of examples, as arithmetic.

A source holds ``N`` examples (a sample, or one listed item of it). In each epoch the shards are
permuted, all examples are laid on a line shard after shard, and the line is cut into ``V`` equal
arcs, one for each *virtual reader*; within an arc, windows of ``window`` examples are shuffled. A
reader goes along its arc epoch after epoch. So each reader touches few shards, shards of any size
(and fewer shards than readers) are fine, every example comes once in each epoch of its reader, and
the example at any place is found without having read those before it.

Micro-batch ``m`` of a source comes from reader ``m mod V``; ranks and workers only divide the
micro-batches among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from crossloom.units import Array, keyed_rng


@dataclass(frozen=True)
class Place:
    """Where an example lies."""

    epoch: int
    shard: int
    example: int  #: number of the example within the shard


class Order:
    """Who comes when, for one source."""

    def __init__(
        self, counts: Sequence[int], *, seed: int, readers: int = 64, window: int = 4096
    ) -> None:
        """Set up the order.

        Args:
            counts: examples in each shard.
            seed: of the shuffles.
            readers: number of virtual readers V; at most N are used.
            window: examples shuffled together within an arc, a pure memory bound: 8 bytes each.

        Raises:
            ValueError: there is no example.
        """
        self.counts = np.asarray(counts, np.int64)
        self.total = int(self.counts.sum())
        if self.total == 0:
            raise ValueError("no examples")
        self.seed, self.window = seed, window
        self.readers = min(readers, self.total)
        self._line = lru_cache(maxsize=8)(self._make_line)
        self._shuffled = lru_cache(maxsize=256)(self._make_shuffle)

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
        number, place = divmod(step, self.window)
        start = begin + number * self.window
        size = min(self.window, end - start)
        on_line = start + int(self._shuffled(epoch, start, size)[place])
        shards, starts = self._line(epoch)
        which = int(np.searchsorted(starts, on_line, side="right")) - 1
        return Place(epoch, int(shards[which]), on_line - int(starts[which]))

    def micro(self, number: int, examples: int) -> list[Place]:
        """The examples of one micro-batch."""
        reader, turn = number % self.readers, number // self.readers
        return [self.at(reader, turn * examples + i) for i in range(examples)]

    def _make_line(self, epoch: int) -> tuple[Array, Array]:
        """Shards with examples in the epoch's order, and where each begins on the line."""
        shards = keyed_rng(self.seed, "shards", epoch).permutation(np.flatnonzero(self.counts))
        counts = self.counts[shards]
        return shards, np.cumsum(counts) - counts

    def _make_shuffle(self, epoch: int, start: int, size: int) -> Array:
        return keyed_rng(self.seed, "window", epoch, start).permutation(size)
