"""Sources of captions and expressions on photographs: what they write and leave out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_vision_sources as vision
import pytest
from fixtures_vision_sources import add_lines, edit_json

from crossloom.data_pipelines.sources import (
    Skipped,
    SourceError,
    conceptual_captions,
    flickr30k,
    guesswhat,
    refcoco,
    vcr,
    visual7w,
    xtd,
)

# --- flickr30k ----------------------------------------------------------------------------------


def test_flickr30k(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.flickr30k(tmp_path / "in")
    make.put(folder / "captions_de.tsv", "image\tn\tcaption\n10002456.jpg\t1\tEin Mann\n")
    report = flickr30k.convert(folder, out)
    assert report.samples == {"train": 2, "test": 1, "dev": 1}
    assert not report.skipped
    train = make.samples(out, "train")
    assert list(train) == ["1000092795", "10002456"]
    assert train["10002456"]["jpg"] == (folder / "flickr30k_images/10002456.jpg").read_bytes()
    assert train["10002456"]["json"] == {
        "id": "10002456.jpg",
        "texts": {"en": [f"A man , {i} ." for i in range(5)], "de": ["Ein Mann"]},
    }
    assert list(make.samples(out, "dev")) == ["1009434119"]


def test_flickr30k_without_caption_file(tmp_path: Path) -> None:
    folder = vision.flickr30k(tmp_path / "in", captions=False)
    flickr30k.convert(folder, tmp_path / "out")
    (sample,) = make.contents(tmp_path / "out", "test")
    assert sample["texts"]["en"] == [f"Raw {i} of 1007129816.jpg." for i in range(2)]


def test_flickr30k_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.flickr30k(tmp_path / "in")
    (folder / "flickr30k_images/10002456.jpg").unlink()

    def change(content: Any) -> None:
        content["images"] += [{"filename": "x.jpg"}, {"split": "train", "filename": "5.jpg"}, 3]

    edit_json(folder / "dataset_flickr30k.json", change)
    add_lines(folder / "results_20130124.token", b"77.jpg#0\tA cat .", b"no tab")
    report = flickr30k.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "entry lacks filename or split": Skipped(
            2, ("dataset_flickr30k.json[4]", "dataset_flickr30k.json[6]")
        ),
        "line lacks image or caption": Skipped(1, ("results_20130124.token:22",)),
        "image missing": Skipped(5, ("10002456.jpg",)),
        "image without caption": Skipped(1, ("5.jpg",)),
        "image not in dataset_flickr30k.json": Skipped(1, ("77.jpg",)),
    }


def test_flickr30k_errors(tmp_path: Path) -> None:
    folder = vision.flickr30k(tmp_path / "in")
    make.put(folder / "dataset_flickr30k.json", "[]")
    with pytest.raises(SourceError, match=r"dataset_flickr30k.json: no list 'images'"):
        flickr30k.convert(folder, tmp_path / "out")
    (folder / "dataset_flickr30k.json").unlink()
    with pytest.raises(SourceError, match=r"missing; it is in Karpathy's .* flickr8k converts"):
        flickr30k.convert(folder, tmp_path / "out")


# --- refcoco, xtd -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["p", "json"])
def test_refcoco(tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    folder = vision.refcoco(tmp_path / "in", form)
    report = refcoco.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 1, "images": 1, "boxes": 2, "refers": 3},
        "testA": {"samples": 1, "images": 1, "boxes": 1, "refers": 1},
    }
    assert not report.skipped
    sample = make.samples(out, "train")["000000581857"]
    name = "images/train2014/COCO_train2014_000000581857.jpg"
    assert sample["jpg"] == (folder / name).read_bytes()
    assert sample["json"] == {
        "id": "581857",
        "size": {"width": 8, "height": 8},
        "refers": [
            {"id": "10", "text": {"en": "The lady in blue"}, "box": [1.0, 2.0, 4.0, 6.0]},
            {"id": "11", "text": {"en": "woman"}, "box": [1.0, 2.0, 4.0, 6.0]},
            {"id": "20", "text": {"en": "girl on left"}, "box": [0.0, 0.0, 4.5, 8.0]},
        ],
        "boxes": [
            {"label": "person", "box": [1.0, 2.0, 4.0, 6.0]},
            {"label": "person", "box": [0.0, 0.0, 4.5, 8.0]},
        ],
    }


def test_refcoco_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.refcoco(tmp_path / "in", "json")
    (folder / "images/train2014/COCO_train2014_000000000009.jpg").unlink()

    def refs(content: Any) -> None:
        one = content[0]
        content += [{**one, "ann_id": 77}, {**one, "split": "other"}, 5, {**one, "sentences": [{}]}]
        content += [{**one, "ann_id": 4}]

    def objects(content: Any) -> None:
        one = content["annotations"][0]
        content["annotations"] += [{**one, "id": 4, "bbox": [9, 9, 9, 9]}, {"id": 5}]
        content["images"].append({"id": 6, "width": None})

    edit_json(folder / "refs(unc).json", refs)
    edit_json(folder / "instances.json", objects)
    report = refcoco.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "entry of instances lacks a part": Skipped(
            2, ("instances.json images[2]", "instances.json annotations[4]")
        ),
        "object is not in instances.json": Skipped(2, ("refs(unc).json[3]",)),
        "entry lacks object, image, split or sentences": Skipped(
            2, ("refs(unc).json[4]", "refs(unc).json[5]")
        ),
        "empty expression": Skipped(1, ("refs(unc).json[6] sentence ",)),
        "box outside the image": Skipped(1, ("object 4",)),
        "image missing": Skipped(1, ("image 9",)),
    }


def test_visual7w(tmp_path: Path) -> None:
    folder = vision.visual7w(tmp_path / "in")
    report = visual7w.convert(folder, tmp_path / "out")
    assert not report.skipped
    assert report.counts["train"] == {"samples": 1, "images": 1, "boxes": 2, "refers": 2}
    sample = make.samples(tmp_path / "out", "train")["000000000009"]
    assert sample["jpg"] == (folder / "images/v7w_9.jpg").read_bytes()
    assert sample["json"] == {
        "id": "9",
        "size": {"width": 8, "height": 8},
        "refers": [
            {"id": "90", "text": {"en": "Which thing 90?"}, "box": [1.0, 2.0, 4.5, 6.0]},
            {"id": "91", "text": {"en": "Which thing 91?"}, "box": [0.0, 0.0, 2.0, 3.0]},
        ],
        "boxes": [
            {"label": "thing 1", "box": [0.0, 0.0, 2.0, 3.0]},
            {"label": "thing 2", "box": [1.0, 2.0, 4.5, 6.0]},
        ],
    }
    assert list(make.samples(tmp_path / "out", "dev")) == ["000000000010"]


def test_visual7w_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.visual7w(tmp_path / "in")

    def spoil(content: Any) -> None:
        one = content["images"][0]["qa_pairs"][0]
        content["images"][0]["qa_pairs"] += [{**one, "answer": 7}, {**one, "question": " "}, 5]
        content["images"] += [{"image_id": 11}, {**content["images"][1], "image_id": 12}]
        content["boxes"] += [{"box_id": 8}, {**content["boxes"][0], "box_id": 9, "x": 30}]
        content["images"][1]["qa_pairs"][0]["answer"] = 9

    edit_json(folder / "dataset_v7w_pointing.json", spoil)
    report = visual7w.convert(folder, tmp_path / "out")
    assert {reason: lost.count for reason, lost in report.skipped.items()} == {
        "question without text or box": 2,
        "question lacks number, text, answer or choices": 1,
        "image lacks number, split or questions": 1,
        "box lacks number or place": 1,
        "box outside the image": 1,
        "image missing": 1,
    }
    make.put_json(folder / "dataset_v7w_pointing.json", {"images": []})
    with pytest.raises(SourceError, match="has no lists boxes and images"):
        visual7w.convert(folder, tmp_path / "out", overwrite=True)


def test_guesswhat(tmp_path: Path) -> None:
    folder = vision.guesswhat(tmp_path / "in")
    report = guesswhat.convert(folder, tmp_path / "out")
    assert not report.skipped
    assert report.counts["train"] == {"samples": 1, "images": 1, "boxes": 2, "refers": 2}
    assert report.counts["dev"]["refers"] == 1
    content = make.samples(tmp_path / "out", "train")["000000000009"]["json"]
    said = "start Is it food? answer No stop start Is it the cup? answer Yes stop"
    assert content["refers"][0] == {"id": "1", "text": {"en": said}, "box": [0.0, 0.0, 2.0, 3.0]}
    assert [b["label"] for b in content["boxes"]] == ["cup", "table"]


def test_guesswhat_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.guesswhat(tmp_path / "in")
    path = folder / "guesswhat.valid.jsonl"
    one = json.loads(path.read_text())
    add_lines(path, {**one, "qas": []}, {**one, "object_id": 5}, {"id": 4}, [])
    report = guesswhat.convert(folder, tmp_path / "out")
    assert {reason: lost.count for reason, lost in report.skipped.items()} == {
        "game without a question or its object": 2,
        "line lacks game, image, object or questions": 1,
        "line is no JSON object": 1,
    }


def test_refcoco_errors(tmp_path: Path) -> None:
    folder = vision.refcoco(tmp_path / "in")
    make.put_json(folder / "refs(google).json", vision.refcoco_refs())
    with pytest.raises(SourceError, match=r"divided by google, unc; choose one with --set by=unc"):
        refcoco.convert(folder, tmp_path / "out")
    assert refcoco.convert(folder, tmp_path / "out", by="google").samples["train"] == 1
    make.put(folder / "refs(unc).p", b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(SourceError, match=r"refs\(unc\).p: should hold .*it calls os.system"):
        refcoco.convert(folder, tmp_path / "out", by="unc", overwrite=True)


def test_xtd(tmp_path: Path) -> None:
    folder = vision.xtd(tmp_path / "in")
    report = xtd.convert(folder, tmp_path / "out")
    assert report.counts == {
        "test": {"samples": 2, "images": 2, "texts.en": 2, "texts.es": 2, "texts.ja": 2}
    }
    sample = make.samples(tmp_path / "out", "test")["000000061844"]
    assert sample["json"] == {
        "id": "61844",
        "texts": {
            "ja": ["jp caption 61844"],
            "en": ["en caption 61844"],
            "es": ["es caption 61844"],
        },
    }


def test_xtd_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.xtd(tmp_path / "in")
    names = folder / "XTD10/test_image_names.txt"
    more = [b"other.jpg", b"COCO_val2014_000000000007.jpg", b"COCO_train2014_000000061844.jpg"]
    add_lines(names, *more)
    for path, lines in {
        "XTD10/test_1kcaptions_es": [b"a", b"b", b"c"],
        "XTD10/test_1kcaptions_en": [b"a", b"b", b"c"],
        "STAIR/test_1kcaptions_jp": [b" ", b"\xff", b"c"],
    }.items():
        add_lines(folder / f"{path}.txt", *lines)
    report = xtd.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "empty line": Skipped(1, ("test_1kcaptions_jp.txt:3",)),
        "name is no COCO image": Skipped(1, ("test_image_names.txt:3",)),
        "not UTF-8": Skipped(1, ("test_1kcaptions_jp.txt:4",)),
        "image missing": Skipped(2, ("COCO_val2014_000000000007.jpg",)),
        "image given twice": Skipped(1, ("test_image_names.txt:5",)),
    }
    add_lines(names, b"one more")
    with pytest.raises(SourceError, match=r"has 6 lines.*has 5 lines"):
        xtd.convert(folder, tmp_path / "out", overwrite=True)


# --- conceptual-captions ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["webdataset", "files"])
def test_conceptual_captions(tmp_path: Path, form: str) -> None:
    folder = vision.img2dataset(tmp_path / "in", form)
    report = conceptual_captions.convert(folder, tmp_path / "out")
    assert report.counts == {"train": {"samples": 4, "images": 4, "texts.en": 4}}
    assert report.skipped == {
        "not downloaded": Skipped(2, ("00000_stats.json", "00001_stats.json"))
    }
    samples = make.samples(tmp_path / "out", "train")
    assert list(samples) == ["000000000", "000000002", "000010000", "000010002"]
    assert samples["000010002"] == {
        "jpg": make.picture(grey=12),
        "json": {"id": "000010002", "texts": {"en": ["a cat 000010002"]}},
    }


def test_conceptual_captions_in_norwegian(tmp_path: Path) -> None:
    folder = vision.img2dataset(tmp_path / "in", "files")
    language: Any = False  # as YAML reads `no`
    conceptual_captions.convert(folder, tmp_path / "out", language=language)
    assert {*make.samples(tmp_path / "out", "train")["000000000"]["json"]["texts"]} == {"no"}


def test_conceptual_captions_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.img2dataset(tmp_path / "in", "files")
    (folder / "00000/000000000.txt").write_bytes(b"\xff")
    (folder / "00000/000000002.jpg").write_bytes(b"RIFF1234WEBP")
    (folder / "00001/000010000.txt").write_text(" \n")
    (folder / "00001/000010002.txt").unlink()
    make.put(folder / "00001/000010003.jpg", make.picture())
    make.put(folder / "00001/000010004.txt", "A caption alone")
    make.put(folder / "00001/000010005.txt", "A good one")
    make.put(folder / "00001/000010005.png", make.picture("PNG"))
    make.put(folder / "00001_stats.json", "{")
    report = conceptual_captions.convert(folder, tmp_path / "out", split="dev", language="de")
    assert report.skipped == {
        "not downloaded": Skipped(1, ("00000_stats.json",)),
        "not UTF-8": Skipped(1, ("000000000",)),
        "image is neither JPEG nor PNG": Skipped(1, ("000000002",)),
        "empty caption": Skipped(1, ("000010000",)),
        "image without caption": Skipped(2, ("000010002", "000010003")),
        "caption without image": Skipped(1, ("000010004",)),
    }
    assert make.contents(tmp_path / "out", "dev") == [
        {"id": "000010005", "texts": {"de": ["A good one"]}}
    ]


def test_conceptual_captions_errors(tmp_path: Path) -> None:
    path = make.put(tmp_path / "Train_GCC-training.tsv", "a cat\thttps://x/1\n")
    with pytest.raises(SourceError, match=r"a list of links; .*img2dataset --url_list"):
        conceptual_captions.convert(path, tmp_path / "out")
    make.put(tmp_path / "in/00000.tar", b"no tar" * 500)
    with pytest.raises(SourceError, match=r"00000.tar: not a readable tar"):
        conceptual_captions.convert(tmp_path / "in", tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"none: no tars and no numbered folders"):
        conceptual_captions.convert(tmp_path / "none", tmp_path / "out")


def test_vcr(tmp_path: Path) -> None:
    folder = vision.vcr(tmp_path / "in")
    report = vcr.convert(folder, tmp_path / "out")
    assert report.samples == {"train": 2, "dev": 1}
    assert report.counts["train"] == {"samples": 2, "images": 2, "boxes": 6, "choices": 3}
    assert report.skipped == {"question without labels": Skipped(1, ("test.jsonl:1",))}
    sample = make.samples(tmp_path / "out", "train")["train-0"]
    assert sample["jpg"] == (folder / "vcr1images/x/train-0.a@0.jpg").read_bytes()
    content = sample["json"]
    assert (content["id"], content["size"]) == ("train-0", {"width": 8, "height": 8})
    assert content["boxes"] == [
        {"label": "person", "box": [0.0, 0.0, 3.0, 6.0]},
        {"label": "person", "box": [2.0, 1.0, 8.0, 7.0]},  # half a pixel outside
        {"label": "car", "box": [4.0, 4.0, 6.0, 6.0]},
    ]
    first, second = content["choices"]
    assert first == {
        "id": "train-0",
        "question": {"en": "Why is Riley near Casey and car ?"},
        "answers": {"en": ["Riley waits .", "It is a car .", "No .", "Yes ."]},
        "rationales": {"en": [f"Reason {n} of Casey ." for n in range(4)]},
        "refers": {
            "en": {
                "question": [[7, 12, 1], [18, 23, 0], [28, 31, 2]],
                "answers": [[[0, 5, 1]], [[8, 11, 2]], [], []],
                "rationales": [[[12, 17, 0]]] * 4,
            }
        },
        "answer": 1,
        "rationale": 3,
    }
    assert (second["id"], second["question"]) == ("train-1", {"en": "Who ?"})
    assert make.samples(tmp_path / "out", "dev")["val-0"]["json"]["choices"][0]["answer"] == 2


def test_vcr_keeps_what_is_not_answered_when_asked(tmp_path: Path) -> None:
    folder = vision.vcr(tmp_path / "in")
    # as unpacked from the published archives
    (folder / "vcr1annots").mkdir()
    (folder / "test.jsonl").rename(folder / "vcr1annots/test.jsonl")
    report = vcr.convert(folder, tmp_path / "out", unanswered=True)
    assert not report.skipped
    asked = make.samples(tmp_path / "out", "test")["test-0"]["json"]["choices"][0]
    assert not {"answer", "rationale"} & set(asked)
    assert len(asked["answers"]["en"]) == len(asked["rationales"]["en"]) == 4


def test_vcr_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.vcr(tmp_path / "in")
    rows = [json.loads(x) for x in (folder / "train.jsonl").read_text().splitlines()]
    one, last = rows[0], rows[2]
    bad = [
        {**one, "question": [[3], "?"]},
        {**one, "question": [[-1], "?"]},
        {**one, "answer_choices": one["answer_choices"][:3]},
        {**one, "answer_label": 4},
        {**one, "answer_label": None},
        {**one, "rationale_choices": [[], *one["rationale_choices"][1:]]},
        {**one, "objects": ["person", "person", "dog"]},
        {**last, "img_id": "train-2", "img_fn": "x/none.jpg"},
        {**last, "img_id": "train-3", "metadata_fn": "x/none.json"},
        5,
    ]
    add_lines(folder / "train.jsonl", *bad)
    far = {"boxes": [[0, 0, 3, 6, 0.9], [2, 1, 30, 7, 0.8], [4, 4, 6, 6, 0.7]], "width": 8}
    edit_json(folder / "vcr1images/x/train-1.a@0.json", lambda content: content.update(far))
    edit_json(folder / "vcr1images/x/val-0.a@0.json", lambda content: content.pop("names"))
    report = vcr.convert(folder, tmp_path / "out")
    assert {reason: lost.count for reason, lost in report.skipped.items()} == {
        "question refers to an object that is not there": 2,
        "entry is no VCR question": 2,
        "question without labels": 2,
        "empty text": 1,
        "objects differ from those of the image's first question": 1,
        "line is no JSON object": 1,
        "image missing": 1,
        "metadata missing, or not of the image's objects": 2,
        "box outside the image": 1,
    }
    content = make.samples(tmp_path / "out", "train")["train-1"]["json"]
    assert [box["label"] for box in content["boxes"]] == ["person", "car"]
    # words that meant the box that is gone stay, without it; the others have its number
    told = content["choices"][0]
    assert told["question"]["en"] == "Why is Riley near Casey and car ?"
    assert told["refers"]["en"]["question"] == [[18, 23, 0], [28, 31, 1]]
    assert told["refers"]["en"]["answers"][:2] == [[], [[8, 11, 1]]]
    with pytest.raises(SourceError, match=r"no train.jsonl, val.jsonl or test.jsonl in it"):
        vcr.convert(folder / "vcr1images", tmp_path / "none")
