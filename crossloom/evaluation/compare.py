"""Systems side by side: mean and spread over seeds, as a table and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossloom.evaluation.by_language import Row, on_split, rows, tables
from crossloom.evaluation.plots import spreads
from crossloom.evaluation.report import Tuned, heat_maps, lookup, tuned_run, tuned_runs
from crossloom.plugins import find
from crossloom.training.checkpoint import write_atomically
from crossloom.training.recipe import Recipe, RecipeError, to_dict
from crossloom.training.run import open_run


@dataclass(frozen=True)
class Score:
    """One figure of one system, over its seeds."""

    system: str
    scratch: bool  #: fine-tuned from fresh weights: the baseline
    task: str
    figure: str  #: dotted path in the task's metrics
    label: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]  #: in the order of the seeds
    split: str = ""  #: on which it was scored, and of which data if not its own

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1), None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def told(self) -> str:
        """Mean ± deviation."""
        after = "" if self.spread is None else f" ± {self.spread:.3f}"
        return f"{self.mean:.3f}{after}"


#: Runs that differ in nothing but the seed, with their seeds, by task and what must be equal.
Groups = dict[tuple[str, str], list[tuple[int, Tuned]]]


def compare(runs: Sequence[Path]) -> list[Score]:
    """Scores of all that was fine-tuned from these runs, or of fine-tuned runs given themselves.

    What a run was evaluated on without fine-tuning counts too. Runs that differ in nothing but the
    seed, nor in what they were evaluated on, are one system, named after the recipe of the
    pre-trained run; those of one name that differ in more are told apart by their folders.

    Raises:
        RecipeError: a path is no run directory, nothing was evaluated, or a seed comes twice.
    """
    groups = _groups(runs)
    names = _names(groups)
    scores = []
    for key, members in groups.items():
        seeds = tuple(seed for seed, _ in members)
        for figure, label in find("task", key[0]).headlines.items():
            values = [lookup(t.metrics, figure) for _, t in members]
            if all(v is not None for v in values):
                found = tuple(v for v in values if v is not None)
                first = members[0][1]
                scores.append(
                    Score(
                        names[key],
                        first.scratch,
                        first.task,
                        figure,
                        label,
                        seeds,
                        found,
                        first.scored.told,
                    )
                )
    return scores


def languages(runs: Sequence[Path]) -> list[Row]:
    """The same by language: a row for each system and task that tells them.

    Raises:
        RecipeError: as in :func:`compare`.
    """
    groups = _groups(runs)
    names = _names(groups)
    outcomes = []
    for key, members in groups.items():
        for _, one in members:
            name = f"{names[key]}, from scratch" if one.scratch else names[key]
            found = one.by_language(name)
            if found and found.alone:  # its runs differ in the language, and are one row
                found = replace(found, name=_plain_name(one))
            if found:
                outcomes.append(found)
    return rows(outcomes)


def _groups(runs: Sequence[Path]) -> Groups:
    tuned = {(t.folder.resolve(), t.task): t for run in runs for t in _of(run)}
    if not tuned:
        raise RecipeError(
            f"{runs[0]}: nothing fine-tuned and evaluated there or beside it; use "
            "`crossloom finetune TASK --from RUN` and `crossloom evaluate`"
        )
    groups: Groups = {}
    for one in tuned.values():
        recipe = open_run(one.folder)
        groups.setdefault((one.task, _identity(recipe, one)), []).append((recipe.seed, one))
    for members in groups.values():
        members.sort(key=lambda x: x[0])
        seeds = [seed for seed, _ in members]
        if len(set(seeds)) < len(seeds):
            twice = [str(t.folder) for s, t in members if seeds.count(s) > 1]
            raise RecipeError(
                f"{' and '.join(twice)}: the same recipe with the same seed; give one of them"
            )
    return groups


def _plain_name(one: Tuned) -> str:
    return open_run(one.folder).name.removesuffix(f"-{one.task}")


def _of(run: Path) -> list[Tuned]:
    """The run itself if it is a fine-tuned one, else those fine-tuned from it."""
    open_run(run)
    if not (run / "task.json").is_file():
        return tuned_runs(run)
    found = tuned_run(run)
    if found is None:
        raise RecipeError(f"{run}: not evaluated yet; use `crossloom evaluate`")
    return [found]


def _identity(recipe: Recipe, tuned: Tuned) -> str:
    """What must be equal for two runs to differ by seed alone."""
    parts = [recipe]
    if recipe.start and (Path(recipe.start) / "recipe.yaml").is_file():
        parts.append(open_run(recipe.start))
    plain = [_without_vocabulary(to_dict(replace(r, seed=0, start="", data=""))) for r in parts]
    settings = {k: v for k, v in tuned.settings.items() if k != "budget"}
    scored = asdict(replace(tuned.scored, assignments=()))
    return json.dumps([plain, settings, scored, tuned.scratch], sort_keys=True)


def _without_vocabulary(values: dict[str, Any]) -> dict[str, Any]:
    """Each run keeps its own copy; that they hold the same is no business of this comparison."""
    for modality in values["modalities"].values():
        modality.pop("vocabulary", None)
    return values


def _names(groups: Groups) -> dict[Any, str]:
    """A name for each group: the recipe's, with its first folder where one name means several."""
    plain = {}
    for key, members in groups.items():
        first = members[0][1]
        plain[key] = (first.task, _plain_name(first), first.scratch)
    shared = list(plain.values())
    return {
        key: what[1] if shared.count(what) == 1 else f"{what[1]} ({groups[key][0][1].folder.name})"
        for key, what in plain.items()
    }


