"""mBERT: BERT over the Wikipedias of 104 languages."""

from __future__ import annotations

from crossloom.data_pipelines.passages import Following
from crossloom.objectives.match import Match
from crossloom.objectives.presets import BERT
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.languages import WIKIPEDIAS
from crossloom.recipes.parts import TEXT, bert_adam, bert_plan, mbert_text, tiny_plan, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def mbert() -> Recipe:
    """mBERT, cased (Devlin et al. 2019): BERT-base in 104 languages, MLM and next sentences.

    Followed: ``google-research/bert: multilingual.md`` and BERT, section 3.1 and appendix A.2. One
    WordPiece vocabulary of 119,547 ids with case and accents kept and Chinese characters apart, no
    mark of the language and no parallel text. Passages of a document are read in pairs; half of the
    second ones are another document's of the same language. Languages are sampled by their texts to
    the power 0.7. 1,000,000 steps of 256 pairs.

    Otherwise than there: pairs of up to 512 units are read throughout (there 128 for the first nine
    tenths), and random words are never special ids. Words are drawn one by one with 15 %, anew at
    each visit; there they are counted out, and written ten times beforehand
    (``create_pretraining_data.py``). A pair is a stretch of at most 1,024 characters, parted
    between sentences; there a tenth of the pairs is shorter.

    178.6 M parameters, all of ``BertForPreTraining`` of that size.
    """
    view = View(name="passages", streams=(TEXT,), hide={TEXT: BERT})
    return Recipe(
        name="mbert",
        data="shards",
        modalities={TEXT: mbert_text(limit=512)},
        plan=bert_plan((TEXT,)),
        objectives={
            "mlm": Reconstruct(view=view, stream=TEXT, target="token", matched_only=False),
            "next": Match(view=view, pooled=(TEXT,), passages=True),
        },
        mixture={
            "documents": Component(
                shards=train("wikipedia"),
                reader=Following(mismatch=0.5),
                languages=WIKIPEDIAS,
                alpha=0.7,
                objectives=("mlm", "next"),
            )
        },
        steps=1_000_000,
        examples=256,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=10_000),
    )


def mbert_tiny() -> Recipe:
    """Small mBERT over the world: its captions in ten languages as documents, 3 layers of 128."""
    return tiny(mbert(), tiny_plan((TEXT,)))
