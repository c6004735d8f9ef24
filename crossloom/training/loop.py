"""The loop: batches in, steps out, meters, checkpoints, signals."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from crossloom.batch import Batch
from crossloom.data_pipelines.loader import Shares, killed, load
from crossloom.data_pipelines.source import changed
from crossloom.models import flops
from crossloom.models.model import CrossloomModel
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.training import checkpoint, sampling
from crossloom.training.engine import Engine
from crossloom.training.environment import Environment, peak, workers
from crossloom.training.held import Best, Held, Measured, figure, paced
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
from crossloom.training.sampling import spread
from crossloom.training.start import start
from crossloom.training.torch_engine import TorchEngine


@dataclass(frozen=True)
class Progress:
    """What a display needs after each report."""

    step: int
    steps: int
    values: dict[str, float]
    done: bool = False


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

    ``out`` receives ``recipe.yaml``, ``mixture.json``, ``metrics.jsonl``, TensorBoard events,
    ``checkpoints/`` and at the end ``model.safetensors``.

    Raises:
        RecipeError: the recipe does not fit itself, its data, or the run directory.
        RunError: too many bad samples, a loss that is not finite, or a loader process that died.
        ShardError: shards are missing, or cannot be had any more.
    """
    recipe = spread(recipe.located())
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
    started = start(model, recipe) if recipe.start and not found else None
    engine: Engine = TorchEngine(model, recipe, environment)
    first, before = 0, dict[str, str]()
    badness = Badness(recipe, stack.defects)
    if latest and found:
        first, before = found.step, found.notes.get("data", {})
        _restore(found, str(latest), engine, recipe, badness, environment.main)
    if environment.main:
        prepare_folder(out, recipe)
        Quarantine.prepare(out, first, stack.defects)
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
    run = _Run(recipe, out, environment, model, engine, badness, stack.fingerprints())
    run.measured = list(found.notes.get("held", [])) if found else []
    run.best = Best(**found.notes["best"]) if found and found.notes.get("best") else None
    with Stop() as stop:
        try:
            return run.steps(stack, shares, first, stop, display)
        except RuntimeError as error:
            if (known := killed(error)) is None:
                raise
            raise RunError(str(known)) from None


def _restore(
    found: checkpoint.Checkpoint,
    path: str,
    engine: Engine,
    recipe: Recipe,
    badness: Badness,
    main: bool,
) -> None:
    check_identities(recipe, found.notes.get("identities", {}), str(Path(path).parent.parent))
    try:
        engine.model.load_state_dict(found.weights)
        engine.load_state(found.state)
    except (RuntimeError, ValueError) as error:
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
    data: dict[str, str]
    measured: list[dict[str, float]] = field(default_factory=list)
    """Held-out losses by component, of each measurement so far: what a pace follows."""
    best: Best | None = None
    """The measurement whose weights are selected so far."""

    def steps(
        self,
        stack: Any,
        shares: Shares,
        first: int,
        stop: Stop,
        display: Callable[[Progress], None] | None,
    ) -> dict[str, float]:
        recipe, environment = self.recipe, self.environment
        meters = Meters(environment, stack.collator.languages, self._classes())
        journal = Journal(self.out, first) if environment.main else None
        quarantine = Quarantine(self.out, environment.rank)
        held = Held(recipe, shares, environment) if recipe.held_every else None
        batches = self._load(stack, shares, first)
        report: dict[str, float] = {}
        step = first
        while step < recipe.steps:
            waited = time.perf_counter()
            mine = next(batches)
            self.engine.expect(mine[0])
            waited = time.perf_counter() - waited
            for batch in mine:
                quarantine.add(step + 1, batch.defects)
                self.badness.take(batch)
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
                flops=sum(flops.of_batch(self.model, b) for b in mine),
                fill=[b.fill for b in mine],
            )
            last = step == recipe.steps or stopping
            measured: Measured = {}
            if held and (step % recipe.held_every == 0 or step == recipe.steps):
                began = time.perf_counter()
                measured = held.measure(self.engine, partial(quarantine.add, step))
                self._select(step, measured)
                if self._change_pace(step, measured) and not last:
                    stack = make_stack(self.recipe)
                    batches = self._load(stack, shares, step)
                meters.skip(time.perf_counter() - began)
            if step % recipe.log_every == 0 or last or measured:
                report = self._report(meters, journal, step, measured)
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
        mine = [*local, float(stop.asked), *self.badness.pending()]
        *total, asked, bad, seen, ended = self.environment.total(mine)
        self.badness.settle(bad, seen, ended)
        return dict(zip(names, total, strict=True)), asked > 0

    def _report(
        self, meters: Meters, journal: Journal | None, step: int, held: Measured
    ) -> dict[str, float]:
        report = meters.report()
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
        if not self.environment.main:
            return
        notes = {
            "identities": identities(self.recipe),
            "bad": self.badness.total,
            "seen": self.badness.seen,
            "in_a_row": self.badness.in_a_row,
            "kinds": dict(sum(map(Counter, kinds), Counter())),
            "data": self.data,
            "held": self.measured,
            "best": asdict(self.best) if self.best else None,
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
        self._drop_beaten()

    def _select(self, step: int, measured: Measured) -> None:
        """Keep the weights if no earlier ones did better on what they are selected by."""
        if not self.recipe.select:
            return
        now = figure(self.recipe.select, measured, step)
        if self.best is None or self.best.beaten(now):
            self.best = now
            if self.environment.main:
                self._kept(now).parent.mkdir(exist_ok=True)
                checkpoint.write_atomically(self._kept(now), _packed(self.model.state_dict()))

    def _kept(self, best: Best) -> Path:
        """Where selected weights lie until the run ends, or better ones are in a checkpoint."""
        return self.out / "checkpoints" / f"best-{best.step:09d}.safetensors"

    def _drop_beaten(self) -> None:
        """Remove selected weights that no checkpoint goes on from any more."""
        folder = self.out / "checkpoints"
        notes = [json.loads((p / "state.json").read_text()) for p in checkpoint.checkpoints(folder)]
        wanted = {self._kept(Best(**n["best"])) for n in notes if n.get("best")}
        for path in folder.glob("best-*"):
            if path not in wanted:
                path.unlink()

    def _finish(self) -> None:
        """Final weights beside the recipe: those selected, else the moving average or the last."""
        if self.best:
            checkpoint.write_atomically(self.out / WEIGHTS, self._kept(self.best).read_bytes())
            told = json.dumps(asdict(self.best), indent=1)
            checkpoint.write_atomically(self.out / SELECTED, told)
            return
        weights = dict(self.model.state_dict())
        averaged = {
            k.removeprefix("ema/"): v
            for k, v in self.engine.state().items()
            if k.startswith("ema/")
        }
        weights |= averaged
        checkpoint.write_atomically(self.out / WEIGHTS, _packed(weights))


def _packed(weights: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in weights.items()})
