"""WenLan's BriVL (Huo et al., 2021, arXiv 2103.06561): two towers, slow encoders, two queues.

Followed: the released code and configuration (``BAAI-WuDao/BriVL``: ``models/vl_model.py``,
``cfg/test_xyb.yml``), which is for inference: loss and queues are the paper's (section 3.2).

What differs here:

- the picture is not cut to the boxes of a detector, pooled from the feature map (37 with the whole
  image), but to all the cells of the map, which is what the boxes are pooled from; at 384 pixels, a
  multiple of the tower's stride, not 380;
- the cells are brought to the width of the plan by a layer and a norm, not by a convolution and
  division by their length; the text's states go on without that division;
- the eight layers on top of BERT and the map have GELU as BERT has, not ReLU;
- both parts are trained whole; the released code trains BERT's layers 8 to 11 and the blocks 3 to 6
  of the image tower (:data:`FROZEN` as ``optim.factors``), which presupposes their published
  weights (``start``, ``modalities.image.weights``).

Not copied: queues of which nothing says whose features they hold, so that a sample met again is its
own negative.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from crossloom.data_pipelines.read import Texts
from crossloom.interop.towers import CONTRAST, IMAGE, TEXT
from crossloom.modalities.patches import Patches
from crossloom.modalities.text import Text
from crossloom.models.plan import Attend, Block, Feed, Layer, Plan
from crossloom.objectives.contrast import Contrast, Deep
from crossloom.objectives.view import View
from crossloom.recipes.world import small_towers, tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: What the released code leaves as it was: all of BERT below layer 8, the image tower's stem and
#: end and its blocks 0 to 2. For ``optim.factors``, on published weights.
FROZEN = {
    r"^embed\.text\.": 0.0,
    r"^fusion\.layers\.[0-7]\..*\.text\.": 0.0,
    r"^embed\.image\.tower\.(?!blocks\.[3-6]\.)": 0.0,
}


def wenlan() -> Recipe:
    """WenLan (BriVL): EfficientNet-B5 and Chinese BERT, contrasted with queues of slow features.

    Each modality asks a queue of 9,600 slow features of the other (momentum 0.99, temperature
    0.07, both losses summed; section 3.2). Four layers more on each side, their mean, and two
    layers to 2,048 dimensions.

    542,366,816 parameters, half of them slow copies. The released model has 547,637,808: with an
    image classifier and a pooler of the text that nothing uses, without a norm over the cells. The
    paper's thousand million are with larger towers. The 30 million
    Chinese pairs are not public. Batch, rate and steps are not in what is released: those here are
    ours. The tower's norms over a batch keep the statistics that come with its weights.
    """
    return Recipe(
        name="wenlan",
        data="shards",
        modalities={
            TEXT: Text(
                vocabulary="vocab.txt", layout="wordpiece", size=21_128, limit=80, positions=512,
                segments=2,
            ),
            IMAGE: Patches(size=384, tower="timm:tf_efficientnet_b5"),
        },
        plan=_plan(),
        objectives={CONTRAST: _queues(dim=2048, queue=9600)},
        mixture={
            "pairs": Component(
                shards="wenlan/train-*.tar",
                reader=Texts(languages=("zh",)),
                objectives=(CONTRAST,),
            )
        },
        steps=300_000,
        examples=60,
        micro=16,
        optim=Optim(rate=1e-5, betas=(0.9, 0.999), epsilon=1e-8),
        schedule=Schedule(shape="cosine", warmup=0.02),
        precision="bf16",
    )  # fmt: skip


def wenlan_tiny() -> Recipe:
    """WenLan over the world: plain patches for the image tower, queues of 256, English captions."""
    recipe = replace(wenlan(), objectives={CONTRAST: _queues(dim=128, queue=256)})
    pairs = Component(shards="train-*.tar", reader=Texts(languages=("en",)), objectives=(CONTRAST,))
    return tiny(recipe, small_towers(norm="post"), {"pairs": pairs})


def _queues(dim: int, queue: int) -> Contrast:
    deep = Deep(hidden=dim)
    return Contrast(
        view=View(name="itc", streams=(TEXT, IMAGE), apart=True),
        pair=(TEXT, IMAGE),
        dim=dim,
        pool="mean",
        projections={TEXT: deep, IMAGE: deep},
        learned=False,
        queue=queue,
        momentum=0.99,
        weight=2.0,  # the paper sums what is the mean of both directions here
    )


def _plan() -> Plan:
    """BERT's twelve layers and four narrower ones on the text, four on the map's cells."""

    def one(stream: str, width: int, heads: int, hidden: int) -> tuple[Block, ...]:
        read = Attend(reads={stream: (stream,)}, heads=heads, inner=width)
        return (read, Feed(streams=(stream,), hidden=hidden))

    text = [one(TEXT, 768, 12, 3072)] * 12 + [one(TEXT, 768, 4, 2048)] * 4
    image = [one(IMAGE, 2048, 4, 2048)] * 4
    return Plan(
        widths={TEXT: 768, IMAGE: 2048},
        layers=tuple(Layer(blocks=t + i) for t, i in zip_longest(text, image, fillvalue=())),
        heads=12,
        inner=768,
        hidden=3072,
    )
