"""XLM: masked, causal and translation language modelling, with embeddings of languages."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks, Parallel
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import clm, mmlm, tlm
from crossloom.recipes.languages import XNLI
from crossloom.recipes.parts import TEXT, tiny_plan, train, xlm_adam, xlm_text
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def xlm() -> Recipe:
    """XLM-15 (Conneau & Lample 2019): MLM on streams of text and TLM on pairs, 15 languages.

    Followed: sections 3 and 5.1, and ``facebookresearch/XLM``: ``README.md`` (the commands),
    ``xlm/trainer.py``, ``xlm/utils.py``. Documents of one language are laid end to end and cut at
    256 units; pairs of translations start at position 0 on either side, where the language's
    embedding changes too. The head is the table of words and a bias. Every step is of one task and
    language, as many of MLM as of TLM: ``shuf_order`` draws five of each in turn. 64 devices with
    32 streams each, and languages sampled by their text to the power 0.7, as the authors tell
    (``facebookresearch/XLM``: issue 119; the paper has 0.5 for the vocabulary).

    Otherwise than there: pairs of languages are met as often as they come; ``</s>`` is never
    hidden, and random words are never special ids; no frequent words are hidden more rarely (the
    code's default; the paper does). Tables start with a deviation of 0.02, there of 0.031. The
    number of steps is not published: training stopped where held-out perplexity did. Not copied:
    under fp16 the first targets of a batch are left out, so that eight divides their number.

    249.2 M parameters: those of the published model, and a bias of 95,000 for TLM's own head.
    """
    return Recipe(
        name="xlm",
        data="shards",
        modalities={TEXT: xlm_text(languages=XNLI, size=95_000, restart=True)},
        plan=xlm_plan(),
        objectives={
            "mmlm": replace(mmlm(), transform=False),
            "tlm": replace(tlm(), transform=False),
        },
        mixture={
            "streams": streams("mmlm"),
            "pairs": Component(
                shards=train("opus"), reader=Parallel(languages=XNLI), objectives=("tlm",)
            ),
        },
        steps=500_000,
        examples=32,
        micro=64,
        alike=True,
        optim=xlm_adam(),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def xlm_clm() -> Recipe:
    """XLM's causal form (section 3.2): each word from those before it, English and French.

    As published for machine translation: 6 layers of 1024 over a vocabulary of 64,139 ids, streams
    of 256 units, a constant rate, both languages alike (``README.md``, section III, with
    ``--clm_steps 'en,fr' --mlm_steps ''``). What :func:`xlm` does otherwise is otherwise here too.

    141.8 M parameters, as published.
    """
    recipe = xlm()
    languages = ("en", "fr")
    return replace(
        recipe,
        name="xlm-clm",
        modalities={TEXT: xlm_text(languages=languages, size=64_139, restart=True)},
        plan=xlm_plan(layers=6),
        objectives={"clm": replace(clm(), transform=False)},
        mixture={"streams": streams("clm", languages, alpha=0.0)},
        optim=replace(xlm_adam(), betas=(0.9, 0.999), epsilon=1e-8),
        schedule=Schedule(shape="constant", warmup=0),
    )


def xlm_tiny() -> Recipe:
    """XLM over the world: MLM on its captions, TLM on their translations, 3 layers of 128."""
    return tiny(xlm(), tiny_plan((TEXT,)))


def xlm_clm_tiny() -> Recipe:
    """XLM's causal form over the world, English and French, 3 layers of 128."""
    return tiny(xlm_clm(), tiny_plan((TEXT,)))


def xlm_plan(*, layers: int = 12) -> Plan:
    """XLM's layers over text: as BERT's, 1,024 wide with 8 heads."""
    plan = single_stream((TEXT,), layers=layers, width=1024, heads=8)
    return replace(plan, epsilon=1e-12)


def streams(objective: str, languages: tuple[str, ...] = XNLI, *, alpha: float = 0.7) -> Component:
    """Wikipedias laid end to end: 1,024 characters are about one block of 256 units."""
    return Component(
        shards=train("wikipedia"),
        reader=Blocks(stretch=1024),
        languages=languages,
        alpha=alpha,
        objectives=(objective,),
    )
