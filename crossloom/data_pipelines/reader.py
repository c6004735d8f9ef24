"""The contract of a reader, and what readers share: fields of a sample's json, stretches of texts.

A sample may list several texts, questions or pairs. A reader says what counts as an example
(``items``), and makes of the sample's members what the modalities read: it sets ``"text"`` to the
passages chosen and says what is known of the example (``labels``). Randomness comes keyed on the
example, so a visit in a given epoch always chooses alike.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from crossloom.data_pipelines.layouts import adapt
from crossloom.data_pipelines.shards import Entry, Shard
from crossloom.data_pipelines.stretches import Length, stretches
from crossloom.data_pipelines.summary import Listed, one
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

    def spoken(self, listed: Listed) -> set[str]:
        """Languages that its texts may be in: those named, or those in which samples list any."""
        of = f"{getattr(self, 'of', 'texts')}."
        named = {
            k.removeprefix(of) or getattr(self, "unnamed", "")
            for k in listed.items
            if k.startswith(of)
        }
        return set(getattr(self, "languages", ())) or named - {""}

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

    def stand_in(
        self, own: Passage, members: Mapping[str, bytes], item: int, rng: np.random.Generator
    ) -> Passage | None:
        """Of another sample, what takes the place of an own second passage; None if nothing may.

        Here, the second passage that it is read with.

        Raises:
            BadSample: what the reader needs is missing.
        """
        return self.read(members, item, rng)[0]["text"][1]


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


def json_of(shard: Shard, entry: Entry) -> dict[str, Any]:
    """The ``json`` of a stored sample, parsed; its pictures stay where they are.

    Raises:
        BadSample: as in :func:`sample_json`, or it cannot be read.
    """
    alone = {name: place for name, place in entry.members.items() if name == "json"}
    return sample_json(shard.members(replace(entry, members=alone)))


def field_of(content: Mapping[str, Any], name: str) -> Any:
    """A field of the json, or of an object in it.

    Raises:
        BadSample: "missing field": it is missing, or empty.
    """
    if not content.get(name):
        raise BadSample("missing field", f"json has no {name!r}; it has {', '.join(content)}")
    return content[name]


def text_of(value: Any, name: str) -> str:
    """A text that says something; ``name`` tells where it stands.

    Raises:
        BadSample: "empty text".
    """
    if not isinstance(value, str) or not value.strip():
        raise BadSample("empty text", f"json {name!r} holds {value!r}")
    return value


def on_hand(texts: Mapping[str, Any], wanted: tuple[str, ...], name: str) -> list[str]:
    """Languages on hand, in the order wanted (or stored).

    Raises:
        BadSample: "missing language": none of them is there.
    """
    found = [x for x in (wanted or texts) if texts.get(x)]
    if not found:
        told = f"has {', '.join(texts)}, not {', '.join(wanted)}"
        if "" in texts:
            told = "says no language; name it as the reader's `unnamed`"
        raise BadSample("missing language", f"json {name!r} {told}")
    return found


def two_of(found: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """Two languages of those on hand, drawn.

    Raises:
        BadSample: "missing language": there is one only.
    """
    if len(found) < 2:
        raise BadSample("missing language", f"only {found[0]} of a parallel text is there")
    first, second = rng.choice(len(found), 2, replace=False)
    return found[first], found[second]


@dataclass(frozen=True, kw_only=True)
class Stretched(Reader):
    """Each stretch of a document (all of a short one) is an item, met once in an epoch."""

    of: str = "texts"
    """Field of the json: texts by language, which are the paragraphs of a document."""
    languages: tuple[str, ...] = ()
    """Languages to read; empty for all."""
    stretch: Length = 4096
    """Most characters of a document that are read at a time."""

    def items(self, entry: Entry) -> int:
        """The stretches in all the languages read; one of a sample whose json does not parse."""
        return count_stretches(one(entry.items), self.of, self.languages, self.stretch)

    def total(self, listed: Listed) -> int | None:
        """The stretches of all the samples."""
        return count_stretches(listed, self.of, self.languages, self.stretch)

    def passage(self, members: Mapping[str, bytes], item: int) -> Passage:
        """The stretch of that number.

        Raises:
            BadSample: it is missing, or empty.
        """
        return stretch_of(sample_json(members), self.of, self.languages, self.stretch, item)


def count_stretches(listed: Listed, of: str, languages: tuple[str, ...], length: Length) -> int:
    """How many stretches samples have in a field's languages (all when none are named).

    A sample whose json does not parse counts as one, so that it is met and listed.
    """
    return listed.items.get(UNREAD, 0) + sum(
        samples + listed.items.get(f"further{length}.{k}", 0)
        for k, samples in listed.having.items()
        if (code := k.removeprefix(f"{of}.")) != k and (not languages or code in languages)
    )


def stretch_of(
    content: Mapping[str, Any], of: str, languages: tuple[str, ...], length: Length, item: int
) -> Passage:
    """The stretch of a number among those that :func:`count_stretches` counts.

    Raises:
        BadSample: it is missing, or empty.
    """
    texts = field_of(content, of)
    flat = [
        (code, stretch)
        for code in texts
        if texts[code] and (not languages or code in languages)
        for stretch in stretches(texts[code], length)
    ]
    language, stretch = flat[item]
    return Passage(language, text_of(stretch, f"{of}.{language}"))
