"""Five systems under one recipe: the controlled comparison of Bugliarello et al. (TACL 2021).

Same data, sizes, objectives, schedule and heads; what differs is who reads whom, and how a region
is embedded. Followed: e-bug/volta: ``config/ctrl_*_base.json``, ``volta/embeddings.py``,
``volta/losses.py``, ``examples/ctrl_*/concap/train.sh``. ``crossloom compare`` makes the table and
the plot.

One rate for all: ``train_concap.py`` means BERT's parts to learn with a tenth of it, but looks for
their names before the model is wrapped, and twelve letters too late, so that none is found.

Not copied: the whole image's feature is the mean of the regions that are *not* hidden (there, of
features of overlapping regions too); targets are clean features; embeddings that BERT does not
provide start as all others do; another image's caption is never the image's own; a match is class
1; the loss of words is 0 / 0 where no word of a batch is hidden.
"""

from __future__ import annotations

from typing import Any

from crossloom.data_pipelines.read import Texts
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import co_attention, cross_encoder
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
    bert_plan,
    bert_text,
    butd,
    tiny_plan,
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def controlled_vilbert() -> Recipe:
    """Controlled ViLBERT: co-attention after six layers of text; norm of feature and box."""
    return _recipe("vilbert", _vilbert(), _regions(box=5, norm="norm_of_sum"))


def controlled_lxmert() -> Recipe:
    """Controlled LXMERT: shared cross-attention; the mean of normed feature and box."""
    return _recipe("lxmert", _lxmert(), _regions(box=5, norm="mean_of_norms"))


def controlled_visualbert() -> Recipe:
    """Controlled VisualBERT: one stream; features without boxes, of a segment and position."""
    regions = _regions(
        box=0, norm="norm_of_sum", segments=2, segment=1, positions=512, lent={"norm": TEXT}
    )
    return _recipe("visualbert", bert_plan(), regions)


def controlled_vl_bert() -> Recipe:
    """Controlled VL-BERT: one stream; words see the image, boxes are waves."""
    regions = _regions(
        box="waves", join="concat", activation="relu", norm="norm_of_norms", gain=0.0, word=True,
        mask="learned", segment=2, lent={"norm": TEXT, "segment": TEXT, "position": TEXT},
    )  # fmt: skip
    return _recipe("vl-bert", bert_plan(), regions, segments=3, looks_at=IMAGE)


def controlled_uniter() -> Recipe:
    """Controlled UNITER: one stream; feature and box normed apart, summed with a segment."""
    regions = _regions(box=5, norm="norm_of_norms", segment=1, lent={"segment": TEXT})
    return _recipe("uniter", bert_plan(), regions)


def controlled_vilbert_tiny() -> Recipe:
    """Controlled ViLBERT over the world: one layer of text, two connections."""
    return tiny(controlled_vilbert(), _vilbert(first=1, pairs=2, width=96, heads=4), at_least=1)


def controlled_lxmert_tiny() -> Recipe:
    """Controlled LXMERT over the world: 2 + 1 + 2 layers of 96."""
    plan = _lxmert(text_layers=2, image_layers=1, cross=2, width=96, heads=4)
    return tiny(controlled_lxmert(), plan, at_least=1)


def controlled_visualbert_tiny() -> Recipe:
    """Controlled VisualBERT over the world: 3 layers of 128."""
    return tiny(controlled_visualbert(), tiny_plan(), at_least=1)


def controlled_vl_bert_tiny() -> Recipe:
    """Controlled VL-BERT over the world: 3 layers of 128."""
    return tiny(controlled_vl_bert(), tiny_plan(), at_least=1)


def controlled_uniter_tiny() -> Recipe:
    """Controlled UNITER over the world: 3 layers of 128."""
    return tiny(controlled_uniter(), tiny_plan(), at_least=1)


def _vilbert(**sizes: Any) -> Plan:
    """Both streams of one width, unlike the published one."""
    return co_attention(TEXT, IMAGE, **{"first": 6, "pairs": 6, **sizes})


def _lxmert(**sizes: Any) -> Plan:
    return cross_encoder(TEXT, IMAGE, **sizes)


def _regions(**form: Any) -> Regions:
    """36 regions after one for the whole image; hidden ones show zeros unless told otherwise."""
    return butd(limit=36, overall=True, **{"mask": "zero", **form})


def _recipe(name: str, plan: Plan, regions: Regions, **text: Any) -> Recipe:
    """What all five share.

    Words and regions are hidden together; half of the captions are another image's, and then
    nothing is scored but the match (objective 1 there). Regions are asked for the detector's
    distribution. Training starts from BERT's uncased weights (``start``).
    """
    hide = {TEXT: ANY_WORDS, IMAGE: ANY_REGIONS}
    view = View(name="joint", streams=STREAMS, hide=hide, mismatch=TEXT)
    words: Text = bert_text(limit=38, **text)
    return Recipe(
        name=f"controlled-{name}",
        data="shards",
        modalities={TEXT: words, IMAGE: regions},
        plan=plan,
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token"),
            "mrc": Reconstruct(view=view, stream=IMAGE, target="classes"),
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
        steps=108_000,  # 10 epochs of 2.77 million pairs by 256
        examples=64,
        micro=4,
        optim=bert_adam(1e-4, clip=5.0),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip
