"""12-in-1: ViLBERT trained on many tasks at once, those that learn no more resting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossloom.data_pipelines.read import Pairs, Questions, Refers, Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.world import ANSWERS
from crossloom.objectives.classify import Classify
from crossloom.objectives.ground import Ground
from crossloom.objectives.objective import Objective
from crossloom.objectives.rank import Rank
from crossloom.objectives.view import View
from crossloom.recipes.parts import IMAGE, STREAMS, TEXT, bert_adam, butd, train
from crossloom.recipes.vilbert import vilbert, vilbert_tiny
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Pace, Recipe
from crossloom.training.schedule import Schedule

_ENGLISH = ("en",)
#: By data set: how it is read, and the objective.
TASKS: Mapping[str, tuple[Reader, str]] = {
    "vqa": (Questions(languages=_ENGLISH), "answers"),
    "visual-genome": (Questions(languages=_ENGLISH), "answers"),
    "gqa": (Questions(languages=_ENGLISH), "gqa"),
    "coco": (Texts(languages=_ENGLISH), "retrieval"),
    "flickr30k": (Texts(languages=_ENGLISH), "retrieval"),
    "refcoco": (Refers(languages=_ENGLISH), "grounding"),
    "refcoco+": (Refers(languages=_ENGLISH), "grounding"),
    "refcocog": (Refers(languages=_ENGLISH), "grounding"),
    "snli-ve": (Pairs(languages=_ENGLISH), "entailment"),
}


def twelve_in_one() -> Recipe:
    """12-in-1 (Lu et al. 2020): answers, retrieval, grounding and entailment on ViLBERT's streams.

    Paper: sections 3 and 4 (arXiv 1912.02315); facebookresearch/vilbert-multi-task:
    ``train_tasks.py``, ``vilbert_tasks.yml``, ``vilbert/utils.py``. Training starts from ViLBERT
    (``start``). Of its four groups of tasks: questions of VQA v2 and Visual Genome share one head;
    a caption is chosen against three others, as in ViLBERT; regions are scored against the box that
    an expression refers to; a sentence is entailed by the image, contradicts it, or neither. Each
    data set takes turns; one whose held-out loss does not fall rests, and is drawn every fourth
    time, until its loss rises (``pace``; there, by the score of the task).

    Not here: Visual7W and GuessWhat (as ``refcoco``, but there is no converter), NLVR2 (an example
    has two pictures: fine-tune on it), and the learned token that names the task. There, data sets
    take an optimiser step each in turn; here a step is of one data set (``alike``), and one number
    is the rate of all. Its cleaned training sets, without the test images of any task, must be
    made by leaving those images out. Answers are those given nine times or more (``shards make vqa
    --set min_answers=9``), 3,129 of VQA v2 and 1,533 of GQA.

    Parameters: ViLBERT's streams, 232 M, and the heads.
    """
    recipe = vilbert()
    objectives = _objectives(answers=("vqa/answers.txt", 3129), gqa=("gqa/answers.txt", 1533))
    return replace(
        recipe,
        name="twelve-in-one",
        modalities={
            TEXT: recipe.modalities[TEXT],
            IMAGE: butd(limit=100, box=5, norm="norm_of_sum", mask="zero", overall=True),
        },
        objectives=objectives,
        mixture={
            name: Component(
                shards=train(name), held=f"{name}/dev-*.tar", reader=reader, objectives=(objective,)
            )
            for name, (reader, objective) in TASKS.items()
        },
        pace=Pace(patience=1, threshold=0.001, gap=4, back=0.005),
        alike=True,
        held_every=3500,
        held_steps=64,
        steps=200_000,
        examples=32,
        micro=4,
        optim=bert_adam(2e-5),
        schedule=Schedule(shape="linear", warmup=0.1),
    )


def twelve_in_one_tiny() -> Recipe:
    """12-in-1 over the world: questions, captions, expressions and inferences of each scene."""
    recipe = twelve_in_one()
    objectives = _objectives(answers=("answers.txt", len(ANSWERS)))
    mixture = {
        objective: Component(
            shards="train-*.tar", held="dev-*.tar", reader=TASKS[name][0], objectives=(objective,)
        )
        for name, objective in (
            ("vqa", "answers"), ("coco", "retrieval"), ("refcoco", "grounding"),
            ("snli-ve", "entailment"),
        )
    }  # fmt: skip
    small = tiny(
        replace(recipe, objectives=objectives, mixture=mixture), vilbert_tiny().plan, mixture
    )
    return replace(small, held_every=100, held_steps=2)


def _objectives(**listed: tuple[str, int]) -> dict[str, Objective]:
    """One for each group of tasks; a classifier for each list of answers."""
    view = View(name="plain", streams=STREAMS)
    against = View(name="against", streams=STREAMS, against=(IMAGE, TEXT, IMAGE))
    answers: dict[str, Objective] = {
        name: Classify(
            view=view, label="answers", classes=file, count=count, form="sigmoid", pooled=STREAMS
        )
        for name, (file, count) in listed.items()
    }
    return answers | {
        "retrieval": Rank(view=against, pooled=STREAMS),
        "grounding": Ground(view=view, stream=IMAGE),
        "entailment": Classify(
            view=view,
            label="label",
            classes=("entailment", "neutral", "contradiction"),
            pooled=STREAMS,
        ),
    }
