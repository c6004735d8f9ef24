"""Every small vision-language recipe with the same budget: ``python benchmarks/zoo.py``.

Each is pre-trained on the world for ``--seconds`` (its speed is measured first, so that its
schedule ends in time), fine-tuned on answering, retrieval and grounding, and the same is done from
fresh weights. What is done already in ``--out`` is kept: the command can be stopped and given
again, and several can share the systems (``--systems``) and the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from crossloom.demo import Stage, make_world, run_stage
from crossloom.display import console, training
from crossloom.evaluation.compare import compare, plot, table, write_comparison
from crossloom.plugins import listed
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Recipe, RecipeError, load_recipe
from crossloom.training.run import WEIGHTS

PROBE = 24  #: steps by which speed is measured
_SMALL = ("optim.decay=0.01", "schedule.warmup=0.1", "log_every=50", "save_every=100000")
_ENGLISH = ("examples=64", "languages=[en]")
STAGES = (
    Stage("vqa", ("steps=400", "optim.rate=1e-3", "pool=mean", *_ENGLISH, *_SMALL), ()),
    Stage("retrieval", ("steps=80", "optim.rate=5e-4", "limit=250", *_ENGLISH, *_SMALL), ()),
    Stage("grounding", ("steps=200", "optim.rate=1e-3", *_ENGLISH, *_SMALL), ()),
)


def main() -> None:
    """Train what is missing, then write table, figures and plots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--world", type=Path, help="made in OUT/world if not given")
    parser.add_argument("--systems", nargs="*", help="recipes; every small one over pictures")
    parser.add_argument("--seconds", type=float, default=120, help="of pre-training each")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tell", action="store_true", help="only table and plots of what is done")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plots", type=Path, help="write the plots there, zoo-TASK-FIGURE.svg")
    options = parser.parse_args()
    world = options.world or options.out / "world"
    systems = options.systems or small_recipes()
    if not options.tell:
        make_world(world)
        for seed in range(options.seeds):
            for name in systems:
                run_system(name, seed, world.resolve(), options.out, options.seconds)
    tell(options.out, systems, options.json, options.plots)


def small_recipes() -> list[str]:
    """Names of the recipes that are made for the world and read pictures."""
    found = []
    for plugin in listed("recipe"):
        if plugin.name.endswith("-tiny"):
            recipe: Recipe = plugin.load()()
            kinds = {m.kind for m in recipe.modalities.values()}
            if kinds & {"regions", "patches"}:
                found.append(plugin.name)
    return found


def run_system(name: str, seed: int, world: Path, out: Path, seconds: float) -> None:
    """Pre-train for the budget, fine-tune, evaluate; and the same from fresh weights."""
    environment = start("cpu")
    recipe = replace(load_recipe(name), data=str(world), seed=seed)
    run = out / f"{name}-{seed}"
    if not (run / WEIGHTS).is_file():
        recipe = replace(recipe, steps=steps_within(recipe, seconds, run), log_every=50)
        with training(name) as display:
            train(recipe, run, environment, resume=True, display=display)
    for stage in STAGES:
        for scratch in (False, True):
            try:
                run_stage(stage, run, environment, scratch)
            except RecipeError as error:  # a task that makes no sense for the plan, or the streams
                console.print(f"{name}: {stage.task} left out: {error}")


def steps_within(recipe: Recipe, seconds: float, run: Path) -> int:
    """Steps that the budget allows, by the speed of a few; remembered, so that a resume agrees."""
    known = run.parent / f"{run.name}.steps.json"
    if not known.is_file():
        probe = run.parent / f".probe-{run.name}"
        short = replace(recipe, steps=PROBE, log_every=PROBE // 2, save_every=10**9)
        train(short, probe, start("cpu"), resume=True)
        pace = read_journal(probe / "metrics.jsonl")[-1]["seconds_per_step"]
        known.write_text(json.dumps({"steps": max(PROBE, int(seconds / pace)), "pace": pace}))
    return int(json.loads(known.read_text())["steps"])


def tell(out: Path, systems: list[str], figures: Path | None, plots: Path | None) -> None:
    """Table on the screen, ``OUT/zoo.html``, and the figures and plots where they are wanted."""
    runs = [p for p in sorted(out.iterdir()) if p.name.rpartition("-")[0] in systems]
    scores = compare(runs)
    head, rows = table(scores)
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    write_comparison(scores, out / "zoo.html")
    if figures:
        steps = {p.name.removesuffix(".steps.json"): json.loads(p.read_text())
                 for p in sorted(out.glob("*.steps.json"))}  # fmt: skip
        told = json.loads((out / "zoo.json").read_text())
        figures.write_text(json.dumps({"steps": steps, "scores": told}, indent=1) + "\n")
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        names = dict.fromkeys((s.task, s.figure) for s in scores)
        for (task, figure), svg in zip(names, plot(scores), strict=True):
            (plots / f"zoo-{task}-{figure.replace('.', '-')}.svg").write_text(svg)


if __name__ == "__main__":
    sys.exit(main())
