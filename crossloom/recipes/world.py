"""Published systems over the world: the same streams, views and rules, small enough for two cores.

A system's small recipe (``NAME-tiny``) is its published one with another plan and other sizes; what
makes it that system stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from crossloom.data_pipelines.read import Blocks
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.modalities.codes import Codes
from crossloom.modalities.modality import Modality
from crossloom.modalities.patches import Patches
from crossloom.modalities.regions import Regions
from crossloom.modalities.speech import Speech
from crossloom.modalities.text import Text
from crossloom.models.plan import Norm, Plan
from crossloom.models.presets import Tower, towers
from crossloom.objectives.classify import Classify
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.rank import Rank
from crossloom.training.ddp import Ddp
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: Folder of the world that `make demo` draws; ``data=…`` names another.
WORLD = "runs/demo/world"


def tiny(
    recipe: Recipe,
    plan: Plan,
    mixture: Mapping[str, Component] | None = None,
    *,
    steps: int = 600,
    rate: float = 1e-3,
    at_least: int | None = None,
) -> Recipe:
    """A recipe over the world's scenes.

    Args:
        recipe: the published one.
        plan: a small one of the same topology, over the same streams.
        mixture: its components over the world; the recipe's own, all over ``train-*.tar``, if None.
        steps: of 64 examples.
        rate: of learning; small models bear more.
        at_least: units that each view hides of a stream that it hides units of, at the least (the
            world's captions are short: many would have none); the recipe's own if None.
    """
    parts = recipe.mixture if mixture is None else mixture
    return replace(
        recipe,
        name=f"{recipe.name}-tiny",
        data=WORLD,
        modalities={s: small(m) for s, m in recipe.modalities.items()},
        plan=replace(plan, dropout=0.0),
        objectives={n: _scored(o, at_least) for n, o in recipe.objectives.items()},
        mixture={
            n: _balanced(c if mixture is not None else replace(c, shards="train-*.tar", held=""))
            for n, c in parts.items()
        },
        steps=steps,
        examples=64,
        micro=1,
        fused=0,
        phases=(),
        start="",
        precision="fp32",
        optim=Optim(rate=rate, betas=recipe.optim.betas, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.05),
        log_every=50,
        save_every=1000,
    )


def world_codes(recipe: Recipe) -> Recipe:
    """A small recipe whose image is codes, over those of the world's pictures.

    As the source ``codes`` makes them by default: 12 × 12 of 512, in the folder ``codes`` beside
    the world's shards.
    """
    image = recipe.modalities["image"]
    assert isinstance(image, Codes)
    image = replace(
        image, size=512, limit=144, side=12 if image.side else 0, codebook="world-patches",
        dropout=0.0,
    )  # fmt: skip
    return replace(
        recipe,
        modalities={**recipe.modalities, "image": image},
        mixture={n: replace(c, shards="codes/train-*.tar") for n, c in recipe.mixture.items()},
        engine=Ddp(),
        recompute=0,
    )


def tiny_with_statements(recipe: Recipe, plan: Plan, *, at_least: int | None = None) -> Recipe:
    """A recipe of components ``captions`` and ``texts``: the texts are statements on the scenes."""
    statements = replace(recipe.mixture["texts"], reader=Blocks(of="statements", stretch=1024))
    parts = {"captions": recipe.mixture["captions"], "texts": statements}
    mixture = {n: replace(c, shards="train-*.tar") for n, c in parts.items()}
    return tiny(recipe, plan, mixture, at_least=at_least)


def _scored(objective: Objective, at_least: int | None) -> Objective:
    """The objective without dropout; its view hides so many units at the least."""
    if isinstance(objective, Match | Classify | Rank):
        objective = replace(objective, dropout=0.0)
    if at_least is None:
        return objective
    hide = {s: replace(h, at_least=at_least) for s, h in objective.view.hide.items()}
    return replace(objective, view=replace(objective.view, hide=hide))


def _balanced(component: Component) -> Component:
    """Without sampling by language: every sample of the world is in all its languages."""
    if not component.languages:
        return component
    known = tuple(code for code in component.languages if code in LANGUAGES)
    reader = replace(component.reader, languages=known)  # type: ignore[call-arg]
    return replace(component, languages=(), alpha=1.0, reader=reader)


def small_towers(*, causal: tuple[str, ...] = (), norm: Norm = "pre") -> Plan:
    """A small plan of two towers, of text and of image, which differ in width as published ones do.

    Args:
        causal: streams read left to right.
        norm: of the plan.
    """
    sizes = {
        "text": Tower(layers=3, width=96, heads=4, hidden=384),
        "image": Tower(layers=3, width=128, heads=4, hidden=512),
    }
    return towers(sizes, causal=causal, norm=norm)


def small(modality: Modality) -> Modality:
    """The modality with the world's vocabulary, features and picture sizes."""
    if isinstance(modality, Text):
        # one row more than the longest text: regions may stand after it
        signs = tuple(LANGUAGES) if modality.layout == "mbart" else ()
        return replace(
            modality, vocabulary="tokenizer.model", layout="own", signs=signs, size=0, limit=48,
            positions=49 if modality.positions else 0, offset=0, dropout=0.0,
        )  # fmt: skip
    if isinstance(modality, Regions):
        classes = (37 if modality.background else 36) if modality.classes else 0
        return replace(
            modality, features=64, waves=8, classes=classes, attributes=0, limit=8, dropout=0.0,
            hidden=64 if modality.hidden else 0,
            names=replace(
                modality.names, names="classes.tsv", vocabulary="tokenizer.model", layout="own",
                size=0,
            ) if modality.names else None,
        )  # fmt: skip
    if isinstance(modality, Patches):
        return replace(modality, size=96, patch=16, tower="", weights="", dropout=0.0)
    if isinstance(modality, Speech):
        vocabulary = "tokenizer.model" if modality.vocabulary else ""
        return replace(
            modality, seconds=4.0, vocabulary=vocabulary, layout="own", size=0, dropout=0.0
        )
    if isinstance(modality, Codes):
        return replace(
            modality,
            size=73,
            limit=20,
            side=0,
            stride=min(2, modality.stride),
            codebook="world",
            dropout=0.0,
        )
    return modality
