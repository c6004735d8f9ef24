"""The demo: a small single-stream model over text and regions, in all languages of the world."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itc, itm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "image")


def demo() -> Recipe:
    """MMLM, MRC, MRFR, ITM and contrast over text and regions in ten languages, for two cores.

    The objectives are UNITER's (Chen et al., 2020, section 3.2), with whole words and regions
    hidden together in one pass (as in ViLBERT, to see each example once), over captions in all
    languages; some captions come with a translation, as in XLM's TLM (Conneau & Lample, 2019,
    section 3.4). The contrast of streams read apart (CLIP) is not UNITER's: within minutes, words
    are not tied to regions without it (`docs/results.md`).
    """
    view = View(
        name="joint",
        streams=STREAMS,
        hide={
            "text": Hide(rate=0.3, show=0.1, swap=0.0, by="group"),
            "image": Hide(rate=0.3, show=0.0, swap=0.0, by="group"),
        },
    )
    masked = ("mlm", "mrc", "mrfr")
    return Recipe(
        name="demo",
        data="runs/demo/world",
        modalities={
            "text": Text(limit=72, dropout=0.0),
            "image": Regions(features=64, classes=37, box=7, dropout=0.0),
        },
        # ReLU: on a CPU, GELU's backward pass alone takes a twelfth of a step
        plan=replace(
            single_stream(STREAMS, layers=3, width=128, heads=4, norm="pre", dropout=0.0),
            activation="relu",
        ),
        objectives={
            "mlm": Reconstruct(view=view, stream="text", target="token"),
            "mrc": Reconstruct(view=view, stream="image", target="classes"),
            "mrfr": Reconstruct(view=view, stream="image", target="feature"),
            "itm": itm(STREAMS),
            "itc": itc(STREAMS, dim=128, pool="mean"),
        },
        mixture={
            "captions": Component(
                shards="train-*.tar", reader=Texts(), objectives=(*masked, "itc"), weight=3
            ),
            "translations": Component(
                shards="train-*.tar", reader=Parallel(), objectives=masked, weight=1.5
            ),
            "statements": Component(
                shards="train-*.tar",
                reader=Parallel(second="statements"),
                objectives=masked,
                weight=1.5,
            ),
            "matching": Component(
                shards="train-*.tar", reader=Texts(), objectives=("itm",), weight=1
            ),
        },
        steps=2800,
        examples=64,
        optim=Optim(rate=2e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.05),
        log_every=100,
        save_every=1000,
    )
