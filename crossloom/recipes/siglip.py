"""SigLIP (Zhai et al., 2023, arXiv 2303.15343): two towers, every pair a decision of its own.

Followed: ``big_vision`` (``trainers/proj/image_text/siglip.py``) and ``transformers``
(``modeling_siglip.py``), which ``tests/parity`` holds the model and the loss against. The loss is
summed over all pairs and divided by the rows, not by the pairs (section 3, equation and its
pseudocode). AdamW stands for the code's form of Adafactor. Not copied: scale and bias that start at
zero in ``transformers``; they start at log 10 and -10 (section 3).

AdamW takes the place of Adafactor, whose second moments are factored (``big_vision``:
``optax.py``, ``scale_by_adafactor``).

The pairs (WebLI) are not public, and how many the released weights saw is told in their release
notes only (40 thousand million): steps and schedule are uncertain.
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.interop.siglip import OPTIM, siglip_contrast, siglip_patches, siglip_text
from crossloom.interop.towers import CONTRAST, IMAGE, TEXT
from crossloom.models.presets import Tower, towers
from crossloom.objectives.pool import Probe
from crossloom.recipes.world import small_towers, tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def siglip() -> Recipe:
    """SigLIP base, patches of 16 at 224: two towers, sigmoid contrast over 32,768 pairs.

    203,156,738 parameters: the reference's 203,155,970, and a vector of 768 that stands for patches
    when they are hidden. Text is read both ways, its padding with
    it, and pooled at its last unit; a probe pools the picture.
    """
    return _siglip("siglip", ids=32_000, side=224, shards="webli-en", languages=("en",))


def siglip_tiny() -> Recipe:
    """SigLIP over the world: both towers three layers deep, English captions."""
    return _tiny(siglip())


def siglip_multilingual() -> Recipe:
    """SigLIP, multilingual: base at 256, a vocabulary of 250,000, pairs in all languages.

    As the released ``siglip-base-patch16-256-multilingual`` is (mSigLIP, section 4.4, embeds tokens
    through a bottleneck, which it is without): 370,626,818 parameters, 768 more than the reference.
    Languages are drawn as they are found.
    """
    return _siglip("siglip-multilingual", ids=250_000, side=256, shards="webli", languages=())


def siglip_multilingual_tiny() -> Recipe:
    """SigLIP over the world, with captions in all its languages."""
    return _tiny(siglip_multilingual())


def _siglip(name: str, ids: int, side: int, shards: str, languages: tuple[str, ...]) -> Recipe:
    base = Tower(layers=12, width=768, heads=12, hidden=3072)
    return Recipe(
        name=name,
        data="shards",
        modalities={
            TEXT: siglip_text(ids, 64, "spiece.model"),
            IMAGE: siglip_patches(side, 16),
        },
        plan=towers({TEXT: base, IMAGE: base}, activation="gelu_tanh", epsilon=1e-6),
        objectives={CONTRAST: siglip_contrast(768, Probe(heads=12, hidden=3072))},
        mixture={
            "pairs": Component(
                shards=f"{shards}/train-*.tar",
                reader=Texts(languages=languages),
                objectives=(CONTRAST,),
            )
        },
        steps=1_220_000,
        examples=128,
        micro=256,
        optim=OPTIM,
        schedule=Schedule(shape="cosine", warmup=0.02),
        precision="bf16",
    )


def _tiny(recipe: Recipe) -> Recipe:
    """The picture's summary is not projected, so that its width is that of the common space."""
    contrast = siglip_contrast(128, Probe(heads=4, hidden=512))
    return tiny(replace(recipe, objectives={CONTRAST: contrast}), small_towers())
