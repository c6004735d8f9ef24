"""Vocabularies: pieces and ids of text, in the layouts that published models use.

These id layouts are read:

- ``own``: a model trained by ``crossloom tokenizer train``; ids are the model's own
  (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>`` 4, pieces from 5). With ``signs``,
  a token for each of these languages comes after the model's ids, and texts are laid as mBART's.
- ``xlm-r``: an existing ``sentencepiece.bpe.model`` read with the layout of XLM-R: the model's ids
  are shifted by one, the four specials take 0..3 and ``<mask>`` comes last
  (``transformers: tokenization_xlm_roberta.py``).
- ``mbart``: the same file with mBART's ids: after the model's pieces come 25 language tokens, and
  ``<mask>`` last (``transformers: tokenization_mbart.py``). Nothing begins a text but its language,
  or ends it (``sign``): what is read is ``X </s> <language>``, what is said
  ``<language> X </s>``.
- ``wordpiece`` and ``wordpiece-cased``: BERT's ``vocab.txt``, as its uncased and cased models read
  it (:mod:`crossloom.modalities.wordpiece`; needs the package ``tokenizers``).
- ``xlm`` and ``xlm-cased``: XLM's ``vocab.json`` and ``merges.txt``, over words that Moses cuts
  (:mod:`crossloom.modalities.word_pairs`; needs the package ``sacremoses``).
- ``clip``: CLIP's byte pairs, which need no file (:mod:`crossloom.modalities.byte_pairs`).
- ``siglip``: a SentencePiece model with ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, whose texts are lower
  case without punctuation, begin with nothing and are filled up with ``</s>``
  (``transformers: tokenization_siglip.py``).
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crossloom.modalities.byte_pairs import BytePairs
from crossloom.modalities.scripts import unspaced
from crossloom.modalities.word_pairs import WordPairs, joined
from crossloom.modalities.wordpiece import WordPiece
from crossloom.units import Array

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

#: Layouts without a mask: nothing of theirs can be hidden.
MASKLESS = ("clip", "siglip")

Layout = Literal[
    "own", "xlm-r", "mbart", "wordpiece", "wordpiece-cased", "xlm", "xlm-cased", "clip", "siglip"
]
#: mBART's language tokens in the order of their ids.
_SIGNS = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
)  # fmt: skip


class Vocabulary:
    """A SentencePiece model with its id layout.

    Attributes:
        size: number of ids, specials included.
        begin, end, pad, unknown, mask: ids of the specials, -1 where there is none.
        ordinary: ``[n]`` int64, ids that a random replacement may take.
        starts_word: ``[size]`` bool, whether a piece begins a new word.
        doubled: two passages are parted by two ends, not one.
        signs: ids of language tokens, by their codes (``de_DE``); empty where there are none.
    """

    doubled = True

    def __init__(
        self, path: str | Path, layout: Layout = "own", signs: tuple[str, ...] = ()
    ) -> None:
        """Load a model file.

        Args:
            path: of the file.
            layout: of the ids.
            signs: languages with a token of their own, in the layout ``own``.

        Raises:
            ValueError: the file is missing, is no SentencePiece model, or lacks ``<mask>``.
        """
        import sentencepiece

        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such vocabulary; train one with `crossloom tokenizer train` or give "
                "the path of a SentencePiece model as modalities.<stream>.vocabulary"
            )
        data = path.read_bytes()
        self.processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            # a run keeps the vocabulary of every layout under one name
            if b"[CLS]" in data:
                raise ValueError(
                    f"{path}: a WordPiece vocabulary, and layout is {layout}; set "
                    "modalities.<stream>.layout=wordpiece (wordpiece-cased where case is kept)"
                ) from None
            raise ValueError(f"{path}: not a SentencePiece model ({error})") from None
        model = self.processor
        pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
        self.signs: dict[str, int] = {}
        if layout in ("xlm-r", "mbart"):
            self._shift = 1
            signs = _SIGNS if layout == "mbart" else ()
            pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], *signs, "<mask>"]
            self.size = len(pieces)
            self.begin, self.pad, self.end, self.unknown, self.mask = 0, 1, 2, 3, self.size - 1
            if signs:
                self.begin, self.doubled = -1, False
                first = self.mask - len(signs)
                self.signs = {code: first + n for n, code in enumerate(signs)}
        elif layout == "siglip":
            self._shift = 0
            self.size = len(pieces)
            self.begin, self.mask = -1, -1
            # the published tokenizer fills up with the end, not with the model's own <pad>
            self.end = self.pad = model.eos_id()
            self.unknown = model.unk_id()
            if self.end < 0:
                raise ValueError(f"{path}: has no </s>; give SigLIP's spiece.model")
        else:
            self._shift = 0
            self.size = len(pieces)
            self.begin, self.pad, self.end = model.bos_id(), model.pad_id(), model.eos_id()
            self.unknown, self.mask = model.unk_id(), model.PieceToId("<mask>")
            if self.mask == self.unknown or min(self.begin, self.pad, self.end) < 0:
                raise ValueError(
                    f"{path}: has no <s>, </s>, <pad> or <mask>; train it with "
                    "`crossloom tokenizer train`, or set layout: xlm-r for an XLM-R model"
                )
            if signs:
                self.signs = {code: self.size + n for n, code in enumerate(signs)}
                pieces += [f"<{code}>" for code in signs]
                self.size, self.begin, self.doubled = len(pieces), -1, False
        self.pieces = pieces
        special = {self.begin, self.pad, self.end, self.unknown, self.mask, *self.signs.values()}
        # an id, though no text begins with it
        special |= {0} if self.signs else set()
        self.ordinary = np.array([i for i in range(self.size) if i not in special], np.int64)
        self.starts_word = np.array([_starts_word(p) for p in pieces], bool)
        identity = hashlib.sha256(data)
        identity.update(f"{layout} {sorted(special)}".encode())
        self.identity = identity.hexdigest()[:16]
        self._unknown_raw = model.unk_id()
        self._bare = layout == "siglip"

    def encode(self, text: str, language: str = "") -> Array:
        """Ids ``[n]`` int64 of a text, without specials, whatever its language."""
        if self._bare:
            text = " ".join(text.lower().translate(_NO_PUNCTUATION).split())
        ids: Array = np.array(self.processor.EncodeAsIds(text), np.int64)
        if self._shift:
            ids = np.where(ids == self._unknown_raw, self.unknown, ids + self._shift)
        return ids

    def spans(self, text: str) -> Array:
        """Characters ``[n, 2]`` int64 (first, one past the last) that each piece stands for."""
        if hasattr(self.processor, "EncodeAsImmutableProto"):  # before sentencepiece 0.2.3
            pieces = self.processor.EncodeAsImmutableProto(text).pieces
            pairs = [(p.begin, p.end) for p in pieces]
        else:
            pairs = self.processor.encode(text, out_type="offset_mapping")["offsets"]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, specials left out."""
        special = {self.begin, self.pad, self.end, self.mask, *self.signs.values()}
        return str(self.processor.DecodePieces([self.pieces[i] for i in ids if i not in special]))


