"""One list of answers for questions of several data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from crossloom.data_pipelines.reader import json_of
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.sources.answers import best_answers
from crossloom.data_pipelines.sources.common import answer_list
from crossloom.units import BadSample


def list_answers(
    patterns: str | Sequence[str],
    most: int = 0,
    least: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[str]:
    """The best answers of all questions in shards, the most frequent first.

    Of answers that are as frequent, those first that are so by their letters: the list follows from
    the questions alone. Samples that cannot be used and questions without answers are left out.

    Args:
        patterns: of shards, see :func:`~crossloom.data_pipelines.shards.open_shards`; the training
            ones, since tests must not shape what can be answered.
        most: answers that are kept; 0 for all.
        least: questions that an answer must be the best of.
        progress: called with (samples read, all).

    Raises:
        ShardError: shards are missing or no tars.
        ValueError: no question has an answer, or there are fewer answers than ``most``.
    """
    best: Counter[str] = Counter()
    shards = open_shards(patterns)
    total = sum(shard.samples for shard in shards)
    done = 0
    for shard in shards:
        for entry in shard.entries:
            if entry.items.get("questions"):
                try:
                    content = json_of(shard, entry)
                except BadSample:
                    continue
                given = [q.get("answers") for q in content["questions"]]
                best.update(max(x, key=x.__getitem__) for x in given if x)
            done += 1
            if progress is not None:
                progress(done, total)
    found = best_answers(best, least)
    if len(found) < max(1, most):
        raise ValueError(
            f"{len(found)} answers to the questions of {len(shards)} shards (best of {least} or "
            f"more); {most or 1} are wanted: lower --most or --least, or name further sets"
        )
    return found[:most] if most else found


def write_answers(answers: Sequence[str], path: Path) -> None:
    """Write answers one a line, as objectives read them (``classes: answers.txt``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(answer_list(answers), "utf-8")
