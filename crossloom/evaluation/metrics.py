"""Scores from predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossloom.units import Array


def best_ranks(scores: Array, relevant: Sequence[Sequence[int]]) -> Array:
    """Rank (1 is best) of each query's best relevant candidate, ``[Q]`` int64.

    Ties count against the query: a candidate that scores the same is ranked before.

    Args:
        scores: ``[Q, C]``, higher is better.
        relevant: for each query, the numbers of its relevant candidates.
    """
    ranks = np.empty(len(scores), np.int64)
    for query, (row, good) in enumerate(zip(scores, relevant, strict=True)):
        best = row[list(good)].max()
        ties = int((row == best).sum()) - int((row[list(good)] == best).sum())
        ranks[query] = 1 + int((row > best).sum()) + ties
    return ranks


def recall(ranks: Array, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """``r1``, ``r5``, … as shares in 0..1, and ``median_rank``."""
    out = {f"r{k}": float((ranks <= k).mean()) for k in cutoffs}
    return out | {"median_rank": float(np.median(ranks))}


def run_lines(
    scores: Array, queries: Sequence[str], candidates: Sequence[str], depth: int, name: str
) -> str:
    """A ranking in the form of TREC: ``query Q0 candidate rank score name``, a line each.

    Args:
        scores: ``[Q, C]``, higher is better.
        queries, candidates: their names; spaces become ``_``, since they part the columns.
        depth: candidates listed for each query, the best first.
        name: of what ranked them.
    """
    plain = ["_".join(c.split()) for c in candidates]
    label = "_".join(name.split())
    lines = []
    for query, row in zip(queries, scores, strict=True):
        asked = "_".join(query.split())
        for rank, number in enumerate(np.argsort(-row, kind="stable")[:depth], 1):
            lines.append(f"{asked} Q0 {plain[number]} {rank} {row[number]:.6g} {label}\n")
    return "".join(lines)


def mean_by(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """Mean of the values in each group, groups in sorted order."""
    found: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        found.setdefault(group, []).append(value)
    return {g: float(np.mean(v)) for g, v in sorted(found.items())}


def mean_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested metrics that are each the mean of the same one of the parts."""
    return {
        k: mean_of([p[k] for p in parts])
        if isinstance(value, Mapping)
        else float(np.mean([p[k] for p in parts]))
        for k, value in parts[0].items()
    }


def language_means(found: Mapping[str, Mapping[str, Any]], figure: str) -> dict[str, Any]:
    """Metrics of each language; of several also their means, over all and over all but English.

    Args:
        found: nested metrics by language.
        figure: dotted path of the one that stands for the others.

    Returns:
        Those of the one language; or the means over all, ``non_english`` (what IGLUE reports of
        zero-shot transfer: Bugliarello et al. 2022, section 5), ``languages`` (all of each) and
        ``by_language`` (the one figure of each).
    """
    if len(found) == 1:
        return dict(next(iter(found.values())))
    return {
        **mean_of(list(found.values())),
        "non_english": mean_of([one for code, one in found.items() if code != "en"]),
        "languages": dict(found),
        "by_language": {code: flat(one)[figure] for code, one in found.items()},
    }


def seen_and_unseen(
    by_language: Mapping[str, float], seen: Sequence[str]
) -> dict[str, float | None]:
    """Means over languages: ``mean``, ``fine_tuned_mean`` and ``zero_shot_mean``.

    Args:
        by_language: the score in each language tested.
        seen: languages fine-tuned on; empty for all.

    Returns:
        Each mean, None where no language is.
    """
    known = {code for code in by_language if not seen or code in seen}
    parts = {
        "mean": list(by_language.values()),
        "fine_tuned_mean": [v for k, v in by_language.items() if k in known],
        "zero_shot_mean": [v for k, v in by_language.items() if k not in known],
    }
    return {k: float(np.mean(v)) if v else None for k, v in parts.items()}


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Nested metrics as ``a.b.c`` → number."""
    out: dict[str, float] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{path}.")
        elif isinstance(value, (int, float)):
            out[path] = float(value)
    return out


def tables(metrics: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Metrics as people read them, heads and rows: the plain ones, then each language in a row."""
    languages = metrics.get("languages") or metrics.get("by_language", {})
    apart = ("languages", "by_language", "non_english")
    plain = {k: v for k, v in metrics.items() if k not in apart}
    made = [(["metric", "value"], [[k, _said(v)] for k, v in flat(plain).items()])]
    if languages:
        rows = dict(languages)
        if "non_english" in metrics:
            rows["all but en"] = metrics["non_english"]
        each = {k: flat(v if isinstance(v, Mapping) else {"": v}) for k, v in rows.items()}
        names = list(next(iter(each.values())))
        heads = ["language", *(n or "value" for n in names)]
        made.append((heads, [[k, *(_said(v[n]) for n in names)] for k, v in each.items()]))
    return made


def _said(value: float) -> str:
    return f"{value:.4f}" if value % 1 else f"{value:.0f}"
