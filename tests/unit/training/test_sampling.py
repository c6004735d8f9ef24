"""Languages by alpha: components, shares, and what a resumed run makes of them."""

import json
from dataclasses import replace

import pytest

from crossloom.data_pipelines.mixture import Mixture
from crossloom.data_pipelines.read import Blocks, Parallel, Texts
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.report import _shares
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mlm
from crossloom.run import load
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import (
    Component,
    Phase,
    Recipe,
    RecipeError,
    from_dict,
    from_yaml,
    to_dict,
)
from crossloom.training.run import RECIPE, make_stack
from crossloom.training.sampling import expand, read_shares, shares, table

SIZES = {"en": 120, "de": 40, "sw": 8}


def write(folder, language, count, split="train"):
    with ShardWriter(folder, f"{language}-{split}", shard_size=50) as writer:
        for number in range(count):
            text = f"{language} {number} on the left"
            writer.write(f"{language}-{number:04d}", {"json": {"texts": {language: [text]}}})


@pytest.fixture
def corpora(world, tmp_path):
    """A set of shards for each of three languages, and one that has them all."""
    out = tmp_path / "data"
    for language, count in SIZES.items():
        write(out, language, count)
        write(out, language, 8, "dev")
    with ShardWriter(out / "all", "train", shard_size=50) as writer:
        for number in range(120):
            texts = {x: [f"{x} {number}"] for x, count in SIZES.items() if number < count}
            writer.write(f"s-{number:04d}", {"json": {"texts": texts}})
    (out / "tokenizer.model").write_bytes((world / "tokenizer.model").read_bytes())
    return out


def recipe_of(folder, **changed):
    component = Component(
        shards="{language}-train-*.tar", reader=Texts(), objectives=("mlm",),
        languages=tuple(SIZES), alpha=0.3,
    )  # fmt: skip
    return Recipe(
        **{
            "name": "languages", "data": str(folder),
            "modalities": {"text": Text(limit=32, dropout=0.0)},
            "plan": single_stream(("text",), layers=1, width=16, heads=2, dropout=0.0),
            "objectives": {"mlm": mlm(("text",))},
            "mixture": {"wiki": replace(component, **changed.pop("component", {}))},
            "steps": 4, "examples": 4, "workers": 0, "log_every": 2, "save_every": 2,
        } | changed
    )  # fmt: skip


