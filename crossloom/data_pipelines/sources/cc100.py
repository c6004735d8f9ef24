"""CC-100: text of the web by language, for pre-training on one language at a time.

Reads one file a language, named by it; ``.xz`` as published, plain, gzip or bzip2 too. A line is a
paragraph, and an empty line ends a document::

    en.txt.xz               A dog waits by the gate.
                            Nobody comes.

                            Another document begins here.
    sw.txt.xz               zh-Hans.txt.xz   zh-Hant.txt.xz   bn_rom.txt.xz …

The input is a folder of such files, or one of them. Each document becomes a sample with a text for
each paragraph, ``{"texts": {"en": ["A dog waits by the gate.", "Nobody comes."]}}``: the reader
``blocks`` cuts it into examples as long as the model takes; with the reader ``texts`` a paragraph
is drawn at each visit, and with ``all_texts`` every one is an example.
``zh-Hans`` is ``zh``, ``zh-Hant`` ``zh-hant``; romanised text keeps its mark (``bn-rom``).

Documents are kept whole, up to ``longest`` characters (1,000,000): longer ones go on in further
samples, cut between paragraphs, whose ids end in ``#1``, ``#2``, …

Everything is ``train`` unless ``test`` or ``dev`` are set: shares of the documents, chosen by a
hash of their first paragraphs.

Skipped, and counted: paragraphs that are not UTF-8. Files are read once, line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, takewhile
from pathlib import Path

from crossloom.data_pipelines.sources.common import (
    Conversion,
    Progress,
    Report,
    SourceError,
    check_shares,
    need_folder,
)
from crossloom.data_pipelines.sources.documents import LONGEST, Documents
from crossloom.data_pipelines.sources.languages import locale_code
from crossloom.data_pipelines.sources.lines import (
    read_lines,
)
from crossloom.data_pipelines.write import SHARD_SIZE

_FILE = re.compile(r"(?P<language>[a-z]{2,3}([-_][A-Za-z]+)*)\.txt(\.(xz|gz|bz2))?")


def convert(
    input: Path | None,
    out: Path,
    *,
    test: float = 0.0,
    dev: float = 0.0,
    longest: int = LONGEST,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write ``train`` and, when asked for, ``dev`` and ``test``.

    Args:
        input: folder of the files, or one of them.
        out: folder for the shards.
        test: share of the documents held back for ``test``.
        dev: share held back for ``dev``.
        longest: most characters of a sample, unless a single paragraph has more.
        shard_size: samples a shard.
        overwrite: replace the shards of an earlier conversion.
        progress: called with (samples done, None): how many there will be is not known.

    Raises:
        SourceError: no such files, or one that is not whole.
    """
    check_shares(test=test, dev=dev)
    files = _files(input)
    to = Conversion("cc100", out, shard_size=shard_size, overwrite=overwrite, progress=progress)
    with to:
        for language, path in files.items():
            documents = Documents(to, language, test, dev, longest)
            for number, paragraphs in enumerate(_documents(path, to), start=1):
                documents.write(f"{language}/{number}", paragraphs)
    return to.report


def _files(input: Path | None) -> dict[str, Path]:
    """Files by language; of a plain and a packed one, the plain one."""
    if input is not None and Path(input).is_file():
        place, paths = Path(input), [Path(input)]
    else:
        place = need_folder(input, "cc100", "<language>.txt.xz")
        paths = sorted(place.iterdir())
    found: dict[str, Path] = {}
    for path in paths:
        if match := _FILE.fullmatch(path.name):
            language = locale_code(match["language"])
            if language in found and found[language].name != path.name.removesuffix(path.suffix):
                raise SourceError(
                    f"{path}: {found[language].name} is {language} as well; keep one of them, or "
                    "convert them to different folders"
                )
            found.setdefault(language, path)
    if not found:
        raise SourceError(f"{place}: no <language>.txt.xz (like en.txt.xz)")
    return found


def _documents(path: Path, to: Conversion) -> Iterator[Iterator[str]]:
    """The paragraphs of each document, to be read before the next document is asked for."""
    # a line that is not text is left out; it ends no document
    lines = (line.strip() for _, line in read_lines(path, to) if line is not None)
    for first in lines:
        if first:
            yield chain([first], takewhile(bool, lines))
