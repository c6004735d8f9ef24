"""What docs say of each recipe: the tests it names are about it, its numbers add up."""

from dataclasses import replace
from pathlib import Path

import pytest

from crossloom.plugins import listed
from crossloom.recipes.state import STATES, state
from crossloom.training.overview import State, parameters
from crossloom.training.recipe import load_recipe

TESTS = Path(__file__).parents[2]
OWN = {p.name: p for p in listed("recipe") if p.target.startswith("crossloom.")}


def bare(modality):
    return replace(modality, vocabulary="") if hasattr(modality, "vocabulary") else modality


@pytest.mark.parametrize("name", [n for n, s in STATES.items() if s.published])
def test_published_numbers_with_what_differs_come_to_ours(name):
    recipe, said = load_recipe(name), STATES[name]
    recipe = replace(recipe, modalities={s: bare(m) for s, m in recipe.modalities.items()})
    ours = sum(parameters(recipe).parts.values())
    assert abs(said.published + sum(said.differences.values()) - ours) < said.to
    assert said.source
    # a difference below the rounding would explain nothing
    assert all(said.to == 1 or abs(n) > said.to / 100 for n in said.differences.values())


@pytest.mark.parametrize("name", STATES)
def test_the_tests_named_are_about_the_recipe(name):
    module, _, function = OWN[name].target.partition(":")
    family = module.rpartition(".")[2]
    for test in STATES[name].tests:
        text = (TESTS / test).read_text("utf-8")
        about = (name, function, family, family.replace("_", ""))
        lent = (name, test) == ("multilingual-clip", "parity/test_xlm_r.py")  # its text tower
        assert any(word in text for word in about) or lent, test


def test_each_published_system_has_a_state_and_each_tiny_one():
    ours = {"demo", "easy-vqa", "sentences", "storybooks"}
    systems = {n.removesuffix("-tiny") for n in OWN if n.endswith("-tiny")} - ours
    assert systems <= set(STATES)
    assert set(STATES) <= set(OWN)
    assert state("uniter-tiny").tests == ("recipes/test_tiny.py",)
    assert state("demo") is None


def test_a_count_says_what_is_more_and_less():
    said = State(shown="", published=86_000_000, to=1_000_000, source="paper",
                 differences={"tables": 22_300_000, "a norm": -1536})  # fmt: skip
    assert said.count() == "86 M (paper) + tables (22.3 M) − a norm (1,536)"
    assert State(shown="", published=1234, source="code").count() == "1,234 (code)"
    assert State(shown="").count() == ""
