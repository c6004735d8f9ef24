"""Every small vision-language recipe with the same budget: ``python benchmarks/zoo.py``.

Each is pre-trained on the world for ``--seconds`` of one core's time (a few steps are measured
first, so that its schedule ends in time), fine-tuned on answering, retrieval and grounding, and the
same is done from fresh weights. A core trains a system, ``--cores`` at a time. What is done already
in ``--out`` is kept: the command can be stopped and given again. Figures of other systems that a
``--json`` file has are kept in it, and told with the new ones.

``zoo_text.py`` does the same for text in many languages, with other systems and tasks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from crossloom.demo import Stage, make_world, run_stage
from crossloom.display import counting
from crossloom.evaluation.by_language import Row
from crossloom.evaluation.compare import (
    Score,
    compare,
    languages,
    plot,
    table,
    write_comparison,
)
from crossloom.evaluation.finetune import evaluate
from crossloom.evaluation.report import heat_maps
from crossloom.plugins import listed
from crossloom.processes import end_with_parent
from crossloom.training.environment import start
from crossloom.training.loop import Progress, train
from crossloom.training.recipe import Recipe, RecipeError, load_recipe
from crossloom.training.run import WEIGHTS

PROBE = 24  #: steps by which speed is measured
SMALL = ("optim.decay=0.01", "schedule.warmup=0.1", "log_every=50", "save_every=100000")
_ENGLISH = ("examples=32", "languages=[en]")


@dataclass(frozen=True)
class Zoo:
    """Which systems are compared, and on what."""

    name: str  #: of the folder, the page and the plots
    belongs: Callable[[Recipe], bool]  #: whether a small recipe does
    stages: Callable[[Recipe], Sequence[Stage]]  #: fine-tuned, from the run and from fresh weights
    untuned: tuple[tuple[str, Sequence[str]], ...] = ()  #: tasks without fine-tuning, overrides
    scratch: bool = True  #: whether each is fine-tuned from fresh weights, too
    seconds: float = 300  #: of one core, for pre-training each
    examples: int = 64  #: of a step of pre-training


def vision(recipe: Recipe) -> tuple[Stage, ...]:
    """The tasks for a system that sees, each fine-tuned as such a system is."""
    contrasts = any(o.kind == "contrast" and not o.view.hide for o in recipe.objectives.values())
    # who never held features apart is asked to choose the right pair among four (ViLBERT)
    ranked = ("by=contrast", "steps=60") if contrasts else ("by=choice", "steps=100")
    return (
        Stage("vqa", ("steps=300", "optim.rate=5e-4", "pool=mean", *_ENGLISH, *SMALL), ()),
        Stage("retrieval", ("optim.rate=5e-4", "limit=150", *ranked, *_ENGLISH, *SMALL), ()),
        # few steps: in 150, fresh weights learn all of it
        Stage("grounding", ("steps=40", "optim.rate=1e-3", *_ENGLISH, *SMALL), ()),
    )


def sees(recipe: Recipe) -> bool:
    """Whether a recipe reads regions or patches."""
    return bool({m.kind for m in recipe.modalities.values()} & {"regions", "patches"})


VISION = Zoo(
    name="zoo",
    belongs=sees,
    stages=vision,
    seconds=200,
    examples=32,  # what is learned late is learned after so many steps, of whatever size
)


def main(zoo: Zoo = VISION, about: str = __doc__) -> None:
    """Train what is missing, then write table, figures and plots."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs") / zoo.name)
    parser.add_argument("--world", type=Path, help="made in OUT/world if not given")
    parser.add_argument("--systems", nargs="*", help="recipes; every small one that belongs here")
    parser.add_argument(
        "--seconds", type=float, default=zoo.seconds, help="of one core, for pre-training each"
    )
    parser.add_argument("--cores", type=int, default=2, help="systems trained at once")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tell", action="store_true", help="only table and plots of what is done")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plots", type=Path, help="write the plots there, NAME-TASK-FIGURE.svg")
    parser.add_argument("--set", nargs="*", default=[], help="key=value for every fine-tuning")
    options = parser.parse_args()
    world = options.world or options.out / "world"
    systems = options.systems or small_recipes(zoo)
    if not options.tell:
        make_world(world)
        wanted = [(name, seed) for seed in range(options.seeds) for name in systems]
        with (
            ProcessPoolExecutor(
                options.cores, get_context("spawn"), initializer=end_with_parent
            ) as pool,
            counting(f"{zoo.name}: systems") as watch,
        ):
            jobs = [
                pool.submit(
                    run_system, zoo, name, seed, world.resolve(), options.out, options.seconds,
                    options.set,
                )
                for name, seed in wanted
            ]  # fmt: skip
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                watch(done, len(jobs))
    tell(zoo.name, options.out, systems, options.json, options.plots)


def small_recipes(zoo: Zoo) -> list[str]:
    """Names of the recipes that are made for the world and belong to a zoo."""
    tiny = (p for p in listed("recipe") if p.name.endswith("-tiny"))
    return [p.name for p in tiny if zoo.belongs(p.load()())]


