"""Examples read once; what a contrastive head, or the layers themselves, make of their stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crossloom.data_pipelines.collate import Example
from crossloom.data_pipelines.loader import decode
from crossloom.data_pipelines.source import Defect, Source
from crossloom.evaluation.predict import evaluation_collator, none_usable
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

    Raises:
        RecipeError: all examples are bad.
    """
    collator = evaluation_collator(recipe)
    places = source.places()
    found: list[Example] = []
    wrong: list[Defect] = []
    for begin in range(0, len(places), size):
        good, bad = decode(source, places[begin : begin + size], collator, frozenset(streams))
        found += good
        wrong += bad
        if defects is not None:
            defects += bad
        if watch:
            watch(min(begin + size, len(places)), len(places))
        if most and len(found) >= most:
            return found[:most]
    if not found:
        raise none_usable(source, wrong)
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


def layers_of(recipe: Recipe, stream: str) -> int:
    """How many layers a stream goes through: after so many its states are final."""
    return recipe.plan.settled[stream] + 1


def means(
    model: CrossloomModel,
    recipe: Recipe,
    stream: str,
    examples: Sequence[Example],
    layers: Sequence[int],
    *,
    size: int = 128,
) -> dict[int, Tensor]:
    """Mean states ``[E, width]`` over each example's units after each layer, on the CPU.

    The stream is shown by itself. All its units count, specials too.

    Args:
        model: in any mode; evaluated without dropout.
        recipe: whose modalities the model has.
        stream: of the examples.
        examples: which have the stream.
        layers: 0 for the embedding, then from 1 to :func:`layers_of`, after which the last norm
            follows where the plan has one.
        size: examples in one forward pass.
    """
    collator = evaluation_collator(recipe)
    view = View(name="features", streams=(stream,), apart=True)
    device = next(model.parameters()).device
    last = layers_of(recipe, stream)
    between = tuple(n for n in layers if 0 < n < last)
    # neighbours in length pass together; rows come back in the order of the examples
    order = sorted(range(len(examples)), key=lambda n: len(examples[n].units[stream]))
    rows: dict[int, list[Tensor]] = {n: [] for n in layers}
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(order), size):
            some = [examples[n] for n in order[begin : begin + size]]
            encoded = model.encode(collator.show(view, some).to(device), layers=between)
            states = {0: encoded.embedded, **encoded.middle, last: encoded.states}
            for n in layers:
                rows[n].append(replace(encoded, states=states[n]).mean(stream).float().cpu())
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return {n: torch.cat(parts)[back] for n, parts in rows.items()}
