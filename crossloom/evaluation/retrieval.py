"""Retrieval in both directions: a dual encoder ranks all, a matching head the best again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import best_ranks, recall
from crossloom.evaluation.predict import evaluation_collator, predict, run, shown
from crossloom.evaluation.task import Budget, Result, Task, Watch, other_stream
from crossloom.models.model import CrossloomModel
from crossloom.objectives.contrast import ContrastHead
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import itc, itm
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find the image of a text and the text of an image among all of the test set.

    Every text of the languages tested is a query (and a candidate); every sample an image. A model
    with a contrastive head ranks by cosine, and its matching head (if it has one) ranks the best
    ``rerank`` of each query again; a model with a matching head alone scores every pair.

    Metrics: ``text_to_image`` and ``image_to_text`` with ``r1``, ``r5``, ``r10``, ``median_rank``;
    ``dual_encoder`` with the same before reranking; ``images``, ``texts``.
    """

    kind: ClassVar[str] = "retrieval"
    headlines: ClassVar[Mapping[str, str]] = {
        "text_to_image.r1": "text → image, R@1",
        "image_to_text.r1": "image → text, R@1",
        "text_to_image.r10": "text → image, R@10",
    }
    image: str = ""
    """The stream searched; the one beside the text when empty."""
    languages: tuple[str, ...] = ()
    """Languages trained on; empty for all."""
    tested: tuple[str, ...] = ("en",)
    """Languages of the test queries."""
    texts: int = 1
    """Texts of each sample and language used in the test."""
    limit: int = 0
    """Samples tested; 0 for all."""
    rerank: int = 16
    """Candidates that the matching head scores for each query."""
    dim: int = 128
    """Of the common space."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """Contrast and matching; heads that pre-training has are taken over by name."""
        streams = self.streams(recipe)
        given = recipe.objectives.get("itm")
        taken = given is not None and given.kind == "match" and given.view.streams == streams
        match = given if given and taken else itm(streams, mismatch=streams[1])
        return {
            "itc": itc((streams[0], streams[1]), dim=self.dim, pool="mean"),
            "itm": match,
        }

    def component(self, recipe: Recipe) -> Component:
        """A text of each sample in a language drawn anew each time."""
        reader = Texts(languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=("itc", "itm"))

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Rank all texts and images of the test shards."""
        both_streams = set(self.streams(recipe))
        heads = {
            o.kind: n
            for n, o in recipe.objectives.items()
            if o.kind in ("contrast", "match") and set(o.view.streams) == both_streams
        }
        if not heads:
            raise RecipeError(
                f"{recipe.name}: has no contrastive or matching objective over "
                f"{' and '.join(self.streams(recipe))}"
            )
        texts, owner, images, features, defects = self._gather(model, recipe, heads, watch)
        relevant = [[t for t, o in enumerate(owner) if o == i] for i in range(len(images))]
        metrics: dict[str, Any] = {"images": len(images), "texts": len(texts)}
        if features is not None:
            cosine = features[0] @ features[1].T
            both = {"text_to_image": cosine, "image_to_text": cosine.T}
            metrics["dual_encoder"] = _score(both, owner, relevant)
        if "match" in heads:
            scorer = _Scorer(model, recipe, heads["match"], self.streams(recipe), texts, images)
            keep = self.rerank if features is not None else max(len(images), len(texts))
            start = None
            if features is not None:
                head = model.heads[heads["contrast"]]
                assert isinstance(head, ContrastHead)
                scale = float(head.scale.detach().exp())
                start = {name: scale * scores for name, scores in both.items()}
            both = scorer.rerank(start, keep, watch)
        metrics |= _score(both, owner, relevant)
        return Result(metrics, _records(both["text_to_image"], texts, owner, images), defects)

    def _gather(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        heads: Mapping[str, str],
        watch: Watch | None,
    ) -> tuple[list[Example], list[int], list[Example], tuple[Array, Array] | None, list[Defect]]:
        """Texts, whose image each tells of, images, and their features (if there is a head)."""
        reader = Texts(languages=self.tested, all_texts=True)
        component = Component(shards=self.test, reader=reader, objectives=())
        source = self.source(recipe, component, self.test)
        defects: list[Defect] = []
        names = (heads["contrast"],) if "contrast" in heads else (heads["match"],)
        texts: list[Example] = []
        owner: list[int] = []
        images: dict[str, Example] = {}
        used: dict[tuple[str, str], int] = {}
        rows: list[torch.Tensor] = []
        first: list[int] = []
        for part in predict(model, recipe, source, names, progress=watch, defects=defects):
            for number, example in enumerate(part.examples):
                if example.sample not in images:
                    if self.limit and len(images) == self.limit:
                        continue
                    images[example.sample] = example
                    first.append(len(texts))
                group = (example.sample, example.labels["language"])
                used[group] = used.get(group, 0) + 1
                if used[group] > self.texts:
                    continue
                owner.append(list(images).index(example.sample))
                texts.append(example)
                rows.append(part.outputs[names[0]][number])
        if not texts:
            raise RecipeError(f"{source.shards[0].path}: no text in {', '.join(self.tested)}")
        if "contrast" not in heads:
            return texts, owner, list(images.values()), None, defects
        features = torch.stack(rows).numpy()
        return texts, owner, list(images.values()), (features[:, 0], features[first, 1]), defects


