"""Tasks that choose one of named classes: one way to train and score them all.

Questions with an answer vocabulary (:mod:`~crossloom.evaluation.vqa`), entailment
(:mod:`~crossloom.evaluation.entailment`), pairs of sentences across languages
(:mod:`~crossloom.evaluation.sentence_pairs`) and statements about two pictures
(:mod:`~crossloom.evaluation.two_pictures`) differ in their reader, their classes and
the form in which predictions are handed in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.predict import gather, predict
from crossloom.evaluation.task import (
    Result,
    Task,
    Watch,
    other_stream,
    pooling,
    split_of,
    trained,
)
from crossloom.models.model import CrossloomModel
from crossloom.objectives.classify import Classify
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.training.recipe import Component, Recipe, RecipeError

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice(Task):
    """A classifier over named classes; subclasses say of what.

    Metrics: ``accuracy`` (the score of the most likely class, 0..1), the same by ``kind``,
    ``language`` and ``split``, ``non_english`` (the mean over languages but English, where there
    are several with it), and the number of examples.
    """

    label: ClassVar[str] = "label"
    """The reader's label: a class, or scores by class."""
    form: ClassVar[Literal["softmax", "sigmoid"]] = "softmax"
    counted: ClassVar[str] = "pairs"
    """What the examples are called in the metrics."""
    image: str = ""
    """The stream beside the text; found when empty."""
    languages: tuple[str, ...] = ()
    """Languages of the texts fine-tuned on, one drawn for each example; empty for all."""
    tested: tuple[str, ...] = ()
    """Languages tested, each with every example; when empty, the texts are read as in fine-tuning.
    """
    pooled: tuple[str, ...] = ()
    """Streams whose summaries the classifier reads; as the recipe's matching head when empty."""

    @abstractmethod
    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """The classes to choose among."""

    @abstractmethod
    def reader(self) -> Reader:
        """What fine-tuning reads."""

    @abstractmethod
    def told(self, label: Mapping[str, Any]) -> Record:
        """What a record tells of the example beside key, language and prediction."""

    def tested_with(self, recipe: Recipe) -> Reader:
        """What is read to be scored."""
        return self.reader()

    def metrics(self, records: Sequence[Record]) -> dict[str, Any]:
        """Metrics beside the accuracy."""
        return {}

    def files(self, records: Sequence[Record]) -> dict[str, str]:
        """Predictions in the benchmark's own form."""
        return {}

    def view(self, recipe: Recipe) -> View:
        """What the classifier is shown."""
        return View(name=self.kind, streams=self.streams(recipe))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """One classifier, called as the task."""
        view = self.view(recipe)
        asked = {"pooled": self.pooled, "pool": self.pool}
        return {
            self.kind: Classify(
                view=view,
                label=self.label,
                classes=self.classes(recipe),
                form=self.form,
                **pooling(recipe, view.streams, self.text) | {k: v for k, v in asked.items() if v},
            )
        }

    def component(self, recipe: Recipe) -> Component:
        """All examples of the training shards."""
        return Component(shards=self.train, reader=self.reader(), objectives=(self.kind,))

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """The most likely class of every example of the test shards."""
        objective = trained(recipe, self.kind, Classify)
        component = replace(self.component(recipe), reader=self.tested_with(recipe))
        source = self.source(recipe, component, self.test)
        defects: list[Defect] = []
        names = (self.kind,)
        found = predict(model, recipe, source, names, progress=watch, defects=defects)
        logits, labels, keys = gather(found, self.kind)
        chance = logits.sigmoid() if objective.form == "sigmoid" else logits.softmax(1)
        records = []
        for key, label, row in zip(keys, labels, chance, strict=True):
            best = int(row.argmax())
            predicted = objective.names()[best]
            given = label[self.label]
            scores = {given: 1.0} if isinstance(given, str) else given
            records.append(
                {
                    "key": key,
                    "id": label["id"],
                    "split": split_of(key),
                    "language": label["language"],
                    **self.told(label),
                    "predicted": predicted,
                    "probability": float(row[best]),
                    # what is kept back cannot be scored
                    "score": float(scores.get(predicted, 0.0)) if scores else None,
                }
            )
        return Result(self._summary(records), records, defects, self.files(records))

    def _summary(self, records: Sequence[Record]) -> dict[str, Any]:
        known = [r for r in records if r["score"] is not None]
        metrics: dict[str, Any] = {self.counted: len(records)}
        if not known:
            return metrics
        scores = [r["score"] for r in known]
        metrics = {"accuracy": sum(scores) / len(scores)}
        for name in ("kind", "language", "split"):
            if name in known[0]:
                metrics[f"by_{name}"] = mean_by(scores, [r[name] for r in known])
        foreign = [v for code, v in metrics["by_language"].items() if code != "en"]
        if 0 < len(foreign) < len(metrics["by_language"]):
            metrics["non_english"] = sum(foreign) / len(foreign)
        return {**metrics, **self.metrics(known), self.counted: len(records)}


@dataclass(frozen=True, kw_only=True)
class OfOnePicture(Choice):
    """A choice about one picture, whose object tags may be shown too."""

    tags: str = ""
    """Stream of object tags shown beside text and image (Oscar's ``tags``), which are found as the
    run's own components find them; empty to show none."""

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image, and the tags.

        Raises:
            RecipeError: there is no such stream.
        """
        both = super().streams(recipe)
        if not self.tags:
            return both
        if self.tags not in recipe.modalities or self.tags in both:
            others = ", ".join(s for s in recipe.modalities if s not in both)
            raise RecipeError(
                f"tags: {recipe.name} has no such stream beside {' and '.join(both)}; "
                + (f"it has {others}" if others else "leave it empty")
            )
        return (both[0], self.tags, both[1])

    def reading(self, recipe: Recipe, reader: Reader) -> Reader:
        """See :meth:`Task.reading`; with the tags.

        Raises:
            RecipeError: no component of the run reads tags.
        """
        reader = super().reading(recipe, reader)
        if not self.tags:
            return reader
        readers = (component.reader for component in recipe.mixture.values())
        found = next((t for r in readers if (t := getattr(r, "tags", None))), None)
        if found is None:
            raise RecipeError(f"tags: no component of {recipe.name} reads any")
        return replace(reader, tags=found)  # type: ignore[call-arg]
