"""docs/composing.md: its recipe is one, and no published objective is missing."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from crossloom.objectives import crosslingual, presets
from crossloom.plugins import listed
from crossloom.training.recipe import from_dict, to_dict
from crossloom.training.run import make_model

PAGE = (Path(__file__).parents[2] / "docs" / "composing.md").read_text("utf-8")
#: Presets that ask for a view, or for another objective.
ASKING = ("mtl", "tag_contrast", "detected", "image_questions", "whole_word")


@pytest.fixture(scope="module")
def loom():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "loom.py", "exec"), names)
    return names["loom"]()


def test_the_recipe_is_one(loom):
    assert from_dict(to_dict(loom)) == loom
    with torch.device("meta"):
        model = make_model(loom)
    assert set(model.heads) == {"mlm", "mrfr", "mrckl", "itm", "wra", "mmlm"}
    # UNITER's tasks hide words or regions, never both
    assert all(len(o.view.hide) <= 1 for o in loom.objectives.values())
    assert {v for c in loom.mixture.values() for v in c.objectives} == set(loom.objectives)


def test_every_published_objective_is_named():
    made = {
        name
        for module in (presets, crosslingual)
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not name.startswith("_")
    }
    table = PAGE[PAGE.index("| preset |") :]
    assert made - set(re.findall(r"`(\w+)`", table)) == set()
    kinds = {p.name for p in listed("objective")}
    assert kinds - set(re.findall(r"`([\w-]+)`", table)) == set()


def test_what_a_row_says_a_preset_is_it_is():
    rows = re.findall(r"^\| (`.*?) \|.*\| (`[^|]*) \|$", PAGE, re.MULTILINE)
    assert len(rows) > 20
    for names, kinds in rows:
        for name in re.findall(r"`(\w+)`", names):
            make = getattr(presets, name, None) or getattr(crosslingual, name)
            made = None if name in ASKING else make()
            if hasattr(made, "kind"):
                assert f"`{made.kind}`" in kinds, name
