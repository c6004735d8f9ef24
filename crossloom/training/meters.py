"""What is measured in training: sums since the last line, written as JSON lines and TensorBoard."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crossloom.training.engine import Sums
from crossloom.training.environment import Environment


class Meters:
    """Sums over the steps since the last report, reduced over processes only when reported."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.reset()

    def reset(self) -> None:
        """Start a new stretch."""
        self.sums: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.counts: dict[str, float] = defaultdict(float)
        self.numbers: dict[str, float] = defaultdict(float)
        self.began = time.perf_counter()

    def add(
        self,
        sums: Sums,
        counts: dict[str, float],
        fill: Sequence[Mapping[str, tuple[int, int]]] = (),
        **numbers: float,
    ) -> None:
        """Take in one step: local sums, global counts, and local numbers to sum.

        ``fill`` is that of each batch (:class:`~crossloom.batch.Batch`), of the same streams on
        all processes.
        """
        for name, meters in sums.items():
            for meter, value in meters.items():
                mine = self.sums[name]
                mine[meter] = mine[meter] + value if meter in mine else value
        for name, count in counts.items():
            self.counts[name] += count
        for name, number in numbers.items():
            self.numbers[name] += number
        for one in fill:
            for stream, (units, room) in one.items():
                self.numbers[f"units/{stream}"] += units
                self.numbers[f"room/{stream}"] += room

    def skip(self, seconds: float) -> None:
        """Leave time out of the rates: it was spent on something else than training."""
        self.began += seconds

    def report(self) -> dict[str, float]:
        """Means by ``objective/meter`` and rates, over all processes; then a new stretch begins.

        ``examples_per_second`` and ``units_per_second`` are of all processes, ``waiting`` is the
        share of time spent waiting for data, averaged over processes; ``seconds_saving`` for how
        long training stood still for checkpoints; ``fill/STREAM`` how long examples are, as a share
        of the most that the stream allows.
        """
        elapsed = time.perf_counter() - self.began
        names = [
            (name, meter)
            for name, meters in self.sums.items()
            if name != "step"
            for meter in meters
        ]
        local = [float(self.sums[n][m]) for n, m in names]
        extras = sorted(self.numbers)
        total = self.environment.total([*local, *(self.numbers[x] for x in extras)])
        out = {
            f"{n}/{m}": value / self.counts[n]
            for (n, m), value in zip(names, total, strict=False)
            if self.counts[n] > 0
        }
        found = dict(zip(extras, total[len(names) :], strict=True))
        steps = found.get("steps", 0.0) / self.environment.world
        out["examples_per_second"] = found.get("examples", 0.0) / elapsed
        out["units_per_second"] = found.get("units", 0.0) / elapsed
        out["waiting"] = found.get("waiting", 0.0) / self.environment.world / elapsed
        out["seconds_saving"] = found.get("saving", 0.0) / self.environment.world
        out["flops_per_second"] = found.get("flops", 0.0) / elapsed / self.environment.world
        out["seconds_per_step"] = elapsed / max(steps, 1.0)
        out["bad"] = found.get("bad", 0.0)
        rooms = {n.removeprefix("room/"): x for n, x in found.items() if n.startswith("room/")}
        out |= {f"fill/{s}": found[f"units/{s}"] / room for s, room in rooms.items() if room}
        if "step" in self.sums:
            out["gradient_norm"] = float(self.sums["step"]["norm"]) / max(steps, 1.0)
        self.reset()
        return out


class Journal:
    """``metrics.jsonl`` and TensorBoard events of a run directory."""

    def __init__(self, folder: Path, after: int) -> None:
        """Open for appending; lines of steps beyond ``after`` (an abandoned future) are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if self.path.is_file():
            kept = [x for x in read_journal(self.path) if x["step"] <= after]
            self.path.write_text("".join(json.dumps(x) + "\n" for x in kept))
        self.file = self.path.open("a")
        self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line, and one point for each value."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self.file.close()
        self.board.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut short is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
