"""Letting a trained model say pictures, code by code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from crossloom.data_pipelines.collate import Example
from crossloom.evaluation.predict import evaluation_collator
from crossloom.evaluation.say import said_by
from crossloom.modalities.codebook import Codebook
from crossloom.modalities.codes import Codes
from crossloom.models.generation import Search, generate
from crossloom.models.model import CrossloomModel
from crossloom.training.recipe import Recipe


class Drawing(NamedTuple):
    """One picture."""

    codes: tuple[int, ...]  #: those given, and those said after them
    score: float  #: log probability of those said, divided by their number as the search says
    picture: Any = None  #: a Pillow image, where a codebook is known


def draw(
    model: CrossloomModel,
    recipe: Recipe,
    objective: str,
    examples: Sequence[Example],
    search: Search | None = None,
    *,
    given: Sequence[Sequence[int]] | None = None,
    codebook: Codebook | None = None,
) -> list[list[Drawing]]:
    """Pictures of as many codes as the recipe says, the likeliest first.

    Args:
        model: of the recipe; set to evaluation mode.
        recipe: whose modalities the examples were decoded by.
        objective: its stream is said, from all other streams of its view.
        examples: with those other streams.
        search: greedy when None; its ``longest`` is not looked at.
        given: the first codes of each example's picture, equally many (the rows above what is to be
            drawn); none when None.
        codebook: what the codes look like; no pictures are made without it.

    Raises:
        RecipeError: the objective says no codes.
        ValueError: what is given leaves nothing to say or to begin with, or is no code; or the
            codebook has more entries than the recipe codes.
    """
    stream, spec = said_by(model, recipe, objective, Codes)
    before = [np.asarray(x, np.int64) for x in given or [()] * len(examples)]
    counts = {len(x) for x in before}
    if len(before) != len(examples) or len(counts) != 1 or not 0 <= max(counts) < spec.limit:
        raise ValueError(
            f"given: equally many codes for each of {len(examples)} examples, fewer than "
            f"{spec.limit}"
        )
    if not spec.begin and not max(counts):
        raise ValueError(f"{stream!r} has no unit before its codes (begin): give the first ones")
    if any(len(x) and not 0 <= x.min() <= x.max() < spec.size for x in before):
        raise ValueError(f"given: codes are 0..{spec.size - 1}")
    if codebook is not None and codebook.size > spec.size:
        raise ValueError(f"the codebook has {codebook.size} entries, the recipe {spec.size} codes")
    search = replace(search or Search(), longest=spec.limit - max(counts))
    opened = [
        replace(e, units={**e.units, stream: spec.units(x)})
        for e, x in zip(examples, before, strict=True)
    ]
    shown = evaluation_collator(recipe).show(recipe.objectives[objective].view.clean, opened)
    found = generate(
        model,
        objective,
        shown.to(next(model.parameters()).device),
        end=None,
        search=search,
        never=range(codebook.size, spec.size) if codebook is not None else (),
    )

    def drawing(first: Sequence[int], units: Sequence[int], score: float) -> Drawing:
        codes = (*map(int, first), *units)
        return Drawing(codes, score, codebook.image(codes) if codebook is not None else None)

    return [
        [drawing(first.tolist(), s.units, s.score) for s in some]
        for first, some in zip(before, found, strict=True)
    ]
