"""A folder of recordings by label: commands, sounds, speakers.

Reads WAV, and FLAC, Ogg and MP3 too::

    yes/0a7c2a8d_nohash_0.wav     no/0ab3b47d_nohash_0.wav     left turn/a.flac
    validation_list.txt           optional: names (yes/0a7c2a8d_nohash_0.wav) of dev, one a line
    testing_list.txt              optional: names of test

Each recording becomes a sample: the sound as it is, and ``label``, the name of its folder. All
labels are listed in ``labels.txt``, one a line. The layout is that of Speech Commands, whose lists
are followed; without lists, ``dev`` and ``test`` (10 % each) are held back by a hash of the
recording's name up to ``_nohash_``, so that a speaker's recordings stay together where names are
made so.

Skipped, and counted: folders whose names begin with ``_`` (``_background_noise_``), other files,
files that hold something else than sound, and names on a list that are not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    answer_list,
    check_shares,
    draw_split,
    need_folder,
    read_lines,
)
from crossloom.data_pipelines.sources.sounds import SUFFIXES, read_sound
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}


def convert(
    input: Path | None,
    out: Path,
    *,
    dev: float = 0.1,
    test: float = 0.1,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``dev`` and ``test``.

    Args:
        input: folder with a folder for each label.
        out: folder for the shards.
        dev: without lists, share of the recordings held back for ``dev``.
        test: without lists, share held back for ``test``.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, recordings in all).

    Raises:
        SourceError: no such folders.
    """
    folder = need_folder(input, "wav-folder", "<label>/*.wav")
    check_shares(dev=dev, test=test)
    places = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] not in "._")
    total = sum(1 for place in places for _ in _sounds(place))
    if not total:
        raise SourceError(f"{folder}: no <label>/*.wav below it")
    to = Conversion(
        "wav-folder", out, shard_size=shard_size, overwrite=overwrite, progress=progress
    )
    to.total = total
    labels: Counter[str] = Counter()
    with to:
        listed = _listed(folder, to)
        for place in sorted(p for p in folder.iterdir() if p.is_dir() and p not in places):
            to.skip("folder that is no label", place.name)
        for place in places:
            for path in sorted(p for p in place.iterdir() if p.suffix.lower() not in SUFFIXES):
                to.skip("file that is no sound", f"{place.name}/{path.name}")
            for number, path in enumerate(_sounds(place), start=1):
                name = f"{place.name}/{path.name}"
                if listed is None:
                    split = draw_split("wav-folder", path.stem.partition("_nohash_")[0], test, dev)
                else:
                    split = listed.pop(name, "train")
                if sound := read_sound(path, to, name):
                    content = {"id": name, "label": place.name}
                    key = f"{sanitise(place.name)}-{number:06d}"
                    to.write(split, key, content, sound=sound, numbered=True)
                    labels[place.name] += 1
        for name in listed or ():
            to.skip("name on a list, but no such recording", name)
        to.add_file("labels.txt", answer_list(sorted(labels)))
    return to.report


def _sounds(place: Path) -> Iterator[Path]:
    yield from sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())


def _listed(folder: Path, to: Conversion) -> dict[str, str] | None:
    """Splits by name, if there is a list."""
    files = {split: folder / name for split, name in _LISTS.items() if (folder / name).is_file()}
    if not files:
        return None
    return {
        line.strip(): split
        for split, path in files.items()
        for _, line in read_lines(path, to)
        if line and line.strip()
    }
