"""UNITER: words and regions in one stream, one task per batch, one modality hidden at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.models.plan import Plan
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import REGIONS, itm, mlm, mrc_kl, mrfr, wra
from crossloom.recipes.parts import IMAGE, TEXT, bert_plan, bert_text, butd, tiny_plan, train
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: What is trained together: word-region alignment goes with the pass of matching.
TASKS: Mapping[str, tuple[str, ...]] = {
    "itm": ("itm", "wra"),
    "mlm": ("mlm",),
    "mrfr": ("mrfr",),
    "mrckl": ("mrckl",),
}
#: Ratios of the tasks on each data set (config/pretrain-alldata-base-8gpu.json).
RATIOS: Mapping[str, tuple[float, ...]] = {
    "coco": (6, 8, 4, 4),
    "visual-genome": (9, 12, 6, 6),
    "conceptual-captions": (9, 12, 6, 6),
    "sbu": (6, 8, 4, 4),
}


def uniter() -> Recipe:
    """UNITER-base (Chen et al. 2020): MLM, MRFR, MRC-KL, ITM with word-region alignment.

    Paper: section 3 (arXiv 1909.11740); ChenRocks/UNITER: ``model/model.py``,
    ``model/pretrain.py``, ``data/mlm.py``, ``data/mrm.py``, ``data/itm.py``, ``data/loader.py``.
    Words are hidden while all regions are shown, regions while all words are; where pairs may be
    mismatched nothing is hidden. The best model of the paper learns no hard classes of regions;
    :func:`~crossloom.objectives.presets.mrc` is that objective. Training starts from BERT's cased
    weights (``start``).

    Not copied: the code takes the mean of the KL divergence over the 1,601 classes too, where the
    paper has their sum (``objectives.mrckl.weight=0.000625`` gives the code's); its norms named
    ``img_layer_norm`` and ``pos_layer_norm`` decay. As in the code, the error of a feature is the
    mean over its 2,048 numbers, where the paper has the sum. Batches there are of 10,240 units on
    each of 8 devices, 6 times a step: about 200 examples 48 times. All 48 are of one task and one
    data set, as there. The gradients of a step's 6 passes are summed there, not averaged: cut at 5,
    their mean is cut at 0.83. Texts of more than 60 pieces are left out there, cut here; where no
    word is hidden, the first is there, any one here.

    The paper's 86 M parameters are those of the layers (85.1 M) and little else: not counted are
    the table of words (22.3 M) and the heads.
    """
    return _recipe(_mixture(RATIOS), bert_plan(), name="uniter")


def uniter_large() -> Recipe:
    """UNITER-large: 24 layers of 1024 (paper: 303 M parameters in the layers and regions)."""
    recipe = _recipe(_mixture(RATIOS), bert_plan(large=True), name="uniter-large")
    # config/pretrain-alldata-large-16gpu.json: 6,144 units, 4 times on each of 16
    return replace(recipe, steps=500_000, examples=128, micro=64)


def uniter_tiny() -> Recipe:
    """UNITER over the world: its four tasks, one per batch, 3 layers of 128."""
    return tiny(uniter(), tiny_plan(), _mixture({"world": (2, 2, 1, 1)}))


def _recipe(mixture: Mapping[str, Component], plan: Plan, *, name: str) -> Recipe:
    # each region is drawn by itself, whatever it overlaps
    regions = replace(REGIONS, by="unit")
    objectives: dict[str, Objective] = {
        "mlm": mlm(),
        "mrfr": mrfr(hide=regions),
        "mrckl": mrc_kl(hide=regions),
        "itm": itm(),
        "wra": wra(),
    }
    return Recipe(
        name=name,
        data="shards",
        modalities={
            TEXT: bert_text(limit=62, cased=True),  # 60 between [CLS] and [SEP]
            IMAGE: butd(
                limit=100, box=7, norm="norm_of_norms", mask="learned", segment=1,
                lent={"segment": TEXT},
            ),
        },
        plan=plan,
        objectives=objectives,
        mixture=mixture,
        steps=200_000,
        examples=192,
        micro=48,
        alike=True,
        optim=Optim(rate=5e-5, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01, clip=5.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        precision="bf16",
    )  # fmt: skip


def _mixture(ratios: Mapping[str, tuple[float, ...]]) -> dict[str, Component]:
    """A component for each task on each data set; every caption is an example."""
    return {
        f"{source}-{task}": Component(
            shards="train-*.tar" if source == "world" else train(source),
            reader=Texts(languages=("en",), all_texts=True),
            objectives=TASKS[task],
            weight=weight,
        )
        for source, weights in ratios.items()
        for task, weight in zip(TASKS, weights, strict=True)
    }
