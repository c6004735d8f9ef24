"""The source table: Parquet and Arrow files, CSV, TSV and JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_text_sources as text
import pytest

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.sources import Skipped, SourceError, table

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], form: str = "parquet") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pa.table(columns)
    if form == "parquet":
        parquet.write_table(data, path, row_group_size=2)
    else:
        new = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with new(str(path), data.schema) as writer:
            writer.write_table(data, max_chunksize=2)
    return path


def pictures(count: int = 3) -> dict[str, Any]:
    return {
        "image": [{"bytes": make.picture(grey=n), "path": f"{n}.jpg"} for n in range(count)],
        "caption": [[f"A dog, {n}.", " It waits. "] for n in range(count)],
        "cocoid": [n + 7 for n in range(count)],
        "other": [0.5] * count,
    }


OPTIONS = {"image_column": "image", "text_column": "caption", "key_column": "cocoid"}


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_pictures_with_captions(tmp_path: Path, form: str) -> None:
    suffix = "parquet" if form == "parquet" else "arrow"
    write(tmp_path / f"in/data/train-00000-of-00001.{suffix}", pictures(), form)
    write(tmp_path / f"in/data/validation-00000-of-00001.{suffix}", pictures(1), form)
    calls: list[tuple[int, int | None]] = []
    out = tmp_path / "out"
    report = table.convert(tmp_path / "in", out, **OPTIONS, progress=lambda *c: calls.append(c))
    assert report.counts["train"] == {"samples": 3, "images": 3, "texts.en": 6}
    assert report.samples == {"train": 3, "dev": 1}
    assert make.samples(out, "train")["8"] == {
        "jpg": make.picture(grey=1),
        "json": {"id": "8", "texts": {"en": ["A dog, 1.", "It waits."]}},
    }
    assert calls[-1] == (4, 4 if form == "parquet" else None)
    assert sum(len(s.entries) for s in open_shards(str(out))) == 4
    table.convert(tmp_path / "in", tmp_path / "again", **OPTIONS)
    assert (
        make.files(tmp_path / "again")["train-000000.tar"] == (make.files(out)["train-000000.tar"])
    )


def test_rows_number_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", pictures())
    table.convert(path, tmp_path / "out", text_column="caption", split="test", language="deu")
    samples = make.samples(tmp_path / "out", "test")
    assert list(samples) == [f"x-{n:09d}" for n in (1, 2, 3)]
    assert samples["x-000000001"] == {
        "json": {"id": "x/1", "texts": {"de": ["A dog, 0.", "It waits."]}}
    }


def test_texts_in_several_languages(tmp_path: Path) -> None:
    columns = {
        "translation": [{"en": "A.", "de": "B."}, {"en": "C.", "de": None}],
        "title_sw": ["D.", "E."],
    }
    path = write(tmp_path / "test.parquet", columns)
    table.convert(path, tmp_path / "a", text_column="translation")
    assert make.contents(tmp_path / "a", "test") == [
        {"id": "test/1", "parallel": True, "texts": {"en": ["A."], "de": ["B."]}},
        {"id": "test/2", "texts": {"en": ["C."]}},
    ]
    option = "translation, swh:title_sw"
    table.convert(path, tmp_path / "b", text_column=option, parallel=True)
    assert make.contents(tmp_path / "b", "test")[0]["texts"] == {
        "en": ["A."], "de": ["B."], "sw": ["D."],
    }  # fmt: skip
    path = write(tmp_path / "rows.parquet", {"text": ["A.", "B."], "lang": ["zh-TW", None]})
    report = table.convert(path, tmp_path / "c", text_column="text", language_column="lang")
    assert make.contents(tmp_path / "c", "train")[0]["texts"] == {"zh-hant": ["A."]}
    assert report.skipped == {"row without language": Skipped(1, ("rows:2",))}


def test_sound_labels_and_questions(tmp_path: Path) -> None:
    make.put(tmp_path / "in/clips/b.flac", text.sound("FLAC"))
    columns = {
        "audio": [
            {"bytes": text.sound("WAV"), "path": None},
            {"bytes": None, "path": "clips/b.flac"},
        ],
        "label": [1, 2],
        "question": [["Who?", "Where?"], ["Why?"]],
        "answer": [[["dog", "a dog"], ["here"]], [["none"]]],
    }
    write(tmp_path / "in/x.parquet", columns)
    report = table.convert(
        tmp_path / "in",
        tmp_path / "out",
        sound_column="audio",
        label_column="label",
        question_column="question",
        answer_column="answer",
    )
    assert report.counts["train"] == {"samples": 2, "sounds": 2, "questions": 3}
    samples = [*make.samples(tmp_path / "out", "train").values()]
    assert samples[0] == {
        "wav": text.sound("WAV"),
        "json": {
            "id": "x/1",
            "label": "1",
            "questions": [
                {"id": "x:1/1", "text": {"en": "Who?"}, "answers": {"dog": 1.0, "a dog": 1.0}},
                {"id": "x:1/2", "text": {"en": "Where?"}, "answers": {"here": 1.0}},
            ],
        },
    }
    assert samples[1]["flac"] == text.sound("FLAC")
    assert (tmp_path / "out/answers.txt").read_text() == "dog\nhere\nnone\n"


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    make.put(tmp_path / "secret.jpg", make.picture())
    bad = pa.array([b"fine", b"\xff", b"fine"] + [b"fine"] * 5).view(pa.string())
    images = [make.picture(), make.picture(), b"GIF89a", None, make.picture(), b"", make.picture()]
    columns = {
        "image": [*images, make.picture()],
        "path": ["a.jpg", "a.jpg", "a.jpg", "a.jpg", "../secret.jpg", "a.jpg", "a.jpg", "\0"],
        "text": bad,
        "key": ["a", "b", "c", "d", "e", "f", "a", " "],
        "empty": ["x", "x", "x", "x", "x", "x", "x", " "],
    }
    make.put(tmp_path / "in/a.jpg", make.picture())
    write(tmp_path / "in/x.parquet", columns)
    options = {"text_column": "text", "key_column": "key"}
    report = table.convert(tmp_path / "in", tmp_path / "a", image_column="image", **options)
    assert report.samples == {"train": 2}
    assert report.skipped == {
        "not UTF-8": Skipped(1, ("x:2",)),
        "image is neither JPEG nor PNG": Skipped(1, ("x:3",)),
        "row without image": Skipped(2, ("x:4", "x:6")),
        "key given twice": Skipped(1, ("x:7",)),
        "row without key": Skipped(1, ("x:8",)),
    }
    report = table.convert(
        tmp_path / "in", tmp_path / "b", image_column="path", text_column="empty"
    )
    assert report.samples == {"train": 6}
    assert report.skipped == {"image not in the table's folder": Skipped(2, ("x:5", "x:8"))}
    report = table.convert(tmp_path / "in", tmp_path / "c", text_column="empty")
    assert report.skipped == {"row without text": Skipped(1, ("x:8",))}


def test_questions_need_answers(tmp_path: Path) -> None:
    columns = {"q": [["Who?", " "], ["Who?"], []], "a": [["I", "you"], ["I", "you"], []]}
    path = write(tmp_path / "x.parquet", columns)
    report = table.convert(path, tmp_path / "out", question_column="q", answer_column="a")
    assert report.samples == {"train": 1}
    assert report.skipped == {
        "question without text or answer": Skipped(1, ("x:1/2",)),
        "another number of answers than of questions": Skipped(1, ("x:2",)),
        "row without question": Skipped(1, ("x:3",)),
    }


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    path = write(tmp_path / "in/train.parquet", pictures())
    with pytest.raises(SourceError, match=r"train.parquet has the columns image, .*text_column="):
        table.convert(path, out)
    with pytest.raises(SourceError, match=r"columns image, caption, cocoid, other, and no titel"):
        table.convert(path, out, text_column="titel")
    with pytest.raises(SourceError, match="go together"):
        table.convert(path, out, question_column="caption")
    write(tmp_path / "in/train.arrow", pictures(), "file")
    with pytest.raises(SourceError, match=r"train.parquet: has the name of train.arrow"):
        table.convert(tmp_path / "in", out, **OPTIONS)
    whole = path.read_bytes()
    for broken in (whole[:-40], b"not a table"):
        make.put(path, broken)
        with pytest.raises(SourceError, match=r"train.parquet: not a readable parquet file"):
            table.convert(path, out, **OPTIONS)
    make.put(tmp_path / "in/train.arrow", (tmp_path / "in/train.arrow").read_bytes()[:300])
    with pytest.raises(SourceError, match=r"train.arrow: not a readable arrow file"):
        table.convert(tmp_path / "in/train.arrow", out, **OPTIONS)
    with pytest.raises(SourceError, match=r"x.txt: not a table; one ends in .parquet"):
        table.convert(make.put(tmp_path / "x.txt", "a,b\n"), out, text_column="a")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"pip install 'crossloom\[tables\]'"):
        table.convert(path, out, **OPTIONS)
    assert not out.exists()


@pytest.mark.parametrize("given", ["d", "d/validation", "d/validation/0000.parquet"])
def test_the_folder_of_a_split_may_be_given_itself(tmp_path: Path, given: str) -> None:
    write(tmp_path / "d/validation/0000.parquet", {"text": ["A dog."]})
    report = table.convert(tmp_path / given, tmp_path / "out", text_column="text")
    assert report.samples == {"dev": 1}


PLAIN = {
    "csv": b'\xef\xbb\xbffile,caption,n\na/0.jpg,"A dog, ""Rex"".\nIt waits.",7\na/1.jpg,\xff,8\n',
    "tsv": b'file\tcaption\tn\na/0.jpg\tA dog, "Rex". It waits.\t7\na/1.jpg\t\xff\t8\n\n',
    "jsonl": b'{"file": "a/0.jpg", "n": 7}\n\n{"caption": ["A dog, \\"Rex\\". It waits."], '
    b'"file": "a/0.jpg", "n": 7}\n{"caption": "\xff", "n": 8}\n',
}


@pytest.mark.parametrize("form", PLAIN)
def test_pictures_beside_a_text_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    make.put(tmp_path / "in/a/0.jpg", make.picture())
    make.put(tmp_path / f"in/val.{form}", PLAIN[form])
    options = {"image_column": "file", "text_column": "caption", "key_column": "n"}
    report = table.convert(tmp_path / "in", tmp_path / "out", **options)
    assert report.samples == {"dev": 1}
    assert sum(found.count for found in report.skipped.values()) == (2 if form == "jsonl" else 1)
    (sample,) = make.samples(tmp_path / "out", "dev").values()
    (said,) = sample["json"]["texts"]["en"]
    assert said.split() == ["A", "dog,", '"Rex".', "It", "waits."]
    assert sample["json"]["id"] == "7"


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("x.csv", "caption,n\nA dog, it waits.,1\n", r"x.csv: row 2 has 3 cells, the first has 2"),
        ("x.jsonl", '{"caption": "A dog."}\n{"cap', r"x.jsonl: line 2 is no JSON"),
        ("x.jsonl", "[1]\n", r"x.jsonl: line 1 is no JSON object"),
        ("x.csv", "", r"x.csv has the columns , and no caption"),
    ],
)
def test_broken_text_files_name_the_row(tmp_path: Path, name: str, held: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        table.convert(make.put(tmp_path / name, held), tmp_path / "out", text_column="caption")
    assert not list(tmp_path.rglob("*.tar"))


def test_notes_beside_parquet_files_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "in/train.parquet", pictures())
    make.put(tmp_path / "in/notes.csv", "who,when\n")
    assert table.convert(tmp_path / "in", tmp_path / "out", **OPTIONS).samples == {"train": 3}
