"""Loading: micro-batch n of the run is a pure function of n; workers only make some ahead."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from crossloom.batch import Batch, fuse
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.data_pipelines.errors import WorkerError
from crossloom.data_pipelines.join import join
from crossloom.data_pipelines.mixture import Mixture
from crossloom.data_pipelines.order import Order, Place
from crossloom.data_pipelines.source import Defect, Source
from crossloom.processes import end_with_parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A mixture component, ready to read."""

    source: Source
    order: Order
    objectives: tuple[str, ...]


class Stack:
    """All micro-batches of a run: ``stack.micro(n)`` is the n-th."""

    def __init__(
        self, parts: Mapping[str, Part], mixture: Mixture, collator: Collator, examples: int
    ) -> None:
        self.parts, self.mixture, self.collator, self.examples = parts, mixture, collator, examples
        self._streams = {
            name: frozenset(s for o in part.objectives for s in collator.objectives[o].view.decoded)
            for name, part in parts.items()
        }

    @property
    def defects(self) -> tuple[Defect, ...]:
        """What is wrong with whole shards, each named once."""
        found = (d for part in self.parts.values() for d in part.source.defects)
        return tuple(dict.fromkeys(found))

    def fingerprints(self) -> dict[str, str]:
        """By component, what its order of examples follows from beside the recipe."""
        return {name: part.source.fingerprint() for name, part in self.parts.items()}

    @property
    def advice(self) -> list[str]:
        """What about the data should be mended, though the run can go on."""
        hints = (p.source.crowded(p.order.readers) for p in self.parts.values())
        return [hint for hint in hints if hint]

    @property
    def live(self) -> list[str]:
        """Components that read a live stream, whose order cannot be had again."""
        return [name for name, part in self.parts.items() if part.source.live]

    def places(self, number: int) -> tuple[str, list[Place]]:
        """Component and places of a micro-batch, without touching data."""
        name, own = self.mixture.at(number)
        return name, self.parts[name].order.micro(own, self.examples)

    def keys(self, number: int) -> tuple[str, list[str]]:
        """Component and example keys of a micro-batch, without touching data."""
        name, places = self.places(number)
        return name, [self.parts[name].source.key(p)[0] for p in places]

    def shards(self, number: int) -> list[str]:
        """The shards that a micro-batch is read from."""
        name, places = self.places(number)
        source = self.parts[name].source
        return list(dict.fromkeys(source.shards[p.shard].shown for p in places))

    def micro(self, number: int) -> Batch:
        """The micro-batch; bad samples are left out and listed."""
        return replace(self.made(*self.places(number)), micro=(number,))

    def first(self, name: str, count: int) -> list[Batch]:
        """A component's own first micro-batches, whenever the run comes to them."""
        order = self.parts[name].order
        return [self.made(name, order.micro(own, self.examples)) for own in range(count)]

    def made(self, name: str, places: Sequence[Place]) -> Batch:
        """A micro-batch of a component's examples at places."""
        part = self.parts[name]
        found = _look(part.source, places, self.collator, self._streams[name])
        good = _examples(part.source, found, self.collator, self._streams[name])
        batch = self.collator.batch(good, part.objectives, self.examples)
        return replace(
            batch,
            component=(name,),
            defects=tuple(x for x in found if isinstance(x, Defect)),
            marks=bytes(isinstance(x, Defect) for x in found),
        )


def decode(
    source: Source, places: Sequence[Place], collator: Collator, streams: frozenset[str]
) -> tuple[list[Example], list[Defect]]:
    """Examples at places: the good ones, and what is wrong with the others."""
    found = _look(source, places, collator, streams)
    good = _examples(source, found, collator, streams)
    return good, [x for x in found if isinstance(x, Defect)]


def _examples(
    source: Source,
    found: Sequence[Example | Defect],
    collator: Collator,
    streams: frozenset[str],
) -> list[Example]:
    good = [x for x in found if isinstance(x, Example)]
    return join(good, collator.modalities, streams) if source.reader.joined else good


def _look(
    source: Source, places: Sequence[Place], collator: Collator, streams: frozenset[str]
) -> list[Example | Defect]:
    return [source.example(p, collator.modalities, streams, collator.seed, places) for p in places]


