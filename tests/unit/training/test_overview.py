"""Recipes told to people: parameters without data, passes, and the page of all recipes."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from crossloom.modalities.text import Text
from crossloom.models.presets import cross_encoder, single_stream
from crossloom.objectives.presets import itc, itm, mlm
from crossloom.objectives.reconstruct import Reconstruct
from crossloom.objectives.view import Hide, View
from crossloom.plugins import listed
from crossloom.recipes.state import state
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import overview
from crossloom.training.run import make_model

DOCS = Path(__file__).parents[3] / "docs"


@dataclass(frozen=True, kw_only=True)
class Sized(Text):
    """Text whose number of ids may be stated, so that its file is not needed."""

    size: int = 0

    @property
    def vocab(self):
        return SimpleNamespace(size=self.size, mask=4) if self.size else super().vocab


def added(recipe, **objectives):
    """The recipe with further objectives on its captions."""
    captions = recipe.mixture["captions"]
    captions = replace(captions, objectives=(*captions.objectives, *objectives))
    return replace(
        recipe,
        objectives={**recipe.objectives, **objectives},
        mixture={**recipe.mixture, "captions": captions},
    )


def test_parameters_are_those_of_the_model(world):
    recipe = tiny_recipe(world, contrast=True).located()
    counted = overview.parameters(recipe)
    model = make_model(recipe)
    assert sum(counted.parts.values()) == sum(p.numel() for p in model.parameters())
    assert counted.parts["embed.text"] == sum(p.numel() for p in model.embed["text"].parameters())
    assert counted.parts["heads.itm"] == sum(p.numel() for p in model.heads["itm"].parameters())
    assert not counted.each
    assert counted.said("heads.itm") == f"{counted.parts['heads.itm']:,}"


def test_without_a_vocabulary_what_each_id_adds_is_told(world):
    recipe = tiny_recipe(world)
    text = Sized(dropout=0.0)
    recipe = replace(recipe, modalities={**recipe.modalities, "text": text})
    exact = overview.parameters(recipe.located())
    open_ = overview.parameters(
        replace(recipe, modalities={**recipe.modalities, "text": replace(text, vocabulary="")})
    )
    ids = recipe.located().modalities["text"].vocab.size
    # a row of the table, and a bias in each of the two heads that predict it
    assert open_.each == {
        part: {"embed.text": 32, "heads.mlm": 1, "heads.tlm": 1}.get(part, 0)
        for part in exact.parts
    }
    assert {p: n + ids * open_.each[p] for p, n in open_.parts.items()} == exact.parts
    assert open_.said().endswith("M + 34 × vocabulary")


def test_a_recipe_whose_parts_do_not_fit_is_an_error_not_a_missing_vocabulary(world):
    recipe = tiny_recipe(world).located()
    wrong = replace(recipe, plan=single_stream(("text", "sound"), layers=1, width=32, heads=2))
    with pytest.raises(ValueError, match="modalities are text, image"):
        overview.parameters(wrong)


def test_passes_count_the_views_that_a_component_draws(world):
    recipe = tiny_recipe(world)
    first, second = overview.passes(recipe)
    # mrc and mrfr share a view
    assert first.views == ("mlm", "mrm", "itm")
    assert first.share == pytest.approx(2 / 3)
    longest = {s: m.longest() for s, m in recipe.modalities.items()}
    assert first.units == 4 * 3 * (longest["text"] + longest["image"])
    assert second.units == 4 * longest["text"]


def test_reading_patterns_are_told(world):
    recipe = tiny_recipe(world)
    view = View(
        name="s2s", streams=("text", "image"), hide={"text": Hide(by="group")},
        causal=("text",), reads={"image": ("image",)}, mismatch="image",
    )  # fmt: skip
    said = "text (15% hidden by group, left to right), image (50% another's, reads image)"
    assert overview.shown(view) == said
    objective = Reconstruct(view=view, stream="text", target="token")
    assert overview.settings(objective) == "stream=text target=token"
    assert overview.words(added(recipe, s2s=objective)) == "single stream; prefix"
    two = added(replace(recipe, plan=cross_encoder("text", "image")), itc=itc())
    assert overview.words(two) == "co-attention, shared weights; streams apart"


def test_tables_name_every_objective_and_component(world):
    titles = {}
    for title, headings, rows in overview.tables(tiny_recipe(world).located()):
        titles[title.partition(":")[0]] = rows
        assert all(len(row) == len(headings) for row in rows)
    assert [r[0] for r in titles["objectives"]] == ["mlm", "mrc", "mrfr", "itm", "tlm"]
    assert [r[0] for r in titles["a step"]] == ["captions", "translations"]
    assert titles["parameters"][-1][0] == "all"


def test_the_page_of_recipes_is_the_one_that_is_committed(tmp_path):
    own = [p for p in listed("recipe") if p.target.startswith("crossloom.")]
    overview.page([overview.entry(p, state(p.name)) for p in own], tmp_path)

    def files(folder):
        drawings = sorted((folder / "images" / "plans").glob("*.svg"))
        return {f.name: f.read_text("utf-8") for f in [folder / "recipes.md", *drawings]}

    written, committed = files(tmp_path), files(DOCS)
    assert set(written) == set(committed), "run `crossloom recipes list --page docs`"
    stale = [name for name, text in written.items() if committed[name] != text]
    assert not stale, "run `crossloom recipes list --page docs`"
    for plugin in own:
        assert f"| `{plugin.name}` |" in written["recipes.md"]


def test_equal_plans_share_a_drawing_named_after_what_it_shows_and_old_ones_go(tmp_path):
    one = overview.Entry(
        name="one", says="a | b", plan="p", size="1 layer", streams="s", objectives="o",
        parameters="1", drawing="A", drawn="p, q of s: 1 layer",
        state=overview.State(shown="all", tests=("unit/test_a.py",), published=7, source="code"),
    )  # fmt: skip
    old = tmp_path / "images" / "plans" / "old.svg"
    old.parent.mkdir(parents=True)
    old.write_text("")
    three = replace(one, name="three", drawing="B", state=None)  # told alike, drawn otherwise
    overview.page([one, replace(one, name="two"), three], tmp_path)
    files = {p.stem: p.read_text() for p in old.parent.iterdir()}
    assert files == {"p-q-of-s-1-layer": "A", "p-q-of-s-1-layer-2": "B"}
    page = (tmp_path / "recipes.md").read_text("utf-8")
    row = "| `two` | a \\| b | [p; 1 layer](images/plans/p-q-of-s-1-layer.svg) | s | o | 1 |"
    assert f"{row} 7 (code) | all: [test_a](../tests/unit/test_a.py) |" in page
    assert "(images/plans/p-q-of-s-1-layer-2.svg) | s | o | 1 |  |  |" in page
    assert "### P, q of s: 1 layer\n\n`one`, `two`\n" in page


def test_objectives_of_a_view_of_their_own_are_told_apart():
    assert overview.shown(itm().view) == "text, image (50% another's)"
    assert overview.shown(itc().view) == "apart: text, image"
    assert overview.shown(mlm().view) == "text (15% hidden), image"
    # of two streams either is taken; rows beside the first
    view = View(name="v", streams=("a", "b"), mismatch=("a", "b"), mismatch_rate=0.5)
    assert overview.shown(view) == "a (25% another's), b (25% another's)"
    view = View(name="v", streams=("a", "b"), against=("b", "a", "b"))
    assert overview.shown(view) == "a (against 1 of others), b (against 2 of others)"
    view = View(name="v", streams=("a", "b"), twice={"b": "c"})
    assert overview.shown(view) == "a, b (then c)"
    view = View(name="v", streams=("a", "b"), twice={"b": ("c", "d")})
    assert overview.shown(view) == "a, b (then c, d)"
    view = View(name="v", streams=("a", "b"), hide={"a": Hide()}, follow={"b": "a"})
    assert overview.shown(view) == "a (15% hidden), b (what is hidden of a)"


def test_a_mark_is_counted(world):
    recipe = tiny_recipe(world)
    streams = ("text", "image", "second")
    recipe = replace(
        recipe,
        modalities={**recipe.modalities, "second": replace(recipe.modalities["image"], field="1")},
        tied={"second": "image"},
        marked=("second",),
        plan=single_stream(streams, layers=1, width=32, heads=2),
        objectives={**recipe.objectives, "itm": itm(streams)},
    ).located()
    assert overview.parameters(recipe).parts["marks.second"] == 32
