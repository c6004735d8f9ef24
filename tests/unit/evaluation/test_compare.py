"""Systems side by side: what counts as one system, and its figures over seeds."""

import json
from dataclasses import replace

import pytest

from crossloom.evaluation.compare import compare, plot, table, write_comparison
from crossloom.evaluation.report import tuned_runs
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import RecipeError, to_yaml


def tuned(folder, recipe, accuracy, *, seed=0, start="before", settings=None, scored=None, **known):
    """A fine-tuned run as evaluation leaves it."""
    (folder / "results").mkdir(parents=True)
    recipe = replace(recipe, name=f"{recipe.name}-vqa", seed=seed, start=start)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    known |= {"task": "vqa", "settings": settings or {"pool": "first"}, "assignments": []}
    (folder / "task.json").write_text(json.dumps(known))
    body = {"metrics": {"accuracy": accuracy}, **(scored or {})}
    (folder / "results" / "vqa.json").write_text(json.dumps(body))
    (folder / "results" / "vqa.records.jsonl").write_text("")
    return folder


@pytest.fixture
def recipe(world):
    return tiny_recipe(world)


def test_mean_and_spread_are_over_seeds(recipe, tmp_path):
    runs = [tuned(tmp_path / f"a{n}", recipe, v, seed=n) for n, v in enumerate((0.5, 0.7, 0.9))]
    (score,) = compare(runs)
    assert (score.system, score.seeds, score.values) == ("tiny", (0, 1, 2), (0.5, 0.7, 0.9))
    assert score.mean == pytest.approx(0.7)
    assert score.spread == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert table([score]) == (
        ["system", "seeds", "vqa: accuracy"],
        [["tiny", "3", "0.700 ± 0.200"]],
    )


def test_a_single_seed_has_no_spread(recipe, tmp_path):
    (score,) = compare([tuned(tmp_path / "a", recipe, 0.25)])
    assert score.spread is None
    assert score.told == "0.250"


def test_fresh_weights_and_other_settings_are_other_rows(recipe, tmp_path):
    scores = compare(
        [
            tuned(tmp_path / "a", recipe, 0.8),
            tuned(tmp_path / "b", recipe, 0.4, start=""),
            tuned(tmp_path / "c", replace(recipe, name="other"), 0.6),
            tuned(tmp_path / "d", recipe, 0.7, settings={"pool": "mean"}),
        ]
    )
    rows = table(scores)[1]
    assert rows == [
        ["tiny (a)", "1", "0.800"],
        ["tiny, from scratch", "1", "0.400"],
        ["other", "1", "0.600"],
        ["tiny (d)", "1", "0.700"],
    ]


def test_what_was_evaluated_otherwise_is_another_row_and_its_split_is_told(recipe, tmp_path):
    def scored(split="test", data=recipe.data, assignments=(), **settings):
        settings = {"pool": "first", "test": f"{split}-*.tar", **settings}
        return {"split": split, "settings": settings, "data": data, "assignments": assignments}

    given = [
        (0, 0.5, scored()),
        (1, 0.7, scored()),
        (2, 0.9, scored("dev")),
        (3, 0.4, scored(tested=["de"])),
        (4, 0.3, scored(data="shards/xgqa", assignments=["data=shards/xgqa"])),
        (5, 0.2, scored(assignments=["modalities.text.limit=5"])),
    ]
    runs = [
        tuned(tmp_path / f"a{seed}", recipe, value, seed=seed, scored=body)
        for seed, value, body in given
    ]
    scores = compare(runs)
    assert [s.values for s in scores] == [(0.5, 0.7), (0.9,), (0.4,), (0.3,), (0.2,)]
    assert table(scores) == (
        ["system", "seeds", *(f"vqa on {x}: accuracy" for x in ("test", "dev", "test of xgqa"))],
        [
            ["tiny (a0)", "2", "0.600 ± 0.141", "–", "–"],
            ["tiny (a2)", "1", "–", "0.900", "–"],
            ["tiny (a3)", "1", "0.400", "–", "–"],
            ["tiny (a4)", "1", "–", "–", "0.300"],
            ["tiny (a5)", "1", "0.200", "–", "–"],
        ],
    )
    # one seed of one system has nothing to stand beside: its figure is in the table alone
    assert len(plot(scores)) == 1
    # of results written before, the split alone is told
    before = [
        tuned(tmp_path / f"b{n}", recipe, 0.5, seed=n, scored={"split": split})
        for n, split in enumerate(("test", "test", "dev"))
    ]
    assert [s.seeds for s in compare(before)] == [(0, 1), (2,)]


def test_runs_are_found_beside_the_one_they_were_tuned_from(recipe, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("run", "run-large"):
        (here / name).mkdir(parents=True)
        (here / name / "recipe.yaml").write_text(to_yaml(recipe))
    start = str(here / "run-large")
    tuned(here / "run-large-vqa", recipe, 0.6, start=start, base="../run-large")
    tuned(here / "run-large-old", recipe, 0.7, seed=1, start=start)
    tuned(here / "run-large-fresh", recipe, 0.8, start="", base="../run-large")
    tuned(here / "run-vqa", recipe, 0.5, start=str(here / "run"), base="../run")
    tuned(here / "run-old", recipe, 0.4, seed=1, start=str(here / "run"))
    tuned(here / "run-fresh", recipe, 0.3, start="", base="../run")
    tuned(here / "run-old-fresh", recipe, 0.2, seed=1, start="")

    def names(run):
        return [t.folder.name for t in tuned_runs(run)]

    large = ["run-large-fresh", "run-large-old", "run-large-vqa"]
    own = ["run-fresh", "run-old", "run-old-fresh", "run-vqa"]
    assert (names(here / "run"), names(here / "run-large")) == (own, large)
    # moved together, and without the one that some came from
    here.rename(there)
    assert (names(there / "run"), names(there / "run-large")) == (own, large)
    (there / "run-large" / "recipe.yaml").unlink()
    assert names(there / "run") == own
    assert [s.values for s in compare([there / "run"])] == [(0.3, 0.2), (0.5, 0.4)]


def test_what_cannot_be_compared_is_said(recipe, tmp_path):
    a, b = (tuned(tmp_path / n, recipe, 0.5) for n in "ab")
    with pytest.raises(RecipeError, match=r"a and .*b: the same recipe with the same seed"):
        compare([a, b])
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.yaml").write_text(to_yaml(recipe))
    with pytest.raises(RecipeError, match="bare: nothing fine-tuned"):
        compare([bare])


def test_the_page_holds_every_figure(recipe, tmp_path):
    runs = [tuned(tmp_path / f"a{n}", recipe, v, seed=n) for n, v in enumerate((0.5, 0.7))]
    scores = compare([*runs, tuned(tmp_path / "b", recipe, 0.31, start="")])
    page = tmp_path / "out" / "page.html"
    write_comparison(scores, page)
    text = page.read_text()
    assert "0.600 ± 0.141" in text
    assert "0.310" in text
    assert text.count("<svg") == len(plot(scores)) == 1
    figures = json.loads(page.with_suffix(".json").read_text())
    assert [f["mean"] for f in figures] == [pytest.approx(0.6), pytest.approx(0.31)]
