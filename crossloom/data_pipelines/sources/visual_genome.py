"""Visual Genome: photographs with described regions, named objects and questions.

Reads the files of version 1.2 or 1.4; all but ``image_data.json`` are optional, one is needed::

    image_data.json            [{"image_id": 1, "width": 800, "height": 600, "coco_id": null, …}, …]
    region_descriptions.json   [{"id": 1, "regions": [{"region_id": 1382, "image_id": 1,
                                 "phrase": "the clock is green", "x": 421, "y": 57,
                                 "width": 82, "height": 139}, …]}, …]
    objects.json               [{"image_id": 1, "objects": [{"object_id": 5046, "names": ["tree"],
                                 "x": 0, "y": 0, "w": 799, "h": 557, …}, …]}, …]
    question_answers.json      [{"id": 1, "qas": [{"qa_id": 986768, "image_id": 1,
                                 "question": "What is it?", "answer": "A clock.", …}, …]}, …]
    VG_100K/1.jpg  VG_100K_2/2.jpg              (also in images/)

Each image becomes a sample. Its region descriptions are ``refers``, each with its box, and
``texts.en``, since they are commonly trained on as captions. Objects are ``boxes`` with their first
name. Answers of questions are normalised like those of VQA v2
(:mod:`~crossloom.data_pipelines.sources.answers`) and score 1.

Nothing is published about splits: ``dev`` and ``test`` hold back shares of the images by hash.
About half of the images are COCO's. With ``without`` (a file of COCO's annotations, such as
``captions_val2014.json``) those that it lists are left out, so that nothing is trained on that
COCO, VQA or RefCOCO test on.

Skipped, and counted: images that are missing or neither JPEG nor PNG, or have none of the above;
boxes that are empty or more than a pixel outside the image (others are cut to it), with their
descriptions; entries that lack a part or belong to no image.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.answers import best_answers, normalise
from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    check_shares,
    first_file,
    need_folder,
    read_image,
    read_json,
    stable_fraction,
)
from crossloom.data_pipelines.sources.pictures import cut_box, image_folder, need_files, text_of
from crossloom.data_pipelines.write import SHARD_SIZE

_FOLDERS = ("VG_100K", "VG_100K_2", "")

Sizes = dict[int, tuple[float, float]]
#: Entries by number of the image, as JSON: all of Visual Genome takes several times the memory as
#: dictionaries.
Lists = dict[int, list[bytes]]


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    without: str | None = None,
    dev: float = 0.0,
    test: float = 0.0,
    min_answers: int = 1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and, when asked for, ``dev`` and ``test``.

    Args:
        input: folder with the files.
        out: folder for the shards.
        images: folder with ``VG_100K/`` and ``VG_100K_2/``, or of all images; the input by default.
        without: a file of COCO's annotations, whose images are left out.
        dev: share of the images held back for ``dev``, chosen by a hash of their numbers.
        test: share held back for ``test``, likewise.
        min_answers: an answer is listed in ``answers.txt`` when so many training questions have it.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "visual-genome", "image_data.json and what is said of the images")
    check_shares(dev=dev, test=test)
    names = ("region_descriptions.json", "objects.json", "question_answers.json")
    need_files((folder / name for name in names), folder, " or ".join(names))
    place = image_folder(folder, images, ["images", "."])
    to = Conversion(
        "visual-genome", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    with to:
        sizes = _sizes(folder / "image_data.json", without, to)
        refers, boxes, questions = (
            read(folder / name, sizes, to) if (folder / name).is_file() else {}
            for name, read in zip(names, (_regions, _objects, _questions), strict=True)
        )
        best: Counter[str] = Counter()
        to.total = len(sizes)
        for number in sorted(sizes):
            content = _content(number, refers, boxes, questions)
            if len(content) == 1:
                to.skip("image without region, object or question", f"image {number}")
                continue
            file = f"{number}.jpg"
            path = first_file([place / f / file for f in _FOLDERS]) or place / file
            if (image := read_image(path, to, file)) is None:
                continue
            share = stable_fraction("visual-genome", number)
            split = "test" if share < test else "dev" if share < test + dev else "train"
            if split == "train":
                best.update(next(iter(q["answers"])) for q in content.get("questions", ()))
            to.write(split, str(number), content, image)
        if questions:
            to.add_file("answers.txt", answer_list(best_answers(best, min_answers)))
    return to.report


def _content(number: int, refers: Lists, boxes: Lists, questions: Lists) -> dict[str, Any]:
    content: dict[str, Any] = {"id": str(number)}
    for name, lists in {"refers": refers, "boxes": boxes, "questions": questions}.items():
        if found := [json.loads(entry) for entry in lists.get(number, ())]:
            content[name] = found
    if "refers" in content:
        content["texts"] = {"en": [entry["text"]["en"] for entry in content["refers"]]}
    return content


def _keep(found: Lists, number: int, entry: dict[str, Any]) -> None:
    found.setdefault(number, []).append(json.dumps(entry).encode())


def _list(path: Path, holds: str, hook: Any = None) -> list[Any]:
    content = read_json(path, holds, hook)
    if not isinstance(content, list):
        raise SourceError(f"{path}: should be a list of {holds}; download it again")
    return content


def _sizes(path: Path, without: str | None, to: Conversion) -> Sizes:
    """Width and height of the images to convert."""
    left_out = _coco_numbers(Path(without)) if without else frozenset()
    found: Sizes = {}
    for place, row in enumerate(_list(path, "Visual Genome's images")):
        try:
            number, size = int(row["image_id"]), (float(row["width"]), float(row["height"]))
        except BAD_ROW:
            to.skip("entry is no image", f"{path.name}[{place}]")
            continue
        if text_of(row, "coco_id") in left_out:
            to.skip("image left out by option without", f"image {number}")
        else:
            found[number] = size
    return found


def _coco_numbers(path: Path) -> frozenset[str]:
    content = read_json(path, "COCO annotations, for the option without")
    try:
        return frozenset(str(row["id"]) for row in content["images"])
    except BAD_ROW as error:
        raise SourceError(f"{path}: not COCO annotations ({error!r})") from None


def _regions(path: Path, sizes: Sizes, to: Conversion) -> Lists:
    found: Lists = {}

    def shrink(row: dict[str, Any]) -> Any:
        if "phrase" not in row:
            return row if "regions" in row else None
        name = f"region {row.get('region_id')}"
        box = _box(to, row, sizes, ("width", "height"), name)
        if box and (text := text_of(row, "phrase")):
            entry = {"id": text_of(row, "region_id"), "text": {"en": text}, "box": box}
            _keep(found, int(row["image_id"]), entry)
        elif box:
            to.skip("empty description", name)
        return None

    _list(path, "Visual Genome's region descriptions", shrink)
    return found


def _objects(path: Path, sizes: Sizes, to: Conversion) -> Lists:
    found: Lists = {}

    def shrink(row: dict[str, Any]) -> Any:
        if "object_id" in row:  # the image is named by the entry around it
            names = row.get("names")
            return {**row, "name": str(names[0]) if isinstance(names, list) and names else ""}
        entries = row.get("objects") if "image_id" in row else ()
        for entry in entries if isinstance(entries, (list, tuple)) else ():
            if not isinstance(entry, dict):
                to.skip("entry is no object", f"image {row['image_id']}")
                continue
            name = f"object {entry.get('object_id')}"
            row_of = {**entry, "image_id": row["image_id"]}
            box = _box(to, row_of, sizes, ("w", "h"), name)
            if box and (label := text_of(entry, "name")):
                _keep(found, int(row["image_id"]), {"label": label, "box": box})
            elif box:
                to.skip("object without name", name)
        return None

    _list(path, "Visual Genome's objects", shrink)
    return found


def _box(
    to: Conversion, row: dict[str, Any], sizes: Sizes, sides: tuple[str, str], name: str
) -> list[float] | None:
    try:
        image = int(row["image_id"])
        x, y, w, h = (float(row[key]) for key in ("x", "y", *sides))
    except BAD_ROW:
        to.skip("entry lacks image or box", name)
        return None
    if image not in sizes:
        to.skip("box in an image that is not converted", name)
        return None
    return cut_box(to, (x, y, x + w, y + h), sizes[image], name)


def _questions(path: Path, sizes: Sizes, to: Conversion) -> Lists:
    found: Lists = {}

    def shrink(row: dict[str, Any]) -> Any:
        if "qas" in row or "question" not in row:
            return None
        name = f"question {row.get('qa_id')}"
        text, answer = text_of(row, "question"), normalise(text_of(row, "answer"))
        try:
            image = int(row["image_id"])
        except BAD_ROW:
            image = -1
        if not text or not answer:
            to.skip("question without answers", name)
        elif image not in sizes:
            to.skip("question on an image that is not converted", name)
        else:
            entry = {"id": f"vg/{row.get('qa_id')}", "text": {"en": text}, "answers": {answer: 1.0}}
            _keep(found, image, entry)
        return None

    _list(path, "Visual Genome's questions", shrink)
    return found
