"""Translation: the task, its reader, what is written and how it is scored."""

import sys
from dataclasses import replace

import pytest

from crossloom import load
from crossloom.data_pipelines.read import Parallel, two_languages
from crossloom.evaluation import translation
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.translation import Translation, _score
from crossloom.models.generation import Search
from crossloom.plugins import find
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError, load_recipe
from crossloom.training.run import load_weights, make_model, open_run, start_from
from crossloom.units import BadSample, keyed_rng


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A denoising run of one step: tokens for languages, no translation yet."""
    recipe = load_recipe("mbart-tiny", [f"data={world}", "steps=1", "workers=0", "examples=4"])
    out = tmp_path_factory.mktemp("base")
    train(recipe, out, start("cpu"))
    return out


def test_translations_are_learned_written_and_scored(base, tmp_path):
    from sacrebleu.metrics import BLEU, CHRF

    settings = ["directions=[en-de, de-en]", "beams=2", "longest=24", "steps=60", "examples=16",
                "optim.rate=5e-3", "workers=0", "schedule.warmup=5"]  # fmt: skip
    finetune("translation", base, tmp_path, start("cpu"), settings)
    result = evaluate("translation", tmp_path, start("cpu"))
    metrics, records = result.metrics, result.records
    assert set(metrics["by_direction"]) == {"en-de", "de-en"}
    assert metrics["sentences"] == 40 == len({(r["direction"], r["key"]) for r in records})
    for direction, scores in metrics["by_direction"].items():
        some = [r for r in records if r["direction"] == direction]
        said = (tmp_path / "results" / f"translation.{direction}.txt").read_text().split("\n")
        known = tmp_path / "results" / f"translation.{direction}.reference.txt"
        assert said == [*(r["predicted"] for r in some), ""]
        assert known.read_text().split("\n") == [*(r["reference"] for r in some), ""]
        lines, references = [r["predicted"] for r in some], [[r["reference"] for r in some]]
        bleu = BLEU()
        assert scores["bleu"] == pytest.approx(bleu.corpus_score(lines, references).score / 100)
        assert scores["chrf"] == pytest.approx(CHRF().corpus_score(lines, references).score / 100)
        assert scores["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
        assert scores["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")
    for name in ("bleu", "chrf"):
        both = [s[name] for s in metrics["by_direction"].values()]
        assert metrics[name] == pytest.approx(sum(both) / 2)
    # after 60 steps it knows each language's sentences, if not yet what is said in them
    for direction, word in (("en-de", "Das Bild zeigt"), ("de-en", "The picture shows")):
        some = [r["predicted"] for r in records if r["direction"] == direction]
        assert sum(s.startswith(word[:3]) for s in some) > 5, some
    assert metrics["chrf"] > 0.2
    # the same in Python: the language asked for is the one that is said
    loaded = load(tmp_path)
    texts = [("en", r["text"]) for r in records if r["direction"] == "en-de"][:3]
    search = Search(beams=2, longest=24)
    said = loaded.say("denoise", search, language="de", text=texts)
    assert [s[0].text for s in said] == [r["predicted"] for r in records[:3]]
    other = loaded.say("denoise", search, language="en", text=texts)
    assert [s[0].text for s in other] != [s[0].text for s in said]


def test_the_head_and_all_weights_go_on(base):
    task, _ = make_task("translation", ["smoothing=0.1"])
    recipe = task.recipe(open_run(base), str(base))
    fresh, unused = start_from(make_model(recipe), load_weights(base)[0])
    assert (fresh, unused) == ([], [])
    (objective,) = recipe.objectives.values()
    assert (objective.smoothing, objective.view.hide, objective.view.follow) == (0.1, {}, {})
    assert objective.view.reads == {"text": ("text",)}
    assert recipe.modalities["target"].field == "second"
    (component,) = recipe.mixture.values()
    assert component.reader == Parallel(directions=("en-de",), apart=True)


@pytest.mark.parametrize("name", ["mass-tiny", "xnlg-tiny", "xgpt-tiny"])
def test_encoder_decoders_of_other_kinds_are_tuned_alike(name, world):
    recipe = load_recipe(name, [f"data={world}"]).located()
    task, _ = make_task("translation", ["directions=[en-fr]"])
    made = task.recipe(recipe, "")
    assert task.streams(recipe) == ("text", "target")
    make_model(made)
    (objective,) = made.objectives.values()
    assert objective.view.streams == ("text", "target")
    assert (objective.view.follow, objective.view.unseen) == ({}, ())


def test_what_says_no_text_from_a_text_is_refused(world):
    recipe = tiny_recipe(world).located()
    with pytest.raises(RecipeError, match="no objective says 'a text' from 'text'"):
        Translation().recipe(recipe, "")


def test_a_run_that_was_not_tuned_is_refused(base):
    with pytest.raises(RecipeError, match="fine-tune translation first"):
        evaluate("translation", base, start("cpu"))


def test_the_tokeniser_is_the_languages():
    same = ["图中有一个绿色的圆形。"]
    scores = _score(Translation()._scorers("en-zh"), same, same)
    assert (scores["bleu"], scores["sentences"]) == (pytest.approx(1), 1)
    assert "tok:zh" in scores["bleu_signature"]
    scorers = Translation(tokenize="char")._scorers("en-de")
    assert "tok:char" in _score(scorers, ["ein Haus"], ["ein Haus"])["bleu_signature"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["directions=[en-ja]"], r"en-ja: .*sacrebleu\[ja\].* or set tokenize=char"),
        (["directions=[en-ja]", "tokenize=words"], "no 'words'; it has .*char"),
    ],
)
def test_metrics_are_on_hand_before_anything_is_said(base, monkeypatch, settings, message):
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    monkeypatch.setattr(translation, "say", pytest.fail)
    task, _ = make_task("translation", settings)
    recipe = task.recipe(open_run(base), "")
    with pytest.raises(RecipeError, match=message):
        task.evaluate(make_model(recipe), recipe)


def test_the_task_is_found():
    assert find("task", "translation") is Translation


def read(reader, texts, seed=0, **more):
    import json

    members = {"json": json.dumps({"texts": texts, "id": 7, **more}).encode()}
    return reader.read(members, 0, keyed_rng(seed))


def test_directions_are_kept():
    texts = {"en": ["a", "b"], "de": ["A", "B"], "fr": ["x", "y"]}
    reader = Parallel(directions=("en-de", "de-en", "en-sw"), apart=True)
    seen = set()
    for seed in range(40):
        sample, labels = read(reader, texts, seed)
        (one,), (other,) = sample["text"], sample["second"]
        assert labels == {"languages": (one.language, other.language),
                          "texts": (one.text, other.text), "id": "7"}  # fmt: skip
        assert one.text.lower() == other.text.lower()
        seen.add(labels["languages"])
    assert seen == {("en", "de"), ("de", "en")}
    joint, _ = read(replace(reader, apart=False), texts)
    assert {p.language for p in joint["text"]} == {"en", "de"}


def test_a_sample_without_the_languages_is_bad():
    with pytest.raises(BadSample, match="has en, fr; not en-de"):
        read(Parallel(directions=("en-de",)), {"en": ["a"], "fr": ["b"]})


def test_directions_that_are_none_are_refused():
    assert two_languages("zh-hant-en") == ("zh", "hant-en")
    for wrong in ("en", "-de", "en-"):
        with pytest.raises(ValueError, match="of the form en-de"):
            Parallel(directions=(wrong,))
        with pytest.raises(RecipeError, match="of the form en-de"):
            make_task("translation", [f"directions=['{wrong}']"])
    with pytest.raises(ValueError, match="leave languages"):
        Parallel(directions=("en-de",), languages=("en",))
