"""A source: shards read by one reader, example by example, in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from crossloom.data_pipelines import cache
from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.layouts import misnamed
from crossloom.data_pipelines.order import VERSION, Order, Place, divide
from crossloom.data_pipelines.reader import Labels, Reader
from crossloom.data_pipelines.recent import Recent
from crossloom.data_pipelines.shards import Entry, Shard, ShardError
from crossloom.data_pipelines.summary import Listed, one
from crossloom.modalities.modality import Modality
from crossloom.units import Array, BadSample, Defect, Passage, Sample, Units, keyed_rng

__all__ = ["Defect", "Source"]


#: Samples whose place among the examples of their shard is kept in memory, 8 bytes each.
_ROOM = 2 << 20


class _Found(NamedTuple):
    """An example found by its place."""

    shard: Shard
    entry: Entry
    item: int
    key: str  #: of the example
    name: str  #: of the sample


class Source:
    """Examples of one component, found by place."""

    live = False  #: whether what comes cannot be read again

    def __init__(self, name: str, shards: tuple[Shard, ...], reader: Reader) -> None:
        """Count the examples of each shard.

        Raises:
            ShardError: no sample gives the reader an example.
        """
        self.name, self.shards, self.reader = name, shards, reader
        self._ends: Recent[int, Array] = Recent(_ROOM)
        self.counts: list[int] = []
        for number in range(len(shards)):
            self.counts.append(self._count(number))
        if sum(self.counts) == 0:
            raise ShardError(
                f"{name}: {len(shards)} shards from {shards[0].shown} hold no example for reader "
                f"{reader.kind!r}; look at them with `crossloom shards show`"
            )

    def _count(self, number: int) -> int:
        """The examples of a shard, by what its samples list in sum if the reader can tell."""
        totals = self.shards[number].totals
        many = self.reader.total(totals.listed)
        if many is None:
            ends = self.ends(number)
            return int(ends[-1]) if len(ends) else 0
        return many + sum(n for x, n in totals.faults if not self.reader.total(one(x)))

    def ends(self, number: int) -> Array:
        """Examples of a shard up to and with each of its samples, ``[samples]`` int64.

        Raises:
            ShardError: the shard or its index cannot be had.
        """
        return self._ends.get(number, lambda: self._find_ends(number))

    def _find_ends(self, number: int) -> tuple[Array, int]:
        entries = self.shards[number].entries
        kinds = [self.reader.total(one(k.items)) for k in entries.kinds]
        if any(n is None for n in kinds):
            each = np.array([self._items(e) for e in entries], np.int64)
        else:
            faulty = [int(k.faulty) for k in entries.kinds]
            each = np.array([n or f for n, f in zip(kinds, faulty, strict=True)], np.int64)
            each = each[entries.kind]
        if number < len(self.counts) and each.sum() != self.counts[number]:
            raise ShardError(
                f"{self.shards[number].shown}: reader {self.reader.kind!r} counts "
                f"{self.counts[number]} examples in all and {each.sum()} one by one; its `total` "
                "must be the sum of its `items`"
            )
        return np.cumsum(each), 16 + len(each)

    def _items(self, entry: Entry) -> int:
        # a sample that cannot be used keeps a place, so that it is met and counted
        return self.reader.items(entry) or int(entry.fault is not None)

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with whole shards; with samples, it is found when they are read."""
        return tuple(d for s in self.shards for d in s.defects)

    def __len__(self) -> int:
        return sum(self.counts)

    def languages(self) -> set[str]:
        """Languages that its texts may be in, by what samples list in sum."""
        return self.reader.spoken(Listed()).union(
            *(self.reader.spoken(s.totals.listed) for s in self.shards)
        )

    def fingerprint(self) -> str:
        """What the order follows from beside the recipe.

        That is the version of its arithmetic, and a hash of the shards' names and of how many
        examples each holds. See :func:`changed`.
        """
        told = [f"{s.name}:{n}" for s, n in zip(self.shards, self.counts, strict=True)]
        return f"{VERSION}:{blake2b(chr(10).join(told).encode(), digest_size=8).hexdigest()}"

    def crowded(self, readers: int) -> str:
        """What to mend when the cache is too small for what the readers walk along, or ``""``."""
        far = [s.size for s in self.shards if s.remote]
        need = min(len(far), 2 * readers) * max(far, default=0)
        if not far or min(need, sum(far)) <= cache.limit():
            return ""
        return (
            f"{self.name}: {readers} readers walk along {need / 1e9:.1f} GB of remote shards at a "
            f"time, and the cache holds {cache.limit() / 1e9:g} GB: shards will be fetched again "
            "and again; raise CROSSLOOM_CACHE_GB or lower `readers`"
        )

    def locate(self, place: Place) -> tuple[Shard, int, int]:
        """Shard, number of the sample in it, and item of the sample."""
        return self.shards[place.shard], *self._find(place)[:2]

    def _find(self, place: Place) -> tuple[int, int, int]:
        """Number of the sample in the shard, item of the sample, and how many it has."""
        ends = self.ends(place.shard)
        sample = int(np.searchsorted(ends, place.example, side="right"))
        before = int(ends[sample - 1]) if sample else 0
        return sample, place.example - before, int(ends[sample]) - before

    def key(self, place: Place) -> tuple[str, str]:
        """The example's key and its sample's, without touching data."""
        found = self._found(place)
        return found.key, found.name

    def _found(self, place: Place) -> _Found:
        shard = self.shards[place.shard]
        sample, item, items = self._find(place)
        entry = shard.entries[sample]
        name = f"{shard.name}/{entry.key}"
        return _Found(shard, entry, item, f"{name}#{item}" if items > 1 else name, name)

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
        shard, entry, item, key, name = self._found(place)
        members: Mapping[str, bytes] = {}
        try:
            members = shard.members(entry)
            rng = keyed_rng(seed, place.epoch, key, "read")
            sample, labels = visit(self.reader, members, item, rng)
            if self.reader.mismatched:
                second = self._foreign(place, seed, others, sample["text"][1])
                labels = {**labels, "matched": second is None}
                if second is not None:
                    sample = {**sample, "text": (sample["text"][0], second)}
            units = units_of(
                sample, key, place.epoch, modalities, streams, seed, self.reader.joined
            )
        except BadSample as error:
            return defect(shard, entry.key, error, members)
        return Example(key=key, sample=name, epoch=place.epoch, units=units, labels=labels)

    def _foreign(
        self, place: Place, seed: int, others: Sequence[Place], own: Passage
    ) -> Passage | None:
        """The second passage of another sample, or None where the example stays matched."""
        key, name = self.key(place)
        rng = keyed_rng(seed, place.epoch, key, "mismatch")
        if rng.random() >= self.reader.mismatched:
            return None
        for number in rng.permutation(len(others)):
            other = others[int(number)]
            shard, entry, item, its_key, its_name = self._found(other)
            if its_name == name:
                continue
            its_rng = keyed_rng(seed, other.epoch, its_key, "read")
            try:
                with _as_built_for(self.reader):
                    second = self.reader.stand_in(own, shard.members(entry), item, its_rng)
            except BadSample:
                continue  # it is counted where it is an example itself
            if second is not None:
                return second
        return None

    def order(self, seed: int, readers: int, window: int, examples: int) -> Order:
        """The order in which training meets the examples, by ``readers`` readers at most."""
        readers, together = divide(len(self), readers, window, examples)
        return Order(self.counts, seed=seed, readers=readers, window=window, together=together)

    def places(self) -> list[Place]:
        """Every example once, as stored (evaluation)."""
        return [
            Place(0, shard, example)
            for shard, count in enumerate(self.counts)
            for example in range(count)
        ]


