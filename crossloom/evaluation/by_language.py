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


@dataclass(frozen=True)
class Outcome:
    """One result by language, with the settings of its task."""

    name: str
    task: str
    scores: Mapping[str, float]
    languages: tuple[str, ...] | None  #: fine-tuned on; empty for all, None where nothing was tuned
    tested: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Fine-tuned and tested in one language: translate-train."""
        return bool(self.languages) and len(self.tested) == 1 and self.tested == self.languages


def outcome(
    name: str, task: str, metrics: Mapping[str, Any], settings: Mapping[str, Any], tuned: bool
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
    )


def rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """A row for each system and task: means over seeds, runs in one language each put together.

    Tasks that are told in one and the same language alone have none.
    """
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for one in outcomes:
        name = f"{one.name}, {OWN}" if one.alone else one.name
        groups.setdefault((one.task, name), []).append(one)
    found = []
    for (task, name), members in groups.items():
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
        found.append(Row(name, task, scores, frozenset(tuned)))
    told = {row.task: set[str]() for row in found}
    for row in found:
        told[row.task].update(row.scores)
    return [row for row in found if len(told[row.task]) > 1]


def columns(shown: Sequence[Row]) -> dict[str, list[str]]:
    """The languages of rows by script: the script with most languages first, languages sorted."""
    codes = sorted({code for row in shown for code in row.scores})
    groups: dict[str, list[str]] = {}
    for code in codes:
        groups.setdefault(script_of(code), []).append(code)
    return dict(sorted(groups.items(), key=lambda g: (-len(g[1]), g[0])))


def tables(shown: Sequence[Row]) -> list[dict[str, Any]]:
    """For a template, one table for each task: ``task``, ``scripts``, ``languages``, ``rows``.

    A row has its ``name`` and ``cells`` in the order of ``languages``: ``told`` (three decimals, or
    a dash), ``value`` (None where there is none) and ``tuned``.
    """
    out = []
    for task in dict.fromkeys(row.task for row in shown):
        mine = [row for row in shown if row.task == task]
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
