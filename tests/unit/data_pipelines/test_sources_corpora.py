"""Sources of text at large: opus, cc100, wikipedia; and xquad, pawsx, XNLI-MT."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_text_sources as text
import pytest

from crossloom.data_pipelines.annotated import Pairs
from crossloom.data_pipelines.read import Parallel, Texts
from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.shards import ShardError, open_shards
from crossloom.data_pipelines.show import show_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.sources import (
    Skipped,
    SourceError,
    cc100,
    opus,
    pawsx,
    wikipedia,
    xnli,
    xquad,
)
from crossloom.data_pipelines.sources.languages import chosen_language, locale_code
from crossloom.data_pipelines.sources.tsv import plain
from crossloom.data_pipelines.tokenizer import sentences
from crossloom.data_pipelines.write import ShardSet
from crossloom.units import keyed_rng


def read_all(out: Path, split: str, reader: Reader) -> list[tuple[Any, Any]]:
    """Passages and labels of every example, as training reads them."""
    source = Source("test", open_shards(f"{split}-*.tar", out), reader)
    found = []
    for place in source.places():
        shard, number, item = source.locate(place)
        sample, labels = reader.read(shard.read(number), item, keyed_rng("test"))
        found.append((tuple((p.language, p.text) for p in sample["text"]), labels))
    return found


# --- opus ---------------------------------------------------------------------------------------


def test_opus(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = opus.convert(text.opus(tmp_path / "in"), out)
    assert report.samples == {"train": 8}
    assert report.counts["train"] == {
        "samples": 8, "texts.de": 4, "texts.en": 6, "texts.fr": 2, "texts.pt": 2,
        "texts.zh-hant": 2,
    }  # fmt: skip
    assert not report.skipped
    train = make.samples(out, "train")
    keys = [*train]
    assert keys[0].startswith("Books-de-en-")
    assert keys[0].endswith("-000000001")
    assert train[keys[0]] == {
        "json": {
            "id": f"train/{keys[0]}",
            "parallel": True,
            "texts": {"de": ["Satz 0."], "en": ["Sentence 0."]},
        }
    }
    assert train[keys[-1]]["json"]["texts"] == {"pt": ["pt_BR two"], "zh-hant": ["zh_TW two"]}
    languages = {frozenset(x for x, _ in p) for p, _ in read_all(out, "train", Parallel())}
    assert languages == {frozenset(x) for x in (("de", "en"), ("fr", "en"), ("pt", "zh-hant"))}


def test_opus_reads_one_zip(tmp_path: Path) -> None:
    path = text.opus(tmp_path / "in") / "pt_BR-zh_TW.txt.zip"
    assert opus.convert(path, tmp_path / "out").samples == {"train": 2}


def test_opus_holds_back_the_same_sentences_everywhere(tmp_path: Path) -> None:
    for a in ("de", "fr"):
        other, english = (text.lines(*(f"{x} {n}" for n in range(300))) for x in (a, "s"))
        make.put(tmp_path / f"in/X.{a}-en.{a}", other)
        make.put(tmp_path / f"in/X.{a}-en.en", english)
    report = opus.convert(tmp_path / "in", tmp_path / "out", test=0.1, dev=0.1)
    assert set(report.samples) == {"train", "dev", "test"}
    found = {
        split: sorted(c["texts"]["en"][0] for c in make.contents(tmp_path / "out", split))
        for split in report.samples
    }
    assert found["test"][::2] == found["test"][1::2]  # each is there twice, once a pair
    assert not set(found["test"]) & set(found["train"])
    assert 20 < report.samples["test"] < 110


def test_opus_counts_bad_lines(tmp_path: Path) -> None:
    folder = text.opus(tmp_path / "in")
    make.put(folder / "Books.de-en.de", b"eins\n\xff\n \nvier\n")
    report = opus.convert(folder, tmp_path / "out")
    assert report.skipped["not UTF-8"] == Skipped(1, ("Books.de-en.de:2",))
    assert report.skipped["empty line"] == Skipped(1, ("Books.de-en.de:3",))
    assert report.skipped["sentence in fewer than two languages"].count == 2
    assert report.samples == {"train": 6}


def test_opus_errors(tmp_path: Path) -> None:
    folder, out = text.opus(tmp_path / "in"), tmp_path / "out"
    make.put(folder / "Books.de-en.en", "one\n")
    with pytest.raises(SourceError, match=r"de-en.de has 4 lines, \S*de-en.en has 1 lines"):
        opus.convert(folder, out)
    (folder / "Books.de-en.en").unlink()
    with pytest.raises(SourceError, match=r"Books.de-en.de: the other language .* is missing"):
        opus.convert(folder, out)
    (folder / "Books.de-en.de").unlink()
    whole = (folder / "pt_BR-zh_TW.txt.zip").read_bytes()
    make.put(folder / "again.zip", whole)
    with pytest.raises(SourceError, match=r"GNOME\S*: also in \S*again.zip\S*; keep one"):
        opus.convert(folder, out)
    make.put(folder / "again.zip", whole[:-30])
    with pytest.raises(SourceError, match=r"again.zip: not whole zip data"):
        opus.convert(folder, out)
    broken = bytearray(whole)
    broken[60:64] = b"\0\0\0\0"  # inside the first member
    make.put(folder / "again.zip", bytes(broken))
    (folder / "pt_BR-zh_TW.txt.zip").unlink()
    with pytest.raises(SourceError, match=r"again.zip\S*: not whole zip data"):
        opus.convert(folder, out)
    with pytest.raises(SourceError, match=r"both sides of X.en_GB-en are en"):
        opus.convert(
            text.zipped(tmp_path / "x.zip", {"X.en_GB-en.en": "", "X.en_GB-en.en_GB": ""}), out
        )
    with pytest.raises(SourceError, match="test=1"):
        opus.convert(folder, out, test=1)
    assert not out.exists()


# --- documents ----------------------------------------------------------------------------------


def test_cc100(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = cc100.convert(text.cc100(tmp_path / "in"), out)
    assert report.counts["train"] == {
        "samples": 5, "texts.bn-rom": 1, "texts.en": 3, "texts.zh": 3,
    }  # fmt: skip
    assert make.samples(out, "train") == {
        "bn-rom-000000001": {"json": {"id": "bn-rom/1", "texts": {"bn-rom": ["ek"]}}},
        "en-000000001": {
            "json": {"id": "en/1", "texts": {"en": ["A dog waits.", "Nobody comes."]}}
        },
        "en-000000002": {"json": {"id": "en/2", "texts": {"en": ["Another document."]}}},
        "zh-000000001": {"json": {"id": "zh/1", "texts": {"zh": ["一。"]}}},
        "zh-000000002": {"json": {"id": "zh/2", "texts": {"zh": ["二。", "三。"]}}},
    }
    every = read_all(out, "train", Texts(languages=("en",), all_texts=True))
    assert [p[0][1] for p, _ in every] == ["A dog waits.", "Nobody comes.", "Another document."]
    drawn = read_all(out, "train", Texts(languages=("zh", "en", "bn-rom")))
    assert {labels["language"] for _, labels in drawn} == {"zh", "en", "bn-rom"}


def test_cc100_cuts_long_documents_between_paragraphs(tmp_path: Path) -> None:
    path = make.put(tmp_path / "en.txt", "aaaa\nbbbb\ncccc\ndddddddddddd\n\neeee\n")
    cc100.convert(path, tmp_path / "out", longest=8)
    assert [(c["id"], c["texts"]["en"]) for c in make.contents(tmp_path / "out", "train")] == [
        ("en/1#1", ["aaaa", "bbbb"]),
        ("en/1#2", ["cccc"]),
        ("en/1#3", ["dddddddddddd"]),
        ("en/2", ["eeee"]),
    ]


def test_cc100_shares_keep_copies_together(tmp_path: Path) -> None:
    documents = "\n".join(f"Document {n}.\nIts end.\n" for n in range(200))
    path = make.put(tmp_path / "en.txt.gz", gzip.compress((documents + "\n" + documents).encode()))
    report = cc100.convert(path, tmp_path / "out", test=0.1, dev=0.2, longest=12)
    first = {
        split: {c["texts"]["en"][0] for c in make.contents(tmp_path / "out", split)} - {"Its end."}
        for split in report.samples
    }
    assert sum(map(len, first.values())) == 200
    assert sum(report.samples.values()) == 800
    assert 5 < len(first["test"]) < 40


def test_cc100_bad_input(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    make.put(folder / "en.txt", b"a\n\xff\nb\n")
    report = cc100.convert(folder, out)
    assert report.skipped == {"not UTF-8": Skipped(1, ("en.txt:2",))}
    assert make.contents(out, "train")[0]["texts"] == {"en": ["a", "b"]}
    make.put(folder / "de.txt.xz", lzma.compress(b"a\n" * 10_000)[:-20])
    with pytest.raises(SourceError, match=r"de.txt.xz: not whole xz data .*download it again"):
        cc100.convert(folder, tmp_path / "other")
    make.put(folder / "eng.txt.xz", lzma.compress(b"a\n"))
    with pytest.raises(SourceError, match=r"eng.txt.xz: en.txt is en as well; keep one"):
        cc100.convert(folder, tmp_path / "other")
    make.put(tmp_path / "empty/en.txt", "\n\n")
    with pytest.raises(SourceError, match="gives no sample"):
        cc100.convert(tmp_path / "empty", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_wikipedia(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = wikipedia.convert(text.wikipedia(tmp_path / "in"), out)
    assert report.counts["train"] == {"samples": 4, "texts.en": 4, "texts.sw": 3}
    assert report.skipped == {"article without text": Skipped(1, ("en/13",))}
    assert {k: m["json"] for k, m in make.samples(out, "train").items()} == {
        "en-000000001": {
            "id": "en/12",
            "texts": {"en": ["AT&T is old.", "History.", "It was 1 < 2, at ?a=1&copy=2."]},
        },
        "en-000000002": {"id": "en/14", "texts": {"en": ["The dog is here."]}},
        "sw-000000001": {"id": "sw/7", "texts": {"sw": ["Mbwa ni mnyama.", "Anangoja."]}},
        "sw-000000002": {"id": "sw/8", "texts": {"sw": ["Paka ni mdogo."]}},
    }
    assert len(read_all(out, "train", Texts())) == 4


def test_wikipedia_of_one_language(tmp_path: Path) -> None:
    folder = text.wikipedia(tmp_path / "in") / "en"
    with pytest.raises(SourceError, match=r"in/en: .*--set language=en"):
        wikipedia.convert(folder, tmp_path / "out")
    report = wikipedia.convert(folder, tmp_path / "out", language="eng", longest=10)
    assert report.counts["train"]["texts.en"] == 4
    assert [c["id"] for c in make.contents(tmp_path / "out", "train")] == [
        "en/12#1", "en/12#2", "en/12#3", "en/14",
    ]  # fmt: skip


def test_wikipedia_bad_input(tmp_path: Path) -> None:
    folder = text.wikipedia(tmp_path / "in")
    make.put(
        folder / "de/AA/wiki_00",
        b'<doc id="1" url="u" title="A">\nA\n\nlost\n'
        b'<doc id="2" url="u" title="B">\nB\n\n\xff\nkept\n</doc>\n'
        b'nothing\n{"id": 3}\n<doc id="4" url="u" title="C">\nC\n',
    )
    report = wikipedia.convert(folder, tmp_path / "out")
    assert report.counts["train"]["texts.de"] == 1
    assert report.skipped == {
        "article without its end": Skipped(2, ("de/AA/wiki_00:1", "de/AA/wiki_00:13")),
        "not UTF-8": Skipped(1, ("wiki_00:8",)),
        "line that is no article": Skipped(2, ("de/AA/wiki_00:11", "de/AA/wiki_00:12")),
        "article without text": Skipped(1, ("en/13",)),
    }
    (folder / "en").rename(folder / "enwiki")
    make.put(folder / "en/AA/wiki_00", "")
    with pytest.raises(SourceError, match=r"enwiki: en is en as well; keep one"):
        wikipedia.convert(folder, tmp_path / "other")
    path = folder / "swwiki/AA/wiki_00.bz2"
    (folder / "en/AA/wiki_00").unlink()
    for broken in (path.read_bytes()[:-20], b"not bzip2 at all"):
        make.put(path, broken)
        with pytest.raises(SourceError, match=r"wiki_00.bz2: (not whole bzip2|cannot be read)"):
            wikipedia.convert(folder, tmp_path / "other")


# --- questions and pairs ------------------------------------------------------------------------


def test_xquad(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = xquad.convert(text.xquad(tmp_path / "in"), out)
    assert report.counts == {
        "test": {"samples": 2, "spans": 3, "texts.de": 2, "texts.en": 2},
        "train": {"samples": 1, "spans": 1, "texts.en": 1},
    }
    assert not report.skipped
    test = make.samples(out, "test")
    assert test["test-000002"]["json"] == {
        "id": "test/2",
        "parallel": True,
        "texts": {"de": [" Der 🐕 wartet."], "en": ["The dog waits."]},
        "spans": [
            {
                "id": "a2",
                "text": {"de": "Was?", "en": "What?"},
                "answers": {
                    "de": [{"text": "wartet", "start": 7}],
                    "en": [{"text": "waits", "start": 8}],
                },
            },
            {
                "id": "a1",
                "text": {"de": "Wer?", "en": "Who waits?"},
                "answers": {
                    "de": [{"text": "Der 🐕", "start": 1}],
                    "en": [{"text": "The dog", "start": 0}],
                },
            },
        ],
    }
    assert make.contents(out, "train")[0]["id"] == "train/1"
    assert "parallel" not in make.contents(out, "train")[0]
    assert {p for p, _ in read_all(out, "test", Texts(languages=("en",)))} == {
        (("en", "It rains."),), (("en", "The dog waits."),),
    }  # fmt: skip
    assert all(len(p) == 2 for p, _ in read_all(out, "test", Parallel()))


def test_spans_are_shown_and_read_for_vocabularies(tmp_path: Path) -> None:
    xquad.convert(text.xquad(tmp_path / "in"), tmp_path / "out")
    shards = open_shards("test-*.tar", tmp_path / "out")
    assert {("de", "Regnet es?"), ("en", "What?"), ("en", "It rains.")} <= {*sentences(shards)}
    show_shards(str(tmp_path / "out"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "Regnet es?" in page
    assert "regnet" in page


def test_xquad_counts_bad_questions(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    rows = [
        (
            "The dog waits.",
            [("1", "Who?", "dog", 4), ("2", "What?", "waits", 9), ("3", " ", "dog", 4)],
        ),
        (" ", [("4", "Who?", "x", 0)]),
        ("Nobody.", [("5", "Who?", "nobody", 0)]),
        ("The dog waits.", [("1", "Who?", "dog", 4)]),
    ]  # fmt: skip
    make.put_json(folder / "xquad.en.json", text.squad(rows))
    report = xquad.convert(folder, tmp_path / "out")
    assert report.counts["test"] == {"samples": 1, "spans": 1, "texts.en": 1}
    name = "xquad.en.json article {} paragraph 1"
    assert report.skipped == {
        "answer is not where it should be": Skipped(
            2, (f"{name.format(1)} 2", f"{name.format(3)} 5")
        ),
        "question without text or answer": Skipped(
            3, (f"{name.format(1)} 2", f"{name.format(1)} 3", f"{name.format(3)} 5")
        ),
        "empty paragraph": Skipped(1, (name.format(2),)),
        "paragraph without question": Skipped(1, (name.format(3),)),
        "paragraph given twice in one language": Skipped(1, (name.format(4),)),
    }  # fmt: skip


def test_xquad_errors(tmp_path: Path) -> None:
    make.put_json(tmp_path / "in/xquad.en.json", {"data": [{"paragraphs": [{"qas": []}]}]})
    with pytest.raises(SourceError, match=r"xquad.en.json: not questions in the form of SQuAD"):
        xquad.convert(tmp_path / "in", tmp_path / "out")
    make.put(tmp_path / "in/xquad.en.json", b'{"data": "\xff"}')
    with pytest.raises(SourceError, match=r"xquad.en.json: not JSON"):
        xquad.convert(tmp_path / "in", tmp_path / "out")
    make.put(tmp_path / "in/deeper/xquad.en.json", "{}")
    with pytest.raises(SourceError, match=r"also in .*keep one"):
        xquad.convert(tmp_path / "in", tmp_path / "out")


def test_pawsx(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = pawsx.convert(text.pawsx(tmp_path / "in"), out)
    assert report.samples == {"train": 3, "dev": 2, "test": 1}
    assert report.counts["train"] == {"samples": 3, "pairs": 3, "pairs.de": 3, "pairs.en": 3}
    assert not report.skipped
    assert make.samples(out, "dev")["dev-000002"]["json"] == {
        "id": "dev/2",
        "pairs": [
            {
                "id": "2",
                "label": "other",
                "premise": {"de": "de a 2", "en": "en a 2"},
                "hypothesis": {"de": 'de "b" 2', "en": 'en "b" 2'},
            }
        ],
    }
    read = read_all(out, "train", Pairs(languages=("de", "en"), all_languages=True))
    assert len(read) == 6
    assert [labels["label"] for _, labels in read[:4]] == ["paraphrase"] * 2 + ["other"] * 2
    assert read[0][0] == (("de", "de a 1"), ("de", 'de "b" 1'))


def test_pawsx_counts_bad_rows(tmp_path: Path) -> None:
    folder = text.pawsx(tmp_path / "in")
    rows = [
        ["id", "sentence1", "sentence2", "label"],
        ["2", "zwei", "zwei", "1"],  # English says 0
        ["1", "eins", "eins", "1"],
        ["x", "eins", "eins", "1"],
        ["3", "", "drei", "1"],
        ["4", "NS", "NS", "1"],
        ["5", "fünf", "fünf", "-1"],
        ["6", "sechs", "1"],
        ["7", "sieben", "sieben", "1"],
    ]
    make.put(folder / "x-final/de/dev_2k.tsv", make.table(rows).encode() + b"8\t\xff\tx\t1\n")
    report = pawsx.convert(folder, tmp_path / "out")
    assert report.counts["dev"] == {"samples": 3, "pairs": 3, "pairs.de": 1, "pairs.en": 2}
    assert report.skipped == {
        "label differs from the other languages'": Skipped(1, ("de/dev_2k.tsv:2",)),
        "id does not ascend": Skipped(1, ("de/dev_2k.tsv:3",)),
        "id is no number": Skipped(1, ("de/dev_2k.tsv:4",)),
        "empty sentence": Skipped(1, ("de/dev_2k.tsv:5",)),
        "sentence not translated": Skipped(1, ("de/dev_2k.tsv:6",)),
        "no label": Skipped(1, ("de/dev_2k.tsv:7",)),
        "row with another number of columns": Skipped(1, ("dev_2k.tsv:8 (3, header 4)",)),
        "not UTF-8": Skipped(1, ("dev_2k.tsv:10",)),
    }


def test_pawsx_errors(tmp_path: Path) -> None:
    make.put(tmp_path / "in/de/dev_2k.tsv", "id\tsentence1\tlabel\n")
    with pytest.raises(SourceError, match=r"dev_2k.tsv: .*columns id, .*sentence2 is missing"):
        pawsx.convert(tmp_path / "in", tmp_path / "out")
    make.put(tmp_path / "in/de/dev_2k.tsv", "")
    with pytest.raises(SourceError, match="is missing"):
        pawsx.convert(tmp_path / "in", tmp_path / "out")


def test_xnli_reads_translated_training_data(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = text.xnli_mt(tmp_path / "in")
    make.put(
        folder / "XNLI-1.0/xnli.dev.tsv",
        make.table(
            [
                ["language", "gold_label", "sentence1", "sentence2", "pairID"],
                ["en", "neutral", "p", "h", "1"],
            ]
        ),
    )
    report = xnli.convert(folder, out)
    assert report.samples == {"dev": 1, "train": 2}
    assert make.samples(out, "train")["train-000001"]["json"] == {
        "id": "train/1",
        "pairs": [
            {
                "id": "1",
                "label": "contradiction",
                "premise": {"de": "de p 1", "en": "en p 1"},
                "hypothesis": {"de": "de h 1", "en": "en h 1"},
            }
        ],
    }
    assert not report.skipped
    make.put(folder / "multinli_1.0_train.jsonl", "{}")
    with pytest.raises(SourceError, match="convert from different folders"):
        xnli.convert(folder, out, overwrite=True)


# --- what they share ----------------------------------------------------------------------------


def test_locales() -> None:
    codes = [
        "pt_BR",
        "zh_CN",
        "zh-Hant",
        "zh_HK",
        "bn_rom",
        "es-419",
        "rm-sursilv",
        "nan-tw",
        "eng",
    ]
    assert [locale_code(x) for x in codes] == [
        "pt", "zh", "zh-hant", "zh-hant", "bn-rom", "es", "rm-sursilv", "nan", "en",
    ]  # fmt: skip
    assert [chosen_language(x) for x in (False, "nor", "", "pt-BR")] == ["no", "no", "", "pt"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"a ""b"" c"', 'a "b" c'),
        ('"""a"" b"', '"a" b'),
        ('"a"', '"a"'),
        ('"a" and ""b"', '"a" and ""b"'),
        ('""', '""'),
    ],
)
def test_cells_in_quotes_of_csv(cell: str, text: str) -> None:
    assert plain(cell) == text


def test_numbered_keys_must_ascend(tmp_path: Path) -> None:
    with ShardSet(tmp_path / "out") as shards:
        for key in ("a-1", "b-1", "a-2", "b-10", "a-10"):
            shards.write("train", key, {"bin": b"1"}, numbered=True)
        for key in ("a-10", "a-3", "b-010"):
            with pytest.raises(ShardError, match=f"two samples have the key '{key}'"):
                shards.write("train", key, {"bin": b"1"}, numbered=True)
        shards.write("train", "a-11", {"bin": b"1"})
        for key, numbered in (("a-11", True), ("a-11", False), ("a-10", False)):
            with pytest.raises(ShardError, match="two samples have the key"):
                shards.write("train", key, {"bin": b"1"}, numbered=numbered)
        shards.write("train", "plain", {"bin": b"1"})
        assert shards.count("train") == 7
