"""XLM-R as ``transformers`` keeps it (``modeling_xlm_roberta.py``).

Read are ``XLMRobertaForMaskedLM`` and ``XLMRobertaModel``, whose pooler (never trained in
pre-training) is left out. Positions start at row 2, after that of ``<pad>``; the one row of passage
types is ``Text.constant``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Blocks
from crossloom.interop.bert import (
    DEFAULTS as _BERT,
)
from crossloom.interop.bert import (
    TEXT,
    checked,
    embedding,
    first,
    layer,
    one_text,
    plan_of,
    require,
    shaped,
    sizes,
)
from crossloom.interop.rules import Rule, both, read_all, same, wrapped, write_all
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import mmlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("xlm-roberta",)
#: What ``config.json`` may leave out (``configuration_xlm_roberta.py``).
DEFAULTS: Mapping[str, Any] = {**_BERT, "pad_token_id": 1}
#: As RoBERTa (arXiv 1907.11692, table 9), which XLM-R follows.
OPTIM = Optim(rate=6e-4, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01)
_OFFSET = 2


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of one of XLM-R's models.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = checked({**DEFAULTS, **config})
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError("config.json: is_decoder: XLM-R as a decoder is not known")
    if config["pad_token_id"] + 1 != _OFFSET:
        raise ValueError(
            f"config.json: pad_token_id: {config['pad_token_id']} is not known here, only 1, after "
            "which positions are counted"
        )
    objectives: dict[str, Objective] = {}
    if "lm_head.bias" in weights:
        objectives["mmlm"] = mmlm()
    vocabulary = folder / "sentencepiece.bpe.model"
    segments = config["type_vocab_size"]
    found = Recipe(
        name="xlm-r",
        data="shards",
        modalities={
            TEXT: Text(
                vocabulary=str(vocabulary.resolve()) if vocabulary.is_file() else vocabulary.name,
                layout="xlm-r",
                size=config["vocab_size"],
                limit=config["max_position_embeddings"] - _OFFSET,
                offset=_OFFSET,
                segments=segments,
                constant=segments == 1,
                dropout=config["hidden_dropout_prob"],
            )
        },
        plan=plan_of(config),
        objectives=objectives,
        mixture={
            "text": Component(shards="train-*.tar", reader=Blocks(), objectives=tuple(objectives))
        }
        if objectives
        else {},
        steps=1_500_000,
        examples=8192,
        optim=OPTIM,
        schedule=Schedule(shape="linear", warmup=0.02),
    )
    prefix = "roberta." if any(k.startswith("roberta.") for k in weights) else ""
    return found, read_all(_rules(found, prefix), weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of one of XLM-R's models.

    Raises:
        ValueError: the recipe's model is not one of XLM-R's.
    """
    stream = one_text(recipe)
    text, plan = recipe.modalities[stream], recipe.plan
    assert isinstance(text, Text)
    require(list(recipe.modalities) == [stream], "it has further streams")
    plain = shaped(
        single_stream(
            (stream,), layers=len(plan.layers), width=plan.widths[stream], heads=plan.heads
        ),
        plan,
    )
    require(plan == plain, "its layers are not those of XLM-R")
    require(text.offset == _OFFSET, f"{stream}: its positions do not start at row {_OFFSET}")
    require(text.constant == (text.segments == 1),
            f"{stream}: constant is set where, and only where, segments is 1")  # fmt: skip
    others = text.languages or text.looks_at or text.words_of or text.scaled or text.marked
    require(not others and text.norm,
            f"{stream}: is embedded otherwise than as tokens, positions and segments")  # fmt: skip
    head = _head(recipe)
    config = {
        "model_type": "xlm-roberta",
        "architectures": [f"XLMRoberta{'ForMaskedLM' if head else 'Model'}"],
        **sizes(recipe, stream),
        "type_vocab_size": text.segments,
        "num_hidden_layers": len(plan.layers),
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    return config, write_all(_rules(recipe, "roberta." if head else ""), weights)


def _head(recipe: Recipe) -> str | None:
    text = one_text(recipe)

    def fits(objective: Reconstruct) -> bool:
        return objective.stream == text and objective.tied and objective.transform

    return first(recipe, Reconstruct, fits)


def _rules(recipe: Recipe, prefix: str) -> list[Rule]:
    stream, head = one_text(recipe), _head(recipe)
    text = recipe.modalities[stream]
    assert isinstance(text, Text)
    rules = embedding(stream, f"{prefix}embeddings")
    if text.constant:
        ours = f"embed.{stream}"
        rules = [r for r in rules if r.ours != (f"{ours}.segment.weight",)]
        theirs = f"{prefix}embeddings.token_type_embeddings.weight"
        rules.append(wrapped(f"{ours}.constant", theirs))
    for number in range(len(recipe.plan.layers)):
        rules += layer(number, "shared", f"{prefix}encoder.layer.{number}")
    if head:
        rules += both(f"heads.{head}.transform.0", "lm_head.dense")
        rules += both(f"heads.{head}.transform.2", "lm_head.layer_norm")
        rules.append(same(f"heads.{head}.bias", "lm_head.bias"))
    return rules
