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

from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    check_shares,
    need_folder,
)
from crossloom.data_pipelines.sources.moses import count_pairs, find_pairs, write_pairs
from crossloom.data_pipelines.write import SHARD_SIZE


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
    pairs = find_pairs(sorted(folder.iterdir()), folder)
    to = Conversion("tatoeba", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = count_pairs(pairs)
    with to:
        write_pairs(to, pairs, test, dev, digits=6)
    return to.report
