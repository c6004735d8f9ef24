"""12-in-1: ViLBERT trained on many tasks at once, those that learn no more resting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from crossloom.data_pipelines.annotated import Pairs, Questions, Refers
from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.world import ANSWERS
from crossloom.objectives.classify import Classify
from crossloom.objectives.ground import Ground
from crossloom.objectives.objective import Objective
from crossloom.objectives.rank import Rank
from crossloom.objectives.view import View
from crossloom.recipes.parts import (
    ANY_REGIONS,
    ANY_WORDS,
    IMAGE,
    STREAMS,
    TEXT,
    bert_adam,
    bert_text,
    butd,
    train,
)
from crossloom.recipes.vilbert import vilbert, vilbert_tiny
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Pace, Recipe
from crossloom.training.schedule import Schedule

#: The second of two pictures.
SECOND = "second"
#: Heads learn faster than what is trained before; summaries and the score of regions do not.
FACTORS = {r"\.pooler\.": 1.0, r"^heads\.(?!grounding\.)": 5.0}


def _tasks() -> dict[str, tuple[Reader, str]]:
    english = ("en",)
    vocabulary = {"vqa": "answers", "visual-genome": "answers", "gqa": "gqa"}
    boxes = ("refcoco", "refcoco+", "refcocog", "visual7w", "guesswhat")
    found: dict[str, tuple[Reader, str]] = {
        n: (Questions(languages=english, task=n), o) for n, o in vocabulary.items()
    }
    for name in ("coco", "flickr30k"):
        found[name] = Texts(languages=english, task=name), "retrieval"
    for name in boxes:
        found[name] = Refers(languages=english, task=name), "grounding"
    found["snli-ve"] = Pairs(languages=english, task="snli-ve"), "entailment"
    found["nlvr2"] = Pairs(languages=english, task="nlvr2", two=True), "verification"
    return found


#: By data set: how it is read, and the objective.
TASKS: Mapping[str, tuple[Reader, str]] = _tasks()


def twelve_in_one_captions() -> Recipe:
    """12-in-1's first stage: ViLBERT, with overlapping regions hidden together.

    Lu et al. 2020, section 3.1: where a region is hidden, so are those that overlap it by more than
    0.4 (intersection over union), and foreign pairs are asked for matching alone. Here overlap goes
    on through others (``Regions.overlap``). The released code hides the region alone
    (``vilbert/datasets/concept_cap_dataset.py``). 512 pairs a step, 10 epochs of 3.1 million, 36
    regions each, one rate for all and no gradient cut (``train_concap.py``, which means BERT's
    parts to learn with a tenth of the rate, but finds none of their names).
    """
    recipe = vilbert()
    hide = {TEXT: ANY_WORDS, IMAGE: replace(ANY_REGIONS, by="group")}
    view = View(name="joint", streams=STREAMS, hide=hide, mismatch=TEXT)
    objectives = {n: replace(o, view=view) for n, o in recipe.objectives.items()}
    for name in ("mlm", "mrc"):
        objectives[name] = replace(objectives[name], matched_only=True)  # type: ignore[call-arg]
    image = replace(recipe.modalities[IMAGE], overlap=0.4)  # type: ignore[call-arg]
    return replace(
        recipe,
        name="twelve-in-one-captions",
        modalities={**recipe.modalities, IMAGE: image},
        objectives=objectives,
        optim=Optim(rate=1e-4, betas=(0.9, 0.98), epsilon=1e-8, decay=0.01, clip=0.0),
    )


def twelve_in_one() -> Recipe:
    """12-in-1 (Lu et al. 2020): twelve data sets in four groups of tasks on ViLBERT's streams.

    Paper: sections 3 and 4 (arXiv 1912.02315); facebookresearch/vilbert-multi-task:
    ``train_tasks.py``, ``vilbert_tasks.yml``, ``vilbert/vilbert.py``, ``vilbert/utils.py``.
    Training starts from ``twelve-in-one-captions`` (``start``). Questions of VQA v2 and Visual
    Genome share one head, GQA has its own; a caption is chosen against three others, as in ViLBERT;
    regions are scored against the box that an expression, a question (Visual7W) or a dialogue
    (GuessWhat) refers to; a sentence is entailed by the image, contradicts it, or neither, and is
    true of two pictures or not (NLVR2). A learned vector after the first unit of the text says
    which data set it is. Each data set takes turns; one whose held-out loss does not fall rests,
    and is drawn every fourth time, until its loss rises (``pace``; there, by the score of the
    task). All heads but that on regions read one product of both streams' summaries and learn with
    1e-4, five times the rate of the rest; questions, whose own rate was 4e-5, weigh twice as much.
    Entailment and truth of pictures are decided class by class, by the mean over classes. No
    gradient is cut.

    Otherwise than there:

    - Data sets take an optimiser step each in turn there, one step is of one data set here
      (``alike``). 20 epochs of the largest, about 1.44 million questions of Visual Genome by 128,
      are 225,000 rounds of twelve steps; there sets that rest take fewer.
    - All steps are of 128; there those of expressions, Visual7W and entailment of 256, those of
      NLVR2 and GuessWhat of 64. Limits of text go by data set there; here all have GuessWhat's.
    - All sets are measured together; there each after its own epoch.
    - Boxes of Visual7W and GuessWhat are chosen among the detector's, there among the given ones,
      whose features are taken as well.
    - Entailment has a hidden layer as other classes have. Regions are scored as they are, there
      with a tenth of their numbers dropped. What summarises streams begins anew.
    - The cleaned training sets, without the test images of any task, must be made by leaving those
      images out. Answers are those given nine times or more (``shards make vqa --set
      min_answers=9``), 3,129 of VQA v2 and 1,533 of GQA.

    Parameters: ViLBERT's streams, 234 M, their summaries, 1.8 M, and the heads. The code has layers
    beside that nothing uses (``q_dense``, 11.0 M) and the heads of pre-training (3.3 M); its
    268,028,859 are the paper's 270 M.
    """
    recipe = vilbert()
    objectives = _objectives(
        summary={"width": 1024, "activation": "relu", "dropout": 0.1}, shares="answers",
        form="sigmoid", answers=("vqa/answers.txt", 3129), gqa=("gqa/answers.txt", 1533),
    )  # fmt: skip
    for name in ("answers", "gqa"):
        objectives[name] = replace(objectives[name], weight=2.0)
    image = butd(limit=100, box=5, norm="norm_of_sum", mask="zero", overall=True)
    return replace(
        recipe,
        name="twelve-in-one",
        modalities={
            TEXT: bert_text(limit=257, tasks=tuple(TASKS)),
            IMAGE: image,
            SECOND: replace(image, field="1.regions.npz"),
        },
        tied={SECOND: IMAGE},
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
        steps=2_700_000,
        examples=32,
        micro=4,
        optim=replace(bert_adam(2e-5, clip=0.0), factors=FACTORS),
        schedule=Schedule(shape="linear", warmup=0.1),
    )


def twelve_in_one_tiny() -> Recipe:
    """12-in-1 over the world: questions, captions, expressions and inferences of each scene."""
    recipe = twelve_in_one()
    objectives = _objectives(answers=("answers.txt", len(ANSWERS)))
    # the world has no pairs of pictures
    del objectives["verification"]
    mixture = {
        objective: Component(
            shards="train-*.tar", held="dev-*.tar", reader=TASKS[name][0], objectives=(objective,)
        )
        for name, objective in (
            ("vqa", "answers"), ("coco", "retrieval"), ("refcoco", "grounding"),
            ("snli-ve", "entailment"),
        )
    }  # fmt: skip
    modalities = {s: recipe.modalities[s] for s in STREAMS}
    recipe = replace(recipe, modalities=modalities, tied={}, objectives=objectives, mixture=mixture)
    small = tiny(recipe, vilbert_tiny().plan, mixture)
    return replace(small, held_every=100, held_steps=2)


def _objectives(
    *,
    summary: Mapping[str, Any] = MappingProxyType({}),
    shares: str = "",
    form: Literal["softmax", "sigmoid"] = "softmax",
    **listed: tuple[str, int],
) -> dict[str, Objective]:
    """One for each group of tasks; a classifier for each list of answers.

    Args:
        summary: of the streams, as heads read them.
        shares: whose summary all others read; empty for one each.
        form: how entailment and verification are decided.
        listed: files of answers, and how many they list.
    """
    view = View(name="plain", streams=STREAMS)
    against = View(name="against", streams=STREAMS, against=(IMAGE, TEXT, IMAGE))
    pair = View(name="pair", streams=STREAMS, twice={IMAGE: SECOND})
    classify = partial(Classify, pooled=STREAMS, **summary)

    def decide(view: View, *classes: str) -> Classify:
        share = 1 / len(classes) if form == "sigmoid" else 1.0
        return classify(
            view=view, label="label", classes=classes, form=form, weight=share, shares=shares
        )

    answers: dict[str, Objective] = {
        name: classify(
            view=view, label="answers", classes=file, count=count, form="sigmoid",
            shares="" if name == shares else shares,
        )
        for name, (file, count) in listed.items()
    }  # fmt: skip
    return answers | {
        "retrieval": Rank(view=against, pooled=STREAMS, shares=shares, **summary),
        "grounding": Ground(view=view, stream=IMAGE),
        "entailment": decide(view, "entailment", "neutral", "contradiction"),
        "verification": decide(pair, "true", "false"),
    }
