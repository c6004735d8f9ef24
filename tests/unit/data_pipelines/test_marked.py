"""Tagged words and spans that answer: the source conll, and their readers."""

import json

import fixtures_sources as make
import fixtures_text_sources as text
import pytest

from crossloom.data_pipelines.marked import Spans, Words
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.sources import SourceError, conll
from crossloom.units import BadSample, keyed_rng


def labels(out, split, reader):
    source = Source("test", open_shards(f"{split}-*.tar", out), reader)
    found = []
    for place in source.places():
        shard, number, item = source.locate(place)
        sample, told = reader.read(shard.read(number), item, keyed_rng("test"))
        found.append((sample["text"], told))
    return found


def read(reader, content, item=0):
    return reader.read({"json": json.dumps(content).encode()}, item, keyed_rng(0))[1]


# --- words --------------------------------------------------------------------------------------


def test_universal_dependencies(tmp_path):
    report = conll.convert(text.conll(tmp_path / "in"), tmp_path / "out")
    assert report.samples == {"train": 1, "test": 4}
    assert not report.skipped
    (content,) = make.contents(tmp_path / "out", "train")
    assert content == {
        "id": "train/en/1",
        "texts": {"en": ["The dog can n't 10\N{NO-BREAK SPACE}000"]},
        "tags": {"upos": {"en": ["DET", "NOUN", "AUX", "PART", "NUM"]}},
    }
    tags = (tmp_path / "out" / "upos.txt").read_text().split()
    assert tags == ["AUX", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "VERB"]
    german = labels(tmp_path / "out", "test", Words(languages=("de",)))
    assert [t["tags"] for _, t in german] == [["PRON", "VERB"], ["INTJ"]]
    ((passage,), told) = german[0]
    assert (passage.language, passage.text) == ("de", "Es regnet")
    assert [passage.text[a:b] for a, b in told["words"]] == ["Es", "regnet"]


def test_names_in_columns(tmp_path):
    report = conll.convert(text.conll_names(tmp_path / "in"), tmp_path / "out")
    assert report.samples == {"train": 1, "dev": 1, "test": 2}
    assert {k: v.names for k, v in report.skipped.items()} == {
        "line with too few columns": ("sw.test.tsv:4",)
    }
    assert (tmp_path / "out" / "ner.txt").read_text().split() == ["O", "B-LOC", "B-ORG"]
    found = labels(tmp_path / "out", "test", Words(tagset="ner"))
    assert {(t["language"], t["text"], *t["tags"]) for _, t in found} == {
        ("de", "Berlin .", "B-LOC", "O"),
        ("sw", "Nairobi ni", "B-LOC", "O"),
    }
    renamed = conll.convert(tmp_path / "in", tmp_path / "again", tags="names")
    assert renamed.samples == report.samples
    assert (tmp_path / "again" / "names.txt").is_file()


def test_conll_errors(tmp_path):
    make.put(tmp_path / "in/english.txt", "a b")
    with pytest.raises(SourceError, match=r"-ud-<split>.conllu"):
        conll.convert(tmp_path / "in", tmp_path / "out")


def test_a_sentence_is_an_example_in_each_of_its_languages():
    content = {
        "texts": {"en": ["a b"], "de": ["c d"], "fr": []},
        "tags": {"upos": {"en": ["X", "Y"], "de": ["Y", "X"]}},
    }
    assert [read(Words(), content, n)["language"] for n in (0, 1)] == ["en", "de"]
    assert read(Words(languages=("de",)), content)["tags"] == ["Y", "X"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"texts": {"en": ["a b"]}, "tags": {"upos": {"en": ["X"]}}}, "1 tags upos for 2 words"),
        ({"texts": {"en": ["a  b"]}, "tags": {"upos": {"en": ["X"] * 3}}}, "for 3 words"),
        ({"texts": {"en": ["a"]}, "tags": {"ner": {"en": ["O"]}}}, "has ner, not upos in en"),
    ],
)
def test_words_and_tags_must_agree(content, message):
    with pytest.raises(BadSample, match=message):
        read(Words(), content)


# --- spans --------------------------------------------------------------------------------------

PARAGRAPH = {
    "texts": {"en": ["The dog waits."], "de": ["Der Hund wartet."]},
    "spans": [
        {
            "id": "1",
            "text": {"en": "Who?", "de": "Wer?"},
            "answers": {
                "en": [{"text": "dog", "start": 4}, {"text": "The dog", "start": 0}],
                "de": [{"text": "Hund", "start": 4}],
            },
        },
        {"id": "2", "text": {"en": "What?"}, "answers": {"en": [{"text": "waits", "start": 8}]}},
    ],
}


def test_questions_are_examples_in_each_language():
    both = Spans(languages=("en", "de"), all_languages=True)
    told = [read(both, PARAGRAPH, n) for n in range(3)]
    assert [(t["id"], t["language"]) for t in told] == [("1", "en"), ("1", "de"), ("2", "en")]
    assert told[0]["answers"] == ["dog", "The dog"]
    assert told[0]["answer"] == (4, 7)
    with pytest.raises(BadSample, match="question 2 is not given in de"):
        read(both, PARAGRAPH, 3)
    with pytest.raises(BadSample, match="question 2 is not given in de"):
        read(Spans(languages=("de",)), PARAGRAPH, 1)
    with pytest.raises(ValueError, match="needs the languages"):
        Spans(all_languages=True)


def test_an_answer_that_is_not_there_is_refused():
    spans = [{**PARAGRAPH["spans"][1], "answers": {"en": [{"text": "waits", "start": 7}]}}]
    with pytest.raises(BadSample, match="'waits' is not at 7"):
        read(Spans(), {**PARAGRAPH, "spans": spans})


def test_examples_are_counted_by_sums(tmp_path):
    from crossloom.data_pipelines.sources import xquad

    xquad.convert(text.xquad(tmp_path / "in"), tmp_path / "out")
    shards = open_shards("test-*.tar", tmp_path / "out")
    questions = sum(len(c["spans"]) for c in make.contents(tmp_path / "out", "test"))
    assert len(Source("t", shards, Spans())) == questions
    both = Spans(languages=("en", "de"), all_languages=True)
    assert len(Source("t", shards, both)) == 2 * questions
