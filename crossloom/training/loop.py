"""The loop: batches in, steps out, meters, checkpoints, signals."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from crossloom.batch import Batch
from crossloom.data_pipelines.loader import Shares, killed, load
from crossloom.data_pipelines.source import changed
from crossloom.models import flops
from crossloom.models.model import CrossloomModel
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.training import checkpoint, sampling, stragglers
from crossloom.training.engine import Engine
from crossloom.training.environment import Environment, peak, workers
from crossloom.training.fit import fitting
from crossloom.training.guard import Guard
from crossloom.training.held import Best, Held, Measured, paced
from crossloom.training.meters import Journal, Meters
from crossloom.training.quarantine import Badness, Quarantine, RunError
from crossloom.training.recipe import Phase, Recipe, RecipeError, from_yaml, to_yaml
from crossloom.training.run import (
    RECIPE,
    SELECTED,
    WEIGHTS,
    check_identities,
    continued,
    identities,
    make_model,
    make_stack,
    prepare_folder,
)
from crossloom.training.sampling import expand
from crossloom.training.saver import Saver
from crossloom.training.selected import Selected
from crossloom.training.skips import Skips, begin, forget
from crossloom.training.start import start


@dataclass(frozen=True)
class Progress:
    """What a display needs after each report."""

    step: int
    steps: int
    values: dict[str, float]
    done: bool = False


class Stopped(Exception):
    """A run that was asked to stop: its checkpoint is written, its end not reached.

    ``status`` is what the process ends with: 130 after Ctrl-C; else 75, "try again later"
    (``EX_TEMPFAIL`` of sysexits.h), by which a queue knows a run that wants to go on.
    """

    def __init__(self, step: int, status: int) -> None:
        super().__init__(f"stopped after step {step}, as asked; --resume goes on from there")
        self.status = status


class Stop:
    """Whether somebody asked the run to end (Ctrl-C, SIGTERM, SIGUSR1 of a queue).

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.status = 75
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
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
        self.status = 130 if number == signal.SIGINT else 75


