"""Training vocabularies over many languages, and measuring how they split them."""

import json

import pytest
from typer.testing import CliRunner

from crossloom.cli import app
from crossloom.data_pipelines.fertility import measure, script_of
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import lines_of, train
from crossloom.data_pipelines.write import ShardWriter
from crossloom.modalities.vocabularies import Vocabulary
from crossloom.modalities.wordpiece import WordPiece
from crossloom.units import keyed_rng

LETTERS = {"en": "abcdefghijkl", "ru": "абвгдежзиклм", "zh": "天地人日月水火山木石田心"}
LINES = {"en": 400, "ru": 60, "zh": 60}


def line(language, number):
    rng = keyed_rng(language, number)
    words = ["".join(rng.choice(list(LETTERS[language]), 3)) for _ in range(4)]
    return ("" if language == "zh" else " ").join(words)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("lines")
    with ShardWriter(out, "train", shard_size=1000) as writer:
        for language, count in LINES.items():
            for number in range(count):
                texts = {language: [line(language, number), line(language, 0)]}
                writer.write(f"{language}-{number}", {"json": {"texts": texts}})
    return open_shards("*.tar", out)


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c", "中", "c", "a"]
    file.write_text("\n".join(pieces) + "\n", "utf-8")
    return WordPiece(file, cased=True)


def test_lines_are_drawn_once_each_by_alpha(shards):
    everything = lines_of(shards, lambda many: many)
    assert {x: len(some) for x, some in everything.items()} == LINES
    assert all(len(set(some)) == len(some) for some in everything.values())
    few = lines_of(shards, lambda many: dict.fromkeys(many, 5))
    assert few == {x: some[:5] for x, some in everything.items()}
    assert few != lines_of(shards, lambda many: dict.fromkeys(many, 5), seed=1)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, (154, 23, 23)), (0.5, (113, 44, 44))])
def test_a_language_gives_lines_by_its_number_to_the_power_of_alpha(
    shards, tmp_path, alpha, expected
):
    # 400 : 60 : 60, and their roots 20 : 7.746 : 7.746, of 200
    report = train(shards, tmp_path / "t.model", size=90, alpha=alpha, lines=200, coverage=1.0)
    assert tuple(report.languages[x].lines for x in LINES) == expected


def test_figures_by_hand(words):
    texts = {"xx": ["abc abc", "q ab"], "zh": ["中中c", "国"]}
    report = measure(words, texts)
    xx, zh = report.languages["xx"], report.languages["zh"]
    # ab ##c ab ##c · [UNK] ab
    assert (xx.pieces, xx.words, xx.characters, xx.unknown) == (6, 4, 9, 1)
    assert (xx.per_word, xx.per_character, xx.unknown_share) == (1.5, 6 / 9, 1 / 6)
    # 中 中 c · [UNK]; Chinese is written without spaces
    assert (zh.pieces, zh.words, zh.per_word, zh.per_character) == (4, 0, None, 1.0)
    assert {n: (s.characters, s.covered, s.missing) for n, s in report.scripts.items()} == {
        # b and q alone are not in it: "##c" begins nothing, but "c" does
        "latin": (10, 6, "bq"), "cjk": (3, 2, "国"),
    }  # fmt: skip
    assert measure(words, texts, most=1).languages["xx"].pieces == 4


def test_bytes_are_told_from_pieces(shards, tmp_path):
    settings = {"size": 340, "coverage": 0.98}
    plain = train(shards, tmp_path / "p.model", **{**settings, "size": 90})
    spelt = train(shards, tmp_path / "b.model", byte_fallback=True, **settings)
    rare = max(plain.languages, key=lambda x: plain.languages[x].unknown_share)
    assert plain.languages[rare].unknown_share > 0.01
    assert plain.languages[rare].byte_share == 0
    assert spelt.languages[rare].unknown_share == 0
    assert spelt.languages[rare].byte_share > 0.01
    for report in (plain, spelt):
        script = report.scripts["cyrillic" if rare == "ru" else "cjk"]
        assert 0 < script.share < 1
        assert set(script.missing) <= set(LETTERS[rare])
    file = json.loads((tmp_path / "b.report.json").read_text("utf-8"))
    assert file["languages"]["zh"]["pieces_per_word"] is None
    assert file["languages"]["en"]["pieces_per_word"] == spelt.languages["en"].per_word
    assert file["scripts"]["latin"]["covered"] == spelt.scripts["latin"].share
    headings, rows = spelt.tables()[0]
    assert [row[0] for row in rows] == ["en", "ru", "zh"]
    assert all(len(row) == len(headings) for row in rows)


