"""ViLT as ``transformers`` keeps it (``modeling_vilt.py``: ``ViltModel``, ``ViltForMaskedLM``).

Pictures are square here and none of their patches are left out; the reference scales the position
table to pictures of other shapes. The library has no head for matching with two classes: its pooler
is read into the matching objective, whose last layer starts afresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.data_pipelines.read import Texts
from crossloom.interop import bert
from crossloom.interop.rules import (
    Rule,
    both,
    joined,
    pixels,
    read_all,
    same,
    stacked,
    wrapped,
    write_all,
)
from crossloom.interop.towers import IMAGE, TEXT, ours, require, statistics
from crossloom.modalities.patches import Patches
from crossloom.modalities.text import Text
from crossloom.models.plan import Attend, Plan
from crossloom.models.presets import single_stream
from crossloom.models.start import Site, sites
from crossloom.objectives.match import Match
from crossloom.objectives.presets import BERT, itm, mlm, whole_word
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

MODEL_TYPES = ("vilt",)
#: What ``config.json`` may leave out (``configuration_vilt.py``).
_CONFIG = {"vocab_size": 30522, "type_vocab_size": 2, "modality_type_vocab_size": 2,
           "max_position_embeddings": 40, "hidden_size": 768, "num_hidden_layers": 12,
           "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
           "hidden_dropout_prob": 0.0, "layer_norm_eps": 1e-12, "image_size": 384,
           "patch_size": 32, "qkv_bias": True}  # fmt: skip
HALF = (0.5, 0.5, 0.5)
STREAMS = (TEXT, IMAGE)


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of a ViLT of any head.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    c = {**_CONFIG, **config}
    if not c["qkv_bias"]:
        raise ValueError("config.json: qkv_bias is false; attention has biases here")
    if c["modality_type_vocab_size"] != 2:
        raise ValueError(
            "config.json: modality_type_vocab_size: a third type (two pictures, NLVR2) is not read"
        )
    if c["hidden_act"] != "gelu":  # the masked-language head uses it too
        raise ValueError(f"config.json: hidden_act {c['hidden_act']!r}; gelu is known")
    text = replace(bert.text_of(c, folder), marked=True)
    image = Patches(
        size=c["image_size"], patch=c["patch_size"], norm=False, marked=True,
        mean=HALF, deviation=HALF, dropout=c["hidden_dropout_prob"],
    )  # fmt: skip
    image = statistics(folder, image)
    plan = replace(
        single_stream(
            STREAMS,
            layers=c["num_hidden_layers"],
            width=c["hidden_size"],
            heads=c["num_attention_heads"],
            hidden=c["intermediate_size"],
            norm="pre",
            dropout=c["hidden_dropout_prob"],
        ),
        last="shared",
        activation="gelu",
        epsilon=c["layer_norm_eps"],
    )
    at = "vilt." if any(n.startswith("vilt.") for n in weights) else ""
    objectives: dict[str, Any] = {}
    if "mlm_score.transform.dense.weight" in weights:
        objectives["mlm"] = whole_word(mlm(STREAMS, hide=BERT))
    if f"{at}pooler.dense.weight" in weights:
        objectives["itm"] = itm(STREAMS)
    mixture = {
        "pairs": Component(shards="train-*.tar", reader=Texts(), objectives=tuple(objectives))
    }
    found = Recipe(
        name="vilt",
        data="shards",
        modalities={TEXT: text, IMAGE: image},
        plan=plan,
        objectives=objectives,
        mixture=mixture,
        steps=100_000,
        examples=64,
        # section 4.2 of the paper (arXiv 2102.03334)
        optim=Optim(rate=1e-4, betas=(0.9, 0.98), epsilon=1e-8, decay=0.01),
        schedule=Schedule(warmup=0.1),
    )
    rules = _rules(found, plan, at, image.patch)
    return found, read_all(rules, weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of a ``ViltForMaskedLM``, or of a ``ViltModel`` without MLM.

    Raises:
        ValueError: the recipe's model is not one of ViLT's.
    """
    plan = recipe.plan
    text, image = recipe.modalities.get(TEXT), recipe.modalities.get(IMAGE)
    require(isinstance(text, Text) and isinstance(image, Patches) and len(recipe.modalities) == 2,
            "its streams are not text and image, of text and patches")  # fmt: skip
    assert isinstance(text, Text)
    assert isinstance(image, Patches)
    require(plan.norm == "pre" and plan.last == "shared", "plan: it needs norm pre, last shared")
    require(plan.activation == "gelu", f"plan.activation is {plan.activation}")
    for site in sites(plan, TEXT):
        require(site.block.shared, "plan: its streams do not share weights")
        if isinstance(site.block, Attend):
            require(set(site.read) == set(STREAMS), "plan: text does not read both streams")
            require(not site.block.causal, "plan: text is causal")
    require(text.norm and text.marked and not text.languages, "text: it needs norm and marked")
    require(image.marked and image.summary and image.affine and not image.norm,
            "image: it needs marked, summary and affine, and no norm")  # fmt: skip
    masked = _masked(recipe)
    config = {
        "model_type": "vilt",
        "architectures": ["ViltForMaskedLM" if masked else "ViltModel"],
        "vocab_size": len(weights[f"embed.{TEXT}.token.weight"]),
        "type_vocab_size": text.segments,
        "modality_type_vocab_size": 2,
        "max_position_embeddings": text.positions or text.limit,
        "hidden_size": plan.widths[TEXT],
        "num_hidden_layers": len(plan.layers),
        "num_attention_heads": plan.heads,
        "intermediate_size": plan.hidden,
        "hidden_act": "gelu",
        "hidden_dropout_prob": plan.dropout,
        "attention_probs_dropout_prob": plan.dropout,
        "layer_norm_eps": plan.epsilon,
        "image_size": image.size,
        "patch_size": image.patch,
        "qkv_bias": True,
    }
    rules = _rules(recipe, plan, "vilt." if masked else "", image.patch)
    out = write_all(rules, weights)
    if masked:  # tied: the library keeps it once, but looks for it under both names
        out["mlm_score.decoder.weight"] = weights[f"embed.{TEXT}.token.weight"].clone()
    return config, out


