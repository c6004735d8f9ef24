"""Unicoder-VL: words and regions hidden together, text or image mismatched."""

from __future__ import annotations

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
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def unicoder_vl() -> Recipe:
    """Unicoder-VL (Li et al. 2020): MLM, masked object classification, matching, summed on a pass.

    Paper: section 3 (arXiv 1908.06066); its code for pre-training is not public. A region shows
    its feature and box, each through a layer of its own, and the word ``[IMG]``; hidden, a feature
    of zeros. A pair is mismatched half of the time, by its text or by its image; then words and
    regions are not scored. Training starts from BERT's weights (``start``).

    Uncertain, since the paper is short about it: that a hidden region keeps its feature one time in
    ten, that hidden regions are drawn beside hidden words, the warm-up, and the limit of 64 words
    (here, beside 100 regions). Steps: 10 epochs of 3.8 M pairs by 192.
    """
    view = View(
        name="pairs", streams=STREAMS, hide={TEXT: BERT, IMAGE: OBJECTS}, mismatch=(TEXT, IMAGE)
    )
    return Recipe(
        name="unicoder-vl",
        data="shards",
        modalities={
            TEXT: bert_text(limit=64),
            IMAGE: butd(
                limit=100, box=5, norm="norm_of_sum", mask="zero", word=True, segment=1,
                lent={"norm": TEXT, "segment": TEXT},
            ),
        },
        plan=bert_plan(),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token"),
            "moc": Reconstruct(view=view, stream=IMAGE, target="class"),
            "vlm": Match(view=view, pooled=(TEXT,)),
        },
        mixture={
            "captions": Component(
                shards=train("conceptual-captions", "sbu"),
                reader=Texts(languages=("en",)),
                objectives=("mlm", "moc", "vlm"),
            )
        },
        steps=198_000,
        examples=48,
        micro=4,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def unicoder_vl_tiny() -> Recipe:
    """Unicoder-VL over the world: English captions, 3 layers of 128."""
    return tiny(unicoder_vl(), tiny_plan())
