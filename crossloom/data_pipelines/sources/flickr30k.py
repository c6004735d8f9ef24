"""Flickr30k, divided as published work divides it (Karpathy and Fei-Fei, 2015).

Reads Karpathy's file, the images, and the original captions where they are there::

    dataset_flickr30k.json
        {"images": [{"filename": "1000092795.jpg", "split": "train",
                     "sentences": [{"raw": "Two young guys …", "tokens": […]}, … five]}, …]}
    results_20130124.token      optional: 1000092795.jpg#0<tab>Two young guys …
    results.csv                 or so: header image_name| comment_number| comment
    captions_de.tsv             optional, any language: header image, n, caption; tab-separated
    images/1000092795.jpg       (or flickr30k_images/, flickr30k-images/ …)

Each image becomes a sample with all its captions by language: those of the caption file, else the
``raw`` ones of Karpathy's. Splits: ``train`` (29,000 images), ``dev`` (``val``, 1,014), ``test``
(1,000). Without ``dataset_flickr30k.json`` use the source ``flickr8k``, which splits by hash.

Skipped, and counted: images that are missing or neither JPEG nor PNG, images without caption,
captions of images that Karpathy's file does not list, its entries without name or split, lines
that are not UTF-8 or lack a part, empty captions.
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
    first_file,
    need_folder,
    read_image,
    read_json,
)
from crossloom.data_pipelines.sources.flickr8k import (
    CAPTION_FILES,
    TRANSLATED,
    Captions,
    collect_captions,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.pictures import FLICKR30K, image_folder
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_DIVISION = "dataset_flickr30k.json"
_SPLITS = {"train": "train", "val": "dev", "test": "test"}


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``.

    Args:
        input: folder with ``dataset_flickr30k.json``, and captions if there are others.
        out: folder for the shards.
        images: folder of the photographs, when it is not in the input.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "flickr30k", f"{_DIVISION} and images/")
    if not (folder / _DIVISION).is_file():
        raise SourceError(
            f"{folder / _DIVISION}: missing; it is in Karpathy's caption_datasets.zip. The source "
            "flickr8k converts Flickr30k without it, with splits chosen by hash"
        )
    place = image_folder(folder, images, FLICKR30K[:-1])
    to = Conversion("flickr30k", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        splits, raw = _division(folder / _DIVISION, to)
        texts: Captions = {}
        captions = first_file([folder / name for name in CAPTION_FILES])
        if captions is not None:
            collect_captions(to, captions, "en", texts)
        else:
            texts = {name: {"en": some} for name, some in raw.items() if some}
        for path in sorted(folder.iterdir()):
            if match := TRANSLATED.fullmatch(path.name):
                collect_captions(to, path, language_code(match["language"]), texts)
        to.total = len(splits)
        for name, split in splits.items():
            if not (languages := texts.pop(name, {})):
                to.skip("image without caption", name)
                continue
            image = read_image(place / name, to, name, sum(map(len, languages.values())))
            if image is not None:
                to.write(split, sanitise(Path(name).stem), {"id": name, "texts": languages}, image)
        for name, languages in texts.items():
            to.skip(f"image not in {_DIVISION}", name, sum(map(len, languages.values())))
    return to.report


def _division(path: Path, to: Conversion) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Split and captions by image."""
    content = read_json(path, "Karpathy's division of Flickr30k")
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise SourceError(f"{path}: no list 'images' in it; it should be Karpathy's {_DIVISION}")
    splits: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        try:
            name, split = str(row["filename"]), _SPLITS[row["split"]]
            raw = [_plain(sentence) for sentence in row.get("sentences", ())]
        except BAD_ROW:
            to.skip("entry lacks filename or split", f"{path.name}[{number}]")
            continue
        splits[name], texts[name] = split, [text for text in raw if text]
    return splits, texts


def _plain(sentence: Any) -> str:
    return " ".join(str(sentence["raw"]).split())
