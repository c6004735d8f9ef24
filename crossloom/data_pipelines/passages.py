"""Readers of passages that belong together: what follows in a document, and languages mixed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np

from crossloom.data_pipelines.alignment import Link, phrases, read_links, words
from crossloom.data_pipelines.reader import (
    Labels,
    Reader,
    Stretched,
    field_of,
    on_hand,
    sample_json,
    text_of,
    two_of,
)
from crossloom.data_pipelines.stretches import Length
from crossloom.modalities.scripts import CLOSING, STOPS, unspaced
from crossloom.units import BadSample, Passage, Sample

#: Where a sentence ends and another may begin: a line's end, or a stop and the spaces after it.
_BORDER = re.compile(rf"\n|[{re.escape(''.join(STOPS))}][{re.escape(CLOSING)}]*(\s+|(?<=[。！？]))")


@dataclass(frozen=True, kw_only=True)
class Following(Stretched):
    """Two passages of a document, the second going on where the first ends (BERT).

    Each stretch of a document (all of a short one) is an item, met once in an epoch, and parted
    where one of its sentences ends, drawn at each visit. With ``mismatch``, for next-sentence
    prediction, the second passage is another document's, of the same language (Devlin et al. 2019,
    section 3.1).
    """

    kind: ClassVar[str] = "following"
    stretch: Length = 1024
    """Most characters of both passages: choose as many as the stream's limit holds, else the longer
    passage loses its end."""
    mismatch: float = 0.0
    """Share of examples, 0..1, whose second passage is of another sample of the micro-batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.mismatch <= 1:
            raise ValueError(f"mismatch must lie in 0..1, not {self.mismatch}")

    @property
    def mismatched(self) -> float:
        """The share ``mismatch``."""
        return self.mismatch

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is two passages; label ``language``.

        Raises:
            BadSample: "empty text": there is one word only.
        """
        found = self.passage(members, item)
        cuts = _cuts(found.text)
        if not cuts:
            raise BadSample("empty text", f"one word, {found.text[:40]!r}, makes no two passages")
        at = cuts[int(rng.integers(len(cuts)))]
        sides = (found.text[:at], found.text[at:])
        passages = tuple(Passage(found.language, side.strip()) for side in sides)
        return {**members, "text": passages}, {"language": found.language}

    def stand_in(
        self, own: Passage, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> Passage | None:
        """The other's second passage, if it is of the same language."""
        second: Passage = self.read(members, item, rng)[0]["text"][1]
        return second if second.language == own.language else None


def _cuts(text: str) -> list[int]:
    """Where a text may be parted: between sentences, or between words if it is one sentence."""
    for borders in ((m.end() for m in _BORDER.finditer(text)), (a for a, _ in words(text))):
        if found := [at for at in borders if text[:at].strip() and text[at:].strip()]:
            return found
    return []


