"""ERNIE-M: words known from the other language alone, then pseudo tokens for monolingual text."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.objectives.crosslingual import btmlm, camlm
from crossloom.objectives.presets import mmlm, tlm
from crossloom.recipes.from_xlm_r import (
    PAIR,
    SECOND,
    apart,
    documents,
    going_on,
    small_plan,
    together,
)
from crossloom.recipes.parts import train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Phase, Recipe

#: Steps without pseudo tokens, and with them.
FIRST, SECOND_STAGE = 150_000, 50_000


def ernie_m() -> Recipe:
    """ERNIE-M base (Ouyang et al., EMNLP 2021, arXiv 2012.15674): CAMLM, then BTMLM, on from XLM-R.

    First stage: MMLM, TLM and CAMLM, which predicts hidden words of a sentence from its translation
    alone. Second stage (``phases``): also BTMLM, which lets the model fill in tokens of another
    language for monolingual text, and read them beside it.

    The code for pre-training was not released (``PaddlePaddle/ERNIE:ernie-m`` fine-tunes), and the
    paper could be read here in its abstract and introduction only. So ours are: which units read
    what in CAMLM beside the hidden ones, which are all masked (``View.across``); the sides of a
    pair as two streams, each with positions from its beginning; pseudo tokens at the places of half
    of the text's units, for which nothing names the language; length of the stages, batch and rate;
    languages drawn as found.

    279,295,194 parameters: XLM-R's 278,295,186, and biases of TLM, of either side of CAMLM and of
    BTMLM, 250,002 each.
    """
    return going_on(
        "ernie-m",
        objectives={
            "mmlm": mmlm(),
            "tlm": replace(tlm(), shares="mmlm"),
            "camlm": replace(camlm(PAIR), shares="mmlm"),
            "camlm-second": replace(camlm(PAIR, stream=SECOND), shares="mmlm"),
            "btmlm": replace(btmlm(*PAIR), shares="mmlm"),
        },
        mixture={
            "documents": documents("mmlm"),
            "together": together("tlm"),
            "apart": apart("camlm", "camlm-second"),
            "pseudo": Component(
                shards=train("cc100"),
                reader=Texts(copies=(SECOND,)),
                objectives=("btmlm",),
                weight=0,
            ),
        },
        phases=(
            Phase(step=FIRST, weights={"documents": 1, "together": 1, "apart": 1, "pseudo": 1}),
        ),
        steps=FIRST + SECOND_STAGE,
        fused=1,
    )


def ernie_m_tiny() -> Recipe:
    """ERNIE-M over the world: pseudo tokens in the second half, 3 layers of 128."""
    recipe, small = ernie_m(), tiny(ernie_m(), small_plan())
    return replace(small, phases=tuple(replace(p, step=small.steps // 2) for p in recipe.phases))
