"""Questions answered by a part of a text: fine-tuned in English, tested in all languages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.marked import Spans
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Defect, defect
from crossloom.evaluation.answers import Rules, best, exact, f1
from crossloom.evaluation.features import read_examples
from crossloom.evaluation.metrics import mean_by, seen_and_unseen
from crossloom.evaluation.predict import evaluation_collator, none_usable, run, shown
from crossloom.evaluation.task import (
    Budget,
    Result,
    Task,
    Watch,
    languages_of,
    split_of,
    trained,
    with_characters,
)
from crossloom.modalities.text import Text
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.objectives.span import Span
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.units import Array, BadSample, Passage

#: Score, first character, one past the last.
Answer = tuple[float, int, int]


@dataclass(frozen=True, kw_only=True)
class XQuad(Task):
    """XQuAD (Artetxe et al. 2020): the answer is a span of the paragraph; exact match and F1.

    Question and paragraph are read as one text; what does not fit is read in windows, of which
    training sees one at a time and the test all. The answer is the best of all windows by the sum
    of the scores of its first and its last unit (BERT, section 4.2).

    Metrics (0..1): ``f1`` and ``exact`` over all questions, ``by_language`` (F1) and
    ``exact_by_language``; ``mean``, ``fine_tuned_mean`` and ``zero_shot_mean`` of the F1 over
    languages; ``questions``, ``windows``. Hands in ``{id: answer}`` for each language, as the
    scripts of SQuAD and MLQA read.
    """

    kind: ClassVar[str] = "xquad"
    headlines: ClassVar[Mapping[str, str]] = {
        "fine_tuned_mean": "F1 in the languages fine-tuned on",
        "zero_shot_mean": "F1 in all other languages",
        "exact": "exact match, all languages",
    }
    languages: tuple[str, ...] = ("en",)
    """Languages fine-tuned on; empty for all."""
    tested: tuple[str, ...] = ()
    """Languages tested; empty for all that the test shards hold."""
    rules: Rules = "squad"
    """How answers are compared; ``mlqa`` knows the articles of more languages, and takes Chinese
    character by character."""
    stride: int = 128
    """Units from the beginning of one window to that of the next, at most."""
    longest: int = 30
    """Units of an answer at most."""
    answers: int = 20
    """Answers listed for each question in the records, the best first."""
    budget: Budget = field(default_factory=lambda: Budget(steps=5000, optim=Optim(rate=3e-5)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text alone."""
        return (self.text,)

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """First and last unit of the answer."""
        view = View(name=self.kind, streams=(self.text,))
        return {self.kind: Span(view=view, stream=self.text)}

    def component(self, recipe: Recipe) -> Component:
        """The questions in the languages fine-tuned on."""
        reader = Spans(languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=(self.kind,))

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """See :meth:`Task.recipe`; the text tells its characters, and is read in windows."""
        return with_characters(super().recipe(base, start), self.text, stride=self.stride)

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """The best span for every question of the test shards."""
        trained(recipe, self.kind, Span)
        text = recipe.modalities[self.text]
        assert isinstance(text, Text)
        text = replace(text, stride=self.stride)  # fine-tuning's may be another
        tested = self.tested or self._languages(recipe)
        reader = Spans(languages=tested, all_languages=True)
        component = replace(self.component(recipe), reader=reader)
        source = self.source(recipe, component, self.test)
        shards = {shard.name: shard for shard in source.shards}
        defects: list[Defect] = []
        collator = evaluation_collator(recipe)
        records, windows = [], 0
        questions = read_examples(recipe, source, (), defects=defects)
        model.eval()
        for number, asked in enumerate(questions, start=1):
            label = asked.labels
            passages = [Passage(label["language"], label[k]) for k in ("question", "context")]
            try:
                read = text.windows({text.field: passages})
            except BadSample as error:
                name, _, key = asked.sample.partition("/")
                defects.append(defect(shards[name], key, error, {}))
                read = []
            if read:
                pieces = [
                    replace(asked, key=f"{asked.key}~{n}", units={self.text: units})
                    for n, units in enumerate(read)
                ]
                batch = shown(collator, pieces, (self.kind,))
                scores = run(model, batch, (self.kind,))[self.kind].numpy()
                records.append(self._record(asked, self._best(pieces, scores)))
                windows += len(pieces)
            if watch:
                watch(number, len(questions))
        if not records:
            raise none_usable(source, defects)
        return Result(self._metrics(records, windows), records, defects, _files(records))

    def _best(self, windows: Sequence[Example], scores: Array) -> list[Answer]:
        """The best answers of all windows, each span once."""
        found: dict[tuple[int, int], float] = {}
        for window, row in zip(windows, scores, strict=True):
            characters = window.units[self.text].targets["characters"]
            for score, first, last in best_spans(row, characters, self.longest, self.answers):
                span = int(characters[first, 1]), int(characters[last, 2])
                found[span] = max(score, found.get(span, -math.inf))
        ordered = sorted(((v, *k) for k, v in found.items()), key=lambda a: -a[0])
        return ordered[: self.answers]

    def _record(self, asked: Example, found: Sequence[Answer]) -> dict[str, Any]:
        label = asked.labels
        texts = [label["context"][a:b].strip() for _, a, b in found] or [""]
        top = found[0][0] if found else 0.0
        shares = [math.exp(score - top) for score, _, _ in found] or [1.0]
        said, language = texts[0], label["language"]
        scores = {
            name: best(score, said, label["answers"], language, self.rules)
            for name, score in (("exact", exact), ("f1", f1))
        }
        return {
            "key": asked.key,
            "id": label["id"],
            "split": split_of(asked.key),
            "language": language,
            "question": label["question"],
            "answers": label["answers"],
            "predicted": said,
            "probability": shares[0] / sum(shares),
            "listed": [
                {"text": t, "probability": s / sum(shares)}
                for t, s in zip(texts, shares, strict=True)
            ],
            **scores,
            "score": scores["f1"],
        }

    def _metrics(self, records: Sequence[Mapping[str, Any]], windows: int) -> dict[str, Any]:
        spoken = [r["language"] for r in records]
        by = {name: mean_by([r[name] for r in records], spoken) for name in ("f1", "exact")}
        return {
            "f1": sum(r["f1"] for r in records) / len(records),
            "exact": sum(r["exact"] for r in records) / len(records),
            "by_language": by["f1"],
            "exact_by_language": by["exact"],
            **seen_and_unseen(by["f1"], self.languages),
            "questions": len(records),
            "windows": windows,
        }

    def _languages(self, recipe: Recipe) -> tuple[str, ...]:
        """Languages of all questions of the test shards."""
        return languages_of(open_shards(self.test, recipe.data), "spans", "text")


