"""UC2 (Zhou et al., CVPR 2021, arXiv 2104.00332): images as the pivot between languages.

Followed: zmykevin/UC2: ``config/uc2_pretrain.json``, ``config/uc2-base.json``, ``model/model.py``,
``data/mlm.py``, ``pretrain.py``.

- Conceptual Captions, translated by machine into five languages: every caption has six.
- One task for each step: matching 9, MLM 12, MRTM 9 on captions in any language, VTLM 3 on English
  captions with one translation.
- MRTM (``vmlm``): a hidden region is asked for a piece of its class's name in the caption's
  language, by the head that words are asked with. Several pieces: one at random.
- VTLM (``tlm``, ``co_masking_mode: mix``): for half of the pairs words and their translations are
  hidden together, for the other half pieces on both sides by themselves. Here the halves are
  components, and whole words are hidden together.
- Which words translate each other follows there from an aligner, here from a dictionary
  (:func:`~crossloom.data_pipelines.dictionary.bind`). A word without a translation is hidden by
  itself; there the translation's first word is hidden for it, and words of the translation that
  render none are never hidden.
- Not copied: regions that look like background are asked for a fixed word.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.world.languages import LANGUAGES as SPOKEN
from crossloom.modalities.names import Names
from crossloom.objectives.presets import REGIONS, itm, mlm, mrtm, vtlm
from crossloom.recipes.parts import (
    IMAGE,
    TEXT,
    bert_plan,
    butd,
    tiny_plan,
    train,
    xlm_r_text,
)
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

LANGUAGES = ("en", "de", "fr", "cs", "ja", "zh")


def uc2() -> Recipe:
    """UC2: UNITER's model on XLM-R base; MLM, MRTM, VTLM, ITM.

    Begins from XLM-R base (``start``). Early adaptation there takes the linear layer of the regions
    from a mapping of features to words that was trained beforehand. Its like here is a run of MRTM
    alone in which nothing but the regions' embedder learns (``optim.factors={"embed.image": 1,
    "": 0}`` and weights of 0 for the other components), to ``start`` from.

    10,240 units on each device, 3 times a step, are about 130 captions; with 8 devices, a number
    that is not told, 24 times. Positions start anew at the second caption.

    281.0 M parameters: the encoder of XLM-R (277.5 M), 1.6 M that embed regions, and 1.9 M of the
    heads, of which 750,006 are biases: each objective has its own, the code one for all.
    """
    names = Names(
        names="classes.tsv",
        vocabulary="xlm-roberta-base/sentencepiece.bpe.model",
        layout="xlm-r",
        size=250_002,
    )
    regions = replace(REGIONS, by="unit")
    captions = Texts(languages=LANGUAGES)
    pairs = Parallel(languages=LANGUAGES, pivot="en")
    bound = replace(pairs, dictionary="dictionary.tsv")
    return Recipe(
        name="uc2",
        data="shards",
        modalities={
            TEXT: xlm_r_text(limit=120, restart=True),
            # the code's table of types has two rows: words have the text's constant, regions this
            IMAGE: butd(
                limit=100, box=7, norm="norm_of_norms", mask="learned", segments=1, names=names,
                lent={"token": TEXT},
            ),
        },
        plan=replace(bert_plan(), epsilon=1e-5),
        objectives={
            "mlm": mlm(),
            "mrtm": mrtm(hide=regions, shares="mlm"),
            "vtlm": vtlm(shares="mlm"),
            "itm": itm(),
        },
        mixture={
            "itm": _component(captions, "itm", 9),
            "mlm": _component(captions, "mlm", 12),
            "mrtm": _component(captions, "mrtm", 9),
            "vtlm": _component(bound, "vtlm", 1.5),
            "vtlm-pieces": _component(pairs, "mlm", 1.5),
        },
        steps=200_000,
        examples=128,
        micro=24,
        alike=True,
        optim=Optim(rate=4e-5, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01, clip=5.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        precision="bf16",
    )  # fmt: skip


def uc2_tiny() -> Recipe:
    """UC2 over the world: captions in the four languages that both have, the world's word lists.

    Tasks are drawn more alike, so that each is met in a short run.
    """
    recipe = uc2()
    known = tuple(code for code in LANGUAGES if code in SPOKEN)
    weights = {"itm": 1, "mlm": 2, "mrtm": 3, "vtlm": 1, "vtlm-pieces": 1}
    mixture = {
        name: replace(
            component,
            shards="train-*.tar",
            reader=replace(component.reader, languages=known),  # type: ignore[call-arg]
            weight=weights[name],
        )
        for name, component in recipe.mixture.items()
    }
    return tiny(recipe, tiny_plan(), mixture)


def _component(reader: Reader, objective: str, weight: float) -> Component:
    return Component(
        shards=train("conceptual-captions"), reader=reader, objectives=(objective,), weight=weight
    )