#: A vocabulary of any layout.
AnyVocabulary = Vocabulary | WordPiece | WordPairs | BytePairs


def _starts_word(piece: str) -> bool:
    # of a script without spaces, every piece counts as a word of its own
    return piece.startswith("▁") or (bool(piece) and unspaced(piece[0]))


@lru_cache(maxsize=8)
def vocabulary(path: str, layout: Layout, signs: tuple[str, ...] = ()) -> AnyVocabulary:
    """The vocabulary at a path, loaded once per process."""
    if layout in ("wordpiece", "wordpiece-cased"):
        return WordPiece(path, cased=layout == "wordpiece-cased")
    if layout in ("xlm", "xlm-cased"):
        return WordPairs(path, cased=layout == "xlm-cased")
    if layout == "clip":
        return BytePairs()
    return Vocabulary(path, layout, signs)


@lru_cache(maxsize=8)
def specials(vocab: AnyVocabulary) -> tuple[int, ...]:
    """Ids that are no piece of a text."""
    return tuple(np.setdiff1d(np.arange(vocab.size), vocab.ordinary).tolist())


def in_one(path: Path, layout: str) -> bytes:
    """The file of a vocabulary as a run keeps it: XLM's two as one.

    Raises:
        ValueError: it is no vocabulary of that layout.
    """
    return joined(path).encode() if layout in ("xlm", "xlm-cased") else path.read_bytes()
