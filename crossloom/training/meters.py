"""What is measured in training: sums since the last line, written as JSON lines and TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crossloom.training.checkpoint import write_atomically
from crossloom.training.engine import Sums
from crossloom.training.environment import Environment


class Meters:
    """Sums over the steps since the last report, reduced over processes only when reported."""

    def __init__(
        self,
        environment: Environment,
        languages: Sequence[str] = (),
        classes: Collection[str] = (),
    ) -> None:
        """Start the first stretch.

        Args:
            environment: of this process.
            languages: whose losses are told apart, as the batches number them.
            classes: objectives whose loss is the mean negative log-likelihood of a class, so that
                its exponential is a perplexity.
        """
        self.environment, self.languages, self.classes = environment, languages, classes
        self.reset()

    def reset(self) -> None:
        """Start a new stretch."""
        self.sums: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.counts: dict[str, float] = defaultdict(float)
        self.numbers: dict[str, float] = defaultdict(float)
        self.taken = 0  #: steps that were not skipped
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
        self.taken += "step" in sums
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

        ``OBJECTIVE/loss/LANGUAGE`` is the mean over what was scored in a language, and
        ``OBJECTIVE/perplexity/LANGUAGE`` its exponential; both are missing where nothing was.
        ``examples_per_second`` and ``units_per_second`` are of all processes, ``waiting`` is the
        share of time spent waiting for data, averaged over processes; ``seconds_saving`` for how
        long training stood still for checkpoints; ``fill/STREAM`` how long examples are, as a share
        of the most that the stream allows.
        """
        elapsed = time.perf_counter() - self.began
        sums = {
            (name, meter): value.flatten().tolist()
            for name, meters in self.sums.items()
            if name != "step"
            for meter, value in meters.items()
        }
        extras = sorted(self.numbers)
        local = [x for some in sums.values() for x in some]
        total = iter(self.environment.total([*local, *(self.numbers[x] for x in extras)]))
        out: dict[str, float] = {}
        for (name, meter), some in sums.items():
            values = [next(total) for _ in some]
            if meter == "by_language":
                out |= self._by_language(name, values)
            elif self.counts[name] > 0:
                out[f"{name}/{meter}"] = values[0] / self.counts[name]
        found = dict(zip(extras, total, strict=True))
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
            out["gradient_norm"] = float(self.sums["step"]["norm"]) / self.taken
        self.reset()
        return out

    def _by_language(self, name: str, values: Sequence[float]) -> dict[str, float]:
        """Means from sums of loss and weight by language, the first those of none."""
        out = {}
        for number, language in enumerate(self.languages, 1):
            loss, weight = values[2 * number : 2 * number + 2]
            if weight > 0:
                out[f"{name}/loss/{language}"] = loss / weight
                if name in self.classes:
                    out[f"{name}/perplexity/{language}"] = math.exp(min(loss / weight, 700.0))
        return out


class Journal:
    """``metrics.jsonl`` and TensorBoard events of a run directory."""

    def __init__(self, folder: Path, after: int) -> None:
        """Open for appending; lines of steps beyond ``after`` (an abandoned future) are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if self.path.is_file():
            kept = [x for x in read_journal(self.path) if x["step"] <= after]
            # a process killed meanwhile must not take the lines of earlier steps with it
            write_atomically(self.path, "".join(json.dumps(x) + "\n" for x in kept))
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
