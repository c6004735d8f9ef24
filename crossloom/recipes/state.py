"""What was shown for each published system, and its published number of parameters beside ours.

Tests hold this to the truth: the files named must test the recipe, and a published count, with the
differences named here, must come to ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossloom.training.overview import State

_FORMULAS = "losses recomputed from the paper's formulas"
_RULES = "what is hidden, paired and scored, and each part's size, as in the paper"
_PARITY = "states, losses, gradients and round trips as in"
_HIDDEN = {"a vector for hidden patches": 768}
_Q_DENSE = {"layers `q_dense`, which nothing uses": -11_020_800}
_BIAS = {"a decoder's bias of the tags' own": 30_522}


def _formulas(test: str, **more: Any) -> State:
    return State(shown=_FORMULAS, tests=(f"unit/recipes/{test}.py",), **more)


def _parity(library: str, *tests: str, **more: Any) -> State:
    return State(shown=f"{_PARITY} `{library}`", tests=tests, **more)


def _clip(count: int) -> State:
    tests = ("parity/test_clip.py", "parity/test_open_clip.py", "unit/recipes/test_two_towers.py")
    return _parity("transformers` and `open_clip", *tests, published=count, source="transformers",
                   differences=_HIDDEN)  # fmt: skip


def _siglip(count: int) -> State:
    tests = ("parity/test_siglip.py", "unit/recipes/test_two_towers.py")
    return _parity(
        "transformers", *tests, published=count, source="transformers", differences=_HIDDEN
    )


def _xlm_r(test: str, **differences: int) -> State:
    """A system that goes on from XLM-R base, by what it has beside."""
    return _formulas(
        test,
        published=278_295_186,
        source="XLM-R in transformers",
        differences={name.replace("_", " "): n for name, n in differences.items()},
    )


def _electra(count: int) -> State:
    return State(
        shown="losses and gradients as in `transformers`",
        tests=("parity/test_electra.py", "parity/test_sizes.py"),
        published=count,
        source="both models of transformers, with one table of words",
    )


_CONTROLLED = State(
    shown="the five differ in plan and regions alone, as configured in VOLTA",
    tests=("unit/recipes/test_dual_stream.py",),
)

STATES: Mapping[str, State] = {
    "alm": _formulas(
        "test_cross_lingual_encoders", published=249_071_384, source="XLM in transformers"
    ),
    "b2t2": _formulas(
        "test_b2t2",
        published=338_324_284,
        source="modules of the code",
        differences={"four numbers of a box": 4096, "a feature for hidden regions": 2048},
    ),
    "clip": _clip(151_277_313),
    "clip-b16": _clip(149_620_737),
    "cogview": _formulas(
        "test_image_tokens", published=4_000_000_000, to=100_000_000, source="paper"
    ),
    "controlled-lxmert": _CONTROLLED,
    "controlled-uniter": _CONTROLLED,
    "controlled-vilbert": _CONTROLLED,
    "controlled-visualbert": _CONTROLLED,
    "controlled-vl-bert": _CONTROLLED,
    "dall-e": _formulas(
        "test_image_tokens", published=12_000_000_000, to=500_000_000, source="paper"
    ),
    "electra": _electra(119_782_715),
    "electra-small": _electra(14_262_267),
    "ernie-m": _xlm_r("test_from_xlm_r", biases_of_four_heads=1_000_008),
    "hictl": _xlm_r("test_from_xlm_r", a_bias_of_translations=250_002),
    "imagebert": State(shown=_RULES, tests=("unit/recipes/test_single_stream.py",)),
    "infoxlm": _xlm_r(
        "test_from_xlm_r",
        a_bias_of_translations=250_002,
        matrices_of_the_contrast=1_179_648,
        slow_copies_of_the_embedding_and_8_layers=249_101_568,
    ),
    "lxmert": _parity(
        "transformers",
        "parity/test_lxmert.py",
        "unit/recipes/test_dual_stream.py",
        published=228_051_752,
        source="transformers",
    ),
    "m3p": _formulas("test_many_languages"),
    "mass": State(
        shown="segments, rates and what the decoder reads, as in the code",
        tests=("unit/recipes/test_said.py", "parity/test_sizes.py"),
    ),
    "mbart": _parity(
        "transformers",
        "parity/test_mbart.py",
        "parity/test_sizes.py",
        published=610_851_840,
        source="transformers",
        differences={"a trained bias over words": 250_027},
    ),
    "mbert": _parity(
        "transformers",
        "parity/test_mbert.py",
        "unit/recipes/test_cross_lingual_encoders.py",
        published=178_566_653,
        source="transformers",
    ),
    "multilingual-clip": _parity(
        "transformers",
        "parity/test_xlm_r.py",
        "unit/recipes/test_two_towers.py",
        published=366_121_473,
        source="open_clip",
        differences={
            "two layers and a norm from the tower to the plan": 657_408,
            "a row of segments of XLM-R": -768,
        },
    ),
    "multilingual-clip-distilled": State(
        shown="teacher's vectors regressed, the distance written out",
        tests=("unit/objectives/test_regress.py", "parity/test_sizes.py"),
    ),
    "muniter": _formulas("test_many_languages"),
    "oscar": _formulas(
        "test_oscar", published=111_684_668, source="modules of the code", differences=_BIAS
    ),
    "oscar-plus": _formulas(
        "test_oscar", published=111_686_973, source="modules of the code", differences=_BIAS
    ),
    "siglip": _siglip(203_155_970),
    "siglip-multilingual": _siglip(370_626_050),
    "speechbert": _formulas("test_said_seen_heard"),
    "twelve-in-one": State(
        shown="groups of tasks, heads, tokens and resting as in the paper",
        tests=("unit/recipes/test_dual_stream.py",),
        published=268_028_859,
        source="modules of the code",
        differences={
            **_Q_DENSE,
            "heads of pre-training": -3_317_373,
            "a hidden layer for entailment": 2_106_368,
            "vectors for eight more tasks": -6144,
            "a second score of pairs": 1025,
            "a score of words": -769,
        },
    ),
    "twelve-in-one-captions": State(
        shown="what is hidden together and what is scored as in the paper",
        tests=("unit/recipes/test_dual_stream.py",),
        published=250_044_029,
        source="modules of the code",
        differences=_Q_DENSE,
    ),
    "uc2": _formulas("test_many_languages"),
    "unicoder": _formulas(
        "test_cross_lingual_encoders",
        published=249_071_384,
        source="XLM in transformers",
        differences={"three biases": 285_000, "W": 2048, "classifier": 1_051_650},
    ),
    "unicoder-vl": State(shown=_RULES, tests=("unit/recipes/test_single_stream.py",)),
    "uniter": _formulas(
        "test_single_stream",
        published=86_000_000,
        to=1_000_000,
        source="paper",
        differences={"embeddings": 24_251_648, "heads": 3_630_727},
    ),
    "uniter-large": _formulas(
        "test_single_stream",
        published=303_000_000,
        to=1_000_000,
        source="paper",
        differences={"embeddings": 32_334_848, "heads": 5_878_663},
    ),
    "videobert": _formulas("test_said_seen_heard"),
    "vilbert": State(
        shown="parts counted as its configuration says",
        tests=("unit/recipes/test_dual_stream.py",),
        published=250_044_029,
        source="modules of the code",
        differences=_Q_DENSE,
    ),
    "vilt": _parity(
        "transformers",
        "parity/test_vilt.py",
        "unit/recipes/test_single_stream.py",
        published=87_400_000,
        to=100_000,
        source="paper",
        differences={"embeddings of words and places": 23_589_120, "heads": 1_214_780},
    ),
    "visualbert": _parity(
        "transformers",
        "parity/test_visualbert.py",
        "unit/recipes/test_single_stream.py",
        published=112_074_812,
        source="transformers",
    ),
    "vl-bert": _formulas(
        "test_vl_bert",
        published=114_491_515,
        source="modules of the code",
        differences={
            "a norm in the transform for regions": 1536,
            "a decoder's bias for texts alone": 30_522,
        },
    ),
    "vlp": _formulas(
        "test_said_seen_heard",
        published=115_900_000,
        to=100_000,
        source="released model",
        differences={
            "pooler and next-sentence head": -592_130,
            "four passage types": -3072,
            "a second bias": 28_996,
            "a vector for hidden regions": 2048,
        },
    ),
    "wenlan": _formulas(
        "test_two_towers",
        published=547_637_808,
        source="released model",
        differences={
            "a classifier of images": -4_098_000,
            "a pooler of the text": -1_181_184,
            "a norm over the cells": 8192,
        },
    ),
    "xgpt": _formulas("test_said_seen_heard"),
    "xlm": _parity(
        "transformers",
        "parity/test_xlm.py",
        "parity/test_sizes.py",
        "unit/recipes/test_cross_lingual_encoders.py",
        published=249_071_384,
        source="transformers",
        differences={"a bias of translations": 95_000},
    ),
    "xlm-clm": _parity(
        "transformers",
        "parity/test_xlm.py",
        "unit/recipes/test_cross_lingual_encoders.py",
        published=141_848_203,
        source="transformers",
    ),
    "xlm-e": State(
        shown="losses and gradients as of ELECTRA in `transformers`",
        tests=("parity/test_electra.py", "unit/recipes/test_from_xlm_r.py"),
        published=278_295_186,
        source="XLM-R in transformers",
        differences={
            "four layers of the generator": 28_351_488,
            "a classifier of units": 591_361,
            "a bias of translations": 250_002,
        },
    ),
    "xlm-r": _parity(
        "transformers",
        "parity/test_xlm_r.py",
        "parity/test_sizes.py",
        published=278_295_186,
        source="transformers",
    ),
    "xlm-r-large": _parity(
        "transformers", "parity/test_sizes.py", published=560_142_482, source="transformers"
    ),
    "xnlg": State(
        shown="noise, what is frozen and what is taken over, as in the code",
        tests=("unit/recipes/test_said.py", "parity/test_sizes.py"),
    ),
    "xnlg-encoder": State(
        shown="parts counted as its configuration says",
        tests=("unit/recipes/test_said.py", "parity/test_sizes.py"),
    ),
    "xuniter": _formulas("test_many_languages"),
}

_TINY = State(
    shown="trained in tests: every loss falls, and it resumes bit-exactly",
    tests=("recipes/test_tiny.py",),
)


def state(name: str) -> State | None:
    """What was shown for a recipe; None for those that are no published system."""
    return STATES.get(name) or (_TINY if name.removesuffix("-tiny") in STATES else None)
