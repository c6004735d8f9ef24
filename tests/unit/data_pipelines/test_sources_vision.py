"""Sources of questions and entailment on photographs: what they write and leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fixtures_sources as make
import fixtures_vision_sources as vision
import pytest
from fixtures_vision_sources import add_lines, edit_json

from crossloom.data_pipelines.sources import (
    Skipped,
    SourceError,
    gqa,
    nlvr2,
    snli_ve,
    visual_genome,
    vqa,
    xgqa,
    xvnli,
)

# --- vqa ----------------------------------------------------------------------------------------


def test_vqa(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.vqa2(tmp_path / "in")
    report = vqa.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 1, "images": 1, "questions": 2},
        "dev": {"samples": 1, "images": 1, "questions": 1},
    }
    assert not report.skipped
    train = make.samples(out, "train")
    name = "train2014/COCO_train2014_000000000009.jpg"
    assert train["000000000009"]["jpg"] == (folder / name).read_bytes()
    asked = {"kind": "other", "text": {"en": "Question 90?"}}
    assert train["000000000009"]["json"] == {
        "id": "9",
        "questions": [
            {"id": "vqa/90", **asked, "answers": {"red": 1.0}},
            {"id": "vqa/91", **asked, "text": {"en": "Question 91?"}, "answers": {"2": 1.0}},
        ],
    }
    assert make.contents(out, "dev")[0]["questions"][0]["answers"] == {"yes": 1.0, "no": 0.9}
    assert (out / "answers.txt").read_text() == "2\nred\n"


def test_vqa_finds_images_of_2017_elsewhere(tmp_path: Path) -> None:
    folder = make.vqa(tmp_path / "in/vqa", "train2014", {1: (9, ["a b"] * 10)}).parent
    images = vision.coco_images(tmp_path / "coco", "val2017", [9])
    report = vqa.convert(folder, tmp_path / "out", images=str(images))
    assert report.samples == {"train": 1}
    with pytest.raises(SourceError, match="absent: no such folder; it was given as the images'"):
        vqa.convert(folder, tmp_path / "out2", images=str(tmp_path / "absent"))


def test_vqa_keeps_questions_of_the_tests_when_asked(tmp_path: Path) -> None:
    folder = vision.vqa2(tmp_path / "in")
    asked = [{"image_id": 7, "question": "Is it?", "question_id": 70}]
    for name in ("test2015", "test-dev2015"):
        test = {"questions": asked}
        make.put_json(folder / f"v2_OpenEnded_mscoco_{name}_questions.json", test)
    vision.coco_images(folder, "test2015", [7])
    report = vqa.convert(folder, tmp_path / "out", unanswered=True)
    assert report.samples == {"test": 1, "testdev": 1, "train": 1, "dev": 1}
    assert not report.skipped
    for split in ("test", "testdev"):
        (content,) = make.contents(tmp_path / "out", split)
        assert content["questions"] == [
            {"id": "vqa/70", "kind": "", "text": {"en": "Is it?"}, "answers": {}}
        ]
    left_out = vqa.convert(folder, tmp_path / "without")
    assert left_out.samples == {"train": 1, "dev": 1}


def test_vqa_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.vqa2(tmp_path / "in")
    (folder / "val2014/COCO_val2014_000000000042.jpg").write_bytes(b"GIF89a")
    questions = folder / "v2_OpenEnded_mscoco_train2014_questions.json"
    answers = folder / "v2_mscoco_train2014_annotations.json"
    more = [{"image_id": 9, "question": "x"}, 7, {"image_id": 9, "question_id": 5, "question": "?"}]
    edit_json(questions, lambda c: c["questions"].extend(more))
    odd = [{"question_id": "x", "answers": [{"answer": "a", "answer_id": 1}]}, {"question_id": 8}]
    lone = [{"question_id": 6, "answers": [{"answer": "a", "answer_id": 1}]}, 3]
    edit_json(answers, lambda c: c["annotations"].extend([*odd, *lone]))
    test = {"questions": [{"image_id": 1, "question": "x", "question_id": 1}]}
    make.put_json(folder / "v2_OpenEnded_mscoco_test2015_questions.json", test)
    report = vqa.convert(folder, tmp_path / "out")
    stem = "v2_OpenEnded_mscoco_train2014_questions.json"
    beside = "v2_mscoco_train2014_annotations.json"
    assert report.skipped == {
        "question without answers": Skipped(
            2, ("v2_OpenEnded_mscoco_test2015_questions.json", "question 5")
        ),
        "entry is no VQA v2 annotation": Skipped(
            3, (f"{beside}[2]", f"{beside}[3]", f"{beside}[5]")
        ),
        "entry is no VQA v2 question": Skipped(2, (f"{stem}[2]", f"{stem}[3]")),
        "answers to a question that is not there": Skipped(1, ("question 6",)),
        "image is neither JPEG nor PNG": Skipped(1, ("image 42",)),
    }


def test_vqa_errors(tmp_path: Path) -> None:
    folder = vision.vqa2(tmp_path / "in")
    path = folder / "v2_mscoco_train2014_annotations.json"
    for content, said in (("[]", "no list 'annotations' in it"), ("{", "not JSON")):
        make.put(path, content)
        with pytest.raises(SourceError, match=rf"{path.name}: .*{said}"):
            vqa.convert(folder, tmp_path / "out")
    vision.vqa2(folder / "vqa")
    with pytest.raises(SourceError, match=r"also in .*; keep one of them"):
        vqa.convert(folder, tmp_path / "out")


# --- visual-genome ------------------------------------------------------------------------------


def test_visual_genome(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.visual_genome(tmp_path / "in")
    report = visual_genome.convert(folder, out)
    assert report.counts == {
        "train": {
            "samples": 3, "images": 3, "boxes": 3, "questions": 2, "refers": 4, "texts.en": 4,
        }
    }  # fmt: skip
    assert not report.skipped
    train = make.samples(out, "train")
    assert train["2"]["jpg"] == (folder / "VG_100K_2/2.jpg").read_bytes()
    assert train["1"]["json"] == {
        "id": "1",
        "texts": {"en": ["phrase 0 of 1", "phrase 1 of 1"]},
        "refers": [
            {"id": f"1{i}", "text": {"en": f"phrase {i} of 1"}, "box": [1.0, 2.0, 4.0, 6.0]}
            for i in range(2)
        ],
        "boxes": [{"label": "tree", "box": [0.0, 0.0, 8.0, 8.0]}],
        "questions": [
            {"id": "vg/101", "text": {"en": "What is it?"}, "answers": {"clock": 1.0}},
        ],
    }
    assert set(train["3"]["json"]) == {"id", "boxes"}
    assert (out / "answers.txt").read_text() == "2\nclock\n"


def test_visual_genome_without_coco(tmp_path: Path) -> None:
    folder = vision.visual_genome(tmp_path / "in")
    listed = make.put_json(tmp_path / "captions_val2014.json", {"images": [{"id": 42}]})
    report = visual_genome.convert(folder, tmp_path / "out", without=str(listed))
    assert list(make.samples(tmp_path / "out", "train")) == ["1", "3"]
    assert report.skipped["image left out by option without"] == Skipped(1, ("image 2",))
    assert report.skipped["box in an image that is not converted"].count == 3
    assert report.skipped["question on an image that is not converted"].count == 1


def test_visual_genome_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.visual_genome(tmp_path / "in")
    (folder / "VG_100K_2/3.jpg").unlink()

    def regions(content: Any) -> None:
        one = content[0]["regions"][0]
        content[0]["regions"] += [
            {**one, "region_id": 1, "phrase": " "},
            {**one, "region_id": 2, "width": 0},
            {**one, "region_id": 3, "x": 70},
            {"region_id": 4, "phrase": "no box"},
        ]

    def objects(content: Any) -> None:
        content[0]["objects"] += [{**content[0]["objects"][0], "object_id": 9, "names": []}, 5]

    def asked(content: Any) -> None:
        content[0]["qas"] += [{"qa_id": 1, "image_id": 1, "question": "x", "answer": "The."}]
        content[0]["qas"] += [{"qa_id": 2, "question": "x", "answer": "y"}]

    edit_json(folder / "region_descriptions.json", regions)
    edit_json(folder / "objects.json", objects)
    edit_json(folder / "question_answers.json", asked)
    more = [{"image_id": 4, "width": 8, "height": 8}, {"image_id": "x"}]
    edit_json(folder / "image_data.json", lambda content: content.extend(more))
    report = visual_genome.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "entry is no image": Skipped(1, ("image_data.json[4]",)),
        "empty description": Skipped(1, ("region 1",)),
        "empty box": Skipped(1, ("region 2",)),
        "box outside the image": Skipped(1, ("region 3",)),
        "entry lacks image or box": Skipped(1, ("region 4",)),
        "object without name": Skipped(1, ("object 9",)),
        "entry is no object": Skipped(1, ("image 1",)),
        "question without answers": Skipped(1, ("question 1",)),
        "question on an image that is not converted": Skipped(1, ("question 2",)),
        "image missing": Skipped(1, ("3.jpg",)),
        "image without region, object or question": Skipped(1, ("image 4",)),
    }


def test_visual_genome_errors(tmp_path: Path) -> None:
    folder = vision.visual_genome(tmp_path / "in")
    make.put(folder / "objects.json", "{}")
    with pytest.raises(SourceError, match=r"objects.json: should be a list of Visual Genome's obj"):
        visual_genome.convert(folder, tmp_path / "out")
    (folder / "image_data.json").unlink()
    with pytest.raises(SourceError, match=r"image_data.json: missing"):
        visual_genome.convert(folder, tmp_path / "out")


# --- gqa, xgqa ----------------------------------------------------------------------------------


def test_gqa(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.gqa(tmp_path / "in")
    report = gqa.convert(folder, out)
    assert report.samples == {"train": 2, "dev": 1, "test": 1}
    assert not report.skipped
    train = make.samples(out, "train")
    assert list(train) == ["2354786", "n161313"]
    assert train["n161313"]["jpg"] == (folder / "images/n161313.jpg").read_bytes()
    asked = {"kind": "verify", "text": {"en": "Is the sky dark?"}, "answers": {"yes": 1.0}}
    assert train["2354786"]["json"] == {
        "id": "2354786",
        "questions": [
            {"id": "gqa/10", **asked},
            {"id": "gqa/12", **asked, "text": {"en": "Is it wet?"}, "answers": {"no": 1.0}},
        ],
    }
    assert (out / "answers.txt").read_text() == "no\nyes\n"


def test_gqa_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.gqa(tmp_path / "in")
    (folder / "images/2354786.jpg").unlink()
    path = folder / "questions1.2/val_balanced_questions.json"
    more = {"21": vision.gqa_question("n5", "x", None), "22": {"question": "x"}, "23": 5}
    more["24"] = vision.gqa_question("n5", " ")
    edit_json(path, lambda content: content.update(more))
    report = gqa.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "question without answers": Skipped(1, (f"{path.name} 21",)),
        "entry lacks question or image": Skipped(
            3, (f"{path.name} 22", f"{path.name} 23", f"{path.name} 24")
        ),
        "image missing": Skipped(2, ("2354786.jpg",)),
    }
    make.put(path, "[]")
    with pytest.raises(
        SourceError, match=r"val_balanced_questions.json: should hold GQA questions"
    ):
        gqa.convert(folder, tmp_path / "out", overwrite=True)
    with pytest.raises(SourceError, match=r"no <division>_balanced_questions\.json"):
        gqa.convert(folder / "images", tmp_path / "out", overwrite=True)


def test_xgqa(tmp_path: Path) -> None:
    folder = vision.xgqa(tmp_path / "in")
    report = xgqa.convert(folder, tmp_path / "out")
    assert report.samples == {"test": 2}
    sample = make.samples(tmp_path / "out", "test")["n1"]
    assert sample["jpg"] == (folder / "images/n1.jpg").read_bytes()
    assert sample["json"] == {
        "id": "n1",
        "questions": [
            {
                "id": "gqa/1",
                "kind": "verify",
                "text": {"en": "en 1?", "de": "de 1?"},
                "answers": {"yes": 1.0},
            }
        ],
    }
    few = xgqa.convert(folder, tmp_path / "few", shots=1)
    assert few.samples == {"train": 1, "dev": 1, "test": 1}
    assert make.contents(tmp_path / "few", "train")[0]["id"] == "n3"
    with pytest.raises(SourceError, match=r"few_shot: no <language>/train_5.json"):
        xgqa.convert(folder, tmp_path / "out5", shots=5)


def test_xgqa_counts_what_differs_between_languages(tmp_path: Path) -> None:
    folder = vision.xgqa(tmp_path / "in")
    path = folder / "zero_shot/testdev_balanced_questions_de.json"
    edit_json(path, lambda content: content["1"].update(answer="nein"))
    edit_json(path, lambda content: content["2"].update(imageId="n1"))
    report = xgqa.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "image or answer differs from other languages'": Skipped(
            2, (f"{path.name} 1", f"{path.name} 2")
        )
    }
    assert [s["questions"][0]["text"] for s in make.contents(tmp_path / "out", "test")] == [
        {"en": "en 1?"}, {"en": "en 2?"},
    ]  # fmt: skip


# --- snli-ve, xvnli, nlvr2 ----------------------------------------------------------------------


def test_snli_ve(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.snli_ve(tmp_path / "in")
    report = snli_ve.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 2, "images": 2, "pairs": 3, "pairs.en": 3},
        "test": {"samples": 1, "images": 1, "pairs": 1, "pairs.en": 1},
    }
    assert not report.skipped
    train = make.samples(out, "train")
    picture = (folder / "flickr30k_images/4705552913.jpg").read_bytes()
    assert train["4705552913"]["jpg"] == picture
    texts = {"2r1n": "The sisters are hugging .", "2r1c": "The men are fighting."}
    labels = {"2r1n": "neutral", "2r1c": "contradiction"}
    assert train["4705552913"]["json"] == {
        "id": "4705552913.jpg",
        "pairs": [
            {"id": f"4705552913.jpg#{n}", "label": labels[n], "hypothesis": {"en": text}}
            for n, text in texts.items()
        ],
    }


def test_snli_ve_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.snli_ve(tmp_path / "in")
    (folder / "flickr30k_images/77.jpg").unlink()
    path = folder / "snli_ve_train.jsonl"
    add_lines(
        path,
        vision.entailed("1", "a", "-", "x"),
        {"gold_label": "neutral", "sentence2": "x"},
        vision.entailed("1", "b", "neutral", " "),
        [1],
        b"\xff",
        b"{",
        b"",
        vision.entailed("36979", "0r1e", "entailment", "Again."),
    )
    report = snli_ve.convert(folder, tmp_path / "out")
    lines = [f"{path.name}:{n}" for n in range(12)]
    assert report.skipped == {
        "no gold label": Skipped(1, (lines[4],)),
        "line lacks image or hypothesis": Skipped(2, (lines[5], lines[6])),
        "line is no JSON object": Skipped(2, (lines[7], lines[9])),
        "not UTF-8": Skipped(1, (lines[8],)),
        "pair given twice in one language": Skipped(1, (lines[11],)),
        "image missing": Skipped(1, ("77.jpg",)),
    }


def test_xvnli(tmp_path: Path) -> None:
    folder = vision.xvnli(tmp_path / "in")
    report = xvnli.convert(folder, tmp_path / "out", shots=1)
    assert report.samples == {"train": 1, "test": 2}
    assert report.counts["test"]["pairs.ru"] == 3
    sample = make.samples(tmp_path / "out", "test")["759822302"]
    assert sample["json"]["pairs"][0] == {
        "id": "759822302.jpg#2r1e",
        "label": "neutral",
        "hypothesis": {"ar": "هو يقرأ.", "en": "He reads.", "ru": "Он читает."},
    }
    assert xvnli.convert(folder / "annotations", tmp_path / "o", images=str(folder / "images"))
    add_lines(
        folder / "annotations/ru/test.jsonl",
        vision.entailed("66", "0r1e", "neutral", "x", "Flikr30kID"),
    )
    again = xvnli.convert(folder, tmp_path / "again")
    assert again.skipped == {
        "label differs from the other languages'": Skipped(1, ("test.jsonl:4",))
    }
    assert again.samples == {"test": 2}


def test_nlvr2(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = vision.nlvr2(tmp_path / "in")
    report = nlvr2.convert(folder, out)
    assert report.counts == {
        "train": {"samples": 2, "images": 4, "pairs": 3, "pairs.en": 3},
        "dev": {"samples": 1, "images": 2, "pairs": 1, "pairs.en": 1},
        "test": {"samples": 1, "images": 2, "pairs": 1, "pairs.en": 1},
    }
    train = make.samples(out, "train")
    sample = train["train-10171-0"]  # its files are JPEG, whatever their names say
    for side in (0, 1):
        path = folder / f"images/train/10/train-10171-0-img{side}.png"
        assert sample[f"{side}.jpg"] == path.read_bytes()
    assert set(train["train-2-3"]) == {"0.png", "1.png", "json"}
    assert sample["json"] == {
        "id": "train-10171-0",
        "pairs": [
            {
                "id": f"train-10171-0-{n}",
                "label": label,
                "hypothesis": {"en": f"About train-10171-0-{n}."},
            }
            for n, label in enumerate(("false", "true"))
        ],
    }


def test_nlvr2_counts_bad_items(tmp_path: Path) -> None:
    folder = vision.nlvr2(tmp_path / "in")
    (folder / "images/train/10/train-10171-0-img1.png").unlink()
    path = folder / "data/train.json"
    add_lines(path, {"identifier": "train-1-1-0", "sentence": "x", "label": "maybe"}, {"label": 1})
    report = nlvr2.convert(folder, tmp_path / "out")
    assert report.skipped == {
        "no label": Skipped(1, ("train.json:4",)),
        "line lacks identifier or sentence": Skipped(1, ("train.json:5",)),
        "image missing": Skipped(2, ("train/train-10171-0-img1.png",)),
    }
