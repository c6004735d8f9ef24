"""RefCOCO, RefCOCO+ and RefCOCOg: expressions that refer to one object of a photograph.

Reads the folder of one of the three as published (lichengunc/refer), and COCO's images of 2014::

    refs(unc).p           a pickled list, or the same as JSON in refs(unc).json; (umd), (google) too
        [{"ref_id": 49, "ann_id": 1719310, "image_id": 581857, "split": "train",
          "sentences": [{"sent_id": 0, "sent": "lady in blue", "raw": "the lady in blue", …}, …],
          …}, …]
    instances.json        COCO's: {"images": […], "annotations": [{"id", "bbox", …}, …],
                                   "categories": […]}
    train2014/COCO_train2014_000000581857.jpg    (also below images/)

Each image becomes a sample: expressions as ``refers``, each with the box of what it refers to, and
the referred-to objects as ``boxes``. Splits are the published ones: ``train``, ``dev`` (``val``)
and ``testA`` and ``testB`` or ``test``. In the division ``google`` of RefCOCOg an image can be in
several splits, each with its own expressions; published work uses ``umd``.

Of the pickle only plain values are read; it cannot call anything
(:mod:`~crossloom.data_pipelines.sources.plain_pickle`).

Skipped, and counted: entries that lack a part, expressions whose object or image is not in
``instances.json``, boxes that are empty or more than a pixel outside the image (others are cut to
it), empty expressions, images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
    read_image,
    read_json,
)
from crossloom.data_pipelines.sources.pictures import coco_photo, cut_box, image_folder, text_of
from crossloom.data_pipelines.sources.plain_pickle import read_plain
from crossloom.data_pipelines.write import SHARD_SIZE

_REFS = re.compile(r"refs\((?P<by>\w+)\)\.(p|json)")
_SPLITS = {"train": "train", "val": "dev", "test": "test", "testA": "testA", "testB": "testB"}

Objects = dict[int, tuple[int, str, list[float]]]  #: by number: image, label, box as published
Found = dict[str, dict[int, dict[str, Any]]]  #: sample by split and image


def convert(
    input: Path | None,
    out: Path,
    *,
    by: str | None = None,
    images: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the published splits.

    Args:
        input: folder with ``refs(<by>).p`` and ``instances.json``.
        out: folder for the shards.
        by: whose division to take, when several are there: ``unc``, ``umd`` or ``google``.
        images: folder with COCO's images; the input by default.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout, or has several divisions and none is chosen.
    """
    folder = need_folder(input, "refcoco", "refs(<by>).p and instances.json")
    path = _refs(folder, by)
    place = image_folder(folder, images, ["."])
    to = Conversion("refcoco", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        objects, sizes = _instances(folder / "instances.json", to)
        samples: Found = {}
        holds = "a list of referring expressions"
        refs = read_json(path, holds) if path.suffix == ".json" else read_plain(path, holds)
        if not isinstance(refs, list):
            raise SourceError(f"{path}: should hold {holds}; download it again")
        for number, row in enumerate(refs):
            _add(to, row, f"{path.name}[{number}]", samples, objects, sizes)
        to.total = sum(map(len, samples.values()))
        for split in [s for s in _SPLITS.values() if s in samples]:
            for image_id, sample in sorted(samples[split].items()):
                count = len(sample["refers"])
                image = read_image(coco_photo(place, image_id), to, f"image {image_id}", count)
                if image is not None:
                    to.write(split, f"{image_id:012d}", sample, image)
    return to.report


def _refs(folder: Path, by: str | None) -> Path:
    found = {m["by"]: p for p in sorted(folder.iterdir()) if (m := _REFS.fullmatch(p.name))}
    if by is not None:
        found = {k: v for k, v in found.items() if k == by}
    if not found:
        raise SourceError(f"{folder}: no refs({by or '<by>'}).p or .json in it (like refs(unc).p)")
    if len(found) > 1:
        raise SourceError(
            f"{folder}: divided by {', '.join(found)}; choose one with --set by={list(found)[-1]}"
        )
    return next(iter(found.values()))


def _instances(path: Path, to: Conversion) -> tuple[Objects, dict[int, tuple[float, float]]]:
    def shrink(row: dict[str, Any]) -> Any:
        row.pop("segmentation", None)  # most of the file, not used
        return row

    holds = "COCO instances: images, annotations and categories"
    content = read_json(path, holds, shrink)
    names = ("images", "categories", "annotations")
    if not (isinstance(content, dict) and all(isinstance(content.get(n), list) for n in names)):
        raise SourceError(f"{path}: not {holds}; it is published beside the refs")
    sizes: dict[int, tuple[float, float]] = {}
    labels: dict[int, str] = {}
    objects: Objects = {}
    for kind, place, row in ((k, n, row) for k in names for n, row in enumerate(content[k])):
        try:
            number = int(row["id"])
            if kind == "images":
                sizes[number] = (float(row["width"]), float(row["height"]))
            elif kind == "categories":
                labels[number] = str(row["name"])
            else:
                x, y, w, h = map(float, row["bbox"])
                label = labels[row["category_id"]]
                objects[number] = (int(row["image_id"]), label, [x, y, x + w, y + h])
        except BAD_ROW:
            to.skip("entry of instances lacks a part", f"{path.name} {kind}[{place}]")
    return objects, sizes


def _add(
    to: Conversion,
    row: Any,
    name: str,
    samples: Found,
    objects: Objects,
    sizes: dict[int, tuple[float, float]],
) -> None:
    try:
        number, image_id = int(row["ann_id"]), int(row["image_id"])
        split, sentences = _SPLITS[row["split"]], list(row["sentences"])
        texts = [(text_of(s, "raw", "sent"), text_of(s, "sent_id")) for s in sentences]
    except BAD_ROW:
        to.skip("entry lacks object, image, split or sentences", name)
        return
    found, label, (x1, y1, x2, y2) = objects.get(number, (-1, "", [0.0] * 4))
    if found != image_id or image_id not in sizes:
        to.skip("object is not in instances.json", name, len(texts))
        return
    box = cut_box(to, (x1, y1, x2, y2), sizes[image_id], f"object {number}")
    if box is None:
        return
    refers = []
    for text, sentence in texts:
        if text:
            refers.append({"id": sentence, "text": {"en": text}, "box": box})
        else:
            to.skip("empty expression", f"{name} sentence {sentence}")
    if refers:
        width, height = sizes[image_id]
        size = {"width": int(width), "height": int(height)}
        empty: dict[str, Any] = {"id": str(image_id), "size": size, "refers": [], "boxes": []}
        sample = samples.setdefault(split, {}).setdefault(image_id, empty)
        sample["refers"] += refers
        sample["boxes"].append({"label": label, "box": box})
