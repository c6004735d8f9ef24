"""Results by language: rows, scripts, tables and maps, in the report and in comparisons."""

import json
import re
from dataclasses import replace

import pytest

from crossloom.evaluation.by_language import OWN, Outcome, columns, outcome, rows, tables
from crossloom.evaluation.compare import compare, languages, write_comparison
from crossloom.evaluation.plots import ACROSS, heat_map
from crossloom.evaluation.report import tuned_runs, write_report
from crossloom.evaluation.scripts import script_of
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.recipe import to_yaml
from crossloom.training.run import make_model


def results(folder, task, metrics, **body):
    (folder / "results").mkdir(parents=True, exist_ok=True)
    (folder / "results" / f"{task}.json").write_text(json.dumps({"metrics": metrics, **body}))
    (folder / "results" / f"{task}.records.jsonl").write_text("")


def tuned(folder, recipe, scores, *, seed=0, start="before", settings=None, split=""):
    folder.mkdir()
    recipe = replace(recipe, name=f"{recipe.name}-xnli", seed=seed, start=start)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    known = {"task": "xnli", "settings": settings or {"languages": ["en"]}, "assignments": []}
    (folder / "task.json").write_text(json.dumps(known))
    mean = sum(scores.values()) / len(scores)
    body = {"selected_by": "dev (en)", "split": split}
    results(folder, "xnli", {"by_language": scores, "mean": mean}, **body)
    return folder


@pytest.fixture
def recipe(world):
    return tiny_recipe(world)


def test_scripts():
    codes = ("en", "sw", "ru", "ar", "ur", "zh", "zh-hant", "yue", "hi", "ja", "sr-latn", "xx")
    assert [script_of(c) for c in codes] == [
        "Latin", "Latin", "Cyrillic", "Arabic", "Arabic", "Chinese", "Chinese", "Chinese",
        "Devanagari", "Japanese", "Latin", "Latin",
    ]  # fmt: skip


def test_rows_are_means_over_seeds_and_know_what_was_fine_tuned_on():
    found = rows(
        [
            Outcome("a", "xnli", {"en": 0.8, "de": 0.4}, ("en",)),
            Outcome("a", "xnli", {"en": 0.6, "de": 0.6}, ("en",)),
            Outcome("a", "tagging", {"en": 0.5, "de": 0.5}, ()),
            Outcome("a", "sentence-retrieval", {"en": 0.1, "de": 0.2}, None),
            # in one language alone: nothing is told by language
            Outcome("a", "vqa", {"en": 0.3}, ("en",)),
            Outcome("b", "vqa", {"en": 0.4}, ("en",)),
        ]
    )
    assert [(r.name, r.task, set(r.tuned)) for r in found] == [
        ("a", "xnli", {"en"}),
        ("a", "tagging", {"en", "de"}),
        ("a", "sentence-retrieval", set()),
    ]
    assert found[0].scores == pytest.approx({"en": 0.7, "de": 0.5})


def test_a_run_for_each_language_is_one_row():
    each = [
        outcome("a", "xnli", {"by_language": {code: value}}, {"languages": [code],
                "tested": [code]}, True)
        for code, value in (("de", 0.7), ("zh", 0.6))
    ]  # fmt: skip
    (row,) = rows(each)
    assert row.name == f"a, {OWN}"
    assert row.scores == {"de": 0.7, "zh": 0.6}
    assert row.tuned == {"de", "zh"}
    assert outcome("a", "vqa", {"accuracy": 1.0}, {}, True) is None
    assert outcome("a", "captioning", {"by_language": {"en": {"cider": 1.0}}}, {}, True) is None


def test_splits_stand_apart():
    shown = rows(
        [
            Outcome("a", "xnli", {"en": 0.8, "de": 0.4}, ("en",), split="test"),
            Outcome("a", "xnli", {"en": 0.6, "de": 0.6}, ("en",), split="dev"),
        ]
    )
    assert [(r.split, r.scores["en"]) for r in shown] == [("test", 0.8), ("dev", 0.6)]
    assert [t["task"] for t in tables(shown)] == ["xnli on test", "xnli on dev"]


