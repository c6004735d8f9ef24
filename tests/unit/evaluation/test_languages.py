"""Tasks in several languages: each by itself, means over all and over all but English."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crossloom
from crossloom.data_pipelines.annotated import Pairs, Questions
from crossloom.data_pipelines.read import Texts, sample_json
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.write import ShardWriter
from crossloom.evaluation.finetune import evaluate, finetune
from crossloom.evaluation.metrics import language_means, mean_of, tables
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.units import BadSample, keyed_rng

TESTED = ("en", "de", "sw")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    train(replace(tiny_recipe(world, contrast=True), steps=2), out, start("cpu"))
    return out


def results(run: Path, task: str):
    return json.loads((run / "results" / f"{task}.json").read_text("utf-8"))


def ranking(run, name):
    """Of each query, the candidates in their order."""
    found = {}
    for line in (run / "results" / name).read_text("utf-8").splitlines():
        query, _, candidate, *_ = line.split()
        found.setdefault(query, []).append(candidate)
    return found


def test_retrieval_by_language(base):
    settings = ["texts=2", "rerank=4", f"tested=[{','.join(TESTED)}]"]
    several = evaluate("retrieval", base, start("cpu"), settings)
    metrics = several.metrics
    assert (metrics["images"], metrics["texts"]) == (20, 120)
    assert tuple(metrics["languages"]) == TESTED
    firsts = {x: metrics["languages"][x]["text_to_image"]["r1"] for x in TESTED}
    assert metrics["by_language"] == firsts
    ways = ("image_to_text", "text_to_image")
    lists = {x: [ranking(base, f"retrieval.{x}.{way}.trec") for way in ways] for x in TESTED}
    for language in TESTED:
        # candidates are of the language alone
        back, there = lists[language]
        assert len(back) == 20
        assert all(len(x) == 40 for x in back.values())
        rows = [r for r in several.records if r["language"] == language]
        ranks = np.array([there[r["key"]].index(r["image"]) + 1 for r in rows])
        found = metrics["languages"][language]
        assert found["text_to_image"]["r5"] == pytest.approx(np.mean(ranks <= 5))
        mine = {i: {r["key"] for r in rows if r["image"] == i} for i in back}
        first = [min(c.index(k) for k in mine[i]) for i, c in back.items()]
        assert found["image_to_text"]["r10"] == pytest.approx(np.mean(np.array(first) < 10))
        # the same as when it is the only one
        alone = evaluate("retrieval", base, start("cpu"), [*settings[:2], f"tested=[{language}]"])
        assert not {"languages", "by_language"} & set(alone.metrics)
        assert alone.metrics["text_to_image"] == pytest.approx(found["text_to_image"])
        assert alone.metrics["image_to_text"] == pytest.approx(found["image_to_text"])
    for way in ways:
        each = [metrics["languages"][x][way]["r1"] for x in TESTED]
        assert metrics[way]["r1"] == pytest.approx(sum(each) / 3)
        assert metrics["non_english"][way]["r1"] == pytest.approx(sum(each[1:]) / 2)


def test_a_teachers_vectors_are_written_and_read(base, world, tmp_path):
    """As docs/training.md has it: features of the English texts, kept beside all translations."""
    teacher = crossloom.load(base)
    shard = open_shards("test-*.tar", world)[0]
    with ShardWriter(tmp_path, "train") as writer:
        for number, entry in enumerate(shard.entries[:3]):
            members = dict(shard.read(number))
            rows = io.BytesIO()
            np.save(rows, teacher.features("itc", "text", sample_json(members)["texts"]["en"]))
            writer.write(entry.key, {**members, "vectors.npy": rows.getvalue()})
    reader = Texts(languages=("tr",), all_texts=True, vectors="vectors.npy")
    taught = open_shards("train-*.tar", tmp_path)[0].read(1)
    english = sample_json(taught)["texts"]["en"]
    for item, text in enumerate(english):
        _, labels = reader.read(taught, item, keyed_rng(0))
        assert labels["language"] == "tr"
        expected = teacher.features("itc", "text", [("en", text)])[0].numpy()
        assert np.allclose(labels["vector"], expected, atol=1e-5)
        assert np.linalg.norm(labels["vector"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="'mlm' makes no vectors"):
        teacher.features("mlm", "text", english)


def test_means_are_of_the_same_metric():
    found = {"en": {"a": {"r1": 1.0}, "n": 4}, "de": {"a": {"r1": 0.5}, "n": 2}}
    assert mean_of(list(found.values())) == {"a": {"r1": 0.75}, "n": 3}
    told = language_means(found, "a.r1")
    assert told["non_english"] == found["de"]
    assert told["languages"] == found
    assert told["by_language"] == {"en": 1.0, "de": 0.5}
    assert language_means({"de": found["de"]}, "a.r1") == found["de"]


def test_languages_are_a_table_of_their_own():
    plain, languages = tables(
        {"accuracy": 0.5, "n": 4, "by_language": {"en": 1.0, "de": 0.25}, "non_english": 0.25}
    )
    assert plain == (["metric", "value"], [["accuracy", "0.5000"], ["n", "4"]])
    rows = [["en", "1"], ["de", "0.2500"], ["all but en", "0.2500"]]
    assert languages == (["language", "value"], rows)
    found = {"en": {"t": {"r1": 0.5}}, "de": {"t": {"r1": 0.125}}}
    assert tables({"t": {"r1": 0.3}, "languages": found, "by_language": {"en": 1}})[1] == (
        ["language", "t.r1"], [["en", "0.5000"], ["de", "0.1250"]],
    )  # fmt: skip
    assert len(tables({"accuracy": 0.5})) == 1


def test_questions_and_pairs_are_read_in_each_language(world):
    shard = open_shards("test-*.tar", world)[0]
    members, entry = shard.read(0), shard.entries[0]
    content = json.loads(members["json"])
    for reader, field, text in (
        (Questions(languages=TESTED, all_languages=True), "questions", "text"),
        (Pairs(languages=TESTED, all_languages=True), "pairs", "hypothesis"),
    ):
        count = len(content[field])
        assert reader.items(entry) == 3 * count
        read = [reader.read(members, n, keyed_rng(n))[1] for n in range(3 * count)]
        expected = [(q[text][x], x) for q in content[field] for x in TESTED]
        assert [(r.get("hypothesis", r.get("text")), r["language"]) for r in read] == expected
    with pytest.raises(ValueError, match="needs the languages"):
        Questions(all_languages=True)
    with pytest.raises(BadSample, match="not cs"):
        Questions(languages=("cs",), all_languages=True).read(members, 0, keyed_rng(0))


@pytest.mark.parametrize("task", ["vqa", "snli-ve"])
def test_iglues_protocol(base, task, tmp_path):
    """Fine-tuned on English, tested in each language; then some shots of one, and again."""
    tested = "tested=[en,de,sw,zh]"
    quick = ("examples=8", "log_every=1")
    finetune(task, base, tmp_path / "en", start("cpu"), ["languages=[en]", "steps=2", *quick])
    zero = evaluate(task, tmp_path / "en", start("cpu"), [tested])
    count = len(zero.records) // 4
    languages = zero.metrics["by_language"]
    assert set(languages) == {"en", "de", "sw", "zh"}
    for language, score in languages.items():
        rows = [r for r in zero.records if r["language"] == language]
        assert len(rows) == count
        assert score == pytest.approx(np.mean([r["score"] for r in rows]))
    foreign = [languages[x] for x in ("de", "sw", "zh")]
    assert zero.metrics["non_english"] == pytest.approx(np.mean(foreign))
    assert results(tmp_path / "en", task)["metrics"]["non_english"] == zero.metrics["non_english"]
    # few-shot: further training of the fine-tuned run, its classifier taken over
    few = tmp_path / "de"
    finetune(task, tmp_path / "en", few, start("cpu"), ["languages=[de]", "steps=1", *quick])
    told = json.loads((few / "start.json").read_text())
    assert not [n for n in told["fresh"] if "heads" in n]
    shot = evaluate(task, few, start("cpu"), ["tested=[de]"])
    assert {r["language"] for r in shot.records} == {"de"}
    assert len(shot.records) == count
    assert "non_english" not in shot.metrics
