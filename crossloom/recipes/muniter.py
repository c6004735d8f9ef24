"""mUNITER and xUNITER: English captions with images, and text in 104 languages, by turns.

Liu et al. (2021, "Visually Grounded Reasoning across Languages and Cultures", section 4) and IGLUE
(Bugliarello et al. 2022, section 4.1). Followed: e-bug/iglue:
``experiments/zero_shot/ctrl_{m,x}uniter/pretrain/train.sh``, ``volta/train_concap_wiki.py``,
``volta/config/ctrl_{m,x}uniter_base.json``, ``volta/volta/embeddings.py``.

The model, its objectives on captions and its optimiser are controlled UNITER's
(:func:`~crossloom.recipes.controlled.controlled_uniter`); images know English alone, and languages
meet in the text.

- All parameters learn at one rate. A tenth of it is meant for those that BERT gives, but the names
  compared there (``key[12:] in bert_weight_name``) never agree.
- The norms' epsilon is 1e-12 for both: XLM-R's 1e-5 is not in the configuration.

- Before each step on captions there is one on Wikipedia, of the same size: here components of equal
  weight, one drawn for each step, and so twice as many steps in all.
- Languages of Wikipedia are drawn by the size of their texts to the power of 0.7: there in lines,
  here in stretches of 1,024 characters.
- A text there is a line drawn at random and those that follow until 66 units are full, each with
  ends of its own, which may be hidden; here documents fill blocks of 66.
- Not copied: captions are padded with id 0 there, which is ``<s>`` to XLM-R; texts alone are read
  beside an image of zeros.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks
from crossloom.modalities.text import Text
from crossloom.objectives.presets import mmlm
from crossloom.recipes.controlled import controlled_uniter
from crossloom.recipes.languages import WIKIPEDIAS
from crossloom.recipes.parts import IMAGE, TEXT, butd, mbert_text, tiny_plan, train, xlm_r_text
from crossloom.recipes.world import tiny_with_statements
from crossloom.training.recipe import Component, Recipe

#: Most units of a caption, and of a text.
LIMIT = 66


def muniter() -> Recipe:
    """mUNITER: UNITER with the vocabulary and weights (``start``) of cased multilingual BERT.

    183.1 M parameters: those of mBERT's encoder (177.3 M), 1.6 M that embed regions and 4.2 M of
    the heads.
    """
    return _recipe("muniter", mbert_text(limit=LIMIT))


def xuniter() -> Recipe:
    """xUNITER: UNITER with the vocabulary and weights (``start``) of XLM-R base.

    Regions have a type of their own, since XLM-R's table has one row. 283.5 M parameters: those of
    XLM-R's encoder (277.5 M), and mUNITER's others with larger biases.
    """
    return _recipe("xuniter", xlm_r_text(limit=LIMIT))


def muniter_tiny() -> Recipe:
    """MUNITER over the world: English captions, statements in ten languages."""
    return tiny_with_statements(muniter(), tiny_plan(), at_least=1)


def xuniter_tiny() -> Recipe:
    """XUNITER over the world, as mUNITER; regions have a type of their own."""
    return tiny_with_statements(xuniter(), tiny_plan(), at_least=1)


def _recipe(name: str, text: Text) -> Recipe:
    controlled = controlled_uniter()
    regions = controlled.modalities[IMAGE]
    if text.segments == 1:
        # the table of types has no second row to lend
        regions = butd(limit=36, overall=True, mask="zero", box=5, norm="norm_of_norms", segments=1)
    return replace(
        controlled,
        name=name,
        modalities={TEXT: text, IMAGE: regions},
        objectives={**controlled.objectives, "mmlm": replace(mmlm(), shares="mlm")},
        mixture={
            **controlled.mixture,
            "texts": Component(
                shards=train("wikipedia"),
                reader=Blocks(stretch=1024),
                languages=WIKIPEDIAS,
                alpha=0.7,
                objectives=("mmlm",),
            ),
        },
        steps=2 * controlled.steps,
        alike=True,
        optim=replace(controlled.optim, factors={}),
    )
