"""Damaged inputs: a converter counts what it cannot use, or says what is wrong in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_vision_sources as vision
import pytest

from crossloom.data_pipelines.sources import Skipped, SourceError, vqa

SOURCES: dict[str, Any] = {
    "vqa": vision.vqa2,
    "flickr30k": vision.flickr30k,
    "visual_genome": vision.visual_genome,
    "gqa": vision.gqa,
    "snli_ve": vision.snli_ve,
    "xvnli": vision.xvnli,
    "nlvr2": vision.nlvr2,
    "refcoco": lambda root: vision.refcoco(root, "json"),
    "xtd": vision.xtd,
    "xgqa": vision.xgqa,
    "conceptual_captions": lambda root: vision.img2dataset(root, "files"),
    "butd": vision.butd,
    "coco": make.coco,
}
ODD: list[Any] = [None, "", " ", "x", -1, 10**30, 1.5, float("nan"), float("inf"), True, [], {}]
ODD += [[1], {"a": 1}, [[]], [None], "\ud800", "é\u2028\n", {"image_id": 1}, "../../x"]


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    listed = dict(enumerate(value)) if isinstance(value, list) else {}
    inner = value if isinstance(value, dict) else listed
    for key, one in inner.items():
        yield from places(one, (*before, key))


def changed(value: Any, draw: random.Random) -> Any:
    """With one value replaced, taken out or put in."""
    place = draw.choice(list(places(value)))
    if not place:
        return draw.choice(ODD)
    around = value
    for key in place[:-1]:
        around = around[key]
    way = draw.random()
    if way < 0.7:
        around[place[-1]] = draw.choice(ODD)
    elif isinstance(around, dict):
        del around[place[-1]]
    else:
        around.insert(place[-1], draw.choice(ODD))
    return value


def damage(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and draw.random() < 0.9:
        try:
            path.write_text(json.dumps(changed(json.loads(data), draw)))
        except ValueError:  # one object a line
            lines = data.decode("utf-8").splitlines()
            number = draw.randrange(len(lines))
            lines[number] = json.dumps(changed(json.loads(lines[number]), draw))
            path.write_text("\n".join(lines) + "\n")
        return
    mixed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        mixed[draw.randrange(len(mixed))] = draw.randrange(256)
    end = draw.randrange(len(mixed) + 1) if draw.random() < 0.3 else len(mixed)
    path.write_bytes(bytes(mixed[:end]))


@pytest.mark.parametrize("name", SOURCES)
def test_damage_is_counted_or_named(name: str, tmp_path: Path) -> None:
    convert = import_module(f"crossloom.data_pipelines.sources.{name}").convert
    SOURCES[name](tmp_path / "in")
    files = sorted(p for p in (tmp_path / "in").rglob("*") if p.is_file())
    texts = [p for p in files if p.suffix in (".json", ".jsonl")] or files
    draw = random.Random(name)
    for number in range(25):
        path = draw.choice(texts if draw.random() < 0.8 else files)
        before = path.read_bytes()
        damage(path, draw)
        out, said = tmp_path / f"out{number}", ""
        try:
            convert(tmp_path / "in", out)
        except SourceError as error:
            said = str(error)
        assert bool(said) != out.exists()
        assert "\n" not in said
        path.write_bytes(before)
    assert sum(convert(tmp_path / "in", tmp_path / "whole").samples.values()) > 1


def test_text_that_cannot_be_written(tmp_path: Path) -> None:
    folder = make.vqa(vision.vqa2(tmp_path / "in"), "val2014", {1: (42, ["\ud800"] * 10)})
    report = vqa.convert(folder, tmp_path / "out")
    skipped = Skipped(1, ("dev/000000000042",))
    assert report.skipped == {"text is not valid Unicode": skipped}
    assert report.samples == {"train": 1}
    make.vqa(folder, "train2014", {1: (9, ["\ud800"] * 10), 2: (10, ["fine"] * 10)})
    vision.coco_images(folder, "train2014", [10])
    report = vqa.convert(folder, tmp_path / "out", overwrite=True)
    assert report.samples == {"train": 1}
    assert json.loads((tmp_path / "out/report.json").read_text())["skipped"]
