"""Retrieval in both directions: a dual encoder ranks all, a matching head the best again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.features import features, read_examples
from crossloom.evaluation.metrics import best_ranks, language_means, mean_of, recall, run_lines
from crossloom.evaluation.predict import evaluation_collator, run, shown
from crossloom.evaluation.task import (
    Budget,
    Result,
    Task,
    Watch,
    check_one_split,
    other_stream,
    pooling,
    split_of,
)
from crossloom.models.model import CrossloomModel
from crossloom.objectives.contrast import ContrastHead
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import itc, itm
from crossloom.objectives.rank import Rank
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError
from crossloom.units import Array

BOTH = ("text_to_image", "image_to_text")


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find the image of a text and the text of an image among all of the test set.

    Every text of the languages tested is a query (and a candidate); every sample an image. A model
    with a contrastive head ranks by cosine, and its matching head (if it has one) ranks the best
    ``rerank`` of each query again; a model with a matching head alone scores every pair. A run can
    be evaluated as it was pre-trained (zero-shot), or fine-tuned as ``by`` says.

    Metrics: ``text_to_image`` and ``image_to_text`` with ``r1``, ``r5``, ``r10``, ``median_rank``;
    ``dual_encoder`` with the same before reranking; ``images``, ``texts``. An image is found with
    any of its texts. With ``fold`` also ``folds``, and ``left_out``, the images that fill none.
    Of several languages each is tested by itself: ``languages`` holds the same
    for each (``by_language`` the first of them alone, R@1 of images), ``non_english`` the means
    over those but English, and the others are means over all.
    Rankings are written as TREC runs (query, Q0, candidate, rank, score, name).

    Protocols: Flickr30k and COCO's 5k with ``texts=0`` (all five captions); COCO's 1k with
    ``texts=0 fold=1000`` (the mean over folds of 1,000 images).
    """

    kind: ClassVar[str] = "retrieval"
    headlines: ClassVar[Mapping[str, str]] = {
        "text_to_image.r1": "text → image, R@1",
        "image_to_text.r1": "image → text, R@1",
        "text_to_image.r10": "text → image, R@10",
    }
    image: str = ""
    """The stream searched; the one beside the text when empty."""
    by: Literal["contrast", "match", "choice", "triplet"] = "contrast"
    """How fine-tuning trains. ``contrast``: a contrastive and a matching head (ALBEF). ``match``:
    a matching head alone, half of the pairs with another image or text (Oscar). ``choice``: the
    right pair among ``others`` with another text or image (ViLBERT: 3). ``triplet``: by a margin
    above each of them (UNITER: 2)."""
    others: int = 3
    """Wrong pairs that each right one is compared with, images and texts by turns."""
    hard: int = 0
    """Train on so many of the ``others`` only, those that the model itself scores highest (UNITER's
    hard negatives: 31 of 399); 0 for all."""
    languages: tuple[str, ...] = ()
    """Languages trained on; empty for all."""
    tested: tuple[str, ...] = ("en",)
    """Languages of the test queries, one after another."""
    texts: int = 1
    """Texts of each sample and language used in the test; 0 for all."""
    limit: int = 0
    """Samples tested; 0 for all."""
    fold: int = 0
    """Images that are searched together; metrics are means over such folds, and what fills none is
    left out. 0 for all in one."""
    rerank: int = 16
    """Candidates that the matching head scores for each query."""
    dim: int = 128
    """Of the common space, where the recipe has no contrastive head yet."""
    depth: int = 100
    """Candidates listed for each query in the files."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """Contrast and matching, or ranking; heads of pre-training are taken over by name."""
        streams = self.streams(recipe)
        # nothing is hidden here; whose part it shared is left behind
        there = {
            name: replace(o, view=o.view.clean, shares="")
            for name, o in recipe.objectives.items()
            if set(o.view.streams) == set(streams)
        }
        contrasts = [(n, o) for n, o in there.items() if o.kind == "contrast"]
        matches = [(n, o) for n, o in there.items() if isinstance(o, Match)]
        new = itc((streams[0], streams[1]), dim=self.dim, pool="mean")
        contrast = contrasts[0] if contrasts else ("itc", new)
        fresh = itm(streams, mismatch=streams[1])
        # a head that ranks has the parameters of one that matches
        matches += [
            (n, replace(fresh, **o.pooling)) for n, o in there.items() if isinstance(o, Rank)
        ]
        name, match = matches[0] if matches else ("itm", fresh)
        if match.mined != contrast[0] and not match.view.mismatched:
            # who mined or read its mismatches is not here
            match = replace(match, view=fresh.view, mined="", passages=False)
        if self.by == "contrast":
            # two towers do not read each other: there is nothing to match
            towers = contrasts and not matches
            return dict([contrast] if towers else [contrast, (name, match)])
        pooled = pooling(recipe, streams, self.text)
        if self.by == "match":
            view = View(name="match", streams=streams, mismatch=streams[::-1])
            return {name: Match(view=view, **pooled)}
        turns = (streams[1], streams[0]) * self.others
        return {
            name: Rank(
                view=View(name="rank", streams=streams, against=turns[: self.others]),
                form="softmax" if self.by == "choice" else "triplet",
                hard=self.hard,
                **pooled,
            )
        }

    def component(self, recipe: Recipe) -> Component:
        """A text of each sample in a language drawn anew each time."""
        reader = Texts(languages=self.languages)
        names = tuple(self.objectives(recipe))
        return Component(shards=self.train, reader=reader, objectives=names)

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Rank all texts and images of the test shards, language by language.

        Raises:
            RecipeError: there is no head that ranks; the shards are of several splits; a language
                tested has no text, or too few images for a fold.
        """
        check_one_split(self, recipe)
        if not self.tested:
            raise RecipeError("tested: name the languages that are searched, as tested=[en]")
        heads = self._heads(recipe)
        text, image = self.streams(recipe)
        texts, images, defects = self._read(recipe, watch)
        vectors = None
        if "contrast" in heads:
            name = heads["contrast"]
            vectors = (
                features(model, recipe, name, text, texts).numpy(),
                features(model, recipe, name, image, images).numpy(),
            )
        place = {example.sample: number for number, example in enumerate(images)}
        owner = np.array([place[t.sample] for t in texts])
        spoken = np.array([t.labels["language"] for t in texts])
        ranked = {}
        for language in self.tested:
            rows = np.flatnonzero(spoken == language)
            told = np.unique(owner[rows])
            mine = np.searchsorted(told, owner[rows])
            some = [texts[n] for n in rows], [images[n] for n in told]
            known = (vectors[0][rows], vectors[1][told]) if vectors is not None else None
            ranked[language] = self._rank(model, recipe, heads, *some, mine, known, watch)
        each = {code: r.metrics for code, r in ranked.items()}
        metrics = language_means(each, "text_to_image.r1")
        metrics |= {"images": len(images), "texts": len(texts)}  # of all languages, no means
        records = [record for r in ranked.values() for record in r.records]
        files = {
            ".".join(("retrieval", *([language] if len(ranked) > 1 else []), way, "trec")): text
            for language, r in ranked.items()
            for way, text in r.files.items()
        }
        return Result(metrics, records, defects, files)

    def _rank(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        heads: Mapping[str, str],
        texts: Sequence[Example],
        images: Sequence[Example],
        owner: Array,
        vectors: tuple[Array, Array] | None,
        watch: Watch | None,
    ) -> Result:
        """Texts of one language and the images they tell of, ``owner`` the image of each text."""
        size = self.fold or len(images)
        metrics, records, lines = [], [], dict.fromkeys(BOTH, "")
        for first in range(0, len(images) - size + 1, size):
            rows = np.flatnonzero((owner >= first) & (owner < first + size))
            some, pictures = [texts[int(n)] for n in rows], images[first : first + size]
            mine = (owner[rows] - first).tolist()
            stages = {}
            if vectors is not None:
                cosine = vectors[0][rows] @ vectors[1][first : first + size].T
                stages["dual_encoder"] = dict(zip(BOTH, (cosine, cosine.T), strict=True))
            if "match" in heads:
                scorer = _Scorer(
                    model, recipe, heads["match"], self.streams(recipe), some, pictures
                )
                before = _log_odds(model, heads, stages["dual_encoder"]) if stages else None
                stages["matched"] = scorer.rerank(before, self.rerank, watch)
            metrics.append({k: _score(v, mine) for k, v in stages.items()})
            last = stages[list(stages)[-1]]
            records += _records(last["text_to_image"], some, mine, pictures)
            keys = dict(
                zip(BOTH, ([t.key for t in some], [p.sample for p in pictures]), strict=True)
            )
            for asked, found in (BOTH, BOTH[::-1]):
                lines[asked] += run_lines(
                    last[asked], keys[asked], keys[found], self.depth, recipe.name
                )
        means: dict[str, Any] = {k: mean_of([m[k] for m in metrics]) for k in metrics[0]}
        final = means.pop("matched", None) or means["dual_encoder"]
        counts = {"images": len(images), "texts": len(texts), "folds": len(metrics)}
        counts |= {"left_out": len(images) % size} if self.fold else {}
        return Result({**counts, **means, **final}, records, files=lines)

    def _heads(self, recipe: Recipe) -> dict[str, str]:
        """Names of the contrastive and the matching objective over text and image."""
        kinds = {"contrast": "contrast", "match": "match", "rank": "match"}
        streams = set(self.streams(recipe))
        heads = {
            kinds[o.kind]: name
            for name, o in recipe.objectives.items()
            if o.kind in kinds and set(o.view.decoded) == streams
        }
        if not heads:
            raise RecipeError(
                f"{recipe.name}: has no contrastive or matching objective over "
                f"{' and '.join(self.streams(recipe))}"
            )
        return heads

    def _read(
        self, recipe: Recipe, watch: Watch | None
    ) -> tuple[list[Example], list[Example], list[Defect]]:
        """The texts asked with, and the images, of the samples that have both."""
        text, image = self.streams(recipe)
        pictures, queries = (
            self.source(
                recipe, Component(shards=self.test, reader=reader, objectives=()), self.test
            )
            for reader in (
                Texts(languages=self.tested),
                Texts(languages=self.tested, all_texts=True),
            )
        )
        defects: list[Defect] = []
        wrong: list[Defect] = []
        images = read_examples(
            recipe, pictures, (image,), most=self.limit, watch=watch, defects=defects
        )
        read = read_examples(recipe, queries, (text,), watch=watch, defects=wrong)
        known = {example.sample for example in images}
        used: dict[tuple[str, str], int] = {}
        texts = []
        for example in read:
            group = (example.sample, example.labels["language"])
            used[group] = used.get(group, 0) + 1
            if example.sample in known and (not self.texts or used[group] <= self.texts):
                texts.append(example)
        self._check(texts)
        # a sample without usable image is counted already, and its texts are no queries
        name = {shard.shown: shard.name for shard in queries.shards}
        defects += [d for d in wrong if f"{name[d.shard]}/{d.key}" in known]
        told = {example.sample for example in texts}
        return texts, [i for i in images if i.sample in told], defects

    def _check(self, texts: Sequence[Example]) -> None:
        """Each language tested needs a text, and images for a fold."""
        spoken: dict[str, set[str]] = {language: set() for language in self.tested}
        for example in texts:
            spoken[example.labels["language"]].add(example.sample)
        if silent := [language for language, samples in spoken.items() if not samples]:
            raise RecipeError(
                f"{self.test}: no text in {', '.join(silent)} for any image that can be used; "
                "leave it out of tested"
            )
        for language, samples in spoken.items():
            if self.fold > len(samples):
                raise RecipeError(
                    f"fold: {self.fold} images, but {self.test} has {len(samples)} with texts in "
                    f"{language}: no fold is full; lower it, or set fold=0 for all in one"
                )