def changed(before: str, now: str) -> str:
    """Why the order of examples is another one than when a fingerprint was taken, or ``""``.

    >>> changed("2:ab", "2:ab"), changed("2:ab", "2:cd")
    ('', 'its shards hold other numbers of examples than')
    """
    versions = [told.rpartition(":")[0] or "1" for told in (before, now)]
    if versions[0] != versions[1]:
        return (
            f"its order is found by arithmetic {versions[1]}, and was by arithmetic {versions[0]}"
        )
    return "" if before == now else "its shards hold other numbers of examples than"


def units_of(
    sample: Sample,
    key: str,
    epoch: int,
    modalities: Mapping[str, Modality],
    streams: frozenset[str],
    seed: int,
    loose: bool = False,
) -> dict[str, Units]:
    """The units of an example, by stream; ``loose``: not cut, to be joined with others.

    Raises:
        BadSample: a modality cannot use it, or finds nothing in it.
    """
    units = {}
    for stream, modality in modalities.items():
        if stream in streams:
            decode = modality.loose if loose else modality.decode
            units[stream] = decode(sample, keyed_rng(seed, epoch, key, stream))
            if len(units[stream]) == 0:
                raise BadSample("empty stream", f"{stream}: no units")
    return units


def visit(
    reader: Reader, members: Mapping[str, bytes], item: int, rng: np.random.Generator
) -> tuple[Sample, Labels]:
    """What a reader makes of a sample.

    Raises:
        BadSample: it cannot use it; "wrong shape" when its json is built in another way.
    """
    with _as_built_for(reader):
        sample, labels = reader.read(members, item, rng)
    return ({**sample, "task": reader.task} if reader.task else sample), labels


@contextmanager
def _as_built_for(reader: Reader) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # a json that anybody may have written, where an object stands for a list, or the like
        raise BadSample(
            "wrong shape",
            f"json: not built as reader {reader.kind!r} expects ({type(error).__name__}: {error})",
        ) from None


def defect(shard: Shard, key: str, error: BadSample, members: Mapping[str, bytes]) -> Defect:
    """What is wrong with a sample, for the lists; a wrong extension is named as such."""
    wrong = misnamed(members) if error.kind == "undecodable" else ""
    if wrong:
        return Defect(shard.shown, key, "wrong extension", wrong)
    message = re.sub(r" at 0x[0-9a-f]+", "", str(error))  # the same in every run
    return Defect(shard.shown, key, error.kind, message)
