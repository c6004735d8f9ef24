"""What systems that go on from XLM-R share: its text, twice for translations, and its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crossloom.data_pipelines.read import Blocks, Parallel
from crossloom.data_pipelines.reader import Reader
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.objectives.objective import Objective
from crossloom.recipes.languages import CC100
from crossloom.recipes.parts import TEXT, bert_plan, tiny_plan, train, xlm_r_text
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

SECOND = "second"
#: A text, and its translation where the two are read apart.
PAIR = (TEXT, SECOND)
#: The translation has the embedder of the text.
TIED = {SECOND: TEXT}


def xlm_r_texts(**changes: Any) -> dict[str, Text]:
    """XLM-R's text for both streams: 250,002 ids, positions from row 2 of 514, one passage type.

    Args:
        changes: other fields of :class:`~crossloom.modalities.text.Text`.
    """
    text = xlm_r_text(limit=512, **changes)
    return {TEXT: text, SECOND: replace(text, field=SECOND)}


def xlm_r_plan() -> Plan:
    """XLM-R base's layers over both streams, with one set of weights."""
    return replace(bert_plan(PAIR), epsilon=1e-5)


def small_plan() -> Plan:
    """The world's small layers over both streams."""
    return tiny_plan(PAIR)


def documents(*objectives: str, alpha: float = 1.0) -> Component:
    """CC-100 in blocks of 512, its languages sampled by their text to the power ``alpha``."""
    return Component(
        shards=train("cc100"),
        reader=Blocks(),
        languages=CC100,
        alpha=alpha,
        objectives=objectives,
    )


def together(*objectives: str) -> Component:
    """Translations in one row."""
    return _translations(Parallel(), objectives)


def apart(*objectives: str) -> Component:
    """Translations in two streams."""
    return _translations(Parallel(apart=True), objectives)


def _translations(reader: Reader, objectives: tuple[str, ...]) -> Component:
    return Component(shards=train("opus"), reader=reader, objectives=objectives)


def going_on(
    name: str, objectives: Mapping[str, Objective], mixture: Mapping[str, Component], **changes: Any
) -> Recipe:
    """A recipe over XLM-R base: 200,000 steps of 6,144 examples, as published for InfoXLM.

    Args:
        name: of the recipe.
        objectives: by name.
        mixture: by name; steps mix its components by chance.
        changes: other fields of :class:`~crossloom.training.recipe.Recipe`.
    """
    recipe = Recipe(
        name=name,
        data="shards",
        modalities=xlm_r_texts(),
        tied=TIED,
        plan=xlm_r_plan(),
        objectives=objectives,
        mixture=mixture,
        steps=200_000,
        examples=16,
        micro=384,
        optim=Optim(rate=2e-4, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        precision="bf16",
    )
    return replace(recipe, **changes)
