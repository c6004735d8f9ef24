"""Common Voice: sentences read aloud by volunteers, in many languages.

Reads the published folder of one language, or a folder of them, at any depth::

    cv-corpus-17.0-2024-03-15/de/train.tsv  dev.tsv  test.tsv      others are not read
    cv-corpus-17.0-2024-03-15/de/clips/common_voice_de_17298952.mp3 …

Of the columns, separated by tabs, ``client_id``, ``path``, ``sentence`` and ``locale`` are read::

    client_id  path                          sentence             …  locale  segment
    0a1b…      common_voice_de_17298952.mp3  Der Hund wartet.     …  de

Each row becomes a sample: the clip as it is (MP3 is decoded by libsndfile, which ``soundfile``
brings), the sentence in its language, and ``speaker``. Regions are left out of languages
(``sv-SE`` is ``sv``), but for Chinese (``zh-TW`` and ``zh-HK`` are ``zh-hant``). Folders in which
clips have been converted to WAV or FLAC beside the ``.mp3`` of the table are read too.

The published splits are kept: no speaker is in two of them.

Skipped, and counted: clips that are missing or hold something else, sentences that are empty, rows
with another number of columns or not UTF-8. A file's rows are read one by one.
"""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    count_lines,
    first_file,
    need_folder,
)
from crossloom.data_pipelines.sources.languages import locale_code
from crossloom.data_pipelines.sources.sounds import SUFFIXES, read_sound
from crossloom.data_pipelines.sources.tsv import read_tsv
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_SPLITS = ("train", "dev", "test")


def convert(
    input: Path | None,
    out: Path,
    *,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``, all languages together.

    Args:
        input: folder of a language, or of several.
        out: folder for the shards.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, rows in all).

    Raises:
        SourceError: no such files, or columns are missing.
    """
    folder = need_folder(input, "common-voice", "<language>/train.tsv and <language>/clips/")
    files = {
        split: sorted(p for p in folder.rglob(f"{split}.tsv") if p.with_name("clips").is_dir())
        for split in _SPLITS
    }
    if not any(files.values()):
        raise SourceError(f"{folder}: no train.tsv, dev.tsv or test.tsv beside a folder clips/")
    to = Conversion(
        "common-voice", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    to.total = sum(count_lines(path) - 1 for paths in files.values() for path in paths)
    with to:
        for split, paths in files.items():
            for path in paths:
                below = path.parent.relative_to(folder).as_posix()
                _rows(to, split, path, folder.name if below == "." else below)
    return to.report


def _rows(to: Conversion, split: str, path: Path, place: str) -> None:
    stem = sanitise(place)  # two releases of one language have keys of their own
    for number, row in read_tsv(path, to, ("client_id", "path", "sentence", "locale")):
        clip = path.parent / "clips" / row["path"]
        name = f"{place}/{row['path']}"
        if not row["sentence"] or not row["path"]:
            to.skip("empty sentence" if row["path"] else "row without clip", f"{name}:{number}")
            continue
        found = first_file([clip, *(clip.with_suffix(x) for x in SUFFIXES)])
        if sound := read_sound(found or clip, to, name):
            content = {
                "id": clip.stem,
                "texts": {locale_code(row["locale"]): [row["sentence"]]},
                "speaker": row["client_id"],
            }
            to.write(split, f"{stem}-{number - 1:08d}", content, sound=sound, numbered=True)
