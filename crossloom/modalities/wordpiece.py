"""WordPiece vocabularies: BERT's ``vocab.txt``, cased or not, with BERT's ids.

Normalising (control characters, case and accents, spaces around Chinese characters), splitting at
spaces and punctuation, and the greedy longest match are those of the library ``tokenizers``, which
``transformers``' BERT tokenizers run on as well: the ids are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossloom.units import Array

_SPECIALS = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


class WordPiece:
    """A WordPiece vocabulary, with the attributes of one of SentencePiece.

    See :class:`crossloom.modalities.vocabularies.Vocabulary`. ``[CLS]`` begins and ``[SEP]`` ends a
    text; pieces that continue a word start with ``##``. The text is taken literally: ``[MASK]``
    written in it is three pieces, not a special.
    """

    doubled = False

    def __init__(self, path: str | Path, *, cased: bool = False) -> None:
        """Load ``vocab.txt`` (a piece a line) or the vocabulary of a ``tokenizer.json``.

        Args:
            path: the file.
            cased: keep case and accents (BERT's cased and multilingual vocabularies).

        Raises:
            ValueError: the file is missing, is no such vocabulary, or the library is not installed.
        """
        try:
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        except ImportError:
            raise ValueError(
                f"{path}: WordPiece vocabularies need the package tokenizers; "
                "pip install 'crossloom[wordpiece]'"
            ) from None
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such vocabulary; give the path of BERT's vocab.txt as "
                "modalities.<stream>.vocabulary"
            )
        ids = _read(path)
        if missing := [s for s in _SPECIALS if s not in ids]:
            raise ValueError(f"{path}: has no {', '.join(missing)}; is it a WordPiece vocabulary?")
        self.size = len(ids)
        self.begin, self.pad, self.end, self.unknown, self.mask = (ids[s] for s in _SPECIALS)
        self.pieces = sorted(ids, key=ids.__getitem__)
        barred = {*_SPECIALS, *(p for p in ids if p.startswith("[unused"))}
        self.ordinary = np.array([ids[p] for p in self.pieces if p not in barred], np.int64)
        self.starts_word = np.array([not p.startswith("##") for p in self.pieces], bool)
        self._tokenizer: Any = Tokenizer(
            models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        text = "\n".join(self.pieces)
        self.identity = hashlib.sha256(f"wordpiece {cased}\n{text}".encode()).hexdigest()[:16]

    def encode(self, text: str, language: str = "") -> Array:
        """Ids ``[n]`` int64 of a text, without specials, whatever its language."""
        return np.array(self._tokenizer.encode(text).ids, np.int64)

    def spans(self, text: str) -> Array:
        """Characters ``[n, 2]`` int64 (first, one past the last) that each piece stands for."""
        return np.array(self._tokenizer.encode(text).offsets, np.int64).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, specials left out; normalising is not undone."""
        special = {self.begin, self.pad, self.end, self.mask}
        pieces = [self.pieces[i] for i in ids if i not in special]
        return " ".join(pieces).replace(" ##", "")


def _read(path: Path) -> dict[str, int]:
    try:
        text = path.read_text("utf-8")
        if text.startswith("{"):
            ids = {str(k): int(v) for k, v in json.loads(text)["model"]["vocab"].items()}
        else:
            lines = text.split("\n")
            pieces = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
            ids = {piece: number for number, piece in enumerate(pieces)}
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a WordPiece vocabulary ({error})") from None
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{path}: a piece is listed twice, or its ids have gaps")
    return ids
