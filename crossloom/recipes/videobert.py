"""VideoBERT: what is said over a video, and its frames as words of a vocabulary of their own."""

from __future__ import annotations

from dataclasses import replace

from crossloom.data_pipelines.read import Plain, Texts
from crossloom.modalities.codes import Codes
from crossloom.models.presets import single_stream
from crossloom.objectives.match import Match
from crossloom.objectives.presets import BERT, mlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import View
from crossloom.recipes.parts import bert_adam, bert_plan, bert_text, train
from crossloom.recipes.world import tiny
from crossloom.training.recipe import Component, Recipe
from crossloom.training.schedule import Schedule

STREAMS = ("text", "video")


def videobert() -> Recipe:
    """VideoBERT (Sun et al. 2019): BERT-large over words and frame codes; alone and together.

    Followed: sections 3.2, 3.3 and 4.2; no code was released. A video is a sequence of cluster
    numbers (12^4 = 20,736 clusters of features, one for each second and a half), of which every
    first to fifth is taken. Three regimes: hidden words of text alone, hidden codes of video alone;
    of both together the hidden units of either (figure 3), and whether what is said belongs to what
    is seen, which half of the time is another video's. Hidden units of mismatched pairs are not
    scored. One transform serves words and codes, whose scores come from the tables of both.

    Data: samples with ``codes.npy`` and what is said in the json's ``texts``, from a converter of
    one's own (the paper's 312,000 cooking videos are not public). Start from BERT-large
    (``start``); the paper starts codes from their clusters' centres.

    Otherwise than there: one regime is drawn for each step, all with the same chance (the paper's
    weights are not given); neighbouring sentences are not joined; words and codes are scored
    against their own vocabulary, and codes count their positions apart. Uncertain: the lengths.

    Parameters: BERT-large without its pooler (334.1 M), 21.2 M for codes; transform, biases and
    the matching head 2.2 M.
    """
    alone = {
        "text": mlm(("text",), name="text"),
        "video": _masked(View(name="video", streams=("video",), hide={"video": BERT}), "video"),
    }
    both = View(name="both", streams=STREAMS, hide=dict.fromkeys(STREAMS, BERT), mismatch="video")
    together = {
        "text-of-both": replace(mlm(STREAMS), view=both, shares="text"),
        "video-of-both": _masked(both, "video"),
        "aligned": Match(view=both, pooled=("text",)),
    }
    said, seen = Texts(languages=("en",)), Plain()
    videos = train("videos")
    return Recipe(
        name="videobert",
        data="shards",
        modalities={
            "text": bert_text(limit=64),
            "video": Codes(size=12**4, limit=64, crop=True, stride=5, codebook="s3d-12-12-12-12"),
        },
        plan=bert_plan(STREAMS, large=True),
        objectives={**alone, **together},
        mixture={
            "text": Component(shards=videos, reader=said, objectives=("text",)),
            "video": Component(shards=videos, reader=seen, objectives=("video",)),
            "both": Component(shards=videos, reader=said, objectives=tuple(together)),
        },
        steps=500_000,
        examples=128,
        optim=bert_adam(1e-5),
        schedule=Schedule(shape="linear", warmup=0.0),
        precision="bf16",
    )


def videobert_tiny() -> Recipe:
    """VideoBERT over the world's clips, small."""
    recipe = videobert()
    clips = {n: replace(c, shards="clip-train-*.tar") for n, c in recipe.mixture.items()}
    return tiny(recipe, single_stream(STREAMS, layers=3, width=128, heads=4), clips)


def _masked(view: View, stream: str) -> Reconstruct:
    """Hidden codes, by the transform of hidden words: they were one vocabulary."""
    return Reconstruct(view=view, stream=stream, target="code", shares="text")
