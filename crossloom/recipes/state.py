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


_CONTROLLED = State(
    shown="the five differ in plan and regions alone, as configured in VOLTA",
    tests=("unit/recipes/test_dual_stream.py",),
)

STATES: Mapping[str, State] = {
    "b2t2": _formulas(
        "test_b2t2",
        published=338_324_284,
        source="modules of the code",
        differences={"four numbers of a box": 4096, "a feature for hidden regions": 2048},
    ),
    "clip": _clip(151_277_313),
    "clip-b16": _clip(149_620_737),
    "controlled-lxmert": _CONTROLLED,
    "controlled-uniter": _CONTROLLED,
    "controlled-vilbert": _CONTROLLED,
    "controlled-visualbert": _CONTROLLED,
    "controlled-vl-bert": _CONTROLLED,
    "imagebert": State(shown=_RULES, tests=("unit/recipes/test_single_stream.py",)),
    "lxmert": _parity(
        "transformers",
        "parity/test_lxmert.py",
        "unit/recipes/test_dual_stream.py",
        published=228_051_752,
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
        published=270_000_000,
        to=10_000_000,
        source="paper",
        differences={**_Q_DENSE, "heads of pre-training": -3_317_373},
    ),
    "twelve-in-one-captions": State(
        shown="what is hidden together and what is scored as in the paper",
        tests=("unit/recipes/test_dual_stream.py",),
        published=250_044_029,
        source="modules of the code",
        differences=_Q_DENSE,
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
}

_TINY = State(
    shown="trained in tests: every loss falls, and it resumes bit-exactly",
    tests=("recipes/test_tiny.py",),
)


def state(name: str) -> State | None:
    """What was shown for a recipe; None for those that are no published system."""
    return STATES.get(name) or (_TINY if name.removesuffix("-tiny") in STATES else None)
