"""Sentences and translations found by each other, by mean states alone: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.shards import ShardError
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.features import layers_of, means, read_examples
from crossloom.evaluation.nearest import Scoring, nearest
from crossloom.evaluation.task import Result, Task, Watch, check_one_split, split_of
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.training.recipe import Component, Recipe, RecipeError

#: Two languages, and the sentences (by number) that have both: rows of the first and the second.
Pair = tuple[str, str]
Rows = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class SentenceRetrieval(Task):
    """The translation of each sentence among all of the test set (Tatoeba, Multi30K).

    A sentence is the mean of its units' states after a layer. Every two languages that samples have
    in common are a pair, searched both ways; a candidate that reads like the right one is right.
    Shards hold parallel text; of several texts in a language, the first is taken.

    Metrics (0..1): ``accuracy`` (accuracy@1, mean over both directions and all pairs),
    ``by_direction`` (``de-fr``: German asks, French is found), ``by_language`` (mean over the
    directions that a language is in), ``by_layer`` (the accuracy after each layer, 0 for the
    embedding), ``layer``, ``pairs``, ``sentences``.

    After Artetxe & Schwenk (2019, "Massively Multilingual Sentence Embeddings", section 4.3) and
    XTREME (Hu et al. 2020; code of third_party/utils_retrieve.py in google-research/xtreme).
    """

    kind: ClassVar[str] = "sentence-retrieval"
    headlines: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy@1"}
    dev: str = "dev-*.tar"
    """Shards by which the layer is chosen, when none is set."""
    layer: int | None = None
    """The layer whose accuracy counts: 0 for the embedding, 1 for the first, -1 for the last; when
    None, the one that is best on ``dev``. Never chosen on the test set."""
    scoring: Scoring = "cosine"
    """``margin``: relative to both sides' nearest neighbours."""
    languages: tuple[str, ...] = ()
    """Languages tested; empty for all."""
    pivot: str = ""
    """Only pairs with this language (Tatoeba: en); empty for all pairs."""
    least: int = 1
    """Sentences that a pair of languages must have in common to be tested."""

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text alone."""
        return (self.text,)

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """None: there is nothing to train.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            "sentence-retrieval: nothing is trained; `crossloom evaluate sentence-retrieval` on "
            "any run with a text stream"
        )

    def component(self, recipe: Recipe) -> Component:
        """Every text of every sample."""
        reader = Texts(languages=self.languages, all_texts=True)
        return Component(shards=self.test, reader=reader, objectives=())

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Search the test shards both ways, after every layer."""
        check_one_split(self, recipe)
        last = layers_of(recipe, self.text)
        layer = self._layer(model, recipe, last, watch)
        found = self._search(model, recipe, self.test, range(last + 1), watch)
        scores = {n: found.directions(n) for n in range(last + 1)}
        by_direction = scores[layer]
        spoken = dict.fromkeys(code for pair in found.pairs for code in pair)
        metrics = {
            "accuracy": _mean(by_direction.values()),
            "by_language": {
                code: _mean(v for k, v in by_direction.items() if code in k)
                for code in sorted(spoken)
            },
            "by_direction": {"-".join(k): v for k, v in by_direction.items()},
            "by_layer": {str(n): _mean(s.values()) for n, s in scores.items()},
            "layer": layer,
            "pairs": len(found.pairs),
            "sentences": len(found.examples),
        }
        return Result(metrics, found.records(layer), found.defects)

    def _layer(self, model: CrossloomModel, recipe: Recipe, last: int, watch: Watch | None) -> int:
        if self.layer is not None:
            if not -1 <= self.layer <= last:
                raise RecipeError(
                    f"layer: {self.layer}, but {self.text!r} goes through {last}: 0 to {last}, or "
                    "-1 for the last"
                )
            return last if self.layer < 0 else self.layer
        try:
            found = self._search(model, recipe, self.dev, range(last + 1), watch)
        except ShardError as error:
            raise RecipeError(f"{error}; or set the layer: layer=-1 for the last") from None
        return max(range(last + 1), key=lambda n: _mean(found.directions(n).values()))

    def _search(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        shards: str,
        layers: Sequence[int],
        watch: Watch | None,
    ) -> _Found:
        defects: list[Defect] = []
        source = self.source(recipe, self.component(recipe), shards)
        read = read_examples(recipe, source, (self.text,), watch=watch, defects=defects)
        first: dict[tuple[str, str], Example] = {}
        for example in read:
            first.setdefault((example.sample, example.labels["language"]), example)
        examples = list(first.values())
        pairs = self._pairs(list(first))
        if not pairs:
            raise RecipeError(
                f"{shards}: no two languages have {self.least} sentences in common; give shards of "
                "parallel text, or lower least"
            )
        states = means(model, recipe, self.text, examples, layers)
        return _Found(examples, pairs, states, defects, self.scoring)

    def _pairs(self, keys: Sequence[tuple[str, str]]) -> dict[Pair, Rows]:
        """Rows of both languages, sample by sample, for every two languages."""
        places: dict[str, dict[str, int]] = {}
        for row, (sample, language) in enumerate(keys):
            places.setdefault(sample, {})[language] = row
        found: dict[Pair, Rows] = {}
        for row_of in places.values():
            for pair in combinations(sorted(row_of), 2):
                if not self.pivot or self.pivot in pair:
                    rows = found.setdefault(pair, ([], []))
                    for side, language in zip(rows, pair, strict=True):
                        side.append(row_of[language])
        return {p: r for p, r in sorted(found.items()) if len(r[0]) >= self.least}


@dataclass(frozen=True)
class _Found:
    """Sentences with their states, and what is searched for what."""

    examples: list[Example]
    pairs: Mapping[Pair, Rows]
    states: Mapping[int, Tensor]  #: by layer, [sentences, width]
    defects: list[Defect]
    scoring: Scoring

    def best(self, layer: int) -> dict[Pair, tuple[list[int], list[int]]]:
        """By direction, the sentences asked with and those found, by number."""
        out = {}
        for (one, other), rows in self.pairs.items():
            a, b = (torch.tensor(r) for r in rows)
            there, back = nearest(self.states[layer][a], self.states[layer][b], self.scoring)
            out[one, other] = (rows[0], b[there].tolist())
            out[other, one] = (rows[1], a[back].tolist())
        return out

    def text(self, number: int) -> str:
        """What a sentence reads."""
        return str(self.examples[number].labels["text"])

    def right(self, pair: Pair) -> list[int]:
        """The sentences that are to be found in a direction."""
        return self.pairs[pair][1] if pair in self.pairs else self.pairs[pair[::-1]][0]

    def directions(self, layer: int) -> dict[Pair, float]:
        """Accuracy@1 by direction."""
        return {
            pair: _mean(
                float(self.text(n) == self.text(m))
                for n, m in zip(found, self.right(pair), strict=True)
            )
            for pair, (_, found) in self.best(layer).items()
        }

    def records(self, layer: int) -> list[dict[str, Any]]:
        """One for each sentence and direction."""
        return [
            {
                "key": self.examples[asked].key,
                "split": split_of(self.examples[asked].key),
                "language": pair[0],
                "to": pair[1],
                "text": self.text(asked),
                "found": self.text(n),
                "right": self.text(m),
                "score": float(self.text(n) == self.text(m)),
            }
            for pair, (asking, found) in self.best(layer).items()
            for asked, n, m in zip(asking, found, self.right(pair), strict=True)
        ]


def _mean(values: Any) -> float:
    known = list(values)
    return sum(known) / len(known)
