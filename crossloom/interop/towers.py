"""What the two-tower families have in common: their parts in a recipe, and their layers' names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crossloom.data_pipelines.read import Texts
from crossloom.interop.rules import Rule, both, joined
from crossloom.modalities.patches import Patches
from crossloom.modalities.text import Text
from crossloom.models.plan import Attend, Plan
from crossloom.models.presets import Tower
from crossloom.models.start import Site, sites
from crossloom.objectives.contrast import Contrast
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

TEXT, IMAGE, CONTRAST = "text", "image", "itc"
#: Our names of activations, by those of ``transformers``.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class Parts:
    """The parts of a two-tower recipe that a family writes."""

    texts: str  #: name of the stream
    images: str
    text: Text
    image: Patches
    head: str  #: name of the contrastive objective
    contrast: Contrast


def parts_of(recipe: Recipe) -> Parts:
    """The parts of a recipe of one text tower and one tower over patches.

    Raises:
        ValueError: it has other parts; says which.
    """
    texts = [s for s, m in recipe.modalities.items() if isinstance(m, Text)]
    images = [s for s, m in recipe.modalities.items() if isinstance(m, Patches) and not m.tower]
    heads = [n for n, o in recipe.objectives.items() if isinstance(o, Contrast)]
    require(len(recipe.modalities) == 2 and len(texts) == len(images) == 1,
            "its streams are not one text and one of plain patches")  # fmt: skip
    require(len(heads) == 1, "it has no contrastive objective, or several")
    text, contrast = recipe.modalities[texts[0]], recipe.objectives[heads[0]]
    image = recipe.modalities[images[0]]
    assert isinstance(text, Text)
    assert isinstance(image, Patches)
    assert isinstance(contrast, Contrast)
    require(not contrast.shared, "the projection is shared")
    plain = not (text.languages or text.segments > 1 or text.marked or text.norm)
    require(plain, "text embeddings are more than tokens and positions, or normed")
    require(not text.offset, "text's positions begin later than its table")
    require(recipe.plan.norm == "pre" and recipe.plan.last == "each", "plan.norm is not pre")
    return Parts(texts[0], images[0], text, image, heads[0], contrast)


def require(holds: bool, why: str) -> None:
    """Raise ValueError with the reason why a recipe does not fit a family."""
    if not holds:
        raise ValueError(why)


def tower(plan: Plan, stream: str) -> tuple[Tower, list[tuple[Site, Site]], bool]:
    """A stream's own Transformer: its size, its pairs of blocks, and whether it is causal.

    Raises:
        ValueError: the stream reads others, or its layers are not alike.
    """
    found = list(sites(plan, stream))
    pairs = list(zip(found[::2], found[1::2], strict=False))
    sizes, causal = set(), set()
    for attend, feed in pairs:
        if not isinstance(attend.block, Attend) or isinstance(feed.block, Attend):
            raise ValueError(f"{stream}: its blocks are not attention and feed-forward in turn")
        require(attend.read == (stream,), f"{stream}: it reads {', '.join(attend.read)}")
        require((attend.block.inner or plan.inner) == plan.widths[stream],
                f"{stream}: inner is not its width")  # fmt: skip
        sizes.add((attend.block.heads or plan.heads, feed.block.hidden or plan.hidden))
        causal.add(stream in attend.block.causal)
    require(len(found) % 2 == 0 and len(sizes) == len(causal) == 1,
            f"{stream}: its layers are not alike")  # fmt: skip
    heads, hidden = sizes.pop()
    size = Tower(layers=len(pairs), width=plan.widths[stream], heads=heads, hidden=hidden)
    return size, pairs, causal.pop()


def ours(site: Site, part: str) -> str:
    """Name of a part of a block, without ``weight`` or ``bias``."""
    return site.name(part, "").removesuffix(".")


def layers(plan: Plan, stream: str, one: Callable[[Site, Site, int], Sequence[Rule]]) -> list[Rule]:
    """Rules of all layers of a stream, from those of one."""
    pairs = tower(plan, stream)[1]
    return [r for n, (attend, feed) in enumerate(pairs) for r in one(attend, feed, n)]


def projected(theirs: str) -> Callable[[Site, Site, int], list[Rule]]:
    """Rules of a layer as ``transformers`` names the parts of CLIP and SigLIP.

    Args:
        theirs: the prefix of the encoder's layers.
    """

    def one(attend: Site, feed: Site, number: int) -> list[Rule]:
        at = f"{theirs}.{number}"
        rules = [
            *both(ours(attend, "norm"), f"{at}.layer_norm1"),
            *both(ours(attend, "query"), f"{at}.self_attn.q_proj"),
            *both(ours(attend, "output"), f"{at}.self_attn.out_proj"),
            *both(ours(feed, "norm"), f"{at}.layer_norm2"),
            *both(ours(feed, "up"), f"{at}.mlp.fc1"),
            *both(ours(feed, "down"), f"{at}.mlp.fc2"),
        ]
        for kind in ("weight", "bias"):
            pair = [f"{at}.self_attn.{x}_proj.{kind}" for x in "kv"]
            rules.append(joined(attend.name("keyvalue", kind), pair))
        return rules

    return one


def recipe(
    name: str, text: Text, image: Patches, plan: Plan, contrast: Contrast, optim: Optim
) -> Recipe:
    """A recipe that goes on with contrast over pairs; where its shards are is for the user to say.

    Args:
        name: of the recipe.
        text, image, plan, contrast: of the model.
        optim: as published.
    """
    return Recipe(
        name=name,
        data="shards",
        modalities={TEXT: text, IMAGE: image},
        plan=plan,
        objectives={CONTRAST: contrast},
        mixture={"pairs": Component(shards="train-*.tar", reader=Texts(), objectives=(CONTRAST,))},
        steps=10_000,
        examples=256,
        optim=optim,
        schedule=Schedule(shape="cosine", warmup=0.1),
    )


def preprocessing(image: Patches, processor: str) -> str:
    """``preprocessor_config.json`` that does as the recipe does: the picture squeezed to a square.

    Args:
        image: the patches.
        processor: class of the library's.
    """
    values = {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image.size, "width": image.size},
        "resample": 2,  # bilinear
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.deviation),
    }
    return json.dumps(values, indent=2) + "\n"


def statistics(folder: Path, image: Patches) -> Patches:
    """The patches with the channel statistics that a checkpoint's preprocessing names."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return image
    found = json.loads(path.read_text("utf-8"))
    mean, deviation = (found.get(f"image_{name}") for name in ("mean", "std"))
    if not (mean and deviation):
        return image
    return replace(image, mean=tuple(mean), deviation=tuple(deviation))


def activation(*configs: Mapping[str, object]) -> str:
    """Our name of the activation that all the configurations have.

    Raises:
        ValueError: they differ, or it is unknown.
    """
    names = {str(c["hidden_act"]) for c in configs}
    name = names.pop()
    if names or name not in ACTIVATIONS:
        raise ValueError(
            f"config.json: hidden_act: {', '.join(sorted({name, *names}))}; "
            f"one of {', '.join(ACTIVATIONS)} for all towers is known"
        )
    return ACTIVATIONS[name]
