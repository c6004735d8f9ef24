"""Readers: what of a sample is looked at on one visit (:mod:`~crossloom.data_pipelines.reader`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.dictionary import Switch, bind
from crossloom.data_pipelines.links import Links
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
from crossloom.data_pipelines.shards import Entry
from crossloom.data_pipelines.stretches import Length
from crossloom.data_pipelines.summary import Listed
from crossloom.data_pipelines.tags import Tags
from crossloom.data_pipelines.vectors import read_vector
from crossloom.units import BadSample, Passage, Sample


@dataclass(frozen=True, kw_only=True)
class Plain(Reader):
    """The members as they are; nothing is chosen, nothing is known."""

    kind: ClassVar[str] = "plain"

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """The members; ``txt``, where there is one, is the text."""
        sample: dict[str, Any] = dict(members)
        if "txt" in members:
            sample["text"] = members["txt"]
        return sample, {}


@dataclass(frozen=True, kw_only=True)
class Texts(Reader):
    """One of the sample's texts, in one language (captions, sentences).

    A language is drawn among those present, then one of its texts. ``all_texts`` makes every text
    of the languages an example of its own instead (evaluation).
    """

    kind: ClassVar[str] = "texts"
    of: str = "texts"
    """Field of the json: texts by language."""
    unnamed: str = ""
    """Language of texts whose language the shards do not say (img2dataset's ``txt``)."""
    languages: tuple[str, ...] = ()
    """Languages to draw from; empty for all."""
    weights: Mapping[str, float] | None = None
    """Relative weight of each language; equal when None."""
    all_texts: bool = False
    tags: Tags | None = None
    """Object tags, given as another text, ``"tags"``."""
    links: Links | None = None
    """Words that name a region refer to it."""
    copies: tuple[str, ...] = ()
    """Further members that hold the same passage, for streams of their own: what an encoder shows
    corrupted, a decoder says clean."""
    switch: Switch | None = None
    """Words give way to translations of a dictionary (code-switching)."""
    vectors: str = ""
    """Member (``npy``, ``[T, D]``) with a vector for each text, the n-th for the n-th text of any
    language: what a teacher makes of the sentence. Label ``vector``."""

    def __post_init__(self) -> None:
        if self.switch and self.links:
            raise ValueError("texts: links would not find switched words; leave one of them out")

    def items(self, entry: Entry) -> int:
        """One, or as many as there are texts."""
        return self._texts(entry.items) if self.all_texts else 1

    def total(self, listed: Listed) -> int | None:
        """The samples, or all their texts."""
        return self._texts(listed.items) if self.all_texts else listed.samples

    def _texts(self, items: Mapping[str, int]) -> int:
        return sum(
            n
            for k, n in items.items()
            if (code := k.removeprefix(f"{self.of}.")) != k
            and (not self.languages or (code or self.unnamed) in self.languages)
        )

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is one passage.

        Labels: ``language``, ``text``, ``references`` (all texts in that language), ``id`` (the
        json's), ``vector`` (float32 ``[D]``) where there are ``vectors``.
        """
        content = sample_json(members)
        texts = field_of(content, self.of)
        if self.unnamed and "" in texts:
            also = {self.unnamed: [*texts.get(self.unnamed, ()), *texts[""]]}
            texts = {code: some for code, some in texts.items() if code} | also
        found = on_hand(texts, self.languages, self.of)
        if self.all_texts:
            ordered = texts if not self.languages else {x: texts[x] for x in texts if x in found}
            flat = [(x, n) for x in ordered for n in range(len(ordered[x]))]
            language, number = flat[item]
        else:
            share = None
            if self.weights:
                share = np.array([self.weights.get(x, 0.0) for x in found])
                share = share / share.sum() if share.sum() > 0 else None
            language = found[int(rng.choice(len(found), p=share))]
            number = int(rng.integers(len(texts[language])))
        passage = Passage(language, text_of(texts[language][number], f"{self.of}.{language}"))
        if self.links:
            passage = self.links.named(passage, members, content)
        if self.switch:
            passage = self.switch(passage, rng)
        tags = self.tags.read(members, content) if self.tags else {}
        given = dict.fromkeys(("text", *self.copies), (passage,))
        labels = {
            "language": language,
            "text": passage.text,
            "references": texts[language],
            "id": str(content.get("id", "")),
        }
        if self.vectors:
            labels["vector"] = read_vector(members, self.vectors, number)
        return {**members, **given, **tags}, labels


@dataclass(frozen=True, kw_only=True)
class Blocks(Stretched):
    """Documents and sentences as blocks that fill the text stream's limit.

    Each stretch of a document (all of a short one) is an item, met once in an epoch. The stretches
    of a micro-batch are then joined by language and cut at the limit, so that nothing is lost and
    a batch has as many examples as its text fills, each as long as the limit but one for each
    language. The objectives must show the streams of this text alone, and score units.
    """

    kind: ClassVar[str] = "blocks"
    stretch: Length = 4096
    """Most characters of a document that are read at a time; the longer, the more of a block is
    one piece of text, and the more blocks of a micro-batch are neighbours."""
    copies: tuple[str, ...] = ()
    """Further members that hold the same stretch, as of :class:`Texts`; cut alike."""

    @property
    def joined(self) -> bool:
        """Always."""
        return True

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is one stretch, in one language; label ``language``."""
        passage = self.passage(members, item)
        labels = {"language": passage.language, "text": passage.text}
        return {**members, **dict.fromkeys(("text", *self.copies), (passage,))}, labels


def two_languages(direction: str) -> tuple[str, str]:
    """The languages of a direction, both empty if it is none; the first has no dash in its code.

    >>> two_languages("en-de"), two_languages("de")
    (('en', 'de'), ('', ''))
    """
    first, _, second = direction.partition("-")
    return (first, second) if first and second else ("", "")


@dataclass(frozen=True, kw_only=True)
class Parallel(Reader):
    """Two texts of one sample: translations in random order (TLM), or a text and a statement.

    Samples that list texts, but none in such languages as are asked for, are no examples.

    Labels: ``languages`` and ``texts``, of both, and ``id`` (the json's).
    """

    kind: ClassVar[str] = "parallel"
    of: str = "texts"
    """Field of the json: texts by language."""
    languages: tuple[str, ...] = ()
    """Languages of the texts; empty for all."""
    directions: tuple[str, ...] = ()
    """From which language into which, as ``en-de``; one of those that the sample has is drawn.
    Empty for any two languages."""
    second: str = ""
    """Field of the second passage: any of its entries, half of the time in the same language; where
    it is the first's field and language, another of the texts. Empty for the same text in another
    language."""
    apart: bool = False
    """Give the second passage as a text of its own, ``"second"``, for another stream."""
    mismatch: float = 0.0
    """Share of examples, 0..1, whose second passage is that of another sample of the micro-batch:
    for next-sentence prediction and translation-pair classification (objective ``match``)."""
    pivot: str = ""
    """Language that one of two translations must be in; empty for any."""
    dictionary: str = ""
    """File, relative to the recipe's ``data`` unless absolute, of a dictionary: a word and its
    translation share a fate where units are hidden by group."""

    def __post_init__(self) -> None:
        if not 0 <= self.mismatch <= 1:
            raise ValueError(f"mismatch must lie in 0..1, not {self.mismatch}")
        if self.mismatch and self.dictionary:
            raise ValueError("mismatched passages are no translations: leave out the dictionary")
        if self.mismatch and self.apart:
            raise ValueError("passages apart are mismatched by the view: leave mismatch at 0")
        if self.directions and (self.second or self.languages):
            raise ValueError("directions name the languages: leave languages and second empty")
        for direction in self.directions:
            if not all(two_languages(direction)):
                raise ValueError(f"directions: {direction!r} is not of the form en-de")

    @property
    def _chooses(self) -> bool:
        """Whether samples may be in other languages than are asked for."""
        return bool(self.languages or self.directions or self.pivot)

    def items(self, entry: Entry) -> int:
        """One; none of a sample whose texts are in other languages only."""
        start = f"{self.of}."
        listed = {k[len(start) :] for k, n in entry.items.items() if n and k.startswith(start)}
        # what lists nothing, or says no language, is read, to be told what is wrong with it
        return int(not self._chooses or not listed - {""} or self._has(listed))

    def total(self, listed: Listed) -> int | None:
        """The samples, where each is one: sums do not tell who has two languages."""
        return None if self._chooses else listed.samples

    def _has(self, listed: set[str]) -> bool:
        if self.directions:
            return any(set(two_languages(d)) <= listed for d in self.directions)
        found = listed.intersection(self.languages) if self.languages else listed
        if self.second:
            return bool(found)
        return len(found) > 1 and (not self.pivot or self.pivot in found)

    @property
    def mismatched(self) -> float:
        """The share ``mismatch``."""
        return self.mismatch

    def stand_in(
        self, own: Passage, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> Passage | None:
        """Of translations, a text in the same language: else the languages alone would tell."""
        if self.second:
            return super().stand_in(own, members, item, rng)
        texts = field_of(sample_json(members), self.of).get(own.language)
        if not texts:
            return None
        text = texts[int(rng.integers(len(texts)))]
        return Passage(own.language, text_of(text, f"{self.of}.{own.language}"))

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is two passages, or ``text`` and ``second`` one each."""
        content = sample_json(members)
        texts = field_of(content, self.of)
        if self.second:
            found = on_hand(texts, self.languages, self.of)
            one, other = self._two(content, found, rng)
        else:
            first, second = self._languages(texts, rng)
            number = int(rng.integers(min(len(texts[first]), len(texts[second]))))
            one, other = (
                Passage(x, text_of(texts[x][number], f"{self.of}.{x}")) for x in (first, second)
            )
            if self.dictionary:
                one, other = bind(one, other, self.dictionary)
        labels = {
            "languages": (one.language, other.language),
            "texts": (one.text, other.text),
            "id": str(content.get("id", "")),
        }
        return {**members, **self._given(one, other)}, labels

    def _languages(self, texts: Mapping[str, Any], rng: np.random.Generator) -> tuple[str, str]:
        """Two languages, in the order in which their texts are laid."""
        if self.directions:
            pairs = [two_languages(d) for d in self.directions]
            known = [p for p in pairs if texts.get(p[0]) and texts.get(p[1])]
            if not known:
                raise BadSample(
                    "missing language",
                    f"json {self.of!r} has {', '.join(texts)}; not {', '.join(self.directions)}",
                )
            return known[int(rng.integers(len(known)))]
        found = on_hand(texts, self.languages, self.of)
        pair = two_of(found, rng)
        if not self.pivot or self.pivot in pair:
            return pair
        if self.pivot not in found:
            raise BadSample("missing language", f"json {self.of!r} has no text in {self.pivot}")
        return (self.pivot, pair[1]) if rng.integers(2) == 0 else (pair[0], self.pivot)

    def _given(self, first: Passage, second: Passage) -> dict[str, tuple[Passage, ...]]:
        return {"text": (first,), "second": (second,)} if self.apart else {"text": (first, second)}

    def _two(
        self, content: Mapping[str, Any], found: list[str], rng: np.random.Generator
    ) -> tuple[Passage, Passage]:
        others = on_hand(field_of(content, self.second), self.languages, self.second)
        one = found[int(rng.integers(len(found)))]
        alike = one in others and rng.random() < 0.5
        other = one if alike else others[int(rng.integers(len(others)))]
        some, rest = content[self.of][one], content[self.second][other]
        number = int(rng.integers(len(some)))
        # of the texts that the first was drawn from, the second is another, where there is one
        alike = (self.second, other) == (self.of, one) and len(rest) > 1
        further = int(rng.integers(len(rest) - alike))
        further += int(alike and further >= number)
        return (
            Passage(one, text_of(some[number], f"{self.of}.{one}")),
            Passage(other, text_of(rest[further], f"{self.second}.{other}")),
        )
