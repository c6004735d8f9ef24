"""Every small multilingual recipe with the same budget: ``python benchmarks/zoo_text.py``.

As ``zoo.py``, for systems that read text in many languages: the same seconds of pre-training on the
world's sentences (and scenes, where a system has streams for them), then XNLI, fine-tuned in
English and tested in the world's ten languages, and sentences found by their translations, as the
states are: after the layer that is best on the ``dev`` scenes.
"""

from __future__ import annotations

import sys

from zoo import SMALL, Zoo, main

from crossloom.demo import Stage
from crossloom.training.recipe import Recipe


def reads_many_languages(recipe: Recipe) -> bool:
    """Whether text of several languages is trained on, and nothing is but text and pictures."""
    kinds = {m.kind for m in recipe.modalities.values()}
    read = [getattr(c.reader, "languages", None) for c in recipe.mixture.values()]
    several = () in read or len({code for some in read if some for code in some}) > 1
    return "text" in kinds and kinds <= {"text", "regions", "patches"} and several


def tasks(_: Recipe) -> tuple[Stage, ...]:
    """XNLI, trained in English."""
    # what the languages share was learned in pre-training: it is kept
    kept = 'optim.factors={"embed": 0.0, "layers.[01]": 0.05}'
    size = ("steps=300", "examples=32", "optim.rate=1e-3", "dev_every=150")
    return (Stage("xnli", (*size, "pool=mean", kept, *SMALL), ()),)


TEXT = Zoo(
    name="zoo-text",
    belongs=reads_many_languages,
    stages=tasks,
    untuned=(("sentence-retrieval", ()),),
    scratch=False,
    seconds=300,
)


if __name__ == "__main__":
    sys.exit(main(TEXT, __doc__ or ""))
