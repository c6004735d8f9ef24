"""Bad samples of a run: counted, listed once each, and the limits past which the run ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossloom.batch import Batch
from crossloom.training.checkpoint import write_atomically
from crossloom.training.recipe import Recipe
from crossloom.units import Defect

_ENOUGH = 1000  #: examples before which a share of bad ones says nothing


class RunError(RuntimeError):
    """A run that cannot go on: the message says why and what to do."""


@dataclass
class Badness:
    """Bad samples so far, and whether they are too many.

    A sample counts each time it is met, a damaged shard once.
    """

    recipe: Recipe
    shards: Sequence[Defect] = ()  #: what is wrong with whole shards
    total: int = 0  #: bad samples met by all processes
    seen: int = 0  #: examples met by all processes, bad or not
    in_a_row: int = 0  #: bad samples since the last good one, on this process
    kinds: Counter[str] = field(default_factory=Counter)  #: bad samples met by this process
    last: Defect | None = None
    _most: int = 0  # of in_a_row, ever: more than allowed ends the run
    _new: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def take(self, batch: Batch) -> None:
        """Count one batch of this process; :meth:`settle` follows."""
        bad, good = len(batch.defects), len(batch.keys)
        for mark in batch.marks:
            self.in_a_row = self.in_a_row + 1 if mark else 0
            self._most = max(self._most, self.in_a_row)
        self.kinds.update(d.kind for d in batch.defects)
        self.last = batch.defects[-1] if batch.defects else self.last
        self._new = [self._new[0] + bad, self._new[1] + bad + good]

    def pending(self) -> list[float]:
        """What :meth:`settle` wants, of this process: to be summed over all processes."""
        return [*self._new, float(self._most > self.recipe.bad_in_a_row)]

    def settle(self, bad: float, seen: float, ended: float) -> None:
        """Take in the sums over all processes, so that all end alike.

        Raises:
            RunError: past the recipe's limits.
        """
        self.total, self.seen, self._new = self.total + int(bad), self.seen + int(seen), [0.0, 0.0]
        if not bad:
            return
        if ended:
            count = max(self._most, self.recipe.bad_in_a_row + 1)
            raise RunError(f"{count} bad samples in a row (bad_in_a_row allows "
                           f"{self.recipe.bad_in_a_row}); {self._advice()}")  # fmt: skip
        total = self.total + len(self.shards)
        if self.seen >= _ENOUGH and total > self.recipe.bad_share * self.seen:
            raise RunError(f"{total} of {self.seen} samples are bad (bad_share allows "
                           f"{self.recipe.bad_share:.1%}); {self._advice()}")  # fmt: skip

    def end(self) -> None:
        """At the end of a run, however short.

        Raises:
            RunError: nothing was trained on.
        """
        if self.seen and self.total == self.seen:
            raise RunError(
                f"none of the {self.seen} samples met could be used, so nothing was learned; "
                + self._advice()
            )

    def _advice(self) -> str:
        here = "met by another process"
        if self.last:
            here = f"the last here: {self.last.shard}: {self.last.key}: {self.last.message}"
        return f"{said(self.kinds)}; {here}; see quarantine.jsonl and `crossloom shards check`"

    def all_kinds(self, others: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Counts by kind over all processes and shards; ``others`` has each process's."""
        total = Counter(d.kind for d in self.shards)
        for one in others:
            total.update(one)
        return dict(sorted(total.items()))


def said(kinds: Mapping[str, int]) -> str:
    """Counts by kind in a phrase: ``7 undecodable, 5 missing member``."""
    return ", ".join(f"{n} {k}" for k, n in sorted(kinds.items(), key=lambda x: (-x[1], x[0])))


class Quarantine:
    """``quarantine.jsonl``: each bad sample once, with the step that first met it.

    Process 0 writes that file, process *n* ``quarantine-n.jsonl``.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        """Open for appending; :meth:`prepare` has been called."""
        name = f"quarantine-{rank}.jsonl" if rank else "quarantine.jsonl"
        self.path = folder / name
        self._known = {_identity(x) for x in _lines(folder / "quarantine.jsonl")}

    @staticmethod
    def prepare(folder: Path, after: int, shards: Sequence[Defect]) -> None:
        """Bring the lists of a run that goes on after a step into one; list damaged shards."""
        kept = {_identity(x): x for x in (_line(0, d) for d in shards)}
        paths = sorted(folder.glob("quarantine*.jsonl"))
        for found in (x for p in paths for x in _lines(p) if 0 < x.get("step", 0) <= after):
            kept.setdefault(_identity(found), found)
        text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in kept.values())
        whole = folder / "quarantine.jsonl"
        if text or whole in paths:
            write_atomically(whole, text.encode("utf-8", "replace"))
        for path in paths:
            if path != whole or not text:
                path.unlink()

    def add(self, step: int, defects: Iterable[Defect]) -> None:
        """List those that are not listed yet."""
        fresh = []
        for line in (_line(step, d) for d in defects):
            if _identity(line) not in self._known:
                self._known.add(_identity(line))
                fresh.append(json.dumps(line, ensure_ascii=False) + "\n")
        if fresh:
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write("".join(fresh))


def _line(step: int, defect: Defect) -> dict[str, Any]:
    return {"step": step, **defect._asdict()}


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line.get("shard"), line.get("key"), line.get("kind")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a list; one that was cut short is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
