"""SigLIP as ``transformers`` keeps it (``modeling_siglip.py``: ``SiglipModel``).

Its text tower reads the ``<pad>`` units that fill every text up to 64: they are units here too
(``Text.filled``), not padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from crossloom.interop.clip import size
from crossloom.interop.rules import Rule, both, parted, pixels, read_all, same, wrapped, write_all
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
from crossloom.modalities.patches import Patches
from crossloom.modalities.text import Text
from crossloom.models.plan import Plan
from crossloom.models.presets import towers
from crossloom.objectives.contrast import Contrast
from crossloom.objectives.pool import Probe
from crossloom.objectives.view import View
from crossloom.training.optim import Optim
from crossloom.training.recipe import Recipe

MODEL_TYPES = ("siglip",)
#: What ``config.json`` may leave out (``configuration_siglip.py``).
_BOTH = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "hidden_size": 768,
         "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}  # fmt: skip
_TEXT = {**_BOTH, "vocab_size": 32000, "max_position_embeddings": 64}
_VISION = {**_BOTH, "image_size": 224, "patch_size": 16}
#: Section 4 of the paper (arXiv 2303.15343): a lower second beta for large batches.
OPTIM = Optim(rate=1e-3, betas=(0.9, 0.95), decay=1e-4)
HALF = (0.5, 0.5, 0.5)


def siglip_text(ids: int, limit: int, vocabulary: str = "") -> Text:
    """SigLIP's text: filled up to the limit, and no norm over the embedding.

    Args:
        ids: size of the vocabulary.
        limit: units of every text.
        vocabulary: its ``spiece.model``, if it is at hand.
    """
    return Text(
        vocabulary=vocabulary, layout="siglip", size=ids, limit=limit, filled=True, norm=False,
        dropout=0.0,
    )  # fmt: skip


def siglip_patches(side: int, patch: int) -> Patches:
    """SigLIP's patches: positions, but neither a class token nor a norm."""
    return Patches(size=side, patch=patch, summary=False, norm=False, mean=HALF, deviation=HALF)


def siglip_contrast(dim: int, probe: Probe) -> Contrast:
    """SigLIP's objective: the text's last unit against what a probe reads of the picture."""
    return Contrast(
        view=View(name="itc", streams=(TEXT, IMAGE), apart=True),
        pair=(TEXT, IMAGE),
        form="sigmoid",
        dim=dim,
        pools={TEXT: "last", IMAGE: probe},
        projections={TEXT: "affine", IMAGE: "none"},
        temperature=0.1,
    )


def read(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path
) -> tuple[Recipe, dict[str, Tensor]]:
    """A recipe and weights from ``config.json`` and the state of a ``SiglipModel``.

    Raises:
        ValueError: something in it has no counterpart here.
    """
    text = {**_TEXT, **config.get("text_config", {})}
    vision = {**_VISION, **config.get("vision_config", {})}
    if text["layer_norm_eps"] != vision["layer_norm_eps"]:
        raise ValueError("config.json: layer_norm_eps differs between the towers")
    if not vision.get("vision_use_head", True):
        raise ValueError("config.json: vision_use_head is false: there is no pooled image to match")
    kind = activation(text, vision)
    plan = towers(
        {TEXT: size(text), IMAGE: size(vision)},
        activation=kind,  # type: ignore[arg-type]
        epsilon=text["layer_norm_eps"],
    )
    if kind not in ("gelu", "gelu_tanh"):
        raise ValueError(f"config.json: hidden_act {kind}: the pooling knows GELU only")
    probe = Probe(
        heads=vision["num_attention_heads"],
        hidden=vision["intermediate_size"],
        exact=kind == "gelu",
    )
    vocabulary = folder / "spiece.model"
    found = recipe(
        "siglip",
        siglip_text(
            text["vocab_size"],
            text["max_position_embeddings"],
            str(vocabulary) if vocabulary.is_file() else "",
        ),
        statistics(folder, siglip_patches(vision["image_size"], vision["patch_size"])),
        plan,
        siglip_contrast(text.get("projection_size") or text["hidden_size"], probe),
        OPTIM,
    )
    return found, read_all(_rules(parts_of(found), plan), weights)


