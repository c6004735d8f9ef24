"""BERT as ``transformers`` keeps it (``modeling_bert.py``), and what its descendants have of it.

Read are ``BertForPreTraining``, ``BertForMaskedLM``, ``BertForNextSentencePrediction`` and
``BertModel``. The pooler belongs to the head that reads it here: that of a bare ``BertModel`` is
left out, and a run without a matching objective is written without one.

Next sentences: class 0 means "follows" there, class 1 "belongs together" here, so the two rows of
that layer change places on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.interop.rules import Rule, both, joined, read_all, same, write_all
from crossloom.modalities.text import Text
from crossloom.modalities.vocabularies import Layout
from crossloom.models.plan import Plan
from crossloom.models.presets import single_stream
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.presets import BERT
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("bert",)
TEXT = "text"
#: What ``config.json`` may leave out (``configuration_bert.py``).
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
#: Published (arXiv 1810.04805, appendix A.2).
OPTIM = Optim(rate=1e-4, betas=(0.9, 0.999), epsilon=1e-6, decay=0.01, clip=1.0)


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of one of BERT's models.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = checked({**DEFAULTS, **config})
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise ValueError("config.json: is_decoder: BERT as a decoder is not known")
    weights = modern(weights)
    heads: list[str] = []
    view = View(name="passages", streams=(TEXT,), hide={TEXT: BERT})
    objectives: dict[str, Objective] = {}
    if "cls.predictions.bias" in weights:
        heads.append("mlm")
        objectives["mlm"] = Reconstruct(view=view, stream=TEXT, target="token", matched_only=False)
    if "cls.seq_relationship.weight" in weights:
        objectives["same"] = Match(view=view, pooled=(TEXT,), passages=True)
    reader = Parallel(mismatch=0.5) if "same" in objectives else Texts()
    component = Component(shards="train-*.tar", reader=reader, objectives=tuple(objectives))
    found = Recipe(
        name="bert",
        data="shards",
        modalities={TEXT: text_of(config, folder)},
        plan=plan_of(config),
        objectives=objectives,
        mixture={"text": component} if objectives else {},
        steps=1_000_000,
        examples=256,
        optim=OPTIM,
        schedule=Schedule(shape="linear", warmup=0.01),
    )
    prefix = "bert." if any(k.startswith("bert.") for k in weights) else ""
    return found, read_all(_rules(found, prefix), weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of one of BERT's models, as its heads ask for.

    Raises:
        ValueError: the recipe's model is not one of BERT's.
    """
    require(list(recipe.modalities) == [one_text(recipe)], "it has further streams")
    require(recipe.plan == _plan(recipe), "its layers are not those of BERT")
    masked, matched = _heads(recipe)
    names = {
        (True, True): "BertForPreTraining",
        (True, False): "BertForMaskedLM",
        (False, True): "BertForNextSentencePrediction",
        (False, False): "BertModel",
    }
    architecture = names[masked is not None, matched is not None]
    prefix = "" if architecture == "BertModel" else "bert."
    config = {
        "model_type": "bert",
        "architectures": [architecture],
        **config_of(recipe, one_text(recipe)),
        "num_hidden_layers": len(recipe.plan.layers),
    }
    return config, write_all(_rules(recipe, prefix), weights)


def one_text(recipe: Recipe) -> str:
    """Name of the recipe's one stream of text.

    Raises:
        ValueError: it has none, or several.
    """
    texts = [s for s, m in recipe.modalities.items() if isinstance(m, Text)]
    require(len(texts) == 1, "it has not one text stream")
    return texts[0]


def _plan(recipe: Recipe) -> Plan:
    """BERT's plan of the recipe's size."""
    plan, text = recipe.plan, one_text(recipe)
    return shaped(
        single_stream((text,), layers=len(plan.layers), width=plan.widths[text], heads=plan.heads),
        plan,
    )


def _heads(recipe: Recipe) -> tuple[str | None, str | None]:
    """Names of the objectives on hidden words and on next sentences."""
    text = one_text(recipe)
    masked = first(recipe, Reconstruct, lambda o: o.stream == text and o.target == "token")
    matched = first(recipe, Match, lambda o: o.pooled == (text,) and o.pool == "first")
    return masked, matched


