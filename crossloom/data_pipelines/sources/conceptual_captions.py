r"""Conceptual Captions, and other pairs of captions and links, as ``img2dataset`` downloads them.

Conceptual Captions (3M, 12M), SBU, LAION and others are published as lists of captions and links.
Downloading is left to ``img2dataset`` (a package of its own). It wants the names of the columns in
the first line, which Conceptual Captions does not have::

    sed -i '1s/^/caption\turl\n/' Train_GCC-training.tsv
    img2dataset --url_list Train_GCC-training.tsv --input_format tsv --url_col url \
        --caption_col caption --output_format webdataset --output_folder cc3m

Reads what it writes, tars or (``--output_format files``) folders::

    cc3m/00000.tar  with 000000000.jpg 000000000.txt 000000000.json …     00000_stats.json
    cc3m/00000/     with the same

Each image becomes a sample with its caption (``.txt``), in split ``split``: the lists of training
and validation are downloaded, and converted, to folders of their own. Its id is ``img2dataset``'s
number.

Skipped, and counted: links that were not downloaded (by the ``_stats.json`` files), images that are
neither JPEG nor PNG, images without caption, captions that are empty or not UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from crossloom.data_pipelines import index
from crossloom.data_pipelines.shards import Shard
from crossloom.data_pipelines.sources.common import (
    BAD_ROW,
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
    to_image,
)
from crossloom.data_pipelines.sources.languages import chosen_language
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise
from crossloom.units import BadSample

_IMAGES = ("jpg", "jpeg", "png", "webp")


def convert(
    input: Path | None,
    out: Path,
    *,
    split: str = "train",
    language: str = "en",
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write one split.

    Args:
        input: folder that ``img2dataset`` wrote.
        out: folder for the shards.
        split: of the samples.
        language: of the captions.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all when known).

    Raises:
        SourceError: the input is a list of links, or nothing that ``img2dataset`` writes.
    """
    language = chosen_language(language)
    if input is not None and Path(input).is_file():
        raise SourceError(
            f"{input}: a list of links; download them first (its first line names the columns): "
            f"img2dataset --url_list {Path(input).name} --input_format tsv --url_col url "
            "--caption_col caption --output_format webdataset --output_folder DIR; then convert DIR"
        )
    folder = need_folder(input, "conceptual-captions", "what img2dataset wrote: 00000.tar …")
    parts = sorted(p for p in folder.iterdir() if p.stem.isdecimal())
    parts = [p for p in parts if p.suffix == ".tar" or p.is_dir()]
    if not parts:
        raise SourceError(
            f"{folder}: no tars and no numbered folders in it; img2dataset writes them"
        )
    to = Conversion(
        "conceptual-captions", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    with to:
        _failures(to, folder)
        for part in parts:
            for key, members in _files(part) if part.is_dir() else _tar(part, to):
                _write(to, split, language, key, members)
    return to.report


def _write(
    to: Conversion, split: str, language: str, key: str, members: Mapping[str, bytes]
) -> None:
    data = next((members[x] for x in _IMAGES if x in members), None)
    if data is None or "txt" not in members:
        if data is not None or "txt" in members:
            to.skip("caption without image" if data is None else "image without caption", key)
        return
    try:
        caption = " ".join(members["txt"].decode("utf-8").split())
    except UnicodeDecodeError:
        to.skip("not UTF-8", key)
        return
    if not caption:
        to.skip("empty caption", key)
    elif image := to_image(data, to, key):
        to.write(split, sanitise(key), {"id": key, "texts": {language: [caption]}}, image)


def _tar(path: Path, to: Conversion) -> Iterator[tuple[str, dict[str, bytes]]]:
    # the index is not kept: it is used once, and the folder is another program's
    with path.open("rb") as file:
        found = index.build(file)
    if found.damage:
        raise SourceError(f"{path}: not a readable tar ({found.damage[1]}); download it again")
    shard = Shard(str(path), own=found)
    for number, entry in enumerate(shard.entries):
        try:
            yield entry.key.rpartition("/")[2], shard.read(number)
        except BadSample as error:
            to.skip(error.kind, entry.key)


def _files(folder: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    names: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        names.setdefault(path.stem, []).append(path)
    for key, paths in names.items():
        yield key, {p.suffix.removeprefix("."): p.read_bytes() for p in paths if p.is_file()}


def _failures(to: Conversion, folder: Path) -> None:
    """Count what could not be downloaded; statistics that cannot be read say nothing."""
    for path in sorted(folder.glob("*_stats.json")):
        try:
            stats = json.loads(path.read_bytes())
            lost = int(stats["count"]) - int(stats["successes"])
        except BAD_ROW:
            continue
        if lost > 0:
            to.skip("not downloaded", path.name, lost)
