"""One self-contained HTML page about a run and what was fine-tuned from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.shards import ShardError
from crossloom.evaluation.by_language import (
    Outcome,
    Row,
    by_heading,
    columns,
    outcome,
    rows,
    tables,
)
from crossloom.evaluation.choice import Choice
from crossloom.evaluation.finetune import assigned, make_task
from crossloom.evaluation.look import Album, Gaze, gazes
from crossloom.evaluation.plots import bars, curves, heat_map, moves
from crossloom.plugins import find, listed
from crossloom.training.checkpoint import write_atomically
from crossloom.training.meters import read_journal
from crossloom.training.recipe import Recipe, override, to_yaml
from crossloom.training.run import RECIPE, load_weights, make_model, open_run, start_from
from crossloom.training.sampling import read_shares


@dataclass(frozen=True)
class Scored:
    """What figures are of. Those that differ in it do not stand for one system."""

    split: str
    settings: dict[str, Any]  #: of the task, as it was evaluated
    data: str = ""  #: whose shards were read; empty for those of the run's recipe
    overrides: tuple[str, ...] = ()  #: of the run's recipe
    assignments: tuple[str, ...] = field(default=(), compare=False)  #: as they were given

    @property
    def told(self) -> str:
        """The split, and of which data where that is not the run's own."""
        return f"{self.split} of {Path(self.data).name}" if self.data else self.split


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned run and its results."""

    folder: Path
    task: str
    settings: dict[str, Any]
    assignments: list[str]
    scratch: bool
    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    scored: Scored
    selected_by: str = ""
    trained: bool = True  #: False: evaluated as it was pre-trained

    def by_language(self, name: str) -> Outcome | None:
        """What it tells by language, under a name; None where it tells nothing."""
        settings = {**self.settings, "tested": self.scored.settings.get("tested")}
        return outcome(name, self.task, self.metrics, settings, self.trained, self.scored.told)


def tuned_runs(run: Path) -> list[Tuned]:
    """What ``run`` itself was evaluated on, and evaluated runs beside or inside it.

    Those beside it have names that begin with its name, and were not fine-tuned from another run.
    """
    beside = [p for p in run.parent.glob(f"{run.name}-*") if p.is_dir() and not _of_other(p, run)]
    folders = sorted({*beside, *(p.parent for p in run.glob("*/task.json"))})
    return [
        *untuned_results(run),
        *(found for folder in folders if (found := tuned_run(folder))),
    ]


def _of_other(folder: Path, run: Path) -> bool:
    """Whether a fine-tuned run came from another one; unknown for scratch runs of before."""
    if not (folder / "task.json").is_file():
        return False
    base = json.loads((folder / "task.json").read_text()).get("base")
    came = folder / base if base else Path(open_run(folder).start)
    if not came.name:
        return False
    if (came / RECIPE).is_file():
        return came.resolve() != run.resolve()
    return came.name != run.resolve().name  # it was moved, or is gone


def untuned_results(run: Path) -> list[Tuned]:
    """Results of tasks that the run was not fine-tuned on."""
    known = run / "task.json"
    own = json.loads(known.read_text())["task"] if known.is_file() else ""
    names = sorted(p.name for p in listed("task") if p.name != own)
    return [
        _result(run, name, {}, [], scratch=False, trained=False)
        for name in names
        if (run / "results" / f"{name}.json").is_file()
    ]


def tuned_run(folder: Path) -> Tuned | None:
    """A fine-tuned run with its results; None where there are none."""
    if not (folder / "task.json").is_file():
        return None
    known = json.loads((folder / "task.json").read_text())
    task = known["task"]
    if not (folder / "results" / f"{task}.json").is_file():
        return None
    scratch = not open_run(folder).start
    assignments = known.get("assignments", [])
    return _result(folder, task, known["settings"], assignments, scratch=scratch, trained=True)


def _result(
    folder: Path,
    task: str,
    settings: dict[str, Any],
    assignments: list[str],
    *,
    scratch: bool,
    trained: bool,
) -> Tuned:
    body = json.loads((folder / "results" / f"{task}.json").read_text())
    lines = (folder / "results" / f"{task}.records.jsonl").read_text().splitlines()
    return Tuned(
        folder,
        task,
        settings,
        assignments,
        scratch,
        body["metrics"],
        [json.loads(x) for x in lines if x],
        _scored(folder, task, body, settings),
        body.get("selected_by", ""),
        trained,
    )


def _scored(
    folder: Path, task: str, body: Mapping[str, Any], settings: Mapping[str, Any]
) -> Scored:
    """What a result tells of how it came about; results of before tell the split alone."""
    asked = {k: v for k, v in body.get("settings", settings).items() if k != "budget"}
    assignments = tuple(body.get("assignments", ()))
    _, rest = make_task(task, assignments)
    overrides = tuple(sorted(x for x in rest if not x.startswith("data=")))
    data = body.get("data", "")
    if data and Path(data).resolve() == Path(open_run(folder).data).resolve():
        data = ""
    return Scored(body.get("split", ""), asked, data, overrides, assignments)


def lookup(metrics: dict[str, Any], path: str) -> float | None:
    """A nested metric by dotted path."""
    node: Any = metrics
    for part in path.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return float(node) if isinstance(node, (int, float)) else None


def write_report(runs: Sequence[Path], page: Path) -> None:
    """Write the page for the first run; fine-tuned runs are found beside and inside it.

    Raises:
        RecipeError: it is no run directory.
    """
    import jinja2
    from markupsafe import Markup

    run = runs[0]
    recipe = open_run(run)
    journal = read_journal(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    tuned = tuned_runs(run)
    best = {t.task: t for t in tuned if not t.scratch}
    fresh = {t.task: t for t in tuned if t.scratch}
    by_language = rows(_outcomes(tuned))
    template = files("crossloom.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    body = environment.from_string(template).render(
        title=recipe.name,
        lead=_lead(recipe),
        facts=_facts(run, recipe, journal),
        scores=_scores(best, fresh),
        details=[Markup(s) for s in _details(best, fresh)],
        languages=tables(by_language),
        heat=[Markup(s) for s in heat_maps(by_language)],
        curves=[Markup(s) for s in (*_curves(journal), *_shares(run))],
        answers=_answers(best.get("vqa")),
        searches=_searches(best.get("retrieval")),
        inferences=_inferences(best.get("xnli")),
        tuned=", ".join(_taught(best.get("xnli"))),
        commands=_commands(recipe, tuned),
        recipes=[(run.name, to_yaml(recipe))]
        + [(t.folder.name, to_yaml(open_run(t.folder))) for t in tuned if t.trained],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, body)


def _lead(recipe: Recipe) -> str:
    kinds = {s: m.kind for s, m in recipe.modalities.items()}
    streams = " + ".join(s if s == kind else f"{s} ({kind})" for s, kind in kinds.items())
    return f"{streams}, trained with {', '.join(recipe.objectives)}."


def _facts(run: Path, recipe: Recipe, journal: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    weights, _ = load_weights(run)
    width = max(recipe.plan.widths.values())
    done = int(journal[-1]["step"]) if journal else recipe.steps
    facts = [
        ("parameters", f"{sum(w.numel() for w in weights.values()) / 1e6:.2f} M"),
        ("layers × width", f"{len({n for n, _ in recipe.plan.blocks})} × {width}"),
        ("steps", f"{recipe.steps:,}" if done >= recipe.steps else f"{done:,} of {recipe.steps:,}"),
        ("examples a step", f"{recipe.examples * recipe.micro}"),
    ]
    if journal:
        facts.append(("examples/s", f"{_median(journal, 'examples_per_second'):,.0f}"))
        facts.append(("units/s", f"{_median(journal, 'units_per_second'):,.0f}"))
        facts.append(("waiting for data", f"{_median(journal, 'waiting'):.1%}"))
    return facts


def _median(journal: Sequence[dict[str, Any]], name: str) -> float:
    values = sorted(x[name] for x in journal if name in x)
    return float(values[len(values) // 2]) if values else 0.0


def _scores(best: dict[str, Tuned], fresh: dict[str, Tuned]) -> list[dict[str, Any]]:
    rows = []
    for task, one in best.items():
        other = fresh.get(task)
        for path, label in find("task", task).headlines.items():
            value = lookup(one.metrics, path)
            scratch = lookup(other.metrics, path) if other else None
            if other and not _alike(one, other):
                rows.append(_score(one, label, value, None))
                rows.append(_score(other, label, None, scratch))
            else:
                rows.append(_score(one, label, value, scratch))
    return [row for row in rows if (row["value"], row["scratch"]) != (None, None)]


def _score(one: Tuned, label: str, value: float | None, scratch: float | None) -> dict[str, Any]:
    row = {"task": one.task, "split": one.scored.told, "metric": label}
    return {**row, "value": value, "scratch": scratch, "selected_by": one.selected_by}


def _alike(one: Tuned, other: Tuned) -> bool:
    """Whether both were scored on the same examples, so that one may stand beside the other."""
    return (one.scored.split, one.scored.data) == (other.scored.split, other.scored.data)


def _outcomes(tuned: Sequence[Tuned]) -> Iterator[Outcome]:
    for one in tuned:
        name = "from scratch" if one.scratch else "fine-tuned" if one.trained else "as pre-trained"
        if found := one.by_language(name):
            yield found


def heat_maps(shown: Sequence[Row]) -> list[str]:
    """A heat map for each task, with its rows by their names."""
    out = []
    for task, mine in by_heading(shown).items():
        out.append(
            heat_map(
                {row.name: row.scores for row in mine},
                columns(mine),
                {row.name: row.tuned for row in mine},
                f"{task} by language, %",
            )
        )
    return out


def _details(best: dict[str, Tuned], fresh: dict[str, Tuned]) -> list[str]:
    kinds = best["vqa"].metrics.get("by_kind") if "vqa" in best else None
    if not kinds:
        return []
    series = {"pre-trained": list(kinds.values())}
    if "vqa" in fresh and _alike(best["vqa"], fresh["vqa"]):
        series["from scratch"] = [fresh["vqa"].metrics["by_kind"].get(k, 0.0) for k in kinds]
    return [bars(list(kinds), series, "Answers by kind of question")]


def _curves(journal: Sequence[dict[str, Any]]) -> list[str]:
    names = sorted({k for x in journal for k in x})
    held = {
        n: n.removeprefix("held/").removesuffix("/loss")
        for n in names
        if n.startswith("held/") and n.endswith("/loss")
    }
    losing = [n for n in names if n.endswith("/loss") and n not in held]
    objectives = sorted(n.removesuffix("/loss") for n in losing)
    # every objective has a label in both plots, so that it has one colour
    losses = {f"{o}/loss": o for o in objectives}
    right = {f"{o}/correct": o for o in objectives}
    plots = []
    if losses:
        plots.append(curves(journal, losses, "Loss by objective"))
    if any(n in names for n in right):
        plots.append(curves(journal, right, "Share predicted correctly", share=True))
    plots += [_by_language(journal, o) for o in objectives if _languages(journal, o)]
    if held:
        plots.append(curves(journal, held, "Loss on data held back"))
    return plots


def _languages(journal: Sequence[dict[str, Any]], objective: str) -> dict[str, float]:
    """The last loss of an objective in each language."""
    start = f"{objective}/loss/"
    return {
        name.removeprefix(start): value
        for line in journal
        for name, value in line.items()
        if name.startswith(start)
    }


def _by_language(journal: Sequence[dict[str, Any]], objective: str) -> str:
    """Losses by language; of many languages the ten whose last loss is the highest."""
    last = _languages(journal, objective)
    highest = sorted(sorted(last, key=last.__getitem__, reverse=True)[:10])
    most = "" if len(last) <= 10 else f", highest of {len(last)}"
    names = {f"{objective}/loss/{x}": x for x in highest}
    return curves(journal, names, f"Loss by language: {objective}{most}")


def _shares(run: Path) -> list[str]:
    """How much of the data and of the run each component is, where there are several."""
    shares = read_shares(run)
    if len(shares) < 2:
        return []
    rows = {x.component: (x.data, x.run) for x in shares}
    return [moves(rows, "Share of each component", ("of the data", "of the run"))]


def _album(tuned: Tuned) -> tuple[Recipe, Any, Album] | None:
    """The recipe, the task and the samples as they were evaluated; None when the data is gone."""
    recipe = override(open_run(tuned.folder), tuned.scored.overrides)
    recipe = replace(recipe, data=tuned.scored.data or recipe.data)
    task, _ = make_task(tuned.task, assigned(tuned.scored.settings))
    component = task.component(recipe)
    if isinstance(task, Choice):
        component = replace(component, reader=task.tested_with(recipe))
    try:
        source = task.source(recipe, component, task.test)
    except ShardError:
        return None
    return recipe, task, Album(source)


def _pick(records: Sequence[dict[str, Any]], right: int, wrong: int) -> list[dict[str, Any]]:
    """Some right and some wrong examples, of those scored, spread over kinds and languages."""
    chosen: list[dict[str, Any]] = []
    for good, count in ((True, right), (False, wrong)):
        left = [r for r in records if r["score"] is not None and (r["score"] > 0) == good]
        seen: dict[tuple[Any, ...], int] = {}
        ranked: list[tuple[int, int]] = []
        for record in left:
            group = (record.get("kind"), record.get("language"))
            seen[group] = seen.get(group, 0) + 1
            languages = seen[("", record.get("language"))] = (
                seen.get(("", record.get("language")), 0) + 1
            )
            kinds = seen[(record.get("kind"), "")] = seen.get((record.get("kind"), ""), 0) + 1
            ranked.append((seen[group] + languages + kinds, len(ranked)))
        chosen += [left[n] for _, n in sorted(ranked)[:count]]
    return chosen


def _answers(tuned: Tuned | None) -> list[dict[str, Any]]:
    if tuned is None or (opened := _album(tuned)) is None:
        return []
    recipe, task, album = opened
    chosen = _pick([r for r in tuned.records if r["key"] in album], 6, 3)
    if not chosen:
        return []
    model = make_model(recipe)
    start_from(model, load_weights(tuned.folder)[0])
    text, image = task.streams(recipe)
    looks = gazes(model, recipe, album.source, [r["key"] for r in chosen], "vqa", text, image)
    rows = []
    for record in chosen:
        gaze = looks.get(record["key"], Gaze([], [], []))
        words = [w.replace("▁", " ") for w in gaze.words]
        rows.append(
            {
                **record,
                "picture": album.picture(record["key"]),
                "boxes": gaze.boxes,
                "words": words or [record["question"]],
                "weights": json.dumps([[round(x, 4) for x in row] for row in gaze.weights]),
                "answer": ", ".join(record["answers"]),
            }
        )
    return rows


def _searches(tuned: Tuned | None) -> list[dict[str, Any]]:
    if tuned is None or (opened := _album(tuned)) is None:
        return []
    _, _, album = opened
    rows = []
    there = [r for r in tuned.records if all(k in album for k in (r["image"], *r["found"]))]
    for record in _pick(there, 3, 3):
        shown = []
        for place, key in enumerate(record["found"], 1):
            kind = "hit" if key == record["image"] else ""
            shown.append(
                {"key": key, "kind": kind, "label": str(place), "picture": album.picture(key)}
            )
        if record["image"] not in record["found"]:
            picture = album.picture(record["image"])
            shown.append(
                {"key": record["image"], "kind": "aim", "label": "right", "picture": picture}
            )
        rows.append({**record, "found": shown})
    return rows


def _inferences(tuned: Tuned | None) -> list[dict[str, Any]]:
    if tuned is None:
        return []
    taught = _taught(tuned)
    return _pick([r for r in tuned.records if r["language"] not in taught], 8, 4)


def _taught(tuned: Tuned | None) -> Sequence[str]:
    """Languages fine-tuned on, where they are some; empty for all and for none."""
    return tuned.settings.get("languages", ()) if tuned else ()


def _commands(recipe: Recipe, tuned: Sequence[Tuned]) -> list[str]:
    lines = [f"crossloom pretrain {recipe.name}"]
    for one in tuned:
        words = ["crossloom", "finetune", one.task, *one.assignments, "--from", recipe.name]
        words += ["--scratch"] if one.scratch else []
        if one.trained:
            lines.append(shlex.join(words))
        words = ["crossloom", "evaluate", one.task, *one.scored.assignments]
        lines.append(shlex.join([*words, "--from", one.folder.name]))
    return lines
