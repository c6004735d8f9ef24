"""XLM as ``transformers`` keeps it (``modeling_xlm.py``: ``XLMWithLMHeadModel``, ``XLMModel``).

A language has an embedding of its own, added to every unit; the second sentence of a translated
pair starts at position 0 again (``Text.restart``); the head is the table of words and a bias. Of a
causal model (``causal``) each word is said from those before it: objective ``clm``.

Its vocabulary is byte pairs of words that Moses cuts: ``layout: xlm``, or ``xlm-cased`` where
``tokenizer_config.json`` says so (:mod:`crossloom.modalities.word_pairs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Texts
from crossloom.interop.bert import TEXT, block, first, one_text, require, shaped
from crossloom.interop.rules import Rule, both, joined, read_all, same, write_all
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import Layout
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.generate import Generate
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import clm, mmlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("xlm",)
#: What ``config.json`` may leave out (``configuration_xlm.py``).
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30145,
    "emb_dim": 2048,
    "n_layers": 12,
    "n_heads": 16,
    "dropout": 0.1,
    "gelu_activation": True,
    "causal": False,
    "n_langs": 1,
    "use_lang_emb": True,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
}
#: What has one form here.
_KNOWN: Mapping[str, Any] = {
    "asm": False,
    "is_encoder": True,
    "sinusoidal_embeddings": False,
    "tie_word_embeddings": True,
}
#: Published (arXiv 1901.07291, section 5.1, and the commands of its code).
OPTIM = Optim(rate=1e-4, betas=(0.9, 0.98), decay=0.0, clip=5.0)


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of one of XLM's models.

    The recipe goes on with MLM, or CLM; TLM is the same objective on joined translations.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = {**DEFAULTS, **config}
    # names that files from before they were changed have
    config["vocab_size"] = config.get("n_words", config["vocab_size"])
    for key, value in _KNOWN.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json: {key}: {config[key]} is not known here, only {value}")
    languages = _languages(config)
    objectives: dict[str, Objective] = {}
    if "pred_layer.proj.bias" in weights and config["causal"]:
        objectives["clm"] = replace(clm(), transform=False)
    elif "pred_layer.proj.bias" in weights:
        objectives["mmlm"] = replace(mmlm(), transform=False)
    elif config["causal"]:
        raise ValueError("config.json: causal: known of a model with its head only")
    vocabulary = folder / "vocab.json"
    text = Text(
        vocabulary=str(vocabulary.resolve()) if vocabulary.is_file() else vocabulary.name,
        layout=_layout(folder),
        size=config["vocab_size"],
        limit=config["max_position_embeddings"],
        languages=languages,
        restart=True,
        dropout=config["dropout"],
    )
    component = Component(shards="train-*.tar", reader=Texts(), objectives=tuple(objectives))
    found = Recipe(
        name="xlm",
        data="shards",
        modalities={TEXT: text},
        plan=replace(
            single_stream(
                (TEXT,),
                layers=config["n_layers"],
                width=config["emb_dim"],
                heads=config["n_heads"],
                dropout=config["dropout"],
            ),
            epsilon=config["layer_norm_eps"],
            activation="gelu" if config["gelu_activation"] else "relu",
        ),
        objectives=objectives,
        mixture={"text": component} if objectives else {},
        steps=500_000,
        examples=2048,
        optim=OPTIM,
        schedule=Schedule(shape="linear", warmup=0.06),
    )
    prefix = "transformer." if any(k.startswith("transformer.") for k in weights) else ""
    return found, read_all(_rules(found, prefix), weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of one of XLM's models.

    Raises:
        ValueError: the recipe's model is not one of XLM's.
    """
    stream, plan = one_text(recipe), recipe.plan
    text = recipe.modalities[stream]
    assert isinstance(text, Text)
    require(list(recipe.modalities) == [stream], "it has further streams")
    require(_shape(recipe) == replace(plan, activation="gelu"), "its layers are not those of XLM")
    require(plan.hidden == 4 * plan.widths[stream], "plan.hidden is not four times the width")
    require(plan.activation in ("gelu", "relu"), f"plan.activation: {plan.activation}")
    require(len(text.languages) != 1, f"{stream}: one language has no embedding there")
    others = text.segments > 1 or text.constant or text.offset or text.looks_at
    others = others or text.words_of or text.scaled or text.marked or not text.norm
    require(not others, f"{stream}: is embedded otherwise than as tokens, positions, languages")
    head = _head(recipe)
    untied = first(recipe, (Reconstruct, Generate), lambda o: o.stream == stream and o.transform)
    require(head is not None or untied is None, f"{untied}: its head has a transform")
    config = {
        "model_type": "xlm",
        "architectures": ["XLMWithLMHeadModel" if head else "XLMModel"],
        "vocab_size": text.predictable()["token"].dim,
        "emb_dim": plan.widths[stream],
        "n_layers": len(plan.layers),
        "n_heads": plan.heads,
        "dropout": plan.dropout,
        "attention_dropout": plan.dropout,
        "gelu_activation": plan.activation == "gelu",
        "causal": head is not None and isinstance(recipe.objectives[head], Generate),
        "n_langs": max(1, len(text.languages)),
        "use_lang_emb": bool(text.languages),
        "lang2id": {code: number for number, code in enumerate(text.languages)},
        "id2lang": {str(number): code for number, code in enumerate(text.languages)},
        "max_position_embeddings": text.positions or text.limit,
        "layer_norm_eps": plan.epsilon,
    }
    return config, write_all(_rules(recipe, "transformer." if head else ""), weights)


