"""Running a trained model over examples, each once, in stored order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossloom.batch import Batch
from crossloom.data_pipelines.collate import Collator, Example
from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.source import Defect, Source
from crossloom.evaluation.task import split_of
from crossloom.models.model import CrossloomModel
from crossloom.training.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class Predicted:
    """What the model says of some examples."""

    examples: list[Example]
    outputs: dict[str, Tensor]  #: by objective, [E, ...] on the CPU


def evaluation_collator(recipe: Recipe) -> Collator:
    """The recipe's collator without augmentation, and with views that hide nothing."""
    steady = {s: m.steady() for s, m in recipe.modalities.items()}
    # matching and contrast may share a view with masked modelling
    clean = {n: replace(o, view=o.view.clean) for n, o in recipe.objectives.items()}
    return Collator(steady, clean, recipe.seed)


class _Chunks(Dataset[Any]):
    """Chunks of a source's examples, decoded and collated."""

    def __init__(
        self, source: Source, collator: Collator, objectives: tuple[str, ...], size: int
    ) -> None:
        self.source, self.collator, self.objectives, self.size = source, collator, objectives, size
        self.places = source.places()
        self.streams = frozenset(s for o in objectives for s in collator.objectives[o].view.decoded)

    def __len__(self) -> int:
        return -(-len(self.places) // self.size)

    def __getitem__(self, item: int) -> tuple[Batch | None, list[Example], list[Defect]]:
        places = self.places[item * self.size : (item + 1) * self.size]
        good, bad = decode(self.source, places, self.collator, self.streams)
        batch = shown(self.collator, good, self.objectives) if good else None
        return batch, good, bad


def shown(collator: Collator, examples: Sequence[Example], objectives: Sequence[str]) -> Batch:
    """A batch for prediction, of an :func:`evaluation_collator`: matched, nothing hidden."""
    return collator.batch(examples, objectives, len(examples), others=False)


def run(model: CrossloomModel, batch: Batch, objectives: tuple[str, ...]) -> dict[str, Tensor]:
    """Predictions of one batch, on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        out = model(batch.to(device), predict=objectives)
    return {k: v.float().cpu() for k, v in out.items()}


def predict(
    model: CrossloomModel,
    recipe: Recipe,
    source: Source,
    objectives: tuple[str, ...],
    *,
    size: int = 128,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    defects: list[Defect] | None = None,
) -> Iterator[Predicted]:
    """Predictions for every example of a source.

    Args:
        model: in any mode; evaluated without dropout.
        recipe: whose objectives and modalities the model has.
        source: what to read.
        objectives: whose predictions are wanted.
        size: examples in one forward pass.
        workers: loader processes.
        progress: called with (done, total) examples.
        defects: receives what is wrong with bad examples, which have no prediction.

    Raises:
        RecipeError: all examples are bad.
    """
    model.eval()
    chunks = _Chunks(source, evaluation_collator(recipe), objectives, size)
    loader: DataLoader[Any] = DataLoader(
        chunks,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=_same,
    )
    done = 0
    wrong: list[Defect] = []
    for batch, examples, bad in loader:
        wrong += bad
        if defects is not None:
            defects += bad
        done += len(examples) + len(bad)
        if batch is not None:
            yield Predicted(examples, run(model, batch, objectives))
        if progress:
            progress(done, len(chunks.places))
    if len(wrong) == done:
        raise none_usable(source, wrong)


def none_usable(source: Source, defects: Sequence[Defect]) -> RecipeError:
    """The error where all examples of a source are bad: how many, of which split, why the first."""
    splits = ", ".join(dict.fromkeys(split_of(shard.name) for shard in source.shards))
    first = defects[0]
    return RecipeError(
        f"{source.name}: none of the {len(defects)} examples of {splits} can be used; the first, "
        f"{first.key} of {first.shard}: {first.kind}: {first.message}"
    )


def _same(value: Any) -> Any:
    return value


def gather(
    predictions: Iterator[Predicted], objective: str
) -> tuple[Tensor, list[Mapping[str, Any]], list[str]]:
    """All predictions of one objective with labels and keys, duplicates of a key left out."""
    rows, labels, keys, seen = [], [], [], set()
    for part in predictions:
        for number, example in enumerate(part.examples):
            if example.key not in seen:
                seen.add(example.key)
                rows.append(part.outputs[objective][number])
                labels.append(example.labels)
                keys.append(example.key)
    return torch.stack(rows), labels, keys
