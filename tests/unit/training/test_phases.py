"""Other weights, and further sources, from a step on."""

import shutil
from dataclasses import replace

import pytest

from crossloom.data_pipelines.mixture import Mixture
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import Phase, RecipeError, from_dict, from_yaml, to_dict
from crossloom.training.run import RECIPE, continued, make_stack

CPU = start("cpu")


def test_each_component_goes_on_where_it_was():
    mixture = Mixture(
        {"a": 3, "b": 1, "c": 0}, seed=1, cycle=8, changes=[(13, {"b": 1, "c": 1}), (20, {"a": 1})]
    )
    seen = {"a": 0, "b": 0, "c": 0}
    for micro in range(40):
        name, before = mixture.at(micro)
        assert before == seen[name]
        seen[name] += 1
        assert name != "c" or 13 <= micro < 20
        assert name == "a" or micro < 20
    assert seen["c"] > 0


def test_micro_batches_of_a_step_can_be_of_one_component():
    changes = [(40, {"b": 1, "c": 1})]
    mixture = Mixture({"a": 3, "b": 1, "c": 0}, seed=1, cycle=8, changes=changes, alike=4)
    seen, steps = {"a": 0, "b": 0, "c": 0}, []
    for micro in range(120):
        name, before = mixture.at(micro)
        assert before == seen[name]
        seen[name] += 1
        if micro % 4 == 0:
            steps.append(name)
        assert name == steps[-1]
    assert [steps[:8].count(n) for n in "abc"] == [6, 2, 0]
    assert [steps[10:18].count(n) for n in "abc"] == [0, 4, 4]
    with pytest.raises(ValueError, match="multiples of 4"):
        Mixture({"a": 1}, seed=0, changes=[(6, {"a": 1})], alike=4)


def test_a_step_mixes_components_unless_told_otherwise(world):
    recipe = replace(tiny_recipe(world), micro=4)
    for alike in (False, True):
        stack = make_stack(replace(recipe, alike=alike).located())
        kinds = [{stack.places(4 * s + n)[0] for n in range(4)} for s in range(12)]
        assert all(len(k) == 1 for k in kinds) == alike
    with pytest.raises(RecipeError, match="alike: False when the run began"):
        continued(replace(recipe, alike=True), recipe, 3)


def test_before_a_change_everything_is_as_without_it():
    plain = Mixture({"a": 3, "b": 1}, seed=5)
    changed = Mixture({"a": 3, "b": 1}, seed=5, changes=[(500, {"b": 1})])
    assert [plain.at(n) for n in range(500)] == [changed.at(n) for n in range(500)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(5, {"a": 1}), (5, {"a": 1})], "ascend"),
        ([(0, {"a": 1})], "ascend"),
        ([(3, {"x": 1})], "of a, b"),
        ([(3, {"a": 0})], "one positive"),
    ],
)
def test_changes_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Mixture({"a": 3, "b": 1}, seed=0, changes=changes)


def weigh(recipe, **weights):
    mixture = {n: replace(c, weight=weights.get(n, c.weight)) for n, c in recipe.mixture.items()}
    return replace(recipe, mixture=mixture)


def test_a_change_at_a_resume_is_recorded_and_kept(world):
    before = tiny_recipe(world)
    changed = continued(weigh(before, captions=1.0, translations=5.0), before, 7)
    assert changed.phases == (Phase(step=7, weights={"captions": 1.0, "translations": 5.0}),)
    assert {n: c.weight for n, c in changed.mixture.items()} == {
        n: c.weight for n, c in before.mixture.items()
    }
    # the same again, the recipe as it was at first, and the record itself: nothing new
    for again in (weigh(before, captions=1.0, translations=5.0), before, changed):
        assert continued(again, changed, 9) == changed
    further = continued(weigh(before, captions=0.0, translations=1.0), changed, 9)
    assert [p.step for p in further.phases] == [7, 9]
    assert from_dict(to_dict(further)) == further


def test_a_source_can_be_added(world):
    before = tiny_recipe(world)
    extra = replace(before.mixture["translations"], weight=2.0)
    added = replace(before, mixture={**before.mixture, "more": extra})
    after = continued(added, before, 3)
    assert after.mixture["more"].weight == 0
    assert after.phases[0].weights["more"] == 2.0
    old, new = make_stack(before.located()), make_stack(after.located())
    first = 3 * before.micro
    assert [old.keys(n) for n in range(first)] == [new.keys(n) for n in range(first)]
    assert "more" in {new.places(n)[0] for n in range(first, first + 40)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": 8}, "examples: 4 when the run began, now 8"),
        ({"seed": 3}, "seed: 0"),
        ({"micro": 4}, "micro: 2"),
    ],
)
def test_what_the_order_counts_in_cannot_change(world, change, message):
    before = tiny_recipe(world)
    with pytest.raises(RecipeError, match=message):
        continued(replace(before, **change), before, 4)


def test_components_cannot_leave_or_read_something_else(world):
    before = tiny_recipe(world)
    one = {"captions": before.mixture["captions"]}
    fewer = replace(
        before, mixture=one, objectives={k: v for k, v in before.objectives.items() if k != "tlm"}
    )
    with pytest.raises(RecipeError, match="give it weight 0"):
        continued(fewer, before, 4)
    other = {**before.mixture, "captions": replace(one["captions"], shards="dev-*.tar")}
    with pytest.raises(RecipeError, match="captions: differs"):
        continued(replace(before, mixture=other), before, 4)


def test_phases_of_the_past_stay(world):
    before = replace(tiny_recipe(world), phases=(Phase(step=2, weights={"captions": 1.0}),))
    rewritten = replace(before, phases=(Phase(step=1, weights={"captions": 1.0}),))
    with pytest.raises(RecipeError, match="before step 4"):
        continued(rewritten, before, 4)
    planned = replace(before, phases=(*before.phases, Phase(step=9, weights={"captions": 1.0})))
    assert continued(planned, before, 4) == planned
    # one that begins at the step itself has not been trained with
    assert continued(rewritten, before, 1).phases == rewritten.phases
    other = continued(weigh(tiny_recipe(world), captions=1.0, translations=5.0), before, 2)
    assert other.phases == (Phase(step=2, weights={"captions": 1.0, "translations": 5.0}),)
    later = replace(before, phases=(Phase(step=3, weights={"captions": 1.0}),))
    assert continued(later, before, 2) == later


def test_a_run_goes_on_with_other_weights(world, tmp_path):
    recipe = replace(tiny_recipe(world), steps=8, save_every=4)
    train(recipe, tmp_path / "whole", CPU)
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*8"):
        shutil.rmtree(path)
    train(weigh(recipe, captions=0.0), tmp_path / "run", CPU, resume=True)
    written = from_yaml(tmp_path / "run" / RECIPE)
    assert written.phases == (Phase(step=4, weights={"captions": 0.0, "translations": 1.0}),)
    stack = make_stack(written.located())
    assert {stack.places(n)[0] for n in range(8, 16)} == {"translations"}


def test_unknown_components_in_a_phase_are_named(world):
    with pytest.raises(ValueError, match="did you mean 'captions'"):
        replace(tiny_recipe(world), phases=(Phase(step=2, weights={"caption": 1.0}),))