def _score(
    both: Mapping[str, Array], owner: Sequence[int], relevant: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    return {
        "text_to_image": recall(best_ranks(both["text_to_image"], [[o] for o in owner])),
        "image_to_text": recall(best_ranks(both["image_to_text"], relevant)),
    }


def _records(
    scores: Array, texts: Sequence[Example], owner: Sequence[int], images: Sequence[Example]
) -> list[dict[str, Any]]:
    records = []
    for row, text, right in zip(scores, texts, owner, strict=True):
        order = np.argsort(-row, kind="stable")[:5]
        records.append(
            {
                "key": text.key,
                "text": text.labels["text"],
                "language": text.labels["language"],
                "image": images[right].sample,
                "found": [images[i].sample for i in order],
                "score": float(order[0] == right),
            }
        )
    return records


class _Scorer:
    """Scores chosen pairs of texts and images with the matching head."""

    def __init__(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        head: str,
        streams: tuple[str, ...],
        texts: Sequence[Example],
        images: Sequence[Example],
    ) -> None:
        self.model, self.head, self.streams = model, head, streams
        self.collator = evaluation_collator(recipe)
        self.texts, self.images = texts, images

    def rerank(
        self, before: Mapping[str, Array] | None, keep: int, watch: Watch | None
    ) -> dict[str, Array]:
        """Scores in both directions: match added for each query's best ``keep``, the rest below."""
        shape = (len(self.texts), len(self.images))
        wanted = np.zeros(shape, bool)
        if before is None:
            wanted[:] = True
        else:
            for name, scores in before.items():
                best = np.argpartition(-scores, min(keep, scores.shape[1]) - 1, axis=1)[:, :keep]
                for query, row in enumerate(best):
                    for candidate in row:
                        at = (query, candidate) if name == "text_to_image" else (candidate, query)
                        wanted[at] = True
        pairs = np.argwhere(wanted)
        match = np.full(shape, -np.inf)
        for start in range(0, len(pairs), 256):
            some = pairs[start : start + 256]
            match[some[:, 0], some[:, 1]] = self._match(some)
            if watch:
                watch(min(start + 256, len(pairs)), len(pairs))
        out = {"text_to_image": match, "image_to_text": match.T}
        if before is None:
            return out
        # both are log-odds, and add (BLIP); what was not scored keeps its order, below all that was
        return {
            name: before[name] + np.where(np.isfinite(scores), scores, -1e6)
            for name, scores in out.items()
        }

    def _match(self, pairs: Array) -> Array:
        text, image = self.streams
        examples = [
            replace(
                self.texts[t],
                units={text: self.texts[t].units[text], image: self.images[i].units[image]},
            )
            for t, i in pairs
        ]
        batch = shown(self.collator, examples, (self.head,))
        return run(self.model, batch, (self.head,))[self.head].numpy()
