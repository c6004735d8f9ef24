"""Small models from pixels: drawn shapes, and picture books in many languages."""

from __future__ import annotations

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.patches import (
    Patches,
)
from crossloom.modalities.pictures import (
    Augment,
)
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.classify import Classify
from crossloom.objectives.presets import itc, itm, mlm
from crossloom.objectives.view import Hide, View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "image")
#: The answers of easy-VQA (its answers.txt).
EASY_ANSWERS = (
    "black", "blue", "brown", "circle", "gray", "green", "no", "rectangle", "red", "teal",
    "triangle", "yellow", "yes",
)  # fmt: skip


def easy_vqa() -> Recipe:
    """Questions about drawn shapes, answered from pixels (github.com/vzhou842/easy-VQA)."""
    return Recipe(
        name="easy-vqa",
        data="shards/easy-vqa",
        modalities={
            "text": Text(limit=24, dropout=0.0),
            "image": Patches(size=64, patch=8, augment=Augment(scale=(0.6, 1.0), flip=0.5)),
        },
        plan=single_stream(STREAMS, layers=3, width=128, heads=4, dropout=0.0),
        objectives={
            "vqa": Classify(
                view=View(name="vqa", streams=STREAMS),
                label="answers",
                classes=EASY_ANSWERS,
                form="sigmoid",
            )
        },
        mixture={
            "questions": Component(shards="train-*.tar", reader=Questions(), objectives=("vqa",))
        },
        steps=2400,
        examples=64,
        optim=Optim(rate=1e-3, decay=0.05),
        schedule=Schedule(warmup=0.05),
        log_every=100,
        save_every=1000,
    )


def storybooks() -> Recipe:
    """Picture books and captions in 22 languages: patches and text, MLM, TLM, ITM and contrast."""
    hide = Hide(rate=0.15, by="group")
    pictures = ("storybooks/train-*.tar", "coco/train-*.tar", "flickr8k/train-*.tar")
    return Recipe(
        name="storybooks",
        data="shards",
        modalities={
            "text": Text(limit=64, dropout=0.0),
            "image": Patches(size=96, patch=16, augment=Augment(scale=(0.6, 1.0))),
        },
        plan=single_stream(STREAMS, layers=3, width=128, heads=4, dropout=0.1),
        objectives={
            "mlm": mlm(STREAMS, hide=hide),
            "tlm": mlm(("text",), hide=hide, name="tlm"),
            "itm": itm(STREAMS),
            "itc": itc(dim=128, pool="mean"),
        },
        mixture={
            "pictures": Component(
                shards=pictures, reader=Texts(), objectives=("mlm", "itm", "itc"), weight=3
            ),
            "sentences": Component(
                shards=("multi30k/train-*.tar", "storybooks/train-*.tar"),
                reader=Parallel(),
                objectives=("tlm",),
            ),
        },
        steps=800,
        examples=64,
        optim=Optim(rate=1e-3, decay=0.05),
        schedule=Schedule(shape="cosine", warmup=0.1),
        log_every=50,
        save_every=500,
    )
