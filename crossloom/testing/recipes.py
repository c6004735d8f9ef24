"""A recipe small enough for any test."""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itc, itm, mlm, mrc_kl, mrfr
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe

STREAMS = ("text", "image")


def tiny_recipe(data: Path, *, plan: Plan | None = None, contrast: bool = False) -> Recipe:
    """Text and regions of a world, every kind of objective, two components; no dropout.

    Args:
        data: folder of a world with ``tokenizer.model``.
        plan: over the streams ``text`` and ``image``; a small single stream when None.
        contrast: add a contrastive objective to the first component.
    """
    objectives = {
        "mlm": mlm(STREAMS),
        "mrc": mrc_kl(STREAMS),
        "mrfr": mrfr(STREAMS),
        "itm": itm(STREAMS),
        "tlm": mlm(("text",), name="tlm"),
        **({"itc": itc(dim=16, pool="mean")} if contrast else {}),
    }
    first = ("mlm", "mrc", "mrfr", "itm", *(("itc",) if contrast else ()))
    return Recipe(
        name="tiny",
        data=str(data),
        modalities={
            "text": Text(dropout=0.0),
            "image": Regions(features=64, classes=37, dropout=0.0),
        },
        plan=plan or single_stream(STREAMS, layers=2, width=32, heads=2, dropout=0.0),
        objectives=objectives,
        mixture={
            "captions": Component(
                shards="train-*.tar", reader=Texts(), objectives=first, weight=2.0
            ),
            "translations": Component(shards="train-*.tar", reader=Parallel(), objectives=("tlm",)),
        },
        steps=12,
        examples=4,
        micro=2,
        workers=0,
        readers=6,
        window=8,
        optim=Optim(rate=1e-3),
        log_every=1,
        save_every=4,
    )
