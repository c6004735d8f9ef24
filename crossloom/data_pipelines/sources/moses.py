"""Parallel text in the form of Moses: two files a pair of languages, line i of both says the same.

What the sources ``tatoeba`` and ``opus`` share. A pair is ``<name>.<a>-<b>.<a>`` beside
``<name>.<a>-<b>.<b>``, plain or packed, in a folder or at the top of a zip. Beside it may lie
``<name>.<a>-<b>.align``, what an aligner made of it: a line of ``0-0 1-2`` for each pair of lines,
counting their words as parted by spaces.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from crossloom.data_pipelines.alignment import by_spaces
from crossloom.data_pipelines.sources.common import (
    Conversion,
    SourceError,
    draw_split,
)
from crossloom.data_pipelines.sources.languages import locale_code
from crossloom.data_pipelines.sources.lines import (
    Lines,
    check_line_counts,
    parallel_lines,
    write_parallel,
)
from crossloom.data_pipelines.write import sanitise
from crossloom.units import BadSample

#: Both files of a pair, by their language in the file's name, in the order of the pair's name; and
#: under ``ALIGNED`` their alignments, if there are any.
Sides = dict[str, Lines]

ALIGNED = "align"
_FILE = re.compile(
    r"(?P<pair>.+\.(?P<a>[A-Za-z_]+)-(?P<b>[A-Za-z_]+))\.(?P<side>[A-Za-z_]+)(\.(gz|xz|bz2))?"
)
_ALIGNED = re.compile(rf"(?P<pair>.+)\.{ALIGNED}(\.(gz|xz|bz2))?")


def is_side(name: str) -> bool:
    """Whether a file is named like one side of a pair."""
    match = _FILE.fullmatch(name)
    return bool(match and match["side"] in (match["a"], match["b"]))


def zip_members(path: Path) -> list[zipfile.Path]:
    """The files at the top of a zip, by name.

    Raises:
        SourceError: it is not whole.
    """
    try:
        members = [p for p in zipfile.Path(path).iterdir() if p.is_file()]
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{path}: not whole zip data ({error}); download it again") from None
    return sorted(members, key=lambda p: p.name)


def find_pairs(files: Iterable[Lines], place: Path) -> dict[str, Sides]:
    """The pairs among files, by name; of files that are there plain and packed, the first.

    Raises:
        SourceError: there are none, one of a pair is missing, or both are of one language.
    """
    found: dict[str, Sides] = {}
    files = list(files)
    for path in files:
        match = _FILE.fullmatch(path.name)
        if match and is_side(path.name):
            found.setdefault(match["pair"], {}).setdefault(match["side"], path)
    for pair, sides in found.items():
        if len(sides) < 2:
            have = next(iter(sides.values()))
            raise SourceError(f"{have}: the other language of {pair} is missing beside it")
        if len({locale_code(side) for side in sides}) < 2:
            only = locale_code(next(iter(sides)))
            raise SourceError(f"{place}: both sides of {pair} are {only}; take the pair out")
    if not found:
        raise SourceError(f"{place}: no <name>.<a>-<b>.<a> (like tatoeba.deu-eng.deu) in it")
    # a pair's English file sorts anywhere: the name's order decides
    pairs = {pair: _in_order(pair, sides) for pair, sides in found.items()}
    for path in files:
        if (match := _ALIGNED.fullmatch(path.name)) and match["pair"] in pairs:
            pairs[match["pair"]].setdefault(ALIGNED, path)
    return pairs


def _in_order(pair: str, sides: Sides) -> Sides:
    first = pair.rpartition(".")[2].partition("-")[0]
    return dict(sorted(sides.items(), key=lambda item: item[0] != first))


def count_pairs(pairs: dict[str, Sides]) -> int:
    """Lines of all pairs together.

    Raises:
        SourceError: the files of a pair differ in their number of lines.
    """
    return sum(check_line_counts(sides.values()) for sides in pairs.values())


def write_pairs(
    to: Conversion, pairs: dict[str, Sides], test: float, dev: float, digits: int
) -> None:
    """Write every line of counted pairs, and draw splits by the English (or second) sentence.

    The draw is the same for every source and pair: a sentence that is held back somewhere is held
    back everywhere where the shares are the same.
    """
    for pair, sides in pairs.items():
        codes = {side: locale_code(side) for side in sides if side != ALIGNED}
        pivot = next((side for side in codes if codes[side] == "en"), [*codes][1])
        stem = sanitise(pair)
        for number, texts in parallel_lines(sides, to, checked=True):
            names = {codes[x]: f"{sides[x].name}:{number}" for x in codes}
            split = draw_split("tatoeba", " ".join((texts[pivot] or "").split()), test, dev)
            translations = {codes[side]: texts[side] for side in codes}
            key = f"{stem}-{number:0{digits}d}"
            links = _links(to, texts.get(ALIGNED), translations, f"{pair}.{ALIGNED}:{number}")
            write_parallel(to, split, key, translations, names, links=links, numbered=True)


def _links(
    to: Conversion, line: str | None, texts: Mapping[str, str | None], name: str
) -> dict[str, list[str]]:
    """The field ``alignments`` of a pair; none, and counted, where the line does not fit."""
    (a, one), (b, other) = texts.items()
    if line is None or one is None or other is None:
        return {}
    try:
        return {f"{a}-{b}": [by_spaces(line, one, other)]}
    except BadSample:
        to.skip("alignment that does not fit its sentences", name)
        return {}
