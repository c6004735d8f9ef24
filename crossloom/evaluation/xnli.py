"""Natural language inference across languages: fine-tuned in some, tested in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.read import Pairs, Reader, sample_json
from crossloom.data_pipelines.shards import open_shards
from crossloom.evaluation.choice import Choice, Record
from crossloom.evaluation.entailment import LABELS
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.task import Budget
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe, RecipeError


@dataclass(frozen=True, kw_only=True)
class Xnli(Choice):
    """Accuracy over three labels.

    Metrics: ``accuracy`` (all languages), ``by_language``, ``fine_tuned_mean`` and
    ``zero_shot_mean`` over languages seen and not seen in fine-tuning (0..1), ``pairs``.
    """

    kind: ClassVar[str] = "xnli"
    headlines: ClassVar[Mapping[str, str]] = {
        "fine_tuned_mean": "accuracy in the languages fine-tuned on",
        "zero_shot_mean": "accuracy in all other languages",
    }
    languages: tuple[str, ...] = ("en",)
    """Languages fine-tuned on."""
    tested: tuple[str, ...] = ()
    """Languages tested; empty for all that the test shards hold."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=5e-5)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text alone."""
        return (self.text,)

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """Entailment, neutral, contradiction."""
        return LABELS

    def reader(self) -> Reader:
        """The pairs in the languages fine-tuned on."""
        return Pairs(languages=self.languages)

    def tested_with(self, recipe: Recipe) -> Reader:
        """The pairs in each language."""
        return Pairs(languages=self.tested or self._languages(recipe), all_languages=True)

    def told(self, label: Mapping[str, Any]) -> Record:
        """Premise, hypothesis and label."""
        return {k: label[k] for k in ("premise", "hypothesis", "label")}

    def metrics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Means over languages seen and not seen in fine-tuning."""
        scores = mean_by([r["score"] for r in records], [r["language"] for r in records])
        seen = [v for k, v in scores.items() if k in self.languages]
        unseen = [v for k, v in scores.items() if k not in self.languages]
        return {
            "fine_tuned_mean": float(np.mean(seen)) if seen else float("nan"),
            "zero_shot_mean": float(np.mean(unseen)) if unseen else float("nan"),
        }

    def _languages(self, recipe: Recipe) -> tuple[str, ...]:
        """Languages of the first pair of the test shards."""
        shard = open_shards(self.test, recipe.data)[0]
        for number, entry in enumerate(shard.entries):
            if entry.items.get("pairs"):
                return tuple(sample_json(shard.read(number))["pairs"][0]["premise"])
        raise RecipeError(f"{shard.path}: holds no pairs to test on")
