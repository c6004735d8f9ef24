"""ALM: masked language modelling over sentences that switch between languages."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.passages import Switched
from crossloom.objectives.presets import alm as switched_mlm
from crossloom.recipes.languages import XNLI
from crossloom.recipes.parts import TEXT, tiny_plan, train, xlm_adam, xlm_text
from crossloom.recipes.world import tiny
from crossloom.recipes.xlm import xlm_plan
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def alm() -> Recipe:
    """ALM (Yang et al. 2020): XLM's model and MLM, over code-switched sentences.

    Followed: AAAI 2020, "Alternating Language Modeling for Cross-Lingual Pre-Training", its numbers
    as notes on it tell them (anwarvic.github.io: cross-lingual-lm/ALM; its code,
    ``zddfunseeker/ALM``, could not be had). Phrases of a sentence, from word alignments of the
    pair, are replaced by their translations; each unit has the embedding of the language its phrase
    is in; positions run on. Words of the mixture are predicted as in MLM. Less than 30 % of the
    words of a sentence are replaced, by phrases of fewer than five words on either side; a fifth of
    the sentences stay as they are (a tenth of either side). Those with most words of the source and
    those with most of the target are met alike, since either side may be the sentence. Batches of
    8,192 units, here 256 sentences of about 32; a peak of 5e-4 after 4,000 steps, then with the
    root of the step.

    Shards need alignments: ``crossloom shards make opus`` takes those of an aligner,
    ``crossloom shards make align`` makes them (docs/data.md).

    Otherwise than there: the phrases are the smallest that the alignment of the pair itself allows,
    not of a table made from all pairs; each visit switches anew, where the paper wrote some twenty
    forms of each pair beforehand. The share replaced is drawn evenly up to its bound. The paper
    lists Wikipedias too, without saying how they are mixed in; they are left out. Layers and
    vocabulary are those of :func:`~crossloom.recipes.xlm.xlm`, languages XNLI's. The number of
    steps is not published.

    249.1 M parameters, as XLM's published model.
    """
    return Recipe(
        name="alm",
        data="shards",
        modalities={TEXT: xlm_text(languages=XNLI, size=95_000, restart=True)},
        plan=xlm_plan(),
        objectives={"alm": replace(switched_mlm(), transform=False)},
        mixture={
            "switched": Component(
                shards=train("opus"),
                reader=Switched(languages=XNLI, most=0.3, longest=4, left=0.2),
                objectives=("alm",),
            )
        },
        steps=500_000,
        examples=32,
        micro=8,
        optim=xlm_adam(5e-4),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def alm_tiny() -> Recipe:
    """ALM over the world, which tells what translates what: 3 layers of 128.

    Its sentences are short, so that more of each is replaced.
    """
    recipe = alm()
    switched = replace(recipe.mixture["switched"], reader=Switched(languages=XNLI))
    return tiny(replace(recipe, mixture={"switched": switched}), tiny_plan((TEXT,)))
