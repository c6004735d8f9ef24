"""Readers of what samples are annotated with: questions, pairs, expressions, a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.links import Links, picture_size
from crossloom.data_pipelines.reader import (
    Labels,
    Reader,
    field_of,
    on_hand,
    sample_json,
    text_of,
)
from crossloom.data_pipelines.shards import Entry
from crossloom.data_pipelines.summary import Listed
from crossloom.data_pipelines.tags import Tags
from crossloom.units import BadSample, Passage, Sample


def _check_listed(reader: Questions | Pairs) -> None:
    if reader.all_languages and not reader.languages:
        raise ValueError(f"{reader.kind}: all_languages needs the languages to be listed")


def _times(reader: Questions | Pairs, count: int) -> int:
    return count * (len(reader.languages) if reader.all_languages else 1)


def _asked(reader: Questions | Pairs, item: int) -> tuple[int, tuple[str, ...]]:
    """Which question or pair an item is, and in which languages."""
    if not reader.all_languages:
        return item, reader.languages
    item, number = divmod(item, len(reader.languages))
    return item, (reader.languages[number],)


@dataclass(frozen=True, kw_only=True)
class Questions(Reader):
    """Each question on the sample is an example; a language is drawn when several are given."""

    kind: ClassVar[str] = "questions"
    languages: tuple[str, ...] = ()
    all_languages: bool = False
    """Every language of a question is an example of its own (evaluation); ``languages`` must be
    set."""
    unanswered: bool = False
    """Read questions without answers too: of tests whose answers are kept back."""
    tags: Tags | None = None
    """Object tags, given as another text, ``"tags"``."""
    links: Links | None = None
    """Words that name a region refer to it."""
    answer: str = ""
    """Member that holds the best answer, as a text of its own: ``tags`` where a question and its
    answer are read as a caption and its tags are (Oscar+)."""

    def __post_init__(self) -> None:
        if self.tags and self.answer == "tags":
            raise ValueError("questions: tags and answer would be one text; leave one of them out")
        _check_listed(self)

    def items(self, entry: Entry) -> int:
        """The number of questions (times languages)."""
        return _times(self, entry.items.get("questions", 0))

    def total(self, listed: Listed) -> int | None:
        """The number of questions (times languages)."""
        return _times(self, listed.items.get("questions", 0))

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is the question; labels ``answers`` (scores by answer), ``kind``, ``id``."""
        content = sample_json(members)
        item, wanted = _asked(self, item)
        question = field_of(content, "questions")[item]
        found = on_hand(field_of(question, "text"), wanted, "questions.text")
        language = found[int(rng.integers(len(found)))]
        passage = Passage(language, text_of(question["text"][language], "questions.text"))
        if self.links:
            passage = self.links.named(passage, members, content)
        labels = {
            "answers": question.get("answers", {})
            if self.unanswered
            else field_of(question, "answers"),
            "id": str(question.get("id", "")),
            "kind": question.get("kind", ""),
            "language": language,
            "text": passage.text,
        }
        others = self.tags.read(members, content) if self.tags else {}
        if self.answer:
            answers = field_of(question, "answers")
            best = text_of(max(answers, key=answers.__getitem__), "questions.answers")
            others = {**others, self.answer: (Passage(language, best),)}
        return {**members, "text": (passage,), **others}, labels


