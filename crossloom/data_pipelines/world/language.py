"""What a language is to the world: words, a phrase function, and sentence patterns.

Patterns are format strings over things: ``{a:def}`` is thing *a* in the form that the language
calls ``def``. Which forms there are is each language's own business; all have ``indef``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Thing:
    """What a phrase speaks of; colour and size may be left unsaid."""

    shape: str
    colour: str = ""
    size: str = ""


Phrase = Callable[[Thing, str], str]


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language.

    Patterns: ``list`` ({items}), ``exists``, ``absent``, ``is`` ({a}, colour {c} agreeing),
    ``larger``, ``relation`` and ``place`` (indefinite, definite), the questions ``q_colour``,
    ``q_count``, ``q_exists``, ``q_side``, ``q_shape``, ``q_same``, ``q_larger``, and references to
    a shape left unsaid: ``refer.colour``, ``refer`` by relation to {a}. A pattern may be given by
    relation (``relation.left``).
    """

    code: str
    name: str
    phrase: Phrase
    patterns: Mapping[str, str]
    item: str = "indef"
    """Form of the things in a list."""
    comma: str = ", "
    last: str = " and "
    """Between the last two of a list."""
    finish: Callable[[str], str] = lambda s: s[:1].upper() + s[1:]
    """Last touch on a sentence: a capital, contractions."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each shape, colour and size the words for it, in all forms, the first as in a list of
    words; by English word."""

    def say(self, pattern: str, *things: Thing, **words: str) -> str:
        """A sentence from a pattern; things are called a, b."""
        slots = {n: _Slot(self.phrase, t) for n, t in zip("ab", things, strict=False)}
        return self.finish(self.patterns[pattern].format(**slots, **words))

    def call(self, thing: Thing) -> str:
        """A phrase that names a thing, by itself."""
        return self.finish(self.phrase(thing, "indef"))

    def say_list(self, things: Sequence[Thing]) -> str:
        """One sentence that names all things."""
        parts = [self.phrase(t, self.item) for t in things]
        items = parts[0] if len(parts) == 1 else self.comma.join(parts[:-1]) + self.last + parts[-1]
        return self.finish(self.patterns["list"].format(items=items))


@dataclass(frozen=True)
class _Slot:
    phrase: Phrase
    thing: Thing

    def __format__(self, form: str) -> str:
        return self.phrase(self.thing, form or "indef")
