"""MASS: an encoder-decoder that says the segment hidden from its encoder."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Texts
from crossloom.models.plan import Plan
from crossloom.models.presets import encoder_decoder
from crossloom.objectives.presets import MASS
from crossloom.objectives.presets import mass as hidden_segment
from crossloom.recipes.parts import TARGET, TEXT, train, xlm_adam, xlm_text
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

LANGUAGES = ("en", "fr")


def mass() -> Recipe:
    """MASS (Song et al. 2019): half of a sentence hidden in one segment, said by the decoder.

    Followed: section 3 and the code for unsupervised translation (``microsoft/MASS``:
    ``MASS-unsupNMT/src/trainer.py``, ``restricted_mask_sent`` and ``mass_step``; the commands of
    its README). XLM's layers and embeddings on both sides, none of them shared, each language with
    an embedding. The segment begins after the first unit in a fifth of the cases, ends with the end
    in a fifth; of its units 80 % are hidden, 10 % swapped, 10 % left. The decoder is fed the units
    before the segment's own at their own positions, and does not read the states of hidden ones.

    Each step is of one language. Vocabulary: XLM's for these two (60,000 byte pairs). Steps: a
    hundred epochs of 200,000 sentences, of which the code counts 32 a step, however many there are
    (``n_sentences``).

    Otherwise than there: half of each sentence is hidden, not half of the longest of a batch;
    sentences of more than 100 words are cut and those of fewer than 5 stay, where the code leaves
    out both. Fine-tuning there is back-translation; here ``finetune translation`` learns from
    pairs.

    Parameters: 308.8 M: two tables of 64,139 words (131.4 M), of 512 positions (1.0 M) and of two
    languages, six layers of an encoder (75.6 M) and of a decoder (100.8 M), their norms and a bias.
    """
    # 100 words and both ends
    text = xlm_text(languages=LANGUAGES, size=64_139, limit=102)
    return Recipe(
        name="mass",
        data="shards",
        modalities={TEXT: text, TARGET: replace(text, field=TARGET)},
        plan=_plan(layers=6, width=1024, heads=8),
        objectives={"mass": replace(hidden_segment(hide=MASS, unseen=True), transform=False)},
        mixture={
            code: Component(
                shards=train(f"newscrawl/{code}"),
                reader=Texts(languages=(code,), copies=(TARGET,)),
                objectives=("mass",),
            )
            for code in LANGUAGES
        },
        steps=625_000,
        # 3,000 units on each of 8 devices
        examples=100,
        micro=8,
        alike=True,
        optim=xlm_adam(1e-4),
        schedule=Schedule(shape="inverse_sqrt", warmup=4000),
        precision="bf16",
    )


def mass_tiny() -> Recipe:
    """MASS over the world's captions in English and French, small."""
    return tiny(mass(), _plan(layers=2, width=96, heads=4))


def _plan(*, layers: int, width: int, heads: int) -> Plan:
    plan = encoder_decoder(TEXT, TARGET, layers=layers, width=width, heads=heads)
    return replace(plan, epsilon=1e-12)
