"""Readers: what of a sample is looked at on one visit.

A sample may list several texts, questions or pairs. A reader says what counts as an example
(``items``), and makes of the sample's members what the modalities read: it sets ``"text"`` to the
passages chosen and says what is known of the example (``labels``). Randomness comes keyed on the
example, so a visit in a given epoch always chooses alike.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.layouts import adapt
from crossloom.data_pipelines.links import Links, picture_size
from crossloom.data_pipelines.shards import Entry
from crossloom.data_pipelines.stretches import Length, stretches
from crossloom.data_pipelines.summary import Listed, one
from crossloom.data_pipelines.tags import Tags
from crossloom.data_pipelines.tars import UNREAD
from crossloom.units import BadSample, Passage, Sample

Labels = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """How a component reads its samples. Subclasses set ``kind``, the name in recipes."""

    kind: ClassVar[str]
    task: str = ""
    """What is asked of the examples, by one of the names in ``Text.tasks``; given to modalities as
    the member ``task``."""

    @property
    def mismatched(self) -> float:
        """Share of examples whose second passage is another sample's (label ``matched``)."""
        return 0.0

    @property
    def joined(self) -> bool:
        """Whether a micro-batch's texts are laid end to end and cut at the stream's limit."""
        return False

    def items(self, entry: Entry) -> int:
        """How many examples a sample counts as."""
        return 1

    def total(self, listed: Listed) -> int | None:
        """How many examples samples count as together, by what they list in sum.

        It must be the sum of ``items`` over the samples, also of one sample. None where sums do not
        tell, as in a class that has ``items`` of its own and no ``total``: then the index of every
        shard is read when a run starts, to ask sample by sample.
        """
        return listed.samples

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "items" in vars(cls) and "total" not in vars(cls):
            cls.total = lambda self, listed: None  # type: ignore[method-assign]

    @abstractmethod
    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """The sample as modalities see it, and its labels.

        Raises:
            BadSample: what the reader needs is missing.
        """


