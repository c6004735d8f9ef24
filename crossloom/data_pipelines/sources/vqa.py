"""VQA v2: questions on COCO's photographs, each answered by ten people.

Reads the official files, in the folder or in ``vqa/`` or ``annotations/``, and COCO's images, of
2014 or of 2017::

    v2_OpenEnded_mscoco_train2014_questions.json
        {"questions": [{"image_id": 9, "question": "What is it?", "question_id": 9000}, …]}
    v2_mscoco_train2014_annotations.json
        {"annotations": [{"question_id": 9000, "image_id": 9, "answer_type": "other",
                          "answers": [{"answer": "dog", "answer_id": 1, …}, … ten], …}, …]}
    train2014/COCO_train2014_000000000009.jpg   val2014/…    (also below images/)
    train2017/000000000009.jpg                  val2017/…

Each image becomes a sample with all its questions. ``train2014`` becomes split ``train``,
``val2014`` ``dev``; with the option ``unanswered``, ``test2015`` becomes ``test`` and
``test-dev2015`` ``testdev``, whose questions have no answers: a model's are handed in. Scores of
answers are the official ones, with the official normalisation, see
:mod:`~crossloom.data_pipelines.sources.answers`.

``answers.txt`` lists the best answers of training questions, the most frequent first, of those best
in at least ``min_answers`` questions (published work often keeps those of at least 9).

Skipped, and counted: questions without answers (those of ``test2015``), answers without question,
entries that lack a field, questions on images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.answers import best_answers, soft_scores
from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    need_folder,
    read_image,
    read_json,
)
from crossloom.data_pipelines.sources.pictures import coco_photo, image_folder, text_of
from crossloom.data_pipelines.write import SHARD_SIZE

_BEFORE, _AFTER = "v2_OpenEnded_mscoco_", "_questions.json"
_SPLITS = {"train": "train", "val": "dev", "test-dev": "testdev", "test": "test"}

Questions = dict[int, list[dict[str, Any]]]  #: by number of the image


@dataclass(frozen=True)
class Division:
    """A published division: its name and its files; the annotations of a test are not published."""

    name: str
    questions: Path
    annotations: Path | None

    @property
    def split(self) -> str:
        """``train``, ``dev``, ``test`` or ``testdev``."""
        return next(v for k, v in _SPLITS.items() if self.name.startswith(k))


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    min_answers: int = 1,
    unanswered: bool = False,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and ``dev``, and with ``unanswered`` the tests.

    Args:
        input: folder with questions and annotations.
        out: folder for the shards.
        images: folder with COCO's images; the input by default.
        min_answers: an answer is listed in ``answers.txt`` when it is the best one of so many
            training questions.
        unanswered: keep questions whose answers are not published.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "vqa", f"{_BEFORE}<division>{_AFTER} and COCO's images")
    place = image_folder(folder, images, ["."])
    divisions = find_divisions(folder)
    if not divisions:
        raise SourceError(f"{folder}: no {_BEFORE}<division>{_AFTER} in it, vqa/ or annotations/")
    best: Counter[str] = Counter()
    to = Conversion("vqa", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for division in divisions:
            questions = read_division(division, to, unanswered)
            to.total += len(questions)
            for number, asked in sorted(questions.items()):
                name = f"image {number}"
                image = read_image(coco_photo(place, number), to, name, len(asked))
                if image is None:
                    continue
                if division.split == "train":
                    best.update(next(iter(q["answers"])) for q in asked)
                content = {"id": str(number), "questions": asked}
                to.write(division.split, f"{number:012d}", content, image)
        to.add_file("answers.txt", answer_list(best_answers(best, min_answers)))
    return to.report


def find_divisions(folder: Path) -> list[Division]:
    """Divisions in the folder, ``vqa/`` and ``annotations/``.

    Raises:
        SourceError: a division is there twice.
    """
    found: dict[str, Division] = {}
    for place in (folder, folder / "vqa", folder / "annotations"):
        for path in sorted(place.glob(f"{_BEFORE}*{_AFTER}")):
            name = path.name.removeprefix(_BEFORE).removesuffix(_AFTER)
            if not name.startswith(tuple(_SPLITS)):
                continue
            if name in found:
                raise SourceError(f"{path}: also in {found[name].questions}; keep one of them")
            beside = path.with_name(f"v2_mscoco_{name}_annotations.json")
            found[name] = Division(name, path, beside if beside.is_file() else None)
    return list(found.values())


def read_division(division: Division, to: Conversion, unanswered: bool = False) -> Questions:
    """The division's questions with their scored answers (none where kept back), by image.

    Raises:
        SourceError: a file is not of the published form.
    """
    path = division.questions
    rows = _rows(read_json(path, "VQA v2 questions"), path, "questions")
    hidden = unanswered and division.split.startswith("test")
    if division.annotations is None and not hidden:
        to.skip("question without answers", path.name, len(rows))
        return {}
    answers = _answers(division.annotations, to) if division.annotations else {}
    found: Questions = {}
    for place, row in enumerate(rows):
        try:
            number, image, text = int(row["question_id"]), int(row["image_id"]), row["question"]
        except BAD_ROW:
            to.skip("entry is no VQA v2 question", f"{path.name}[{place}]")
            continue
        text = " ".join(str(text).split())
        kind, scores = answers.pop(number, ("", {}))
        if not text or not (scores or hidden):
            to.skip("question without answers", f"question {number}")
            continue
        entry = {"id": f"vqa/{number}", "kind": kind, "text": {"en": text}, "answers": scores}
        found.setdefault(image, []).append(entry)
    for number in answers:
        to.skip("answers to a question that is not there", f"question {number}")
    return found


def _rows(content: Any, path: Path, name: str) -> list[Any]:
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise SourceError(f"{path}: not VQA v2 {name} (no list {name!r} in it); download it again")
    return rows


def _answers(path: Path, to: Conversion) -> dict[int, tuple[str, dict[str, float]]]:
    """Kind and scores by question."""

    def shrink(row: dict[str, Any]) -> Any:
        if "question_id" not in row:
            return str(row.get("answer", "")) if "answer_id" in row else row
        try:
            scores = soft_scores(map(str, row["answers"]))
            return int(row["question_id"]), (text_of(row, "answer_type"), scores)
        except BAD_ROW:
            return None

    found = {}
    for place, row in enumerate(
        _rows(read_json(path, "VQA v2 annotations", shrink), path, "annotations")
    ):
        if isinstance(row, tuple):
            found[row[0]] = row[1]
        else:
            to.skip("entry is no VQA v2 annotation", f"{path.name}[{place}]")
    return found
