"""ViLBERT: two streams of their own widths that read each other."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.models.presets import co_attention
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.parts import (
    ANY_REGIONS,
    ANY_WORDS,
    IMAGE,
    STREAMS,
    TEXT,
    bert_adam,
    bert_text,
    butd,
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: The text's twelve layers that BERT has: six alone, and what follows each connection.
BERT_LAYERS = r"layers\.([0-5]\.|\d+\.blocks\.[35]\.).*\.text\."


def vilbert() -> Recipe:
    """ViLBERT (Lu et al. 2019): masked words and regions, and alignment, over co-attending streams.

    Paper: section 2 (arXiv 1908.02265); jiasenlu/vilbert_beta: ``vilbert/vilbert.py``,
    ``config/bert_base_6layer_6conect.json``, ``train_concap.py``. Words and regions are hidden in
    one pass (of the regions selected, a tenth is left visible); a region is asked for the
    detector's distribution over classes, as a KL divergence summed over them; half of the captions
    are another image's, and their words and regions are predicted too. Training starts from BERT's
    uncased weights (``start``), whose table and twelve layers learn with a tenth of the rate; the
    connections, on the text's side too, with all of it.

    Not copied: the image's first unit is the mean of the regions that are *not* hidden; weight
    decay is on matrices, not on norms and biases (that code has it the other way round); a match is
    class 1; another image's caption is never the image's own (the code draws any of all); random
    words are never special ones; where no region of a batch is hidden, the loss there is 0 / 0; the
    unused ``q_dense`` layers.

    Parameters: table and layers of words 109 M, regions 40 M, six connections 85 M, heads 5 M.
    """
    hide = {TEXT: ANY_WORDS, IMAGE: ANY_REGIONS}
    view = View(name="joint", streams=STREAMS, hide=hide, mismatch=TEXT)
    return Recipe(
        name="vilbert",
        data="shards",
        modalities={
            TEXT: bert_text(limit=36),
            IMAGE: butd(limit=36, box=5, norm="norm_of_sum", mask="zero", overall=True),
        },
        plan=co_attention(
            TEXT, IMAGE, first=6, pairs=6, image_width=1024, bridge=1024, bridge_heads=8,
            image_hidden=1024,
        ),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token", matched_only=False),
            "mrc": Reconstruct(view=view, stream=IMAGE, target="classes", matched_only=False),
            "match": Match(
                view=view, pooled=STREAMS, width=1024, activation="relu", dropout=0.1
            ),
        },
        mixture={
            "captions": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",)),
                objectives=("mlm", "mrc", "match"),
            )
        },
        steps=61_000,  # 10 epochs of 3.1 million pairs by 512
        examples=64,
        micro=8,
        optim=replace(bert_adam(1e-4), factors={r"embed\.text": 0.1, BERT_LAYERS: 0.1}),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def vilbert_tiny() -> Recipe:
    """ViLBERT over the world: a wider stream of regions, two connections."""
    plan = co_attention(
        TEXT, IMAGE, first=1, pairs=2, width=96, heads=4, image_width=128, bridge=128,
        bridge_heads=4, image_hidden=128,
    )  # fmt: skip
    return tiny(vilbert(), plan, at_least=1)
