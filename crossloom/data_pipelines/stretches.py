"""Long documents in stretches: cut by characters alone, so that an index can count them.

How many units a stretch becomes depends on the vocabulary; how many stretches a document has must
not, or nothing could be counted without reading everything. So a document is cut into equal
stretches of at most so many characters, and what their units do not fill is joined afterwards
(:mod:`~crossloom.data_pipelines.join`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

#: Most characters of a stretch, but for the word that it ends in.
Length = Literal[1024, 4096, 16384, 65536]
LENGTHS: tuple[int, ...] = get_args(Length)

_REACH = 128  # characters looked through for the end of a word
_SPACE = re.compile(r"\s")


def further(texts: Sequence[object]) -> dict[int, int]:
    """By length, the stretches of a document beyond its first; lengths with none are left out.

    Args:
        texts: the document's paragraphs; anything but strings is passed over.
    """
    known = [len(t) for t in texts if isinstance(t, str)]
    total = sum(known) + max(0, len(known) - 1)
    return {length: (total - 1) // length for length in LENGTHS if total > length}


def stretches(texts: Sequence[str], length: int) -> list[str]:
    """A document cut into equal stretches between words; together they are all of it.

    Where no word ends for a long while (scripts without spaces), between characters.

    Args:
        texts: the document's paragraphs, which are joined by line ends.
        length: one of ``LENGTHS``.

    >>> [len(s) for s in stretches(["word " * 300], 1024)]
    [750, 750]
    """
    text = "\n".join(texts)
    count = further([text]).get(length, 0) + 1
    cuts = [0, *(_boundary(text, n * len(text) // count) for n in range(1, count)), len(text)]
    return [text[begin:end] for begin, end in pairwise(cuts)]


def _boundary(text: str, at: int) -> int:
    found = _SPACE.search(text, at, at + _REACH)
    if found:
        return found.end()
    last = min(at + _REACH, len(text))
    while at < last and unicodedata.category(text[at]).startswith("M"):  # belongs to what it marks
        at += 1
    return at
