"""A source: shards read by one reader, example by example, in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.order import Order, Place
from crossloom.data_pipelines.read import Labels, Reader
from crossloom.data_pipelines.shards import Shard, ShardError
from crossloom.modalities.modality import Modality
from crossloom.units import BadSample, Passage, Sample, keyed_rng

Defect = tuple[str, str, str]  #: (example, kind, message)


class Source:
    """Examples of one component, found by place."""

    def __init__(self, name: str, shards: tuple[Shard, ...], reader: Reader) -> None:
        """Count the examples of each shard.

        Raises:
            ShardError: no sample gives the reader an example.
        """
        self.name, self.shards, self.reader = name, shards, reader
        self.ends = [
            np.cumsum([reader.items(e) for e in s.entries], dtype=np.int64) for s in shards
        ]
        self.counts = [int(e[-1]) if len(e) else 0 for e in self.ends]
        if sum(self.counts) == 0:
            raise ShardError(
                f"{name}: {len(shards)} shards from {shards[0].path} hold no example for reader "
                f"{reader.kind!r}; look at them with `crossloom shards show`"
            )

    def __len__(self) -> int:
        return sum(self.counts)

    def locate(self, place: Place) -> tuple[Shard, int, int]:
        """Shard, number of the sample in it, and item of the sample."""
        ends = self.ends[place.shard]
        sample = int(np.searchsorted(ends, place.example, side="right"))
        before = int(ends[sample - 1]) if sample else 0
        return self.shards[place.shard], sample, place.example - before

    def key(self, place: Place) -> tuple[str, str]:
        """The example's key and its sample's, without touching data."""
        shard, sample, item = self.locate(place)
        entry = shard.entries[sample]
        name = f"{Path(shard.path).stem}/{entry.key}"
        return (f"{name}#{item}" if self.reader.items(entry) > 1 else name), name

    def example(
        self,
        place: Place,
        modalities: Mapping[str, Modality],
        streams: frozenset[str],
        seed: int,
        others: Sequence[Place] = (),
    ) -> Example | Defect:
        """Read and decode one example, or say what is wrong with it.

        Args:
            place: where it lies.
            modalities: by stream.
            streams: the streams decoded.
            seed: of all draws, with the epoch and the example's key.
            others: the micro-batch's places: where a mismatched second passage may come from.
        """
        shard, number, _ = self.locate(place)
        key, name = self.key(place)
        try:
            sample, labels = self._read(place, seed)
            if self.reader.mismatched:
                second = self._foreign(place, seed, others)
                labels = {**labels, "matched": second is None}
                if second is not None:
                    sample = {**sample, "text": (sample["text"][0], second)}
            units = {}
            for stream, modality in modalities.items():
                if stream in streams:
                    units[stream] = modality.decode(
                        sample, keyed_rng(seed, place.epoch, key, stream)
                    )
                    if len(units[stream]) == 0:
                        raise BadSample("empty stream", f"{stream}: no units")
        except BadSample as error:
            return key, error.kind, f"{shard.path}: {shard.entries[number].key}: {error}"
        return Example(key=key, sample=name, epoch=place.epoch, units=units, labels=labels)

    def _read(self, place: Place, seed: int) -> tuple[Sample, Labels]:
        shard, number, item = self.locate(place)
        rng = keyed_rng(seed, place.epoch, self.key(place)[0], "read")
        return self.reader.read(shard.read(number), item, rng)

    def _foreign(self, place: Place, seed: int, others: Sequence[Place]) -> Passage | None:
        """The second passage of another sample, or None where the example stays matched."""
        key, name = self.key(place)
        rng = keyed_rng(seed, place.epoch, key, "mismatch")
        if rng.random() >= self.reader.mismatched:
            return None
        for number in rng.permutation(len(others)):
            other = others[int(number)]
            if self.key(other)[1] == name:
                continue
            try:
                sample, _ = self._read(other, seed)
            except BadSample:
                continue  # it is counted where it is an example itself
            return cast(Passage, sample["text"][1])
        return None

    def order(self, seed: int, readers: int, window: int, examples: int) -> Order:
        """The order in which training meets the examples.

        With little data there are fewer readers, so that each has four micro-batches of
        ``examples`` to itself: a reader with less than one would repeat examples in a batch.
        """
        readers = max(1, min(readers, len(self) // (4 * examples)))
        return Order(self.counts, seed=seed, readers=readers, window=window)

    def places(self) -> list[Place]:
        """Every example once, as stored (evaluation)."""
        return [
            Place(0, shard, example)
            for shard, count in enumerate(self.counts)
            for example in range(count)
        ]