def train(
    recipe: Recipe,
    out: Path,
    environment: Environment,
    *,
    resume: bool = False,
    display: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Run a recipe to its end and return the last report.

    ``out`` receives ``recipe.yaml``, ``mixture.json``, ``metrics.jsonl``, TensorBoard events,
    ``checkpoints/`` and at the end ``model.safetensors``.

    Raises:
        Stopped: somebody asked the run to stop; a checkpoint of its last step is written.
        RecipeError: the recipe does not fit itself, its data, or the run directory.
        RunError: too many bad samples, a loss that is not finite, or a loader process that died.
        ShardError: shards are missing, or cannot be had any more.
    """
    recipe = expand(recipe.located())
    folder = out / "checkpoints"
    latest, refused = environment.told(lambda: checkpoint.newest(folder))
    if latest and not resume:
        raise RecipeError(f"{out}: holds a run already; add --resume, or choose another --out")
    if refused and not latest:
        raise RecipeError(f"{refused[0]}; remove {folder} to begin anew")
    found = checkpoint.Checkpoint(latest) if latest else None
    most = 0
    if found and (out / RECIPE).is_file():
        past = from_yaml(out / RECIPE)
        recipe, most = continued(recipe, past, found.step), past.fused
    stack = make_stack(recipe)
    if recipe.fused < 0:
        recipe = replace(recipe, fused=fitting(recipe, stack, environment, most))
        if environment.main:
            print(f"fused: {recipe.fused} micro-batches of {recipe.examples} examples in a pass")
    shares = Shares(recipe.micro, environment.rank, environment.world, recipe.fused)
    model = make_model(recipe)
    started = start(model, recipe) if recipe.start and not found else None
    try:
        engine = Engine(model, recipe, environment)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    first, before = 0, dict[str, str]()
    badness = Badness(recipe, stack.defects)
    if latest and found:
        first, before = found.step, found.notes.get("data", {})
        if first > recipe.steps:
            raise RecipeError(
                f"steps: {recipe.steps}, but {latest} is of step {first}; raise it, or begin anew"
            )
        restore(found, str(latest), engine, recipe, badness, environment.main)
    if environment.main:
        prepare_folder(out, recipe)
        for written in (folder, folder / "selected"):
            checkpoint.tidy(written)
        checkpoint.set_aside(folder, first)
        Quarantine.prepare(out, first, stack.defects)
        forget(out, first)
        met = sampling.shares(recipe, stack)
        checkpoint.write_atomically(out / sampling.FILE, sampling.to_json(met))
        for share in met if len(met) > 1 else ():
            print(share)
        if started:
            started.save(out / "start.json")
            print(started)
        for reason in refused:
            print(f"refused checkpoint: {reason}")
        for name, told in before.items():
            cause = changed(told, stack.fingerprints().get(name, told))
            if cause and name not in stack.live:
                print(f"{name}: {cause} when step {first} was saved; "
                      "the order of examples is another one from here")  # fmt: skip
        for hint in stack.advice:
            print(hint)
        for name in stack.live:
            print(f"{name}: a live stream, read as it comes: a resumed run is approximate, it "
                  "goes on with whatever comes then")  # fmt: skip
    environment.barrier()
    saver = Saver(folder, environment, keep=recipe.keep, keep_every=recipe.keep_every)
    run = _Run(
        recipe,
        out,
        environment,
        model,
        engine,
        badness,
        saver=saver,
        selected=Selected(recipe.select, folder, environment),
        data=stack.fingerprints(),
        guard=Guard(recipe.stall_after, environment.rank),
        skips=begin(recipe, found.notes.get("skips", {}) if found else {}),
        forwards=stragglers.Forwards(engine.model, environment.device),
    )
    run.measured = list(found.notes.get("held", [])) if found else []
    if found and found.notes.get("best"):
        run.selected.best = Best(**found.notes["best"])
    with Stop() as stop, run.guard:
        try:
            return run.steps(stack, shares, first, stop, display)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"the device is out of memory ({str(error).partition('.')[0]}): let fused=-1 find "
                "what fits, recompute layers (recompute=1), or take fewer examples"
            ) from None
        except RuntimeError as error:
            if (known := killed(error)) is None:
                raise
            raise RunError(str(known)) from None


def restore(
    found: checkpoint.Checkpoint,
    path: str,
    engine: Engine,
    recipe: Recipe,
    badness: Badness,
    main: bool,
) -> None:
    """Take a checkpoint that lies at a path into an engine and the counts of bad samples.

    Raises:
        RecipeError: it does not fit the recipe.
    """
    check_identities(recipe, found.notes.get("identities", {}), str(Path(path).parent.parent))
    try:
        engine.load(found)
    except ValueError as error:
        raise RecipeError(f"{path}: does not fit the recipe ({error})") from None
    badness.total, badness.seen = found.notes.get("bad", 0), found.notes.get("seen", 0)
    badness.in_a_row = found.notes.get("in_a_row", 0)
    if main:  # these are of all processes
        badness.kinds.update(found.notes.get("kinds", {}))


@dataclass
class _Run:
    recipe: Recipe
    out: Path
    environment: Environment
    model: CrossloomModel
    engine: Engine
    badness: Badness
    saver: Saver
    selected: Selected
    data: dict[str, str]
    guard: Guard
    skips: Skips
    forwards: stragglers.Forwards
    measured: list[dict[str, float]] = field(default_factory=list)
    """Held-out losses by component, of each measurement so far: what a pace follows."""

    def steps(
        self,
        stack: Any,
        shares: Shares,
        first: int,
        stop: Stop,
        display: Callable[[Progress], None] | None,
    ) -> dict[str, float]:
        recipe, environment, guard = self.recipe, self.environment, self.guard
        meters = Meters(environment, stack.collator.languages, self._classes())
        journal = Journal(self.out, first) if environment.main else None
        quarantine = Quarantine(self.out, environment.rank)
        held = Held(recipe, shares, environment) if recipe.held_every else None
        batches = self._load(stack, shares, first)
        report: dict[str, float] = {}
        step = first
        while step < recipe.steps:
            guard.at("waiting for data", partial(_wanted, stack, shares, step))
            waited = time.perf_counter()
            mine = next(batches)
            self.engine.expect(mine[0])
            waited = time.perf_counter() - waited
            for batch in mine:
                quarantine.add(step + 1, batch.defects)
                self.badness.take(batch)
            guard.at("summing counts over processes (all-reduce)")
            counts, stopping = self._counts(mine, stop)
            guard.met(slow=step == first)
            guard.at(f"step {step + 1}: forward, backward, update")
            sums = self.engine.step(step, mine, counts, self.skips.accept)
            step += 1
            if self.skips.reason:
                self.skips.note(step, mine, self.out, environment)
                sums, counts = {}, dict.fromkeys(counts, 0.0)  # no part of any mean
            meters.add(
                sums,
                counts,
                steps=1,
                waiting=waited,
                saving=self.saver.seconds(),
                examples=sum(len(b.keys) for b in mine),
                units=sum(b.units for b in mine),
                bad=sum(len(b.defects) for b in mine),
                flops=sum(flops.of_batch(self.model, b) for b in mine),
                fill=[b.fill for b in mine],
            )
            last = step == recipe.steps or stopping
            measured: Measured = {}
            if held and (step % recipe.held_every == 0 or step == recipe.steps):
                guard.met(slow=True)
                guard.at("measuring losses on data held back")
                began = time.perf_counter()
                measured = held.measure(self.engine, partial(quarantine.add, step))
                self.selected.consider(step, measured, self.engine.state)
                if self._change_pace(step, measured) and not last:
                    stack = make_stack(self.recipe)
                    batches = self._load(stack, shares, step)
                meters.skip(time.perf_counter() - began)
            if step % recipe.log_every == 0 or last or measured:
                report = self._report(meters, journal, step, measured)
                if display and environment.main:
                    display(Progress(step, recipe.steps, report, done=last))
            if step % recipe.save_every == 0 or last:
                guard.met(slow=True)
                guard.at(f"saving the checkpoint of step {step}")
                self._save(step)
            if measured or step % recipe.save_every == 0:
                guard.at("waiting for the other processes")
                environment.barrier()
                guard.met()  # what was slow is over: who hangs from here on is told of at once
            if stopping:
                break
        if journal:
            journal.close()
        guard.met(slow=True)
        guard.at("writing the last checkpoint")
        self.saver.finish()
        if step > first:
            self._check_saved(step)
        if step == recipe.steps:
            self.badness.end()
        if environment.main and step == recipe.steps:
            self._finish(step)
        environment.barrier()
        if step < recipe.steps:
            raise Stopped(step, stop.status)
        return report

    def _load(self, stack: Any, shares: Shares, first: int) -> Iterator[list[Batch]]:
        return load(
            stack,
            shares,
            range(first, self.recipe.steps),
            workers=workers(self.recipe.workers, self.environment.world),
            pin=self.environment.device.type == "cuda",
        )

    def _change_pace(self, step: int, measured: Measured) -> bool:
        """Note what was measured; record other weights from here on when the pace asks for them."""
        weights = {n: o.weight for n, o in self.recipe.objectives.items()}
        self.measured.append(
            {
                c: sum(weights[o] * x["loss"] for o, x in some.items())
                for c, some in measured.items()
            }
        )
        if self.recipe.pace is None or step == self.recipe.steps:
            return False
        first = {n: c.weight for n, c in self.recipe.mixture.items()}
        wanted = paced(self.recipe.pace, first, self.measured)
        past = tuple(p for p in self.recipe.phases if p.step < step)
        if wanted == (dict(past[-1].weights) if past else first):
            phases = past
        else:
            phases = (*past, Phase(step=step, weights=wanted))
        changed = phases != self.recipe.phases
        if changed:
            self.recipe = replace(self.recipe, phases=phases)
            if self.environment.main:
                checkpoint.write_atomically(self.out / RECIPE, to_yaml(self.recipe))
        return changed

    def _counts(self, batches: list[Batch], stop: Stop) -> tuple[dict[str, float], bool]:
        """Global counts by objective; and whether any process was asked to stop.

        Raises:
            RunError: too many samples are bad.
        """
        names = list(self.recipe.objectives)
        local = [sum(b.counts[n] for b in batches) for n in names]
        mine = [*local, float(stop.asked), *self.badness.pending(), *self.saver.pending()]
        *total, asked, bad, seen, ended, written, failed = self.environment.total(mine)
        self.badness.settle(bad, seen, ended)
        self.saver.settle(written, failed)
        return dict(zip(names, total, strict=True)), asked > 0

    def _report(
        self, meters: Meters, journal: Journal | None, step: int, held: Measured
    ) -> dict[str, float]:
        own = meters.numbers["waiting"] + self.forwards.seconds()
        each = self.environment.gather(own / max(meters.numbers["steps"], 1.0))
        report = meters.report()
        if self.environment.world > 1:
            report |= stragglers.report(each)
            if self.environment.main and (named := stragglers.slow(each)):
                print(f"step {step}: {named}")
        report |= {
            f"held/{c}/{o}/{meter}": x
            for c, some in held.items()
            for o, meters in some.items()
            for meter, x in meters.items()
        }
        report["rate"] = self.recipe.optim.rate * self.recipe.schedule.factor(
            step - 1, self.recipe.steps
        )
        top = peak(self.environment.device)
        kinds = self._kinds()
        report["saves_failed"] = float(self.saver.failed)
        report["skipped_total"] = float(self.skips.total)
        report["bad_total"] = float(sum(kinds.values()))
        report |= {f"bad/{kind}": float(n) for kind, n in kinds.items()}
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

    def _classes(self) -> set[str]:
        """Objectives whose loss is the negative log-likelihood of a class."""
        return {
            name
            for name, head in self.model.heads.items()
            if isinstance(head, ReconstructHead)
            and (head.loss, head.smoothing) == ("cross_entropy", 0.0)
        }

    def _kinds(self) -> dict[str, int]:
        """Bad samples so far, by kind, over all processes."""
        return self.badness.all_kinds(self.environment.gather(dict(self.badness.kinds)))

    def _save(self, step: int) -> None:
        kinds = self.environment.gather(dict(self.badness.kinds))
        notes = {
            "identities": identities(self.recipe),
            "bad": self.badness.total,
            "seen": self.badness.seen,
            "in_a_row": self.badness.in_a_row,
            "kinds": dict(sum(map(Counter, kinds), Counter())),
            "data": self.data,
            "held": self.measured,
            "best": self.selected.notes(),
            "skips": self.skips.notes(),
        }
        self.saver.begin(step, self.engine.state(), notes)

    def _check_saved(self, step: int) -> None:
        """Raise RunError, on all processes, where the run's last state is not on disk."""
        path = checkpoint.folder_of(self.out / "checkpoints", step)
        reason = self.environment.told(lambda: None if path.is_dir() else self.saver.reason)
        if reason is not None:
            raise RunError(
                f"{self.out}: the checkpoint of step {step} cannot be written ({reason}); "
                "earlier ones are intact; make room and add --resume"
            )

    def _finish(self, step: int) -> None:
        """Final weights beside the recipe: those selected, else the moving average or the last."""
        from safetensors.torch import save

        if told := self.selected.notes():
            weights = self.selected.finish()
            checkpoint.write_atomically(self.out / SELECTED, json.dumps(told, indent=1))
        else:
            last = checkpoint.Checkpoint(checkpoint.folder_of(self.saver.folder, step))
            weights = last.weights | last.under("ema")
        checkpoint.write_atomically(self.out / WEIGHTS, save(weights))


def _wanted(stack: Any, shares: Shares, step: int) -> str:
    """Which shards a process reads for a step."""
    shards = (s for group in shares.of_step(step) for n in group for s in stack.shards(n))
    return f"the batch of step {step + 1} is read from {', '.join(dict.fromkeys(shards))}"
