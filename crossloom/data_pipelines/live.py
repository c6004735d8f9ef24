"""Live streams: samples in the order in which a command produces them.

``live:COMMAND`` in a recipe's ``shards`` is a command that writes a tar for as long as it likes.
There is nothing to index: examples come as they arrive, and a resumed run goes on with whatever
comes then. Each loader process starts the command for itself, with its number in
``CROSSLOOM_READER`` and how many there are in ``CROSSLOOM_READERS``: producers should give each
its own share. A command that ends is started again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from torch.utils.data import get_worker_info

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.index import Entry
from crossloom.data_pipelines.order import Order, Place
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.remote import Command, Patience, RemoteError
from crossloom.data_pipelines.shards import Shard
from crossloom.data_pipelines.source import Defect, Source, defect, units_of, visit
from crossloom.data_pipelines.tars import (
    DamagedTar,
    Forward,
    count_items,
    countable,
    split_name,
    unsafe,
    walk,
)
from crossloom.modalities.modality import Modality
from crossloom.units import BadSample, keyed_rng

PREFIX = "live:"
_LARGEST = 1 << 30  # bytes of a member
_FRUITLESS = 3  # starts in a row that give no sample

Found = tuple[str, dict[str, bytes], "tuple[str, str] | None"]  #: key, members, fault


class LiveOrder(Order):
    """The places of a stream: they only count."""

    def __init__(self) -> None:
        self.readers = 1

    def micro(self, number: int, examples: int) -> list[Place]:
        """The examples of one micro-batch."""
        return [Place(0, 0, number * examples + i) for i in range(examples)]


class LiveSource(Source):
    """Examples of a component that reads commands' output as it comes."""

    live = True

    def __init__(self, name: str, commands: tuple[str, ...], reader: Reader) -> None:
        """Nothing is started yet.

        Raises:
            ShardError: the reader wants passages of other samples, which a stream has not.
        """
        if reader.mismatched:
            raise ShardError(
                f"{name}: a live stream has no other samples to take a second passage from; set "
                "the reader's `mismatched` to 0, or use shards"
            )
        self.name, self.reader, self.shards = name, reader, ()
        self.commands = tuple(c.removeprefix(PREFIX) for c in commands)
        self.counts = []
        self._stream: Iterator[tuple[Shard, Found, int]] | None = None
        self._process = 0

    def __len__(self) -> int:
        raise TypeError(f"{self.name}: a live stream has no length")

    def order(self, seed: int, readers: int, window: int, examples: int) -> Order:
        """Places that count up."""
        return LiveOrder()

    def key(self, place: Place) -> tuple[str, str]:
        """A number stands for what will come."""
        return (f"live/{place.example}",) * 2

    def example(
        self,
        place: Place,
        modalities: Mapping[str, Modality],
        streams: frozenset[str],
        seed: int,
        others: Sequence[Place] = (),
    ) -> Example | Defect:
        """Whatever comes next, decoded with randomness keyed on the place."""
        if self._stream is None or self._process != os.getpid():
            self._stream, self._process = self._arriving(), os.getpid()
        shard, (key, members, fault), item = next(self._stream)
        try:
            if fault:
                raise BadSample(*fault)
            name = f"live/{key}@{place.example}"
            rng = keyed_rng(seed, place.epoch, name, "read")
            sample, labels = visit(self.reader, members, item, rng)
            units = units_of(
                sample, name, place.epoch, modalities, streams, seed, self.reader.joined
            )
        except BadSample as error:
            return defect(shard, key, error, members)
        return Example(key=name, sample=name, epoch=place.epoch, units=units, labels=labels)

    def _arriving(self) -> Iterator[tuple[Shard, Found, int]]:
        """Each item of each sample, for ever."""
        idle, turn = 0, 0
        while True:
            command = self.commands[turn % len(self.commands)]
            shard, turn, any_came = Shard(PREFIX + command), turn + 1, False
            for found in samples(command):
                key, members, fault = found
                texts = {n: countable(m) for n, m in members.items() if n.endswith("txt")}
                counted = count_items(members.get("json", b"null"), texts)
                count = self.reader.items(Entry(key, dict.fromkeys(members, (0, 0)), counted))
                any_came = any_came or (fault is None and count > 0)
                for item in range(count or int(fault is not None)):
                    yield shard, found, item
            idle = 0 if any_came else idle + 1
            if idle == _FRUITLESS:
                raise ShardError(
                    f"{shard.path}: ended {idle} times without a sample; run the command alone and "
                    "look at what it writes (a tar is expected)"
                )


def samples(line: str) -> Iterator[Found]:
    """The samples of one run of a command; members of a sample must follow one another.

    Damage ends it, and comes as a last sample with a fault.

    Raises:
        ShardError: the command writes nothing for a long time.
    """
    patience, key = Patience.chosen(), ""
    worker = get_worker_info()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    number, count = (worker.id, worker.num_workers) if worker else (0, 1)
    own = {"CROSSLOOM_READER": rank * count + number, "CROSSLOOM_READERS": world * count}
    members: dict[str, bytes] = {}
    fault: tuple[str, str] | None = None
    with Command(line, **{k: str(v) for k, v in own.items()}) as command:
        file = Forward(_Output(command, patience.total, line))
        try:
            for member in walk(file):
                split = split_name(member.name)
                trick = unsafe(member.name)
                if split is None and not trick:
                    continue
                if member.size > _LARGEST:
                    raise DamagedTar("damaged header", f"{member.name}: {member.size} bytes")
                this, extension = split or (member.name, "")
                if (this != key or extension in members) and members:
                    yield key, members, fault
                    members, fault = {}, None
                key = this
                if trick or not member.file:
                    fault = ("path trick", f"{member.name!r} {trick or 'is a link or device'}")
                members[extension] = file.read(member.size if member.file else 0)
                if member.file and len(members[extension]) < member.size:
                    raise DamagedTar("truncated shard", f"it ends inside {member.name}")
        except DamagedTar as error:
            if error.kind != "truncated shard" or "without an end mark" not in str(error):
                yield key, {}, (error.kind, f"{error}{command.last_words()}")
                return
        if members:
            yield key, members, fault


class _Output:
    def __init__(self, command: Command, patience: float, line: str) -> None:
        self.command, self.patience, self.line = command, patience, line

    def read(self, size: int, /) -> bytes:
        try:
            return self.command.read(min(size, 1 << 20), self.patience)
        except TimeoutError as error:
            raise RemoteError(
                f"{PREFIX}{self.line}: {error}; start again with --resume, or let it take longer "
                "with CROSSLOOM_PATIENCE"
            ) from None

    def seek(self, offset: int, /) -> int:
        raise OSError("a stream")


def is_live(patterns: str | tuple[str, ...]) -> bool:
    """Whether a component's shards are live streams.

    Raises:
        ShardError: some are and some are not.
    """
    found = [p.startswith(PREFIX) for p in ([patterns] if isinstance(patterns, str) else patterns)]
    if any(found) and not all(found):
        raise ShardError("live streams and shards cannot be one component; make two of them")
    return any(found)
