"""GQA: questions on Visual Genome's photographs, made from scene graphs.

Reads the balanced questions (``questions1.2.zip``), in the folder or in ``questions/``,
``questions1.2/`` or ``annotations/``, and the images::

    train_balanced_questions.json   val_balanced_questions.json   testdev_balanced_questions.json
        {"02930152": {"imageId": "2354786", "question": "Is the sky dark?", "answer": "yes",
                      "types": {"structural": "verify", …}, "semantic": […], …}, …}
    images/2354786.jpg

Each image becomes a sample with all its questions; ``kind`` is the structural type (verify, query,
choose, logical, compare). ``val`` becomes split ``dev``, ``testdev`` ``test``. An answer scores 1.
``answers.txt`` lists the answers of the training questions, the most frequent first.

Skipped, and counted: questions without answer (those of the hidden ``test``), entries that lack a
question or an image, questions on images that are missing or neither JPEG nor PNG.

Of a file, all but question, answer, image and type is forgotten while it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.answers import best_answers
from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    need_folder,
    read_image,
    read_json,
)
from crossloom.data_pipelines.sources.pictures import image_folder, need_files, text_of
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLITS = {"train": "train", "val": "dev", "testdev": "test", "test": "test"}
_PLACES = ("", "questions", "questions1.2", "annotations")
IMAGES = ("images", "allImages/images", "allImages")


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it is read."""

    image: str
    text: str
    answer: str
    kind: str


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    min_answers: int = 1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``, those that are there.

    Args:
        input: folder with the questions.
        out: folder for the shards.
        images: folder of the images, when it is not in the input.
        min_answers: an answer is listed in ``answers.txt`` when so many training questions have it.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    wanted = "<division>_balanced_questions.json"
    folder = need_folder(input, "gqa", f"{wanted} and images/")
    files = need_files(
        (folder / p / f"{d}_balanced_questions.json" for d in _SPLITS for p in _PLACES),
        folder,
        f"{wanted} (like train_balanced_questions.json)",
    )
    place = image_folder(folder, images, IMAGES)
    best: Counter[str] = Counter()
    to = Conversion("gqa", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for path in files:
            split = _SPLITS[path.name.partition("_")[0]]
            by_image: dict[str, list[dict[str, Any]]] = {}
            for number, question in read_questions(path, to):
                by_image.setdefault(question.image, []).append(entry(number, question))
                if split == "train":
                    best[question.answer] += 1
            to.total += len(by_image)
            write_images(to, split, by_image, place)
        to.add_file("answers.txt", answer_list(best_answers(best, min_answers)))
    return to.report


def read_questions(path: Path, to: Conversion) -> Iterator[tuple[str, Question]]:
    """Questions of a file with their numbers; those that lack a part are counted."""
    holds = "GQA questions by number"
    content = read_json(path, holds, _shrink)
    if not isinstance(content, dict):
        raise SourceError(f"{path}: should hold {holds}, {{number: {{question, imageId, …}}}}")
    for number, question in content.items():
        if not isinstance(question, Question) or not (question.image and question.text):
            to.skip("entry lacks question or image", f"{path.name} {number}")
        elif not question.answer:
            to.skip("question without answers", f"{path.name} {number}")
        else:
            yield number, question


def _shrink(row: dict[str, Any]) -> Any:
    if "imageId" in row and "question" in row:
        kind = row.get("types")
        return Question(
            text_of(row, "imageId"),
            text_of(row, "question"),
            text_of(row, "answer").lower(),
            kind if isinstance(kind, str) else "",
        )
    return str(row["structural"]) if "structural" in row else row


def entry(number: str, question: Question, language: str = "en") -> dict[str, Any]:
    """The question as samples carry it."""
    return {
        "id": f"gqa/{number}",
        **({"kind": question.kind} if question.kind else {}),
        "text": {language: question.text},
        "answers": {question.answer: 1.0},
    }


def write_images(
    to: Conversion, split: str, by_image: dict[str, list[dict[str, Any]]], place: Path
) -> None:
    """Write a sample an image, with its questions."""
    for name, asked in sorted(by_image.items()):
        image = read_image(place / f"{name}.jpg", to, f"{name}.jpg", len(asked))
        if image is not None:
            to.write(split, sanitise(name), {"id": name, "questions": asked}, image)
