"""COCO: photographs with captions and boxes, and questions from VQA v2 or COCO-QA.

Reads the official layout; instances, VQA v2 and COCO-QA are optional::

    annotations/captions_train2017.json      annotations/captions_val2017.json
    annotations/instances_train2017.json     annotations/instances_val2017.json
    train2017/000000000009.jpg …             val2017/…          (also below images/)
    v2_OpenEnded_mscoco_train2014_questions.json
    v2_mscoco_train2014_annotations.json     …val2014…          (also in vqa/ or annotations/)
    cocoqa/{img_ids,questions,answers,types}.txt                (also in cocoqa/train, cocoqa/test)

Each image becomes a sample: all captions in ``texts.en``, boxes as x1, y1, x2, y2 in pixels with
the name of their class, and all questions on it. ``val`` becomes split ``dev``. Questions go with
their image: those of VQA v2, published for the 2014 division, are found by the image's number
whatever division the images come in, so no image is in two splits.

Scores of VQA v2 answers are the official ones, see
:mod:`~crossloom.data_pipelines.sources.answers`. The answers of COCO-QA score 1.

``answers.txt`` is written when there are questions: the best answers of training questions, most
frequent first, of those best in at least ``min_answers`` questions (published work on VQA v2 often
keeps those of at least 9).

Skipped, and counted: images that are missing or neither JPEG nor PNG, images without caption,
boxes of crowds, empty boxes and boxes more than a pixel outside the image (the others are cut to
it), questions on images that are not there, questions without answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.answers import best_answers
from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    first_file,
    need_folder,
    read_image,
    read_json,
)
from crossloom.data_pipelines.sources.lines import (
    parallel_lines,
)
from crossloom.data_pipelines.sources.pictures import cut_box
from crossloom.data_pipelines.sources.vqa import Questions, find_divisions, read_division
from crossloom.data_pipelines.write import SHARD_SIZE

_CAPTIONS = re.compile(r"captions_(?P<split>[a-z]+)(?P<year>\d*)\.json")
_SPLITS = {"val": "dev"}
_COCOQA = {"0": "object", "1": "number", "2": "colour", "3": "location"}


@dataclass(frozen=True)
class Division:
    """The files of one split."""

    split: str
    captions: Path
    instances: Path | None
    images: Path


def convert(
    input: Path | None,
    out: Path,
    *,
    year: str | int | None = None,
    min_answers: int = 1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` (from ``val``) and what other divisions have captions.

    Args:
        input: folder with ``annotations/`` and the images' folders.
        out: folder for the shards.
        year: which division to take, when there are several (2014 and 2017 share their images).
        min_answers: an answer is listed in ``answers.txt`` when it is the best one of so many
            training questions.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout, or has several years and none is chosen.
    """
    folder = need_folder(input, "coco", "annotations/captions_<split><year>.json and images")
    divisions = _divisions(folder, None if year is None else str(year))
    to = Conversion("coco", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        questions = _cocoqa(folder, to)
        for published in find_divisions(folder):
            for image, asked in read_division(published, to).items():
                questions.setdefault(image, []).extend(asked)
        any_questions = bool(questions)
        best: Counter[str] = Counter()
        to.total = 0
        for division in divisions:
            _division(to, division, questions, best)
        for image, asked in sorted(questions.items()):
            to.skip("question on an image that is not there", f"image {image}", len(asked))
        if any_questions:
            to.add_file("answers.txt", answer_list(best_answers(best, min_answers)))
    return to.report


def _divisions(folder: Path, year: str | None) -> list[Division]:
    place = folder / "annotations"
    found: dict[tuple[str, str], Path] = {}
    for path in sorted((place if place.is_dir() else folder).iterdir()):
        if match := _CAPTIONS.fullmatch(path.name):
            found[match["split"], match["year"]] = path
    years = sorted({y for _, y in found})
    if year is not None:
        found = {k: v for k, v in found.items() if k[1] == year}
    elif len(years) > 1:
        raise SourceError(
            f"{place}: has captions of {', '.join(years)}, which share images; choose one with "
            f"--set year={years[-1]}"
        )
    if not found:
        wanted = f"captions_<split>{year or '<year>'}.json (like captions_train2017.json)"
        raise SourceError(f"{place}: no {wanted} in it")
    divisions = []
    for (split, y), captions in found.items():
        name = f"{split}{y}"
        images = first_file([folder / name, folder / "images" / name, folder / "images"])
        if images is None:
            raise SourceError(f"{folder / name}: no such folder; the images of {captions.name}")
        instances = first_file([captions.with_name(f"instances_{name}.json")])
        divisions.append(Division(_SPLITS.get(split, split), captions, instances, images))
    return divisions


# --- images -------------------------------------------------------------------------------------


def _division(to: Conversion, division: Division, questions: Questions, best: Counter[str]) -> None:
    holds = "COCO captions: images and annotations"
    content = read_json(division.captions, holds)
    texts: dict[int, list[str]] = {}
    try:
        images = {int(row["id"]): row for row in content["images"]}
        for row in content["annotations"]:
            if text := " ".join(str(row["caption"]).split()):
                texts.setdefault(int(row["image_id"]), []).append(text)
            else:
                to.skip("empty caption", f"caption {row.get('id')}")
        files = {number: str(row["file_name"]) for number, row in images.items()}
        sizes = {n: (float(r["width"]), float(r["height"])) for n, r in images.items()}
    except BAD_ROW as error:
        raise SourceError(f"{division.captions}: not {holds} ({error!r})") from None
    boxes = _boxes(to, division.instances, sizes) if division.instances else {}
    to.total = (to.total or 0) + len(images)
    for number in sorted(set(texts) - set(images)):
        to.skip("caption of an image that is not listed", f"image {number}", len(texts[number]))
    for number, file in files.items():
        name = f"{division.images.name}/{file}"
        if number not in texts:
            to.skip("image without caption", name)
            continue
        image = read_image(division.images / file, to, name)
        if image is None:
            continue
        sample: dict[str, Any] = {"id": str(number), "texts": {"en": texts[number]}}
        if number in boxes:
            sample["boxes"] = boxes[number]
        if asked := questions.pop(number, []):
            sample["questions"] = asked
            if division.split == "train":
                best.update(max(q["answers"], key=q["answers"].__getitem__) for q in asked)
        to.write(division.split, f"{number:012d}", sample, image)


def _boxes(
    to: Conversion, path: Path, sizes: Mapping[int, tuple[float, float]]
) -> dict[int, list[dict[str, Any]]]:
    holds = "COCO instances: annotations and categories"
    content = read_json(path, holds, _without_outline)
    found: dict[int, list[dict[str, Any]]] = {}
    try:
        labels = {row["id"]: str(row["name"]) for row in content["categories"]}
        for row in content["annotations"]:
            name, image = f"box {row.get('id')}", int(row["image_id"])
            x, y, w, h = map(float, row["bbox"])
            if image not in sizes:
                to.skip("box in an image without captions", name)
            elif row.get("iscrowd"):
                to.skip("box of a crowd", name)
            elif box := cut_box(to, (x, y, x + w, y + h), sizes[image], name):
                entry = {"label": labels[row["category_id"]], "box": box}
                found.setdefault(image, []).append(entry)
    except BAD_ROW as error:
        raise SourceError(f"{path}: not {holds} ({error!r})") from None
    return found


def _without_outline(row: dict[str, Any]) -> dict[str, Any]:
    row.pop("segmentation", None)  # most of the file, not used
    return row


# --- questions ----------------------------------------------------------------------------------


def _cocoqa(folder: Path, to: Conversion) -> Questions:
    found: Questions = {}
    for place in [folder / "cocoqa", folder / "cocoqa" / "train", folder / "cocoqa" / "test"]:
        if not (place / "questions.txt").is_file():
            continue
        files = {name: place / f"{name}.txt" for name in ("img_ids", "questions", "answers")}
        if (place / "types.txt").is_file():
            files["types"] = place / "types.txt"
        for path in files.values():
            if not path.is_file():
                raise SourceError(f"{path}: missing beside questions.txt; line i belongs to line i")
        prefix = "cocoqa" if place.name == "cocoqa" else f"cocoqa-{place.name}"
        for number, row in parallel_lines(files, to):
            _cocoqa_row(to, found, f"{prefix}/{number}", row)
    return found


def _cocoqa_row(to: Conversion, found: Questions, name: str, row: Mapping[str, str | None]) -> None:
    image, question, answer = (
        (row[key] or "").strip() for key in ("img_ids", "questions", "answers")
    )
    if not (image.isdecimal() and question and answer):
        to.skip("line without image, question or answer", name)
        return
    kind = _COCOQA.get((row.get("types") or "").strip())
    entry: dict[str, Any] = {"id": name, **({"kind": kind} if kind else {})}
    entry |= {"text": {"en": question}, "answers": {answer: 1.0}}
    found.setdefault(int(image), []).append(entry)
