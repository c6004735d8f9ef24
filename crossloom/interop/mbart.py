"""mBART as ``transformers`` keeps it (``modeling_mbart.py``: ``MBartForConditionalGeneration``).

Encoder and decoder share one table of words and nothing else of their embeddings
(``Text.words_of``); layers norm first, and each side has a last norm. What is read ends with its
language, what is said begins with it. The head's bias, which the library keeps but never trains,
is a parameter here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Texts
from crossloom.interop.bert import block, first, require
from crossloom.interop.rules import Rule, both, joined, read_all, same, wrapped, write_all
from crossloom.interop.towers import ACTIVATIONS, activation
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.generate import Generate
from crossloom.objectives.presets import MBART, denoise
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("mbart",)
TEXT, TARGET = "text", "target"
#: What ``config.json`` may leave out (``configuration_mbart.py``).
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "scale_embedding": False,
    "tie_word_embeddings": True,
}
#: Published (arXiv 2001.08210, section 2.2).
OPTIM = Optim(rate=3e-4, betas=(0.9, 0.98), epsilon=1e-6)
#: Rows of the position tables before the first position.
_OFFSET = 2
_EPSILON = 1e-5


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and an ``MBartForConditionalGeneration``'s state.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    config = {**DEFAULTS, **config}
    if str(config.get("tokenizer_class", "")).startswith("MBart50"):
        raise ValueError(
            "config.json: tokenizer_class: MBart50Tokenizer (52 languages, whose token comes first "
            "on both sides) is not known here, only mBART's, of 25"
        )
    if "final_logits_bias" not in weights:
        raise ValueError(
            "weights: no 'final_logits_bias'; of mBART an MBartForConditionalGeneration is read, "
            "and what has no such head is made one by "
            "transformers.MBartForConditionalGeneration.from_pretrained(DIR).save_pretrained(DIR)"
        )
    for part in ("ffn_dim", "attention_heads"):
        if config[f"encoder_{part}"] != config[f"decoder_{part}"]:
            raise ValueError(f"config.json: {part} differs between encoder and decoder")
    if not config["tie_word_embeddings"]:
        raise ValueError("config.json: tie_word_embeddings: false is not known here, only true")
    vocabulary = folder / "sentencepiece.bpe.model"
    text = Text(
        vocabulary=str(vocabulary.resolve()) if vocabulary.is_file() else vocabulary.name,
        layout="mbart",
        size=config["vocab_size"],
        limit=config["max_position_embeddings"],
        offset=_OFFSET,
        scaled=config["scale_embedding"],
        sentences=True,
        dropout=config["dropout"],
    )
    objective = replace(denoise(TEXT, TARGET, hide=MBART), transform=False)
    plan = encoder_decoder(
        TEXT,
        TARGET,
        layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        width=config["d_model"],
        heads=config["encoder_attention_heads"],
        hidden=config["encoder_ffn_dim"],
        norm="pre",
        dropout=config["dropout"],
    )
    kind = activation({"hidden_act": config["activation_function"]})
    found = Recipe(
        name="mbart",
        data="shards",
        modalities={
            TEXT: text,
            TARGET: replace(text, field=TARGET, sign="first", words_of=TEXT),
        },
        plan=replace(plan, epsilon=_EPSILON, activation=kind),  # type: ignore[arg-type]
        objectives={"denoise": objective},
        mixture={
            "text": Component(
                shards="train-*.tar", reader=Texts(copies=(TARGET,)), objectives=("denoise",)
            )
        },
        steps=500_000,
        examples=1024,
        optim=OPTIM,
        schedule=Schedule(shape="linear", warmup=0.02),
    )
    return found, read_all(_rules(found), weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of an ``MBartForConditionalGeneration``.

    Raises:
        ValueError: the recipe's model is not one of mBART's.
    """
    source, target, _ = _parts(recipe)
    text, said, plan = recipe.modalities[source], recipe.modalities[target], recipe.plan
    assert isinstance(text, Text)
    assert isinstance(said, Text)
    encoder, decoder = _depths(plan, source)
    wanted = encoder_decoder(
        source, target, layers=encoder, decoder_layers=decoder, width=plan.widths[source],
        heads=plan.heads, hidden=plan.hidden, norm="pre", dropout=plan.dropout,
    )  # fmt: skip
    require(plan == replace(wanted, epsilon=_EPSILON, activation=plan.activation),
            "its layers are not those of mBART, or their epsilon is not 1e-5")  # fmt: skip
    alike = replace(
        text, field=said.field, vocabulary=said.vocabulary, sign="first", words_of=source
    )
    require(said == alike, f"{target}: differs from {source} in more than field, sign and words_of")
    others = text.segments > 1 or text.constant or text.languages or text.looks_at or text.marked
    require(not others and text.norm and text.offset == _OFFSET,
            f"{source}: is embedded otherwise than as tokens and positions from row 2")  # fmt: skip
    names = {v: k for k, v in ACTIVATIONS.items()}
    sides = {
        f"{side}_{part}": value
        for side in ("encoder", "decoder")
        for part, value in (("ffn_dim", plan.hidden), ("attention_heads", plan.heads))
    }
    config = {
        "model_type": "mbart",
        "architectures": ["MBartForConditionalGeneration"],
        "vocab_size": text.predictable()["token"].dim,
        "max_position_embeddings": (text.positions or text.offset + text.limit) - _OFFSET,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        **sides,
        "activation_function": names[plan.activation],
        "d_model": plan.widths[source],
        "dropout": plan.dropout,
        "attention_dropout": plan.dropout,
        "scale_embedding": text.scaled,
    }
    return config, write_all(_rules(recipe), weights)


