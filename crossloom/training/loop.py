"""The loop: batches in, steps out, meters, checkpoints, signals."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from crossloom.batch import Batch
from crossloom.data_pipelines.loader import Shares, load
from crossloom.models import flops
from crossloom.models.model import CrossloomModel
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.training import checkpoint
from crossloom.training.engine import Engine
from crossloom.training.environment import Environment, peak, workers
from crossloom.training.meters import Journal, Meters
from crossloom.training.recipe import Recipe, RecipeError, from_yaml
from crossloom.training.run import (
    RECIPE,
    WEIGHTS,
    check_identities,
    continued,
    identities,
    load_weights,
    make_model,
    make_stack,
    prepare_folder,
    start_from,
)
from crossloom.training.torch_engine import TorchEngine


class RunError(RuntimeError):
    """A run that cannot go on: the message says why and what to do."""


@dataclass(frozen=True)
class Progress:
    """What a display needs after each report."""

    step: int
    steps: int
    values: dict[str, float]
    done: bool = False


@dataclass
class Badness:
    """Bad samples so far, and whether they are too many."""

    recipe: Recipe
    total: int = 0
    seen: int = 0
    in_a_row: int = 0

    def take(self, batch: Batch) -> None:
        """Count one batch.

        Raises:
            RunError: past the recipe's limits.
        """
        self.total += len(batch.defects)
        self.seen += len(batch.defects) + len(batch.keys)
        self.in_a_row = self.in_a_row + len(batch.defects) if not batch.keys else len(batch.defects)
        if not batch.defects:
            return
        last = batch.defects[-1]
        advice = (
            f"the last: {last[2]} ({last[1]}); see quarantine.jsonl and `crossloom shards check`"
        )
        if self.in_a_row > self.recipe.bad_in_a_row:
            raise RunError(f"{self.in_a_row} bad samples in a row; {advice}")
        if self.seen >= 1000 and self.total > self.recipe.bad_share * self.seen:
            raise RunError(f"{self.total} of {self.seen} samples are bad; {advice}")


class Stop:
    """Whether somebody asked the run to end (Ctrl-C, SIGTERM); a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._take)
            except ValueError:  # not in the main thread: nobody to ask
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def train(
    recipe: Recipe,
    out: Path,
    environment: Environment,
    *,
    resume: bool = False,
    display: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Run a recipe to its end (or until asked to stop) and return the last report.

    ``out`` receives ``recipe.yaml``, ``metrics.jsonl``, TensorBoard events, ``checkpoints/`` and at
    the end ``model.safetensors``.

    Raises:
        RecipeError: the recipe does not fit itself, its data, or the run directory.
        RunError: too many bad samples, or a loss that is not finite.
    """
    recipe = recipe.located()
    folder = out / "checkpoints"
    latest, refused = checkpoint.newest(folder)
    if latest and not resume:
        raise RecipeError(f"{out}: holds a run already; add --resume, or choose another --out")
    found = checkpoint.load(latest) if latest else None
    if found and (out / RECIPE).is_file():
        recipe = continued(recipe, from_yaml(out / RECIPE), found.step)
    shares = Shares(recipe.micro, environment.rank, environment.world, recipe.fused)
    model = make_model(recipe)
    stack = make_stack(recipe)
    if recipe.start and not found:
        weights, _ = load_weights(recipe.start)
        start_from(model, weights)
    engine: Engine = TorchEngine(model, recipe, environment)
    first = 0
    badness = Badness(recipe)
    if latest and found:
        first = found.step
        _restore(found, str(latest), engine, recipe, badness)
    if environment.main:
        prepare_folder(out, recipe)
        for reason in refused:
            print(f"refused checkpoint: {reason}")
    environment.barrier()
    run = _Run(recipe, out, environment, model, engine, badness)
    with Stop() as stop:
        return run.steps(stack, shares, first, stop, display)


def _restore(
    found: checkpoint.Checkpoint, path: str, engine: Engine, recipe: Recipe, badness: Badness
) -> None:
    check_identities(recipe, found.notes.get("identities", {}), str(Path(path).parent.parent))
    try:
        engine.model.load_state_dict(found.weights)
        engine.load_state(found.state)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"{path}: does not fit the recipe ({error})") from None
    badness.total, badness.seen = found.notes.get("bad", 0), found.notes.get("seen", 0)


@dataclass
class _Run:
    recipe: Recipe
    out: Path
    environment: Environment
    model: CrossloomModel
    engine: Engine
    badness: Badness

    def steps(
        self,
        stack: Any,
        shares: Shares,
        first: int,
        stop: Stop,
        display: Callable[[Progress], None] | None,
    ) -> dict[str, float]:
        recipe, environment = self.recipe, self.environment
        meters = Meters(environment)
        journal = Journal(self.out, first) if environment.main else None
        batches = load(
            stack,
            shares,
            range(first, recipe.steps),
            workers=workers(recipe.workers, environment.world),
            pin=environment.device.type == "cuda",
        )
        report: dict[str, float] = {}
        step = first
        while step < recipe.steps:
            waited = time.perf_counter()
            mine = next(batches)
            waited = time.perf_counter() - waited
            self._quarantine(mine)
            counts, stopping = self._counts(mine, stop)
            sums = self.engine.step(step, mine, counts)
            step += 1
            meters.add(
                sums,
                counts,
                steps=1,
                waiting=waited,
                examples=sum(len(b.keys) for b in mine),
                units=sum(b.units for b in mine),
                bad=sum(len(b.defects) for b in mine),
                flops=self._flops(mine),
            )
            last = step == recipe.steps or stopping
            if step % recipe.log_every == 0 or last:
                report = self._report(meters, journal, step)
                if display and environment.main:
                    display(Progress(step, recipe.steps, report, done=last))
            if step % recipe.save_every == 0 or last:
                self._save(step)
            if stopping:
                break
        if journal:
            journal.close()
        if environment.main and step == recipe.steps:
            self._finish()
        environment.barrier()
        return report

    def _counts(self, batches: list[Batch], stop: Stop) -> tuple[dict[str, float], bool]:
        """Global counts by objective; and whether any process was asked to stop."""
        names = list(self.recipe.objectives)
        local = [sum(b.counts[n] for b in batches) for n in names]
        *total, asked = self.environment.total([*local, float(stop.asked)])
        return dict(zip(names, total, strict=True)), asked > 0

    def _report(self, meters: Meters, journal: Journal | None, step: int) -> dict[str, float]:
        report = meters.report()
        report["rate"] = self.recipe.optim.rate * self.recipe.schedule.factor(
            step - 1, self.recipe.steps
        )
        top = peak(self.environment.device)
        if top:
            report["mfu"] = report["flops_per_second"] / top
        if journal:
            journal.write(step, report)
        for name, value in report.items():
            if name.endswith("/loss") and not math.isfinite(value):
                raise RunError(
                    f"{name} is {value} before step {step}; lower optim.rate or optim.clip, or "
                    "look at the data with `crossloom shards check`"
                )
        return report

    def _flops(self, batches: list[Batch]) -> float:
        dims = {
            name: (head.shape[1], head.shape[0])
            for name, head in self.model.heads.items()
            if isinstance(head, ReconstructHead)
        }
        return sum(flops.of_batch(self.recipe.plan, b, dims) for b in batches)

    def _quarantine(self, batches: list[Batch]) -> None:
        found = [d for b in batches for d in b.defects]
        if found:
            with (self.out / f"quarantine{self._suffix}.jsonl").open("a") as file:
                for key, kind, message in found:
                    line = {"key": key, "kind": kind, "message": message}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for batch in batches:
            self.badness.take(batch)

    @property
    def _suffix(self) -> str:
        return f"-{self.environment.rank}" if self.environment.rank else ""

    def _save(self, step: int) -> None:
        if not self.environment.main:
            return
        notes = {
            "identities": identities(self.recipe),
            "bad": self.badness.total,
            "seen": self.badness.seen,
        }
        try:
            checkpoint.save(
                self.out / "checkpoints",
                step,
                self.model.state_dict(),
                self.engine.state(),
                notes,
                self.recipe.keep,
            )
        except OSError as error:
            raise RunError(
                f"{self.out}: the checkpoint of step {step} cannot be written ({error.strerror}); "
                "earlier ones are intact; make room and add --resume"
            ) from None

    def _finish(self) -> None:
        """Final weights (the moving average, when there is one) beside the recipe."""
        from safetensors.torch import save

        weights = dict(self.model.state_dict())
        averaged = {
            k.removeprefix("ema/"): v
            for k, v in self.engine.state().items()
            if k.startswith("ema/")
        }
        weights |= averaged
        data = save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
        checkpoint.write_atomically(self.out / WEIGHTS, data)
