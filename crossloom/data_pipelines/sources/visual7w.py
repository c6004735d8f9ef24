"""Visual7W (Zhu et al., CVPR 2016), the pointing part: questions answered by a box of the picture.

Reads the folder of the published data::

    dataset_v7w_pointing.json     {"boxes": [{"box_id", "name", "x", "y", "width", "height"}, …],
                                   "images": [{"image_id", "split", "qa_pairs": [{"qa_id",
                                   "question", "answer": box_id, "multiple_choices": [box_id, …],
                                   "type"}, …]}, …]}
    images/v7w_<image_id>.jpg     (or below the folder itself)

Each image becomes a sample: questions as ``refers``, each with the box that answers it, and all
boxes that can be chosen as ``boxes``. Splits: ``train``, ``dev`` (``val``), ``test``. Images are
Visual Genome's: leave those of other sets' tests out of training.

Skipped, and counted: images and questions that lack a part, answers whose box is not listed, boxes
that are empty or more than a pixel outside the image (others are cut to it), images that are
missing or neither JPEG nor PNG or do not open.
"""

from __future__ import annotations

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
from crossloom.data_pipelines.sources.pictures import cut_box, image_folder, text_of
from crossloom.data_pipelines.write import SHARD_SIZE
from crossloom.modalities.pictures import image_size
from crossloom.units import BadSample

_FILE = "dataset_v7w_pointing.json"
_SPLITS = {"train": "train", "val": "dev", "test": "test"}

Boxes = dict[int, tuple[str, tuple[float, float, float, float]]]  #: by number: label, corners


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the published splits.

    Args:
        input: folder with ``dataset_v7w_pointing.json``.
        out: folder for the shards.
        images: folder of the images, when it is not in the input.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "visual7w", f"{_FILE} and images/")
    place = image_folder(folder, images, ["images", "."])
    content = read_json(folder / _FILE, "Visual7W's pointing questions")
    if not (isinstance(content, dict) and all(isinstance(content.get(n), list) for n in _PARTS)):
        raise SourceError(f"{folder / _FILE}: has no lists {' and '.join(_PARTS)}; not Visual7W's")
    to = Conversion("visual7w", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        boxes = _boxes(content["boxes"], to)
        to.total = len(content["images"])
        for number, row in enumerate(content["images"]):
            try:
                image_id, split = int(row["image_id"]), _SPLITS[row["split"]]
                asked = list(row["qa_pairs"])
            except BAD_ROW:
                to.skip("image lacks number, split or questions", f"{_FILE} images[{number}]")
                continue
            name = f"image {image_id}"
            image = read_image(place / f"v7w_{image_id}.jpg", to, name, len(asked))
            if image is None:
                continue
            try:
                size = image_size(image.data, name)
            except BadSample:
                to.skip("image does not open", name, len(asked))
                continue
            sample = _sample(to, image_id, asked, boxes, size)
            if sample["refers"]:
                to.write(split, f"{image_id:012d}", sample, image)
    return to.report


_PARTS = ("boxes", "images")


def _boxes(rows: list[Any], to: Conversion) -> Boxes:
    found: Boxes = {}
    for place, row in enumerate(rows):
        try:
            x, y, w, h = (float(row[k]) for k in ("x", "y", "width", "height"))
            found[int(row["box_id"])] = text_of(row, "name"), (x, y, x + w, y + h)
        except BAD_ROW:
            to.skip("box lacks number or place", f"{_FILE} boxes[{place}]")
    return found


def _sample(
    to: Conversion, image_id: int, asked: list[Any], boxes: Boxes, size: tuple[int, int]
) -> dict[str, Any]:
    refers, offered = [], set()
    for place, row in enumerate(asked):
        name = f"image {image_id} question {place}"
        try:
            number, answer = int(row["qa_id"]), int(row["answer"])
            choices = [int(c) for c in row["multiple_choices"]]
            text = text_of(row, "question")
        except BAD_ROW:
            to.skip("question lacks number, text, answer or choices", name)
            continue
        if not text or answer not in boxes:
            to.skip("question without text or box", name)
            continue
        box = cut_box(to, boxes[answer][1], size, f"box {answer}")
        if box is not None:
            refers.append({"id": str(number), "text": {"en": text}, "box": box})
            offered |= {answer, *choices}
    listed = []
    for number in sorted(offered & set(boxes)):
        label, corners = boxes[number]
        box = cut_box(to, corners, size, f"box {number}")
        if box is not None:
            listed.append({"label": label, "box": box})
    width, height = size
    return {
        "id": str(image_id),
        "size": {"width": width, "height": height},
        "refers": refers,
        "boxes": listed,
    }
