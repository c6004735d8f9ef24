"""Text as SentencePiece units, in any number of languages.

Two id layouts are read:

- ``own``: a model trained by ``crossloom tokenizer train``; ids are the model's own
  (``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>`` 4, pieces from 5).
- ``xlm-r``: an existing ``sentencepiece.bpe.model`` read with the layout of XLM-R: the model's ids
  are shifted by one, the four specials take 0..3 and ``<mask>`` comes last
  (``transformers: tokenization_xlm_roberta.py``).

One passage becomes ``<s> a </s>``, two become ``<s> a </s> </s> b </s>`` (RoBERTa, XLM-R).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.batch import Stream
from crossloom.modalities.lay import fill, lay
from crossloom.modalities.modality import Embedder, Modality, Target
from crossloom.units import Array, BadSample, Fate, Passage, Sample, Units, make_units

#: Scripts written without spaces: there every piece counts as a word of its own.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")

Layout = Literal["own", "xlm-r"]
_ANY = 1 << 40  # a limit that no text reaches


class Vocabulary:
    """A SentencePiece model with its id layout.

    Attributes:
        size: number of ids, specials included.
        begin, end, pad, unknown, mask: ids of the specials.
        ordinary: ``[n]`` int64, ids that a random replacement may take.
        starts_word: ``[size]`` bool, whether a piece begins a new word.
    """

    def __init__(self, path: str | Path, layout: Layout = "own") -> None:
        """Load a model file.

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
            raise ValueError(f"{path}: not a SentencePiece model ({error})") from None
        model = self.processor
        pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
        if layout == "xlm-r":
            self._shift = 1
            self.size = len(pieces) + 2
            self.begin, self.pad, self.end, self.unknown, self.mask = 0, 1, 2, 3, self.size - 1
            pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:], "<mask>"]
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
        self.pieces = pieces
        special = {self.begin, self.pad, self.end, self.unknown, self.mask}
        self.ordinary = np.array([i for i in range(self.size) if i not in special], np.int64)
        self.starts_word = np.array([_starts_word(p) for p in pieces], bool)
        identity = hashlib.sha256(data)
        identity.update(f"{layout} {sorted(special)}".encode())
        self.identity = identity.hexdigest()[:16]
        self._unknown_raw = model.unk_id()

    def encode(self, text: str) -> Array:
        """Ids ``[n]`` int64 of a text, without specials."""
        ids: Array = np.array(self.processor.EncodeAsIds(text), np.int64)
        if self._shift:
            ids = np.where(ids == self._unknown_raw, self.unknown, ids + self._shift)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, specials left out."""
        special = {self.begin, self.pad, self.end, self.mask}
        return str(self.processor.DecodePieces([self.pieces[i] for i in ids if i not in special]))


def _starts_word(piece: str) -> bool:
    if piece.startswith("▁"):
        return True
    first = unicodedata.name(piece[0], "") if piece else ""
    return first.startswith(_UNSPACED)


@lru_cache(maxsize=8)
def vocabulary(path: str, layout: Layout) -> Vocabulary:
    """The vocabulary at a path, loaded once per process."""
    return Vocabulary(path, layout)


@dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """SentencePiece units of one or two passages.

    A sample holds ``field`` as a tuple of :class:`~crossloom.units.Passage` (what the component's
    reader chose), or as UTF-8 bytes.
    """

    kind: ClassVar[str] = "text"
    field: str = "text"
    vocabulary: str = "tokenizer.model"
    """Path of the SentencePiece model, relative to the recipe's ``data`` unless absolute."""
    layout: Layout = "own"
    limit: int = 64
    """Most units of an example, specials included; the longer passage is cut first."""
    languages: tuple[str, ...] = ()
    """Languages with an embedding of their own (XLM); empty for none (XLM-R)."""
    segments: int = 1
    """Number of passage-type embeddings: 2 tells the second passage from the first (BERT)."""
    restart: bool = False
    """Restart positions at the second passage (TLM in XLM)."""
    dropout: float = 0.1

    @property
    def vocab(self) -> Vocabulary:
        """The loaded vocabulary."""
        return vocabulary(self.vocabulary, self.layout)

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the sample's passages."""
        passages = _passages(sample, self.field)
        vocab = self.vocab
        pieces = [vocab.encode(p.text) for p in passages]
        for passage, part in zip(passages, pieces, strict=True):
            if len(part) == 0:
                raise BadSample("empty text", f"{self.field}: no units in {passage.text!r}")
        pieces = _cut(pieces, self.limit - 2 * len(pieces))
        ids: list[Array] = []
        group: list[Array] = []
        segment: list[Array] = []
        position: list[Array] = []
        language: list[Array] = []
        groups = 0
        for number, (passage, part) in enumerate(zip(passages, pieces, strict=True)):
            head = vocab.begin if number == 0 else vocab.end
            ids.append(np.concatenate([[head], part, [vocab.end]]))
            starts = vocab.starts_word[part].copy()
            starts[0] = True
            words = np.cumsum(starts)
            group.append(np.concatenate([[0], words, [words[-1] + 1]]) + groups)
            groups += int(words[-1]) + 2
            size = len(part) + 2
            segment.append(np.full(size, min(number, self.segments - 1)))
            begin = 0 if number == 0 or self.restart else sum(len(i) for i in ids[:-1])
            position.append(np.arange(begin, begin + size))
            if self.languages:
                language.append(np.full(size, self._language(passage.language)))
        token = np.concatenate(ids).astype(np.int64)
        content: dict[str, Array] = {"token": token}
        if self.languages:
            content["language"] = np.concatenate(language).astype(np.int64)
        if self.segments > 1:
            content["segment"] = np.concatenate(segment).astype(np.int64)
        return make_units(
            content,
            targets={"token": token.copy()},
            position=np.concatenate(position).astype(np.int64),
            maskable=(token != vocab.begin) & (token != vocab.end),
            group=np.concatenate(group).astype(np.int64),
        )

    def loose(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the sample's passage, however many."""
        return replace(self, limit=_ANY).decode(sample, rng)

    def join(self, units: Sequence[Units]) -> list[tuple[int, Units]]:
        """Passages as ``<s> a </s> b </s>`` (FULL-SENTENCES of RoBERTa, section 4.2)."""
        blocks = fill([len(u) - 2 for u in units], self.limit)
        return [(parts[0][0], lay(units, parts)) for parts in blocks]

    def _language(self, code: str) -> int:
        try:
            return self.languages.index(code)
        except ValueError:
            raise BadSample("unknown language", f"language {code!r} is not listed") from None

    def blank(self) -> Units:
        """The unit ``<s>`` alone."""
        one = np.zeros(1, np.int64)
        content = {"token": one + self.vocab.begin}
        content |= {"language": one} if self.languages else {}
        content |= {"segment": one} if self.segments > 1 else {}
        return make_units(content, targets={"token": one}, maskable=np.zeros(1, bool))

    def longest(self) -> int:
        """The limit."""
        return self.limit

    def predictable(self) -> Mapping[str, Target]:
        """``token``: the id itself."""
        return {"token": Target(dim=self.vocab.size, form="index")}

    def substitute(
        self, units: Units, fate: Array, rng: np.random.Generator
    ) -> Mapping[str, Array]:
        """Hidden ids become ``<mask>``, swapped ones a random ordinary id."""
        token = np.where(fate == Fate.HIDE, self.vocab.mask, units.content["token"])
        swapped = np.flatnonzero(fate == Fate.SWAP)
        if len(swapped):
            token[swapped] = rng.choice(self.vocab.ordinary, size=len(swapped))
        return {**units.content, "token": token}

    def embedder(self, width: int) -> TextEmbedder:
        """Sum of token, position, language and segment embeddings, layer norm, dropout."""
        return TextEmbedder(
            vocab=self.vocab.size,
            mask=self.vocab.mask,
            positions=self.limit,
            languages=len(self.languages),
            segments=self.segments,
            width=width,
            dropout=self.dropout,
        )

    def identity(self) -> str:
        """Hash of the model file, the layout and the special ids."""
        return self.vocab.identity


def _passages(sample: Sample, field: str) -> tuple[Passage, ...]:
    value = sample.get(field)
    if value is None:
        raise BadSample(
            "missing member", f"no member {field!r}; it has {', '.join(sorted(sample))}"
        )
    if isinstance(value, bytes):
        try:
            return (Passage("", value.decode("utf-8")),)
        except UnicodeDecodeError as error:
            raise BadSample("not UTF-8", f"{field}: {error}") from None
    return tuple(value)


def _cut(parts: list[Array], room: int) -> list[Array]:
    """Shorten parts to ``room`` units in all, the longest first."""
    sizes = [len(p) for p in parts]
    while sum(sizes) > room:
        longest = max(range(len(sizes)), key=sizes.__getitem__)
        second = max((s for i, s in enumerate(sizes) if i != longest), default=0)
        surplus = sum(sizes) - room
        sizes[longest] -= max(1, min(surplus, sizes[longest] - second))
    return [p[:n] for p, n in zip(parts, sizes, strict=True)]


class TextEmbedder(Embedder):
    """Embeddings of text units, as in BERT and XLM-R."""

    def __init__(
        self,
        *,
        vocab: int,
        mask: int,
        positions: int,
        languages: int,
        segments: int,
        width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.token = nn.Embedding(vocab, width)
        self.position = nn.Embedding(positions, width)
        self.language = nn.Embedding(languages, width) if languages else None
        self.segment = nn.Embedding(segments, width) if segments > 1 else None
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stream: Stream) -> Tensor:
        """``[N, width]``."""
        token = torch.where(stream.hidden, self.mask, stream.content["token"])
        x = self.token(token) + self.position(stream.position)
        if self.language is not None:
            x = x + self.language(stream.content["language"])
        if self.segment is not None:
            x = x + self.segment(stream.content["segment"])
        return self.dropout(self.norm(x))

    def tied(self, target: str) -> Tensor | None:
        """The token embedding, for the target ``token``."""
        return self.token.weight if target == "token" else None
