"""Visual question answering as classification over an answer vocabulary with soft scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from crossloom.data_pipelines.read import Questions
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.task import Budget, Result, Task, Watch, other_stream
from crossloom.models.model import CrossloomModel
from crossloom.objectives.classify import Classify
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError


@dataclass(frozen=True, kw_only=True)
class Vqa(Task):
    """The score of the most likely answer (VQA v2's training-time metric), averaged.

    Metrics: ``accuracy``, ``by_kind``, ``by_language`` (0..1), ``questions``.
    """

    kind: ClassVar[str] = "vqa"
    headlines: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}
    image: str = ""
    """The stream asked about; the one beside the text when empty."""
    answers: str = "answers.txt"
    """File below ``data`` with one answer a line."""
    languages: tuple[str, ...] = ()
    """Languages of the questions; empty for all."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """One classifier over the answers."""
        path = Path(recipe.data) / self.answers
        if not path.is_file():
            raise RecipeError(f"{path}: no answer vocabulary; `crossloom shards make` writes one")
        answers = tuple(path.read_text("utf-8").split("\n"))
        return {
            "vqa": Classify(
                view=View(name="vqa", streams=self.streams(recipe)),
                label="answers",
                classes=tuple(a for a in answers if a),
                form="sigmoid",
                pooled=(self.text,),
                pool=self.pool,
            )
        }

    def component(self, recipe: Recipe) -> Component:
        """All questions of the training shards."""
        reader = Questions(languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=("vqa",))

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Score the answers to all questions of the test shards."""
        objective = recipe.objectives["vqa"]
        if not isinstance(objective, Classify):
            raise RecipeError(
                f"{recipe.name}: objectives.vqa is no classifier; fine-tune vqa first"
            )
        source = self.source(recipe, self.component(recipe), self.test)
        defects: list[Defect] = []
        logits, labels, keys = gather(
            predict(model, recipe, source, ("vqa",), progress=watch, defects=defects),
            "vqa",
        )
        best = logits.argmax(1).tolist()
        probability = logits.sigmoid().max(1).values.tolist()
        records = []
        for key, label, number, sure in zip(keys, labels, best, probability, strict=True):
            answer = objective.classes[number]
            records.append(
                {
                    "key": key,
                    "question": label["text"],
                    "language": label["language"],
                    "kind": label["kind"] or "any",
                    "predicted": answer,
                    "answers": label["answers"],
                    "probability": sure,
                    "score": float(label["answers"].get(answer, 0.0)),
                }
            )
        scores = [r["score"] for r in records]
        metrics = {
            "accuracy": sum(scores) / len(scores),
            "by_kind": mean_by(scores, [r["kind"] for r in records]),
            "by_language": mean_by(scores, [r["language"] for r in records]),
            "questions": len(records),
        }
        return Result(metrics, records, defects)
