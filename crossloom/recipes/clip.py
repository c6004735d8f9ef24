"""CLIP (Radford et al., 2021, arXiv 2103.00020): two towers, contrasted over the batch.

Followed: ``open_clip`` (``model.py``, ``loss.py``) and ``transformers`` (``modeling_clip.py``),
which ``tests/parity`` holds the model and the loss against. Not copied: the end of a text found as
the highest id, which breaks with any other vocabulary; here it is the last unit. The loss of one
process over its own rows needs gradients through the gathered features; they are always there.
Fresh weights are spread as all are here (docs/architecture.md), not by ``initialize_parameters``
(``openai/CLIP``: ``clip/model.py``).
"""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.data_pipelines.world.languages import LANGUAGES
from crossloom.interop.clip import OPTIM, clip_contrast, clip_patches, clip_text
from crossloom.interop.towers import CONTRAST, IMAGE, TEXT
from crossloom.modalities.patches import CLIP_DEVIATION, CLIP_MEAN, Patches
from crossloom.modalities.pictures import Augment
from crossloom.modalities.text import Text
from crossloom.models.presets import Tower, towers
from crossloom.objectives.contrast import Contrast, Deep
from crossloom.objectives.regress import Regress
from crossloom.objectives.view import View
from crossloom.recipes.parts import bert_plan, tiny_plan, xlm_r_text
from crossloom.recipes.world import small_towers, tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

#: Crops of nearly all of the picture: the only augmentation (section 2.4; ``open_clip``'s share).
CROPS = Augment(scale=(0.9, 1.0))
#: Of the world's languages.
MOSTLY_ENGLISH = {code: 27.0 if code == "en" else 1.0 for code in LANGUAGES}


def clip() -> Recipe:
    """CLIP ViT-B/32: an image and a text tower, softmax contrast over 32,768 pairs.

    151,278,081 parameters: the reference's 151,277,313, and a vector of 768 that stands for patches
    when they are hidden. Text is read left to right and pooled at
    its last unit, the picture at its class token (sections 2.4 and 2.5, table 20). The 400 million
    pairs are not public: any converted list of links stands in their place (``LAION-400M``), 32
    epochs of as many.
    """
    return _clip("clip", patch=32)


def clip_b16() -> Recipe:
    """CLIP ViT-B/16: as ViT-B/32, with four times as many patches.

    149,621,505 parameters, 768 more than the reference, as ViT-B/32.
    """
    return _clip("clip-b16", patch=16)


def clip_tiny() -> Recipe:
    """CLIP over the world: a causal text tower and an image tower of three layers each."""
    return tiny(clip(), small_towers(causal=(TEXT,)))


def multilingual_clip() -> Recipe:
    """Multilingual CLIP: XLM-R reads the text, ViT-B/32 the picture; softmax contrast.

    ``open_clip``'s ``xlm-roberta-base-ViT-B-32``, trained by contrast on pairs in all languages
    (LAION-5B): mean of the text's states, then two layers without bias; the last state of the
    picture's class token, projected. Begun from the weights of both parts (``start``,
    ``modalities.image.weights``) it trains as published; from fresh ones it trains all the same.
    Its model card tells batches of 90,000 and 13 thousand million pairs; rate, decay and warm-up
    are CLIP's.

    366,778,113 parameters; the reference has 366,121,473. Ours are more by the layers and the norm
    that bring what a tower by name gives to the width of the plan (its 49 patches too, which no
    loss looks at), and less by XLM-R's one row of segments.

    13 thousand million pairs by 90 thousand, as the weights' name tells (``laion5b_s13b_b90k``).
    Uncertain: rate and warm-up, CLIP's here; ``open_clip`` does not keep those of this run.

    :func:`multilingual_clip_distilled` is the other published form.
    """
    return Recipe(
        name="multilingual-clip",
        data="shards",
        modalities={
            TEXT: Text(
                vocabulary="xlm-roberta-base/sentencepiece.bpe.model", layout="xlm-r",
                size=250_002, limit=77, positions=514, offset=2,
            ),
            IMAGE: Patches(
                tower="open_clip:ViT-B-32", mean=CLIP_MEAN, deviation=CLIP_DEVIATION, augment=CROPS
            ),
        },
        plan=towers(
            {
                TEXT: Tower(layers=12, width=768, heads=12, hidden=3072),
                # the layers are the tower's own: the plan has none for the picture
                IMAGE: Tower(layers=0, width=512, heads=8, hidden=2048),
            },
            norm="post",
            dropout=0.1,
        ),
        objectives={CONTRAST: _means(dim=512, hidden=640)},
        mixture={
            "pairs": Component(
                shards="laion-5b/train-*.tar", reader=Texts(), objectives=(CONTRAST,)
            )
        },
        steps=143_000,
        examples=352,
        micro=256,
        optim=OPTIM,
        schedule=Schedule(shape="cosine", warmup=2000),
        precision="bf16",
    )  # fmt: skip


