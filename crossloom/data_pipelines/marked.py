"""Readers of texts in which characters are marked: words with their tags, answers to questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.reader import Labels, Reader, sample_json
from crossloom.data_pipelines.shards import Entry
from crossloom.data_pipelines.summary import Listed, one
from crossloom.units import BadSample, Passage, Sample


@dataclass(frozen=True, kw_only=True)
class Words(Reader):
    """Each tagged sentence is an example: the first text of a language, its words parted by spaces.

    A sentence in several languages is an example in each.
    """

    kind: ClassVar[str] = "words"
    tagset: str = "upos"
    """Which of the json's ``tags``, by name."""
    languages: tuple[str, ...] = ()
    """Languages to read; empty for all."""

    def items(self, entry: Entry) -> int:
        """The number of languages."""
        return self._sentences(one(entry.items))

    def total(self, listed: Listed) -> int | None:
        """The sentences, in each of their languages."""
        return self._sentences(listed)

    def _sentences(self, listed: Listed) -> int:
        wanted = {f"texts.{code}" for code in self.languages}
        return sum(
            samples
            for name, samples in listed.having.items()
            if (name in wanted if wanted else name.startswith("texts."))
        )

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is the sentence.

        Labels: ``words`` (first character and one past the last, of each), ``tags`` (one for each),
        ``language``, ``text``, ``id``.
        """
        content = sample_json(members)
        found = [x for x, some in content["texts"].items() if some]
        language = [x for x in found if not self.languages or x in self.languages][item]
        text = content["texts"][language][0]
        tags = content["tags"].get(self.tagset, {}).get(language)
        if tags is None:
            raise BadSample(
                "missing field",
                f"json 'tags' has {', '.join(content['tags'])}, not {self.tagset} in {language}",
            )
        words, at = [], 0
        for word in text.split(" "):
            words.append((at, at + len(word)))
            at += len(word) + 1
        if len(words) != len(tags) or not all(last > first for first, last in words):
            raise BadSample("wrong shape", f"{len(tags)} tags {self.tagset} for {len(words)} words")
        labels = {
            "words": words,
            "tags": [str(tag) for tag in tags],
            "language": language,
            "text": text,
            "id": str(content.get("id", "")),
        }
        return {**members, "text": (Passage(language, text),)}, labels


@dataclass(frozen=True, kw_only=True)
class Spans(Reader):
    """Each question that a part of the sample's text answers is an example, in one language."""

    kind: ClassVar[str] = "spans"
    languages: tuple[str, ...] = ()
    """Languages to draw from; empty for all."""
    all_languages: bool = False
    """Every language of a question is an example of its own (evaluation); ``languages`` must be
    set."""

    def __post_init__(self) -> None:
        if self.all_languages and not self.languages:
            raise ValueError("spans: all_languages needs the languages to be listed")

    def items(self, entry: Entry) -> int:
        """The number of questions (times languages)."""
        return self._questions(entry.items)

    def total(self, listed: Listed) -> int | None:
        """The number of questions (times languages)."""
        return self._questions(listed.items)

    def _questions(self, items: Mapping[str, int]) -> int:
        return items.get("spans", 0) * (len(self.languages) if self.all_languages else 1)

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """``text`` is the question, then the text that is searched.

        Labels: ``answer`` (first character of the first answer, one past its last), ``answers``
        (texts), ``question``, ``context``, ``language``, ``id``.
        """
        content = sample_json(members)
        if self.all_languages:
            item, number = divmod(item, len(self.languages))
            found = [self.languages[number]]
        else:
            found = [*content["spans"][item]["text"]]
            found = [x for x in found if not self.languages or x in self.languages]
        span: dict[str, Any] = content["spans"][item]
        language = found[int(rng.integers(len(found)))] if found else ""
        if language not in span["text"]:
            wanted = ", ".join(self.languages)
            raise BadSample(
                "missing language", f"question {span['id']} is not given in {language or wanted}"
            )
        question, context = span["text"][language], content["texts"][language][0]
        answers = span["answers"][language]
        start, text = int(answers[0]["start"]), str(answers[0]["text"])
        if context[start : start + len(text)] != text:
            raise BadSample("wrong shape", f"question {span['id']}: {text!r} is not at {start}")
        labels = {
            "answer": (start, start + len(text)),
            "answers": [str(a["text"]) for a in answers],
            "question": question,
            "context": context,
            "language": language,
            "id": str(span["id"]),
        }
        passages = (Passage(language, question), Passage(language, context))
        return {**members, "text": passages}, labels
