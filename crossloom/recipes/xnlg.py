"""XNLG: a cross-lingual encoder first, then a decoder on top of it, frozen."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks, Parallel, Texts
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
#: Member that a translation is in, and the copy of a text that its own decoder says.
SECOND = "second"


def xnlg_encoder() -> Recipe:
    """XNLG's first stage (Chi et al. 2020, section 3.1): MLM and XMLM, which is XLM's TLM.

    Followed: the paper and the commands of its code (``CZWin32768/XNLG``: README), whose encoder is
    XLM's. Streams of 256 units of one language (Wikipedia), and translations (MultiUN) as one
    sequence in which positions begin anew. The released models start from XLM's for 15 languages,
    of 12 layers, of which the second stage takes the first ten.

    Uncertain: the number of steps, which the paper does not tell.

    Parameters: 249.2 M: 95,000 words (97.3 M), 512 positions and 15 languages (0.5 M), twelve
    layers (151.2 M), a norm and a bias over words for each objective.
    """
    streams = Blocks(languages=SAID)
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
            "streams": Component(shards=train("wikipedia"), reader=streams, objectives=("mlm",)),
            "pairs": Component(
                shards=train("opus"), reader=Parallel(directions=PAIRS), objectives=("xmlm",)
            ),
        },
        steps=200_000,
        examples=32,
        micro=4,
        optim=xlm_adam(1e-4),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
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
    that the language can be chosen; the recipe ``xnlg-encoder`` says what else differs.

    Parameters: 422.6 M: the encoder's (223.8 M, of which none is trained) and the decoder's.
    """
    text = xlm_text(languages=XNLI, size=95_000)
    said = Texts(languages=SAID, copies=(SECOND,))
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
            "texts": Component(shards=train("wikipedia"), reader=said, objectives=("dae",)),
            "pairs": Component(
                shards=train("opus"),
                reader=Parallel(directions=PAIRS, apart=True),
                objectives=("xae",),
            ),
        },
        steps=200_000,
        examples=16,
        micro=4,
        optim=replace(xlm_adam(1e-4), factors=frozen(encoder_layers=10)),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def frozen(*, encoder_layers: int) -> dict[str, float]:
    """Factors of the rate that leave the encoder as it is: its embeddings and first layers."""
    numbers = "|".join(str(n) for n in range(encoder_layers))
    return {rf"^embed\.{TEXT}\.": 0.0, rf"^fusion\.layers\.({numbers})\.": 0.0}


def xnlg_encoder_tiny() -> Recipe:
    """XNLG's first stage over the world's captions, small."""
    return tiny(xnlg_encoder(), _encoder(layers=3, width=96, heads=4))


def xnlg_tiny() -> Recipe:
    """XNLG's second stage over the world's captions, small.

    Set ``start`` to a run of ``xnlg-encoder-tiny``: without it the encoder stays as it was drawn.
    """
    small = tiny(xnlg(), _decoder(layers=2, decoder_layers=2, width=96, heads=4))
    return replace(small, optim=replace(small.optim, factors=frozen(encoder_layers=2)))


def _encoder(*, layers: int, width: int, heads: int) -> Plan:
    plan = single_stream((TEXT,), layers=layers, width=width, heads=heads)
    return replace(plan, epsilon=1e-12)


def _decoder(*, layers: int, decoder_layers: int, width: int, heads: int) -> Plan:
    plan = encoder_decoder(
        TEXT, TARGET, layers=layers, decoder_layers=decoder_layers, width=width, heads=heads
    )
    return replace(plan, epsilon=1e-12)
