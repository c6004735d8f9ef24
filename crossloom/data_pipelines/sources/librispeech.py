"""LibriSpeech: read English speech with its text.

Reads the published folders, in the folder itself or in ``LibriSpeech/``; each chapter has its
utterances and one file with their texts::

    LibriSpeech/train-clean-100/19/198/19-198-0000.flac     speaker 19, chapter 198
                                       19-198-0001.flac …
                                       19-198.trans.txt

    19-198-0000 THE DOG WAITED BY THE GATE
    19-198-0001 NOBODY CAME

``train-…`` become ``train``, ``dev-clean`` ``dev``, ``test-clean`` ``test``; ``dev-other`` and
``test-other`` are splits of their own (``dev_other``, ``test_other``). Divisions that are not there
are left out.

Each utterance becomes a sample: the sound as it is, the text, and ``speaker``. The texts are
published in capital letters; ``lower`` makes them small.

Skipped, and counted: lines without text or not UTF-8, texts without sound, sound without text, and
files that hold something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    count_lines,
    need_folder,
    read_lines,
)
from crossloom.data_pipelines.sources.sounds import read_sound
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_DIVISIONS = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "dev",
    "dev-other": "dev_other",
    "test-clean": "test",
    "test-other": "test_other",
}


def convert(
    input: Path | None,
    out: Path,
    *,
    lower: bool = False,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the splits that are there.

    Args:
        input: folder with ``train-clean-100/`` and its like.
        out: folder for the shards.
        lower: make the texts' letters small.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no such folders.
    """
    folder = need_folder(input, "librispeech", "train-clean-100/, dev-clean/, …")
    place = folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder
    files = {name: sorted((place / name).glob("*/*/*.trans.txt")) for name in _DIVISIONS}
    if not any(files.values()):
        raise SourceError(
            f"{place}: no <division>/<speaker>/<chapter>/*.trans.txt below it; the divisions are "
            f"{', '.join(_DIVISIONS)}"
        )
    to = Conversion(
        "librispeech", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    to.total = sum(count_lines(path) for paths in files.values() for path in paths)
    with to:
        for division, split in _DIVISIONS.items():
            for path in files[division]:
                _chapter(to, split, path, lower)
    return to.report


def _chapter(to: Conversion, split: str, path: Path, lower: bool) -> None:
    sounds = {p.stem: p for p in sorted(path.parent.glob("*.flac"))}
    for name, text in _texts(to, path):
        file = sounds.pop(name, path.with_name(f"{name}.flac"))
        if sound := read_sound(file, to, file.name):
            texts = {"en": [text.lower() if lower else text]}
            content = {"id": name, "texts": texts, "speaker": path.parent.parent.name}
            to.write(split, sanitise(name), content, sound=sound, numbered=True)
    for name in sounds:
        to.skip("sound without text", f"{name}.flac")


def _texts(to: Conversion, path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each utterance, in the order of their names, as keys need it."""
    found: dict[str, str] = {}
    for number, line in read_lines(path, to):
        name, _, text = (line or "").partition(" ")
        if line is None:
            continue
        if name in found:
            to.skip("utterance given twice", f"{path.name}:{number}")
        elif not text.strip():
            to.skip("line without text", f"{path.name}:{number}")
        else:
            found[name] = text.strip()
    yield from sorted(found.items(), key=lambda item: (len(item[0]), item[0]))
