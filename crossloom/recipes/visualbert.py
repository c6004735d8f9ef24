"""VisualBERT: captions in pairs with an image's regions, which have no boxes."""

from __future__ import annotations

from crossloom.data_pipelines.read import Parallel
from crossloom.objectives.match import Match
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.parts import (
    ANY_WORDS,
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


def visualbert() -> Recipe:
    """VisualBERT (Li et al. 2019): masked words of two captions, and whether both fit the image.

    Paper: section 3 (arXiv 1908.03557); uclanlp/visualbert: ``dataloaders/coco_dataset.py``,
    ``visualbert/configs/vqa/coco-pre-train.json``; ``transformers: modeling_visual_bert.py``. The
    first caption is always the image's, the second is another of its captions or, half of the time,
    one of another image; its words are hidden and predicted all the same. Regions are never hidden.
    Training starts from BERT's uncased weights (``start``); the tables of positions and segments of
    regions start as copies of the text's there, by chance here.

    Regions take row 1 of their own table of segments, as in ``transformers``; the first code took
    row 0. Class 1 is a match, as in that code. Published features differ by task (2,048 numbers
    for VQA, which are taken here, 1,024 for NLVR2), so that its pre-training was done for each.
    Steps: 10 epochs of some 587 thousand captions by 48: ``train2014``, and ``val2014`` without the
    5,000 images of ``minival`` (nearly ``train2017``).

    Parameters: those of ``VisualBertForPreTraining``, and no more.
    """
    view = View(name="captions", streams=STREAMS, hide={TEXT: ANY_WORDS})
    return Recipe(
        name="visualbert",
        data="shards",
        modalities={
            TEXT: bert_text(limit=128),
            IMAGE: butd(
                limit=100, classes=0, box=0, norm="norm_of_sum", mask="zero",
                segments=2, segment=1, positions=512, lent={"norm": TEXT},
            ),
        },
        plan=bert_plan(),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token", matched_only=False),
            "captions": Match(view=view, pooled=(TEXT,), passages=True),
        },
        mixture={
            "captions": Component(
                shards=train("coco"),
                reader=Parallel(languages=("en",), second="texts", mismatch=0.5),
                objectives=("mlm", "captions"),
            )
        },
        steps=122_000,
        examples=48,
        optim=bert_adam(5e-5),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def visualbert_tiny() -> Recipe:
    """VisualBERT over the world: pairs of English captions, 3 layers of 128."""
    return tiny(visualbert(), tiny_plan(), at_least=1)
