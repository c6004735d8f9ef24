"""Referring expressions: which region of the picture is meant?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from crossloom.data_pipelines.annotated import Refers
from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.source import Defect
from crossloom.evaluation.metrics import mean_by
from crossloom.evaluation.predict import predict
from crossloom.evaluation.task import Budget, Result, Task, Watch, other_stream, split_of, trained
from crossloom.models.model import CrossloomModel
from crossloom.objectives.ground import Ground, overlaps
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe

#: Overlap from which on a box counts as found (Kazemzadeh et al. 2014).
FOUND = 0.5


@dataclass(frozen=True, kw_only=True)
class Grounding(Task):
    """RefCOCO, RefCOCO+, RefCOCOg: the region that scores best overlaps with the one meant.

    A linear score for each region (ViLBERT, section 3.2). Metrics: ``accuracy`` (overlap of at
    least 0.5), ``reachable`` (share of expressions for which any region would do: the most that can
    be had with these regions), ``by_kind``, ``by_language``, ``by_split`` (0..1), ``expressions``.

    There is no server; hands in ``[{"sent_id", "pred_box": [x, y, width, height]}, …]`` in pixels,
    as published evaluation scripts write.
    """

    kind: ClassVar[str] = "grounding"
    headlines: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}
    test: str = "test*-*.tar"
    """``test``, or ``testA`` (people) and ``testB`` (all else), which are reported apart."""
    image: str = ""
    """The stream of regions; the one beside the text when empty."""
    languages: tuple[str, ...] = ()
    """Languages of the expressions; empty for all."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """Each region by itself (ViLBERT), or one among all (UNITER)."""
    budget: Budget = field(default_factory=lambda: Budget(steps=2000, optim=Optim(rate=1e-4)))

    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """Text and regions."""
        return (self.text, self.image or other_stream(recipe, self.text))

    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """One score for each region."""
        streams = self.streams(recipe)
        return {
            "grounding": Ground(
                view=View(name="grounding", streams=streams),
                stream=streams[1],
                form=self.loss,
                most=recipe.modalities[streams[1]].longest(),
            )
        }

    def component(self, recipe: Recipe) -> Component:
        """All expressions of the training shards."""
        reader = Refers(languages=self.languages)
        return Component(shards=self.train, reader=reader, objectives=("grounding",))

    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """The best region for every expression of the test shards."""
        stream = trained(recipe, "grounding", Ground).stream
        source = self.source(recipe, self.component(recipe), self.test)
        defects: list[Defect] = []
        names = ("grounding",)
        records = []
        for part in predict(model, recipe, source, names, progress=watch, defects=defects):
            for example, scores in zip(part.examples, part.outputs["grounding"], strict=True):
                records.append(_record(example, stream, scores))
        scored = [r["score"] for r in records]
        metrics: dict[str, Any] = {
            "accuracy": sum(scored) / len(scored),
            "reachable": sum(r["reachable"] for r in records) / len(records),
        }
        for name in ("kind", "language", "split"):
            metrics[f"by_{name}"] = mean_by(scored, [r[name] for r in records])
        metrics["expressions"] = len(records)
        return Result(metrics, records, defects, _files(records))


def _record(example: Example, stream: str, scores: torch.Tensor) -> dict[str, Any]:
    units, label = example.units[stream], example.labels
    boxes = units.content["corners"]
    # a unit for the whole image is no answer
    own = scores[: len(units)].masked_fill(~torch.from_numpy(units.maskable), -torch.inf)
    best = int(own.argmax())
    overlap = overlaps(boxes, np.asarray(label["box"]))
    return {
        "key": example.key,
        "id": label["id"],
        "split": split_of(example.key),
        "language": label["language"],
        "kind": label["kind"] or "any",
        "text": label["text"],
        "box": _pixels(label["box"], label["size"]),
        "predicted": _pixels(boxes[best].tolist(), label["size"]),
        "overlap": float(overlap[best]),
        "reachable": bool((overlap[units.maskable] >= FOUND).any()),
        "score": float(overlap[best] >= FOUND),
    }


def _pixels(box: Sequence[float], size: Sequence[float]) -> list[float]:
    return [round(share * size[n % 2], 2) for n, share in enumerate(box)]


def _files(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    rows = []
    for record in records:
        x1, y1, x2, y2 = record["predicted"]
        box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        rows.append({"sent_id": _number(record["id"]), "pred_box": box})
    return {"grounding.predictions.json": json.dumps(rows)}


def _number(name: str) -> int | str:
    return int(name) if name.isdigit() else name
