"""Word alignments of translations: words, links between them, phrases that translate each other.

A sample of parallel text may say in ``alignments`` which words of a text translate which of another
language's, in the form of Pharaoh, a line for each text::

    {"texts": {"en": ["a red star"], "de": ["ein roter Stern"]},
     "alignments": {"en-de": ["0-0 1-1 2-2"]}}

Numbers count the words that :func:`words` finds, whatever a vocabulary makes of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from crossloom.modalities.scripts import unspaced
from crossloom.units import BadSample

#: First and one past the last: characters of a text, or words.
Span = tuple[int, int]
#: Numbers of two words that translate each other.
Link = tuple[int, int]


def words(text: str) -> list[Span]:
    """The characters of each word.

    Spaces part words; punctuation and symbols are words of their own, and so are characters of
    scripts without spaces (with the marks that follow them).

    >>> [text[a:b] for text in ["Es ist rot.", "红色的 star"] for a, b in words(text)]
    ['Es', 'ist', 'rot', '.', '红', '色', '的', 'star']
    """
    found: list[Span] = []
    open_ = False
    for at, character in enumerate(text):
        kind = unicodedata.category(character)
        if character.isspace():
            open_ = False
        elif kind[0] == "M" and found and found[-1][1] == at:
            found[-1] = (found[-1][0], at + 1)  # belongs to what it marks
        elif kind[0] in "PS" or unspaced(character):
            found.append((at, at + 1))
            open_ = False
        elif open_:
            found[-1] = (found[-1][0], at + 1)
        else:
            found.append((at, at + 1))
            open_ = True
    return found


def read_links(line: str, first: int, second: int) -> list[Link]:
    """The links of a line in the form of Pharaoh, ``0-0 1-2``.

    Args:
        line: as fast_align, eflomal or awesome-align write it.
        first, second: how many words there are on either side.

    Raises:
        BadSample: it is not of that form, or counts words that are not there.
    """
    links = []
    for part in line.split():
        one, dash, other = part.partition("-")
        if not (dash and one.isdecimal() and other.isdecimal()):
            raise BadSample("undecodable", f"alignments: {part!r} is no pair of numbers like 0-1")
        links.append((int(one), int(other)))
        if links[-1][0] >= first or links[-1][1] >= second:
            raise BadSample("wrong shape", f"alignments: {part} of {first} and {second} words")
    return links


def write_links(links: Iterable[Link]) -> str:
    """The form of Pharaoh."""
    return " ".join(f"{i}-{j}" for i, j in sorted(set(links)))


def phrases(links: Iterable[Link]) -> list[tuple[Span, Span]]:
    """The smallest phrases that translate each other, in the order of the first side.

    A pair of phrases is consistent when it has a link, and no word of either is linked to a word
    outside the other (Koehn et al. 2003, section 3.1). Those in which no other lies do not overlap
    on either side, and they begin and end with words that are linked.
    """
    every = sorted(set(links))
    found = {_closed(link, every) for link in every}
    return sorted(p for p in found if not any(q != p and _lies_in(q, p) for q in found))


def _closed(link: Link, links: Sequence[Link]) -> tuple[Span, Span]:
    """The smallest consistent phrases around a link."""
    (i, j), rows, columns = link, (0, 0), (0, 0)
    wider = (i, i + 1), (j, j + 1)
    while wider != (rows, columns):
        rows, columns = wider
        inside = [
            (i, j) for i, j in links if rows[0] <= i < rows[1] or columns[0] <= j < columns[1]
        ]
        wider = tuple((min(side), max(side) + 1) for side in zip(*inside, strict=True))  # type: ignore[assignment]
    return rows, columns


def _lies_in(inner: tuple[Span, Span], outer: tuple[Span, Span]) -> bool:
    return all(b[0] <= a[0] and a[1] <= b[1] for a, b in zip(inner, outer, strict=True))


def by_spaces(line: str, first: str, second: str) -> str:
    """A line that counts words parted by spaces, as aligners do, as one that counts :func:`words`.

    Args:
        line: in the form of Pharaoh.
        first, second: the texts as the aligner read them.

    Raises:
        BadSample: as :func:`read_links` does.
    """
    parts = [_inside(text) for text in (first, second)]
    links = read_links(line, *map(len, parts))
    return write_links((m, n) for i, j in links for m in parts[0][i] for n in parts[1][j])


def _inside(text: str) -> list[list[int]]:
    """The numbers of the words in each part of a text between spaces."""
    found: list[list[int]] = []
    last = -1
    for number, (begin, end) in enumerate(words(text)):
        if begin != last or text[begin - 1 : begin].isspace() or not found:
            found.append([])
        found[-1].append(number)
        last = end
    return found


def linked(texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[Link]:
    """Links of all words of phrases that translate each other.

    Args:
        texts: of two languages.
        spans: of each, the characters of its phrases, in one order.
    """
    inside = [
        [[n for n, (a, b) in enumerate(words(text)) if a < end and begin < b] for begin, end in own]
        for text, own in zip(texts, spans, strict=True)
    ]
    return [(i, j) for one, other in zip(*inside, strict=True) for i in one for j in other]
