"""Classification without training: the class whose description is nearest to the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from crossloom.data_pipelines.annotated import Labelled
from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.features import features, read_examples
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.task import Result, Task, Watch, other_stream, split_of
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.training.recipe import Component, Recipe, RecipeError
from crossloom.units import Passage, keyed_rng


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Task):
    """Zero-shot classification with a contrastive head (CLIP, section 3.1).

    A class is described by each template; its vector is the mean of the descriptions' unit vectors,
    brought to length 1. Shards hold a picture and ``cls``, or ``label`` in the json: the number of
    a class from 0, or its name. Pictures without either are answered, not scored.

    Metrics: ``top1``, ``top5``, ``mean_per_class`` (0..1), ``images``, ``classes``. Hands in a line
    for each picture: its key and the numbers, from 0, of the five best classes.
    """

    kind: ClassVar[str] = "zero-shot"
    headlines: ClassVar[Mapping[str, str]] = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
    image: str = ""
    """The stream classified; the one beside the text when empty."""
    classes: str = "classes.txt"
    """File below ``data`` with the name of one class a line."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Descriptions, ``{}`` for the class; or one name of a file (``….txt``) below ``data``."""
    language: str = "en"
    """Of the descriptions."""

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and image."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """None: there is nothing to train.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            "zero-shot: nothing is trained; `crossloom evaluate zero-shot` on a run with a "
            "contrastive objective"
        )

    def component(self, recipe: Recipe) -> Component:
        """Pictures with their classes, also those whose classes are kept back."""
        return Component(shards=self.test, reader=Labelled(unlabelled=True), objectives=())

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """The nearest classes of every picture of the test shards."""
        text, image = self.streams(recipe)
        pair = {text, image}
        heads = [
            n for n, o in recipe.objectives.items()
            if o.kind == "contrast" and set(o.view.streams) == pair
        ]  # fmt: skip
        if not heads:
            raise RecipeError(
                f"{recipe.name}: has no contrastive objective over {text} and {image}"
            )
        names = _lines(Path(recipe.data) / self.classes, "names of classes")
        weights = self._describe(model, recipe, heads[0], names)
        defects: list[Defect] = []
        source = self.source(recipe, self.component(recipe), self.test)
        examples = read_examples(recipe, source, (image,), watch=watch, defects=defects)
        scale = model.heads[heads[0]].factor().detach().float().cpu()  # type: ignore[operator]
        chance = (scale * features(model, recipe, heads[0], image, examples) @ weights.T).softmax(1)
        best = chance.topk(min(5, len(names)), dim=1)
        records: list[dict[str, Any]] = []
        for example, found, sure in zip(examples, best.indices.tolist(), best.values, strict=True):
            label = example.labels["label"]
            right = _number(label, names, self.classes) if label else None
            records.append(
                {
                    "key": example.key,
                    "split": split_of(example.key),
                    "label": None if right is None else names[right],
                    "predicted": names[found[0]],
                    "found": found,
                    "probability": float(sure[0]),
                    "score": None if right is None else float(found[0] == right),
                    "among_five": None if right is None else float(right in found),
                }
            )
        metrics = {**_scores(records), "images": len(records), "classes": len(names)}
        lines = (f"{r['key']} {' '.join(map(str, r['found']))}\n" for r in records)
        return Result(metrics, records, defects, {"zero-shot.predictions.txt": "".join(lines)})

    def _describe(
        self, model: CrossloomModel, recipe: Recipe, head: str, names: tuple[str, ...]
    ) -> Tensor:
        """A unit vector ``[C, dim]`` for each class."""
        templates = self.templates
        if len(templates) == 1 and templates[0].endswith(".txt"):
            templates = _lines(Path(recipe.data) / templates[0], "templates")
        if strange := [t for t in templates if "{}" not in t]:
            raise RecipeError(f"templates: {strange[0]!r} has no {{}} for the class")
        modality = recipe.modalities[self.text].steady()
        said = [template.replace("{}", name) for name in names for template in templates]
        examples = []
        for number, text in enumerate(said):
            sample = {modality.field: (Passage(self.language, text),)}
            units = {self.text: modality.decode(sample, keyed_rng("zero-shot", number))}
            key = str(number)
            examples.append(Example(key=key, sample=key, epoch=0, units=units, labels={}))
        rows = features(model, recipe, head, self.text, examples)
        return F.normalize(rows.unflatten(0, (len(names), len(templates))).mean(1), dim=1)


def _scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the pictures whose class is told; nothing where none is."""
    known = [r for r in records if r["score"] is not None]
    if not known:
        return {}
    by_class = mean_by([r["score"] for r in known], [r["label"] for r in known])
    return {
        "top1": sum(r["score"] for r in known) / len(known),
        "top5": sum(r["among_five"] for r in known) / len(known),
        "mean_per_class": sum(by_class.values()) / len(by_class),
    }


def _lines(path: Path, what: str) -> tuple[str, ...]:
    if not path.is_file():
        raise RecipeError(f"{path}: missing; it should hold {what}, one a line")
    return tuple(x.strip() for x in path.read_text("utf-8").splitlines() if x.strip())


def _number(label: str, names: tuple[str, ...], file: str) -> int:
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise RecipeError(f"{file}: {len(names)} classes, and none is {label!r}; give classes=FILE")
