"""CLIP as ``open_clip`` keeps it (``open_clip/model.py``: ``CLIP`` with its own towers).

What is written loads with ``create_model_and_transforms("local-dir:DIR")``. Versions before 3 know
no ``local-dir:``; save ``model_cfg`` of the written configuration as ``NAME.json``, call
``add_model_config("NAME.json")`` and ``create_model_and_transforms(NAME, pretrained=WEIGHTS)``.
Towers of timm and text towers of a hub are other models: give them as ``Patches(tower=…)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.interop.clip import OPTIM, clip_contrast, clip_patches, clip_text, fits
from crossloom.interop.rules import (
    Rule,
    both,
    parted,
    pixels,
    read_all,
    same,
    scalar,
    turned,
    write_all,
)
from crossloom.interop.towers import (
    IMAGE,
    TEXT,
    Parts,
    layers,
    ours,
    parts_of,
    recipe,
    require,
    tower,
)
from crossloom.models.plan import Plan
from crossloom.models.presets import Tower, towers
from crossloom.models.start import Site
from crossloom.training.recipe import Recipe

MODEL_TYPES = ("open_clip",)
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
#: What the configuration may leave out (``CLIPVisionCfg``, ``CLIPTextCfg``).
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
           "image_size": 224}  # fmt: skip
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
         "mlp_ratio": 4.0, "pool_type": "argmax"}  # fmt: skip
_EPSILON = 1e-5


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``open_clip_config.json`` and the state of a ``CLIP``.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    c = config["model_cfg"]
    text, vision = {**_TEXT, **c["text_cfg"]}, {**_VISION, **c["vision_cfg"]}
    for part, known, found in (("text_cfg", _TEXT, text), ("vision_cfg", _VISION, vision)):
        strange = [k for k, v in found.items() if k not in (*known, "norm_kwargs") and v]
        if strange:
            raise ValueError(f"open_clip_config.json: {part}.{strange[0]} has no counterpart here")
    if text["pool_type"] != "argmax":
        raise ValueError(f"open_clip_config.json: text_cfg.pool_type {text['pool_type']!r}")
    epsilon = {(part.get("norm_kwargs") or {}).get("eps", _EPSILON) for part in (text, vision)}
    if len(epsilon) > 1:
        raise ValueError("open_clip_config.json: norm_kwargs.eps differs between the towers")
    plan = towers(
        {
            TEXT: _size(text, text["heads"]),
            IMAGE: _size(vision, vision["width"] // vision["head_width"]),
        },
        causal=(TEXT,),
        activation="quick_gelu" if c.get("quick_gelu") else "gelu",
        epsilon=epsilon.pop(),
    )
    patches = clip_patches(vision["image_size"], vision["patch_size"])
    given = config.get("preprocess_cfg") or {}
    patches = replace(
        patches,
        mean=tuple(given.get("mean", patches.mean)),
        deviation=tuple(given.get("std", patches.deviation)),
    )
    found_recipe = recipe(
        "open-clip",
        clip_text(text["vocab_size"], text["context_length"]),
        patches,
        plan,
        clip_contrast(c["embed_dim"]),
        OPTIM,
    )
    return found_recipe, read_all(_rules(parts_of(found_recipe), plan), weights)


def _size(config: Mapping[str, Any], heads: int) -> Tower:
    width = config["width"]
    return Tower(
        layers=config["layers"], width=width, heads=heads, hidden=int(width * config["mlp_ratio"])
    )


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``open_clip_config.json`` and the state of a ``CLIP``.

    Raises:
        ValueError: the recipe's model is not one of CLIP's.
    """
    found, plan = parts_of(recipe), recipe.plan
    fits(found, plan)
    require(plan.activation in ("gelu", "quick_gelu"), f"plan.activation is {plan.activation}")
    norm = {} if plan.epsilon == _EPSILON else {"norm_kwargs": {"eps": plan.epsilon}}
    text, vision = (tower(plan, s)[0] for s in (found.texts, found.images))
    for size in (text, vision):
        require(int(size.width * (size.hidden / size.width)) == size.hidden,
                f"hidden {size.hidden} is no multiple of width {size.width}")  # fmt: skip

    def common(size: Tower) -> dict[str, Any]:
        return {
            "layers": size.layers,
            "width": size.width,
            "mlp_ratio": size.hidden / size.width,
            **norm,
        }

    image = found.image
    config = {
        "model_cfg": {
            "embed_dim": found.contrast.dim,
            "quick_gelu": plan.activation == "quick_gelu",
            "vision_cfg": {
                **common(vision),
                "head_width": vision.width // vision.heads,
                "image_size": image.size,
                "patch_size": image.patch,
            },
            "text_cfg": {
                **common(text),
                "heads": text.heads,
                "context_length": found.text.positions or found.text.limit,
                "vocab_size": len(weights[f"embed.{found.texts}.token.weight"]),
            },
        },
        "preprocess_cfg": {
            "mean": list(image.mean),
            "std": list(image.deviation),
            "resize_mode": "squash",
            "interpolation": "bilinear",
        },
    }
    return config, write_all(_rules(found, plan), weights)


def _rules(found: Parts, plan: Plan) -> list[Rule]:
    text, image, head = f"embed.{found.texts}", f"embed.{found.images}", f"heads.{found.head}"
    return [
        same(f"{text}.token.weight", "token_embedding.weight"),
        same(f"{text}.position.weight", "positional_embedding"),
        *layers(plan, found.texts, lambda a, f, n: _layer(a, f, f"transformer.resblocks.{n}")),
        *both(f"fusion.last.{found.texts}", "ln_final"),
        turned(f"{head}.project.{found.texts}.weight", "text_projection"),
        same(f"{image}.summary", "visual.class_embedding"),
        pixels(f"{image}.pixels.weight", "visual.conv1.weight", found.image.patch),
        same(f"{image}.position.weight", "visual.positional_embedding"),
        *both(f"{image}.norm", "visual.ln_pre"),
        *layers(
            plan, found.images, lambda a, f, n: _layer(a, f, f"visual.transformer.resblocks.{n}")
        ),
        *both(f"fusion.last.{found.images}", "visual.ln_post"),
        turned(f"{head}.project.{found.images}.weight", "visual.proj"),
        scalar(f"{head}.scale", "logit_scale"),
    ]


def _layer(attend: Site, feed: Site, at: str) -> list[Rule]:
    pairs = [
        parted(
            [attend.name("query", kind), attend.name("keyvalue", kind)],
            f"{at}.attn.in_proj_{kind}",
            (1, 2),
        )
        for kind in ("weight", "bias")
    ]
    return [
        *both(ours(attend, "norm"), f"{at}.ln_1"),
        *pairs,
        *both(ours(attend, "output"), f"{at}.attn.out_proj"),
        *both(ours(feed, "norm"), f"{at}.ln_2"),
        *both(ours(feed, "up"), f"{at}.mlp.c_fc"),
        *both(ours(feed, "down"), f"{at}.mlp.c_proj"),
    ]
