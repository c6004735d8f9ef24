"""Sources of text: multi30k, tatoeba, xnli."""

from __future__ import annotations

import gzip
from pathlib import Path

import fixtures_sources as make
import pytest

from crossloom.data_pipelines.sources import Skipped, SourceError, multi30k, tatoeba, xnli


def test_multi30k(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = multi30k.convert(make.multi30k(tmp_path / "in"), out)
    assert report.samples == {"train": 3, "dev": 2, "test": 2, "test_2017_mscoco": 1}
    assert report.counts["train"] == {"samples": 3, "texts.de": 3, "texts.en": 3}
    assert not report.skipped
    train = make.samples(out, "train")
    assert list(train) == ["train-000001", "train-000002", "train-000003"]
    assert train["train-000002"] == {
        "json": {
            "id": "train/train2.jpg",
            "parallel": True,
            "texts": {"de": ["train de 2"], "en": ["train en 2"]},
        }
    }
    assert make.contents(out, "dev")[1]["id"] == "val/2"  # its images are not named


def test_multi30k_plain_files_in_the_folder_itself(tmp_path: Path) -> None:
    make.put(tmp_path / "in/val.en", "a\nb")
    make.put(tmp_path / "in/val.ces", "c\r\nd\r\n")
    multi30k.convert(tmp_path / "in", tmp_path / "out")
    texts = [c["texts"] for c in make.contents(tmp_path / "out", "dev")]
    assert texts == [{"cs": ["c"], "en": ["a"]}, {"cs": ["d"], "en": ["b"]}]


def test_multi30k_counts_bad_lines(tmp_path: Path) -> None:
    raw = make.multi30k(tmp_path / "in") / "raw"
    make.put(raw / "train.fr.gz", gzip.compress(b"un\n\xff\xfe\n  \n"))
    make.put(raw / "val.de.gz", gzip.compress(b"\nzwei\n"))
    report = multi30k.convert(tmp_path / "in", tmp_path / "out")
    assert report.skipped == {
        "not UTF-8": Skipped(1, ("train.fr.gz:2",)),
        "empty line": Skipped(2, ("train.fr.gz:3", "val.de.gz:1")),
        "sentence in fewer than two languages": Skipped(1, ("dev/val-000001",)),
    }
    languages = [list(c["texts"]) for c in make.contents(tmp_path / "out", "train")]
    assert languages == [["de", "en", "fr"], ["de", "en"], ["de", "en"]]
    assert report.samples["dev"] == 1


def test_multi30k_unequal_files_are_an_error(tmp_path: Path) -> None:
    raw = make.multi30k(tmp_path / "in") / "raw"
    make.put(raw / "val.de.gz", gzip.compress(b"eins\n"))
    with pytest.raises(SourceError, match=r"val.de.gz has 1 lines, \S*val.en.gz has 2 lines"):
        multi30k.convert(tmp_path / "in", tmp_path / "out")
    make.put(raw / "val.de.gz", gzip.compress(b"eins\nzwei\n")[:-9])
    with pytest.raises(SourceError, match=r"val.de.gz: not whole gzip data"):
        multi30k.convert(tmp_path / "in", tmp_path / "out")
    (raw / "val.de.gz").unlink()
    with pytest.raises(SourceError, match="the only language of val"):
        multi30k.convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tatoeba(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = tatoeba.convert(make.tatoeba(tmp_path / "in"), out)
    assert sum(report.samples.values()) == 400
    for language in ("de", "yue"):
        assert 8 <= report.counts["test"][f"texts.{language}"] <= 32  # 10 % of 200
    first = make.samples(out, "train")
    key = next(iter(first))
    assert key.startswith("tatoeba-deu-eng-")
    number = int(key[-6:]) - 1
    texts = first[key]["json"]["texts"]
    # a line separator of Unicode ends no line
    assert texts == {"de": [f"deu {number}\u2028."], "en": [f"Sentence {number}."]}
    english = {s: {c["texts"]["en"][0] for c in make.contents(out, s)} for s in ("train", "test")}
    assert not english["train"] & english["test"]  # though each sentence is in two pairs


def test_tatoeba_shares(tmp_path: Path) -> None:
    folder = make.tatoeba(tmp_path / "in")
    report = tatoeba.convert(folder, tmp_path / "out", test=0.0, dev=0.5)
    assert set(report.samples) == {"train", "dev"}
    assert 140 < report.samples["dev"] < 260
    with pytest.raises(SourceError, match="test=1"):
        tatoeba.convert(folder, tmp_path / "out", test=1)


def test_tatoeba_reads_other_pairs(tmp_path: Path) -> None:
    make.put(tmp_path / "in/Books.de-fr.de", "a\n\xe9\n")
    make.put(tmp_path / "in/Books.de-fr.fr", b"b\n\xff\n")
    report = tatoeba.convert(tmp_path / "in", tmp_path / "out", test=0)
    assert make.contents(tmp_path / "out", "train")[0]["texts"] == {"de": ["a"], "fr": ["b"]}
    assert report.skipped["not UTF-8"] == Skipped(1, ("Books.de-fr.fr:2",))
    assert report.skipped["sentence in fewer than two languages"].count == 1


def test_tatoeba_needs_both_files_of_equal_length(tmp_path: Path) -> None:
    folder = make.tatoeba(tmp_path / "in", count=3)
    make.put(folder / "tatoeba.deu-eng.eng", "one\n")
    with pytest.raises(SourceError, match=r"deu-eng.deu has 3 lines, \S*deu-eng.eng has 1 lines"):
        tatoeba.convert(folder, tmp_path / "out")
    (folder / "tatoeba.deu-eng.eng").unlink()
    with pytest.raises(SourceError, match=r"deu-eng.deu: the other language .* is missing"):
        tatoeba.convert(folder, tmp_path / "out")


def test_xnli_as_published(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = xnli.convert(make.xnli_official(tmp_path / "in"), out)
    assert report.samples == {"train": 1, "dev": 2, "test": 2}
    assert report.counts["test"] == {"samples": 2, "pairs": 2, "pairs.ar": 2, "pairs.en": 2}
    assert make.samples(out, "dev")["dev-000002"]["json"] == {
        "id": "dev/2",
        "pairs": [
            {
                "id": "2",
                "label": "contradiction",
                "premise": {"ar": "ar premise 2", "en": "en premise 2"},
                "hypothesis": {"ar": 'ar "hyp 2', "en": 'en "hyp 2'},
            }
        ],
    }
    train = make.samples(out, "train")
    assert list(train) == ["31193n"]
    assert train["31193n"]["json"]["pairs"][0]["premise"] == {"en": "A."}
    assert report.skipped == {"no gold label": Skipped(1, ("multinli_1.0_train.jsonl:2",))}


def test_xnli_row_aligned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = xnli.convert(make.xnli_rows(tmp_path / "in"), out)
    assert report.samples == {"dev": 2}
    pairs = [c["pairs"][0] for c in make.contents(out, "dev")]
    assert pairs[0]["label"] == "neutral"
    assert pairs[0]["premise"] == {"en": 'He said "hi', "my": "my1", "ko": "ko1"}
    assert pairs[1]["hypothesis"] == {"en": "h", "my": "my4", "ko": "ko4"}


def test_xnli_counts_bad_rows(tmp_path: Path) -> None:
    folder = make.xnli_rows(tmp_path / "in")
    make.put(
        folder / "xnli.dev.sw.tsv",
        b"sentence1\tsentence2\tgold_label\nsw1\tsw2\tentailment\nsw3 sw4\tentailment\n",
    )
    make.put(
        folder / "ur.genre.dev.tsv",
        b"genre\tlabel\tsentence1_ur\tsentence2_ur\na\tneutral\t\xff\tu\na\tentailment\t \tu\n",
    )
    report = xnli.convert(folder, tmp_path / "out")
    assert report.samples == {"dev": 2}
    assert report.counts["dev"] == {
        "samples": 2, "pairs": 2, "pairs.en": 2, "pairs.ko": 2, "pairs.my": 2,
    }  # fmt: skip
    assert report.skipped == {
        "not UTF-8": Skipped(1, ("ur.genre.dev.tsv:2",)),
        "label differs from the other languages'": Skipped(1, ("xnli.dev.sw.tsv:2 sw",)),
        "empty sentence": Skipped(1, ("ur.genre.dev.tsv:3 ur",)),
        "row with another number of columns": Skipped(1, ("xnli.dev.sw.tsv:3 (2, header 3)",)),
    }


def test_xnli_errors(tmp_path: Path) -> None:
    folder = make.xnli_rows(tmp_path / "a")
    make.put(folder / "sw.genre.dev.tsv", "genre\tlabel\tsentence1_sw\tsentence2_sw\n")
    with pytest.raises(SourceError, match=r"my.genre.dev.tsv has 3 lines, \S*sw\S* has 1 lines"):
        xnli.convert(folder, tmp_path / "out")
    make.put(folder / "sw.genre.dev.tsv", "genre\tsentence1\n\n\n")
    with pytest.raises(SourceError, match=r"sw.genre.dev.tsv: its first line must name"):
        xnli.convert(folder, tmp_path / "out")
    folder = make.xnli_official(tmp_path / "b")
    make.put(folder / "xnli.dev.ko.tsv", "sentence1\tsentence2\tgold_label\n")
    with pytest.raises(SourceError, match=r"row-aligned, beside the published xnli\.dev\.tsv"):
        xnli.convert(folder, tmp_path / "out")
    make.put(tmp_path / "c/xnli.test.tsv", "language\tgold_label\tsentence1\n")
    with pytest.raises(SourceError, match="names no column pairID, sentence2"):
        xnli.convert(tmp_path / "c", tmp_path / "out")
    make.put(tmp_path / "c/xnli.test.tsv", "")
    with pytest.raises(SourceError, match="empty"):
        xnli.convert(tmp_path / "c", tmp_path / "out")
