"""The demo: a small single-stream model over text and regions, in all languages of the world."""

from __future__ import annotations

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itm, mlm, mrc_kl, mrfr
from crossloom.objectives.view import Hide
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "image")


def demo() -> Recipe:
    """UNITER's objectives with XLM's translation pairs, on the world, for two CPU cores.

    After UNITER (Chen et al., 2020, section 3.2: MLM, MRC-KL, MRFR and ITM over text and regions,
    one task at a time, masking one modality) and XLM (Conneau & Lample, 2019, section 3.4: masked
    words in two translations at once, here beside the image they describe).
    """
    words = Hide(rate=0.25, show=0.1, swap=0.1, by="group")
    return Recipe(
        name="demo",
        data="runs/demo/world",
        modalities={
            "text": Text(vocabulary="tokenizer.model", limit=72, dropout=0.0),
            "image": Regions(features=64, classes=65, box=7, dropout=0.0),
        },
        plan=single_stream(STREAMS, layers=3, width=128, heads=4, norm="pre", dropout=0.0),
        objectives={
            "mlm": mlm(STREAMS, hide=words),
            "tlm": mlm(STREAMS, hide=words, name="tlm"),
            "mrc": mrc_kl(STREAMS),
            "mrfr": mrfr(STREAMS),
            "itm": itm(STREAMS),
        },
        mixture={
            "captions": Component(
                shards="train-*.tar", reader=Texts(), objectives=("mlm",), weight=3
            ),
            "translations": Component(
                shards="train-*.tar", reader=Parallel(), objectives=("tlm",), weight=3
            ),
            "regions": Component(
                shards="train-*.tar", reader=Texts(), objectives=("mrc", "mrfr"), weight=1
            ),
            "matching": Component(
                shards="train-*.tar", reader=Texts(), objectives=("itm",), weight=2
            ),
        },
        steps=2500,
        examples=32,
        micro=2,
        optim=Optim(rate=1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.05, floor=0.05),
        log_every=50,
        save_every=1000,
    )