def _parts(recipe: Recipe) -> tuple[str, str, str]:
    """What is read, what is said, and the objective that says it.

    Raises:
        ValueError: the recipe is not of such parts.
    """

    def fits(objective: Generate) -> bool:
        said = recipe.modalities[objective.stream]
        return isinstance(said, Text) and objective.tied and not objective.transform

    head = first(recipe, Generate, fits)
    require(head is not None, "no objective says a text with a tied head without transform")
    assert head is not None
    target = recipe.objectives[head].stream  # type: ignore[attr-defined]
    texts = [s for s, m in recipe.modalities.items() if isinstance(m, Text) and s != target]
    require(len(texts) == 1 and len(recipe.modalities) == 2, "it has not two texts, and no more")
    return texts[0], target, head


def _depths(plan: Plan, source: str) -> tuple[int, int]:
    """Number of layers of the source, and of the others."""
    encoder = sum(source in layer.blocks[0].changes for layer in plan.layers)
    return encoder, len(plan.layers) - encoder


def _rules(recipe: Recipe) -> list[Rule]:
    source, target, head = _parts(recipe)
    encoder, decoder = _depths(recipe.plan, source)
    rules = [
        same(f"embed.{source}.token.weight", "model.shared.weight"),
        wrapped(f"heads.{head}.bias", "final_logits_bias"),
    ]
    for stream, theirs in ((source, "model.encoder"), (target, "model.decoder")):
        ours = f"embed.{stream}"
        rules.append(same(f"{ours}.position.weight", f"{theirs}.embed_positions.weight"))
        rules += both(f"{ours}.norm", f"{theirs}.layernorm_embedding")
        rules += both(f"fusion.last.{stream}", f"{theirs}.layer_norm")
    for n in range(encoder):
        theirs = f"model.encoder.layers.{n}"
        rules += _attend(n, 0, source, source, f"{theirs}.self_attn")
        rules += _feed(n, 1, source, theirs)
    for n in range(decoder):
        theirs, number = f"model.decoder.layers.{n}", encoder + n
        rules += _attend(number, 0, target, target, f"{theirs}.self_attn")
        rules += _attend(number, 1, target, source, f"{theirs}.encoder_attn")
        rules += _feed(number, 2, target, theirs)
    return rules


def _attend(number: int, place: int, reader: str, read: str, theirs: str) -> list[Rule]:
    pairs = [
        joined(
            f"{block(number, place, 'keyvalue', read)}.{kind}",
            [f"{theirs}.{part}_proj.{kind}" for part in "kv"],
        )
        for kind in ("weight", "bias")
    ]
    return [
        *pairs,
        *both(block(number, place, "query", reader), f"{theirs}.q_proj"),
        *both(block(number, place, "output", reader), f"{theirs}.out_proj"),
        *both(block(number, place, "norm", reader), f"{theirs}_layer_norm"),
    ]


def _feed(number: int, place: int, stream: str, theirs: str) -> list[Rule]:
    return [
        *both(block(number, place, "up", stream), f"{theirs}.fc1"),
        *both(block(number, place, "down", stream), f"{theirs}.fc2"),
        *both(block(number, place, "norm", stream), f"{theirs}.final_layer_norm"),
    ]
