"""A class for each word: parts of speech, names; fine-tuned in some languages, tested in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from crossloom.data_pipelines.marked import Words
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.chunks import are_chunks, chunk_scores
from crossloom.evaluation.metrics import seen_and_unseen
from crossloom.evaluation.predict import predict
from crossloom.evaluation.task import (
    Budget,
    Result,
    Task,
    Watch,
    split_of,
    trained,
    with_characters,
)
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.objectives.tag import Tag, first_units
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tagging(Task):
    """Sequence labelling: each word's class, read off its first unit (BERT, section 5.3).

    Words beyond the text stream's limit are not tagged (``predicted`` is None): they are wrong,
    whatever their tag, and to chunks they are outside of names.
    Weights are selected by the share of tags right on ``dev`` shards of English.

    Metrics (0..1): ``accuracy`` over words; where the tags are of chunks (``B-PER``, ``I-PER``,
    ``O``), ``precision``, ``recall`` and ``f1`` over chunks, as ``conlleval`` and seqeval count;
    ``by_language`` (the F1 if there is one, else the accuracy), ``mean``, ``fine_tuned_mean`` and
    ``zero_shot_mean`` of it over languages, ``by_split``; ``sentences``, ``words``, ``cut`` (words
    beyond the limit).

    Hands in the words with right and predicted tag, for each language, as ``conlleval`` reads them.
    """

    kind: ClassVar[str] = "tagging"
    headlines: ClassVar[Mapping[str, str]] = {
        "accuracy": "words right",
        "f1": "F1 over chunks",
        "fine_tuned_mean": "in the languages fine-tuned on",
        "zero_shot_mean": "in all other languages",
    }
    tagset: str = "upos"
    """Which of the tags that words have, by name."""
    classes: str = ""
    """File below ``data`` that lists the tags, one a line; ``TAGSET.txt`` when empty."""
    languages: tuple[str, ...] = ("en",)
    """Languages fine-tuned on; empty for all."""
    tested: tuple[str, ...] = ()
    """Languages tested; empty for all."""
    dev: str = "dev-*.tar"
    selected_on: tuple[str, ...] = ("en",)
    """Languages of the ``dev`` sentences by which the weights are selected."""
    budget: Budget = field(default_factory=lambda: Budget(steps=1000, optim=Optim(rate=5e-5)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text alone."""
        return (self.text,)

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """A class for each word."""
        view = View(name=self.kind, streams=(self.text,))
        classes = self.classes or f"{self.tagset}.txt"
        return {self.kind: Tag(view=view, stream=self.text, classes=classes)}

    def component(self, recipe: Recipe) -> Component:
        """The sentences in the languages fine-tuned on."""
        reader = Words(tagset=self.tagset, languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=(self.kind,))

    def dev_reader(self, recipe: Recipe) -> Words:
        """The sentences in the languages that the weights are selected on."""
        return Words(tagset=self.tagset, languages=self.selected_on)

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """See :meth:`Task.recipe`; the text tells its characters."""
        return with_characters(super().recipe(base, start), self.text)

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """The most likely class of each word of the test shards."""
        objective = trained(recipe, self.kind, Tag)
        names = objective.names()
        reader = Words(tagset=self.tagset, languages=self.tested)
        component = replace(self.component(recipe), reader=reader)
        source = self.source(recipe, component, self.test)
        defects: list[Defect] = []
        records: list[Record] = []
        asked = (self.kind,)
        for part in predict(model, recipe, source, asked, progress=watch, defects=defects):
            best = part.outputs[self.kind].argmax(2)
            for example, row in zip(part.examples, best, strict=True):
                label = example.labels
                characters = example.units[self.text].targets["characters"]
                places = torch.from_numpy(first_units(characters, label["words"]))
                said = [names[int(row[p])] if p >= 0 else None for p in places]
                words = [label["text"][a:b] for a, b in label["words"]]
                right = [a == b for a, b in zip(said, label["tags"], strict=True)]
                records.append(
                    {
                        "key": example.key,
                        "id": label["id"],
                        "split": split_of(example.key),
                        "language": label["language"],
                        "words": words,
                        "tags": label["tags"],
                        "predicted": said,
                        "cut": int((places < 0).sum()),
                        "score": sum(right) / len(right),
                    }
                )
        return Result(self._metrics(records, names), records, defects, _files(records))

    def _metrics(self, records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
        figure = "f1" if are_chunks(names) else "accuracy"
        metrics = _scores(records, figure == "f1")
        by: dict[str, dict[str, float]] = {}
        for name in ("language", "split"):
            groups = sorted({r[name] for r in records})
            by[name] = {
                g: _scores([r for r in records if r[name] == g], figure == "f1")[figure]
                for g in groups
            }
        return {
            **metrics,
            "by_language": by["language"],
            "by_split": by["split"],
            **seen_and_unseen(by["language"], self.languages),
            "sentences": len(records),
            "words": sum(len(r["words"]) for r in records),
            "cut": sum(r["cut"] for r in records),
        }


def _scores(records: Sequence[Record], of_chunks: bool) -> dict[str, float]:
    pairs = [(r["tags"], r["predicted"]) for r in records]
    right = sum(a == b for tags, said in pairs for a, b in zip(tags, said, strict=True))
    scores = {"accuracy": right / sum(len(tags) for tags, _ in pairs)}
    if of_chunks:
        scores |= chunk_scores([r["tags"] for r in records], [_outside(r) for r in records])
    return scores


def _outside(record: Record) -> list[str]:
    """The tags predicted; words that have none are outside of names."""
    return [tag or "O" for tag in record["predicted"]]


def _files(records: Sequence[Record]) -> dict[str, str]:
    """Word, right and predicted tag a line, a blank line after each sentence; by language."""
    out: dict[str, list[str]] = {}
    for record in records:
        rows = zip(record["words"], record["tags"], _outside(record), strict=True)
        lines = "".join(f"{word} {tag} {said}\n" for word, tag, said in rows)
        out.setdefault(record["language"], []).append(lines)
    return {f"tagging.predictions.{k}.txt": "\n".join(v) for k, v in sorted(out.items())}