def run_system(
    zoo: Zoo,
    name: str,
    seed: int,
    world: Path,
    out: Path,
    seconds: float,
    settings: Sequence[str],
) -> None:
    """Pre-train one system for the budget, fine-tune it, evaluate; on one core."""
    torch.set_num_threads(1)
    run = out / f"{name}-{seed}"
    recipe = replace(load_recipe(name), data=str(world), seed=seed, examples=zoo.examples)
    pretrain(recipe, run, seconds)
    stages = [replace(s, overrides=(*s.overrides, *settings)) for s in zoo.stages(recipe)]
    tune(run, recipe, stages, zoo.untuned, zoo.scratch)


def pretrain(recipe: Recipe, run: Path, seconds: float) -> None:
    """Train for so many seconds of one core."""
    if not (run / WEIGHTS).is_file():
        recipe = replace(recipe, steps=steps_within(recipe, seconds, run), log_every=50, workers=0)
        train(recipe, run, start("cpu"), resume=True)


def tune(
    run: Path,
    recipe: Recipe,
    stages: Sequence[Stage],
    untuned: Sequence[tuple[str, Sequence[str]]],
    scratch: bool,
) -> None:
    """Fine-tune and evaluate, from fresh weights too (``scratch``); then what needs no tuning."""
    environment = start("cpu")
    # of an encoder and a decoder, the text that is read comes first
    text = next(s for s, m in recipe.modalities.items() if m.kind == "text")
    named = () if text == "text" else (f"text={text}",)
    for stage in stages:
        stage = replace(stage, overrides=(*stage.overrides, *named))
        for fresh in (False, True)[: 1 + scratch]:
            try:
                run_stage(stage, run, environment, fresh)
            except RecipeError as error:  # a task that makes no sense for the plan, or the streams
                print(f"{recipe.name}: {stage.task} left out: {error}", file=sys.stderr)
    for task, overrides in untuned:
        if not (run / "results" / f"{task}.json").is_file():
            evaluate(task, run, environment, [*overrides, *named])


def steps_within(recipe: Recipe, seconds: float, run: Path) -> int:
    """Steps for so many seconds of a core, by what a few took; remembered, so a resume agrees.

    A process's own time is counted, not the clock's: what else the machine does changes little.
    """
    known = run.parent / f"{run.name}.steps.json"
    if not known.is_file():
        seen: list[float] = []

        def look(_: Progress) -> None:
            seen.append(time.process_time())

        probe = run.parent / f".probe-{run.name}"
        shutil.rmtree(probe, ignore_errors=True)  # one that was stopped measured other steps
        each = PROBE // 2
        short = replace(recipe, steps=PROBE, log_every=each, save_every=10**9, workers=0)
        train(short, probe, start("cpu"), display=look)
        pace = (seen[-1] - seen[0]) / each
        known.write_text(json.dumps({"steps": max(PROBE, int(seconds / pace)), "pace": pace}))
    return int(json.loads(known.read_text())["steps"])


def tell(
    name: str, out: Path, systems: Sequence[str], figures: Path | None, plots: Path | None
) -> None:
    """Table on the screen, ``OUT/NAME.html``, and figures and plots where they are wanted."""
    folders = [p for p in sorted(out.iterdir()) if (p / WEIGHTS).is_file()]
    runs = [p for p in folders if p.name.rpartition("-")[0] in systems]
    steps = {p.name: json.loads((out / f"{p.name}.steps.json").read_text()) for p in runs}
    scores, by_language = compare(runs), languages(runs)
    if figures and figures.is_file():
        before = json.loads(figures.read_text())
        new = {s.system for s in scores}
        steps = before["steps"] | steps
        scores += [x for s in before["scores"] if (x := _score(s)).system not in new]
        by_language += [
            x
            for r in before["languages"]
            if (x := _row(r)).name.removesuffix(", from scratch") not in new
        ]
        scores.sort(key=lambda s: (s.system, s.scratch))
        by_language.sort(key=lambda r: r.name)
    head, rows = table(scores)
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    write_comparison(scores, out / f"{name}.html", by_language)
    if figures:
        told = {
            "steps": dict(sorted(steps.items())),
            "scores": [asdict(s) for s in scores],
            "languages": [asdict(r) | {"tuned": sorted(r.tuned)} for r in by_language],
        }
        figures.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        names = dict.fromkeys((s.task, s.figure) for s in scores)
        for (task, figure), svg in zip(names, plot(scores), strict=True):
            (plots / f"{name}-{task}-{figure.replace('.', '-')}.svg").write_text(svg)
        tasks = dict.fromkeys(row.task for row in by_language)
        for task, svg in zip(tasks, heat_maps(by_language), strict=True):
            (plots / f"{name}-{task}-languages.svg").write_text(svg)


def _score(told: Mapping[str, Any]) -> Score:
    pairs = {k: tuple(told[k]) for k in ("seeds", "values")}
    return Score(**{**told, **pairs})


def _row(told: Mapping[str, Any]) -> Row:
    return Row(**{**told, "tuned": frozenset(told["tuned"])})


if __name__ == "__main__":
    sys.exit(main())
