"""How a vocabulary splits languages: fertility, unknown pieces, and coverage of scripts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossloom.modalities.scripts import UNSPACED
from crossloom.modalities.vocabularies import AnyVocabulary

#: What SentencePiece calls the pieces that stand for a byte of an unknown character.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: First words of the Unicode names of characters that many scripts share.
_SHARED = (
    "COMBINING",
    "MODIFIER",
    "MATHEMATICAL",
    "SUPERSCRIPT",
    "SUBSCRIPT",
    "DOUBLE",
    "VARIATION",
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the lines of one language are split."""

    lines: int
    characters: int  #: spaces left out
    words: int  #: between spaces; 0 where the script is written without
    pieces: int
    unknown: int  #: pieces
    bytes: int  #: pieces that spell unknown characters

    @property
    def per_word(self) -> float | None:
        """Fertility: pieces a word (Rust et al., 2021); None where words are not spaced."""
        return self.pieces / self.words if self.words else None

    @property
    def per_character(self) -> float:
        """Pieces a character."""
        return self.pieces / max(1, self.characters)

    @property
    def unknown_share(self) -> float:
        """Share of pieces that are unknown, 0..1."""
        return self.unknown / max(1, self.pieces)

    @property
    def byte_share(self) -> float:
        """Share of pieces that are bytes, 0..1."""
        return self.bytes / max(1, self.pieces)


@dataclass(frozen=True, kw_only=True)
class Script:
    """How much of a script's letters and marks a vocabulary has pieces for."""

    characters: int  #: as often as they occur
    covered: int  #: of these, those that are neither unknown nor spelt in bytes
    missing: str  #: the most frequent ones that are not covered, ten at most

    @property
    def share(self) -> float:
        """Share covered, 0..1."""
        return self.covered / max(1, self.characters)


Table = tuple[tuple[str, ...], list[Sequence[str]]]  #: headings, rows


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`measure` finds."""

    size: int  #: ids of the vocabulary
    languages: Mapping[str, Split]
    scripts: Mapping[str, Script]

    def tables(self) -> list[Table]:
        """Languages, and scripts by how often they occur, as tables."""
        languages: list[Sequence[str]] = [
            (
                code or "not said",
                f"{x.lines:,}",
                f"{x.per_word:.2f}" if x.per_word is not None else "–",
                f"{x.per_character:.2f}",
                f"{x.unknown_share:.2%}",
                f"{x.byte_share:.2%}",
            )
            for code, x in self.languages.items()
        ]
        scripts: list[Sequence[str]] = [
            (name, f"{x.characters:,}", f"{x.share:.3%}", " ".join(x.missing))
            for name, x in self.scripts.items()
        ]
        heads = ("language", "lines", "pieces a word", "pieces a character", "unknown", "bytes")
        return [(heads, languages), (("script", "characters", "covered", "missing"), scripts)]

    def save(self, model: Path) -> Path:
        """Write ``NAME.report.json`` beside the vocabulary ``NAME.model``; return its path."""
        content = {
            "size": self.size,
            "languages": {
                code: {
                    "lines": x.lines,
                    "pieces_per_word": x.per_word,
                    "pieces_per_character": x.per_character,
                    "unknown": x.unknown_share,
                    "bytes": x.byte_share,
                }
                for code, x in self.languages.items()
            },
            "scripts": {
                name: {"characters": x.characters, "covered": x.share, "missing": x.missing}
                for name, x in self.scripts.items()
            },
        }
        file = model.with_suffix(".report.json")
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", "utf-8")
        return file


def measure(vocab: AnyVocabulary, texts: Mapping[str, Sequence[str]], most: int = 1000) -> Report:
    """How a vocabulary splits texts.

    Args:
        vocab: of any layout.
        texts: lines by language.
        most: lines of a language that are split; the characters of all are counted.
    """
    bytes_of = [bool(_BYTE.fullmatch(piece)) for piece in vocab.pieces]
    counted: Counter[str] = Counter()
    languages = {}
    for language, lines in texts.items():
        own = Counter(c for line in lines for c in line)
        counted += own
        languages[language] = _split(vocab, language, lines[:most], bytes_of, _spaced(own))
    by_script: dict[str, Counter[str]] = {}
    for character, count in counted.items():
        if script := script_of(character):
            by_script.setdefault(script, Counter())[character] = count
    covered = {
        c: not any(n == vocab.unknown or bytes_of[n] for n in vocab.encode(c).tolist())
        for some in by_script.values()
        for c in some
    }
    scripts = {}
    for script, some in sorted(by_script.items(), key=lambda x: (-x[1].total(), x[0])):
        lacking = sorted((c for c in some if not covered[c]), key=lambda c: (-some[c], c))
        scripts[script] = Script(
            characters=some.total(),
            covered=some.total() - sum(some[c] for c in lacking),
            missing="".join(lacking[:10]),
        )
    return Report(size=vocab.size, languages=languages, scripts=scripts)


def _split(
    vocab: AnyVocabulary,
    language: str,
    lines: Sequence[str],
    bytes_of: Sequence[bool],
    spaced: bool,
) -> Split:
    ids = [n for line in lines for n in vocab.encode(line, language).tolist()]
    words = [word for line in lines for word in line.split()]
    return Split(
        lines=len(lines),
        characters=sum(map(len, words)),
        words=len(words) if spaced else 0,
        pieces=len(ids),
        unknown=ids.count(vocab.unknown),
        bytes=sum(bytes_of[n] for n in ids),
    )


def _spaced(characters: Counter[str]) -> bool:
    """Whether most letters are of scripts that put spaces between words."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        scripts[script_of(character)] += count
    letters = scripts.total() - scripts[""]
    return 2 * sum(scripts[s.lower()] for s in UNSPACED) <= letters


def script_of(character: str) -> str:
    """The script of a letter or mark, from its name in Unicode; ``""`` of all else.

    >>> script_of("é"), script_of("ख"), script_of("々"), script_of("ｱ"), script_of("3")
    ('latin', 'devanagari', 'cjk', 'katakana', '')
    """
    if unicodedata.category(character)[0] not in "LM":
        return ""
    words = re.split("[ -]", unicodedata.name(character, ""))
    first = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    if first in _SHARED:
        return ""
    return "cjk" if first == "IDEOGRAPHIC" else first.lower()
