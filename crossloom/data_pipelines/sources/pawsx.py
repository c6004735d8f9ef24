"""PAWS-X: pairs of sentences with the same words, which mean the same or do not, in 7 languages.

Reads the published folders, one a language, in the folder itself or in ``x-final/``; columns
``id``, ``sentence1``, ``sentence2``, ``label`` (1: paraphrase), separated by tabs::

    x-final/en/train.tsv              x-final/de/translated_train.tsv   …
    x-final/en/dev_2k.tsv             x-final/de/dev_2k.tsv             …
    x-final/en/test_2k.tsv            x-final/de/test_2k.tsv            …

    id  sentence1                     sentence2                         label
    1   The dog bit the man .         The man bit the dog .             0

Each pair becomes a sample with one entry in ``pairs``, in all languages that have it: ``premise``
is the first sentence, ``hypothesis`` the second, the label ``paraphrase`` or ``other``. Rows are
joined by ``id``. The files of a split are read side by side, so their ids must ascend, as they do.

Skipped, and counted (in that language): sentences that are empty or ``NS`` (not translated), rows
without a label, with another label than the other languages', with another number of columns, not
UTF-8, or out of order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import Any

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    count_lines,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.sources.tsv import read_tsv
from crossloom.data_pipelines.write import SHARD_SIZE

LABELS = {"1": "paraphrase", "0": "other"}
_FILES = {
    "train": ("translated_train.tsv", "train.tsv"),
    "dev": ("dev_2k.tsv",),
    "test": ("test_2k.tsv",),
}


@dataclass(frozen=True)
class Row:
    """One pair in one language."""

    number: int  #: its id
    language: str
    label: str
    first: str
    second: str
    place: str  #: file and line


def convert(
    input: Path | None,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the splits that are there, of ``train``, ``dev`` and ``test``.

    Args:
        input: folder with a folder for each language.
        out: folder for the shards.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, rows of the longest files).

    Raises:
        SourceError: no such files, or columns are missing.
    """
    folder = need_folder(input, "pawsx", "<language>/dev_2k.tsv …")
    files = _files(folder / "x-final" if (folder / "x-final").is_dir() else folder)
    to = Conversion("pawsx", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = sum(max(map(count_lines, paths.values())) - 1 for paths in files.values())
    with to:
        for split, paths in files.items():
            readers = [_rows(path, language, to) for language, path in paths.items()]
            rows = merge(*readers, key=lambda row: (row.number, row.language))
            for number, group in groupby(rows, key=lambda row: row.number):
                _write(to, split, number, [*group])
    return to.report


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by split and language."""
    found: dict[str, dict[str, Path]] = {}
    for split, names in _FILES.items():
        for place in sorted(p for p in folder.iterdir() if p.is_dir()):
            if path := next((place / n for n in names if (place / n).is_file()), None):
                found.setdefault(split, {})[language_code(place.name)] = path
    if not found:
        raise SourceError(f"{folder}: no <language>/dev_2k.tsv, test_2k.tsv or train.tsv below it")
    return found


def _rows(path: Path, language: str, to: Conversion) -> Iterator[Row]:
    last = -1
    for line, cells in read_tsv(path, to, ("id", "sentence1", "sentence2", "label")):
        place = f"{language}/{path.name}:{line}"
        first, second, label = cells["sentence1"], cells["sentence2"], cells["label"]
        if not (cells["id"].isascii() and cells["id"].isdigit()):
            to.skip("id is no number", place)
        elif int(cells["id"]) <= last:
            to.skip("id does not ascend", place)
        elif not first or not second:
            to.skip("empty sentence", place)
        elif "NS" in (first, second):
            to.skip("sentence not translated", place)
        elif label not in LABELS:
            to.skip("no label", place)
        else:
            last = int(cells["id"])
            yield Row(last, language, LABELS[label], first, second, place)


def _write(to: Conversion, split: str, number: int, rows: list[Row]) -> None:
    # English is where the label was given
    label = next((row.label for row in rows if row.language == "en"), rows[0].label)
    pair: dict[str, Any] = {"id": str(number), "label": label, "premise": {}, "hypothesis": {}}
    for row in rows:
        if row.label != label:
            to.skip("label differs from the other languages'", row.place)
            continue
        pair["premise"][row.language] = row.first
        pair["hypothesis"][row.language] = row.second
    content = {"id": f"{split}/{number}", "pairs": [pair]}
    to.write(split, f"{split}-{number:06d}", content, numbered=True)
