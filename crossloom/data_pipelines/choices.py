"""Reader of questions with several answers to choose from, and of reasons for the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from crossloom.data_pipelines.links import Links
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
from crossloom.units import BadSample, Passage, Sample

What = Literal["answer", "rationale"]


@dataclass(frozen=True, kw_only=True)
class Choices(Reader):
    """Each question of the sample is an example, shown with each of its answers, or reasons (VCR).

    The n-th answer after the question is a text of two passages, the member ``text`` for the first
    and ``choice1``, ``choice2``, … for the others, in the data's own order. So with reasons
    (``rationale``), where the first passage is the question and the right answer.
    """

    kind: ClassVar[str] = "choices"
    what: tuple[What, ...] = ("answer", "rationale")
    """What is to be chosen; with both, each question counts as two examples."""
    count: int = 4
    """How many there are to choose from."""
    each: bool = False
    """Reasons after each of the answers, be they right or not, as many examples (evaluation)."""
    unanswered: bool = False
    """Read questions whose right answer is not known too, with label None."""
    languages: tuple[str, ...] = ()
    """Languages to draw from; empty for all."""
    links: Links | None = None
    """Words that the data refer to a box, refer to the region that overlaps with it most."""

    def __post_init__(self) -> None:
        if not self.what or len(set(self.what)) < len(self.what) or self.count < 2:
            raise ValueError(
                f"choices: what is answer, rationale or both, count at least 2: {self.what}, "
                f"{self.count}"
            )
        if self.unanswered and "rationale" in self.what and not self.each:
            raise ValueError(
                "choices: which answer a reason is for is not known of all: set each with "
                "unanswered"
            )

    @property
    def asked(self) -> tuple[tuple[What, int], ...]:
        """What is asked of a question, one for each example, and after which answer.

        -1 for the right one, or none.
        """
        after = range(self.count) if self.each else (-1,)
        numbers: Mapping[What, Sequence[int]] = {"answer": (-1,), "rationale": after}
        return tuple((what, number) for what in self.what for number in numbers[what])

    def items(self, entry: Entry) -> int:
        """The number of questions, times what is asked of each."""
        return len(self.asked) * entry.items.get("choices", 0)

    def total(self, listed: Listed) -> int | None:
        """The number of questions, times what is asked of each."""
        return len(self.asked) * listed.items.get("choices", 0)

    def read(
        self, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> tuple[Sample, Labels]:
        """A text for each that can be chosen.

        Labels: ``choice`` (the number of the right one, from 0; None where it is not known),
        ``answer`` (that of the right answer), ``what``, ``after`` (the answer that the reasons are
        read after, -1 for none), ``id``, ``language``, ``question``, ``choices`` (their texts).

        Raises:
            BadSample: of another number of choices, or no right one is known.
        """
        content = sample_json(members)
        number, place = divmod(item, len(self.asked))
        what, after = self.asked[place]
        told = field_of(content, "choices")[number]
        found = on_hand(field_of(told, "question"), self.languages, "choices.question")
        language = found[int(rng.integers(len(found)))]
        right, answer = self._right(told, what), self._right(told, "answer")
        if what == "rationale" and after < 0:
            assert answer is not None
            after = answer
        one = _Told(told, language, self.count)
        first = one.question()
        if what == "rationale":
            first = _joined(first, one.choices("answers")[after])
        chosen = one.choices(f"{what}s")
        if self.links:
            first, *chosen = (self.links.told(p, members, content) for p in (first, *chosen))
        else:
            first, *chosen = (Passage(p.language, p.text) for p in (first, *chosen))
        names = ("text", *(f"choice{n}" for n in range(1, self.count)))
        labels = {
            "choice": right,
            "answer": answer,
            "what": what,
            "after": after,
            "id": str(told.get("id", "")),
            "language": language,
            "question": first.text,
            "choices": [p.text for p in chosen],
        }
        texts = {name: (first, passage) for name, passage in zip(names, chosen, strict=True)}
        return {**members, **texts}, labels

    def _right(self, told: Mapping[str, Any], what: What) -> int | None:
        """The number of the right answer or reason; None where that is not known, and may be."""
        right = told.get(what)
        if right is None and self.unanswered:
            return None
        if right is None or isinstance(right, bool) or right not in range(self.count):
            raise BadSample(
                "missing field", f"choices: {what!r} is {right!r}, no number below {self.count}"
            )
        return int(right)


@dataclass(frozen=True)
class _Told:
    """A question of the json, in one language."""

    content: Mapping[str, Any]
    language: str
    count: int

    def question(self) -> Passage:
        text = text_of(self.content["question"][self.language], "choices.question")
        return Passage(self.language, text, self._refers("question", ()))

    def choices(self, name: str) -> list[Passage]:
        texts = field_of(self.content, name).get(self.language) or ()
        if len(texts) != self.count:
            raise BadSample(
                "other number of choices",
                f"choices: {len(texts)} {name}, not {self.count}, in {self.language!r}",
            )
        refers = self._refers(name, [()] * self.count)
        return [
            Passage(self.language, text_of(text, f"choices.{name}"), _three(some))
            for text, some in zip(texts, refers, strict=True)
        ]

    def _refers(self, name: str, none: Sequence[Any]) -> Any:
        found = (self.content.get("refers") or {}).get(self.language, {}).get(name, none)
        return _three(found) if name == "question" else found


def _three(refers: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(a), int(b), int(n)) for a, b, n in refers)


def _joined(one: Passage, other: Passage) -> Passage:
    """Two passages as one, a space between them."""
    by = len(one.text) + 1
    moved = tuple((a + by, b + by, n) for a, b, n in other.refers)
    return Passage(one.language, f"{one.text} {other.text}", one.refers + moved)