def multilingual_clip_tiny() -> Recipe:
    """Multilingual CLIP over the world: captions in ten languages, most of them English.

    With fewer (LAION-5B: two fifths) it takes longer than minutes. Both sides are pre-norm: at this
    size a post-norm text tower learned nothing beside an image tower.
    """
    recipe = replace(multilingual_clip(), objectives={CONTRAST: _means(dim=128, hidden=112)})
    pairs = replace(recipe.mixture["pairs"], reader=Texts(weights=MOSTLY_ENGLISH))
    small = tiny(replace(recipe, mixture={"pairs": pairs}), small_towers())
    text = replace(small.modalities[TEXT], norm=False)  # type: ignore[call-arg]
    return replace(small, modalities={**small.modalities, TEXT: text})


def multilingual_clip_distilled() -> Recipe:
    """Multilingual CLIP by teacher learning (Carlsson et al., LREC 2022): text alone.

    FreddeFrallan/Multilingual-CLIP: ``multilingual_clip/TeacherLearning/Training.py``,
    ``TrainingModel.py``, ``Dataset.py``. XLM-R large learns to give of a translation the vector
    that CLIP's text tower (ViT-B/32, 512 numbers, as it is, not of length one) gives of the English
    caption: the mean of its states, a linear layer, the mean of squared errors. Images are searched
    with the teacher's image tower.

    Each sample holds translations of its captions and the teacher's vectors of the English ones,
    ``vectors.npy`` (docs/training.md tells how to make them). Languages are drawn alike; there each
    caption has one translation. Texts of more than 32 units are cut; there they are left out. Adam
    at 1e-5 without decay, 1,000 steps of warm-up, batches of 256; the released weights' name tells
    135 epochs of 1,000 steps. Begins from XLM-R large (``start``).

    559.4 M parameters: XLM-R large without its pooler (558.8 M), and 0.5 M that project.
    """
    view = View(name="taught", streams=(TEXT,))
    return Recipe(
        name="multilingual-clip-distilled",
        data="shards",
        modalities={TEXT: xlm_r_text(limit=32)},
        plan=replace(bert_plan((TEXT,), large=True), epsilon=1e-5),
        objectives={"taught": Regress(view=view, dim=512)},
        mixture={
            "translations": Component(
                shards="image-captions-7m/train-*.tar",
                reader=Texts(vectors="vectors.npy"),
                objectives=("taught",),
            )
        },
        steps=135_000,
        examples=256,
        optim=Optim(rate=1e-5, betas=(0.9, 0.999), epsilon=1e-8, decay=0.0, clip=0.0),
        schedule=Schedule(shape="constant", warmup=1000),
        precision="bf16",
    )


def multilingual_clip_distilled_tiny() -> Recipe:
    """Distilled multilingual CLIP over the world: its teacher's vectors, captions in 10 languages.

    The teacher's vectors lie in the space of the regions' features (docs/world.md).
    """
    recipe = multilingual_clip_distilled()
    captions = replace(recipe.mixture["translations"], reader=Texts(vectors="teacher.npy"))
    taught = {"taught": replace(recipe.objectives["taught"], dim=64)}  # type: ignore[call-arg]
    small = replace(recipe, objectives=taught, mixture={"translations": captions})
    return tiny(small, tiny_plan((TEXT,)))


def _means(dim: int, hidden: int) -> Contrast:
    """The text's mean through two layers, against the picture's class token as it is."""
    return Contrast(
        view=View(name="itc", streams=(TEXT, IMAGE), apart=True),
        pair=(TEXT, IMAGE),
        dim=dim,
        pools={TEXT: "mean", IMAGE: "first"},
        projections={TEXT: Deep(hidden=hidden, activation="gelu", affine=False), IMAGE: "none"},
    )


def _clip(name: str, patch: int) -> Recipe:
    return Recipe(
        name=name,
        data="shards",
        modalities={
            TEXT: clip_text(49_408, 77),
            IMAGE: replace(clip_patches(224, patch), augment=CROPS),
        },
        plan=towers(
            {
                TEXT: Tower(layers=12, width=512, heads=8, hidden=2048),
                IMAGE: Tower(layers=12, width=768, heads=12, hidden=3072),
            },
            causal=(TEXT,),
            activation="quick_gelu",
        ),
        objectives={CONTRAST: clip_contrast(512)},
        mixture={
            "pairs": Component(
                shards="laion-400m/train-*.tar",
                reader=Texts(languages=("en",)),
                objectives=(CONTRAST,),
            )
        },
        steps=390_625,  # 32 epochs of 400 million
        examples=128,
        micro=256,
        optim=OPTIM,
        schedule=Schedule(shape="cosine", warmup=2000),
        precision="bf16",
    )
