"""SNLI-VE: a photograph as the premise, a sentence as the hypothesis.

Reads the files of the original repository (necla-ml/SNLI-VE) and Flickr30k's images::

    snli_ve_train.jsonl   snli_ve_dev.jsonl   snli_ve_test.jsonl
        {"Flickr30K_ID": "4705552913", "gold_label": "neutral", "pairID": "4705552913.jpg#2r1n",
         "sentence1": "Two women …", "sentence2": "The sisters are hugging …", …}
    images/4705552913.jpg         (or flickr30k_images/, flickr30k-images/ …)

Each image becomes a sample with all its hypotheses in ``pairs``. They have no ``premise``: the
image is the premise (``sentence1``, the caption that it stands for, is not written). The splits
share no image. ``Flikr30kID`` of earlier releases is read as well.

Skipped, and counted: pairs without a gold label, lines that are no JSON object or lack a part,
pairs on images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    need_folder,
    read_image,
)
from crossloom.data_pipelines.sources.pictures import (
    FLICKR30K,
    image_folder,
    need_files,
    read_rows,
    text_of,
)
from crossloom.data_pipelines.sources.xnli import LABELS
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_PLACES = ("", "data", "annotations")

Pairs = dict[str, dict[str, dict[str, Any]]]  #: by image and pair


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
        input: folder with ``snli_ve_<split>.jsonl``, itself or in ``data/``.
        out: folder for the shards.
        images: folder of Flickr30k's images, when it is not in the input.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    wanted = "snli_ve_<split>.jsonl"
    folder = need_folder(input, "snli-ve", f"{wanted} and images/")
    names = [f"snli_ve_{split}.jsonl" for split in ("train", "dev", "test")]
    files = need_files((folder / p / n for n in names for p in _PLACES), folder, wanted)
    place = image_folder(folder, images, FLICKR30K)
    to = Conversion("snli-ve", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for path in files:
            pairs: Pairs = {}
            add_pairs(to, path, "en", pairs)
            to.total += len(pairs)
            write_pairs(to, path.stem.removeprefix("snli_ve_"), pairs, place)
    return to.report


def add_pairs(to: Conversion, path: Path, language: str, pairs: Pairs) -> None:
    """Add the hypotheses of a file, in one language, to those of other languages."""
    for name, row in read_rows(path, to):
        image = text_of(row, "Flickr30K_ID", "Flikr30kID").removesuffix(".jpg")
        text, label = text_of(row, "sentence2"), text_of(row, "gold_label")
        number = text_of(row, "pairID") or name
        if not image or not text:
            to.skip("line lacks image or hypothesis", name)
        elif label not in LABELS:
            to.skip("no gold label", name)
        else:
            empty: dict[str, Any] = {"id": number, "label": label, "hypothesis": {}}
            pair = pairs.setdefault(image, {}).setdefault(number, empty)
            if pair["label"] != label:
                to.skip("label differs from the other languages'", name)
            elif language in pair["hypothesis"]:
                to.skip("pair given twice in one language", name)
            else:
                pair["hypothesis"][language] = text


def write_pairs(to: Conversion, split: str, pairs: Pairs, place: Path) -> None:
    """Write a sample an image, with its hypotheses."""
    for name, some in sorted(pairs.items()):
        image = read_image(place / f"{name}.jpg", to, f"{name}.jpg", len(some))
        if image is not None:
            content = {"id": f"{name}.jpg", "pairs": list(some.values())}
            to.write(split, sanitise(name), content, image)