@dataclass(frozen=True)
class Shares:
    """Which micro-batches of each step this process runs, and how they are grouped.

    A step is ``micro`` micro-batches; process ``rank`` of ``world`` takes every ``world``-th, and
    runs ``fused`` of them in one forward pass.
    """

    micro: int
    rank: int = 0
    world: int = 1
    fused: int = 0  #: 0: all of its share at once

    def __post_init__(self) -> None:
        if self.micro % self.world:
            raise ValueError(
                f"micro: {self.micro} micro-batches a step cannot be shared by {self.world} "
                f"processes; set micro to a multiple of {self.world}"
            )
        if self.fused and self.own % self.fused:
            raise ValueError(f"fused: {self.fused} does not divide a process's share of {self.own}")

    @property
    def own(self) -> int:
        """Micro-batches of this process in each step."""
        return self.micro // self.world

    @property
    def passes(self) -> int:
        """Forward passes of this process in each step."""
        return self.own // (self.fused or self.own)

    def of_step(self, step: int) -> list[list[int]]:
        """Groups of micro-batches of one step, each one forward pass."""
        mine = range(step * self.micro + self.rank, (step + 1) * self.micro, self.world)
        size = self.fused or self.own
        return [list(mine[i : i + size]) for i in range(0, len(mine), size)]


@dataclass(frozen=True)
class Failed:
    """What ended the making of a batch; raised where the batch is asked for.

    An exception that leaves a worker by itself arrives as a page of traceback.
    """

    error: ValueError


class _Passes(Dataset["Batch | Failed"]):
    """Item i: the i-th forward pass of this process, its micro-batches fused into one batch."""

    def __init__(self, stack: Any, shares: Shares, steps: range) -> None:
        self.stack, self.shares, self.steps = stack, shares, steps
        self._of_units = stack.collator.of_units()

    def __len__(self) -> int:
        return len(self.steps) * self.shares.passes

    def __getitem__(self, item: int) -> Batch | Failed:
        step, group = divmod(item, self.shares.passes)
        numbers = self.shares.of_step(self.steps[step])[group]
        try:
            return fuse([self.stack.micro(n) for n in numbers], self._of_units)
        except ValueError as error:  # torch would hand on a page of it
            return Failed(error)


def load(
    stack: Any, shares: Shares, steps: range, *, workers: int, pin: bool = False
) -> Iterator[list[Batch]]:
    """The batches of each step, in order, made by worker processes (in this one if 0).

    Raises:
        ShardError: a shard cannot be had.
        ValueError: a reader, a view and an objective do not fit each other.
        RuntimeError: of torch, when a worker was killed: see :func:`killed`.
    """
    loader: DataLoader[Batch | Failed] = DataLoader(
        _Passes(stack, shares, steps),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        # what a stack remembers of its order cannot be sent to a process that is started anew
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        collate_fn=_same,
        worker_init_fn=_quiet if workers else None,
        generator=torch.Generator().manual_seed(0),
    )
    batches = iter(loader)
    for _ in steps:
        yield [_good(next(batches)) for _ in range(shares.passes)]


def _good(found: Batch | Failed) -> Batch:
    if isinstance(found, Failed):
        raise found.error
    return found


def killed(error: RuntimeError) -> WorkerError | None:
    """What torch says when a loader process dies, in words that help; None for other errors.

    Torch says so from a signal handler: it may be raised anywhere, not only where batches are
    waited for.
    """
    said = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", str(error))
    if said is None:
        return None
    pid, how = said[1], said[2]
    if "Bus error" in how:
        cause = "there is too little shared memory (/dev/shm); make it larger or set workers=0"
    elif "Killed" in how or "unexpectedly" in how:
        cause = "most often because memory ran out; lower workers, or examples and window"
    else:
        cause = "it broke down; run with workers=0 to see where"
    return WorkerError(
        f"a process that loads data (pid {pid}) was ended by the system: "
        f"{how.strip().rstrip('.')}; {cause}; then go on with --resume"
    )


def _same(batch: Any) -> Any:
    return batch


def _quiet(worker: int) -> None:
    """One thread a worker: they are many, and their arrays are small.

    Launchers signal whole groups of processes. A worker that died of SIGTERM would end the run
    before its checkpoint is written, so workers leave the group. They end with their parent: one
    that has a batch to hand over would otherwise wait for ever for somebody to take it.
    """
    parent = multiprocessing.parent_process()
    end_with_parent(parent.pid if parent else None)
    torch.set_num_threads(1)
    os.setpgid(0, 0)
    if sys.__stderr__ is not None:  # the guard asks where it stands
        faulthandler.register(signal.SIGUSR2, file=sys.__stderr__, all_threads=True)