def _masked(recipe: Recipe) -> str:
    """Name of the objective that hides text, or ``""``."""
    return next(
        (
            name
            for name, o in recipe.objectives.items()
            if isinstance(o, Reconstruct) and o.stream == TEXT and o.target == "token" and o.tied
        ),
        "",
    )


def _rules(recipe: Recipe, plan: Plan, at: str, patch: int) -> list[Rule]:
    """Rules of the parts that the recipe has; ``at`` goes before the names of the backbone."""
    text, image = f"embed.{TEXT}", f"embed.{IMAGE}"
    theirs = f"{at}embeddings"
    words = f"{theirs}.text_embeddings"
    rules = [
        same(f"{text}.token.weight", f"{words}.word_embeddings.weight"),
        same(f"{text}.position.weight", f"{words}.position_embeddings.weight"),
        same(f"{text}.segment.weight", f"{words}.token_type_embeddings.weight"),
        *both(f"{text}.norm", f"{words}.LayerNorm"),
        stacked((f"{text}.mark", f"{image}.mark"), f"{theirs}.token_type_embeddings.weight"),
        wrapped(f"{image}.summary", f"{theirs}.cls_token", leading=2),
        pixels(f"{image}.pixels.weight", f"{theirs}.patch_embeddings.projection.weight", patch),
        same(f"{image}.pixels.bias", f"{theirs}.patch_embeddings.projection.bias"),
        wrapped(f"{image}.position.weight", f"{theirs}.position_embeddings"),
        *both("fusion.last.shared", f"{at}layernorm"),
    ]
    found = list(sites(plan, TEXT))
    for number, (attend, feed) in enumerate(zip(found[::2], found[1::2], strict=True)):
        rules += _layer(attend, feed, f"{at}encoder.layer.{number}")
    for name, objective in recipe.objectives.items():
        if isinstance(objective, Match) and objective.pooled == (TEXT,):
            rules += both(f"heads.{name}.pooler.dense.{TEXT}", f"{at}pooler.dense")
    if masked := _masked(recipe):
        head = f"heads.{masked}"
        rules += [
            *both(f"{head}.transform.0", "mlm_score.transform.dense"),
            *both(f"{head}.transform.2", "mlm_score.transform.LayerNorm"),
            same(f"{head}.bias", "mlm_score.decoder.bias"),
        ]
    return rules


def _layer(attend: Site, feed: Site, at: str) -> list[Rule]:
    rules = [
        *both(ours(attend, "norm"), f"{at}.layernorm_before"),
        *both(ours(attend, "query"), f"{at}.attention.attention.query"),
        *both(ours(attend, "output"), f"{at}.attention.output.dense"),
        *both(ours(feed, "norm"), f"{at}.layernorm_after"),
        *both(ours(feed, "up"), f"{at}.intermediate.dense"),
        *both(ours(feed, "down"), f"{at}.output.dense"),
    ]
    for kind in ("weight", "bias"):
        pair = [f"{at}.attention.attention.{x}.{kind}" for x in ("key", "value")]
        rules.append(joined(attend.name("keyvalue", kind), pair))
    return rules