def expected(alpha, sizes=SIZES):
    raised = {x: (n / sum(sizes.values())) ** alpha for x, n in sizes.items()}
    return {f"wiki-{x}": v / sum(raised.values()) for x, v in raised.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_a_language_weighs_as_its_examples_to_the_power_of_alpha(corpora, alpha):
    recipe = expand(recipe_of(corpora, component={"alpha": alpha, "weight": 2.0}))
    weights = {n: c.weight / 2 for n, c in recipe.mixture.items()}
    assert weights == pytest.approx(expected(alpha), rel=1e-5)
    assert {n: c.shards for n, c in recipe.mixture.items()} == {
        f"wiki-{x}": f"{x}-train-*.tar" for x in SIZES
    }
    assert not any(c.languages for c in recipe.mixture.values())


@pytest.mark.parametrize("reader", [Blocks(), Texts(all_texts=True)])
def test_languages_of_one_set_are_told_apart_by_the_reader(corpora, reader):
    recipe = recipe_of(corpora, component={"shards": "all/*.tar", "reader": reader})
    whole = expand(recipe)
    weights = {n: c.weight for n, c in whole.mixture.items()}
    assert weights == pytest.approx(expected(0.3), rel=1e-5)
    stack = make_stack(recipe)
    assert {n: len(p.source) for n, p in stack.parts.items()} == {
        f"wiki-{x}": n for x, n in SIZES.items()
    }
    assert {c.reader.languages for c in whole.mixture.values()} == {(x,) for x in SIZES}


def test_micro_batches_are_of_one_language_each_by_its_share(corpora):
    stack = make_stack(recipe_of(corpora))
    met = [stack.keys(n) for n in range(1000)]
    for name, keys in met[:50]:
        assert {k.split("-")[0] for k in keys} == {name.removeprefix("wiki-")}
    for name, share in expected(0.3).items():
        assert sum(n == name for n, _ in met) == pytest.approx(1000 * share, abs=1)


def test_components_without_languages_are_left_as_they_are(corpora, world):
    recipe = tiny_recipe(world).located()
    assert expand(recipe) is recipe
    # by hand, with the same weights, the order is the same
    whole = expand(recipe_of(corpora))
    assert expand(whole) is whole
    one, other = make_stack(recipe_of(corpora)), make_stack(from_dict(to_dict(whole)))
    assert [one.keys(n) for n in range(40)] == [other.keys(n) for n in range(40)]


def test_phases_are_of_the_component_as_a_whole(corpora):
    recipe = recipe_of(corpora)
    mixture = {**recipe.mixture, "other": Component(
        shards="all/*.tar", reader=Texts(), objectives=("mlm",), weight=0.0
    )}  # fmt: skip
    phases = (Phase(step=2, weights={"wiki": 3.0, "other": 1.0}),)
    whole = expand(replace(recipe, mixture=mixture, phases=phases))
    weights = dict(whole.phases[0].weights)
    assert weights.pop("other") == 1.0
    assert weights == pytest.approx({n: 3 * x for n, x in expected(0.3).items()}, rel=1e-5)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ({"alpha": 1.5}, "alpha must lie in 0..1"),
        ({"languages": ()}, "alpha weighs languages"),
        ({"languages": (), "alpha": 1.0}, "list the `languages`"),
        ({"languages": ("en", "en")}, "named twice"),
        ({"held": "en-dev-*.tar"}, "must both have {language}"),
    ],
)
def test_settings_that_make_no_sense(corpora, component, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(corpora, component=component)


@pytest.mark.parametrize("reader", [Texts(), Parallel(), Texts(all_texts=True, of="statements")])
def test_readers_that_do_not_count_by_language_are_refused(corpora, reader):
    recipe = recipe_of(corpora, component={"shards": "all/*.tar", "reader": reader})
    if getattr(reader, "all_texts", False):
        with pytest.raises(ValueError, match="hold no example"):
            expand(recipe)
        return
    with pytest.raises(RecipeError, match=r"mixture.wiki.languages: .* all_texts"):
        expand(recipe)


def test_names_that_meet_and_live_streams_are_refused(corpora):
    recipe = recipe_of(corpora)
    second = Component(shards="all/*.tar", reader=Texts(), objectives=("mlm",))
    twice = replace(recipe, mixture={**recipe.mixture, "wiki-sw": second})
    with pytest.raises(RecipeError, match=r"mixture\.wiki-sw: there are two"):
        expand(twice)
    with pytest.raises(RecipeError, match="cannot be counted by language"):
        expand(recipe_of(corpora, component={"shards": "live:cat {language}"}))


def test_how_many_were_given_is_what_counting_finds():
    changes = [(12, {"b": 1, "c": 1}), (40, {"a": 1})]
    for alike in (1, 4):
        mixture = Mixture({"a": 3, "b": 1, "c": 0}, seed=1, cycle=8, changes=changes, alike=alike)
        names = [mixture.at(n)[0] for n in range(120)]
        for micro in (0, 1, 7, 11, 12, 13, 40, 50, 53, 120):
            found = mixture.given(micro).tolist()
            assert found == [names[:micro].count(n) for n in "abc"]


def test_shares_by_hand(corpora):
    recipe = expand(recipe_of(corpora, steps=500, micro=2))
    stack = make_stack(recipe)
    found = {x.component: x for x in shares(recipe, stack)}
    names = [stack.mixture.at(n)[0] for n in range(1000)]
    for language, count in SIZES.items():
        one = found[f"wiki-{language}"]
        assert (one.examples, one.data) == (count, count / 168)
        assert one.run == names.count(one.component) / 1000
        assert one.epochs == names.count(one.component) * 4 / count
    rows = table(recipe_of(corpora, steps=500, micro=2))
    assert [row[:3] for row in rows] == [
        ("wiki-en", "120", "71.43%"), ("wiki-de", "40", "23.81%"), ("wiki-sw", "8", "4.76%"),
    ]  # fmt: skip
    assert table(recipe_of(corpora / "gone")) == []


def test_a_run_tells_its_shares_and_goes_on_with_them(corpora, tmp_path, capsys):
    """Also by the recipe's own name; where data grew, the weights change from that step on."""
    out = tmp_path / "run"
    recipe = recipe_of(corpora)
    train(replace(recipe, steps=2), out, start("cpu"))
    assert "wiki-sw: 8 examples, 4.76% of the data" in capsys.readouterr().out
    saved = from_yaml(out / RECIPE)
    assert saved.mixture == expand(recipe).mixture
    assert [x.component for x in read_shares(out)] == [f"wiki-{x}" for x in SIZES]
    assert "wiki-sw" in _shares(out)[0]
    assert load(out).encode(text=["sw 3 on the left", ("de", "de 4")])["text"].shape == (2, 16)
    train(replace(recipe, steps=4), out, start("cpu"), resume=True)
    resumed = from_yaml(out / RECIPE)
    assert (resumed.mixture, resumed.phases) == (saved.mixture, ())

    for tar in corpora.glob("sw-train-*"):
        tar.unlink()
    write(corpora, "sw", 80)
    train(replace(recipe, steps=6), out, start("cpu"), resume=True)
    grown = from_yaml(out / RECIPE)
    assert {n: c.weight for n, c in grown.mixture.items()} == {
        n: c.weight for n, c in saved.mixture.items()
    }
    (phase,) = grown.phases
    assert phase.step == 4
    assert dict(phase.weights) == pytest.approx(expected(0.3, {**SIZES, "sw": 80}), rel=1e-5)


def test_losses_on_data_held_back_come_by_language(corpora, tmp_path):
    recipe = recipe_of(corpora, component={"held": "{language}-dev-*.tar"}, held_every=2)
    train(replace(recipe, steps=2), tmp_path / "run", start("cpu"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {f"held/wiki-{x}/mlm/loss" for x in SIZES} <= set(json.loads(lines[-1]))
