"""Fine-tuning a run on a task, and evaluating what came of it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from crossloom.evaluation.task import Result, Task, Watch
from crossloom.plugins import find
from crossloom.training.checkpoint import write_atomically
from crossloom.training.environment import Environment
from crossloom.training.held import Best
from crossloom.training.loop import Progress, train
from crossloom.training.recipe import Recipe, RecipeError, explain, override, unknown, value_of
from crossloom.training.run import SELECTED, load_weights, make_model, open_run, start_from


def make_task(name: str, assignments: Sequence[str] = ()) -> tuple[Task, list[str]]:
    """A task by name with its own fields set, and the assignments meant for the recipe.

    Raises:
        PluginError: no such task. RecipeError: a value does not fit, or neither the task nor the
            recipe has such a field.
    """
    cls = find("task", name)
    own = {f.name for f in fields(cls)} - {"budget"}
    of_recipe = {f.name for f in fields(Recipe)}
    mine, rest = {}, []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if equals and key in own:
            mine[key] = value_of(value) if value else ""
        elif equals and (first := key.partition(".")[0]) not in of_recipe:
            raise RecipeError(f"{key}: {unknown(first, sorted(own | of_recipe))}")
        else:
            rest.append(assignment)
    cls.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        return TypeAdapter(cls).validate_python(mine), rest
    except ValidationError as error:
        raise RecipeError(f"task {name}: {explain(error, cls)}") from None


def assigned(settings: Mapping[str, Any]) -> list[str]:
    """A task's settings, as kept in json, as the assignments that make it again."""
    return [f"{k}={json.dumps(v)}" for k, v in settings.items() if k != "budget"]


def _settings(task: Task) -> dict[str, Any]:
    return dict(TypeAdapter(type(task)).dump_python(task, mode="json"))


def finetune_recipe(task: Task, run: str | Path, *, scratch: bool, data: str = "") -> Recipe:
    """The recipe that fine-tunes a run on a task."""
    base = open_run(run)
    if data:
        base = replace(base, data=data)
    return task.recipe(base, "" if scratch else str(run))


def finetune(
    name: str,
    run: Path,
    out: Path,
    environment: Environment,
    assignments: Sequence[str] = (),
    *,
    scratch: bool = False,
    resume: bool = False,
    display: Callable[[Progress], None] | None = None,
) -> Recipe:
    """Fine-tune and leave a run directory ``out`` that also remembers the task."""
    task, rest = make_task(name, assignments)
    data = next((a.partition("=")[2] for a in rest if a.startswith("data=")), "")
    recipe = override(finetune_recipe(task, run, scratch=scratch, data=data), rest)
    train(recipe, out, environment, resume=resume, display=display)
    if environment.main:
        settings = {
            "task": name,
            "settings": _settings(task),
            "assignments": list(assignments),
            # also of fresh weights; relative, so that runs may be moved together
            "base": os.path.relpath(run.resolve(), out.resolve()),
        }
        write_atomically(out / "task.json", json.dumps(settings, indent=1))
    return recipe


def evaluate(
    name: str,
    run: Path,
    environment: Environment,
    assignments: Sequence[str] = (),
    *,
    watch: Watch | None = None,
) -> Result:
    """Evaluate a run on a task; writes ``results/TASK.json`` and ``TASK.records.jsonl`` below it.

    Predictions in the benchmark's own form lie beside them (``TASK.submission.json``, …). What lies
    there already makes way for the same figures measured again; if it was scored otherwise (another
    split, other settings or data), it is moved to ``results/earlier/N``.

    Raises:
        RecipeError: the run lacks what the task needs.
    """
    remembered: list[str] = []
    if (run / "task.json").is_file():
        known = json.loads((run / "task.json").read_text())
        if known["task"] == name:
            remembered = assigned(known["settings"])
    task, rest = make_task(name, [*remembered, *assignments])
    recipe = override(open_run(run), rest)
    model = make_model(recipe)
    weights, file = load_weights(run)
    fresh, _ = start_from(model, weights)
    if fresh:
        raise RecipeError(f"{file}: lacks {fresh[0]}; was it made by another recipe?")
    result = task.evaluate(model.to(environment.device), recipe, watch)
    result = replace(result, split=task.split(recipe), selected_by=_selected_by(run, recipe, file))
    if environment.main:
        folder = run / "results"
        folder.mkdir(exist_ok=True)
        asked = {"settings": _settings(task), "assignments": list(assignments)}
        scored = {"split": result.split, "data": recipe.data, **asked}
        if _otherwise(folder, name, scored, rest):
            result = replace(result, earlier=_set_aside(folder, name))
        _write(folder, name, result, scored)
    return result


def _otherwise(
    folder: Path, name: str, scored: Mapping[str, Any], overrides: Sequence[str]
) -> bool:
    """Whether a result lies there that tells something else than the one to come."""
    if not (folder / f"{name}.json").is_file():
        return False
    before = json.loads((folder / f"{name}.json").read_text())
    alike = all(before.get(key) == scored[key] for key in ("split", "data", "settings"))
    return not alike or make_task(name, before["assignments"])[1] != list(overrides)


def _set_aside(folder: Path, name: str) -> Path:
    """Move a result with its files; where it went."""
    files = json.loads((folder / f"{name}.json").read_text())["files"]
    number = next(n for n in itertools.count(1) if not (folder / "earlier" / str(n)).exists())
    aside = folder / "earlier" / str(number)
    aside.mkdir(parents=True)
    # the figures last: while they are here, they have not been moved
    for file in (*files, f"{name}.records.jsonl", f"{name}.json"):
        if (folder / file).is_file():
            (folder / file).rename(aside / file)
    return aside


def _selected_by(run: Path, recipe: Recipe, weights: Path) -> str:
    """How the weights of a run were chosen, in words."""
    if weights.is_dir():
        step = int(weights.name.rpartition("-")[2])
        return f"the newest checkpoint: the run is unfinished, {step:,} of {recipe.steps:,} steps"
    if not (run / SELECTED).is_file():
        return "the last step"
    best = Best(**json.loads((run / SELECTED).read_text()))
    component = recipe.mixture[best.by.partition("/")[0]]
    languages = ", ".join(getattr(component.reader, "languages", ())) or "all languages"
    what = "share right" if best.figure == "correct" else best.figure
    return f"{what} on {component.held} ({languages}): {best.value:.4f} after {best.step} steps"


def _write(folder: Path, name: str, result: Result, scored: Mapping[str, Any]) -> None:
    body: dict[str, Any] = {
        **scored,
        "selected_by": result.selected_by,
        "metrics": result.metrics,
        "files": list(result.files),
        "bad": [list(d) for d in result.defects],
    }
    write_atomically(folder / f"{name}.json", json.dumps(body, indent=1, ensure_ascii=False))
    lines = (json.dumps(r, ensure_ascii=False) for r in result.records)
    write_atomically(folder / f"{name}.records.jsonl", "\n".join(lines) + "\n")
    for file, content in result.files.items():
        write_atomically(folder / file, content)