def test_tables_group_languages_by_script():
    shown = rows(
        [
            Outcome("a", "xnli", {"en": 0.81234, "ru": 0.5, "de": 0.6, "hi": 0.4}, ("en",)),
            Outcome("b", "xnli", {"en": 0.7, "fr": 0.3}, ("en",)),
        ]
    )
    assert columns(shown) == {"Latin": ["de", "en", "fr"], "Cyrillic": ["ru"], "Devanagari": ["hi"]}
    (table,) = tables(shown)
    assert table["scripts"] == {"Latin": 3, "Cyrillic": 1, "Devanagari": 1}
    told = {r["name"]: [c["told"] for c in r["cells"]] for r in table["rows"]}
    assert told == {"a": ["0.600", "0.812", "–", "0.500", "0.400"],
                    "b": ["–", "0.700", "0.300", "–", "–"]}  # fmt: skip
    assert [c["tuned"] for c in table["rows"][0]["cells"]] == [False, True, False, False, False]


def test_a_map_has_a_cell_for_each_score_and_a_frame_where_it_was_tuned():
    svg = heat_map(
        {"a": {"en": 0.9, "ru": 0.12}, "b": {"en": 0.55}},
        {"Latin": ["en"], "Cyrillic": ["ru"]},
        {"a": {"en"}},
        "xnli",
    )
    said = re.findall(r">([^<>]+)</text>", svg)
    assert {"90", "12", "55", "en", "ru", "a", "b", "Latin"} <= set(said)
    assert svg.count("stroke: #d97706") == 1
    many = {f"l{n}": n / 100 for n in range(ACROSS + 3)}
    svg = heat_map({"a": many}, {"Latin": list(many)}, {}, "many")
    assert len([x for x in re.findall(r">([^<>]+)</text>", svg) if x in many]) == ACROSS + 3
    assert svg.count(">a</text>") == 2  # two panels


def test_results_without_fine_tuning_stand_beside_those_with_it(recipe, tmp_path):
    from safetensors.torch import save_file

    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    save_file(dict(make_model(recipe.located()).state_dict()), run / "model.safetensors")
    results(run, "sentence-retrieval", {"accuracy": 0.3, "by_language": {"de": 0.25, "en": 0.31}})
    # what is handed in is no result
    (run / "results" / "vqa.submission.json").write_text("[]")
    tuned(tmp_path / "run-xnli", recipe, {"en": 0.8, "ru": 0.417}, start=str(run))
    scratch = {"en": 0.5, "ru": 0.333}
    tuned(tmp_path / "run-xnli-scratch", recipe, scratch, start="", split="dev")
    assert [(t.task, t.trained, t.scratch) for t in tuned_runs(run)] == [
        ("sentence-retrieval", False, False), ("xnli", True, False), ("xnli", True, True),
    ]  # fmt: skip
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>as pre-trained</td><td>0.250</td><td>0.310</td>" in page
    assert '<td>fine-tuned</td><td>0.417</td><td class="tuned">0.800</td>' in page
    assert '<td>from scratch</td><td>0.333</td><td class="tuned">0.500</td>' in page
    # scored on other splits, they do not stand side by side
    told = re.findall(r'<td>xnli(.*?)</td>.*?<td class="n">(.*?)</td>\s*<td class="n">(.*?)</td>',
                      page, re.DOTALL)  # fmt: skip
    assert told == [("", "0.609", "–"), (' <span class="tag">dev</span>', "–", "0.416")]
    assert "xnli · weights selected by: dev (en)" in page
    assert "finetune sentence-retrieval" not in page
    assert {s.task for s in compare([run])} == {"sentence-retrieval", "xnli"}


def test_a_comparison_shows_systems_by_language(recipe, tmp_path):
    runs = [tuned(tmp_path / f"a{n}", recipe, {"en": v, "de": 0.4}, seed=n)
            for n, v in enumerate((0.6, 0.8))]  # fmt: skip
    other = replace(recipe, name="other")
    runs.append(tuned(tmp_path / "b", other, {"en": 0.31, "de": 0.3}))
    for code in ("de", "sw"):
        settings = {"languages": [code], "tested": [code]}
        runs.append(tuned(tmp_path / f"c-{code}", other, {code: 0.45}, settings=settings))
    found = languages(runs)
    assert [(r.name, dict(r.scores)) for r in found] == [
        ("tiny", {"en": pytest.approx(0.7), "de": 0.4}),
        ("other (b)", {"en": 0.31, "de": 0.3}),
        (f"other, {OWN}", {"de": 0.45, "sw": 0.45}),
    ]
    page = tmp_path / "page.html"
    write_comparison(compare(runs), page, found)
    assert '<td>tiny</td><td>0.400</td><td class="tuned">0.700</td><td>–</td>' in page.read_text()
    told = json.loads((tmp_path / "page.languages.json").read_text())
    assert told[0]["tuned"] == ["en"]
