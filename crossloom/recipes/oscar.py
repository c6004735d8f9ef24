"""Oscar (Li et al., ECCV 2020, arXiv 2004.06165) and Oscar+ (VinVL, Zhang et al., CVPR 2021).

Words, object tags and regions in one stack of layers. Followed: ``microsoft/Oscar``
(``oscar/run_oscarplus_pretrain.py``, ``oscar/datasets/oscar_tsv.py``,
``oscar/modeling/modeling_bert.py``, ``VinVL_MODEL_ZOO.md``).

- Tags are a stream of their own, tied to the words' embedder, of passage type 1: they begin with
  ``[CLS]`` and count their positions anew. In the code they are the second passage of one text,
  cut to 35 units with the first; here each is cut to 35.
- The code averages over hidden words and tags together; here each has its own mean, and half of
  the weight.
- Words and tags of mismatched examples are predicted too: the code's default.
- Not copied: foreign tags that may be a caption (``textb_sample_mode 0``); random ids that may be
  special ones; the batch of 8 and 8 devices of the README, which is a demonstration.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.tags import Tags
from crossloom.modalities.regions import Regions
from crossloom.objectives.presets import mtl, tag_contrast, tagged
from crossloom.recipes.parts import (
    ANY_WORDS,
    IMAGE,
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

TAGS = "tags"
STREAMS = (TEXT, TAGS, IMAGE)
#: What the detector saw, by the names of its classes.
NAMED = Tags(of="regions.npz", names="classes.txt")
_CAPTIONED = ("coco", "conceptual-captions", "sbu", "flickr30k")
_ASKED = ("vqa", "gqa", "visual-genome")


def oscar() -> Recipe:
    """Oscar base: masked words and tags, and whether the tags are the image's own.

    Masked token loss over words and tags alike, no region is ever hidden; half of the tags are
    another image's (section 3). 6.5 million pairs (section 1), captions and questions, both with
    the tags of the image. Uncertain: that 4.5 million of them are captions and 2 million questions;
    the code has no file that says so (VinVL's table 16 has 4.7 and 2.5 million). A million steps of
    768 at 5e-5 (section 3, "Implementation details"; no warm-up in the code, and gradients cut at
    10, as for Oscar+: ``VinVL_MODEL_ZOO.md`` makes one of the other by two options). Begins from
    BERT (``start``).

    111.7 M parameters: the code's, and a decoder's bias of the tags' own (30,522).
    """
    captions = Texts(languages=("en",), all_texts=True, tags=NAMED)
    questions = Questions(languages=("en",), tags=NAMED)
    return _oscar(
        "oscar",
        regions=_regions(norm="none"),
        mismatch=(TAGS,),
        mixture={
            "captions": _component(captions, *_CAPTIONED, weight=4.5),
            "questions": _component(questions, *_ASKED, weight=2),
        },
        steps=1_000_000,
        batch=(64, 12),
    )


def oscar_plus() -> Recipe:
    """Oscar+ base (VinVL): Oscar with normed regions, three-way contrast, answers read as tags.

    Of the triples a half is as it was, a quarter has foreign tags and a quarter a foreign text: the
    contrast tells which (section 3.2; ``texta_false_prob 0.25``). 8.85 million triples: captions
    with the detector's tags, questions with their answers in the tags' place, and pictures tagged
    by people under captions that a model wrote: 4.68, 2.5 and 1.67 million (table 16;
    microsoft/Oscar: ``docs/pretrain_corpus.PNG``). Two million steps at 5e-5, no warm-up
    (``VinVL_MODEL_ZOO.md``); of 1,024, which ``run_oscarplus_pretrain.py`` takes if not told.
    Begins from BERT (``start``).

    111.7 M parameters: the code's, and a decoder's bias of the tags' own (30,522).
    """
    captions = Texts(languages=("en",), all_texts=True, tags=NAMED)
    named = Texts(languages=("en",), all_texts=True, tags=Tags(of="objects"))
    questions = Questions(languages=("en",), answer=TAGS)
    return _oscar(
        "oscar-plus",
        regions=_regions(norm="norm_of_sum"),
        mismatch=(TAGS, TEXT),
        mixture={
            "captions": _component(captions, *_CAPTIONED, weight=4.7),
            "questions": _component(questions, *_ASKED, weight=2.5),
            "tagged": _component(named, "open-images", weight=1.7),
        },
        steps=2_000_000,
        batch=(64, 16),
    )


def oscar_tiny() -> Recipe:
    """Oscar over the world: captions and questions, tags of the regions' classes."""
    return tiny(oscar(), tiny_plan(STREAMS))


def oscar_plus_tiny() -> Recipe:
    """Oscar+ over the world: captions with tags, questions with answers."""
    recipe = oscar_plus()
    parts = {n: recipe.mixture[n] for n in ("captions", "questions")}
    return tiny(
        recipe, tiny_plan(STREAMS), {n: replace(c, shards="train-*.tar") for n, c in parts.items()}
    )


def _regions(norm: str) -> Regions:
    return butd(limit=50, classes=0, box=6, join="concat", norm=norm, mask="zero")


def _component(reader: Texts | Questions, *sources: str, weight: float) -> Component:
    objectives = ("words", "tags", "contrast")
    return Component(shards=train(*sources), reader=reader, objectives=objectives, weight=weight)


def _oscar(
    name: str,
    *,
    regions: Regions,
    mismatch: tuple[str, ...],
    mixture: dict[str, Component],
    steps: int,
    batch: tuple[int, int],
) -> Recipe:
    text = bert_text(limit=35)
    foreign = mismatch[0] if len(mismatch) == 1 else mismatch
    view = tagged(mismatch=foreign, hide=ANY_WORDS)
    return Recipe(
        name=name,
        data="shards",
        modalities={TEXT: text, TAGS: replace(text, field=TAGS, segment=1), IMAGE: regions},
        tied={TAGS: TEXT},
        plan=bert_plan(STREAMS),
        objectives={
            "words": replace(mtl(view), weight=0.5),
            "tags": replace(mtl(view, stream=TAGS, shares="words"), weight=0.5),
            "contrast": tag_contrast(view),
        },
        mixture=mixture,
        steps=steps,
        examples=batch[0],
        micro=batch[1],
        optim=Optim(rate=5e-5, betas=(0.9, 0.999), epsilon=1e-8, decay=0.01, clip=10.0),
        schedule=Schedule(warmup=0),
    )
