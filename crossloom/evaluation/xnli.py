"""Natural language inference across languages: fine-tuned in some, tested in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from crossloom.data_pipelines.read import Pairs
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.task import Budget, Result, Task, Watch
from crossloom.models.model import CrossloomModel
from crossloom.objectives.classify import Classify
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class Xnli(Task):
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

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """One classifier."""
        return {
            "xnli": Classify(
                view=View(name="xnli", streams=(self.text,)),
                label="label",
                classes=LABELS,
                pooled=(self.text,),
                pool=self.pool,
            )
        }

    def component(self, recipe: Recipe) -> Component:
        """The pairs in the languages fine-tuned on."""
        reader = Pairs(languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=("xnli",))

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Accuracy in each language."""
        if "xnli" not in recipe.objectives:
            raise RecipeError(f"{recipe.name}: has no objective xnli; fine-tune xnli first")
        tested = self.tested or self._languages(recipe)
        reader = Pairs(languages=tested, all_languages=True)
        component = Component(shards=self.test, reader=reader, objectives=("xnli",))
        defects: list[Defect] = []
        logits, labels, keys = gather(
            predict(
                model,
                recipe,
                self.source(recipe, component, self.test),
                ("xnli",),
                progress=watch,
                defects=defects,
            ),
            "xnli",
        )
        chance = logits.softmax(1)
        records = []
        for key, label, row in zip(keys, labels, chance, strict=True):
            predicted = LABELS[int(row.argmax())]
            records.append(
                {
                    "key": key,
                    "language": label["language"],
                    "premise": label["premise"],
                    "hypothesis": label["hypothesis"],
                    "predicted": predicted,
                    "label": label["label"],
                    "probability": float(row.max()),
                    "score": float(predicted == label["label"]),
                }
            )
        scores = [r["score"] for r in records]
        by_language = mean_by(scores, [r["language"] for r in records])
        seen = [v for k, v in by_language.items() if k in self.languages]
        unseen = [v for k, v in by_language.items() if k not in self.languages]
        metrics = {
            "accuracy": float(np.mean(scores)),
            "by_language": by_language,
            "fine_tuned_mean": float(np.mean(seen)) if seen else float("nan"),
            "zero_shot_mean": float(np.mean(unseen)) if unseen else float("nan"),
            "pairs": len(records),
        }
        return Result(metrics, records, defects)

    def _languages(self, recipe: Recipe) -> tuple[str, ...]:
        """Languages of the first pair of the test shards."""
        from crossloom.data_pipelines.read import sample_json

        shard = open_shards(self.test, recipe.data)[0]
        for number, entry in enumerate(shard.entries):
            if entry.items.get("pairs"):
                return tuple(sample_json(shard.read(number))["pairs"][0]["premise"])
        raise RecipeError(f"{shard.path}: holds no pairs to test on")
