"""OPUS and other parallel corpora in the form of Moses: two text files a pair of languages.

Reads every ``<name>.<a>-<b>.<a>`` beside its ``<name>.<a>-<b>.<b>``, plain, gzip, xz or bzip2,
UTF-8, one sentence a line; line i of one translates line i of the other. They may lie at the top
of a zip, as OPUS ships them; the input is a folder of such files and zips, or one zip::

    Books.de-en.de          Der Hund wartet.
    Books.de-en.en          The dog is waiting.
    Books.de-en.align       0-0 1-1 2-2 3-3     (alignments, if you have made them)
    de-en.txt.zip           holds Books.de-en.de, Books.de-en.en, Books.de-en.xml, README, LICENSE
    europarl-v7.fr-en.fr.gz  europarl-v7.fr-en.en.gz

Each line becomes a sample of parallel text. What an aligner (fast_align, eflomal, awesome-align)
made of a pair's lines may lie beside them, as ``<name>.<a>-<b>.align``; its numbers count words
parted by spaces, so give it, and this source, the same lines. Regions are left out of the
languages' codes (``pt_BR`` is ``pt``), but for Chinese (``zh_TW`` is ``zh-hant``).

Everything is ``train`` unless ``test`` or ``dev`` are set: shares of the sentences, chosen by a
hash of the English one (of the second language's, in pairs without English), so that a sentence
which several pairs or corpora share is in the same split in all of them.

Skipped, and counted: sentences that are empty or not UTF-8 on one side; alignments that count words
which are not there. Two files of unequal
length, a file without its partner, and a pair that two zips hold are errors.

Files are read twice, first to compare their numbers of lines, and never held.
"""

from __future__ import annotations

from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_shares,
    need_folder,
)
from crossloom.data_pipelines.sources.lines import (
    Lines,
)
from crossloom.data_pipelines.sources.moses import (
    count_pairs,
    find_pairs,
    is_side,
    write_pairs,
    zip_members,
)
from crossloom.data_pipelines.write import SHARD_SIZE

_HOLDS = "pairs of <name>.<a>-<b>.<a> and <name>.<a>-<b>.<b>, or zips of them"


def convert(
    input: Path | None,
    out: Path,
    *,
    test: float = 0.0,
    dev: float = 0.0,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and, when asked for, ``dev`` and ``test``.

    Args:
        input: folder of the files, or a zip of them.
        out: folder for the shards.
        test: share of the sentences held back for ``test``.
        dev: share held back for ``dev``.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, lines in all).

    Raises:
        SourceError: no such files, one of a pair is missing or there twice, or they differ in
            length.
    """
    check_shares(test=test, dev=dev)
    pairs = find_pairs(_files(input), Path(input or ""))
    to = Conversion("opus", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    to.total = count_pairs(pairs)
    with to:
        write_pairs(to, pairs, test, dev, digits=9)
    return to.report


def _files(input: Path | None) -> list[Lines]:
    if input is not None and Path(input).is_file():
        return [*zip_members(Path(input))]
    folder = need_folder(input, "opus", _HOLDS)
    files: list[Lines] = []
    packed: dict[str, Lines] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix != ".zip":
            files.append(path)
            continue
        for member in filter(lambda m: is_side(m.name), zip_members(path)):
            if member.name in packed:
                raise SourceError(f"{member}: also in {packed[member.name]}; keep one of them")
            packed[member.name] = member
    return [*files, *packed.values()]