def _rules(recipe: Recipe, prefix: str) -> list[Rule]:
    text, (masked, matched) = one_text(recipe), _heads(recipe)
    rules = embedding(text, f"{prefix}embeddings")
    for number in range(len(recipe.plan.layers)):
        rules += layer(number, "shared", f"{prefix}encoder.layer.{number}")
    if masked:
        rules += prediction(masked)
    if matched:
        score = f"heads.{matched}.score"
        rules += both(f"heads.{matched}.pooler.dense.{text}", f"{prefix}pooler.dense")
        rules += [flipped(f"{score}.{k}", f"cls.seq_relationship.{k}") for k in ("weight", "bias")]
    return rules


# What BERT's descendants share with it


def require(holds: bool, why: str) -> None:
    """Raise ValueError with the reason why a recipe does not fit a family."""
    if not holds:
        raise ValueError(why)


def checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration, when everything in it is known here.

    Raises:
        ValueError: an activation, a kind of positions or an untied decoder that is not.
    """
    known = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    for key, value in known.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json: {key}: {config[key]} is not known here, only {value}")
    return config


def modern(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights under today's names: old files call a norm's parts ``gamma`` and ``beta``."""
    new = {".gamma": ".weight", ".beta": ".bias"}
    if not any(name.endswith(tuple(new)) for name in weights):
        return weights
    found = {}
    for name, value in weights.items():
        stem, dot, last = name.rpartition(".")
        found[stem + new.get(dot + last, dot + last)] = value
    return found


def text_of(config: Mapping[str, Any], folder: Path) -> Text:
    """The text stream: word pieces, positions and two segments; the vocabulary is the folder's."""
    files = [p for p in (folder / "vocab.txt", folder / "tokenizer.json") if p.is_file()]
    return Text(
        vocabulary=str(files[0].resolve()) if files else "vocab.txt",
        layout=layout_of(folder),
        size=config["vocab_size"],
        limit=config["max_position_embeddings"],
        segments=config["type_vocab_size"],
        dropout=config["hidden_dropout_prob"],
    )


def layout_of(folder: Path) -> Layout:
    """Whether case is kept, as the tokenizer's settings say, or else ``tokenizer.json`` itself.

    Raises:
        ValueError: they ask for words to be cut in a way that is not known here.
    """
    told: dict[str, Any] = {}
    pieces, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if pieces.is_file():
        normal = json.loads(pieces.read_text("utf-8")).get("normalizer") or {}
        names = ("lowercase", "strip_accents", "handle_chinese_chars")
        told = dict(zip(_SETTINGS, map(normal.get, names), strict=True))
    if settings.is_file():
        told |= json.loads(settings.read_text("utf-8"))
    told = {k: v for k, v in told.items() if v is not None}
    lower = bool(told.get("do_lower_case", True))
    if told.get("tokenizer_class") == "BertJapaneseTokenizer":
        raise ValueError(f"{settings.name}: words that MeCab cuts are not known here")
    for key, known in zip(_SETTINGS[1:], (lower, True), strict=True):
        if told.get(key, known) != known:
            raise ValueError(
                f"{settings.name}: {key}: {told[key]} with do_lower_case: {lower} is not known "
                f"here, only {known}; set it so there if its words may be cut otherwise"
            )
    return "wordpiece" if lower else "wordpiece-cased"


#: Settings of a tokenizer that change how words are cut.
_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def plan_of(config: Mapping[str, Any], streams: tuple[str, ...] = (TEXT,)) -> Plan:
    """A single stream of the configuration's size."""
    plan = single_stream(
        streams,
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        dropout=config["hidden_dropout_prob"],
    )
    return replace(plan, epsilon=config["layer_norm_eps"])


def shaped(plan: Plan, like: Plan) -> Plan:
    """``plan`` with the settings of ``like`` that the family leaves open."""
    return replace(plan, hidden=like.hidden, dropout=like.dropout, epsilon=like.epsilon)