def write(
    recipe: Recipe, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and the state of a ``SiglipModel``.

    Raises:
        ValueError: the recipe's model is not one of SigLIP's.
    """
    found, plan = parts_of(recipe), recipe.plan
    contrast, image = found.contrast, found.image
    pools = {s: contrast.pools.get(s, contrast.pool) for s in contrast.pair}
    probe = pools[found.images]
    require(contrast.form == "sigmoid", f"{found.head}: its form is not sigmoid")
    require(pools[found.texts] == "last", f"{found.head}: text is not pooled at its last unit")
    require(isinstance(probe, Probe), f"{found.head}: no probe pools the image")
    wanted = {found.texts: "affine", found.images: "none"}
    require(dict(contrast.projections) == wanted, f"{found.head}: projections are not {wanted}")
    require(not image.summary and not image.norm and image.affine and not image.marked,
            f"{found.images}: it needs affine, and neither summary nor norm")  # fmt: skip
    require(found.text.filled, f"{found.texts}: it is not filled up with <pad>")
    require(not tower(plan, found.texts)[2] and not tower(plan, found.images)[2],
            "a tower is causal")  # fmt: skip
    tall = tower(plan, found.images)[0]
    same_probe = Probe(heads=tall.heads, hidden=tall.hidden, exact=plan.activation == "gelu")
    require(probe == same_probe, f"{found.head}: the probe differs in size from the image's layers")
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
        }

    config = {
        "model_type": "siglip",
        "architectures": ["SiglipModel"],
        "text_config": {
            **common(found.texts),
            "model_type": "siglip_text_model",
            "vocab_size": len(weights[f"embed.{found.texts}.token.weight"]),
            "max_position_embeddings": found.text.positions or found.text.limit,
            "projection_size": contrast.dim,
        },
        "vision_config": {
            **common(found.images),
            "model_type": "siglip_vision_model",
            "image_size": image.size,
            "patch_size": image.patch,
        },
    }
    return config, write_all(_rules(found, plan), weights)


def files(recipe: Recipe) -> dict[str, str]:
    """What ``SiglipImageProcessor.from_pretrained`` wants beside the model."""
    image = parts_of(recipe).image
    return {"preprocessor_config.json": preprocessing(image, "SiglipImageProcessor")}


def _rules(found: Parts, plan: Plan) -> list[Rule]:
    text, image, head = f"embed.{found.texts}", f"embed.{found.images}", f"heads.{found.head}"
    vision = "vision_model.embeddings"
    return [
        same(f"{text}.token.weight", "text_model.embeddings.token_embedding.weight"),
        same(f"{text}.position.weight", "text_model.embeddings.position_embedding.weight"),
        *layers(plan, found.texts, projected("text_model.encoder.layers")),
        *both(f"fusion.last.{found.texts}", "text_model.final_layer_norm"),
        *both(f"{head}.project.{found.texts}", "text_model.head"),
        pixels(f"{image}.pixels.weight", f"{vision}.patch_embedding.weight", found.image.patch),
        same(f"{image}.pixels.bias", f"{vision}.patch_embedding.bias"),
        same(f"{image}.position.weight", f"{vision}.position_embedding.weight"),
        *layers(plan, found.images, projected("vision_model.encoder.layers")),
        *both(f"fusion.last.{found.images}", "vision_model.post_layernorm"),
        *_probe(f"{head}.summary.{found.images}.probe", "vision_model.head"),
        same(f"{head}.scale", "logit_scale"),
        same(f"{head}.bias", "logit_bias"),
    ]


def _probe(ours: str, theirs: str) -> list[Rule]:
    return [
        wrapped(f"{ours}.query", f"{theirs}.probe", leading=2),
        *(
            parted(
                [f"{ours}.project.{kind}", f"{ours}.keyvalue.{kind}"],
                f"{theirs}.attention.in_proj_{kind}",
                (1, 2),
            )
            for kind in ("weight", "bias")
        ),
        *both(f"{ours}.output", f"{theirs}.attention.out_proj"),
        *both(f"{ours}.norm", f"{theirs}.layernorm"),
        *both(f"{ours}.up", f"{theirs}.mlp.fc1"),
        *both(f"{ours}.down", f"{theirs}.mlp.fc2"),
    ]
