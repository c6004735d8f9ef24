"""Examples read once, and the features that a contrastive head gives of one stream of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.source import Defect, Source
from crossloom.evaluation.predict import evaluation_collator
from crossloom.evaluation.task import Watch
from crossloom.models.model import CrossloomModel
from crossloom.objectives.contrast import ContrastHead
from crossloom.objectives.regress import RegressHead
from crossloom.objectives.view import View
from crossloom.training.recipe import Recipe


def read_examples(
    recipe: Recipe,
    source: Source,
    streams: tuple[str, ...],
    *,
    most: int = 0,
    watch: Watch | None = None,
    defects: list[Defect] | None = None,
    size: int = 128,
) -> list[Example]:
    """The examples of a source in stored order, decoded without augmentation.

    Args:
        recipe: whose modalities decode.
        source: what to read.
        streams: those decoded.
        most: how many examples; 0 for all.
        watch: called with (examples read, all).
        defects: receives what is wrong with bad examples, which are left out.
        size: examples read at a time.
    """
    collator = evaluation_collator(recipe)
    places = source.places()
    found: list[Example] = []
    for begin in range(0, len(places), size):
        good, bad = decode(source, places[begin : begin + size], collator, frozenset(streams))
        found += good
        if defects is not None:
            defects += bad
        if watch:
            watch(min(begin + size, len(places)), len(places))
        if most and len(found) >= most:
            return found[:most]
    return found


def features(
    model: CrossloomModel,
    recipe: Recipe,
    objective: str,
    stream: str,
    examples: Sequence[Example],
    *,
    size: int = 128,
) -> Tensor:
    """Vectors ``[E, dim]`` of one stream, shown by itself, on the CPU.

    See ``ContrastHead.features`` and ``RegressHead.features``.

    Args:
        model: in any mode; evaluated without dropout.
        recipe: whose modalities the model has.
        objective: one that contrasts streams, or regresses a vector.
        stream: one of those contrasted, or the one whose vector it is.
        examples: which have the stream.
        size: examples in one forward pass.

    Raises:
        ValueError: the objective makes no vectors of this stream.
    """
    head = model.heads[objective]
    if not isinstance(head, ContrastHead | RegressHead):
        raise ValueError(f"{recipe.name}: objective {objective!r} makes no vectors of a stream")
    collator = evaluation_collator(recipe)
    view = View(name="features", streams=(stream,), apart=True)
    device = next(model.parameters()).device
    layers = (head.layer,) if head.layer else ()
    model.eval()
    rows = []
    with torch.inference_mode():
        for begin in range(0, len(examples), size):
            shown = collator.show(view, examples[begin : begin + size])
            encoded = model.encode(shown.to(device), layers=layers)
            rows.append(head.features(encoded, stream).float().cpu())
    return torch.cat(rows)
