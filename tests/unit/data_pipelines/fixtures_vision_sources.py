"""Tiny vision-language data sets in the layout in which each is published."""

from __future__ import annotations

import base64
import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fixtures_sources import picture, put, put_json, vqa


def put_lines(path: Path, rows: Iterable[Any]) -> Path:
    return put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    put_json(path, content)


def add_lines(path: Path, *lines: Any) -> None:
    rows = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    path.write_bytes(path.read_bytes() + b"".join(row + b"\n" for row in rows))


def coco_images(root: Path, division: str, numbers: Iterable[int]) -> Path:
    for n in numbers:
        plain = f"{n:012d}.jpg"
        name = plain if division.endswith("17") else f"COCO_{division}_{plain}"
        put(root / division / name, picture(grey=n % 256))
    return root


def vqa2(root: Path) -> Path:
    vqa(root, "train2014", {90: (9, ["red"] * 10), 91: (9, ["two"] * 4 + ["2"] * 6)})
    vqa(root, "val2014", {420: (42, ["yes"] * 7 + ["no"] * 3)})
    coco_images(root, "train2014", [9])
    return coco_images(root, "val2014", [42])


def flickr30k(root: Path, captions: bool = True) -> Path:
    names = {"1000092795.jpg": "train", "10002456.jpg": "train", "1007129816.jpg": "test"}
    names["1009434119.jpg"] = "val"
    images = [
        {
            "sentids": [0, 1],
            "imgid": n,
            "sentences": [
                {"tokens": ["x"], "raw": f"Raw {i} of {name}. ", "imgid": n, "sentid": i}
                for i in range(2)
            ],
            "split": split,
            "filename": name,
        }
        for n, (name, split) in enumerate(names.items())
    ]
    put_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    if captions:
        lines = "".join(f"{n}#{i}\tA man , {i} .\n" for n in names for i in range(5))
        put(root / "results_20130124.token", lines)
    for n, name in enumerate(names):
        put(root / f"flickr30k_images/{name}", picture(grey=n))
    return root


def visual_genome(root: Path) -> Path:
    images = [
        {"image_id": n, "width": 8, "height": 8, "url": "u", "coco_id": c, "flickr_id": None}
        for n, c in ((1, None), (2, 42), (3, 9))
    ]
    put_json(root / "image_data.json", images)
    region = {"x": 1, "y": 2, "width": 3, "height": 4}
    regions = [
        {
            "id": n,
            "regions": [
                {**region, "region_id": 10 * n + i, "image_id": n, "phrase": f"phrase {i}\nof {n}"}
                for i in range(2)
            ],
        }
        for n in (1, 2)
    ]
    put_json(root / "region_descriptions.json", regions)
    thing = {"synsets": ["tree.n.01"], "x": 0, "y": 0, "w": 8, "h": 9}
    objects = [
        {
            "image_id": n,
            "objects": [
                {**thing, "object_id": n, "names": ["tree", "oak"], "merged_object_ids": []}
            ],
            "image_url": "u",
        }
        for n in (1, 2, 3)
    ]
    put_json(root / "objects.json", objects)
    answers = {1: "A clock.", 2: "Two."}
    qas = [
        {
            "id": n,
            "qas": [
                {
                    "a_objects": [{"object_id": 1, "names": ["x"]}],
                    "question": "What  is it?",
                    "image_id": n,
                    "qa_id": 100 + n,
                    "answer": answer,
                    "q_objects": [],
                }
            ],
        }
        for n, answer in answers.items()
    ]
    put_json(root / "question_answers.json", qas)
    put(root / "VG_100K/1.jpg", picture(grey=1))
    put(root / "VG_100K_2/2.jpg", picture(grey=2))
    put(root / "VG_100K_2/3.jpg", picture(grey=3))
    return root


def gqa_question(image: str, question: str, answer: str | None = "yes") -> dict[str, Any]:
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (0)"}],
        "entailed": ["1"],
        "equivalent": ["1"],
        "question": question,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": None, "local": "06-sky"},
        **({"answer": answer} if answer is not None else {}),
        "semanticStr": "select: sky (0)",
        "annotations": {"answer": {}, "question": {"2": "1"}, "fullAnswer": {}},
        "types": {"detailed": "existAttr", "semantic": "attr", "structural": "verify"},
        "fullAnswer": "Yes, it is.",
    }