def test_a_published_vocabulary_is_measured_alike(shards, tmp_path):
    train(shards, tmp_path / "t.model", size=90, coverage=1.0)
    texts = lines_of(shards, lambda many: dict.fromkeys(many, 20))
    own = measure(Vocabulary(tmp_path / "t.model"), texts)
    shifted = measure(Vocabulary(tmp_path / "t.model", "xlm-r"), texts)
    assert shifted.languages == own.languages
    assert shifted.scripts == own.scripts


def test_texts_longer_than_sentencepiece_reads_by_itself_are_read(tmp_path):
    """One line of 20,000 bytes has all the words; those beside it are of another script."""
    with ShardWriter(tmp_path, "train", shard_size=1000) as writer:
        long = " ".join(line("ru", n) for n in range(600))
        writer.write("long", {"json": {"texts": {"ru": [long]}}})
        for number in range(50):
            writer.write(f"s-{number}", {"json": {"texts": {"en": [line("en", number)]}}})
    report = train(open_shards("*.tar", tmp_path), tmp_path / "t.model", size=120, coverage=1.0)
    assert report.scripts["cyrillic"].share == 1


@pytest.mark.parametrize(
    ("characters", "script"),
    [
        ("aÉß", "latin"), ("ﾊア", "katakana"), ("々中", "cjk"), ("ขุ", "thai"), ("मे", "devanagari"),
        ("1.,€\u0301 ", ""), ("한", "hangul"), ("Ａ", "latin"), ("ー", "katakana"),
    ],
)  # fmt: skip
def test_scripts_of_characters(characters, script):
    assert {script_of(c) for c in characters} == {script}


def test_no_text_says_so(tmp_path):
    with ShardWriter(tmp_path, "train", shard_size=10) as writer:
        writer.write("a", {"json": {"texts": {"en": [" "]}}})
    with pytest.raises(ValueError, match="no text in these shards"):
        train(open_shards("*.tar", tmp_path), tmp_path / "t.model", size=100)
    with pytest.raises(ValueError, match=r"coverage must lie in 0\.98\.\.1"):
        train((), tmp_path / "t.model", size=100, coverage=0.9)


def test_the_command_measures_any_vocabulary(shards, words, tmp_path):
    tars = str(shards[0].path)
    file = tmp_path / "vocab.txt"
    call = ["tokenizer", "report", str(file), "--shards", tars, "--layout", "wordpiece-cased"]
    assert CliRunner().invoke(app, call).exit_code == 0
    found = json.loads((tmp_path / "vocab.report.json").read_text("utf-8"))
    assert set(found["languages"]) == set(LINES)
    assert found["scripts"]["cyrillic"]["covered"] == 0
    wrong = CliRunner().invoke(app, [*call[:-1], "worpiece"])
    assert "there are own, xlm-r" in str(wrong.exception)


def test_fewer_ids_than_asked_for_are_told(shards, tmp_path):
    told = CliRunner().invoke(
        app,
        ["tokenizer", "train", "--vocab", "9000", "--out", str(tmp_path / "t.model")]
        + [x for s in shards for x in ("--shards", str(s.path))],
    )
    size = json.loads((tmp_path / "t.report.json").read_text())["size"]
    assert told.exit_code == 0
    assert f"{size:,} ids (the texts support no more; --vocab 9,000)" in told.output
