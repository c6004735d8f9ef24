"""CogView: a Chinese caption and its picture's codes as one sequence, through Sandwich-LN."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.modalities.codes import Codes
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.recipes.dall_e import said_together
from crossloom.recipes.parts import IMAGE, STREAMS, TEXT, train
from crossloom.recipes.world import tiny, world_codes
from crossloom.training.fsdp import Fsdp
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def cogview() -> Recipe:
    """CogView (Ding et al. 2021): words, then 32 × 32 codes, in one mean; Sandwich-LN; 4 B.

    Followed: sections 2.2 to 2.4 and the released code (``THUDM/CogView``:
    ``mpu/sparse_transformer.py``, ``pretrain_gpt2.py``, ``data_utils/``). 48 layers of 2,560 with
    40 heads; every block norms what it reads and what it adds. A caption is up to 61 pieces of a
    Chinese SentencePiece vocabulary of 50,000 between ``[ROI1]`` and ``[BASE]`` (``<s>`` and
    ``</s>`` here), ``[BOI1]`` is the unit before the codes, a picture 1,024 codes of 8,192 of a
    VQ-VAE. Words and codes are scored by the tables that are read, and weigh alike: the loss is one
    mean over all of them (``mean``; their ``txt_loss_scale`` of 1). Adam with a decay of 4e-2, 2 %
    of warm-up, a cosine, 6,144 sequences a step.

    Data: samples with captions and ``codes.npy`` (``shards make codes --set codes=…``); 30 million
    Chinese pairs there, of which a part is public. Their VQ-VAE is not trained here.

    Otherwise than there: words are scored among words and codes among codes, not all in one
    vocabulary of 58,219; of the units between them nothing is asked (``[BOI1]`` after ``[BASE]``,
    ``[EOI1]`` after the last code), and captions are not filled up with ``[PAD]``, which is not
    scored there. Words and codes count their places apart, and scores have a bias. PB-relax divides
    scores before the softmax and multiplies after taking off their maximum, which changes nothing
    but what overflows in fp16: bf16 needs neither it nor the division by the largest state within
    norms. Their sparse attention (optional) is left out. Deep layers start as all others do, where
    theirs start smaller by the root of twice their number.

    Parameters: 3.78 B in the layers, 152 M for words, codes and places. The paper says 4 B.
    """
    plan = single_stream(STREAMS, layers=48, width=2560, heads=40, norm="sandwich", dropout=0.1)
    return Recipe(
        name="cogview",
        data="shards",
        modalities={
            TEXT: Text(vocabulary="cogview/tokenizer.model", size=50_000, limit=63, norm=False),
            IMAGE: Codes(size=8192, limit=32 * 32, norm=False, codebook="vqvae"),
        },
        plan=replace(plan, activation="gelu_tanh"),
        objectives=said_together(mean="units"),
        mixture={
            "pairs": Component(
                shards=train("wudao"), reader=Texts(languages=("zh",)), objectives=(TEXT, IMAGE)
            )
        },
        steps=144_000,
        examples=12,
        micro=512,
        optim=Optim(rate=3e-4, betas=(0.9, 0.95), epsilon=1e-8, decay=0.04, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=0.02),
        precision="bf16",
        engine=Fsdp(),
        recompute=1,
    )


def cogview_tiny() -> Recipe:
    """CogView over the world's pictures, 12 × 12 codes each, in Chinese.

    Make the codes first: ``crossloom shards make codes WORLD --out WORLD/codes``, where ``WORLD``
    is the folder that ``data`` names.
    """
    plan = single_stream(STREAMS, layers=4, width=128, heads=4, norm="sandwich")
    return world_codes(tiny(cogview(), replace(plan, activation="gelu_tanh"), steps=1500))