def table(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a system a row, a figure a column, systems in the order given."""
    columns = list(dict.fromkeys((_heading(s), s.figure) for s in scores))
    rows = []
    for system, scratch in dict.fromkeys((s.system, s.scratch) for s in scores):
        own = [s for s in scores if (s.system, s.scratch) == (system, scratch)]
        mine = {(_heading(s), s.figure): s for s in own}
        seeds = max(len(s.seeds) for s in mine.values())
        name = f"{system}, from scratch" if scratch else system
        cells = [mine[c].told if c in mine else "–" for c in columns]
        rows.append([name, str(seeds), *cells])
    return ["system", "seeds", *(heading for heading, _ in columns)], rows


def _heading(score: Score) -> str:
    return f"{on_split(score.task, score.split)}: {score.label}"


def plot(scores: Sequence[Score]) -> list[str]:
    """One SVG for each figure: every seed a dot, the mean a bar, the deviation a line.

    A figure of one system with one seed is told by the table.
    """
    out = []
    for heading, figure in dict.fromkeys((_heading(s), s.figure) for s in scores):
        mine = [s for s in scores if (_heading(s), s.figure) == (heading, figure)]
        rows = {f"{s.system}, from scratch" if s.scratch else s.system: s.values for s in mine}
        if sum(map(len, rows.values())) < 2:
            continue
        hollow = {f"{s.system}, from scratch" for s in mine if s.scratch}
        out.append(spreads(rows, heading, hollow))
    return out


def write_comparison(scores: Sequence[Score], page: Path, by_language: Sequence[Row] = ()) -> None:
    """The page with tables and plots, and the figures beside it as JSON.

    Args:
        scores: of :func:`compare`.
        page: where it is written.
        by_language: of :func:`languages`.
    """
    import jinja2
    from markupsafe import Markup

    head, rows = table(scores)
    template = files("crossloom.evaluation").joinpath("compare.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    body = environment.from_string(template).render(
        head=head,
        rows=rows,
        plots=[Markup(p) for p in plot(scores)],
        languages=tables(by_language),
        heat=[Markup(p) for p in heat_maps(by_language)],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, body)
    if by_language:
        told = [asdict(r) | {"tuned": sorted(r.tuned)} for r in by_language]
        beside = page.with_name(f"{page.stem}.languages.json")
        write_atomically(beside, json.dumps(told, indent=1, ensure_ascii=False))
    figures = [asdict(s) | {"mean": s.mean, "spread": s.spread} for s in scores]
    write_atomically(page.with_suffix(".json"), json.dumps(figures, indent=1, ensure_ascii=False))
