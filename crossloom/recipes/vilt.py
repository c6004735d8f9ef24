"""ViLT: words and patches in one stream, without a detector or a tower."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.modalities.patches import Patches
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itm, mlm, whole_word, wra
from crossloom.recipes.parts import IMAGE, STREAMS, TEXT, bert_text, train
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

HALF = (0.5, 0.5, 0.5)


def vilt() -> Recipe:
    """ViLT-B/32 (Kim et al. 2021): masked whole words, matching and word-patch alignment.

    Paper: sections 3 and 4 (arXiv 2102.03334); dandelin/ViLT: ``vilt/config.py``,
    ``vilt/modules/objectives.py``, ``vilt/modules/vilt_module.py``; ``transformers:
    modeling_vilt.py``. Each step makes two passes over its pairs: one with whole words hidden and
    the image their own, one with nothing hidden and half of the images another pair's. Alignment
    leaves out ``[CLS]``, ``[SEP]`` and the image's summary. The layers start from ViT-B/32, the
    table of words by chance (``start``).

    Whole words are hidden, as in the paper and with the command of ``TRAIN.md``. Warm-up is over a
    tenth of the steps, as in the paper (section 4.2); that command leaves the code's 2,500. Words
    are scored with their table, as in ``transformers``; in the code with a matrix of its own (23.4
    M).

    Pictures are squares of 384 here; there, the shorter side is 384, the longer at most 640, and of
    their patches 200 at most are drawn. Half of the pairs of a device's batch are mismatched there,
    exactly; here each with probability one half. One epsilon (1e-12) holds for all norms, as in
    ``transformers``; the original's layers have 1e-6. Attention drops a tenth of its weights and
    feed-forwards nothing within; there it is the other way round (``vision_transformer.py``).

    The paper's 87.4 M parameters are those of the layers (85.1 M) and of the patches (2.4 M): the
    table of words (23.4 M) and the heads are not counted there.
    """
    alignment = replace(wra(), skip={TEXT: (1, 1), IMAGE: (1, 0)})
    return Recipe(
        name="vilt",
        data="shards",
        modalities={
            TEXT: bert_text(limit=40, positions=40, marked=True),
            IMAGE: Patches(
                size=384, patch=32, norm=False, marked=True, mean=HALF, deviation=HALF, dropout=0.1
            ),
        },
        plan=_plan(single_stream(STREAMS, norm="pre"), epsilon=1e-12),
        objectives={"mlm": whole_word(mlm()), "itm": itm(), "wpa": alignment},
        mixture={
            "captions": Component(
                shards=train("coco", "visual-genome", "sbu", "conceptual-captions"),
                reader=Texts(languages=("en",), all_texts=True),
                objectives=("mlm", "itm", "wpa"),
            )
        },
        steps=200_000,
        examples=64,
        micro=64,
        optim=Optim(rate=1e-4, betas=(0.9, 0.98), epsilon=1e-8, decay=0.01, clip=0.0),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )


def vilt_tiny() -> Recipe:
    """ViLT over the world: patches of 16 pixels, 3 layers of 128."""
    return tiny(vilt(), _plan(single_stream(STREAMS, layers=3, width=128, heads=4, norm="pre")))


def _plan(plan: Plan, epsilon: float = 1e-5) -> Plan:
    """With one norm after all layers, of words and patches alike."""
    return replace(plan, last="shared", epsilon=epsilon)
