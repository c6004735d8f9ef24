"""XVNLI: SNLI-VE's test in five languages, as IGLUE publishes it.

Reads IGLUE's annotations (``datasets/XVNLI``) and Flickr30k's images::

    annotations/<language>/test.jsonl            ar, en, es, fr, ru
        {"Flikr30kID": "759822302", "pairID": "759822302.jpg#2r1c", "gold_label": "contradiction",
         "sentence1": "A man …", "sentence2": "He is wearing …", "captionID": …}
    annotations/<language>/train_<shots>.jsonl   the same, on few images: 1, 5, 10, 20, 25, 48
    images/759822302.jpg                         (or flickr30k_images/ …)

Each image becomes a sample with all its hypotheses in all languages, in ``pairs`` without
``premise``, see :mod:`~crossloom.data_pipelines.sources.snli_ve`. Writes ``test``, and ``train``
when ``shots`` are asked for; they share no image. Many of these images are in SNLI-VE's test.

Skipped, and counted: pairs without a gold label or with another than in other languages, lines that
are no JSON object or lack a part, pairs on images that are missing or neither JPEG nor PNG.
"""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    first_file,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.pictures import FLICKR30K, image_folder, need_files
from crossloom.data_pipelines.sources.snli_ve import Pairs, add_pairs, write_pairs
from crossloom.data_pipelines.write import SHARD_SIZE


def convert(
    input: Path | None,
    out: Path,
    *,
    images: str | None = None,
    shots: int = 0,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``test`` and, with ``shots``, ``train``.

    Args:
        input: folder with ``annotations/``, or that folder.
        out: folder for the shards.
        images: folder of Flickr30k's images, when it is not in the input.
        shots: images for training in each language: 1, 5, 10, 20, 25 or 48; none when 0.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: the input is not of this layout.
    """
    folder = need_folder(input, "xvnli", "annotations/<language>/test.jsonl and images/")
    notes = first_file([folder / "annotations", folder])
    assert notes is not None
    names = {"train": f"train_{shots}.jsonl"} if shots else {}
    files = {
        split: need_files(sorted(notes.glob(f"*/{name}")), notes, f"<language>/{name}")
        for split, name in {**names, "test": "test.jsonl"}.items()
    }
    place = image_folder(folder, images, FLICKR30K)
    to = Conversion("xvnli", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        to.total = 0
        for split, paths in files.items():
            pairs: Pairs = {}
            for path in paths:
                add_pairs(to, path, language_code(path.parent.name), pairs)
            to.total += len(pairs)
            write_pairs(to, split, pairs, place)
    return to.report
