"""M3P (Ni et al., CVPR 2021, arXiv 2006.02635): text in 100 languages, code-switched captions.

Followed: microsoft/M3P: ``src/data/dataset_pretrain.py``, ``src/data/clag.py``,
``src/model/transformer.py`` (``jointfwd``), ``src/xtrainer.py`` (``pretrain_under_step``).

- Words of an English caption give way to translations of a bilingual dictionary, each with a
  probability (section 3.3; ``Clager.clag``, with the ratios of the README). The released code's
  pre-training (``Clager.dclag``) switches one word of a caption.
- Either words or regions are hidden (a coin there for each pair; here a pass for each), and where
  pairs may be mismatched nothing is. There the match is asked on the corrupted pair.
- Matching is a decision for each pair, as in section 3.3; the code also has the right one of four
  chosen, which :class:`~crossloom.objectives.rank.Rank` does.
- Languages are drawn alike, as in the code (``lg_sampling_factor -1``); the paper tells no
  exponent. They are XLM-R's hundred (README), here the 93 of them that have a Wikipedia: Latin
  letters, Zawgyi's encoding and the second script of Chinese have none.
- Each update is of one task, and of one language where it is of text.
- Not copied: regions stand before the text there and have its first 100 positions, their place
  among the detector's; here text keeps the positions it has alone, and regions have their boxes.
  Positions of text alone begin at row 0 there, at XLM-R's row 2 here. A
  region whose feature was left alone is not scored where none was hidden. Contrast of code-switched
  captions (``clcm``) is off there.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.dictionary import Switch
from crossloom.data_pipelines.read import Blocks, Texts
from crossloom.modalities.regions import Regions
from crossloom.objectives.presets import OBJECTS, itm, mlm, mmlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.languages import CC100
from crossloom.recipes.parts import IMAGE, STREAMS, TEXT, bert_plan, tiny_plan, train, xlm_r_text
from crossloom.recipes.world import tiny_with_statements
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: XLM-R's languages that have a Wikipedia.
LANGUAGES = tuple(code for code in CC100 if "-" not in code)


def m3p() -> Recipe:
    """M3P: xMLM on texts, MC-MLM, MC-MRM and MC-VLM on code-switched captions, by turns.

    XLM-R base, whose weights it begins with (``start``), reads words and up to 100 regions in one
    stream. Features and boxes of regions are brought to length one; a hidden region is asked for
    its class among 1,600, and for the feature as it was (section 3.3). Words are decoded without a
    transform, as in XLM. Rate, betas, warm-up and decay are the code's defaults (``train_x.py``:
    ``--optimizer``; ``src/optim.py``), the batch of 1,024 is the paper's. The number of steps is
    not published.

    283.5 M parameters: the encoder of XLM-R (277.5 M), 1.6 M that embed regions, and 4.5 M of the
    heads.
    """
    regions = View(name="mc-mrm", streams=STREAMS, hide={IMAGE: OBJECTS})
    switched = Switch(dictionary="dictionary.tsv", texts=0.8, words=0.8)
    return Recipe(
        name="m3p",
        data="shards",
        modalities={
            TEXT: xlm_r_text(limit=128),
            IMAGE: Regions(
                features=2048, classes=1600, background=False, limit=100, box=5,
                norm="norm_of_sum", unit_length=True, mask="zero",
            ),
        },
        plan=replace(bert_plan(), epsilon=1e-12),
        objectives={
            "xmlm": replace(mmlm(), transform=False),
            "mc-mlm": replace(mlm(name="mc-mlm"), transform=False),
            "mc-mrc": Reconstruct(view=regions, stream=IMAGE, target="class"),
            "mc-mrfr": Reconstruct(
                view=regions, stream=IMAGE, target="feature", transform=False, tied=False
            ),
            "mc-vlm": itm(),
        },
        mixture={
            "texts": Component(
                shards=train("wikipedia"),
                reader=Blocks(stretch=1024),
                languages=LANGUAGES,
                alpha=0.0,
                objectives=("xmlm",),
            ),
            "captions": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",), switch=switched),
                objectives=("mc-mlm", "mc-mrc", "mc-mrfr", "mc-vlm"),
            ),
        },
        steps=500_000,
        examples=64,
        micro=16,
        alike=True,
        optim=Optim(rate=1e-4, betas=(0.9, 0.98), epsilon=1e-8, decay=0.0, clip=5.0),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )  # fmt: skip


def m3p_tiny() -> Recipe:
    """M3P over the world: statements in ten languages, captions switched by its dictionary."""
    return tiny_with_statements(m3p(), tiny_plan())