def config_of(recipe: Recipe, stream: str) -> dict[str, Any]:
    """What the configurations of BERT's descendants have in common.

    Raises:
        ValueError: the text is embedded otherwise than there.
    """
    text = recipe.modalities[stream]
    assert isinstance(text, Text)
    plain = text.segments > 1 and not (text.languages or text.offset or text.looks_at)
    plain = plain and not (text.constant or text.words_of or text.scaled)
    require(plain, "text is embedded otherwise than as tokens, positions and segments")
    return {**sizes(recipe, stream), "type_vocab_size": text.segments}


def sizes(recipe: Recipe, stream: str) -> dict[str, Any]:
    """What the configurations of BERT's and RoBERTa's descendants have in common."""
    text, plan = recipe.modalities[stream], recipe.plan
    assert isinstance(text, Text)
    return {
        "vocab_size": text.predictable()["token"].dim,
        "hidden_size": plan.widths[stream],
        "num_attention_heads": plan.heads,
        "intermediate_size": plan.hidden,
        "hidden_act": plan.activation,
        "hidden_dropout_prob": plan.dropout,
        "attention_probs_dropout_prob": plan.dropout,
        "max_position_embeddings": text.positions or text.offset + text.limit,
        "layer_norm_eps": plan.epsilon,
    }


def first(
    recipe: Recipe, kind: type[Objective] | tuple[type[Objective], ...], fits: Any
) -> str | None:
    """Name of the first objective of a kind (or several) that fits, or None."""
    names: Iterable[str] = (
        n for n, o in recipe.objectives.items() if isinstance(o, kind) and fits(o)
    )
    return next(iter(names), None)


def embedding(stream: str, theirs: str) -> list[Rule]:
    """Tables of words, positions and segments, and their norm."""
    ours = f"embed.{stream}"
    return [
        same(f"{ours}.token.weight", f"{theirs}.word_embeddings.weight"),
        same(f"{ours}.position.weight", f"{theirs}.position_embeddings.weight"),
        same(f"{ours}.segment.weight", f"{theirs}.token_type_embeddings.weight"),
        *both(f"{ours}.norm", f"{theirs}.LayerNorm"),
    ]


def block(number: int, place: int, part: str, owner: str) -> str:
    """Name of a block's part: ``query``, ``keyvalue``, ``output``, ``up``, ``down``, ``norm``."""
    return f"fusion.layers.{number}.blocks.{place}.{part}.{owner}"


def attend(number: int, place: int, owner: str, inside: str, output: str) -> list[Rule]:
    """An attention block, from the module of queries, keys and values and that of its output."""
    ours = block(number, place, "keyvalue", owner)
    rules = [
        joined(f"{ours}.{kind}", [f"{inside}.{part}.{kind}" for part in ("key", "value")])
        for kind in ("weight", "bias")
    ]
    return [
        *both(block(number, place, "query", owner), f"{inside}.query"),
        *rules,
        *both(block(number, place, "output", owner), f"{output}.dense"),
        *both(block(number, place, "norm", owner), f"{output}.LayerNorm"),
    ]


def feed(number: int, place: int, owner: str, inside: str, output: str) -> list[Rule]:
    """A feed-forward block."""
    return [
        *both(block(number, place, "up", owner), f"{inside}.dense"),
        *both(block(number, place, "down", owner), f"{output}.dense"),
        *both(block(number, place, "norm", owner), f"{output}.LayerNorm"),
    ]


def layer(number: int, owner: str, theirs: str) -> list[Rule]:
    """Self-attention and feed-forward."""
    return [
        *attend(number, 0, owner, f"{theirs}.attention.self", f"{theirs}.attention.output"),
        *feed(number, 1, owner, f"{theirs}.intermediate", f"{theirs}.output"),
    ]


def transform(head: str, theirs: str) -> list[Rule]:
    """The layer and norm before a decoder."""
    ours = f"heads.{head}.transform"
    return [*both(f"{ours}.0", f"{theirs}.dense"), *both(f"{ours}.2", f"{theirs}.LayerNorm")]


def prediction(head: str) -> list[Rule]:
    """The head on hidden words; its matrix is the table of words."""
    rules = transform(head, "cls.predictions.transform")
    return [*rules, same(f"heads.{head}.bias", "cls.predictions.bias")]


def flipped(ours: str, theirs: str) -> Rule:
    """Rows in the other order."""
    return Rule((ours,), (theirs,), lambda x: [x[0].flip(0)], lambda x: [x[0].flip(0)])
