"""Sources with images: storybooks, easy-vqa, coco, flickr8k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fixtures_sources as make
import pytest

from crossloom.data_pipelines.sources import Skipped, SourceError, coco, easy_vqa, flickr8k
from crossloom.data_pipelines.sources import storybooks as books


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    make.put_json(path, content)


# --- storybooks ---------------------------------------------------------------------------------


def test_storybooks(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = make.storybooks(tmp_path / "in")
    report = books.convert(folder, out)
    assert report.samples == {"train": 3, "dev": 6, "test": 9}
    assert not report.skipped
    pages = {k: v for s in report.samples for k, v in make.samples(out, s).items()}
    assert len(pages) == 18
    assert pages["0002-01"]["jpg"] == (folder / "images/0002/01.jpg").read_bytes()
    assert pages["0002-01"]["json"] == {
        "id": "0002/01",
        "parallel": True,
        "texts": {"en": ["page 0002"], "sw": ["ukurasa 0002"]},
    }
    assert pages["0002-02"]["json"]["texts"]["en"] == ["page two, more"]
    by_split = {s: {k[:4] for k in make.samples(out, s)} for s in report.samples}
    assert sum(map(len, by_split.values())) == 6  # no story is in two splits


def test_storybooks_counts_what_is_missing(tmp_path: Path) -> None:
    folder = make.storybooks(tmp_path / "in")
    make.put(folder / "images/0001/04.jpg", make.picture())
    make.put(folder / "images/0001/03.jpg", "no picture")
    (folder / "images/0002/01.jpg").unlink()
    make.put(folder / "text/sw/0003.md", b"# t\n##\n\xff\n##\n\n##\n* License\n")
    make.put(folder / "text/fr/0004.md", "# t\n##\nun\n##\n* License\n")
    make.put(folder / "text/en/0009.md", "# t\n##\n* License\n")
    report = books.convert(folder, tmp_path / "out", dev=1, test=0)
    assert report.skipped == {
        "text of a story without pictures": Skipped(1, ("0009",)),
        "image is neither JPEG nor PNG": Skipped(1, ("images/0001/03.jpg",)),
        "picture without text": Skipped(1, ("0001/04",)),
        "page without picture": Skipped(1, ("0002/01",)),
        "not UTF-8": Skipped(1, ("sw/0003.md page 2",)),
        "page empty in a language": Skipped(1, ("sw/0003.md page 3",)),
        "text with another number of pages than the story's others": Skipped(
            1, ("fr/0004.md (2, others 3)",)
        ),
    }
    assert sum(report.samples.values()) == 18 - 2
    alone = [
        c
        for s in report.samples
        for c in make.contents(tmp_path / "out", s)
        if c["id"] == "0003/02"
    ]
    assert alone == [{"id": "0003/02", "texts": {"en": ["page two, more"]}}]


def test_storybooks_needs_enough_stories(tmp_path: Path) -> None:
    folder = make.storybooks(tmp_path / "in", stories=5)
    with pytest.raises(SourceError, match="5 stories cannot give dev=2 and test=3"):
        books.convert(folder, tmp_path / "out")


# --- easy-vqa -----------------------------------------------------------------------------------


def test_easy_vqa(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = make.easy_vqa(tmp_path / "in")
    report = easy_vqa.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 3, "images": 3, "questions": 6},
        "test": {"samples": 2, "images": 2, "questions": 4},
    }
    train = make.samples(out, "train")
    assert train["train-000001"]["png"] == (folder / "train/images/1.png").read_bytes()
    assert train["train-000001"]["json"] == {
        "id": "train/1",
        "questions": [
            {
                "id": "train/1/0",
                "text": {"en": "what shape is it?"},
                "answers": {"circle": 1.0},
            },
            {"id": "train/1/1", "text": {"en": "is it blue?"}, "answers": {"yes": 1.0}},
        ],
    }
    assert (out / "answers.txt").read_text() == "circle\nno\nyes\n"
    make.put(folder / "answers.txt", "yes\nno\ncircle")
    easy_vqa.convert(folder, out, overwrite=True)
    assert (out / "answers.txt").read_text() == "yes\nno\ncircle\n"


def test_easy_vqa_holds_back(tmp_path: Path) -> None:
    folder = make.easy_vqa(tmp_path / "in", train=60)
    report = easy_vqa.convert(folder, tmp_path / "out", dev=0.3)
    assert report.samples["train"] + report.samples["dev"] == 60
    assert 8 <= report.samples["dev"] <= 28


def test_easy_vqa_counts_bad_entries(tmp_path: Path) -> None:
    folder = make.easy_vqa(tmp_path / "in")
    (folder / "train/images/2.png").unlink()
    make.put(folder / "test/images/7.png", make.picture("PNG"))
    edit_json(folder / "train/questions.json", lambda rows: rows.extend([["x", 1], ["", "a", 0]]))
    report = easy_vqa.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "not [question, answer, number]": Skipped(
            2, ("train/questions.json[6]", "train/questions.json[7]")
        ),
        "image missing": Skipped(2, ("train/images/2.png",)),
        "image without questions": Skipped(1, ("test/images/7.png",)),
    }
    make.put(folder / "train/questions.json", "{")
    with pytest.raises(SourceError, match=r"train/questions.json: not JSON"):
        easy_vqa.convert(folder, tmp_path / "out", overwrite=True)


# --- coco ---------------------------------------------------------------------------------------


def test_coco(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = make.cocoqa(make.coco(tmp_path / "in"))
    report = coco.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 2, "images": 2, "boxes": 2, "questions": 2, "texts.en": 4},
        "dev": {"samples": 1, "images": 1, "boxes": 1, "questions": 1, "texts.en": 2},
    }
    sample = make.samples(out, "train")["000000000009"]
    assert sample["jpg"] == (folder / "train2017/000000000009.jpg").read_bytes()
    assert sample["json"] == {
        "id": "9",
        "texts": {"en": ["Caption 0 of 9.", "Caption 1 of 9."]},
        "boxes": [{"label": "dog", "box": [1.5, 2.0, 4.5, 6.0]}],
        "questions": [
            {
                "id": "cocoqa/1",
                "kind": "object",
                "text": {"en": "what is it"},
                "answers": {"dog": 1.0},
            },
            {
                "id": "cocoqa/2",
                "kind": "number",
                "text": {"en": "how many dogs"},
                "answers": {"two": 1.0},
            },
        ],
    }
    assert report.skipped == {"question on an image that is not there": Skipped(1, ("image 777",))}
    assert (out / "answers.txt").read_text() == "dog\ntwo\n"  # of training questions alone


def test_coco_without_anything_else(tmp_path: Path) -> None:
    folder = make.coco(tmp_path / "in")
    for path in (folder / "annotations").glob("instances*"):
        path.unlink()
    report = coco.convert(folder, tmp_path / "out")
    assert report.counts["train"] == {"samples": 2, "images": 2, "texts.en": 4}
    assert not (tmp_path / "out" / "answers.txt").exists()


def test_coco_counts_bad_items(tmp_path: Path) -> None:
    folder = make.coco(tmp_path / "in")
    (folder / "train2017/000000000025.jpg").unlink()

    def boxes(content: Any) -> None:
        one = content["annotations"][0]
        crowd = {**one, "id": 101, "iscrowd": 1}
        outside = {**one, "id": 102, "bbox": [6, 6, 4, 1]}
        empty = {**one, "id": 103, "bbox": [8, 0, 0.5, 2]}
        nan = {**one, "id": 104, "bbox": [float("nan"), 0, 1, 1]}
        over = {**one, "id": 105, "bbox": [-0.5, 0, 8.9, 8.6]}
        content["annotations"] += [crowd, outside, empty, nan, over]

    def captions(content: Any) -> None:
        content["images"].append({"id": 50, "file_name": "x.jpg", "width": 8, "height": 8})
        content["annotations"].append({"id": 990, "image_id": 51, "caption": "x"})
        content["annotations"].append({"id": 991, "image_id": 50, "caption": " "})

    edit_json(folder / "annotations/instances_train2017.json", boxes)
    edit_json(folder / "annotations/captions_train2017.json", captions)
    report = coco.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "empty caption": Skipped(1, ("caption 991",)),
        "box of a crowd": Skipped(1, ("box 101",)),
        "box outside the image": Skipped(2, ("box 102", "box 104")),
        "empty box": Skipped(1, ("box 103",)),
        "caption of an image that is not listed": Skipped(1, ("image 51",)),
        "image missing": Skipped(1, ("train2017/000000000025.jpg",)),
        "image without caption": Skipped(1, ("train2017/x.jpg",)),
    }
    (sample,) = make.contents(tmp_path / "out", "train")
    assert [b["box"] for b in sample["boxes"]] == [[1.5, 2, 4.5, 6], [0, 0, 8, 8]]


def test_coco_years_are_not_mixed(tmp_path: Path) -> None:
    folder = make.coco(make.coco(tmp_path / "in"), year="2014")
    with pytest.raises(SourceError, match=r"captions of 2014, 2017.*--set year=2017"):
        coco.convert(folder, tmp_path / "out")
    assert coco.convert(folder, tmp_path / "out", year=2014).samples == {"train": 2, "dev": 1}
    with pytest.raises(SourceError, match=r"no captions_<split>2015\.json"):
        coco.convert(folder, tmp_path / "out", year="2015", overwrite=True)


def test_coco_reads_vqa_by_image(tmp_path: Path) -> None:
    folder = make.coco(tmp_path / "in")
    # image 9 is in train2017, but its questions were published with val2014
    asked = {
        90: (9, ["red"] * 4 + ["blue"] * 3 + ["Dark  red", "teal", "teal"]),
        91: (42, ["yes"] * 10),
        92: (8888, ["no"] * 10),
    }
    make.vqa(folder, "val2014", asked)
    make.put_json(
        folder / "v2_OpenEnded_mscoco_test2015_questions.json",
        {"questions": [{"image_id": 1, "question": "x", "question_id": 1}]},
    )
    report = coco.convert(folder, tmp_path / "out")
    questions = make.samples(tmp_path / "out", "train")["000000000009"]["json"]["questions"]
    assert questions == [
        {
            "id": "vqa/90",
            "kind": "other",
            "text": {"en": "Question 90?"},
            "answers": {"red": 1.0, "blue": 0.9, "teal": 0.6, "dark red": 0.3},
        }
    ]
    assert make.contents(tmp_path / "out", "dev")[0]["questions"][0]["answers"] == {"yes": 1.0}
    assert report.skipped == {
        "question without answers": Skipped(1, ("v2_OpenEnded_mscoco_test2015_questions.json",)),
        "question on an image that is not there": Skipped(1, ("image 8888",)),
    }
    assert (tmp_path / "out" / "answers.txt").read_text() == "red\n"


def test_coco_answers_have_to_be_frequent(tmp_path: Path) -> None:
    folder = make.coco(tmp_path / "in")
    answers = {n: (9, [a] * 10) for n, a in enumerate(["b", "a", "c", "b", "a", "b"])}
    make.vqa(folder / "vqa", "train2014", answers)
    coco.convert(folder, tmp_path / "out", min_answers=2)
    assert (tmp_path / "out" / "answers.txt").read_text() == "b\na\n"


# --- flickr8k -----------------------------------------------------------------------------------


def test_flickr8k(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = make.flickr8k(tmp_path / "in")
    report = flickr8k.convert(folder, out)
    assert sum(report.samples.values()) == len(make.NAMES)
    assert set(report.samples) == {"train", "dev", "test"}
    assert report.samples["train"] > 24
    assert not report.skipped
    found = {k: v for s in report.samples for k, v in make.samples(out, s).items()}
    assert found["1003_ab3"]["jpg"] == (folder / "images/1003_ab3.jpg").read_bytes()
    assert found["1003_ab3"]["json"] == {
        "id": "1003_ab3.jpg",
        "texts": {"en": ['A "dog", number 0 .', 'A "dog", number 1 .'], "de": ["Ein Hund"]},
    }
    assert list(found["1030_ab30"]["json"]["texts"]) == ["en"]
    everything = flickr8k.convert(folder, out, dev=0, test=0, overwrite=True)
    assert everything.samples == {"train": 40}


@pytest.mark.parametrize(
    ("name", "line", "header"),
    [
        ("Flickr8k.token.txt", "{image}#{n}\tA dog , {n} .\n", ""),
        ("results_20130124.token", "{image}#{n}\tA dog , {n} .\n", ""),
        ("results.csv", "{image}| {n}| A dog , {n} .\n", "image_name| comment_number| comment\n"),
    ],
)
def test_flickr8k_other_caption_files(tmp_path: Path, name: str, line: str, header: str) -> None:
    folder = make.flickr8k(tmp_path / "in")
    (folder / "captions.txt").unlink()
    lines = "".join(line.format(image=i, n=n) for i in make.NAMES for n in range(5))
    make.put(folder / name, header + lines)
    report = flickr8k.convert(folder, tmp_path / "out", dev=0, test=0)
    assert report.counts["train"] == {
        "samples": 40, "images": 40, "texts.de": 5, "texts.en": 200,
    }  # fmt: skip
    sample = make.samples(tmp_path / "out", "train")["1000_ab0"]["json"]
    assert sample["texts"]["en"][1] == "A dog , 1 ."


def test_flickr8k_official_splits(tmp_path: Path) -> None:
    folder = make.flickr8k(tmp_path / "in", make.NAMES[:4])
    for split, name in zip(("train", "dev", "test"), make.NAMES, strict=False):
        make.put(folder / f"Flickr_8k.{split}Images.txt", f"{name}\n")
    report = flickr8k.convert(folder, tmp_path / "out")
    assert report.samples == {"train": 1, "dev": 1, "test": 1}
    assert list(make.samples(tmp_path / "out", "dev")) == ["1001_ab1"]
    assert report.skipped == {"image in no official list": Skipped(1, ("1003_ab3.jpg",))}


def test_flickr8k_counts_bad_lines(tmp_path: Path) -> None:
    folder = make.flickr8k(tmp_path / "in", make.NAMES[:4])
    (folder / "images" / make.NAMES[3]).unlink()
    make.put(folder / "images/zz.jpg", make.picture())
    bad = b"no comma\n" + make.NAMES[0].encode() + b",\xff\n\n" + make.NAMES[0].encode() + b", \n"
    path = folder / "captions.txt"
    path.write_bytes(path.read_bytes() + bad)
    report = flickr8k.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "line lacks image or caption": Skipped(1, ("captions.txt:10",)),
        "not UTF-8": Skipped(1, ("captions.txt:11",)),
        "empty line": Skipped(1, ("captions.txt:12",)),
        "empty caption": Skipped(1, ("captions.txt:13",)),
        "image missing": Skipped(3, (make.NAMES[3],)),
        "image without caption": Skipped(1, ("zz.jpg",)),
    }


def test_flickr8k_errors(tmp_path: Path) -> None:
    folder = make.flickr8k(tmp_path / "in", make.NAMES[:2])
    make.put(folder / "captions.txt", "something else\n")
    with pytest.raises(SourceError, match=r"captions.txt: its first line is neither"):
        flickr8k.convert(folder, tmp_path / "out")
    (folder / "captions.txt").unlink()
    with pytest.raises(SourceError, match="no captions in it"):
        flickr8k.convert(folder, tmp_path / "out")
