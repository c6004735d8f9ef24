"""ELECTRA: a small generator fills in hidden words, the encoder tells which it replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crossloom.data_pipelines.read import Blocks
from crossloom.modalities.text import Text
from crossloom.models.presets import Tower, towers
from crossloom.objectives.crosslingual import GENERATED, rtd
from crossloom.objectives.presets import mlm
from crossloom.recipes.parts import GENERATOR, TEXT, bert_adam, bert_text, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule


def electra() -> Recipe:
    """ELECTRA-base (Clark et al. 2020, arXiv 2003.10555): replaced words told apart, and MLM.

    Followed: sections 2 and 3, table 6; ``google-research/electra``: ``run_pretraining.py``,
    ``configure_pretraining.py``, ``pretrain/pretrain_helpers.py``. The generator has a third of the
    width and all layers; both read one table of words, of the encoder's width, and what the
    generator reads of it goes through a layer. 15 % of the words are asked for, of which the code
    shows 15 % as they are; the discriminator's loss weighs 50 times the generator's. BERT's
    vocabulary and optimiser. Its text encoder starts others as BERT's does (``start``).

    Otherwise than there: positions, types and the norm of the embedding are each one's own, where
    the code shares them with the words; words are drawn one by one with 15 %, not counted out;
    blocks are of whole texts of one language's Wikipedia, there of BERT's corpora.

    The numbers of parameters are those of ``ElectraForPreTraining`` and ``ElectraForMaskedLM`` with
    one table of words.
    """
    return _recipe(
        {TEXT: 768, GENERATOR: 256}, bert_text(limit=512),
        name="electra", steps=766_000, examples=32, micro=8, optim=bert_adam(2e-4),
    )  # fmt: skip


def electra_small() -> Recipe:
    """ELECTRA-small: words of 128, an encoder of 256, a generator of 64; otherwise as the base."""
    return _recipe(
        {TEXT: 256, GENERATOR: 64}, bert_text(limit=128, inner=128),
        name="electra-small", steps=1_000_000, examples=128, optim=bert_adam(5e-4),
    )  # fmt: skip


def electra_tiny() -> Recipe:
    """ELECTRA over the world's English: words of 64, 3 layers of 128, a generator of 32."""
    sizes = {
        TEXT: Tower(layers=3, width=128, heads=4, hidden=512),
        GENERATOR: Tower(layers=3, width=32, heads=1, hidden=128),
    }
    small = electra_small()
    texts = {s: replace(m, inner=64) for s, m in small.modalities.items()}  # type: ignore[call-arg]
    return tiny(replace(small, name="electra", modalities=texts), towers(sizes, norm="post"))


def _recipe(widths: Mapping[str, int], text: Text, **settings: Any) -> Recipe:
    """The two encoders of these widths, over one table of words."""
    sizes = {
        s: Tower(layers=12, width=width, heads=width // 64, hidden=4 * width)
        for s, width in widths.items()
    }
    generator = replace(text, inner=text.inner or widths[TEXT], words_of=TEXT)
    return Recipe(
        data="shards",
        modalities={TEXT: text, GENERATOR: generator},
        plan=towers(sizes, norm="post", dropout=0.1, epsilon=1e-12),
        objectives={"mlm": mlm((GENERATOR,), stream=GENERATOR, hide=GENERATED), "rtd": rtd()},
        mixture={
            "documents": Component(
                shards=train("wikipedia"),
                reader=Blocks(languages=("en",)),
                objectives=("mlm", "rtd"),
            )
        },
        schedule=Schedule(shape="linear", warmup=10_000),
        **settings,
    )