@dataclass(frozen=True, kw_only=True)
class Pairs(Reader):
    """Each premise with its hypothesis is an example; both in one language, drawn if several.

    A pair without premise has the sample's image for it: the hypothesis is the text.
    """

    kind: ClassVar[str] = "pairs"
    languages: tuple[str, ...] = ()
    all_languages: bool = False
    """Every language of a pair is an example of its own (evaluation); ``languages`` must be set."""
    read_as: str = ""
    """Language that all texts are in, where it is not the one they stand under: pairs that were
    translated into English stand under the language that they come from."""
    tags: Tags | None = None
    """Object tags, given as another text, ``"tags"``."""
    two: bool = False
    """Samples have two pictures, members ``0.…`` and ``1.…``: those of the first are given without
    the number too, for the stream by which other sets' pictures are read."""

    def __post_init__(self) -> None:
        _check_listed(self)

    def items(self, entry: Entry) -> int:
        """The number of pairs (times languages)."""
        return _times(self, entry.items.get("pairs", 0))

    def total(self, listed: Listed) -> int | None:
        """The number of pairs (times languages)."""
        return _times(self, listed.items.get("pairs", 0))

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is premise (if any) and hypothesis; labels ``label``, ``language``, ``id``."""
        content = sample_json(members)
        pairs = field_of(content, "pairs")
        item, wanted = _asked(self, item)
        found = on_hand(field_of(pairs[item], "hypothesis"), wanted, "pairs.hypothesis")
        language = found[int(rng.integers(len(found)))]
        sides = ("premise", "hypothesis") if "premise" in pairs[item] else ("hypothesis",)
        passages = tuple(
            Passage(
                self.read_as or language,
                text_of(field_of(pairs[item], side).get(language), f"pairs.{side}"),
            )
            for side in sides
        )
        labels = {
            "label": field_of(pairs[item], "label"),
            "id": str(pairs[item].get("id", "")),
            "language": language,
            "premise": passages[0].text if len(passages) > 1 else "",
            "hypothesis": passages[-1].text,
        }
        first = {k[2:]: v for k, v in members.items() if self.two and k.startswith("0.")}
        others = self.tags.read(members, content) if self.tags else {}
        return {**members, **first, "text": passages, **others}, labels


@dataclass(frozen=True, kw_only=True)
class Refers(Reader):
    """Each expression that refers to a box of the picture is an example."""

    kind: ClassVar[str] = "refers"
    languages: tuple[str, ...] = ()
    links: Links | None = None
    """The whole expression refers to the region of its box, which it thereby tells: to learn from
    such pairs, not to find the box."""

    def items(self, entry: Entry) -> int:
        """The number of expressions."""
        return entry.items.get("refers", 0)

    def total(self, listed: Listed) -> int | None:
        """The number of expressions."""
        return listed.items.get("refers", 0)

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is the expression.

        Labels: ``box`` (corners in 0..1), ``size`` (width and height of the picture in pixels),
        ``id``, ``kind``, ``language``, ``text``.
        """
        content = sample_json(members)
        refer = field_of(content, "refers")[item]
        found = on_hand(field_of(refer, "text"), self.languages, "refers.text")
        language = found[int(rng.integers(len(found)))]
        passage = Passage(language, text_of(refer["text"][language], "refers.text"))
        if self.links:
            passage = self.links.whole(passage, field_of(refer, "box"), members, content)
        width, height = picture_size(content, members)
        x1, y1, x2, y2 = (float(x) for x in field_of(refer, "box"))
        labels = {
            "box": [x1 / width, y1 / height, x2 / width, y2 / height],
            "size": [width, height],
            "id": str(refer.get("id", "")),
            "kind": refer.get("kind", ""),
            "language": language,
            "text": passage.text,
        }
        return {**members, "text": (passage,)}, labels


@dataclass(frozen=True, kw_only=True)
class Labelled(Reader):
    """The sample's one class: a ``cls`` member (a number from 0), or the json's ``label``."""

    kind: ClassVar[str] = "labelled"
    unlabelled: bool = False
    """Read samples without a class too, with label ``""``: of tests whose classes are kept back."""

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """The members as they are; label ``label``, a string."""
        label: Any
        if "cls" in members:
            label = members["cls"].decode("utf-8", "replace").strip()
        else:
            label = sample_json(members).get("label") if "json" in members else None
        if self.unlabelled and label is None:
            label = ""
        missing = label == "" and not self.unlabelled
        if not isinstance(label, (str, int)) or isinstance(label, bool) or missing:
            found = ", ".join(sorted(members))
            raise BadSample("missing field", f"no cls, and no 'label' in json; it has {found}")
        return dict(members), {"label": str(label)}
