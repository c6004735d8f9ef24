"""What all sources share."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_text_sources as text
import fixtures_vision_sources as vision
import pytest
from PIL import Image

from crossloom.data_pipelines import write as writing
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.sources import Report, SourceError
from crossloom.data_pipelines.sources.common import check_shares, hold_back, stable_fraction
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.write import WriteError

SOURCES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "storybooks": ("storybooks", make.storybooks),
    "multi30k": ("multi30k", make.multi30k),
    "tatoeba": ("tatoeba", make.tatoeba),
    "xnli": ("xnli", make.xnli_official),
    "xnli-rows": ("xnli", make.xnli_rows),
    "easy-vqa": ("easy_vqa", make.easy_vqa),
    "coco": ("coco", lambda root: make.cocoqa(make.coco(root))),
    "flickr8k": ("flickr8k", make.flickr8k),
    "opus": ("opus", text.opus),
    "cc100": ("cc100", text.cc100),
    "wikipedia": ("wikipedia", text.wikipedia),
    "xnli-mt": ("xnli", text.xnli_mt),
    "xquad": ("xquad", text.xquad),
    "pawsx": ("pawsx", text.pawsx),
    "conll": ("conll", text.conll),
    "conll-names": ("conll", text.conll_names),
    "librispeech": ("librispeech", text.librispeech),
    "common-voice": ("common_voice", text.common_voice),
    "wav-folder": ("wav_folder", text.wav_folder),
    "vqa": ("vqa", vision.vqa2),
    "flickr30k": ("flickr30k", vision.flickr30k),
    "visual-genome": ("visual_genome", vision.visual_genome),
    "gqa": ("gqa", vision.gqa),
    "snli-ve": ("snli_ve", vision.snli_ve),
    "xvnli": ("xvnli", vision.xvnli),
    "nlvr2": ("nlvr2", vision.nlvr2),
    "refcoco": ("refcoco", vision.refcoco),
    "visual7w": ("visual7w", vision.visual7w),
    "guesswhat": ("guesswhat", vision.guesswhat),
    "vcr": ("vcr", vision.vcr),
    "conceptual-captions": ("conceptual_captions", vision.img2dataset),
    "conceptual-captions-files": (
        "conceptual_captions",
        lambda root: vision.img2dataset(root, "files"),
    ),
    "butd": ("butd", vision.butd),
    "xtd": ("xtd", vision.xtd),
    "xgqa": ("xgqa", vision.xgqa),
}
FIELDS = {"id", "size", "parallel", "texts", "questions", "pairs", "boxes", "refers", "spans"}
FIELDS |= {"label", "tags", "choices"}
FIELDS |= {"speaker"}
LABELS = {"entailment", "neutral", "contradiction", "paraphrase", "other"}
PICTURES = {"jpg", "png", "0.jpg", "1.jpg", "0.png", "1.png"}


def convert(name: str, *args: Any, **options: Any) -> Report:
    module = import_module(f"crossloom.data_pipelines.sources.{SOURCES[name][0]}")
    return module.convert(*args, **options)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    return request.param, SOURCES[request.param][1](tmp_path / "in")


def test_the_same_input_gives_the_same_bytes(source: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = source
    a = convert(name, folder, tmp_path / "a", shard_size=2)
    b = convert(name, folder, tmp_path / "b", shard_size=2)
    assert a == b
    assert make.files(tmp_path / "a") == make.files(tmp_path / "b")


def test_samples_have_the_common_form(source: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = source
    report = convert(name, folder, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert saved == report.as_dict()
    for split, count in report.samples.items():
        shards = open_shards(str(tmp_path / "out" / f"{split}-*.tar"))
        assert sum(len(s.entries) for s in shards) == count
        for key, members in make.samples(tmp_path / "out", split).items():
            assert "." not in key
            assert set(members) <= {"json", "regions.npz", "flac", "wav", "mp3"} | PICTURES
            for extension in set(members) & PICTURES:
                Image.open(io.BytesIO(members[extension])).load()
            content = members["json"]
            assert set(content) <= FIELDS
            assert content["id"]
            texts = content.get("texts", {})
            assert all(texts.values())
            if content.get("parallel"):
                assert len(texts) > 1
                assert len({len(t) for t in texts.values()}) == 1
            for question in content.get("questions", ()):
                assert set(question) <= {"id", "kind", "text", "answers"}
                assert all(0 < score <= 1 for score in question["answers"].values())
            for pair in content.get("pairs", ()):
                truth = ("true", "false") if name == "nlvr2" else LABELS
                assert pair["label"] in truth
                assert set(pair.get("premise", pair["hypothesis"])) == set(pair["hypothesis"])
                assert all(pair["hypothesis"].values())
            for choice in content.get("choices", ()):
                for what in ("answer", "rationale"):
                    assert choice[what] in range(len(choice[f"{what}s"]["en"]))
                told = choice["refers"]["en"]
                said = [(choice["question"]["en"], told["question"])]
                for what in ("answers", "rationales"):
                    said += zip(choice[what]["en"], told[what], strict=True)
                for words, some in said:
                    assert words
                    for begin, end, box in some:
                        label = content["boxes"][box]["label"]
                        called = ("Casey", "Riley") if label == "person" else (label,)
                        assert words[begin:end] in called
            for refer in content.get("refers", ()):
                assert set(refer) == {"id", "text", "box"}
                assert all(refer["text"].values())
            for entry in (*content.get("refers", ()), *content.get("boxes", ())):
                x1, y1, x2, y2 = entry["box"]
                assert 0 <= x1 < x2 <= 8
                assert 0 <= y1 < y2 <= 8
            for span in content.get("spans", ()):
                assert set(span["text"]) == set(span["answers"]) <= set(texts)
                for language, answers in span["answers"].items():
                    for answer in answers:
                        start, words = answer["start"], answer["text"]
                        assert texts[language][0][start : start + len(words)] == words
        items: dict[str, int] = {}
        for shard in shards:
            for entry in shard.entries:
                for item, n in entry.items.items():
                    items[item] = items.get(item, 0) + n
        for item, n in items.items():
            assert report.counts[split][item] == n


def test_progress_ends_at_the_samples_written(source: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = source
    calls: list[tuple[int, int | None]] = []
    report = convert(name, folder, tmp_path / "out", progress=lambda *c: calls.append(c))
    assert [done for done, _ in calls] == list(range(1, sum(report.samples.values()) + 1))
    assert all(total is None or total >= done for done, total in calls)


def test_shards_are_replaced_only_when_told(source: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = source
    out = tmp_path / "out"
    convert(name, folder, out)
    before = make.files(out)
    with pytest.raises(SourceError, match=r"already holds shards.*--overwrite"):
        convert(name, folder, out)
    assert make.files(out) == before
    convert(name, folder, out, overwrite=True)
    assert make.files(out) == before


def test_a_failure_leaves_the_earlier_output(
    source: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = source
    out = tmp_path / "out"
    convert(name, folder, out)
    before = make.files(out)

    def stop(done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(name, folder, out, overwrite=True, shard_size=1, progress=stop)
    assert make.files(out) == before

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device; make room"):
        convert(name, folder, out, overwrite=True)
    assert make.files(out) == before


def test_an_input_that_is_not_there(source: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = source
    with pytest.raises(SourceError, match="give the f"):
        convert(name, None, tmp_path / "out")
    with pytest.raises(SourceError, match=str(tmp_path / "absent")):
        convert(name, tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=str(tmp_path / "empty")):
        convert(name, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_that_are_made_no_more_go_away(tmp_path: Path) -> None:
    folder = make.easy_vqa(tmp_path / "in", train=40)
    assert set(convert("easy-vqa", folder, tmp_path / "out", dev=0.3).samples) == {
        "train",
        "dev",
        "test",
    }
    convert("easy-vqa", folder, tmp_path / "out", overwrite=True)
    assert not list((tmp_path / "out").glob("dev-*"))


def test_an_input_that_gives_nothing_is_an_error(tmp_path: Path) -> None:
    make.easy_vqa(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.png"):
        path.unlink()
    with pytest.raises(SourceError, match=r"gives no sample .*10 skipped: image missing"):
        convert("easy-vqa", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_world_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = import_module("crossloom.data_pipelines.world")
    calls: list[dict[str, Any]] = []

    def write_world(out: Path, **options: Any) -> Any:
        calls.append({"out": out, **options})
        made = {"scenes": {"train": 3, "dev": 0}, "spoken": {"train": 1}, "clips": {"train": 2}}
        return type("Made", (), made)

    monkeypatch.setattr(world, "write_world", write_world)
    module = import_module("crossloom.data_pipelines.sources.world")
    report = module.convert(None, tmp_path, examples=3, seed=7, dev=0)
    assert report.samples == {"train": 3, "speech-train": 1, "clip-train": 2}
    assert calls[0]["seed"] == 7
    assert calls[0]["examples"] == 3


def test_reports_read_well() -> None:
    from crossloom.data_pipelines.sources import Skipped

    report = Report(
        "coco",
        {"train": {"samples": 2, "images": 2, "texts.en": 10}},
        {"box of a crowd": Skipped(7, ("box 1", "box 2"))},
    )
    assert str(report).splitlines() == [
        "coco train: 2 samples, 2 images, 10 texts.en",
        "skipped 7: box of a crowd (box 1, box 2, …)",
    ]
    many = Report("x", {"train": {"samples": 1} | {f"texts.l{n}": 2 for n in range(20)}}, {})
    assert str(many) == "x train: 1 samples, 40 texts in 20 languages"


def test_language_codes() -> None:
    codes = {"deu": "de", "cmn": "zh", "pes": "fa", "zsm": "ms", "nob": "nb", "yue": "yue"}
    codes |= {"arz": "arz", "tgl": "tl", "lvs": "lv", "en": "en", "ENG": "en", "tzl": "tzl"}
    assert {c: language_code(c) for c in codes} == codes


def test_stable_choices() -> None:
    shares = [stable_fraction("a", n) for n in range(2000)]
    assert shares == [stable_fraction("a", n) for n in range(2000)]
    assert 0.47 < sum(shares) / 2000 < 0.53
    names = [f"{n:04d}" for n in range(20)]
    splits = hold_back(names, "x", test=3, dev=2)
    assert sorted(splits.values()).count("test") == 3
    assert list(splits.values()).count("dev") == 2
    more = hold_back(reversed(names), "x", test=3, dev=4)
    assert {n for n in names if splits[n] == "test"} == {n for n in names if more[n] == "test"}
    for bad in ({"dev": -0.1}, {"dev": 0.5, "test": 0.5}, {"dev": 2}):
        with pytest.raises(SourceError, match="fractions, together below 1"):
            check_shares(**bad)
