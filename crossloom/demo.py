"""The whole way on two cores: world → pre-train → fine-tune → evaluate → report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import train as train_tokenizer
from crossloom.data_pipelines.world import write_world
from crossloom.display import console, counting, training
from crossloom.evaluation.finetune import evaluate, finetune
from crossloom.evaluation.report import write_report
from crossloom.training.checkpoint import write_atomically
from crossloom.training.environment import Environment, start
from crossloom.training.loop import train
from crossloom.training.recipe import load_recipe
from crossloom.training.run import WEIGHTS

SCENES = 12_000
VOCABULARY = 1200


@dataclass(frozen=True)
class Stage:
    """A task of the demo: how it is fine-tuned, and the figures that stand for it."""

    task: str
    overrides: Sequence[str]
    figures: Sequence[str]


_SMALL = ("optim.decay=0.01", "schedule.warmup=0.1", "log_every=50", "save_every=100000")
STAGES = (
    Stage(
        "vqa",
        ("steps=900", "examples=64", "optim.rate=1e-3", "languages=[en]", "pool=mean", *_SMALL),
        ("accuracy",),
    ),
    Stage(
        "retrieval",
        ("steps=80", "examples=64", "optim.rate=5e-4", "limit=250", *_SMALL),
        ("image_to_text.r1", "text_to_image.r1"),
    ),
    Stage(
        "xnli",
        (
            "steps=300",
            "examples=64",
            "optim.rate=1e-3",
            "pool=mean",
            "dev=",
            # what the languages share was learned in pre-training: it is kept
            'optim.factors={"embed": 0.0, "layers.[01]": 0.05}',
            *_SMALL,
        ),
        ("zero_shot_mean", "fine_tuned_mean"),
    ),
)


def run_demo(out: Path, fresh: bool = False) -> dict[str, Any]:
    """Do all of it in ``out``; stages that are done already are kept.

    Writes ``out/report.html`` and ``out/metrics.json``: by task the figures of the pre-trained
    model, and ``from_scratch`` those of the same model without pre-training, same budget.
    """
    began = time.perf_counter()
    if fresh and out.exists():
        shutil.rmtree(out)
    environment = start("cpu")
    world = out / "world"
    make_world(world)
    run = out / "pretrained"
    if not (run / WEIGHTS).is_file():
        recipe = replace(load_recipe("demo"), data=str(world.resolve()))
        with training("pre-training") as display:
            train(recipe, run, environment, resume=True, display=display)
    metrics = {}
    for stage in STAGES:
        tuned = run_stage(stage, run, environment, scratch=False)
        scratch = run_stage(stage, run, environment, scratch=True)
        metrics[stage.task] = {**tuned, "from_scratch": scratch}
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False))
    write_report([run], out / "report.html")
    _summary(metrics)
    minutes = (time.perf_counter() - began) / 60
    console.print(f"{minutes:.1f} minutes · report: {out / 'report.html'}")
    return metrics


def make_world(folder: Path) -> None:
    """The world that the demo trains on, and its vocabulary; kept if it is there."""
    if not (folder / "world.json").is_file():
        with counting("world: drawing scenes") as progress:
            write_world(folder, examples=SCENES, progress=progress)
    vocabulary = folder / "tokenizer.model"
    if not vocabulary.is_file():
        shards = open_shards("train-00000[0-3].tar", folder)
        train_tokenizer(shards, vocabulary, size=VOCABULARY, coverage=1.0)


def run_stage(stage: Stage, run: Path, environment: Environment, scratch: bool) -> dict[str, Any]:
    """Fine-tune and evaluate in a folder beside the run; what is done already is kept."""
    folder = run.with_name(f"{run.name}-{stage.task}{'-scratch' if scratch else ''}")
    results = folder / "results" / f"{stage.task}.json"
    if results.is_file():
        return dict(json.loads(results.read_text())["metrics"])
    title = f"{stage.task}{' from scratch' if scratch else ''}"
    # fresh weights are all trained: there is nothing in them to keep
    overrides = [x for x in stage.overrides if not (scratch and x.startswith("optim.factors"))]
    with training(title) as display:
        finetune(
            stage.task,
            run,
            folder,
            environment,
            overrides,
            scratch=scratch,
            resume=True,
            display=display,
        )
    with counting(f"{title}: evaluating") as watch:
        return evaluate(stage.task, folder, environment, watch=watch).metrics


def _summary(metrics: dict[str, Any]) -> None:
    from crossloom.evaluation.report import lookup

    table = Table("task", "figure", "pre-trained", "from scratch")
    for stage in STAGES:
        for figure in stage.figures:
            values = (metrics[stage.task], metrics[stage.task]["from_scratch"])
            shown = [f"{lookup(v, figure) or 0:.3f}" for v in values]
            table.add_row(stage.task, figure, *shown)
    console.print(table)