def _log_odds(
    model: CrossloomModel, heads: Mapping[str, str], cosine: Mapping[str, Array]
) -> dict[str, Array]:
    """Cosines in the scale in which they were trained."""
    head = model.heads[heads["contrast"]]
    assert isinstance(head, ContrastHead)
    scale = float(head.factor().detach())
    return {name: scale * some for name, some in cosine.items()}


def _score(both: Mapping[str, Array], owner: Sequence[int]) -> dict[str, dict[str, float]]:
    """Metrics of both directions; ``owner``: the image that each text tells of."""
    relevant: list[list[int]] = [[] for _ in both["image_to_text"]]
    for text, image in enumerate(owner):
        relevant[image].append(text)
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
                "split": split_of(text.key),
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
        """Scores in both directions: match added for each query's best ``keep``, the rest below.

        What the other direction's queries chose is not among them (ALBEF). Without scores
        ``before``, every pair is scored.
        """
        shape = (len(self.texts), len(self.images))
        if before is None:
            match = self._matched(np.ones(shape, bool), watch)
            return dict(zip(BOTH, (match, match.T), strict=True))
        wanted = {name: _best(scores, keep) for name, scores in before.items()}
        there, back = (wanted[way] for way in BOTH)
        match = self._matched(there | back.T, watch)
        # both are log-odds, and add (BLIP); what was not chosen keeps its order, below all that was
        return {
            way: before[way] + np.where(wanted[way], scores, -1e6)
            for way, scores in zip(BOTH, (match, match.T), strict=True)
        }

    def _matched(self, wanted: Array, watch: Watch | None) -> Array:
        """Log-odds of the pairs wanted, ``[texts, images]`` float64; of others minus infinity."""
        pairs = np.argwhere(wanted)
        match = np.full(wanted.shape, -np.inf)
        for start in range(0, len(pairs), 256):
            some = pairs[start : start + 256]
            match[some[:, 0], some[:, 1]] = self._match(some)
            if watch:
                watch(min(start + 256, len(pairs)), len(pairs))
        return match

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
        self.model.eval()
        return run(self.model, batch, (self.head,))[self.head].numpy()


def _best(scores: Array, keep: int) -> Array:
    """Where each query's ``keep`` highest scores are, ``[Q, C]`` bool."""
    chosen = np.zeros(scores.shape, bool)
    keep = min(keep, scores.shape[1])
    best = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen
