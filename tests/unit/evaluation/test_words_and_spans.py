"""Tagging and answering by spans: scores by hand, and both learned on small shards."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import train as train_tokenizer
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.answer_spans import XQuad, best_spans
from crossloom.evaluation.answers import best, exact, f1, normalise
from crossloom.evaluation.chunks import are_chunks, chunk_scores, chunks
from crossloom.evaluation.finetune import evaluate, finetune, make_task
from crossloom.evaluation.tagging import Tagging
from crossloom.modalities.text import Text
from crossloom.models.presets import single_stream
from crossloom.objectives.presets import mmlm
from crossloom.objectives.tag import Tag
from crossloom.objectives.view import Shown, View
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError
from crossloom.training.run import make_model, open_run
from crossloom.units import keyed_rng, make_units

CPU = start("cpu")


# --- chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A I-A O", {("A", 0, 1)}),
        ("I-A I-A", {("A", 0, 1)}),
        ("B-A B-A", {("A", 0, 0), ("A", 1, 1)}),
        ("B-A I-B I-B", {("A", 0, 0), ("B", 1, 2)}),
        ("O I-A O I-A", {("A", 1, 1), ("A", 3, 3)}),
        ("B-A I-A E-A S-A O", {("A", 0, 2), ("A", 3, 3)}),
        ("B-A E-A I-A S-A I-A", {("A", 0, 1), ("A", 2, 2), ("A", 3, 3), ("A", 4, 4)}),
        ("O O", set()),
    ],
)
def test_chunks_by_hand(tags, expected):
    assert chunks(tags.split()) == expected


def test_chunk_scores_by_hand():
    right = [["B-A", "I-A", "O"], ["B-B", "O", "B-A"]]
    said = [["B-A", "O", "O"], ["B-B", "O", "B-B"]]
    # three there, three found, one of them right
    assert chunk_scores(right, said) == pytest.approx(
        {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3}
    )
    assert chunk_scores([["O"]], [["O"]])["f1"] == 0
    assert are_chunks(["O", "B-A", "I-A"])
    assert not are_chunks(["NOUN", "VERB"])


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "language", "rules", "match", "share"),
    [
        ("the Cat.", "cat", "en", "squad", 1, 1),
        ("a red cat", "the red dog", "en", "squad", 0, 0.5),
        ("der Hund", "Hund", "de", "squad", 0, 2 / 3),
        ("der Hund", "Hund", "de", "mlqa", 1, 1),
        # whole, and two of three characters
        ("北京市", "北京", "zh", "squad", 0, 0),
        ("北京市", "北京", "zh", "mlqa", 0, 0.8),
        ("《北京》", "北京", "zh", "mlqa", 1, 1),
        ("«Hund»", "Hund", "de", "squad", 0, 0),
        ("", "x", "en", "squad", 0, 0),
    ],
)
def test_answers_by_hand(said, right, language, rules, match, share):
    assert exact(said, right, language, rules) == match
    assert f1(said, right, language, rules) == pytest.approx(share)


def test_the_best_of_several_right_answers_counts():
    assert best(f1, "red cat", ["dog", "the cat", "red"], "en", "squad") == pytest.approx(2 / 3)
    assert normalise("An  apple, a day", "en", "squad") == "apple day"


def test_spans_are_found_as_by_trying_all():
    rng = keyed_rng("spans")
    characters = np.array([[-1] * 3, [0, 0, 2], [-1] * 3, *([1, n, n + 1] for n in range(9))])
    scores = rng.normal(size=(14, 2))
    tried = {
        (first, last): scores[first, 0] + scores[last, 1]
        for first in range(3, 12)
        for last in range(first, min(first + 3, 12))
    }
    found = best_spans(scores, characters, 3, 5)
    ordered = sorted(tried, key=lambda s: -tried[s])[:5]
    assert [(a, b) for _, a, b in found] == ordered
    assert [s for s, _, _ in found] == pytest.approx([tried[s] for s in ordered])
    assert len(best_spans(scores, characters, 3, 99)) == len(tried)


def test_a_span_of_several_windows_has_the_best_of_their_scores():
    characters = np.array([[-1] * 3, [1, 0, 3], [1, 3, 6]])
    window = SimpleNamespace(units={"text": SimpleNamespace(targets={"characters": characters})})
    scores = np.zeros((2, 3, 2))
    scores[0, 1] = 3, 4
    assert XQuad(answers=2)._best([window, window], scores) == [(7, 0, 3), (3, 0, 6)]


# --- learned ------------------------------------------------------------------------------------

NOUNS, VERBS = ("cat", "dog", "bird"), ("waits", "sleeps", "sings")
GERMAN = dict(zip((*NOUNS, *VERBS), ("Katze", "Hund", "Vogel", "wartet", "schläft", "singt"),
                  strict=True))  # fmt: skip


def said(rng, words=5):
    return [str(rng.choice(NOUNS if rng.random() < 0.5 else VERBS)) for _ in range(words)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Words with what they are, and which of them a question asks for; with a vocabulary."""
    out = tmp_path_factory.mktemp("words")
    for split, count in (("train", 200), ("dev", 40), ("test", 30)):
        with ShardWriter(out, split) as writer:
            for n in range(count):
                rng = keyed_rng("words", split, n)
                words = said(rng)
                texts, tags = {"en": [" ".join(words)]}, ["N" if w in NOUNS else "V" for w in words]
                if split == "test":
                    texts["de"] = [" ".join(GERMAN[w] for w in words)]
                content = {"id": str(n), "texts": texts}
                content["tags"] = {"upos": dict.fromkeys(texts, tags)}
                writer.write(f"{n:04d}", {"json": content})
        with ShardWriter(out / "answers", split) as writer:
            for n in range(count):
                rng = keyed_rng("answers", split, n)
                fill = [str(rng.choice(VERBS)) for _ in range(11)]
                place = int(rng.integers(12))
                noun = str(rng.choice(NOUNS))
                text = " ".join([*fill[:place], noun, *fill[place:]])
                answer = {"text": noun, "start": len(" ".join([*fill[:place], ""]))}
                span = {"id": str(n), "text": {"en": "who"}, "answers": {"en": [answer]}}
                content = {"id": str(n), "texts": {"en": [text]}, "spans": [span]}
                writer.write(f"{n:04d}", {"json": content})
    for folder in (out, out / "answers"):
        (folder / "upos.txt").write_text("N\nV\n")
        train_tokenizer(open_shards("t*-*.tar", out), folder / "tokenizer.model", size=60,
                        coverage=1.0)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def base(world, shards, tmp_path_factory):
    recipe = tiny_recipe(world)
    recipe = replace(
        recipe,
        data=str(shards),
        modalities={"text": Text(limit=16, dropout=0.0)},
        plan=single_stream(("text",), layers=1, width=32, heads=2, dropout=0.0),
        objectives={"mmlm": mmlm()},
        mixture={"captions": replace(recipe.mixture["captions"], objectives=("mmlm",))},
        steps=1,
    )
    out = tmp_path_factory.mktemp("base")
    train(recipe, out, CPU)
    return out


FAST = ("examples=16", "optim.rate=5e-3", "log_every=30")


def test_tags_are_learned_and_scored_word_by_word(base, shards, tmp_path):
    finetune("tagging", base, tmp_path, CPU, [*FAST, "steps=60", "dev_every=30"], scratch=True)
    result = evaluate("tagging", tmp_path, CPU)
    by_language = result.metrics["by_language"]
    assert by_language["en"] > 0.95
    assert result.metrics["fine_tuned_mean"] == by_language["en"]
    assert result.metrics["zero_shot_mean"] == by_language["de"]
    right = [a == b for r in result.records for a, b in zip(r["tags"], r["predicted"], strict=True)]
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert result.metrics["words"] == len(right) == 30 * 2 * 5
    assert "f1" not in result.metrics
    first = result.records[0]
    rows = (tmp_path / "results" / f"tagging.predictions.{first['language']}.txt").read_text()
    assert rows.split("\n\n")[0].splitlines() == [
        f"{w} {t} {p}"
        for w, t, p in zip(first["words"], first["tags"], first["predicted"], strict=True)
    ]
    assert result.selected_by.startswith("share right on dev-*.tar (en)")
    # words that the text has no room for are wrong, and counted
    short = evaluate("tagging", tmp_path, CPU, ["modalities.text.limit=5", "tested=[en]",
                                                "modalities.text.positions=16"])  # fmt: skip
    assert short.metrics["cut"] > 0
    assert short.metrics["accuracy"] < result.metrics["by_language"]["en"]


def test_words_that_were_cut_are_wrong_whatever_their_tag():
    record = {"key": "a", "language": "en", "split": "test", "words": list("abcd"), "cut": 2}
    record |= {"tags": ["B-A", "O", "O", "B-A"], "predicted": ["B-A", "O", None, None]}
    metrics = Tagging()._metrics([record], ["O", "B-A"])
    assert metrics["accuracy"] == 2 / 4
    assert (metrics["precision"], metrics["recall"]) == (1, 1 / 2)


def test_names_are_scored_as_chunks(base, shards, tmp_path):
    for split in ("train", "dev", "test"):
        with ShardWriter(tmp_path / "names", split) as writer:
            for n in range(12):
                content = {"id": str(n), "texts": {"en": ["cat dog waits"]}}
                content["tags"] = {"ner": {"en": ["B-A", "I-A", "O"]}}
                writer.write(f"{n:04d}", {"json": content})
    (tmp_path / "names" / "ner.txt").write_text("O\nB-A\nI-A\n")
    settings = [f"data={tmp_path / 'names'}", "tagset=ner", "steps=2", "dev="]
    settings.append(f"modalities.text.vocabulary={shards / 'tokenizer.model'}")
    finetune("tagging", base, tmp_path / "run", CPU, settings, scratch=True)
    result = evaluate("tagging", tmp_path / "run", CPU)
    right, predicted = ([r[k] for r in result.records] for k in ("tags", "predicted"))
    assert result.metrics["f1"] == chunk_scores(right, predicted)["f1"]
    assert result.metrics["by_language"] == {"en": result.metrics["f1"]}
    # there is room for one word, between the units that begin and end the text
    settings = ["modalities.text.limit=3", "modalities.text.positions=16"]
    short = evaluate("tagging", tmp_path / "run", CPU, settings)
    assert {tuple(r["predicted"][1:]) for r in short.records} == {(None, None)}
    assert short.metrics["accuracy"] <= 1 / 3
    handed_in = (tmp_path / "run" / "results" / "tagging.predictions.en.txt").read_text()
    assert handed_in.splitlines()[2] == "waits O O"


def test_answers_are_found_in_windows(base, shards, tmp_path):
    data = f"data={shards / 'answers'}"
    settings = [data, *FAST, "steps=120", "stride=5"]
    finetune("xquad", base, tmp_path, CPU, settings, scratch=True)
    result = evaluate("xquad", tmp_path, CPU)
    # the paragraphs are longer than the text's limit
    assert result.metrics["windows"] > result.metrics["questions"] == 30
    assert result.metrics["f1"] > 0.8
    assert result.metrics["by_language"] == {"en": result.metrics["f1"]}
    said = json.loads((tmp_path / "results" / "xquad.predictions.en.json").read_text())
    for record in result.records:
        assert record["predicted"] == said[record["id"]] == record["listed"][0]["text"]
        assert record["exact"] == exact(said[record["id"]], record["answers"][0])
        assert sum(x["probability"] for x in record["listed"]) == pytest.approx(1)
    assert result.metrics["exact"] == pytest.approx(np.mean([r["exact"] for r in result.records]))
    closer = evaluate("xquad", tmp_path, CPU, ["stride=2"])
    assert closer.metrics["windows"] > result.metrics["windows"]


