"""InfoXLM: MLM, TLM, and translations found among the sentences of a queue."""

from __future__ import annotations

from dataclasses import replace

from crossloom.objectives.presets import mmlm, tlm, xlco_queue
from crossloom.recipes.from_xlm_r import (
    PAIR,
    apart,
    documents,
    going_on,
    small_plan,
    together,
    xlm_r_plan,
    xlm_r_texts,
)
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Recipe


def infoxlm() -> Recipe:
    """InfoXLM base (Chi et al., NAACL 2021, arXiv 2007.07834): MMLM, TLM and XLCO, on from XLM-R.

    Followed: section 3, and the authors' code (``microsoft/unilm:infoxlm``: ``README.md``,
    ``criterions/xlco.py``, ``data/xlco_dataset.py``, ``models/infoxlm.py``). The contrast is of
    ``<s>`` after layer 8, through one matrix, by plain products over 0.25; keys are by a slow
    encoder (momentum 0.9999) and the negatives are 131,072 earlier keys. Both sides are two
    sentences laid end to end (mix-up) and masked as for MLM. Translations of TLM stand in one row
    with one end between them, positions running on. Starts from XLM-R (``start``); no dropout;
    200,000 steps of 2,048 blocks, pairs and mixed pairs each, as the command has it (the paper: as
    many for the large model, 150,000 for this).

    Otherwise than there: the three losses are means added up, where the code divides
    all three by the sum of their counts, in which sentences are few; no loss is contrasted in the
    first steps, until the queue is full, where the code fills it beforehand; the second pair of a
    mixture is drawn from the batch, in whatever languages; a step mixes the three tasks by chance,
    2,048 of each on average. It is one pass on each process, since a contrast is not made by parts.
    Languages are sampled by their text to the power 0.7, which could not be checked; pairs of
    languages as they are found.

    528,826,404 parameters: XLM-R's 278,295,186, a bias of TLM (250,002), the matrix of the
    contrast (589,824), and slow copies of the embedding, of the first 8 layers and of that matrix,
    which are not trained; the code copies all 12 layers.
    """
    return going_on(
        "infoxlm",
        objectives={
            "mmlm": mmlm(),
            "tlm": replace(tlm(), shares="mmlm"),
            "xlco": xlco_queue(PAIR),
        },
        mixture={
            "documents": documents("mmlm", alpha=0.7),
            "together": together("tlm"),
            "apart": apart("xlco"),
        },
        modalities=xlm_r_texts(doubled=False, dropout=0.0),
        plan=replace(xlm_r_plan(), dropout=0.0),
    )


def infoxlm_tiny() -> Recipe:
    """InfoXLM over the world: layer 2 of 3, a queue of 256 that is not waited for."""
    contrast = xlco_queue(PAIR, layer=2, queue=256, momentum=0.99, dim=128)
    recipe = infoxlm()
    objectives = {**recipe.objectives, "xlco": replace(contrast, wait=False)}
    return tiny(replace(recipe, objectives=objectives), small_plan())
