"""VisualBERT as ``transformers`` keeps it (``modeling_visual_bert.py``).

Read are ``VisualBertForPreTraining`` and ``VisualBertModel`` (whose pooler belongs to no head here
and is left out).

In the sentence-image head, class 1 means that both captions belong to the image, as in the code
with which the published checkpoints were trained; the library's documentation says the opposite.
Regions take row 1 of their table of segments, as there; the first code took row 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Parallel
from crossloom.interop import bert
from crossloom.interop.bert import TEXT, require
from crossloom.interop.rules import Rule, both, read_all, same, write_all
from crossloom.modalities.regions import Regions
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import BERT
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("visual_bert",)
IMAGE = "image"
#: What ``config.json`` may leave out (``configuration_visual_bert.py``).
_DEFAULTS = {**bert.DEFAULTS, "visual_embedding_dim": 512}


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of one of VisualBERT's models.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = bert.checked({**_DEFAULTS, **config})
    if config.get("bypass_transformer"):
        raise ValueError("config.json: bypass_transformer: true is not known here")
    weights = bert.modern(weights)
    view = View(name="captions", streams=(TEXT, IMAGE), hide={TEXT: BERT})
    objectives: dict[str, Objective] = {}
    if "cls.predictions.bias" in weights:
        objectives["mlm"] = Reconstruct(view=view, stream=TEXT, target="token", matched_only=False)
    if "cls.seq_relationship.weight" in weights:
        objectives["same"] = Match(view=view, pooled=(TEXT,), passages=True)
    component = Component(
        shards="train-*.tar",
        reader=Parallel(second="texts", mismatch=0.5),
        objectives=tuple(objectives),
    )
    found = Recipe(
        name="visualbert",
        data="shards",
        modalities={TEXT: bert.text_of(config, folder), IMAGE: regions_of(config)},
        plan=bert.plan_of(config, (TEXT, IMAGE)),
        objectives=objectives,
        mixture={"captions": component} if objectives else {},
        steps=100_000,
        examples=48,
        optim=Optim(rate=5e-5, betas=(0.9, 0.999), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=0.1),
    )
    prefix = "visual_bert." if any(k.startswith("visual_bert.") for k in weights) else ""
    return found, read_all(_rules(found, prefix), weights)


def regions_of(config: Mapping[str, Any]) -> Regions:
    """Regions without boxes, under the norm of the text's embedding."""
    return Regions(
        features=config["visual_embedding_dim"],
        classes=0,
        box=0,
        limit=100,
        norm="norm_of_sum",
        mask="zero",
        segments=config["type_vocab_size"],
        segment=1,
        positions=config["max_position_embeddings"],
        lent={"norm": TEXT},
        dropout=config["hidden_dropout_prob"],
    )


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of one of VisualBERT's models, as its heads ask for.

    Raises:
        ValueError: the recipe's model is not one of VisualBERT's.
    """
    text, image = _streams(recipe)
    plan = recipe.plan
    spec = single_stream(
        (text, image), layers=len(plan.layers), width=plan.widths[text], heads=plan.heads
    )
    require(plan == bert.shaped(spec, plan), "its layers are not those of a single stream")
    regions = recipe.modalities[image]
    assert isinstance(regions, Regions)
    config = {
        "model_type": "visual_bert",
        **bert.config_of(recipe, text),
        "num_hidden_layers": len(plan.layers),
        "visual_embedding_dim": regions.features,
        # BERT's; the library's default for this family is RoBERTa's
        "pad_token_id": 0,
    }
    asked = replace(
        regions_of(config), field=regions.field, limit=regions.limit, classes=regions.classes,
        attributes=regions.attributes, overlap=regions.overlap, lent={"norm": text},
        dropout=regions.dropout,
    )  # fmt: skip
    require(regions == asked, f"{image}: regions are embedded otherwise than there")
    masked, matched = _heads(recipe)
    require((masked is None) == (matched is None), "it has one of the two heads, not the other")
    prefix = "visual_bert." if masked else ""
    config["architectures"] = ["VisualBertForPreTraining" if masked else "VisualBertModel"]
    return config, write_all(_rules(recipe, prefix), weights)


def _streams(recipe: Recipe) -> tuple[str, str]:
    texts = [s for s, m in recipe.modalities.items() if isinstance(m, Text)]
    images = [s for s, m in recipe.modalities.items() if isinstance(m, Regions)]
    require(
        len(recipe.modalities) == 2 and len(texts) == len(images) == 1,
        "its streams are not one text and one of regions",
    )
    return texts[0], images[0]


def _heads(recipe: Recipe) -> tuple[str | None, str | None]:
    text = _streams(recipe)[0]
    masked = bert.first(recipe, Reconstruct, lambda o: o.stream == text and o.target == "token")
    matched = bert.first(recipe, Match, lambda o: o.pooled == (text,) and o.pool == "first")
    return masked, matched


def _rules(recipe: Recipe, prefix: str) -> list[Rule]:
    (text, image), (masked, matched) = _streams(recipe), _heads(recipe)
    theirs, ours = f"{prefix}embeddings", f"embed.{image}"
    rules = [
        *bert.embedding(text, theirs),
        *both(f"{ours}.feature", f"{theirs}.visual_projection"),
        same(f"{ours}.segment.weight", f"{theirs}.visual_token_type_embeddings.weight"),
        same(f"{ours}.position.weight", f"{theirs}.visual_position_embeddings.weight"),
    ]
    for number in range(len(recipe.plan.layers)):
        rules += bert.layer(number, "shared", f"{prefix}encoder.layer.{number}")
    if masked:
        rules += bert.prediction(masked)
    if matched:
        rules += both(f"heads.{matched}.pooler.dense.{text}", f"{prefix}pooler.dense")
        rules += both(f"heads.{matched}.score", "cls.seq_relationship")
    return rules
