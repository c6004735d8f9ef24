"""CLIP as ``transformers`` keeps it (``modeling_clip.py``: ``CLIPModel``).

Read is the model with both towers; its preprocessing (shorter side resized, centre cropped) differs
from the recipe's, which squeezes the whole picture to the square: give square pictures where the
last tenth of a per cent matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.interop.rules import Rule, both, pixels, read_all, same, scalar, write_all
from crossloom.interop.towers import (
    ACTIVATIONS,
    IMAGE,
    TEXT,
    Parts,
    activation,
    layers,
    parts_of,
    preprocessing,
    projected,
    recipe,
    require,
    statistics,
    tower,
)
from crossloom.modalities.byte_pairs import BytePairs
from crossloom.modalities.patches import CLIP_DEVIATION, CLIP_MEAN, Patches
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import Tower, towers
from crossloom.objectives.contrast import Contrast
from crossloom.objectives.presets import itc
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe

MODEL_TYPES = ("clip",)
#: What ``config.json`` may leave out (``configuration_clip.py``).
_BOTH = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_TEXT = {**_BOTH, "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048,
         "num_attention_heads": 8, "max_position_embeddings": 77}  # fmt: skip
_VISION = {**_BOTH, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
           "image_size": 224, "patch_size": 32}  # fmt: skip
#: Section 2.5 of the paper (arXiv 2103.00020) and tables 18 and 20: the vision transformers'
#: values; nothing is said of cutting gradients, nor does ``open_clip`` cut them unless asked.
OPTIM = Optim(rate=5e-4, betas=(0.9, 0.98), epsilon=1e-6, decay=0.2, clip=0.0)


def size(config: Mapping[str, Any]) -> Tower:
    """A tower's size, from its part of ``config.json``."""
    return Tower(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
    )


def clip_text(vocabulary: int, limit: int) -> Text:
    """CLIP's text: no norm over the embedding, and none of the vocabulary's files needed."""
    return Text(vocabulary="", layout="clip", size=vocabulary, limit=limit, norm=False, dropout=0.0)


def clip_patches(side: int, patch: int) -> Patches:
    """CLIP's patches: a class token, positions, and the norm before the Transformer."""
    return Patches(size=side, patch=patch, affine=False, mean=CLIP_MEAN, deviation=CLIP_DEVIATION)


def clip_contrast(dim: int) -> Contrast:
    """CLIP's objective: the text's last unit against the picture's class token."""
    return replace(itc(dim=dim), pools={TEXT: "last"})


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of a ``CLIPModel``.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    text = {**_TEXT, **config.get("text_config", {})}
    vision = {**_VISION, **config.get("vision_config", {})}
    if text["layer_norm_eps"] != vision["layer_norm_eps"]:
        raise ValueError("config.json: layer_norm_eps differs between the towers")
    plan = towers(
        {TEXT: size(text), IMAGE: size(vision)},
        causal=(TEXT,),
        activation=activation(text, vision),  # type: ignore[arg-type]
        epsilon=text["layer_norm_eps"],
    )
    found = recipe(
        "clip",
        clip_text(text["vocab_size"], text["max_position_embeddings"]),
        statistics(folder, clip_patches(vision["image_size"], vision["patch_size"])),
        plan,
        clip_contrast(config.get("projection_dim", 512)),
        OPTIM,
    )
    return found, read_all(_rules(parts_of(found), plan), weights)


