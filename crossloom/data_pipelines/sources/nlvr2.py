"""NLVR2: a sentence that is true or false of two photographs.

Reads the files of the original repository (lil-lab/nlvr, ``nlvr2/data``), in the folder or in
``data/``, and the images as they are distributed::

    train.json   dev.json   test1.json       JSON lines
        {"identifier": "train-10171-0-0", "sentence": "An image shows one leather pencil case …",
         "label": "False", "directory": 10, …}
    images/train/10/train-10171-0-img0.png   images/train/10/train-10171-0-img1.png
    dev/dev-850-0-img0.png                   test1/test1-0-1-img0.png

Each pair of images becomes a sample: the left one is the member ``0.png`` (or ``0.jpg``, by what it
holds), the right one ``1.png``, and its sentences are ``pairs`` without ``premise``, labelled
``true`` or ``false``. ``test1``, the public test, becomes split ``test``.

Skipped, and counted: lines that are no JSON object or lack a part, sentences on pairs of which an
image is missing or neither JPEG nor PNG (many cannot be downloaded any more).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Image,
    Progress,
    Report,
    first_file,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.pictures import image_folder, need_files, read_rows, text_of
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLITS = {"train": "train", "dev": "dev", "test1": "test"}


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
        input: folder with ``train.json``, ``dev.json``, ``test1.json``, itself or in ``data/``.
        out: folder for the shards.
        images: folder of the images, when it is not in the input.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "nlvr2", "train.json, dev.json, test1.json and images/")
    files = need_files(
        (folder / p / f"{s}.json" for s in _SPLITS for p in ("", "data")),
        folder,
        "train.json, dev.json or test1.json",
    )
    place = image_folder(folder, images, ["images", "."])
    to = Conversion("nlvr2", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for path in files:
            pairs, folders = _pairs(to, path)
            to.total += len(pairs)
            for name, some in pairs.items():
                both = _both(to, place, path.stem, folders[name], name, len(some))
                if both is not None:
                    content = {"id": name, "pairs": some}
                    members = {f"{i}.{image.extension}": image.data for i, image in enumerate(both)}
                    to.write(_SPLITS[path.stem], sanitise(name), content, others=members)
    return to.report


def _pairs(to: Conversion, path: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Sentences and the number of the folder, by pair of images."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, str] = {}
    for line, row in read_rows(path, to):
        number, text = text_of(row, "identifier"), text_of(row, "sentence")
        label = text_of(row, "label").lower()
        name = number.rpartition("-")[0]
        if not name or not text:
            to.skip("line lacks identifier or sentence", line)
        elif label not in ("true", "false"):
            to.skip("no label", line)
        else:
            entry = {"id": number, "label": label, "hypothesis": {"en": text}}
            pairs.setdefault(name, []).append(entry)
            folders[name] = text_of(row, "directory")
    return pairs, folders


def _both(
    to: Conversion, place: Path, division: str, number: str, name: str, count: int
) -> tuple[Image, Image] | None:
    found = []
    for side in (0, 1):
        file = f"{name}-img{side}.png"
        candidates = [place / division / number / file, place / division / file, place / file]
        path = first_file(candidates) or candidates[0]
        # all sentences are lost with one image; its name says which
        image = read_image(path, to, f"{division}/{file}", count)
        if image is None:
            return None
        found.append(image)
    return found[0], found[1]
