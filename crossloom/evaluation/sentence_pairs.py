"""Pairs of sentences across languages: fine-tuned in some, tested in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from crossloom.data_pipelines.annotated import Pairs
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.shards import open_shards
from crossloom.evaluation.choice import Choice, Record
from crossloom.evaluation.entailment import LABELS
from crossloom.evaluation.metrics import mean_by, seen_and_unseen
from crossloom.evaluation.task import Budget, languages_of
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SentencePairs(Choice):
    """What two sentences are to each other, one of a few classes; subclasses say which.

    The published forms (XNLI, Conneau et al. 2018; XLM-R, Conneau et al. 2020, section 4.2):

    ==================== ==========================================================================
    zero-shot            ``languages=[en]``: what is fine-tuned in English is tested in all
    translate-train      ``languages=[de] tested=[de]``, a run for each language
    translate-train-all  ``languages=[]``: one run on the training set in all languages
    translate-test       ``languages=[en] read_as=en``, on shards whose pairs were translated into
                         English and stand under the language that they come from
    ==================== ==========================================================================

    In all of them the weights are selected by the accuracy on English ``dev`` shards alone.

    Metrics (0..1): ``accuracy`` (all pairs), ``by_language``, ``mean`` over languages,
    ``fine_tuned_mean`` and ``zero_shot_mean`` over those seen and not seen in fine-tuning (None
    where there are none), ``pairs``.
    """

    headlines: ClassVar[Mapping[str, str]] = {
        "fine_tuned_mean": "accuracy in the languages fine-tuned on",
        "zero_shot_mean": "accuracy in all other languages",
        "mean": "accuracy, mean over languages",
    }
    languages: tuple[str, ...] = ("en",)
    """Languages fine-tuned on; empty for all."""
    tested: tuple[str, ...] = ()
    """Languages tested; empty for all that the test shards hold."""
    read_as: str = ""
    """Language that test pairs were translated into, whatever language they stand under."""
    dev: str = "dev-*.tar"
    selected_on: tuple[str, ...] = ("en",)
    """Languages of the ``dev`` pairs by which the weights are selected."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=5e-5)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text alone."""
        return (self.text,)

    def reader(self) -> Reader:
        """The pairs in the languages fine-tuned on."""
        return Pairs(languages=self.languages)

    def dev_reader(self, recipe: Recipe) -> Reader:
        """The pairs in the languages that the weights are selected on."""
        return Pairs(languages=self.selected_on)

    def tested_with(self, recipe: Recipe) -> Reader:
        """The pairs in each language."""
        return Pairs(
            languages=self.tested or self._languages(recipe),
            all_languages=True,
            read_as=self.read_as,
        )

    def told(self, label: Mapping[str, Any]) -> Record:
        """Both sentences and the label."""
        return {k: label[k] for k in ("premise", "hypothesis", "label")}

    def metrics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Means over languages: all, seen and not seen in fine-tuning."""
        scores = mean_by([r["score"] for r in records], [r["language"] for r in records])
        return seen_and_unseen(scores, self.languages)

    def _languages(self, recipe: Recipe) -> tuple[str, ...]:
        """Languages of all pairs of the test shards."""
        return languages_of(open_shards(self.test, recipe.data), "pairs", "premise")


@dataclass(frozen=True, kw_only=True)
class Xnli(SentencePairs):
    """Does one sentence follow from another (XNLI, Conneau et al. 2018)? Three classes."""

    kind: ClassVar[str] = "xnli"

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """Entailment, neutral, contradiction."""
        return LABELS


@dataclass(frozen=True, kw_only=True)
class PawsX(SentencePairs):
    """Do two sentences of the same words say the same (PAWS-X, Yang et al. 2019)? Two classes."""

    kind: ClassVar[str] = "pawsx"

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """A paraphrase, or not."""
        return ("paraphrase", "other")
