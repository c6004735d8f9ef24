"""Text alone: many languages, and their translations, small enough for two cores.

Three steps of one ladder over Multi30K and Tatoeba: :func:`sentences_mmlm` sees each language by
itself, :func:`sentences` translations side by side too (XLM), :func:`sentences_xlco` also holds
translations together and other sentences apart (InfoXLM). Two wide layers find translations in
fewer minutes than four narrow ones.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mmlm, tlm, xlco
from crossloom.objectives.view import Hide
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

SHARDS = ("multi30k/train-*.tar", "tatoeba/train-*.tar")


def sentences() -> Recipe:
    """MMLM and TLM (XLM)."""
    hide = Hide(rate=0.15, by="group")
    return Recipe(
        name="sentences",
        data="shards",
        modalities={"text": Text(limit=96, dropout=0.0)},
        plan=single_stream(("text",), layers=2, width=192, heads=4, dropout=0.1),
        objectives={"mmlm": mmlm(hide=hide), "tlm": tlm(hide=hide)},
        mixture={
            "sentences": Component(shards=SHARDS, reader=Texts(), objectives=("mmlm",)),
            "translations": Component(
                shards=SHARDS, reader=Parallel(), objectives=("tlm",), weight=2
            ),
        },
        steps=2400,
        examples=64,
        optim=Optim(rate=1e-3),
        schedule=Schedule(shape="cosine", warmup=0.05),
        log_every=100,
        save_every=1000,
    )


def sentences_mmlm() -> Recipe:
    """MMLM alone: no sentence is seen with its translation."""
    both = sentences()
    return replace(
        both,
        name="sentences-mmlm",
        objectives={"mmlm": both.objectives["mmlm"]},
        mixture={"sentences": both.mixture["sentences"]},
    )


def sentences_xlco() -> Recipe:
    """MMLM, TLM, and the contrast of a sentence's mean state with that of its translation.

    Most of the examples are contrasted, each with 127 others, and nothing is dropped: both
    make the contrast fall faster.
    """
    both = sentences()
    apart = Component(shards=SHARDS, reader=Parallel(apart=True), objectives=("xlco",), weight=8)
    mixture = {name: replace(part, weight=1) for name, part in both.mixture.items()}
    return replace(
        both,
        name="sentences-xlco",
        modalities={**both.modalities, "second": replace(both.modalities["text"], field="second")},
        tied={"second": "text"},
        plan=single_stream(("text", "second"), layers=2, width=192, heads=4, dropout=0.0),
        objectives={**both.objectives, "xlco": xlco(dim=128, pool="mean")},
        mixture={**mixture, "contrast": apart},
        examples=128,
        optim=Optim(rate=2e-3),
    )
