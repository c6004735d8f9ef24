"""XLM-E: replaced tokens told apart, in texts of many languages and in translations."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Parallel
from crossloom.models.plan import Plan
from crossloom.models.presets import Tower, towers
from crossloom.objectives.crosslingual import GENERATED, rtd
from crossloom.objectives.presets import mmlm, tlm
from crossloom.recipes.from_xlm_r import documents
from crossloom.recipes.parts import GENERATOR, TEXT, train, xlm_r_text
from crossloom.recipes.world import tiny
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def xlm_e() -> Recipe:
    """XLM-E base (Chi et al., ACL 2022, arXiv 2106.16138): MRTD and TRTD beside MMLM and TLM.

    Followed: sections 3 and 4.1 and, for what it takes over, ELECTRA (Clark et al. 2020, arXiv
    2003.10555; ``google-research/electra``). A discriminator of 12 layers, a generator of 4 of the
    same width, XLM-R's vocabulary; the embedding is one for both. Words are hidden one by one, each
    replacement is drawn from the generator, and the discriminator's losses weigh 50 times the
    generator's. Texts of CC-100 in blocks of 512 and translations in one row, 125,000 steps of
    about a million units, languages sampled by their text to the power 0.7.

    Otherwise than there: attention knows no relative positions (there a gated bias by distance);
    a step mixes the two tasks by chance, both with the same weight. The generator's input hides
    85 % of what is asked for, as in ELECTRA's code; rate, warm-up and Adam's settings are from
    memory of the paper's appendix. No code of the pre-training was released.

    307,488,037 parameters: XLM-R's 278,295,186, four layers of the generator (28,351,488), the
    discriminator's classifier (591,361), a bias of TLM (250,002). Fine-tuning keeps the text's own
    layers and leaves the generator behind.
    """
    sizes = {
        TEXT: Tower(layers=12, width=768, heads=12, hidden=3072),
        GENERATOR: Tower(layers=4, width=768, heads=12, hidden=3072),
    }
    text = xlm_r_text(limit=512)
    return Recipe(
        name="xlm-e",
        data="shards",
        modalities={TEXT: text, GENERATOR: text},
        tied={GENERATOR: TEXT},
        plan=towers(sizes, norm="post", dropout=0.1),
        objectives={
            "mmlm": mmlm(GENERATOR, hide=GENERATED),
            "mrtd": rtd("mmlm", name="mrtd"),
            "tlm": replace(tlm(GENERATOR, hide=GENERATED), shares="mmlm"),
            "trtd": replace(rtd("tlm", name="trtd"), shares="mrtd"),
        },
        mixture={
            "documents": documents("mmlm", "mrtd", alpha=0.7),
            "together": Component(
                shards=train("opus"), reader=Parallel(), objectives=("tlm", "trtd")
            ),
        },
        steps=125_000,
        examples=16,
        micro=128,
        optim=Optim(rate=5e-4, betas=(0.9, 0.98), epsilon=1e-6, decay=0.01, clip=2.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        precision="bf16",
    )


def xlm_e_tiny() -> Recipe:
    """XLM-E over the world: 3 layers of 128, a generator of one."""
    return tiny(xlm_e(), _small())


def _small() -> Plan:
    sizes = {
        TEXT: Tower(layers=3, width=128, heads=4, hidden=512),
        GENERATOR: Tower(layers=1, width=128, heads=4, hidden=512),
    }
    return towers(sizes, norm="post")
