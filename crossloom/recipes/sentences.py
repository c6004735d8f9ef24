"""Text alone: many languages, and their translations."""

from __future__ import annotations

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mmlm, tlm
from crossloom.objectives.view import Hide
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def sentences() -> Recipe:
    """MMLM and TLM (XLM) over Multi30K and Tatoeba, small enough for two cores."""
    hide = Hide(rate=0.15, by="group")
    shards = ("multi30k/train-*.tar", "tatoeba/train-*.tar")
    return Recipe(
        name="sentences",
        data="shards",
        modalities={"text": Text(limit=96, dropout=0.0)},
        plan=single_stream(("text",), layers=4, width=128, heads=4, dropout=0.1),
        objectives={"mmlm": mmlm(hide=hide), "tlm": tlm(hide=hide)},
        mixture={
            "sentences": Component(shards=shards, reader=Texts(), objectives=("mmlm",)),
            "translations": Component(
                shards=shards, reader=Parallel(), objectives=("tlm",), weight=2
            ),
        },
        steps=2400,
        examples=64,
        optim=Optim(rate=1e-3),
        schedule=Schedule(shape="cosine", warmup=0.05),
        log_every=100,
        save_every=1000,
    )
