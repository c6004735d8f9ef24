"""VL-BERT (Su et al., ICLR 2020, arXiv 1908.08530): words see the image, texts alone mixed in.

Followed: ``jackroos/VL-BERT`` (``cfgs/pretrain/base_prec_4x16G_fp32.yaml``,
``common/visual_linguistic_bert.py``, ``pretrain/data/datasets/conceptual_captions.py``), the form
on features computed beforehand. The detector is not trained along, and no pixels are covered.

- A region is expected to have the detector's distribution, as in the code; the paper (section 3.3)
  has its best class. Kullback-Leibler divergence stands for the code's soft cross entropy, which
  differs by the entropy of the distribution alone and has the same gradient.
- Texts alone fill 64 units as in the code, here with ``[CLS]`` and ``[SEP]``, which are left out
  there. Captions and regions are cut to 64 units together there; here to 64 and 50 each.
- Regions end with a learned ``[END]``; texts alone, which have no regions here, end without it.
- Not copied: the rate is one number, not one for each example that grows with the number of devices
  (issue 10); random words are never special ones; norms and biases do not decay
  (``pretrain/function/train.py`` has one group of parameters).
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Blocks, Texts
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.parts import (
    ANY_REGIONS,
    ANY_WORDS,
    IMAGE,
    STREAMS,
    TEXT,
    bert_plan,
    bert_text,
    butd,
    tiny_plan,
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: Whole words, perhaps none.
WORDS = replace(ANY_WORDS, by="group")


def vl_bert() -> Recipe:
    """VL-BERT base: MLM with visual clues and masked regions in one pass, MLM on texts alone.

    Each word sees the whole image: the mean of the regions that are not hidden, projected and
    normed with a gain of 0 at first, so that training starts from BERT (section 3.2). Texts alone
    see a learned vector. All regions share the position after the text, and each says that it is
    one, another vector where it is hidden. Words and regions are hidden together (section 3.3), and
    nothing is ever mismatched: matching was found to do harm (section 4.3).

    10 epochs of 3.3 million captions; 128 captions and about as many texts of 64 units in a step on
    4 devices, so that the code's rate of 1e-7 for each example is 2.56e-5. Captions and texts are
    drawn in small micro-batches, hence in these shares on the average; each loss is the mean over
    what it scores in the step, and the three are summed. Begins from BERT (``start``).

    114.5 M parameters: the code's modules, and a norm in the transform for regions (1,536) and a
    decoder's bias of its own for texts alone (30,522).
    """
    joint = View(name="joint", streams=STREAMS, hide={TEXT: WORDS, IMAGE: ANY_REGIONS})
    alone = View(name="alone", streams=(TEXT,), hide={TEXT: WORDS})
    return Recipe(
        name="vl-bert",
        data="shards",
        modalities={
            TEXT: bert_text(limit=64, segments=3, looks_at=IMAGE),
            IMAGE: butd(
                limit=50, box="waves", join="concat", activation="relu", norm="norm_of_norms",
                gain=0.0, word=True, overall=True, end=True, segment=2,
                lent={"norm": TEXT, "segment": TEXT, "position": TEXT},
            ),
        },
        plan=bert_plan(),
        objectives={
            "mlm": Reconstruct(view=joint, stream=TEXT, target="token"),
            "mvrc": Reconstruct(view=joint, stream=IMAGE, target="classes"),
            "mlm-alone": Reconstruct(view=alone, stream=TEXT, target="token", shares="mlm"),
        },
        mixture={
            "captions": Component(
                shards=train("conceptual-captions"),
                reader=Texts(languages=("en",)),
                objectives=("mlm", "mvrc"),
                weight=4,
            ),
            # a stretch of 1,024 characters fills about four texts of 64 units
            "texts": Component(
                shards=train("wikipedia", "books"),
                reader=Blocks(languages=("en",), stretch=1024),
                objectives=("mlm-alone",),
            ),
        },
        steps=259_000,
        examples=8,
        micro=20,
        optim=Optim(rate=2.56e-5, betas=(0.9, 0.999), epsilon=1e-6, decay=1e-4, clip=10.0),
        schedule=Schedule(warmup=16_000),
    )  # fmt: skip


def vl_bert_tiny() -> Recipe:
    """VL-BERT over the world: captions of scenes, and statements read alone."""
    recipe = vl_bert()
    captions, texts = recipe.mixture["captions"], recipe.mixture["texts"]
    statements = replace(texts, reader=Blocks(of="statements", languages=("en",), stretch=1024))
    small = tiny(
        recipe,
        tiny_plan(),
        {
            "captions": replace(captions, shards="train-*.tar"),
            "texts": replace(statements, shards="train-*.tar"),
        },
    )
    # after the longest text regions take a row, and [END] the next
    text = replace(small.modalities[TEXT], positions=50)  # type: ignore[call-arg]
    return replace(small, modalities={**small.modalities, TEXT: text})
