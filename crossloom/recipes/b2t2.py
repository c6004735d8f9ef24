"""B2T2 (Alberti et al., EMNLP 2019, arXiv 1908.05054): a box is shown on the words that mean it.

Followed: ``google-research/language`` (``language/question_answering/b2t2/run_b2t2.py``).

- There is no stream of regions to be read: the Transformer has the text alone, and what it sees of
  the image is added to the text's units after their norm. The whole image goes to ``[CLS]``; the
  code has a unit of its own for it right after. Here it is the mean of the detector's regions,
  there a ResNet's vector of all pixels.
- Where a box lies: its corners enter the layer that projects its feature. The paper adds learned
  vectors of 56 places for each corner's coordinates before that layer; the code leaves them out
  unless asked.
- A unit that refers to nothing gets nothing; in the code it gets tanh of the projection's bias.
- 15 % of the pieces are drawn one by one, at least one; the code's are drawn beforehand.
- Since no state of a region ever reads the text, regions cannot be scored (task ``grounding``).
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.annotated import Refers
from crossloom.data_pipelines.links import Links
from crossloom.data_pipelines.read import Texts
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.match import Match
from crossloom.objectives.presets import BERT
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
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def b2t2() -> Recipe:
    """B2T2, of BERT-large's size: MLM and impostors on captions, the image fused into the words.

    Half of the captions are another image's (impostors, section 3.4); of these no word is predicted
    (the code's label times its weights). Conceptual Captions have no boxes, so that pre-training
    meets whole images; words refer to boxes where a reader links them (``links``: VCR's references
    in the paper, names of objects, referring expressions).

    Batch, rate and steps of pre-training are not published with the code: the rate is that of VCR,
    the others are ours. Begins from BERT-large (``start``).

    338.3 M parameters: BERT-large with its pooler and heads (336.2 M), the projection of feature
    and box (2,052 × 1,024 + 1,024; the code's has no box) and a feature for hidden regions (2,048),
    of which there are none.
    """
    view = View(name="captions", streams=STREAMS, hide={TEXT: BERT}, mismatch=TEXT)
    return Recipe(
        name="b2t2",
        data="shards",
        modalities={
            TEXT: bert_text(limit=64, looks_at=IMAGE, sees="referred"),
            IMAGE: butd(
                classes=0, box=4, join="concat", activation="tanh", norm="none", overall=True,
                dropout=0.0,
            ),
        },
        plan=_seen(bert_plan((TEXT,), large=True)),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token"),
            "impostor": Match(view=view),
        },
        mixture={
            "captions": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",)),
                objectives=("mlm", "impostor"),
            )
        },
        steps=65_000,  # 5 epochs of 3.3 million
        examples=64,
        micro=4,
        optim=bert_adam(2e-5),
        schedule=Schedule(warmup=0.1),
    )  # fmt: skip


def b2t2_tiny() -> Recipe:
    """B2T2 over the world: words that name an object, and whole expressions, show its region."""
    recipe = b2t2()
    captions = replace(recipe.mixture["captions"], shards="train-*.tar")
    named = Links(of="regions.npz", names="classes.txt")
    return tiny(
        recipe,
        _seen(single_stream((TEXT,), layers=2, width=128, heads=4)),
        {
            "captions": replace(captions, reader=Texts(languages=("en",), links=named), weight=3),
            "expressions": replace(captions, reader=Refers(languages=("en",), links=Links())),
        },
    )


def _seen(plan: Plan) -> Plan:
    """The plan of a text, beside it an image that no layer reads: the words' embedding does."""
    return replace(plan, widths={**plan.widths, IMAGE: plan.widths[TEXT]})