@dataclass(frozen=True, kw_only=True)
class Alternating(Reader):
    """Sentences of a translated document, taken in turn from two languages (Unicoder).

    Text i of each language translates text i of the others. Of two languages drawn, one gives the
    texts of even number, the other those of odd number. The texts of a micro-batch are then joined
    by pairs of languages and cut at the stream's limit, as ``blocks`` does: samples of a sentence,
    each in a language drawn, make documents of many.
    """

    kind: ClassVar[str] = "alternating"
    of: str = "texts"
    """Field of the json: texts by language."""
    languages: tuple[str, ...] = ()
    """Languages to draw from; empty for all."""

    @property
    def joined(self) -> bool:
        """Always."""
        return True

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is one passage in two languages; label ``language``: both, ``de-en``."""
        texts = field_of(sample_json(members), self.of)
        pair = two_of(on_hand(texts, self.languages, self.of), rng)
        count = min(len(texts[code]) for code in pair)
        text, switched = "", list[tuple[int, int, str]]()
        for number in range(count):
            code = pair[number % 2]
            begin = len(text) + bool(text)
            text = f"{text} " if text else ""
            text += text_of(texts[code][number], f"{self.of}.{code}")
            if number % 2:
                switched.append((begin, len(text), code))
        passage = Passage(pair[0], text, switched=tuple(switched))
        return {**members, "text": (passage,)}, {"language": "-".join(sorted(pair)), "text": text}


@dataclass(frozen=True, kw_only=True)
class Switched(Reader):
    """A text, phrases of which are replaced by their translations (ALM, Yang et al. 2020).

    Which words translate which the json's ``alignments`` say
    (:mod:`~crossloom.data_pipelines.alignment`). The phrases replaced are the smallest that are
    consistent with them, in random order; the sentence keeps its own.
    """

    kind: ClassVar[str] = "switched"
    of: str = "texts"
    """Field of the json: texts by language."""
    languages: tuple[str, ...] = ()
    """Languages to draw from; empty for all."""
    most: float = 0.6
    """Largest share of the words that may be replaced, 0..1 (ALM: 0.3). Each visit draws a share up
    to it, and replaces phrases until it is reached."""
    longest: int = 0
    """Most words of a phrase that is replaced, and of its translation (ALM: 4); 0 for any."""
    left: float = 0.0
    """Share of visits, 0..1, at which the sentence stays as it is (ALM: 0.2)."""

    def __post_init__(self) -> None:
        if not 0 < self.most <= 1:
            raise ValueError(f"most is a share of words above 0, to 1, not {self.most}")
        if not 0 <= self.left < 1 or self.longest < 0:
            raise ValueError(
                "left is a share of visits from 0 to below 1, longest a number of words: "
                f"{self.left}, {self.longest}"
            )

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is one passage; labels ``language`` (the sentence's), ``text``.

        Raises:
            BadSample: no two languages are aligned, or not as they should be.
        """
        content = sample_json(members)
        texts, lines = field_of(content, self.of), field_of(content, "alignments")
        found = on_hand(texts, self.languages, self.of)
        pairs = [pair for pair in permutations(found, 2) if "-".join(pair) in lines]
        if not pairs:
            raise BadSample("missing language", f"alignments of {', '.join(lines)}: none is read")
        pair = pairs[int(rng.integers(len(pairs)))]
        aligned = lines["-".join(pair)]
        number = int(rng.integers(len(aligned)))
        sides = [Passage(x, text_of(texts[x][number], f"{self.of}.{x}")) for x in pair]
        links = read_links(aligned[number], *(len(words(side.text)) for side in sides))
        if rng.random() < 0.5:  # either may be the sentence
            sides, links = sides[::-1], [(j, i) for i, j in links]
        if self.left and rng.random() < self.left:
            links = []
        passage = switch(sides[0], sides[1], links, self.most, rng, longest=self.longest)
        labels = {"language": passage.language, "text": passage.text}
        return {**members, "text": (passage,)}, labels


def switch(
    passage: Passage,
    translation: Passage,
    links: list[Link],
    most: float,
    rng: np.random.Generator,
    *,
    longest: int = 0,
) -> Passage:
    """The passage with some phrases in the translation's words and language.

    Args:
        passage: the sentence.
        translation: of it.
        links: between their words.
        most: largest share of the passage's words to be replaced.
        rng: draws how many are wanted, and which phrases.
        longest: most words of a phrase on either side; 0 for any.
    """
    own, other = words(passage.text), words(translation.text)
    found = [x for x in phrases(links) if not longest or all(b - a <= longest for a, b in x)]
    wanted, replaced = rng.uniform(0, most) * len(own), 0
    chosen = []
    for number in rng.permutation(len(found)):
        (first, last), _ = found[number]
        if replaced < wanted and replaced + last - first <= most * len(own):
            chosen.append(found[number])
            replaced += last - first
    text, at, switched = "", 0, list[tuple[int, int, str]]()
    for (first, last), (begin, end) in sorted(chosen):
        text = _apart(text, passage.text[at : own[first][0]])
        said = translation.text[other[begin][0] : other[end - 1][1]]
        text = _apart(text, said)
        switched.append((len(text) - len(said), len(text), translation.language))
        at = own[last - 1][1]
    text = _apart(text, passage.text[at:])
    return Passage(passage.language, text, switched=tuple(switched))


def _apart(text: str, more: str) -> str:
    """Both, with a space between letters that would else run into each other.

    Scripts without spaces run on among themselves only.
    """
    if not text or not more:
        return text + more
    last, first = text[-1], more[0]
    run_in = _letter(last) and _letter(first) and not (unspaced(last) and unspaced(first))
    return f"{text} {more}" if run_in else text + more


def _letter(character: str) -> bool:
    return unspaced(character) or unicodedata.category(character)[0] not in "PSZC"
