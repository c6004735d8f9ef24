"""mBART: one encoder-decoder that restores documents in many languages."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.presets import MBART, denoise
from crossloom.recipes.languages import CC25
from crossloom.recipes.parts import TARGET, TEXT, train
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def mbart() -> Recipe:
    """Multilingual BART (Liu et al. 2020), CC25: sentences moved, 35 % of the words as masks.

    Followed: section 2 of the paper and fairseq's ``multilingual_denoising`` and
    ``examples/mbart``. Languages are read in proportion to their text to the power 0.7. Blocks of
    512 units of documents in one language are read as ``X </s> <language>`` with their sentences in
    any order and runs of Poisson(3.5) whole words each shown as one mask, until 35 % of the words
    are hidden; the decoder says ``<language> X </s>``. Encoder and decoder norm first, share their
    table of words and have positions of their own, as in ``transformers``' form, into which a run
    can be exported (``interop/mbart.py``). ``finetune translation`` goes on from it.

    Otherwise than there: sentences are found by their punctuation, and have no ``</s>`` of their
    own inside a piece of a document; both sides are without the ``<s>`` that fairseq puts before
    them in pre-training; what a document has beyond its last full block is joined with others of
    its language, where fairseq's block ends with its document. Dropout stays at 0.1, of attention
    too; there it falls to 0.05 at half of the steps and to 0 at four fifths, and attention has none
    by fairseq's default. Batches are BART's 8,000 blocks (arXiv 1910.13461, section 5.1), which the
    paper says to match; the 128,000 units for each of 256 devices that it also names would be eight
    times as many. Uncertain: rate, warm-up, decay and clipping, which neither the paper nor fairseq
    tells.

    Parameters: 611.1 M (610.9 M in ``transformers``, which keeps no trained bias over words).
    """
    text = Text(
        vocabulary="mbart-large-cc25/sentencepiece.bpe.model",
        layout="mbart",
        size=250_027,
        limit=512,
        positions=1026,
        offset=2,
        scaled=True,
        sentences=True,
    )
    return Recipe(
        name="mbart",
        data="shards",
        modalities={
            TEXT: text,
            TARGET: replace(text, field=TARGET, sign="first", words_of=TEXT),
        },
        plan=_plan(layers=12, width=1024, heads=16),
        objectives={"denoise": replace(denoise(hide=MBART), transform=False)},
        mixture={
            "documents": Component(
                shards=train("cc100"),
                reader=Blocks(copies=(TARGET,)),
                languages=CC25,
                alpha=0.7,
                objectives=("denoise",),
            )
        },
        # a stretch of 4,096 characters fills about two blocks
        steps=500_000,
        examples=16,
        micro=250,
        optim=Optim(rate=3e-4, betas=(0.9, 0.98), epsilon=1e-6, decay=0.0, clip=0.1),
        schedule=Schedule(shape="linear", warmup=10_000),
        precision="bf16",
    )


def mbart_tiny() -> Recipe:
    """Multilingual BART over the world, all captions of a scene being a document; small."""
    captions = Component(
        shards="train-*.tar", reader=Blocks(copies=(TARGET,)), objectives=("denoise",)
    )
    plan = _plan(layers=2, width=96, heads=4)
    return tiny(mbart(), plan, {"captions": captions})


def _plan(*, layers: int, width: int, heads: int) -> Plan:
    plan = encoder_decoder(TEXT, TARGET, layers=layers, width=width, heads=heads, norm="pre")
    return replace(plan, epsilon=1e-5)
