"""Captioning: what is seen, said by beam search, scored by BLEU and CIDEr-D."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.source import Defect, Source
from crossloom.evaluation.captions import bleu, cider
from crossloom.evaluation.predict import evaluation_collator
from crossloom.evaluation.say import say
from crossloom.evaluation.task import Budget, Result, Task, Watch, other_stream
from crossloom.models.generation import Search
from crossloom.models.model import CrossloomModel
from crossloom.objectives.generate import Generate
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import ic, s2s_mlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError


@dataclass(frozen=True, kw_only=True)
class Captioning(Task):
    """One sentence for each picture, against all captions it has in the language.

    Metrics, for the languages together and in each (``languages``): ``bleu1`` … ``bleu4`` (0..1)
    with sacreBLEU's ``bleu_signature``, ``cider`` (mean CIDEr-D, 0..10; tables print it times 100),
    ``images``; ``by_language`` is each one's CIDEr-D alone. With several languages each picture
    counts once in each, and the first unit of its caption tells the model the language, where the
    text has language embeddings. The sentences are also written as COCO's results
    (``captioning.LANGUAGE.submission.json``).
    """

    kind: ClassVar[str] = "captioning"
    headlines: ClassVar[Mapping[str, str]] = {"cider": "CIDEr-D", "bleu4": "BLEU-4"}
    image: str = ""
    """The stream told of; the one beside the text when empty."""
    form: Literal["next", "mask"] = "next"
    """Train and decode by the next unit (XGPT), or by hidden ones filled in (VLP)."""
    languages: tuple[str, ...] = ("en",)
    """Languages fine-tuned on, and tested."""
    smoothing: float = 0.0
    """Label smoothing, with ``form: next``."""
    beams: int = 5
    longest: int = 20
    """Word pieces of a caption at most, its end counted."""
    penalty: float = 1.0
    """Of length: see :class:`~crossloom.models.generation.Search`."""
    size: int = 64
    """Pictures told of at a time."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image, and the stream to which the text is tied."""
        owner = recipe.tied.get(self.text)
        return (self.text, self._image(recipe), *([owner] if owner else []))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """The base's own objective of this form, with its head; a new one where it has none.

        A new one has the head, and so the name, of the base's masked words (Oscar).
        """
        image = self._image(recipe)
        fresh: Generate | Reconstruct
        if self.form == "next":
            fresh = ic(self.text, image, smoothing=self.smoothing, name="caption")
        else:
            fresh = s2s_mlm(self.text, image, name="caption")
        like = self._hidden(recipe, image)
        if like is not None:
            fresh = replace(fresh, tied=like[1].tied, transform=like[1].transform)
        new = (like[0] if like else "caption", fresh)
        name, base = self._said(recipe, image) or new
        return {name: replace(base, view=fresh.view, weight=1.0, **self._smoothed())}

    def component(self, recipe: Recipe) -> Component:
        """One caption of each picture on each visit."""
        return Component(
            shards=self.train,
            reader=self._reader(recipe, self.languages),
            objectives=tuple(self.objectives(recipe)),
        )

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Tell of every picture of the test shards, in each language."""
        image = self._image(recipe)
        found = self._said(recipe, image)
        # a view that shows more may show the caption itself
        if found is None or set(found[1].view.streams) != {self.text, image}:
            raise RecipeError(
                f"{recipe.name}: no objective says {self.text!r} from {image!r} by form="
                f"{self.form}; fine-tune captioning first, or set form"
            )
        defects: list[Defect] = []
        records: list[dict[str, Any]] = []
        for language in self.languages:
            component = replace(
                self.component(recipe), reader=self._reader(recipe, (language,)), shards=self.test
            )
            source = self.source(recipe, component, self.test)
            records += self._tell(model, recipe, source, found[0], watch, defects)
        if not records:
            raise RecipeError(
                f"{self.test}: no picture has a caption in {', '.join(self.languages)}"
            )
        metrics, scores = _score(records)
        for record, score in zip(records, scores, strict=True):
            record["score"] = score
        files = {}
        languages = {}
        for language in dict.fromkeys(r["language"] for r in records):
            some = [r for r in records if r["language"] == language]
            languages[language] = _score(some)[0]
            rows = [{"image_id": _number(r["id"]), "caption": r["predicted"]} for r in some]
            files[f"{self.kind}.{language}.submission.json"] = json.dumps(rows, ensure_ascii=False)
        metrics["languages"] = languages
        metrics["by_language"] = {code: found["cider"] for code, found in languages.items()}
        return Result(metrics, records, defects, files=files)

    def _image(self, recipe: Recipe) -> str:
        owner = recipe.tied.get(self.text, self.text)
        return self.image or other_stream(recipe, owner)

    def _reader(self, recipe: Recipe, languages: tuple[str, ...]) -> Texts:
        member = recipe.modalities[self.text].field
        return Texts(languages=languages, copies=() if member == "text" else (member,))

    def _smoothed(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing} if self.form == "next" else {}

    def _said(self, recipe: Recipe, image: str) -> tuple[str, Generate | Reconstruct] | None:
        """The first objective that says the text from the image in the task's form."""
        for name, objective in recipe.objectives.items():
            shown = {self.text, image} <= set(objective.view.streams)
            if isinstance(objective, Generate) and self.form == "next":
                fits = objective.stream == self.text and not objective.view.follow
            elif isinstance(objective, Reconstruct) and self.form == "mask":
                fits = objective.stream == self.text and self.text in objective.view.causal
            else:
                fits = False
            if shown and fits and objective.target == "token":  # type: ignore[attr-defined]
                return name, objective  # type: ignore[return-value]
        return None

    def _hidden(self, recipe: Recipe, image: str) -> tuple[str, Reconstruct] | None:
        """The objective that fills in hidden words, best one that sees the image."""
        found = [
            (name, o)
            for name, o in recipe.objectives.items()
            if isinstance(o, Reconstruct) and (o.stream, o.target) == (self.text, "token")
        ]
        # whose transform is another's would be left with its bias alone
        return min(
            found, key=lambda x: (image not in x[1].view.streams, bool(x[1].shares)), default=None
        )

    def _tell(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        source: Source,
        name: str,
        watch: Watch | None,
        defects: list[Defect],
    ) -> Iterator[dict[str, Any]]:
        """A record for each picture of the source."""
        search = Search(beams=self.beams, longest=self.longest, penalty=self.penalty)
        collator = evaluation_collator(recipe)
        streams = frozenset((self.text, self._image(recipe)))
        places = source.places()
        seen: set[str] = set()
        for begin in range(0, len(places), self.size):
            some = places[begin : begin + self.size]
            good, bad = decode(source, some, collator, streams)
            defects.extend(bad)
            good = [e for e in good if e.key not in seen]
            seen.update(e.key for e in good)
            if good:
                said = say(model, recipe, name, good, search)
                for example, (best, *_) in zip(good, said, strict=True):
                    labels = example.labels
                    yield {
                        "key": example.key,
                        "id": labels["id"] or example.sample.rpartition("/")[2],
                        "language": labels["language"],
                        "predicted": best.text,
                        "log_probability": best.score,
                        "references": list(labels["references"]),
                    }
            if watch:
                watch(begin + len(some), len(places))


def _score(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[float]]:
    said, references = [r["predicted"] for r in records], [r["references"] for r in records]
    scores = cider(said, references)
    metrics: dict[str, Any] = dict(bleu(said, references))
    return metrics | {"cider": float(np.mean(scores)), "images": len(records)}, scores


def _number(name: str) -> int | str:
    """COCO's ids are numbers; others stay as they are."""
    return int(name) if name.isdecimal() else name
