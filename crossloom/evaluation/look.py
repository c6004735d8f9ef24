"""Looking at single examples: pictures, boxes, and where the words look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.show import picture
from crossloom.data_pipelines.source import Source
from crossloom.evaluation.predict import evaluation_collator, shown
from crossloom.modalities.text import Text
from crossloom.models.attention import Attention
from crossloom.models.model import CrossloomModel
from crossloom.training.recipe import Recipe


class Album:
    """Samples of shards, found by key (``shard/sample`` or ``shard/sample#item``)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._place = {
            f"{Path(shard.path).stem}/{entry.key}": (number, row)
            for number, shard in enumerate(source.shards)
            for row, entry in enumerate(shard.entries)
        }

    def __contains__(self, key: str) -> bool:
        return key.split("#")[0] in self._place

    def members(self, key: str) -> dict[str, bytes]:
        """All members of a sample."""
        shard, row = self._place[key.split("#")[0]]
        return self.source.shards[shard].read(row)

    def picture(self, key: str) -> str:
        """The sample's picture as a data URI."""
        return picture(self.members(key))


@dataclass(frozen=True)
class Gaze:
    """Where the units of a text look in another stream, mean over heads of the last layers."""

    words: list[str]  #: one for each unit of the text
    weights: list[list[float]]  #: [words][units of the other stream], shares of all attention
    boxes: list[list[float]]  #: [units][x1, y1, x2, y2] in 0..1; empty when units have no boxes


def gazes(
    model: CrossloomModel,
    recipe: Recipe,
    source: Source,
    keys: Sequence[str],
    objective: str,
    text: str,
    image: str,
) -> dict[str, Gaze]:
    """What each example's text units attend to, by key."""
    collator = evaluation_collator(recipe)
    wanted = set(keys)
    places = [p for p in source.places() if source.key(p)[0] in wanted]
    streams = frozenset((text, image))
    examples, _ = decode(source, places, collator, streams)
    if not examples:
        return {}
    batch = shown(collator, examples, (objective,)).to(next(model.parameters()).device)
    record: list[Attention] = []
    model.eval()
    with torch.inference_mode():
        model.encode(batch.views[recipe.objectives[objective].view.name], record)
    mixed = [a for a in record if text in a.queries and image in a.keys]
    if not mixed:
        return {}
    mean = torch.stack([a.weights.mean(1) for a in mixed[-2:]]).mean(0)
    vocab = recipe.modalities[text]
    return {
        e.key: _gaze(e, mean[n].cpu(), mixed[-1], vocab, text, image)
        for n, e in enumerate(examples)
    }


def _gaze(
    example: Example, mean: torch.Tensor, where: Attention, vocab: Any, text: str, image: str
) -> Gaze:
    units = {s: len(example.units[s]) for s in (text, image)}
    row = sum(units[s] for s in where.queries[: where.queries.index(text)])
    column = sum(units[s] for s in where.keys[: where.keys.index(image)])
    part = mean[row : row + units[text], column : column + units[image]]
    words = []
    if isinstance(vocab, Text):
        ids = example.units[text].content["token"]
        words = [vocab.vocab.pieces[int(i)] for i in ids]
    corners = example.units[image].content.get("corners")
    boxes = [] if corners is None else [[float(x) for x in c] for c in corners]
    return Gaze(words, part.tolist(), boxes)