def sample_json(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The ``json`` member, parsed; captions in other layouts brought to the form of ours.

    Raises:
        BadSample: missing, not UTF-8, not JSON, or neither an object nor captions.
    """
    if "json" not in members and not any(m.endswith("txt") for m in members):
        raise BadSample("missing member", f"no json; it has {', '.join(sorted(members))}")
    try:
        content = json.loads(members["json"].decode("utf-8")) if "json" in members else None
    except UnicodeDecodeError as error:
        raise BadSample("not UTF-8", f"json: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadSample("undecodable", f"json: {error}") from None
    return adapt(content, members)


def _field(content: Mapping[str, Any], name: str) -> Any:
    if not content.get(name):
        raise BadSample("missing field", f"json has no {name!r}; it has {', '.join(content)}")
    return content[name]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadSample("empty text", f"json {name!r} holds {value!r}")
    return value


def _choose(texts: Mapping[str, Any], wanted: tuple[str, ...], name: str) -> list[str]:
    """Languages on hand, in the order wanted (or stored)."""
    found = [x for x in (wanted or texts) if texts.get(x)]
    if not found:
        raise BadSample(
            "missing language", f"json {name!r} has {', '.join(texts)}, not {', '.join(wanted)}"
        )
    return found


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
        json's).
        """
        content = sample_json(members)
        texts = _field(content, self.of)
        if self.unnamed and "" in texts:
            also = {self.unnamed: [*texts.get(self.unnamed, ()), *texts[""]]}
            texts = {code: some for code, some in texts.items() if code} | also
        found = _choose(texts, self.languages, self.of)
        if self.all_texts:
            ordered = texts if not self.languages else {x: texts[x] for x in texts if x in found}
            flat = [(x, t) for x in ordered for t in ordered[x]]
            language, text = flat[item]
        else:
            share = None
            if self.weights:
                share = np.array([self.weights.get(x, 0.0) for x in found])
                share = share / share.sum() if share.sum() > 0 else None
            language = found[int(rng.choice(len(found), p=share))]
            text = texts[language][int(rng.integers(len(texts[language])))]
        passage = Passage(language, _text(text, f"{self.of}.{language}"))
        if self.links:
            passage = self.links.named(passage, members, content)
        tags = self.tags.read(members, content) if self.tags else {}
        given = dict.fromkeys(("text", *self.copies), (passage,))
        labels = {
            "language": language,
            "text": passage.text,
            "references": texts[language],
            "id": str(content.get("id", "")),
        }
        return {**members, **given, **tags}, labels


@dataclass(frozen=True, kw_only=True)
class Blocks(Reader):
    """Documents and sentences as blocks that fill the text stream's limit.

    Each stretch of a document (all of a short one) is an item, met once in an epoch. The stretches
    of a micro-batch are then joined by language and cut at the limit, so that nothing is lost and
    a batch has as many examples as its text fills, each as long as the limit but one for each
    language. The objectives must show one stream of text, and score units.
    """

    kind: ClassVar[str] = "blocks"
    of: str = "texts"
    """Field of the json: texts by language, which are the paragraphs of a document."""
    languages: tuple[str, ...] = ()
    """Languages to read; empty for all."""
    stretch: Length = 4096
    """Most characters of a document that are read at a time; the longer, the more of a block is
    one piece of text, and the more blocks of a micro-batch are neighbours."""

    @property
    def joined(self) -> bool:
        """Always."""
        return True

    def items(self, entry: Entry) -> int:
        """The stretches in all the languages read; one of a sample whose json does not parse."""
        return self._stretches(one(entry.items))

    def total(self, listed: Listed) -> int | None:
        """The stretches of all the samples."""
        return self._stretches(listed)

    def _stretches(self, listed: Listed) -> int:
        return listed.items.get(UNREAD, 0) + sum(
            samples + listed.items.get(f"further{self.stretch}.{k}", 0)
            for k, samples in listed.having.items()
            if (code := k.removeprefix(f"{self.of}.")) != k
            and (not self.languages or code in self.languages)
        )

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is one stretch, in one language; label ``language``."""
        texts = _field(sample_json(members), self.of)
        flat = [
            (code, stretch)
            for code in texts
            if texts[code] and (not self.languages or code in self.languages)
            for stretch in stretches(texts[code], self.stretch)
        ]
        language, stretch = flat[item]
        passage = Passage(language, _text(stretch, f"{self.of}.{language}"))
        return {**members, "text": (passage,)}, {"language": language, "text": passage.text}


@dataclass(frozen=True, kw_only=True)
class Parallel(Reader):
    """Two texts of one sample: translations in random order (TLM), or a text and a statement."""

    kind: ClassVar[str] = "parallel"
    of: str = "texts"
    """Field of the json: texts by language."""
    languages: tuple[str, ...] = ()
    second: str = ""
    """Field of the second passage: any of its entries, half of the time in the same language; where
    it is the first's field and language, another of the texts. Empty for the same text in another
    language."""
    apart: bool = False
    """Give the second passage as a text of its own, ``"second"``, for another stream."""
    mismatch: float = 0.0
    """Share of examples, 0..1, whose second passage is that of another sample of the micro-batch:
    for next-sentence prediction and translation-pair classification (objective ``match``)."""

    def __post_init__(self) -> None:
        if not 0 <= self.mismatch <= 1:
            raise ValueError(f"mismatch must lie in 0..1, not {self.mismatch}")
        if self.mismatch and self.apart:
            raise ValueError("passages apart are mismatched by the view: leave mismatch at 0")

    @property
    def mismatched(self) -> float:
        """The share ``mismatch``."""
        return self.mismatch

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is two passages, or ``text`` and ``second`` one each."""
        content = sample_json(members)
        texts = _field(content, self.of)
        found = _choose(texts, self.languages, self.of)
        if self.second:
            return {**members, **self._given(*self._two(content, found, rng))}, {}
        if len(found) < 2:
            raise BadSample("missing language", f"only {found[0]} of a parallel text is there")
        first, second = (found[i] for i in rng.choice(len(found), 2, replace=False))
        number = int(rng.integers(min(len(texts[first]), len(texts[second]))))
        passages = (Passage(x, _text(texts[x][number], f"{self.of}.{x}")) for x in (first, second))
        return {**members, **self._given(*passages)}, {}

    def _given(self, first: Passage, second: Passage) -> dict[str, tuple[Passage, ...]]:
        return {"text": (first,), "second": (second,)} if self.apart else {"text": (first, second)}

    def _two(
        self, content: Mapping[str, Any], found: list[str], rng: np.random.Generator
    ) -> tuple[Passage, Passage]:
        others = _choose(_field(content, self.second), self.languages, self.second)
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
            Passage(one, _text(some[number], f"{self.of}.{one}")),
            Passage(other, _text(rest[further], f"{self.second}.{other}")),
        )


