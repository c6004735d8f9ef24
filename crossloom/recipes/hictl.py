"""HICTL: sentences among sentences, and words about a sentence."""

from __future__ import annotations

from dataclasses import replace

from crossloom.objectives.crosslingual import sctl, wctl
from crossloom.objectives.presets import mmlm, tlm
from crossloom.recipes.from_xlm_r import PAIR, apart, documents, going_on, small_plan, together
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Recipe


def hictl() -> Recipe:
    """HICTL base (Wei et al., ICLR 2021, arXiv 2007.15960): two contrasts beside MLM and TLM.

    Sentences: a translation is found among those of the batch, by ``<s>``, while the others are
    moved towards who asks (:mod:`crossloom.objectives.hard`). Words: the vector of a pair in one
    row is told to be near the words of both and far from others drawn near it
    (:mod:`crossloom.objectives.words`), on the pass of TLM. All losses have one weight. Starts
    from XLM-R (``start``).

    No code was released and the paper could be read here in its abstract and introduction only:
    which readings are followed is said in those two modules. Temperatures, the number of negatives,
    batch, rate and steps are ours, as is the cross-lingual sampling: languages are drawn as found.

    278,545,188 parameters: XLM-R's 278,295,186, and a bias of TLM (250,002).
    """
    return going_on(
        "hictl",
        objectives={
            "mmlm": mmlm(),
            "tlm": replace(tlm(), shares="mmlm"),
            "words": wctl(),
            "sentences": sctl(PAIR),
        },
        mixture={
            "documents": documents("mmlm"),
            "together": together("tlm", "words"),
            "apart": apart("sentences"),
        },
    )


def hictl_tiny() -> Recipe:
    """HICTL over the world: mostly sentences, which take the longest; 128 words against each."""
    recipe = hictl()
    small = {"words": wctl(negatives=128), "sentences": sctl(PAIR, dim=128)}
    mixture = {**recipe.mixture, "apart": replace(apart("sentences"), weight=5)}
    recipe = replace(recipe, objectives={**recipe.objectives, **small}, mixture=mixture)
    return tiny(recipe, small_plan())