def gqa(root: Path) -> Path:
    place = root / "questions1.2"
    put_json(
        place / "train_balanced_questions.json",
        {
            "10": gqa_question("2354786", "Is the sky dark?"),
            "11": gqa_question("n161313", "Is it red?", "No"),
            "12": gqa_question("2354786", "Is it wet?", "no"),
        },
    )
    put_json(place / "val_balanced_questions.json", {"20": gqa_question("n5", "Is it big?")})
    put_json(place / "testdev_balanced_questions.json", {"30": gqa_question("n6", "Is it old?")})
    for n, name in enumerate(("2354786", "n161313", "n5", "n6")):
        put(root / f"images/{name}.jpg", picture(grey=n))
    return root


def entailed(image: str, number: str, label: str, text: str, key: str = "Flickr30K_ID") -> Any:
    return {
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#2",
        "gold_label": label,
        "pairID": f"{image}.jpg#{number}",
        "sentence1": "Two women are embracing.",
        "sentence2": text,
        key: image,
    }


def snli_ve(root: Path) -> Path:
    rows = [
        entailed("4705552913", "2r1n", "neutral", "The sisters are hugging ."),
        entailed("36979", "0r1e", "entailment", "Two people."),
        entailed("4705552913", "2r1c", "contradiction", "The men are fighting."),
    ]
    put_lines(root / "snli_ve_train.jsonl", rows)
    put_lines(
        root / "snli_ve_test.jsonl", [entailed("77", "0r1e", "entailment", "One.", "Flikr30kID")]
    )
    for n, name in enumerate(("4705552913", "36979", "77")):
        put(root / f"flickr30k_images/{name}.jpg", picture(grey=n))
    return root


def xvnli(root: Path) -> Path:
    texts = {"en": "He reads.", "ar": "هو يقرأ.", "ru": "Он читает."}
    for language, text in texts.items():
        place = root / "annotations" / language
        rows = [
            entailed("759822302", "2r1e", "neutral", text, "Flikr30kID"),
            entailed("759822302", "2r1c", "contradiction", text * 2, "Flikr30kID"),
            entailed("66", "0r1e", "entailment", text, "Flikr30kID"),
        ]
        put_lines(place / "test.jsonl", rows)
        put_lines(place / "train_1.jsonl", [entailed("55", "1", "neutral", text, "Flikr30kID")])
    for n, name in enumerate(("759822302", "55", "66")):
        put(root / f"images/{name}.jpg", picture(grey=n))
    return root


def nlvr2(root: Path) -> Path:
    def row(number: str, label: str, **more: Any) -> dict[str, Any]:
        urls = {"left_url": "https://l", "right_url": "https://r", "synset": "pencil"}
        return {
            "identifier": number,
            "sentence": f"About {number}.",
            "label": label,
            **urls,
            **more,
        }

    put_lines(
        root / "data/train.json",
        [
            row("train-10171-0-0", "False", directory=10),
            row("train-10171-0-1", "True", directory=10),
            row("train-2-3-0", "True", directory=2),
        ],
    )
    put_lines(root / "data/dev.json", [row("dev-850-0-0", "True")])
    put_lines(root / "data/test1.json", [row("test1-0-1-0", "False")])
    places = {
        "images/train/10/train-10171-0": "JPEG",
        "images/train/2/train-2-3": "PNG",
        "images/dev/dev-850-0": "PNG",
        "images/test1/test1-0-1": "PNG",
    }
    for place, form in places.items():
        for side in (0, 1):
            put(root / f"{place}-img{side}.png", picture(form, side))
    return root


def refcoco_refs() -> list[dict[str, Any]]:
    def ref(number: int, image: int, split: str, texts: Sequence[str]) -> dict[str, Any]:
        return {
            "sent_ids": list(range(len(texts))),
            "file_name": f"COCO_train2014_{image:012d}_16.jpg",
            "ann_id": number,
            "ref_id": number,
            "image_id": image,
            "split": split,
            "sentences": [
                {"tokens": t.split(), "raw": t, "sent_id": 10 * number + i, "sent": t.lower()}
                for i, t in enumerate(texts)
            ],
            "category_id": 1,
        }

    return [
        ref(1, 581857, "train", ["The lady in blue", "woman"]),
        ref(2, 581857, "train", ["girl on left"]),
        ref(3, 9, "testA", ["man"]),
    ]