@dataclass(frozen=True, kw_only=True)
class Questions(Reader):
    """Each question on the sample is an example; a language is drawn when several are given."""

    kind: ClassVar[str] = "questions"
    languages: tuple[str, ...] = ()
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

    def items(self, entry: Entry) -> int:
        """The number of questions."""
        return entry.items.get("questions", 0)

    def total(self, listed: Listed) -> int | None:
        """The number of questions."""
        return listed.items.get("questions", 0)

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is the question; labels ``answers`` (scores by answer), ``kind``, ``id``."""
        content = sample_json(members)
        question = _field(content, "questions")[item]
        found = _choose(_field(question, "text"), self.languages, "questions.text")
        language = found[int(rng.integers(len(found)))]
        passage = Passage(language, _text(question["text"][language], "questions.text"))
        if self.links:
            passage = self.links.named(passage, members, content)
        labels = {
            "answers": question.get("answers", {})
            if self.unanswered
            else _field(question, "answers"),
            "id": str(question.get("id", "")),
            "kind": question.get("kind", ""),
            "language": language,
            "text": passage.text,
        }
        others = self.tags.read(members, content) if self.tags else {}
        if self.answer:
            answers = _field(question, "answers")
            best = _text(max(answers, key=answers.__getitem__), "questions.answers")
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
    two: bool = False
    """Samples have two pictures, members ``0.…`` and ``1.…``: those of the first are given without
    the number too, for the stream by which other sets' pictures are read."""

    def __post_init__(self) -> None:
        if self.all_languages and not self.languages:
            raise ValueError("pairs: all_languages needs the languages to be listed")

    def items(self, entry: Entry) -> int:
        """The number of pairs (times languages)."""
        return self._pairs(entry.items)

    def total(self, listed: Listed) -> int | None:
        """The number of pairs (times languages)."""
        return self._pairs(listed.items)

    def _pairs(self, items: Mapping[str, int]) -> int:
        return items.get("pairs", 0) * (len(self.languages) if self.all_languages else 1)

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is premise (if any) and hypothesis; labels ``label``, ``language``, ``id``."""
        pairs = _field(sample_json(members), "pairs")
        if self.all_languages:
            item, number = divmod(item, len(self.languages))
            found = [self.languages[number]]
            if found[0] not in _field(pairs[item], "hypothesis"):
                raise BadSample("missing language", f"pair {item} is not given in {found[0]}")
        else:
            found = _choose(_field(pairs[item], "hypothesis"), self.languages, "pairs.hypothesis")
        language = found[int(rng.integers(len(found)))]
        sides = ("premise", "hypothesis") if "premise" in pairs[item] else ("hypothesis",)
        passages = tuple(
            Passage(language, _text(_field(pairs[item], side).get(language), f"pairs.{side}"))
            for side in sides
        )
        labels = {
            "label": _field(pairs[item], "label"),
            "id": str(pairs[item].get("id", "")),
            "language": language,
            "premise": passages[0].text if len(passages) > 1 else "",
            "hypothesis": passages[-1].text,
        }
        first = {k[2:]: v for k, v in members.items() if self.two and k.startswith("0.")}
        return {**members, **first, "text": passages}, labels


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
        refer = _field(content, "refers")[item]
        found = _choose(_field(refer, "text"), self.languages, "refers.text")
        language = found[int(rng.integers(len(found)))]
        passage = Passage(language, _text(refer["text"][language], "refers.text"))
        if self.links:
            passage = self.links.whole(passage, _field(refer, "box"), members, content)
        width, height = picture_size(content, members)
        x1, y1, x2, y2 = (float(x) for x in _field(refer, "box"))
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

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """The members as they are; label ``label``, a string."""
        label: Any
        if "cls" in members:
            label = members["cls"].decode("utf-8", "replace").strip()
        else:
            label = sample_json(members).get("label")
        if not isinstance(label, (str, int)) or isinstance(label, bool) or label == "":
            found = ", ".join(sorted(members))
            raise BadSample("missing field", f"no cls, and no 'label' in json; it has {found}")
        return dict(members), {"label": str(label)}


READERS: Mapping[str, type[Reader]] = {
    r.kind: r for r in (Plain, Texts, Blocks, Parallel, Questions, Pairs, Refers, Labelled)
}
