"""Tiny data sets in the layout of each source, and what was written of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def picture(form: str = "JPEG", grey: int = 0) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, 100, 200)).save(data, form)
    return data.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def put_json(path: Path, content: Any) -> Path:
    return put(path, json.dumps(content))


def samples(out: Path, split: str) -> dict[str, dict[str, Any]]:
    """Members by key, in order; json parsed."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob(f"{split}-[0-9]*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, extension = info.name.partition(".")
                file = tar.extractfile(info)
                assert file is not None
                data = file.read()
                found.setdefault(key, {})[extension] = (
                    json.loads(data) if extension == "json" else data
                )
    return found


def contents(out: Path, split: str) -> list[dict[str, Any]]:
    return [members["json"] for members in samples(out, split).values()]


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def storybooks(root: Path, stories: int = 6) -> Path:
    for number in range(1, stories + 1):
        story = f"{number:04d}"
        for page in (1, 2, 3):
            put(root / f"images/{story}/{page:02d}.jpg", picture(grey=number * 10 + page))
        for language, words in {"en": "page", "sw": "ukurasa"}.items():
            put(
                root / f"text/{language}/{story}.md",
                f"# {words} {story}\n\n##\n{words} two,\nmore\n\n##\n{words} three\n\n##\n"
                f"* License: [CC-BY]\n* Language: {language}\n",
            )
    return root


def multi30k(root: Path) -> Path:
    lines = {"train": 3, "val": 2, "test_2016_flickr": 2, "test_2017_mscoco": 1}
    for split, count in lines.items():
        for language in ("en", "de"):
            text = "".join(f"{split} {language} {n}\n" for n in range(1, count + 1))
            put(root / f"raw/{split}.{language}.gz", gzip.compress(text.encode()))
        names = "".join(f"{split}{n}.jpg\n" for n in range(1, count + 1))
        if split != "val":
            put(root / f"image_splits/{split}.txt", names)
    return root


def tatoeba(root: Path, count: int = 200) -> Path:
    english = "".join(f"Sentence {n}.\n" for n in range(count))
    for code in ("deu", "yue"):
        other = "".join(f"{code} {n}\u2028.\n" for n in range(count))
        put(root / f"tatoeba.{code}-eng.{code}", other)
        put(root / f"tatoeba.{code}-eng.eng", english)
    put(root / "README.md", "not data\n")
    return root


def table(rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def xnli_rows(root: Path) -> Path:
    put(
        root / "my.genre.dev.tsv",
        table(
            [
                ["genre", "label", "sentence1_en", "sentence2_en", "sentence1_my", "sentence2_my"],
                ["a", "neutral", 'He said "hi', "He spoke.", "my1", "my2"],
                ["a", "entailment", "p", "h", "my3", "my4"],
            ]
        ),
    )
    put(
        root / "xnli.dev.ko.tsv",
        table(
            [
                ["sentence1", "sentence2", "gold_label"],
                ["ko1", "ko2", "neutral"],
                ["ko3", "ko4", "entailment"],
            ]
        ),
    )
    return root


def xnli_official(root: Path) -> Path:
    header = ["language", "gold_label", "sentence1_binary_parse", "sentence1", "sentence2"]
    header += ["promptID", "pairID", "genre"]
    rows = [
        [language, label, "( x )", f"{language} premise {n}", f'{language} "hyp {n}', "1", n, "g"]
        for language in ("ar", "en")
        for n, label in (("1", "neutral"), ("2", "contradiction"))
    ]
    for split in ("dev", "test"):
        put(root / f"XNLI-1.0/xnli.{split}.tsv", table([header, *rows]))
    lines: list[dict[str, Any]] = [
        {"gold_label": "entailment", "sentence1": "A.", "sentence2": "B.", "pairID": "31193n"},
        {"gold_label": "-", "sentence1": "A.", "sentence2": "C.", "pairID": "2"},
    ]
    put(
        root / "multinli_1.0/multinli_1.0_train.jsonl",
        "".join(json.dumps(row) + "\n" for row in lines),
    )
    return root


def easy_vqa(root: Path, train: int = 3) -> Path:
    for split, count in {"train": train, "test": 2}.items():
        for number in range(count):
            put(root / f"{split}/images/{number}.png", picture("PNG", number))
        rows = [["what shape is it?", "circle", n] for n in range(count)]
        rows += [["is it blue?", "yes" if n else "no", n] for n in range(count)]
        put_json(root / f"{split}/questions.json", rows)
    return root


def coco(root: Path, year: str = "2017") -> Path:
    for split, numbers in {"train": (9, 25), "val": (42,)}.items():
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 8, "height": 8} for n in numbers]
        captions = [
            {"id": 10 * n + i, "image_id": n, "caption": f"Caption {i} of {n}.\n"}
            for n in numbers
            for i in range(2)
        ]
        box = {"iscrowd": 0, "segmentation": [[1, 2, 3, 4]], "category_id": 18}
        boxes = [
            {**box, "id": n, "image_id": n, "bbox": [1.5, 2, 3, 4], "area": 12} for n in numbers
        ]
        put_json(
            root / f"annotations/captions_{split}{year}.json",
            {"images": images, "annotations": captions},
        )
        put_json(
            root / f"annotations/instances_{split}{year}.json",
            {"images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]},
        )
        for n in numbers:
            put(root / f"{split}{year}/{n:012d}.jpg", picture(grey=n))
    return root


def vqa(root: Path, division: str, asked: Mapping[int, tuple[int, Sequence[str]]]) -> Path:
    """Questions by number: the image and what ten people answered."""
    put_json(
        root / f"v2_OpenEnded_mscoco_{division}_questions.json",
        {
            "info": {},
            "questions": [
                {"image_id": image, "question": f"Question {n}?", "question_id": n}
                for n, (image, _) in asked.items()
            ],
        },
    )
    put_json(
        root / f"v2_mscoco_{division}_annotations.json",
        {
            "info": {},
            "annotations": [
                {
                    "image_id": image,
                    "question_id": n,
                    "question_type": "what",
                    "answer_type": "other",
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": i}
                        for i, a in enumerate(answers, start=1)
                    ],
                }
                for n, (image, answers) in asked.items()
            ],
        },
    )
    return root


def cocoqa(root: Path) -> Path:
    put(root / "cocoqa/img_ids.txt", "9\n9\n42\n777\n")
    put(root / "cocoqa/questions.txt", "what is it\nhow many dogs\nwhere\nwho\n")
    put(root / "cocoqa/answers.txt", "dog\ntwo\ngarden\nman\n")
    put(root / "cocoqa/types.txt", "0\n1\n3\n0\n")
    return root


NAMES = [f"10{n:02d}_ab{n}.jpg" for n in range(40)]


def flickr8k(root: Path, names: Sequence[str] = NAMES) -> Path:
    for n, name in enumerate(names):
        put(root / f"images/{name}", picture(grey=n))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "caption"])
    rows.writerows([name, f'A "dog", number {i} .'] for name in names for i in range(2))
    put(root / "captions.txt", text.getvalue())
    put(
        root / "captions_de.tsv",
        table([["image", "n", "caption"], *([name, "1", "Ein Hund"] for name in names[:5])]),
    )
    return root
