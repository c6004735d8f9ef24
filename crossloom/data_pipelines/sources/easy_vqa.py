"""easy-VQA: small pictures of one coloured shape, with questions.

Reads the ``data`` folder of the ``easy_vqa`` package::

    train/images/0.png  test/images/0.png  …
    train/questions.json      [["what shape is in the image?", "circle", 0], …]
    test/questions.json       a list of [question, answer, number of the image]
    answers.txt               one answer a line; optional

Each image becomes a sample with all its questions, in English, each answer of score 1.
``answers.txt`` is written beside the shards: the one of the input, or else the answers of the
training questions in alphabetical order.

Skipped, and counted: questions on images that are missing or neither PNG nor JPEG, images without
questions, and entries that are no [question, answer, number].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    check_shares,
    need_folder,
    read_image,
    read_json,
    stable_fraction,
)
from crossloom.data_pipelines.sources.lines import (
    read_lines,
)
from crossloom.data_pipelines.write import SHARD_SIZE

Questions = dict[int, list[tuple[str, str]]]


def convert(
    input: Path | None,
    out: Path,
    *,
    dev: float = 0.0,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``test`` and, when asked for, ``dev``.

    Args:
        input: folder with ``train/`` and ``test/``.
        out: folder for the shards.
        dev: share of the training images held back for ``dev``, chosen by a hash of their numbers.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "easy-vqa", "train/ and test/")
    check_shares(dev=dev)
    to = Conversion("easy-vqa", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    splits = [s for s in ("train", "test") if (folder / s).is_dir()]
    if not splits:
        raise SourceError(f"{folder}: no train/ or test/ with images/ and questions.json in it")
    with to:
        questions = {split: _questions(folder / split, to) for split in splits}
        to.total = sum(map(len, questions.values()))
        for split in splits:
            _images(to, folder / split, split, questions[split], dev if split == "train" else 0.0)
        to.add_file("answers.txt", answer_list(_answers(folder, questions, to)))
    return to.report


def _questions(folder: Path, to: Conversion) -> Questions:
    path = folder / "questions.json"
    rows = read_json(path, "a list of [question, answer, number of the image]")
    if not isinstance(rows, list):
        raise SourceError(f"{path}: should be a list of [question, answer, number of the image]")
    found: Questions = {}
    for number, row in enumerate(rows):
        match row:
            case [str(question), str(answer), int(image)] if question.strip() and answer.strip():
                found.setdefault(image, []).append((question.strip(), answer.strip()))
            case _:
                to.skip("not [question, answer, number]", f"{folder.name}/questions.json[{number}]")
    return found


def _images(to: Conversion, folder: Path, split: str, questions: Questions, dev: float) -> None:
    for number, asked in sorted(questions.items()):
        name = f"{folder.name}/images/{number}.png"
        image = read_image(folder / "images" / f"{number}.png", to, name, len(asked))
        if image is None:
            continue
        held = stable_fraction("easy-vqa", number) < dev
        content = {
            "id": f"{split}/{number}",
            "questions": [
                {
                    "id": f"{split}/{number}/{place}",
                    "text": {"en": question},
                    "answers": {answer: 1.0},
                }
                for place, (question, answer) in enumerate(asked)
            ],
        }
        to.write("dev" if held else split, f"{split}-{number:06d}", content, image)
    for path in sorted((folder / "images").glob("*.png")):
        if not path.stem.isdecimal() or int(path.stem) not in questions:
            to.skip("image without questions", f"{folder.name}/images/{path.name}")


def _answers(folder: Path, questions: dict[str, Questions], to: Conversion) -> list[Any]:
    path = folder / "answers.txt"
    if path.is_file():
        return [line.strip() for _, line in read_lines(path, to) if line and line.strip()]
    asked = next(iter(questions.values())).values()
    return sorted({answer for rows in asked for _, answer in rows})
