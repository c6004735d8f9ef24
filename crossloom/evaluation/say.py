"""Letting a trained model say texts of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from crossloom.data_pipelines.collate import Example
from crossloom.evaluation.predict import evaluation_collator
from crossloom.modalities.modality import Modality
from crossloom.modalities.text import Text
from crossloom.models.generation import Search, generate
from crossloom.models.model import CrossloomModel
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.training.recipe import Recipe, RecipeError
from crossloom.units import Units

Spoken = TypeVar("Spoken", bound=Modality)


class Sentence(NamedTuple):
    """One way to say it."""

    text: str
    score: float  #: log probability, divided by the length as the search says


def said_by(
    model: CrossloomModel, recipe: Recipe, objective: str, kind: type[Spoken]
) -> tuple[str, Spoken]:
    """The stream that an objective says, and its modality, which must be of a kind.

    Raises:
        RecipeError: there is no such objective, it says nothing, or something else.
    """
    head = dict(model.heads.items()).get(objective)
    if not isinstance(head, ReconstructHead):
        raise RecipeError(f"{recipe.name}: no objective {objective!r} says anything")
    modality = recipe.modalities[head.stream]
    if not isinstance(modality, kind):
        raise RecipeError(
            f"{recipe.name}: {head.stream!r} is of kind {modality.kind!r}, not {kind.kind!r}"
        )
    return head.stream, modality


def say(
    model: CrossloomModel,
    recipe: Recipe,
    objective: str,
    examples: Sequence[Example],
    search: Search | None = None,
) -> list[list[Sentence]]:
    """The best sentences for each example, best first.

    Args:
        model: of the recipe; set to evaluation mode.
        recipe: whose modalities the examples were decoded by.
        objective: its stream is said, from all other streams of its view.
        examples: of the stream that is said, the first unit alone is read (``<s>``).
        search: greedy when None; never longer than the text's limit.

    Raises:
        RecipeError: the objective says no text.
    """
    stream, text = said_by(model, recipe, objective, Text)
    search = search or Search()
    search = replace(search, longest=min(search.longest, text.limit - 1))
    opened = [replace(e, units=_opened(e.units, stream)) for e in examples]
    shown = evaluation_collator(recipe).show(recipe.objectives[objective].view.clean, opened)
    vocab = text.vocab
    found = generate(
        model,
        objective,
        shown.to(next(model.parameters()).device),
        end=vocab.end,
        search=search,
        never=tuple(n for n in (vocab.begin, vocab.pad, vocab.unknown, vocab.mask) if n >= 0),
    )
    return [[Sentence(vocab.decode(s.units), s.score) for s in some] for some in found]


def opening(units: Units, count: int = 1) -> Units:
    """The first units alone (``<s>``, in the example's language): what a text is continued from."""
    return replace(
        units,
        content={k: v[:count] for k, v in units.content.items()},
        targets={k: v[:count] for k, v in units.targets.items()},
        position=units.position[:count],
        maskable=units.maskable[:count],
        group=units.group[:count],
    )


def _opened(units: Mapping[str, Units], stream: str) -> dict[str, Units]:
    return {**units, stream: opening(units[stream])}