def test_a_question_that_the_text_cannot_read_is_one_defect(base, shards, tmp_path):
    source = open_shards("test-*.tar", shards / "answers")[0]
    for folder, unread in (("some", {1}), ("all", {0, 1, 2})):
        with ShardWriter(tmp_path / folder, "test") as writer:
            for n in range(3):
                content = json.loads(source.read(n)["json"])
                if n in unread:
                    content["spans"][0]["text"]["en"] = ""
                writer.write(f"{n}", {"json": content})
    task, _ = make_task("xquad", ["tested=[en]"])
    recipe = task.recipe(open_run(base), "")
    model = make_model(recipe)
    result = task.evaluate(model, replace(recipe, data=str(tmp_path / "some")))
    assert result.metrics["questions"] == len(result.records) == 2
    (defect,) = result.defects
    assert (defect.shard.rpartition("/")[2], *defect[1:3]) == ("test-000000.tar", "1", "empty text")
    with pytest.raises(RecipeError, match="none of the 3 examples of test can be used"):
        task.evaluate(model, replace(recipe, data=str(tmp_path / "all")))


def test_words_without_tags_of_the_set_are_named(base):
    task, _ = make_task("tagging", ["tagset=xpos", "classes=upos.txt"])
    recipe = task.recipe(open_run(base), "").located()
    with pytest.raises(RecipeError, match=r"none of the 60 examples of test .* not xpos in en"):
        task.evaluate(make_model(recipe), recipe)


def test_the_loss_is_the_mean_of_both_ends(world):
    from crossloom.batch import AimBatch, Encoded, Stream, ViewBatch
    from crossloom.objectives.span import SpanHead

    length = np.array([3, 2])
    flat = Stream.build({}, {}, np.arange(5), np.zeros(5, bool), length)
    view = ViewBatch(streams={"text": flat}).to("cpu")
    state = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    head = SpanHead("text", 4, 6)
    value = torch.tensor([[1, 2], [0, 0]])
    aim = AimBatch(index=torch.arange(2), value=value, weight=torch.tensor([1.0, 1.0]))
    out = head(Encoded(view, {"text": state}, {}), aim)
    scores = head.linear(state)
    parts = [scores[:3].log_softmax(0), scores[3:].log_softmax(0)]
    expected = -(parts[0][1, 0] + parts[0][2, 1] + parts[1][0, 0] + parts[1][0, 1]) / 2
    assert float(out["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_words_of_a_class_that_is_not_listed_have_no_slot():
    characters = np.array([[-1] * 3, [0, 0, 3], [0, 3, 7], [0, 7, 9]])
    units = make_units({"x": np.zeros(4)}, targets={"characters": characters})
    labels = {"words": [(0, 3), (4, 7), (7, 9), (10, 12)], "tags": ["V", "?", "N", "N"]}
    shown = Shown(key="k", units={"text": units}, fate={}, matched=True, labels=labels)
    aim = Tag(view=View(name="tag", streams=("text",)), classes=("N", "V")).aim(shown)
    assert (aim.index.tolist(), aim.value.tolist()) == ([1, 3], [1, 0])


def test_streams_that_do_not_tell_characters_are_refused(world):
    tag = Tag(view=View(name="tag", streams=("text",)), classes=("a", "b"))
    with pytest.raises(ValueError, match="set characters: true"):
        tag.check({"text": Text(vocabulary=str(world / "tokenizer.model"))})
    recipe = tiny_recipe(world)
    from crossloom.evaluation.task import with_characters

    with pytest.raises(RecipeError, match="'image' is of kind 'regions'"):
        with_characters(recipe, "image")