def best_spans(
    scores: Array, characters: Array, longest: int, count: int, passage: int = 1
) -> list[tuple[float, int, int]]:
    """The spans of a passage with the highest sums of scores: sum, first and last unit.

    Args:
        scores: ``[L, 2]``, of each unit as the first and as the last; L at least the units.
        characters: ``[N, 3]`` of the units (``Text.characters``).
        longest: units of a span at most.
        count: spans wanted.
        passage: in which they lie.
    """
    place = np.flatnonzero(characters[:, 0] == passage)
    first, last = scores[place, 0], scores[place, 1]
    spans = first[:, None] + last[None]
    distance = np.arange(len(place))[None] - np.arange(len(place))[:, None]
    spans = np.where((distance >= 0) & (distance < longest), spans, -np.inf).ravel()
    top = np.argsort(-spans, kind="stable")[:count]
    return [
        (float(spans[n]), int(place[n // len(place)]), int(place[n % len(place)]))
        for n in top
        if np.isfinite(spans[n])
    ]


def _files(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    out: dict[str, dict[str, str]] = {}
    for record in records:
        out.setdefault(record["language"], {})[record["id"]] = record["predicted"]
    return {
        f"xquad.predictions.{language}.json": json.dumps(said, ensure_ascii=False)
        for language, said in sorted(out.items())
    }
