"""Results by language, grouped by script: what tables and heat maps show of several results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossloom.evaluation.scripts import script_of

#: A task's ``tested`` and ``languages`` are one and the same language: a run for each language.
OWN = "each language by itself"


@dataclass(frozen=True)
class Row:
    """The scores of one system on one task."""

    name: str
    task: str
    scores: Mapping[str, float]  #: by language, 0..1
    tuned: frozenset[str]  #: languages fine-tuned on, of those that have a score
    split: str = ""  #: on which it was scored, and of which data if not its own


@dataclass(frozen=True)
class Outcome:
    """One result by language, with the settings of its task."""

    name: str
    task: str
    scores: Mapping[str, float]
    languages: tuple[str, ...] | None  #: fine-tuned on; empty for all, None where nothing was tuned
    tested: tuple[str, ...] = ()
    split: str = ""

    @property
    def alone(self) -> bool:
        """Fine-tuned and tested in one language: translate-train."""
        return bool(self.languages) and len(self.tested) == 1 and self.tested == self.languages


def on_split(task: str, split: str) -> str:
    """How a task's figures on a split are called."""
    return f"{task} on {split}" if split else task


def outcome(
    name: str,
    task: str,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    tuned: bool,
    split: str = "",
) -> Outcome | None:
    """What a result tells by language; None where it tells nothing."""
    scores = metrics.get("by_language") or {}
    # captioning once wrote all its figures there
    scores = {k: v for k, v in scores.items() if not isinstance(v, Mapping)}
    if not scores:
        return None
    tested = settings.get("tested") or ()
    return Outcome(
        name,
        task,
        {str(k): float(v) for k, v in scores.items()},
        tuple(settings.get("languages") or ()) if tuned else None,
        tuple(tested) if not isinstance(tested, str) else (tested,),
        split,
    )


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row for each system, task and split: means over seeds, runs in one language put together.

    Tasks that are told in one and the same language alone have none.
    """
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        name = f"{one.name}, {OWN}" if one.alone else one.name
        groups.setdefault((one.task, one.split, name), []).append(one)
    found = []
    for (task, split, name), members in groups.items():
        codes = dict.fromkeys(code for m in members for code in m.scores)
        scores = {
            code: statistics.fmean(m.scores[code] for m in members if code in m.scores)
            for code in codes
        }
        tuned = {
            code
            for m in members
            for code in m.scores
            if m.languages is not None and (not m.languages or code in m.languages)
        }
        found.append(Row(name, task, scores, frozenset(tuned), split))
    several = {
        heading
        for heading, together in by_heading(found).items()
        if len({code for row in together for code in row.scores}) > 1
    }
    return [row for row in found if on_split(row.task, row.split) in several]


def by_heading(shown: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that stand together: those of a task on a split, by how that is called."""
    found: dict[str, list[Row]] = {}
    for row in shown:
        found.setdefault(on_split(row.task, row.split), []).append(row)
    return found


def columns(shown: Sequence[Row]) -> dict[str, list[str]]:
    """The languages of rows by script: the script with most languages first, languages sorted."""
    codes = sorted({code for row in shown for code in row.scores})
    groups: dict[str, list[str]] = {}
    for code in codes:
        groups.setdefault(script_of(code), []).append(code)
    return dict(sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])))


def tables(shown: Sequence[Row]) -> list[dict[str, Any]]:
    """For a template, a table for each task on a split.

    It has its ``task`` (with the split), ``scripts``, ``languages`` and ``rows``. A row has its
    ``name`` and ``cells`` in the order of ``languages``: ``told`` (three decimals, or a dash),
    ``value`` (None where there is none) and ``tuned``.
    """
    out = []
    for task, mine in by_heading(shown).items():
        groups = columns(mine)
        languages = [code for some in groups.values() for code in some]
        out.append(
            {
                "task": task,
                "scripts": {script: len(some) for script, some in groups.items()},
                "languages": languages,
                "rows": [
                    {"name": row.name, "cells": [_cell(row, code) for code in languages]}
                    for row in mine
                ],
            }
        )
    return out


def _cell(row: Row, code: str) -> dict[str, Any]:
    value = row.scores.get(code)
    told = "–" if value is None else f"{value:.3f}"
    return {"told": told, "value": value, "tuned": code in row.tuned}
