"""ImageBERT: four objectives on one pass, and data in stages."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.objectives.match import Match
from crossloom.objectives.presets import BERT, OBJECTS
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.parts import (
    IMAGE,
    STREAMS,
    TEXT,
    bert_adam,
    bert_plan,
    bert_text,
    butd,
    tiny_plan,
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Phase, Recipe
from crossloom.training.schedule import Schedule

OBJECTIVES = ("mlm", "moc", "mrfr", "itm")
#: Steps on web pairs, and then on captions: 17 epochs of 10 M and of 3.8 M pairs, by 192.
WEB, CAPTIONS = 885_000, 336_000


def imagebert() -> Recipe:
    """ImageBERT (Qi et al. 2020): MLM, MOC, MRFR and ITM; web pairs first, then clean captions.

    Paper: sections 3 and 4 (arXiv 2001.07966); its code is not public. All regions take one row of
    a table of positions. A pair is mismatched half of the time, by its text or by its image; then
    only matching is scored. In the first stage the web's pairs alone are drawn (LAIT, 10 M, which
    was not published: ``lait`` stands for any such collection), in the second Conceptual Captions
    and SBU (``phases``). Training starts from BERT's weights (``start``).

    Uncertain, since the paper is short about it: which row of segments regions have, the batch (48
    on each of 4 devices is taken), whether each stage had its 17 epochs, and the warm-up. The error
    of a feature is the mean over its 2,048 numbers, where the paper has the sum; its matrix is the
    head's own.
    """
    view = View(
        name="pairs", streams=STREAMS, hide={TEXT: BERT, IMAGE: OBJECTS}, mismatch=(TEXT, IMAGE)
    )
    reader = Texts(languages=("en",))
    return Recipe(
        name="imagebert",
        data="shards",
        modalities={
            TEXT: bert_text(limit=64),
            IMAGE: butd(
                limit=100, box=5, norm="norm_of_sum", mask="zero", segment=1, positions=1,
                lent={"norm": TEXT, "segment": TEXT},
            ),
        },
        plan=bert_plan(),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token"),
            "moc": Reconstruct(view=view, stream=IMAGE, target="class"),
            "mrfr": Reconstruct(view=view, stream=IMAGE, target="feature", tied=False),
            "itm": Match(view=view, pooled=(TEXT,)),
        },
        mixture={
            "web": Component(shards=train("lait"), reader=reader, objectives=OBJECTIVES),
            "captions": Component(
                shards=train("conceptual-captions", "sbu"),
                reader=reader,
                objectives=OBJECTIVES,
                weight=0,
            ),
        },
        phases=(Phase(step=WEB, weights={"captions": 1}),),
        steps=WEB + CAPTIONS,
        examples=48,
        micro=4,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def imagebert_tiny() -> Recipe:
    """ImageBERT over the world: two stages of English captions, 3 layers of 128."""
    recipe = tiny(imagebert(), tiny_plan())
    return replace(recipe, phases=(Phase(step=recipe.steps // 2, weights={"captions": 1}),))
