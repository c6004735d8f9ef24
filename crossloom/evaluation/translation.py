"""Translation: texts said in another language by beam search, scored by sacreBLEU's metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.read import Parallel, two_languages
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.predict import evaluation_collator
from crossloom.evaluation.say import say
from crossloom.evaluation.task import Budget, Result, Task, Watch
from crossloom.modalities.text import Text
from crossloom.models.generation import Search
from crossloom.models.model import CrossloomModel
from crossloom.objectives.generate import Generate
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import translate
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError

#: Member in which the reader gives the translation.
_SECOND = "second"


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Each text of the test shards said in another language, in every direction asked for.

    It needs a run with an objective that says a text from a text (mBART, MASS, XNLG), whose head it
    goes on with. What is said begins with the unit that tells its language: a token, or the first
    one with the language's embedding.

    Metrics: ``bleu`` and ``chrf``, means over the directions, ``sentences``, and ``by_direction``
    these with ``bleu_signature`` and ``chrf_signature``. Both are sacreBLEU's, as shares in 0..1
    (papers print them times 100). Sentences and references are also written as lines, in the same
    order (``translation.EN-DE.txt`` and ``….reference.txt``), for any other scorer.
    """

    kind: ClassVar[str] = "translation"
    headlines: ClassVar[Mapping[str, str]] = {
        "bleu": "BLEU, mean over directions",
        "chrf": "chrF, mean over directions",
    }
    said: str = ""
    """The stream that is said; found when empty."""
    directions: tuple[str, ...] = ("en-de",)
    """Fine-tuned on, and tested."""
    smoothing: float = 0.2
    """Label smoothing (mBART: 0.2)."""
    beams: int = 5
    longest: int = 200
    """Word pieces of a translation at most, its end counted; never more than the text's limit."""
    penalty: float = 1.0
    """Of length: see :class:`~crossloom.models.generation.Search`."""
    size: int = 64
    """Texts translated at a time."""
    tokenize: str = ""
    """sacreBLEU's tokeniser for BLEU; empty for the one it has for the language."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=3e-5)))

    def __post_init__(self) -> None:
        if not self.directions or not all(all(two_languages(d)) for d in self.directions):
            raise ValueError(f"directions are of the form en-de, one at least: {self.directions}")

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """The text, the one that is said, and the stream to which it is tied."""
        said = self._said(recipe)[1].stream
        owner = recipe.tied.get(said, self.text)
        return tuple(dict.fromkeys((self.text, owner, said)))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """The base's own objective, with its head, on texts that are not corrupted."""
        name, base = self._said(recipe)
        view = translate(self.text, base.stream).view
        return {name: replace(base, view=view, weight=1.0, smoothing=self.smoothing)}

    def component(self, recipe: Recipe) -> Component:
        """A pair in one of the directions on each visit."""
        return self._component(recipe, self.directions, self.train)

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """The same where the stream that is said holds the translation."""
        made = super().recipe(base, start)
        said = self._said(made)[1].stream
        return replace(
            made,
            modalities={**made.modalities, said: replace(made.modalities[said], field=_SECOND)},
        )

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Translate every text of the test shards, in each direction."""
        name, objective = self._said(recipe)
        if set(objective.view.streams) != {self.text, objective.stream} or objective.view.hide:
            raise RecipeError(
                f"{recipe.name}: {name!r} says {objective.stream!r} from other streams or from a "
                "corrupted text; fine-tune translation first"
            )
        scorers = {direction: self._scorers(direction) for direction in self.directions}
        defects: list[Defect] = []
        records: list[dict[str, Any]] = []
        by_direction: dict[str, dict[str, Any]] = {}
        files: dict[str, str] = {}
        for direction in self.directions:
            some = list(self._translate(model, recipe, direction, watch, defects))
            if not some:
                raise RecipeError(f"{self.test}: no sample has texts for the direction {direction}")
            lines, references = ([_line(r[k]) for r in some] for k in ("predicted", "reference"))
            by_direction[direction] = _score(scorers[direction], lines, references)
            files[f"{self.kind}.{direction}.txt"] = "\n".join(lines) + "\n"
            files[f"{self.kind}.{direction}.reference.txt"] = "\n".join(references) + "\n"
            records += some
        metrics: dict[str, Any] = {
            k: float(np.mean([x[k] for x in by_direction.values()])) for k in ("bleu", "chrf")
        }
        metrics |= {"sentences": len(records), "by_direction": by_direction}
        return Result(metrics, records, defects, files=files)

    def _component(self, recipe: Recipe, directions: tuple[str, ...], shards: str) -> Component:
        return Component(
            shards=shards,
            reader=Parallel(directions=directions, apart=True),
            objectives=tuple(self.objectives(recipe)),
        )

    def _said(self, recipe: Recipe) -> tuple[str, Generate]:
        """The first objective that says another text from this one.

        Raises:
            RecipeError: there is none.
        """
        for name, objective in recipe.objectives.items():
            if (
                isinstance(objective, Generate)
                and objective.target == "token"
                and isinstance(recipe.modalities[objective.stream], Text)
                and objective.stream in (self.said or objective.stream,)
                and objective.stream != self.text
                and self.text in objective.view.streams
            ):
                return name, objective
        raise RecipeError(
            f"{recipe.name}: no objective says {self.said or 'a text'!r} from {self.text!r}; "
            "translation goes on from an encoder-decoder, such as mbart"
        )

    def _translate(
        self,
        model: CrossloomModel,
        recipe: Recipe,
        direction: str,
        watch: Watch | None,
        defects: list[Defect],
    ) -> Iterator[dict[str, Any]]:
        """A record for each sample of the test shards."""
        name, objective = self._said(recipe)
        source = self.source(recipe, self._component(recipe, (direction,), self.test), self.test)
        search = Search(beams=self.beams, longest=self.longest, penalty=self.penalty)
        collator = evaluation_collator(recipe)
        streams = frozenset((self.text, objective.stream))
        places = source.places()
        for begin in range(0, len(places), self.size):
            some = places[begin : begin + self.size]
            good, bad = decode(source, some, collator, streams)
            defects.extend(bad)
            if good:
                said = say(model, recipe, name, good, search)
                for example, (best, *_) in zip(good, said, strict=True):
                    text, reference = example.labels["texts"]
                    yield {
                        "key": example.key,
                        "id": example.labels["id"],
                        "direction": direction,
                        "text": text,
                        "predicted": best.text,
                        "log_probability": best.score,
                        "reference": reference,
                    }
            if watch:
                watch(begin + len(some), len(places))

    def _scorers(self, direction: str) -> dict[str, Any]:
        """The metrics, of sacreBLEU, for a direction.

        Raises:
            RecipeError: there is no such tokeniser, or a package that it needs is missing.
        """
        from sacrebleu.metrics import BLEU, CHRF

        language = two_languages(direction)[1].partition("_")[0]
        if self.tokenize and self.tokenize not in BLEU.TOKENIZERS:
            known = ", ".join(BLEU.TOKENIZERS)
            raise RecipeError(f"tokenize: sacreBLEU has no {self.tokenize!r}; it has {known}")
        try:
            bleu = BLEU(tokenize=self.tokenize or None, trg_lang=language)
        except (ImportError, OSError, RuntimeError) as error:
            told = " ".join(str(error).split())
            raise RecipeError(f"{direction}: {told}; or set tokenize=char") from None
        return {"bleu": bleu, "chrf": CHRF()}


def _score(
    scorers: Mapping[str, Any], said: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, metric in scorers.items():
        metrics[name] = metric.corpus_score(list(said), [list(references)]).score / 100
        metrics[f"{name}_signature"] = str(metric.get_signature())
    return metrics | {"sentences": len(said)}


def _line(text: str) -> str:
    """A text in one line."""
    return " ".join(text.split())
