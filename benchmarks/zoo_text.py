"""Every small multilingual recipe with the same budget: ``python benchmarks/zoo_text.py``.

As ``zoo.py``, for systems that read text in many languages: three minutes of pre-training on the
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


TEXT = Zoo(
    name="zoo-text",
    belongs=reads_many_languages,
    stages=(
        Stage(
            "xnli",
            (
                "steps=300", "examples=64", "optim.rate=1e-3", "pool=mean", "dev_every=100",
                # what the languages share was learned in pre-training: it is kept
                'optim.factors={"embed": 0.0, "layers.[01]": 0.05}', *SMALL,
            ),
            (),
        ),
    ),
    untuned=(("sentence-retrieval", ()),),
    seconds=180,
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(TEXT, __doc__ or ""))