def fits(found: Parts, plan: Plan) -> None:
    """Check that the parts are CLIP's.

    Raises:
        ValueError: they are not; says why.
    """
    contrast, image = found.contrast, found.image
    pools = {s: contrast.pools.get(s, contrast.pool) for s in contrast.pair}
    require(contrast.form == "softmax", f"{found.head}: its form is not softmax")
    require(found.text.layout == "clip", f"{found.texts}: it is not in CLIP's vocabulary, by whose "
            "last word text is pooled there")  # fmt: skip
    require(pools[found.texts] == "last", f"{found.head}: text is not pooled at its last unit")
    require(pools[found.images] == "first", f"{found.head}: the image not at its class token")
    require(set(contrast.projections.values()) <= {"linear"}, f"{found.head}: projections")
    require(image.summary and image.norm and not image.affine and not image.marked,
            f"{found.images}: it needs summary and norm, and no affine")  # fmt: skip
    require(tower(plan, found.texts)[2], f"{found.texts}: it is not causal")
    require(not tower(plan, found.images)[2], f"{found.images}: it is causal")


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of a ``CLIPModel``.

    Raises:
        ValueError: the recipe's model is not one of CLIP's.
    """
    found, plan = parts_of(recipe), recipe.plan
    fits(found, plan)
    names = {v: k for k, v in ACTIVATIONS.items()}

    def common(stream: str) -> dict[str, Any]:
        tall = tower(plan, stream)[0]
        return {
            "hidden_size": tall.width,
            "intermediate_size": tall.hidden,
            "num_hidden_layers": tall.layers,
            "num_attention_heads": tall.heads,
            "hidden_act": names[plan.activation],
            "layer_norm_eps": plan.epsilon,
            "attention_dropout": plan.dropout,
            "projection_dim": found.contrast.dim,
        }

    vocabulary = len(weights[f"embed.{found.texts}.token.weight"])
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": found.contrast.dim,
        "text_config": {
            **common(found.texts),
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "max_position_embeddings": found.text.positions or found.text.limit,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        "vision_config": {
            **common(found.images),
            "model_type": "clip_vision_model",
            "image_size": found.image.size,
            "patch_size": found.image.patch,
        },
    }
    return config, write_all(_rules(found, plan), weights)


def files(recipe: Recipe) -> dict[str, str]:
    """What ``CLIPProcessor.from_pretrained`` wants beside the model."""
    found = parts_of(recipe)
    out = {"preprocessor_config.json": preprocessing(found.image, "CLIPImageProcessor")}
    if found.text.layout == "clip":
        vocabulary = BytePairs()
        if found.text.size in (0, vocabulary.size):
            named = ["<|startoftext|>", "<|endoftext|>"]
            pieces = [*vocabulary.pieces[:-2], *named]
            tokenizer = {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": found.text.limit,
                "bos_token": named[0],
                "eos_token": named[1],
                "pad_token": named[1],
                "unk_token": named[1],
            }
            out["vocab.json"] = json.dumps({p: n for n, p in enumerate(pieces)}, ensure_ascii=False)
            out["merges.txt"] = "\n".join(["#version: 0.2", *vocabulary.merges]) + "\n"
            out["tokenizer_config.json"] = json.dumps(tokenizer, indent=2) + "\n"
    return out


def _rules(found: Parts, plan: Plan) -> list[Rule]:
    text, image, head = f"embed.{found.texts}", f"embed.{found.images}", f"heads.{found.head}"
    vision = "vision_model.embeddings"
    return [
        same(f"{text}.token.weight", "text_model.embeddings.token_embedding.weight"),
        same(f"{text}.position.weight", "text_model.embeddings.position_embedding.weight"),
        *layers(plan, found.texts, projected("text_model.encoder.layers")),
        *both(f"fusion.last.{found.texts}", "text_model.final_layer_norm"),
        same(f"{image}.summary", f"{vision}.class_embedding"),
        pixels(f"{image}.pixels.weight", f"{vision}.patch_embedding.weight", found.image.patch),
        same(f"{image}.position.weight", f"{vision}.position_embedding.weight"),
        # spelt so by the library
        *both(f"{image}.norm", "vision_model.pre_layrnorm"),
        *layers(plan, found.images, projected("vision_model.encoder.layers")),
        *both(f"fusion.last.{found.images}", "vision_model.post_layernorm"),
        same(f"{head}.project.{found.texts}.weight", "text_projection.weight"),
        same(f"{head}.project.{found.images}.weight", "visual_projection.weight"),
        scalar(f"{head}.scale", "logit_scale"),
    ]
