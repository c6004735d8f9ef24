"""Tatoeba and other sentence pairs: two text files a pair of languages.

Reads every ``<name>.<a>-<b>.<a>`` beside its ``<name>.<a>-<b>.<b>``, plain or gzip, UTF-8, one
sentence a line; line i of one translates line i of the other. The Tatoeba test sentences of LASER
have this form, and so have the plain-text ("Moses") files of OPUS::

    tatoeba.deu-eng.deu     Das Haus ist alt.
    tatoeba.deu-eng.eng     The house is old.
    Tatoeba.de-en.de        …

Each line becomes a sample of parallel text. Codes of ISO 639-3 become two-letter codes where there
is one (:mod:`crossloom.data_pipelines.sources.languages`).

About ``test`` (10 %) of each pair is held back, chosen by a hash of the English sentence (of the
second language's, in pairs without English): a sentence that occurs in several pairs is in the
same split in all of them.

Skipped, and counted: sentences that are empty or not UTF-8 on one side. Two files of unequal
length, and a file without its partner, are errors.
"""

from __future__ import annotations

import re
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_line_counts,
    check_shares,
    need_folder,
    parallel_lines,
    stable_fraction,
    write_parallel,
)
from crossloom.data_pipelines.sources.languages import language_code
from crossloom.data_pipelines.write import SHARD_SIZE, sanitise

_FILE = re.compile(
    r"(?P<pair>.+\.(?P<a>[A-Za-z_]+)-(?P<b>[A-Za-z_]+))\.(?P<side>[A-Za-z_]+)(\.gz)?"
)


def convert(
    input: Path | None,
    out: Path,
    *,
    test: float = 0.1,
    dev: float = 0.0,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train``, ``test`` and, when asked for, ``dev``.

    Args:
        input: folder of the files.
        out: folder for the shards.
        test: share of the sentences held back for ``test``.
        dev: share held back for ``dev``.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, samples in all).

    Raises:
        SourceError: no such files, one of a pair is missing, or they differ in length.
    """
    folder = need_folder(input, "tatoeba", "pairs of <name>.<a>-<b>.<a> and <name>.<a>-<b>.<b>")
    check_shares(test=test, dev=dev)
    pairs = _pairs(folder)
    to = Conversion("tatoeba", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = sum(check_line_counts(files.values()) for files in pairs.values())
    with to:
        for pair, files in pairs.items():
            codes = {side: language_code(side) for side in files}
            pivot = next((side for side in files if codes[side] == "en"), [*files][1])
            for number, texts in parallel_lines(files, to):
                names = {codes[x]: f"{path.name}:{number}" for x, path in files.items()}
                share = stable_fraction("tatoeba", " ".join((texts[pivot] or "").split()))
                split = "test" if share < test else "dev" if share < test + dev else "train"
                translations = {codes[side]: text for side, text in texts.items()}
                write_parallel(to, split, f"{sanitise(pair)}-{number:06d}", translations, names)
    return to.report


def _pairs(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by pair and language."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match and match["side"] in (match["a"], match["b"]):
            sides = found.setdefault(match["pair"], {})
            sides.setdefault(match["side"], path)
    for pair, sides in found.items():
        if len(sides) < 2:
            have = next(iter(sides.values()))
            raise SourceError(f"{have}: the other language of {pair} is missing beside it")
        if len({language_code(side) for side in sides}) < 2:
            raise SourceError(f"{folder / pair}: both sides are {language_code(next(iter(sides)))}")
    if not found:
        raise SourceError(f"{folder}: no <name>.<a>-<b>.<a> (like tatoeba.deu-eng.deu) in it")
    # a pair's English file sorts anywhere: the name's order decides
    return {pair: _in_order(pair, sides) for pair, sides in found.items()}


def _in_order(pair: str, sides: dict[str, Path]) -> dict[str, Path]:
    first = pair.rpartition(".")[2].partition("-")[0]
    return dict(sorted(sides.items(), key=lambda item: item[0] != first))
