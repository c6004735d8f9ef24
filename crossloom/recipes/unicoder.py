"""Unicoder: XLM, and three more tasks on translations."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.passages import Alternating
from crossloom.data_pipelines.read import Parallel
from crossloom.data_pipelines.reader import Reader
from crossloom.models.plan import Plan
from crossloom.objectives.presets import clmlm, clwr, mmlm, same_passages, tlm
from crossloom.recipes.languages import XNLI
from crossloom.recipes.parts import TEXT, tiny_plan, train, xlm_adam, xlm_text
from crossloom.recipes.world import tiny
from crossloom.recipes.xlm import streams, xlm_plan
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

SECOND = "second"


def unicoder() -> Recipe:
    """Unicoder (Huang et al. 2019): XLM's tasks, words recovered, paraphrases, mixed documents.

    Followed: arXiv 1909.00964, section 3; its code for pre-training was not released. Each step is
    of one of five tasks, all as often: MLM and TLM as in :func:`~crossloom.recipes.xlm.xlm`;
    cross-lingual word recovery, where the encoder is given for each word of a sentence what
    attention finds among the words of its translation, and all words are predicted; paraphrase
    classification of two joined sentences, half of them no translations; MLM over documents whose
    sentences take turns in two languages. Starts from XLM's weights (``start``); 512 examples a
    step, a rate that falls from 1e-5 with the root of the step, languages sampled alike (section 4,
    by notes on it: anwarvic.github.io: cross-lingual-lm/Unicoder). The warm-up is that of XLM's
    ``adam_inverse_sqrt``; the number of steps is not published.

    Otherwise than there: sentences that do not belong together are drawn from the batch, in the
    language of the translation, where the paper trains a light model first to find similar ones;
    the parts of W that a softmax over the translation takes out (1,024 numbers) are left out;
    documents are as long as samples of parallel text have sentences, and joined; pairs of languages
    are met as often as they come, and joined pairs are cut at 256 units together, not at 128 each.
    Positions and languages of a recovered sentence are its own; the paper does not tell. It counts
    16 heads, where XLM's released weights, from which it starts, have 8.

    250.4 M parameters: XLM's published 249.1 M, three further biases of 95,000, W (2,048), and the
    classifier with its layer (1,051,650).
    """
    pairs = Parallel(languages=XNLI)
    text = xlm_text(languages=XNLI, size=95_000, restart=True)
    text = replace(text, looks_at=SECOND, sees="words")

    def component(reader: Reader, objective: str) -> Component:
        return Component(shards=train("opus"), reader=reader, objectives=(objective,))

    return Recipe(
        name="unicoder",
        data="shards",
        modalities={TEXT: text, SECOND: replace(text, field=SECOND)},
        tied={SECOND: TEXT},
        plan=_beside(xlm_plan()),
        objectives={
            "mmlm": replace(mmlm(), transform=False),
            "tlm": replace(tlm(), transform=False),
            "clwr": replace(clwr(), transform=False),
            "same": same_passages(),
            "clmlm": replace(clmlm(), transform=False),
        },
        mixture={
            "streams": streams("mmlm", alpha=0.0),
            "pairs": component(pairs, "tlm"),
            "recovery": component(replace(pairs, apart=True), "clwr"),
            "paraphrases": component(replace(pairs, mismatch=0.5), "same"),
            "documents": component(Alternating(languages=XNLI), "clmlm"),
        },
        steps=100_000,
        examples=32,
        micro=16,
        alike=True,
        optim=xlm_adam(1e-5),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def unicoder_tiny() -> Recipe:
    """Unicoder over the world: its five tasks on captions in ten languages, 3 layers of 128."""
    return tiny(unicoder(), _beside(tiny_plan((TEXT,))))


def _beside(plan: Plan) -> Plan:
    """The plan of a text, and a translation that no layer reads: the embedding of words does."""
    return replace(plan, widths={**plan.widths, SECOND: plan.widths[TEXT]})
