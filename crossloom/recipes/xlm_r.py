"""XLM-R: masked language modelling over the web's text in 100 languages."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks
from crossloom.models.plan import Plan
from crossloom.objectives.presets import mmlm
from crossloom.recipes.languages import CC100
from crossloom.recipes.parts import TEXT, bert_plan, tiny_plan, train, xlm_r_text
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def xlm_r() -> Recipe:
    """XLM-R base (Conneau et al. 2020): RoBERTa on CC-100, no parallel text, no language marks.

    Followed: sections 3 and 4, and fairseq's ``examples/xlmr``. A SentencePiece vocabulary of
    250,002 ids, documents of one language laid end to end in blocks of 512, 15 % of their words to
    be predicted, 1,500,000 steps of 8,192 blocks, languages sampled by their texts to the power
    0.3. Rate, warm-up and decay are those of RoBERTa (arXiv 1907.11692, table 9): XLM-R's are not
    published.

    Otherwise than there: words are drawn one by one with 15 %, not counted out, and ``<s>`` and
    ``</s>`` are never hidden. A step has 4,096 stretches of up to 4,096 characters, about 8,192
    blocks.

    278.3 M parameters, those of ``XLMRobertaForMaskedLM``.
    """
    return _recipe("xlm-r", bert_plan((TEXT,)), rate=6e-4, warmup=24_000)


def xlm_r_large() -> Recipe:
    """XLM-R large: 24 layers of 1024, otherwise as :func:`xlm_r`; 560.1 M parameters."""
    return _recipe("xlm-r-large", bert_plan((TEXT,), large=True), rate=4e-4, warmup=30_000)


def xlm_r_tiny() -> Recipe:
    """XLM-R over the world: its captions in ten languages in blocks of 48, 3 layers of 128."""
    return tiny(xlm_r(), tiny_plan((TEXT,)))


def _recipe(name: str, plan: Plan, *, rate: float, warmup: int) -> Recipe:
    return Recipe(
        name=name,
        data="shards",
        modalities={TEXT: xlm_r_text(limit=512)},
        plan=replace(plan, epsilon=1e-5),
        objectives={"mmlm": mmlm()},
        mixture={
            "documents": Component(
                shards=train("cc100"), reader=Blocks(), languages=CC100, alpha=0.3,
                objectives=("mmlm",),
            )
        },
        steps=1_500_000,
        examples=32,
        micro=128,
        optim=Optim(rate=rate, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01, clip=0.0),
        schedule=Schedule(shape="linear", warmup=warmup),
        precision="bf16",
    )  # fmt: skip
