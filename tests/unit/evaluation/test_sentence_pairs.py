"""Pairs of sentences across languages: forms, selection, and what is reported."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crossloom.data_pipelines.annotated import Pairs
from crossloom.data_pipelines.shards import ShardError, open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.metrics import seen_and_unseen
from crossloom.evaluation.task import languages_of
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError
from crossloom.training.run import open_run
from crossloom.units import keyed_rng

SMALL = ("steps=6", "examples=8", "dev_every=2")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    train(replace(tiny_recipe(world), steps=1), out, start("cpu"))
    return out


def test_what_is_fine_tuned_in_english_is_selected_in_english_and_tested_in_all(base, tmp_path):
    finetune("xnli", base, tmp_path, start("cpu"), SMALL)
    result = evaluate("xnli", tmp_path, start("cpu"))
    by_language = result.metrics["by_language"]
    assert len(by_language) == 10
    others = [v for k, v in by_language.items() if k != "en"]
    assert result.metrics["fine_tuned_mean"] == by_language["en"]
    assert result.metrics["zero_shot_mean"] == pytest.approx(np.mean(others))
    assert result.metrics["mean"] == pytest.approx(np.mean(list(by_language.values())))
    told = json.loads((tmp_path / "results" / "xnli.json").read_text())["selected_by"]
    best = json.loads((tmp_path / "selected.json").read_text())
    assert told == (
        f"share right on dev-*.tar (en): {best['value']:.4f} after {best['step']} steps"
    )
    # the measurement is the accuracy of the whole English dev set, but for its last part of a batch
    again = evaluate("xnli", tmp_path, start("cpu"), ["test=dev-*.tar", "tested=[en]"])
    pairs = again.metrics["pairs"]
    assert best["value"] == pytest.approx(again.metrics["accuracy"], abs=8 / pairs)


def test_the_dev_shards_are_measured_never_drawn(base):
    recipe = make_task("xnli", ["languages=[de]"])[0].recipe(open_run(base), "")
    assert recipe.mixture["xnli"].reader == Pairs(languages=("de",))
    assert recipe.mixture["dev"].reader == Pairs(languages=("en",))
    assert recipe.mixture["dev"].weight == 0
    assert recipe.select == "dev/xnli"


def test_without_dev_shards_the_last_weights_are_taken_and_said_to_be(base, tmp_path):
    finetune("xnli", base, tmp_path / "a", start("cpu"), (*SMALL, "dev="))
    assert evaluate("xnli", tmp_path / "a", start("cpu")).selected_by == "the last step"
    with pytest.raises(ShardError, match="missing"):
        finetune("xnli", base, tmp_path / "b", start("cpu"), (*SMALL, "dev=missing-*.tar"))


def test_translate_train_is_a_run_in_one_language(base, tmp_path):
    settings = (*SMALL, "languages=[de]", "tested=[de]")
    finetune("xnli", base, tmp_path, start("cpu"), settings)
    metrics = evaluate("xnli", tmp_path, start("cpu")).metrics
    assert list(metrics["by_language"]) == ["de"]
    assert metrics["zero_shot_mean"] is None


def test_translated_tests_are_read_in_the_language_they_are_in():
    pair = {"id": "1", "label": "neutral", "premise": {"de": "A."}, "hypothesis": {"de": "B."}}
    reader = Pairs(languages=("de",), all_languages=True, read_as="en")
    data = {"json": json.dumps({"pairs": [pair]}).encode()}
    sample, labels = reader.read(data, 0, keyed_rng(0))
    assert [p.language for p in sample["text"]] == ["en", "en"]
    assert labels["language"] == "de"


def test_paraphrases_are_two_classes(base, world, tmp_path):
    for split, count in (("train", 12), ("dev", 8), ("test", 6)):
        with ShardWriter(tmp_path / "pawsx", split) as writer:
            for n in range(count):
                label = ("paraphrase", "other")[n % 2]
                pair = {"id": str(n), "label": label}
                pair |= {s: {"en": f"{s} {n}", "fr": f"{s} {n}"} for s in ("premise", "hypothesis")}
                writer.write(f"{n:03d}", {"json": {"id": str(n), "pairs": [pair]}})
    vocabulary = world / "tokenizer.model"
    settings = [*SMALL, f"data={tmp_path / 'pawsx'}", f"modalities.text.vocabulary={vocabulary}"]
    finetune("pawsx", base, tmp_path / "run", start("cpu"), settings)
    result = evaluate("pawsx", tmp_path / "run", start("cpu"))
    assert {r["predicted"] for r in result.records} <= {"paraphrase", "other"}
    right = [r["predicted"] == r["label"] for r in result.records]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert set(result.metrics["by_language"]) == {"en", "fr"}


def test_a_language_counts_that_the_first_sample_lacks(tmp_path):
    """The second of two shards has a language more, in its second pair, and a bad sample."""
    told = [[{"en": "A.", "de": ""}], [{"en": "A."}, {"en": "A.", "fr": "A."}], ["no pair"]]
    for name, some in (("test", told[:1]), ("test-more", told[1:])):
        with ShardWriter(tmp_path, name) as writer:
            for n, texts in enumerate(some):
                for task in ("pairs", "spans"):
                    field = "premise" if task == "pairs" else "text"
                    listed = [x if isinstance(x, str) else {field: x} for x in texts]
                    writer.write(f"{task}{n}", {"json": {"id": str(n), task: listed}})
    recipe = replace(tiny_recipe(tmp_path), data=str(tmp_path))
    assert make_task("xnli")[0].tested_with(recipe).languages == ("en", "fr")
    assert make_task("xquad")[0]._languages(recipe) == ("en", "fr")
    with pytest.raises(RecipeError, match="no pairs to test on"):
        languages_of(open_shards("test-0*.tar", tmp_path), "pairs", "hypothesis")


def test_means_over_languages_by_hand():
    scores = {"de": 0.5, "en": 0.9, "fr": 0.7}
    assert seen_and_unseen(scores, ("en",)) == {
        "mean": pytest.approx(0.7),
        "fine_tuned_mean": 0.9,
        "zero_shot_mean": pytest.approx(0.6),
    }
    assert seen_and_unseen(scores, ())["zero_shot_mean"] is None
