"""VCR (Zellers et al., CVPR 2019): questions on scenes of films, four answers and reasons each.

Reads the files as published, those of questions in the folder or in ``vcr1annots/``::

    train.jsonl  val.jsonl  test.jsonl      {"annot_id", "img_id", "img_fn", "metadata_fn",
        "objects": ["person", "person", "car", …], "question": ["Why", "is", [1], "smiling", "?"],
        "answer_choices": [tokens, … four], "answer_label": 0,
        "rationale_choices": [tokens, … four], "rationale_label": 3}
    vcr1images/<img_fn>                     a JPEG
    vcr1images/<metadata_fn>                {"boxes": [[x1, y1, x2, y2, score], …],
                                             "names": ["person", …], "width", "height", "segms"}

Each image becomes a sample: its objects as ``boxes``, and all its questions as ``choices``. Texts
are the published tokens, parted by spaces. A token that is a list of objects is their names, "and"
between them (our word: published code sets them side by side), and each name refers to its box. An
object is called by its class, a person by one of fifteen names that tell no gender, which goes by
the object's number (rowanz/r2c, ``dataloaders/vcr.py``; there objects that a question does not
speak of are not counted).

Splits: ``train``, ``dev`` (``val``), and with the option ``unanswered`` ``test``, whose right
answers are not published: a model's scores are handed in. Outlines (``segms``) are not read.

Skipped, and counted: entries that lack a part, questions that refer to an object that is not there,
questions without labels (those of ``test``), empty texts, metadata that is missing or does not fit,
boxes that are empty or more than a pixel outside the image (others are cut to it; words that refer
to them stay), images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    first_file,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.pictures import cut_box, image_folder, read_rows
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLITS = {"train": "train", "val": "dev", "test": "test"}
#: What persons are called, by their number among the objects (the published list names one twice).
PERSONS = (
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall",
    "Peyton", "Skyler", "Frankie", "Pat", "Quinn",
)  # fmt: skip
CHOICES = 4

#: A text, and which of its characters refer to which object.
Told = tuple[str, list[list[int]]]


@dataclass
class Scene:
    """An image, and what is asked of it."""

    image: str
    metadata: str
    objects: list[str]
    choices: list[dict[str, Any]] = field(default_factory=list)


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    unanswered: bool = False,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and ``dev``, and with ``unanswered`` the test.

    Args:
        input: folder with ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, one of them at least.
        out: folder for the shards.
        images: folder of images and metadata, when it is not ``vcr1images`` in the input.
        unanswered: keep questions whose answers are not published.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "vcr", "train.jsonl, val.jsonl and vcr1images/")
    place = image_folder(folder, images, ["vcr1images", "."])
    names = {n: (folder / f"{n}.jsonl", folder / f"vcr1annots/{n}.jsonl") for n in _SPLITS}
    files = {n: path for n, paths in names.items() if (path := first_file(paths))}
    if not files:
        raise SourceError(
            f"{folder}: no train.jsonl, val.jsonl or test.jsonl in it, or vcr1annots/"
        )
    to = Conversion("vcr", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for name, path in files.items():
            scenes = _scenes(path, to, unanswered and name == "test")
            to.total += len(scenes)
            for key, scene in scenes.items():
                _write(to, _SPLITS[name], key, scene, place)
    return to.report


def _scenes(path: Path, to: Conversion, unanswered: bool) -> dict[str, Scene]:
    """The questions of a file, by image."""
    found: dict[str, Scene] = {}
    for name, row in read_rows(path, to):
        try:
            key, objects = str(row["img_id"]), [str(label) for label in row["objects"]]
            scene = Scene(str(row["img_fn"]), str(row["metadata_fn"]), objects)
            labels = {k: _label(row, k) for k in ("answer", "rationale")}
            texts = [row["question"], *row["answer_choices"], *row["rationale_choices"]]
            if [len(row[f"{k}_choices"]) for k in labels] != [CHOICES] * 2:
                raise ValueError
            told = [_told(tokens, objects) for tokens in texts]
            number = str(row["annot_id"])
        except _NoObject:
            to.skip("question refers to an object that is not there", name)
            continue
        except BAD_ROW:
            to.skip("entry is no VCR question", name)
            continue
        if None in labels.values() and not unanswered:
            to.skip("question without labels", name)
        elif not all(text for text, _ in told):
            to.skip("empty text", name)
        elif objects != found.setdefault(key, scene).objects:
            to.skip("objects differ from those of the image's first question", name)
        else:
            known = {k: label for k, label in labels.items() if label is not None}
            found[key].choices.append({"id": number, **_laid(told), **known})
    return {key: scene for key, scene in found.items() if scene.choices}


class _NoObject(Exception):
    pass


def _label(row: dict[str, Any], what: str) -> int | None:
    if (label := row.get(f"{what}_label")) is None:
        return None
    return range(CHOICES)[int(label)]


def _told(tokens: Sequence[Any], objects: Sequence[str]) -> Told:
    """The tokens as a text.

    >>> _told(["Why", "is", [1], "near", [0, 2], "?"], ["person", "person", "car"])
    ('Why is Riley near Casey and car ?', [[7, 12, 1], [18, 23, 0], [28, 31, 2]])
    """
    text, refers = "", []
    for token in tokens:
        parts: list[Any] = token if isinstance(token, list) else str(token).split()
        for place, part in enumerate(parts):
            text += " " if text else ""
            if isinstance(token, list):
                text += "and " if place else ""
                name = _name(part, objects)
                refers.append([len(text), len(text) + len(name), part])
                part = name
            text += part
    return text, refers


def _name(number: Any, objects: Sequence[str]) -> str:
    if not isinstance(number, int) or not 0 <= number < len(objects):
        raise _NoObject
    label = objects[number]
    return PERSONS[number % len(PERSONS)] if label == "person" else label


def _laid(told: Sequence[Told]) -> dict[str, Any]:
    """A question, its answers and its reasons, as the json has them."""
    texts, refers = [text for text, _ in told], [some for _, some in told]
    middle = 1 + CHOICES
    return {
        "question": {"en": texts[0]},
        "answers": {"en": texts[1:middle]},
        "rationales": {"en": texts[middle:]},
        "refers": {
            "en": {
                "question": refers[0],
                "answers": refers[1:middle],
                "rationales": refers[middle:],
            }
        },
    }


def _write(to: Conversion, split: str, key: str, scene: Scene, place: Path) -> None:
    name, count = f"image {key}", len(scene.choices)
    try:
        content = json.loads((place / scene.metadata).read_bytes())
        width, height = int(content["width"]), int(content["height"])
        corners = [tuple(map(float, box[:4])) for box in content["boxes"]]
        if [str(label) for label in content["names"]] != scene.objects:
            raise ValueError
        boxes = [(x1, y1, x2, y2) for x1, y1, x2, y2 in corners]
        pairs = list(zip(scene.objects, boxes, strict=True))
    except (OSError, *BAD_ROW):
        to.skip("metadata missing, or not of the image's objects", name, count)
        return
    image = read_image(place / scene.image, to, name, count)
    if image is None:
        return
    listed, number = list[dict[str, Any]](), dict[int, int]()
    for old, (label, box) in enumerate(pairs):
        if cut := cut_box(to, box, (width, height), f"{name} object {old}"):
            number[old] = len(listed)
            listed.append({"label": label, "box": cut})
    for choice in scene.choices:
        told = choice["refers"]["en"]
        for some in (told["question"], *told["answers"], *told["rationales"]):
            some[:] = [[a, b, number[old]] for a, b, old in some if old in number]
    sample = {
        "id": key,
        "size": {"width": width, "height": height},
        "choices": scene.choices,
        "boxes": listed,
    }
    to.write(split, sanitise(key), sample, image)