def _languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Codes in the order of their rows; numbers, where the configuration does not name them."""
    count = config["n_langs"] if config["use_lang_emb"] else 0
    if count < 2:
        return ()
    names = {int(number): code for code, number in (config.get("lang2id") or {}).items()}
    return tuple(names.get(number, str(number)) for number in range(count))


def _layout(folder: Path) -> Layout:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return "xlm" if settings.get("do_lowercase_and_remove_accent", True) else "xlm-cased"


def _shape(recipe: Recipe) -> Plan:
    """XLM's plan of the recipe's size."""
    stream, plan = one_text(recipe), recipe.plan
    wanted = single_stream(
        (stream,), layers=len(plan.layers), width=plan.widths[stream], heads=plan.heads
    )
    return shaped(wanted, plan)


def _head(recipe: Recipe) -> str | None:
    text = one_text(recipe)

    def fits(objective: Reconstruct | Generate) -> bool:
        return objective.stream == text and objective.tied and not objective.transform

    return first(recipe, (Reconstruct, Generate), fits)


def _rules(recipe: Recipe, prefix: str) -> list[Rule]:
    stream, head = one_text(recipe), _head(recipe)
    text = recipe.modalities[stream]
    assert isinstance(text, Text)
    ours = f"embed.{stream}"
    rules = [
        same(f"{ours}.token.weight", f"{prefix}embeddings.weight"),
        same(f"{ours}.position.weight", f"{prefix}position_embeddings.weight"),
        *both(f"{ours}.norm", f"{prefix}layer_norm_emb"),
    ]
    if text.languages:
        rules.append(same(f"{ours}.language.weight", f"{prefix}lang_embeddings.weight"))
    for number in range(len(recipe.plan.layers)):
        rules += _layer(number, prefix)
    if head:
        rules.append(same(f"heads.{head}.bias", "pred_layer.proj.bias"))
    return rules


def _layer(number: int, prefix: str) -> list[Rule]:
    inside, feed = f"{prefix}attentions.{number}", f"{prefix}ffns.{number}"
    pairs = [
        joined(
            f"{block(number, 0, 'keyvalue', 'shared')}.{kind}",
            [f"{inside}.{part}_lin.{kind}" for part in "kv"],
        )
        for kind in ("weight", "bias")
    ]
    return [
        *pairs,
        *both(block(number, 0, "query", "shared"), f"{inside}.q_lin"),
        *both(block(number, 0, "output", "shared"), f"{inside}.out_lin"),
        *both(block(number, 0, "norm", "shared"), f"{prefix}layer_norm1.{number}"),
        *both(block(number, 1, "up", "shared"), f"{feed}.lin1"),
        *both(block(number, 1, "down", "shared"), f"{feed}.lin2"),
        *both(block(number, 1, "norm", "shared"), f"{prefix}layer_norm2.{number}"),
    ]
