"""XLM's vocabulary: byte pairs of words, which Moses cuts and normalises by language.

The steps, and ids, are those of ``transformers: tokenization_xlm.py``, and of the scripts by which
XLM's text was prepared (``facebookresearch/XLM: get-data-wiki.sh``): punctuation of many scripts to
ASCII, Moses' normalising, no control characters, Moses' words; lower case without accents, but for
the models of 17 and 100 languages; then byte pairs. Chinese, Japanese and Thai want their words cut
by other programs (Stanford's segmenter, KyTea, PyThaiNLP): their texts are taken as cut already, at
the spaces.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.units import Array

_SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", "<special1>")
#: Languages whose words are cut beforehand.
_CUT = ("zh", "ja", "th")
_END = "</w>"


class WordPairs:
    """Byte pairs of words, with the attributes of a vocabulary of SentencePiece.

    See :class:`crossloom.modalities.vocabularies.Vocabulary`. ``</s>`` begins and ends a text, as
    in XLM's own training (``src/data/dataset.py``; ``transformers`` begins with ``<s>``), and the
    mask is ``<special1>``.
    """

    doubled = True

    def __init__(self, path: str | Path, *, cased: bool = False) -> None:
        """Load ``vocab.json`` with ``merges.txt`` beside it, or both as one file.

        Args:
            path: the file, see :func:`joined`.
            cased: keep case and accents (XLM-17 and XLM-100).

        Raises:
            ValueError: the file is missing, is no such vocabulary, or Moses is not installed.
        """
        try:
            import sacremoses
        except ImportError:
            raise ValueError(
                f"{path}: XLM's vocabularies need the package sacremoses; "
                "pip install 'crossloom[moses]'"
            ) from None
        self._moses: Any = sacremoses
        ids, merges = _read(Path(path))
        self.size, self.cased = len(ids), cased
        self._ids, self._ranks = ids, {pair: rank for rank, pair in enumerate(merges)}
        self.begin = self.end = ids["</s>"]
        self.pad, self.unknown, self.mask = ids["<pad>"], ids["<unk>"], ids["<special1>"]
        self.pieces = sorted(ids, key=ids.__getitem__)
        barred = {p for p in ids if p in _SPECIALS or p.startswith("<special")}
        self.ordinary = np.array([ids[p] for p in self.pieces if p not in barred], np.int64)
        # pieces mark the end of a word, so that a piece alone does not tell where one begins
        self.starts_word = np.ones(self.size, bool)
        content = json.dumps([cased, self.pieces, merges], ensure_ascii=False)
        self.identity = hashlib.sha256(f"word pairs\n{content}".encode()).hexdigest()[:16]
        self._cutter = lru_cache(maxsize=None)(self._make_cutter)
        self._pairs = lru_cache(maxsize=1 << 16)(self._find_pairs)

    def encode(self, text: str, language: str = "") -> Array:
        """Ids ``[n]`` int64 of a text, without specials; Moses cuts by its language."""
        ids = [n for word in self._words(text, language or "en") for n in self._pairs(word)]
        return np.array(ids, np.int64)

    def _words(self, text: str, language: str) -> list[str]:
        normalise, cut = self._cutter(language)
        words: list[str] = cut(normalise(text))
        if not self.cased:
            plain = unicodedata.normalize("NFD", " ".join(words).lower())
            kept = (c for c in plain if unicodedata.category(c) != "Mn")
            words = "".join(kept).lower().split(" ")
        return [word for word in words if word]

    def _make_cutter(self, language: str) -> tuple[Any, Any]:
        normaliser = self._moses.MosesPunctNormalizer(
            lang=language, pre_replace_unicode_punct=True, post_remove_control_chars=True
        )
        if language in _CUT:
            return normaliser.normalize, str.split
        moses = self._moses.MosesTokenizer(lang=language)
        prepare = _without_romanian_marks if language == "ro" else str

        def cut(text: str) -> list[str]:
            found: list[str] = moses.tokenize(prepare(text), return_str=False, escape=False)
            return found

        return normaliser.normalize, cut

    def _find_pairs(self, word: str) -> tuple[int, ...]:
        """Ids of a word: the pair of the lowest rank is joined wherever it stands, and so on."""
        parts = [*word[:-1], word[-1] + _END]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return tuple(self._ids.get(part, self.unknown) for part in parts)

    def spans(self, text: str) -> Array:
        """Where pieces lie in the text is not known: the text is changed before it is cut.

        Raises:
            ValueError: always.
        """
        raise ValueError("layout xlm: words that refer to regions need another layout")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, specials left out; what normalising changed is not undone."""
        special = {self.begin, self.pad, self.end, self.mask}
        return "".join(self.pieces[i] for i in ids if i not in special).replace(_END, " ").strip()


def _without_romanian_marks(text: str) -> str:
    """Letters of Romanian without their marks, as ``rsennrich/wmt16-scripts`` prepare it."""
    plain = {"ŞȘ": "S", "şș": "s", "ŢȚ": "T", "ţț": "t", "Ă": "A", "ă": "a", "Â": "A", "â": "a",
             "Î": "I", "î": "i"}  # fmt: skip
    return text.translate({ord(c): to for some, to in plain.items() for c in some})


def joined(path: Path) -> str:
    """A vocabulary of two files as one: JSON with ``vocab`` and ``merges``.

    Args:
        path: ``vocab.json`` with ``merges.txt`` beside it, or one file already.

    Raises:
        ValueError: a file is missing, or it is no such vocabulary.
    """
    ids, merges = _read(path)
    content = {"vocab": ids, "merges": [" ".join(pair) for pair in merges]}
    return json.dumps(content, ensure_ascii=False)


def parted(path: Path) -> dict[str, str]:
    """A vocabulary as the files that ``transformers`` reads, by name."""
    ids, merges = _read(path)
    lines = "".join(f"{one} {two}\n" for one, two in merges)
    return {"vocab.json": json.dumps(ids, ensure_ascii=False), "merges.txt": lines}


def _read(path: Path) -> tuple[Mapping[str, int], list[tuple[str, str]]]:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such vocabulary; give the path of XLM's vocab.json as "
            "modalities.<stream>.vocabulary"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        beside = path.with_name("merges.txt")
        if isinstance(content.get("merges"), list):
            ids, lines = content["vocab"], content["merges"]
        elif beside.is_file():
            # only line feeds end a line: other characters that could are pieces
            ids, lines = content, beside.read_text("utf-8").split("\n")
        else:
            raise ValueError(f"there is no {beside.name} beside it")
        ids = {str(piece): int(number) for piece, number in ids.items()}
        merges = [(one, two) for one, two, *_ in (line.split() for line in lines if line.strip())]
    except (UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a vocabulary of XLM ({error})") from None
    if missing := [s for s in _SPECIALS if s not in ids]:
        raise ValueError(f"{path}: has no {', '.join(missing)}; is it a vocabulary of XLM?")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{path}: an id is given twice, or the ids have gaps")
    return ids, merges
