"""VLP: one Transformer that reads both ways to understand, and left to right to tell."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import BERT, mlm, s2s_mlm
from crossloom.recipes.parts import STREAMS, TEXT, bert_adam, bert_plan, bert_text, butd, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def vlp() -> Recipe:
    """VLP (Zhou et al. 2020): one stream; words hidden, read both ways or left to right, 1 to 3.

    Followed: section 3 and the released code (``LuoweiZhou/VLP``: ``vlp/seq2seq_loader.py``,
    ``pytorch_pretrained_bert/modeling.py``, the table of the README). 100 regions of cased BERT's
    model; of three batches in four the caption reads the regions and its own past and the regions
    each other (``s2s``), of the fourth all reads all (``mlm``). Caption words and the end of the
    caption are hidden, regions never; one head predicts both. Start from UniLM's or BERT's weights
    (``start``), and give the first region layer the detector's last.

    Otherwise than there: the first unit of the caption belongs to the text, so that regions do not
    read it, and positions count the caption alone; the two ways of reading have the same passage
    types (4 and 5, 0 and 1 there); one way is drawn for a batch, not for an example; the hidden
    units are drawn one by one with 15 %, at least one, not counted out up to three; the head's bias
    is each way's own. Boxes are divided by the picture's size: the released loader divides by the
    largest coordinate it finds, an error that is not copied. The README's rate is per process, of
    gradients that are added up, which does not change Adam's steps.

    Parameters: 115.4 M. The released model has 115.9 M: BERT's pooler and next-sentence head
    (0.59 M) and four more passage types, but one bias (0.03 M) and no vector for hidden regions.
    """
    hide = replace(BERT, last=True)
    captions = train("conceptual-captions")

    def component(objective: str, weight: float) -> Component:
        return Component(
            shards=captions, reader=Texts(languages=("en",)), objectives=(objective,), weight=weight
        )

    return Recipe(
        name="vlp",
        data="shards",
        modalities={
            "text": bert_text(limit=22, cased=True, segment=1),
            "image": butd(
                limit=100, hidden=2048, activation="relu", box=5, chances=True, norm="norm_of_sum",
                lent={"norm": TEXT, "segment": TEXT},
            ),
        },
        plan=replace(bert_plan(), epsilon=1e-5),
        objectives={
            "s2s": s2s_mlm(hide=hide),
            "mlm": replace(mlm(STREAMS, hide=hide), shares="s2s"),
        },
        mixture={"tell": component("s2s", 3.0), "understand": component("mlm", 1.0)},
        # 30 epochs of 3.0 million pictures, 64 on each of 8 devices
        steps=175_000,
        examples=64,
        micro=8,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=0.1),
        precision="bf16",
    )  # fmt: skip


def vlp_tiny() -> Recipe:
    """VLP over the world, small."""
    return tiny(vlp(), single_stream(STREAMS, layers=3, width=128, heads=4))
