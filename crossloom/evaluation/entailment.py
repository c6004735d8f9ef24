"""Visual entailment: does a sentence follow from a picture?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from crossloom.data_pipelines.annotated import Pairs
from crossloom.data_pipelines.reader import Reader
from crossloom.evaluation.choice import OfOnePicture, Record
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.task import Budget
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, kw_only=True)
class SnliVe(OfOnePicture):
    """SNLI-VE (Xie et al. 2019): three classes, accuracy.

    The shards' pairs have no ``premise``: the picture is it. Pairs that have one (the world's) are
    read with it. There is no server; hands in JSON lines ``{"pairID", "prediction"}``.
    Metrics: ``accuracy``, ``by_label``, ``by_language``, ``by_split`` (0..1), ``pairs``.
    """

    kind: ClassVar[str] = "snli-ve"
    headlines: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=5e-5)))

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """Entailment, neutral, contradiction."""
        return LABELS

    def reader(self) -> Reader:
        """Every hypothesis."""
        return Pairs(languages=self.languages)

    def tested_with(self, recipe: Recipe) -> Reader:
        """Every hypothesis in each language tested."""
        return Pairs(languages=self.tested or self.languages, all_languages=bool(self.tested))

    def told(self, label: Mapping[str, Any]) -> Record:
        """Premise (if it is a text), hypothesis and label."""
        return {k: label[k] for k in ("premise", "hypothesis", "label")}

    def metrics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Share found of each label."""
        return {"by_label": mean_by([r["score"] for r in records], [r["label"] for r in records])}

    def files(self, records: Sequence[Record]) -> dict[str, str]:
        """A line for each pair."""
        rows = ({"pairID": r["id"], "prediction": r["predicted"]} for r in records)
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        return {"snli-ve.predictions.jsonl": text}
