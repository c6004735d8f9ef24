"""GuessWhat?! (de Vries et al., CVPR 2017): dialogues that find one object of a photograph.

Reads the folder of the published files, and COCO's images of 2014::

    guesswhat.train.jsonl  guesswhat.valid.jsonl  guesswhat.test.jsonl     (one at least; .gz too)
        {"id": 7, "image": {"id": 9, "width", "height"}, "object_id": 3,
         "objects": [{"id": 3, "category": "cup", "bbox": [x, y, width, height]}, …],
         "qas": [{"question": "is it food?", "answer": "No"}, …], "status": "success"}
    train2014/COCO_train2014_000000000009.jpg    (also below images/)

Each image of a split becomes a sample: dialogues as ``refers``, each with the box of the object
that was thought of, and the objects of its games as ``boxes``. A dialogue is one text, ``start
QUESTION answer ANSWER stop`` round by round, as 12-in-1 reads it (facebookresearch/
vilbert-multi-task: ``vilbert/datasets/guesswhat_pointing_dataset.py``); all games are taken, won
or not. Splits: ``train``, ``dev`` (``valid``), ``test``.

Skipped, and counted: lines that lack a part, games without a question or whose object is not
listed, boxes that are empty or more than a pixel outside the image (others are cut to it), images
that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.pictures import (
    coco_photo,
    cut_box,
    image_folder,
    need_files,
    read_rows,
    text_of,
)
from crossloom.data_pipelines.write import SHARD_SIZE

_SPLITS = {"train": "train", "valid": "dev", "test": "test"}

Found = dict[int, dict[str, Any]]  #: sample by image


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``, those that are there.

    Args:
        input: folder with ``guesswhat.<split>.jsonl``.
        out: folder for the shards.
        images: folder with COCO's images; the input by default.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "guesswhat", "guesswhat.train.jsonl and COCO's images")
    names = [f"guesswhat.{split}.jsonl{end}" for split in _SPLITS for end in ("", ".gz")]
    files = need_files((folder / n for n in names), folder, "guesswhat.<split>.jsonl")
    place = image_folder(folder, images, ["."])
    to = Conversion("guesswhat", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for path in files:
            samples: Found = {}
            for name, row in read_rows(path, to):
                _add(to, row, name, samples)
            to.total += len(samples)
            for number, sample in sorted(samples.items()):
                sample["boxes"] = list(sample["boxes"].values())
                count = len(sample["refers"])
                image = read_image(coco_photo(place, number), to, f"image {number}", count)
                if image is not None:
                    split = _SPLITS[path.name.split(".")[1]]
                    to.write(split, f"{number:012d}", sample, image)
    return to.report


def _add(to: Conversion, row: dict[str, Any], name: str, samples: Found) -> None:
    try:
        game, number, target = int(row["id"]), int(row["image"]["id"]), int(row["object_id"])
        size = int(row["image"]["width"]), int(row["image"]["height"])
        objects = {int(o["id"]): (text_of(o, "category"), _corners(o)) for o in row["objects"]}
        rounds = [(text_of(q, "question"), text_of(q, "answer")) for q in row["qas"]]
    except BAD_ROW:
        to.skip("line lacks game, image, object or questions", name)
        return
    text = " ".join(f"start {q} answer {a} stop" for q, a in rounds if q and a)
    if not text or target not in objects:
        to.skip("game without a question or its object", name)
        return
    box = cut_box(to, objects[target][1], size, f"object {target}")
    if box is None:
        return
    empty: dict[str, Any] = {
        "id": str(number),
        "size": {"width": size[0], "height": size[1]},
        "refers": [],
        "boxes": {},
    }
    sample = samples.setdefault(number, empty)
    sample["refers"].append({"id": str(game), "text": {"en": text}, "box": box})
    for identity, (label, corners) in sorted(objects.items()):
        if identity not in sample["boxes"]:
            cut = cut_box(to, corners, size, f"object {identity}")
            if cut is not None:
                sample["boxes"][identity] = {"label": label, "box": cut}


def _corners(row: dict[str, Any]) -> tuple[float, float, float, float]:
    x, y, w, h = map(float, row["bbox"])
    return x, y, x + w, y + h