def refcoco(root: Path, form: str = "p") -> Path:
    if form == "p":
        put(root / "refs(unc).p", pickle.dumps(refcoco_refs(), protocol=0))
    else:
        put_json(root / "refs(unc).json", refcoco_refs())
    boxes = {1: (581857, [1, 2, 3, 4]), 2: (581857, [0, 0, 4.5, 8]), 3: (9, [2, 2, 2, 2])}
    content = {
        "images": [{"id": n, "width": 8, "height": 8, "file_name": "x"} for n in (581857, 9)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": b, "segmentation": [[1]], "area": 1}
            for n, (i, b) in boxes.items()
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    put_json(root / "instances.json", content)
    coco_images(root / "images", "train2014", [581857, 9])
    return root


def visual7w(root: Path) -> Path:
    def asked(number: int, answer: int, *others: int) -> dict[str, Any]:
        return {
            "qa_id": number, "question": f"Which  thing {number}?", "answer": answer,
            "multiple_choices": list(others), "type": "which",
        }  # fmt: skip

    places = {1: (0, 0, 2, 3), 2: (1, 2, 3.5, 4), 3: (4, 4, 4, 4)}
    boxes = [
        {"box_id": n, "name": f"thing {n}", "x": x, "y": y, "width": w, "height": h}
        for n, (x, y, w, h) in places.items()
    ]
    content = {
        "dataset": "visual7w-pointing",
        "boxes": boxes,
        "images": [
            {"image_id": 9, "split": "train", "qa_pairs": [asked(90, 2, 1), asked(91, 1, 2)]},
            {"image_id": 10, "split": "val", "qa_pairs": [asked(100, 3, 1, 2)]},
        ],
    }
    put_json(root / "dataset_v7w_pointing.json", content)
    for number in (9, 10):
        put(root / f"images/v7w_{number}.jpg", picture(grey=number))
    return root


def guesswhat(root: Path) -> Path:
    def game(number: int, target: int, *rounds: tuple[str, str]) -> dict[str, Any]:
        places = {1: ("cup", [0, 0, 2, 3]), 2: ("table", [1, 2, 3.5, 4])}
        return {
            "id": number, "status": "success", "object_id": target,
            "image": {"id": 9, "width": 8, "height": 8, "file_name": "x"},
            "objects": [
                {"id": n, "category": c, "bbox": b, "area": 1} for n, (c, b) in places.items()
            ],
            "qas": [{"id": i, "question": q, "answer": a} for i, (q, a) in enumerate(rounds)],
        }  # fmt: skip

    put(root / "guesswhat.train.jsonl", "")
    put(root / "guesswhat.valid.jsonl", "")
    one, other = ("Is it  food?", "No"), ("Is it the cup?", "Yes")
    add_lines(root / "guesswhat.train.jsonl", game(1, 1, one, other), game(2, 2, other))
    add_lines(root / "guesswhat.valid.jsonl", game(3, 2, one))
    return coco_images(root, "train2014", [9])


def xtd(root: Path) -> Path:
    numbers = (61844, 61849)
    names = "".join(f"COCO_train2014_{n:012d}.jpg\n" for n in numbers)
    put(root / "XTD10/test_image_names.txt", names)
    for place, language in (("XTD10", "es"), ("XTD10", "en"), ("STAIR", "jp")):
        text = "".join(f"{language} caption  {n}\n" for n in numbers)
        put(root / f"{place}/test_1kcaptions_{language}.txt", text)
    put(root / "README.md", "not data\n")
    return coco_images(root, "train2014", numbers)


def xgqa(root: Path) -> Path:
    for language in ("de", "en"):
        rows = {
            n: gqa_question(image, f"{language} {n}?") for n, image in (("1", "n1"), ("2", "n2"))
        }
        put_json(root / f"zero_shot/testdev_balanced_questions_{language}.json", rows)
        few = {"train_1": ("3", "n3"), "dev": ("1", "n1"), "test": ("2", "n2")}
        for name, (n, image) in few.items():
            rows = {n: gqa_question(image, f"{language} {n}?")}
            put_json(root / f"few_shot/{language}/{name}.json", rows)
    for n in (1, 2, 3):
        put(root / f"images/n{n}.jpg", picture(grey=n))
    return root


def img2dataset(root: Path, form: str = "webdataset") -> Path:
    """Two shards of three links each, of which one could not be downloaded."""
    for shard in range(2):
        name, members = f"{shard:05d}", {}
        for n in (0, 2):
            key = f"{shard:05d}{n:04d}"
            row = {"caption": f"a  cat {key}\n", "url": f"https://x/{key}", "key": key}
            row |= {"status": "success", "error_message": None, "width": 8, "height": 8}
            members[f"{key}.jpg"] = picture(grey=10 * shard + n)
            members[f"{key}.txt"] = row["caption"].encode()
            members[f"{key}.json"] = json.dumps(row).encode()
        if form == "webdataset":
            put_tar(root / f"{name}.tar", members)
        else:
            for key, data in members.items():
                put(root / name / key, data)
        stats = {"count": 3, "successes": 2, "failed_to_download": 1, "failed_to_resize": 0}
        put_json(root / f"{name}_stats.json", {**stats, "status_dict": {"success": 2}})
        put(root / f"{name}.parquet", b"PAR1")
    return root


def put_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


# --- region features ----------------------------------------------------------------------------


def seen(count: int, width: int = 4, classes: int = 5) -> dict[str, Any]:
    """What a detector saw of an image of 8 by 8 pixels."""
    rng = np.random.default_rng(count)
    low = rng.integers(0, 4, (count, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + 2 + rng.random((count, 2), np.float32)], 1)
    chance = rng.random((count, classes), np.float32)
    return {
        "features": rng.random((count, width), np.float32),
        "boxes": boxes.clip(0, 8),
        "cls_prob": chance / chance.sum(1, keepdims=True),
        "obj_id": chance[:, 1:].argmax(1),
        "img_w": 8,
        "img_h": 8,
        "num_objects": count,
    }


def b64(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode("ascii")


def butd_line(name: str, count: int, columns: int = 6) -> str:
    found = seen(count)
    arrays = [b64(found["boxes"]), b64(found["features"])]
    cells = [name, "8", "8", str(count), *arrays]
    if columns == 7:
        cells.append(b64(found["cls_prob"]))
    if columns == 10:
        sure = np.linspace(0.25, 0.75, count).astype(np.float32)
        objects = b64(found["obj_id"].astype(np.int64))
        traits = b64(found["obj_id"].astype(np.int64) + 7)
        cells = [name, "8", "8", objects, b64(sure), traits, b64(sure / 2), str(count), *arrays]
    return "\t".join(cells) + "\n"


def butd(root: Path, columns: int = 6) -> Path:
    names = {6: ("9", "25", "42"), 7: ("9", "25", "42")}.get(columns)
    names = names or tuple(f"COCO_train2014_{n:012d}" for n in (9, 25, 42))
    lines = [butd_line(name, count, columns) for name, count in zip(names, (3, 2, 5), strict=True)]
    put(root / "features.tsv.0", "".join(lines[:2]))
    put(root / "features.tsv.1", lines[2])
    return root


def vcr(root: Path) -> Path:
    """Two images of train, with two questions and one; one of val, and one of test."""

    def row(number: int, image: str, split: str, **other: Any) -> dict[str, Any]:
        return {
            "movie": "x", "objects": ["person", "person", "car"], "img_id": image,
            "img_fn": f"x/{image}.a@0.jpg", "metadata_fn": f"x/{image}.a@0.json",
            "question": ["Why", "is", [1], "near", [0, 2], "?"], "annot_id": f"{split}-{number}",
            "answer_choices": [
                [[1], "waits", "."], ["It", "is", "a", [2], "."], ["No", "."], ["Yes", "."],
            ],
            "rationale_choices": [[f"Reason  {n}", "of", [0], "."] for n in range(4)],
            "answer_label": 1, "rationale_label": 3, **other,
        }  # fmt: skip

    kept_back = row(0, "test-0", "test")
    for label in ("answer_label", "rationale_label"):
        del kept_back[label]
    put_lines(
        root / "train.jsonl",
        [row(0, "train-0", "train"), row(1, "train-0", "train", question=["Who", "?"]),
         row(2, "train-1", "train")],
    )  # fmt: skip
    put_lines(root / "val.jsonl", [row(0, "val-0", "val", answer_label=2)])
    put_lines(root / "test.jsonl", [kept_back])
    boxes = [[0, 0, 3, 6, 0.9], [2, 1, 8.5, 7, 0.8], [4, 4, 6, 6, 0.7]]
    metadata = {"boxes": boxes, "segms": [[]] * 3, "names": ["person", "person", "car"]}
    for n, image in enumerate(("train-0", "train-1", "val-0", "test-0")):
        place = root / f"vcr1images/x/{image}.a@0"
        put(Path(f"{place}.jpg"), picture(grey=n))
        put_json(Path(f"{place}.json"), {**metadata, "width": 8, "height": 8})
    return root
