"""Multi30K: image captions and their translations, as text (task 1).

Reads the ``raw`` files of the official repository, or of its ``data/task1`` folder, plain or
gzip; line i of every language says the same::

    raw/train.en.gz  raw/train.de.gz  raw/train.fr.gz  raw/train.cs.gz
    raw/val.en.gz    …                             split dev
    raw/test_2016_flickr.en.gz  …                  split test
    raw/test_2017_flickr.en.gz  …                  split test_2017_flickr, others alike
    image_splits/train.txt  …                      optional: the image of each line

Each line becomes a sample of parallel text without image. Its id is the split and the name of the
image when that is known (``train/1234567890.jpg``), else split and line, so that captions of a
picture can be kept out of training when the picture is tested on elsewhere.

Skipped, and counted: lines that are empty or not UTF-8 (in that language), and sentences left in
fewer than two languages. Files of unequal length are an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.lines import (
    check_line_counts,
    parallel_lines,
    read_lines,
    write_parallel,
)
from crossloom.data_pipelines.write import SHARD_SIZE

_FILE = re.compile(r"(?P<split>[A-Za-z0-9_]+)\.(?P<language>[a-z]{2,3})(\.gz)?")
_SPLITS = {"train": "train", "val": "dev", "test_2016_flickr": "test"}


def convert(
    input: Path | None,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev``, ``test`` and one split for each further test.

    Args:
        input: folder with ``raw/``, or that folder.
        out: folder for the shards.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no such files, or the languages of a split differ in their number of lines.
    """
    folder = need_folder(input, "multi30k", "raw/<split>.<language>.gz")
    places = [folder / "raw", folder / "data" / "task1" / "raw", folder]
    raw = next(p for p in places if p.is_dir())
    files = _files(raw)
    if not files:
        raise SourceError(f"{raw}: no <split>.<language>.gz (like train.en.gz) in it")
    for split, languages in files.items():
        if len(languages) < 2:
            only = next(iter(languages.values()))
            raise SourceError(f"{only}: the only language of {split}; its translations are missing")
    to = Conversion("multi30k", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = sum(check_line_counts(languages.values()) for languages in files.values())
    with to:
        for split, languages in files.items():
            images = _images(raw.parent / "image_splits" / f"{split}.txt", languages, to)
            prefix = _SPLITS.get(split, split)
            for number, texts in parallel_lines(languages, to):
                image = images[number - 1] if images else None
                names = {x: f"{path.name}:{number}" for x, path in languages.items()}
                key = f"{split}-{number:06d}"
                write_parallel(to, prefix, key, texts, names, f"{split}/{image or number}")
    return to.report


def _files(raw: Path) -> dict[str, dict[str, Path]]:
    """Files by split and language; where a plain and a gzip file are there, the plain one."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(raw.iterdir()):
        if match := _FILE.fullmatch(path.name):
            found.setdefault(match["split"], {}).setdefault(language_code(match["language"]), path)
    order = [*_SPLITS, *sorted(set(found) - set(_SPLITS))]
    return {split: found[split] for split in order if split in found}


def _images(path: Path, languages: dict[str, Path], to: Conversion) -> list[str | None]:
    if not path.is_file():
        return []
    check_line_counts([path, next(iter(languages.values()))])
    return [line for _, line in read_lines(path, to)]
