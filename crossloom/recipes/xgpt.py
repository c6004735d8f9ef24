"""XGPT: a shared encoder-decoder, pre-trained to say captions and regions."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.models.plan import Plan
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.presets import ic, ida, imlm, tifg
from crossloom.recipes.parts import STREAMS, bert_adam, bert_text, butd, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: What is said: words, and features of regions.
SAID = ("target", "regions")


def xgpt() -> Recipe:
    """XGPT (Xia et al. 2020): shared encoder-decoder; IC, IMLM, IDA and TIFG summed in each step.

    Followed: section 3; no code was released, but the same authors' M3P has the four steps
    (``microsoft/M3P``: ``ic_step``, ``bart_mlm_step``, ``bart_img_step``, ``tifg_step``), each of
    weight 1. Encoder and decoder are one Transformer (blocks tied layer by layer); what the decoder
    reads the encoder with is its own. Captions are told from the image (IC); from image and caption
    with a segment of half its length hidden, that segment (IMLM); from image and caption with runs
    of about three words shown as one mask, the caption (IDA); and from the caption, region by
    region, their features (TIFG). Start from BERT's weights (``start``).

    Where paper and M3P's code differ, the paper: IDA corrupts the text (the code the regions), and
    TIFG aims at the detector's features (the code at its own embedding, with a gradient into it,
    which a constant satisfies). Hidden units of IMLM show as in MASS's and M3P's code, 80 % masks.
    Uncertain: the vocabulary (BERT's uncased here; M3P has XLM-R's), the length of captions, batch,
    rate and steps (VLP's, on the same data). Regions are said in the order stored: have the
    detector's most confident first, as ``Regions.limit`` needs too.

    Parameters: BERT-base without its pooler (108.9 M), twelve further layers of attention
    (28.4 M), regions (1.6 M), and four heads with a transform of their own.
    """
    return Recipe(
        name="xgpt",
        data="shards",
        modalities={
            "text": (text := bert_text(limit=32)),
            "image": (image := butd(limit=100, box=5, norm="norm_of_sum", classes=0)),
            "target": replace(text, field="target"),
            "regions": image,
        },
        tied={"target": "text", "regions": "image"},
        plan=_plan(layers=12, width=768, heads=12),
        objectives={
            "ic": ic("target"),
            "imlm": imlm(),
            "ida": ida(),
            "tifg": tifg(image="regions"),
        },
        mixture={
            "captions": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",), copies=("target",)),
                objectives=("ic", "imlm", "ida", "tifg"),
            )
        },
        steps=175_000,
        examples=64,
        micro=8,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )


def xgpt_tiny() -> Recipe:
    """XGPT over the world, small."""
    return tiny(xgpt(), _plan(layers=2, width=96, heads=4))


def _plan(*, layers: int, width: int, heads: int) -> Plan:
    plan = encoder_decoder(STREAMS, SAID, layers=layers, width=width, heads=heads, tied=True)
    return replace(plan, epsilon=1e-12)
