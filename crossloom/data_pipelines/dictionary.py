"""Bilingual dictionaries: words of a text replaced by translations, or bound to them.

A file holds lines of a word, a language and translations, parted by tabs (``dog  de  Hund``, ``dog
fr  chien  chienne``); a word may have several lines. MUSE and PanLex hold the same in other forms:
see docs/training.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from crossloom.modalities.scripts import unspaced
from crossloom.units import Passage

#: Of each word, in lower case, its translations by language.
Table = Mapping[str, Mapping[str, tuple[str, ...]]]
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Code-switching: words of a text in one language give way to translations (M3P, section 3.3).

    Each word that the dictionary has is replaced with probability ``words``, by a random
    translation into a random one of the languages it has, each anew; the rest of the text stays
    (Ni et al. 2021; microsoft/M3P: ``src/data/clag.py``, ``Clager.clag``). Unlike there, words are
    found beside punctuation, and in any case. Texts in other languages are left alone.
    """

    dictionary: str
    """File, relative to the recipe's ``data`` unless absolute."""
    language: str = "en"
    """Of the dictionary's words."""
    into: tuple[str, ...] = ()
    """Languages of the translations; empty for all that the dictionary has."""
    texts: float = 0.8
    """Share of texts that are switched, 0..1 (``sent_ratio``)."""
    words: float = 0.8
    """Chance of each word of those, 0..1 (``word_ratio``)."""

    def __post_init__(self) -> None:
        if not (0 <= self.texts <= 1 and 0 <= self.words <= 1):
            raise ValueError(f"switch: texts {self.texts} and words {self.words} must lie in 0..1")

    def __call__(self, passage: Passage, rng: np.random.Generator) -> Passage:
        """The passage, perhaps with words replaced; it keeps its language."""
        if passage.language != self.language or rng.random() >= self.texts:
            return passage
        table = load(self.dictionary)

        def other(word: re.Match[str]) -> str:
            known = table.get(word[0].casefold(), {})
            offer = [x for x in known if not self.into or x in self.into]
            if not offer or rng.random() >= self.words:
                return word[0]
            choice = known[offer[int(rng.integers(len(offer)))]]
            return choice[int(rng.integers(len(choice)))]

        return replace(passage, text=_WORD.sub(other, passage.text))


def bind(first: Passage, second: Passage, dictionary: str) -> tuple[Passage, Passage]:
    """Two translations, each word of one bound to the word of the other that translates it.

    Words are taken in their order; each finds the first place of a translation that no other word
    has taken, longer translations before shorter ones. What finds none is bound to nothing.

    Args:
        first, second: either may be in the dictionary's language.
        dictionary: file.
    """
    table = load(dictionary)
    pairs = _matches(first, second, table)
    if pairs:
        return _numbered(first, [a for a, _ in pairs]), _numbered(second, [b for _, b in pairs])
    pairs = _matches(second, first, table)
    return _numbered(first, [b for _, b in pairs]), _numbered(second, [a for a, _ in pairs])


def _numbered(passage: Passage, spans: list[tuple[int, int]]) -> Passage:
    return replace(passage, bound=tuple((*span, n) for n, span in enumerate(spans)))


def _matches(
    source: Passage, target: Passage, table: Table
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where words of the source and their translations in the target stand."""
    taken = [False] * len(target.text)
    found = []
    for word in _WORD.finditer(source.text):
        offer = table.get(word[0].casefold(), {}).get(target.language, ())
        for first, last in _places(target.text, offer):
            if not any(taken[first:last]):
                taken[first:last] = [True] * (last - first)
                found.append((word.span(), (first, last)))
                break
    return found


def _places(text: str, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where words stand in a text, as whole words where the script has spaces."""
    for word in sorted(words, key=len, reverse=True):
        before = "" if unspaced(word[0]) else r"(?<!\w)"
        after = "" if unspaced(word[-1]) else r"(?!\w)"
        for place in re.finditer(before + re.escape(word) + after, text, re.I):
            yield place.span()


@lru_cache(maxsize=8)
def load(path: str) -> Table:
    """The table of a file, read once per process.

    Raises:
        ValueError: it cannot be read, or a line is not word, language, translations.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: the dictionary cannot be read ({error}); `crossloom shards make world` "
            "writes one, docs/training.md tells how to make others"
        ) from None
    table: dict[str, dict[str, tuple[str, ...]]] = {}
    for number, line in enumerate(lines, 1):
        word, language, *rest = (x.strip() for x in (*line.split("\t"), "", ""))
        translations = [x for x in rest if x]
        if not (word and language and translations):
            raise ValueError(
                f"{path}: line {number} is {line!r}; it should be a word, a language and "
                "translations, parted by tabs"
            )
        known = table.setdefault(word.casefold(), {})
        known[language] = tuple(dict.fromkeys((*known.get(language, ()), *translations)))
    return table
