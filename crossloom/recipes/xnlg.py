"""XNLG: a cross-lingual encoder first, then a decoder on top of it, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossloom.data_pipelines.read import Blocks, Parallel, Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.models.plan import Plan
from crossloom.models.presets import encoder_decoder, single_stream
from crossloom.objectives.presets import dae, mmlm, tlm, xae
from crossloom.recipes.languages import XNLI
from crossloom.recipes.parts import TARGET, TEXT, train, xlm_adam, xlm_text
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

SAID = ("en", "fr", "zh")
PAIRS = ("en-fr", "fr-en", "en-zh", "zh-en")
#: Updates of an iteration of the second stage, which the code counts as one step: three of DAE,
#: four of XAE.
ROUND = 7
#: Member that a translation is in, and the copy of a text that its own decoder says.
SECOND = "second"


def xnlg_encoder() -> Recipe:
    """XNLG's first stage (Chi et al. 2020, section 3.1): MLM and XMLM, which is XLM's TLM.

    Followed: the paper and the command of its code (``CZWin32768/XNLG``: README, stage 1), whose
    encoder is XLM's. Streams of 256 units of one language (Wikipedia), and translations (MultiUN),
    English first, as one sequence in which positions begin anew. Each step is of one task and one
    language or pair: three of the first for two of the second (``shuf_order``), languages alike.
    Adam at a constant rate, 32 streams on each of 4 devices.

    The paper itself took the model of XLM for 15 languages (``xlm``) in place of this stage, of
    which the second stage takes the first ten layers; so its number of steps is not published. Of
    that model are the vocabulary, the table of languages and the 8 heads here; the command has 16.

    Parameters: 249.2 M: 95,000 words (97.3 M), 512 positions and 15 languages (0.5 M), twelve
    layers (151.2 M), a norm and a bias over words for each objective.
    """
    return Recipe(
        name="xnlg-encoder",
        data="shards",
        modalities={
            TEXT: xlm_text(languages=XNLI, size=95_000, restart=True),
        },
        plan=_encoder(layers=12, width=1024, heads=8),
        objectives={
            "mlm": replace(mmlm(), transform=False),
            "xmlm": replace(tlm(), transform=False),
        },
        mixture={
            "streams": Component(
                shards=train("wikipedia"),
                reader=Blocks(stretch=1024),
                languages=SAID,
                alpha=0.0,
                objectives=("mlm",),
                weight=3,
            ),
            "pairs": Component(
                shards=train("opus"),
                reader=Parallel(directions=("en-fr", "en-zh")),
                objectives=("xmlm",),
                weight=2,
            ),
        },
        steps=200_000,
        examples=32,
        micro=4,
        alike=True,
        optim=replace(xlm_adam(), betas=(0.9, 0.999)),
        schedule=Schedule(shape="constant", warmup=0),
        precision="bf16",
    )


def xnlg() -> Recipe:
    """XNLG's second stage (Chi et al. 2020, section 3.2): DAE and XAE teach the decoder alone.

    Followed: the paper and its code (``xnlg/src/trainer.py``: ``mt_step``, ``add_noise``;
    ``xnlg/src/model``; README). The encoder is the first ten layers of the first stage, and frozen
    with its embeddings (``optim.factors``); the decoder has six, which start from the first six of
    the same (``start``: the run of ``xnlg-encoder``), and embeddings of its own that do too; what
    it reads the encoder with is new. DAE says a text from its noised form, weight 0.5; XAE says the
    translation of a text that is not noised, as in the code (the paper speaks of noise). Noise is
    of units, not of words. What is said begins with a unit that bears its language's embedding, so
    that the language can be chosen. Each step is of one task: three of DAE, one for each language,
    for four of XAE.

    64 texts a step and 23,000 steps (section 4), read as iterations of the code (``n_iter``) of
    seven updates each: 161,000. The rate falls with the root of the step, as the command has it
    (``adam_inverse_sqrt``, stage 2); the paper says linearly. Directions are met as often as they
    come.

    Parameters: 422.6 M: the encoder's (223.8 M, of which none is trained) and the decoder's.
    """
    text = xlm_text(languages=XNLI, size=95_000)
    said = Texts(copies=(SECOND,), all_texts=True)
    return Recipe(
        name="xnlg",
        data="shards",
        start="runs/xnlg-encoder",
        modalities={TEXT: text, TARGET: replace(text, field=SECOND)},
        plan=_decoder(layers=10, decoder_layers=6, width=1024, heads=8),
        objectives={
            "dae": replace(dae(), transform=False, weight=0.5),
            "xae": replace(xae(), transform=False),
        },
        mixture={
            "texts": Component(
                shards=train("wikipedia"),
                reader=said,
                languages=SAID,
                alpha=0.0,
                objectives=("dae",),
                weight=3,
            ),
            "pairs": Component(
                shards=train("opus"),
                reader=Parallel(directions=PAIRS, apart=True),
                objectives=("xae",),
                weight=4,
            ),
        },
        steps=23_000 * ROUND,
        examples=16,
        micro=4,
        alike=True,
        optim=replace(xlm_adam(1e-4), factors=frozen(encoder_layers=10)),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def frozen(*, encoder_layers: int) -> dict[str, float]:
    """Factors of the rate that leave the encoder as it is: its embeddings and first layers."""
    numbers = "|".join(str(n) for n in range(encoder_layers))
    return {rf"^embed\.{TEXT}\.": 0.0, rf"^fusion\.layers\.({numbers})\.": 0.0}


def xnlg_encoder_tiny() -> Recipe:
    """XNLG's first stage over the world's captions, small.

    Both tasks are met alike, translations in all directions.
    """
    recipe = replace(xnlg_encoder(), optim=xlm_adam())
    readers = {"streams": Blocks(), "pairs": Parallel(directions=PAIRS)}
    return tiny(_evenly(recipe, readers), _encoder(layers=3, width=96, heads=4))


def xnlg_tiny() -> Recipe:
    """XNLG's second stage over the world's captions, small.

    Set ``start`` to a run of ``xnlg-encoder-tiny``: without it the encoder stays as it was drawn.
    Both tasks are met alike.
    """
    recipe = _evenly(xnlg(), {"texts": Texts(copies=(SECOND,))})
    small = tiny(recipe, _decoder(layers=2, decoder_layers=2, width=96, heads=4))
    return replace(small, optim=replace(small.optim, factors=frozen(encoder_layers=2)))


def _evenly(recipe: Recipe, readers: Mapping[str, Reader]) -> Recipe:
    """All components of one weight, some with other readers."""
    mixture = {
        name: replace(part, weight=1.0, reader=readers.get(name, part.reader))
        for name, part in recipe.mixture.items()
    }
    return replace(recipe, mixture=mixture)


def _encoder(*, layers: int, width: int, heads: int) -> Plan:
    plan = single_stream((TEXT,), layers=layers, width=width, heads=heads)
    return replace(plan, epsilon=1e-12)


def _decoder(*, layers: int, decoder_layers: int, width: int, heads: int) -> Plan:
    plan = encoder_decoder(
        TEXT, TARGET, layers=layers, decoder_layers=decoder_layers, width=width, heads=heads
    )
    return replace(plan, epsilon=1e-12)
