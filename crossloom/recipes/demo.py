"""The demo: a small single-stream model over text and regions, in all languages of the world."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import itc, itm, same_passages, xlco
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "image")


def demo() -> Recipe:
    """MMLM, TLM, MRC, MRFR, ITM and contrasts over text and regions in ten languages, on two cores.

    Over captions, UNITER's objectives (Chen et al., 2020, section 3.2), with whole words and
    regions hidden together in one pass (as in ViLBERT, to see each example once). Over captions
    and short true statements, with their translations: TLM (Conneau & Lample, 2019, section 3.4),
    and the contrast of InfoXLM (Chi et al., 2021, section 3.3). Do a caption and a statement tell
    of the same scene: next-sentence prediction (BERT) across languages. The contrasts of streams
    read apart (CLIP, InfoXLM) are what ties words to regions, and languages to each other, within
    minutes (`docs/results.md`).
    """
    words = Hide(rate=0.3, show=0.1, swap=0.0, by="group")
    regions = Hide(rate=0.3, show=0.0, swap=0.0, by="group")
    joint = View(name="joint", streams=STREAMS, hide={"text": words, "image": regions})
    text = Text(limit=72, dropout=0.0)

    def component(reader: Reader, *objectives: str, weight: float) -> Component:
        return Component(shards="train-*.tar", reader=reader, objectives=objectives, weight=weight)

    statements = Parallel(second="statements")
    return Recipe(
        name="demo",
        data="runs/demo/world",
        modalities={
            "text": text,
            "image": Regions(features=64, classes=37, box=7, dropout=0.0),
            "second": replace(text, field="second"),
        },
        tied={"second": "text"},
        # ReLU: on a CPU, GELU's backward pass alone takes a twelfth of a step
        plan=replace(
            single_stream(
                (*STREAMS, "second"), layers=3, width=128, heads=4, norm="pre", dropout=0.0
            ),
            activation="relu",
        ),
        objectives={
            "mlm": Reconstruct(view=joint, stream="text", target="token"),
            "mrc": Reconstruct(view=joint, stream="image", target="classes"),
            "mrfr": Reconstruct(view=joint, stream="image", target="feature"),
            "itc": itc(STREAMS, dim=128, pool="mean"),
            "itm": itm(STREAMS),
            "tlm": Reconstruct(
                view=View(name="tlm", streams=("text",), hide={"text": words}),
                stream="text",
                target="token",
            ),
            "xlco": xlco(dim=128, pool="mean"),
            "same": same_passages(pool="mean"),
        },
        mixture={
            "captions": component(Texts(), "mlm", "mrc", "mrfr", "itc", weight=2.5),
            "matching": component(Texts(), "itm", weight=1),
            "captions-apart": component(Parallel(apart=True), "xlco", weight=1),
            "statements-apart": component(Parallel(of="statements", apart=True), "xlco", weight=2),
            "statements": component(Parallel(of="statements"), "tlm", weight=1.5),
            "captions-and-statements": component(statements, "tlm", weight=1),
            "same-scene": component(replace(statements, mismatch=0.5), "same", weight=2.5),
        },
        steps=3600,
        examples=64,
        optim=Optim(rate=2e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.05),
        log_every=100,
        save_every=1000,
    )
