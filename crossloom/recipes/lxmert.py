"""LXMERT: a cross-encoder over words and regions that also answers questions while pre-training."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.annotated import Questions
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.world import ANSWERS
from crossloom.models.presets import cross_encoder
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import image_questions
from crossloom.objectives.reconstruct import Loss, Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.recipes.parts import (
    ANY_WORDS,
    IMAGE,
    STREAMS,
    TEXT,
    bert_adam,
    bert_text,
    butd,
    train,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: Of the regions selected, 8 in 10 are hidden, 1 shows another image's region, 1 itself.
REGIONS = Hide(rate=0.15, show=0.1, swap=0.1, at_least=0)


def lxmert() -> Recipe:
    """LXMERT (Tan & Bansal 2019): words, objects, attributes, features, matching and answers.

    Paper: section 3 (arXiv 1908.07490); airsplay/lxmert: ``src/lxrt/modeling.py``,
    ``src/pretrain/lxmert_pretrain.py``, ``run/lxmert_pretrain.bash``; ``transformers:
    modeling_lxmert.py``. All objectives are summed over one pass, in which words and regions are
    hidden together and half of the sentences are another image's; words and regions of those are
    predicted too, questions are not answered. Each of the 9.18 million sentences, questions among
    them, is an example (section 3.2). From fresh weights.

    As in the paper, regions are scored where they are hidden. The code scores objects and
    attributes of all regions, hidden or not, weighed by the detector's confidence, times 1 / 0.15:
    ``objectives.class.everywhere=true objectives.class.trusted=true objectives.class.weight=6.667``
    gives that. Of soft answers the code draws one; here the loss is its mean over the draws. The
    paper answers questions in the last ten of twenty epochs alone; the code always. Not copied:
    weight decay on norms and biases (the code has one group of parameters); random words are never
    special ones.

    ``answers.txt`` has the 9,500 most frequent answers of all its questions: ``crossloom shards
    answers "vqa/train-*.tar" "gqa/train-*.tar" "visual-genome/train-*.tar" --most 9500``.

    Parameters: those of ``LxmertForPreTraining`` with 9,500 answers.
    """
    hide = {TEXT: ANY_WORDS, IMAGE: REGIONS}
    view = View(name="joint", streams=STREAMS, hide=hide, mismatch=TEXT)
    objectives: dict[str, Objective] = {
        "mlm": Reconstruct(view=view, stream=TEXT, target="token", matched_only=False),
        "match": Match(view=view, pooled=(TEXT,)),
        "class": _of_regions(view, "class"),
        "attribute": _of_regions(view, "attribute", shares="class"),
        "feature": _of_regions(view, "feature", shares="class"),
        "answers": replace(
            image_questions(view, ()), classes="answers.txt", count=9500, shares="match"
        ),
    }
    everything = tuple(objectives)
    return Recipe(
        name="lxmert",
        data="shards",
        modalities={
            TEXT: bert_text(limit=20),
            IMAGE: butd(
                limit=36, classes=1600, background=False, attributes=400, box=4,
                norm="mean_of_norms", mask="zero",
            ),
        },
        plan=cross_encoder(TEXT, IMAGE, text_layers=9, image_layers=5, cross=5),
        objectives=objectives,
        mixture={
            "captions": Component(
                shards=train("coco", "visual-genome"),
                reader=Texts(languages=("en",), all_texts=True),
                objectives=tuple(n for n in everything if n != "answers"),
                weight=6.0,  # millions of sentences: 0.62 and 5.39
            ),
            "questions": Component(
                shards=train("vqa", "gqa", "visual-genome"),
                reader=Questions(languages=("en",)),
                objectives=everything,
                weight=3.18,  # 0.66, 1.08 and 1.45
            ),
        },
        steps=717_000,  # 20 epochs of 9.18 million sentences by 256
        examples=64,
        micro=4,
        optim=bert_adam(1e-4),
        schedule=Schedule(shape="linear", warmup=0.05),
        precision="bf16",
    )  # fmt: skip


def lxmert_tiny() -> Recipe:
    """LXMERT over the world, whose regions have no attributes: 2 + 1 + 2 layers of 128."""
    recipe = lxmert()
    kept = {n: o for n, o in recipe.objectives.items() if n != "attribute"}
    kept["answers"] = replace(kept["answers"], count=len(ANSWERS))  # type: ignore[call-arg]
    mixture = {
        n: replace(c, shards="train-*.tar", objectives=tuple(o for o in c.objectives if o in kept))
        for n, c in recipe.mixture.items()
    }
    # a scene's captions are fewer than an image's there, and its questions more
    captions = replace(mixture["captions"], reader=Texts(languages=("en",)), weight=6.0)
    mixture |= {"captions": captions, "questions": replace(mixture["questions"], weight=3.0)}
    plan = cross_encoder(
        TEXT, IMAGE, text_layers=2, image_layers=1, cross=2, width=128, heads=4, dropout=0.0
    )
    # a recipe checks that its objectives are all drawn: they go together with the components
    return tiny(replace(recipe, objectives=kept, mixture=mixture), plan, mixture, at_least=1)


def _of_regions(view: View, target: str, *, shares: str = "") -> Reconstruct:
    loss: Loss = "smooth_l1" if target == "feature" else "auto"
    return Reconstruct(
        view=view, stream=IMAGE, target=target, tied=False, matched_only=False, loss=loss,
        shares=shares,
    )  # fmt: skip
