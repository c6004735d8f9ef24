"""Text as word pieces, in any number of languages.

One passage becomes ``<s> a </s>``, two become ``<s> a </s> </s> b </s>`` (RoBERTa, XLM-R); in
BERT's layouts ``[CLS] a [SEP]`` and ``[CLS] a [SEP] b [SEP]``. Pieces and ids are the vocabulary's
(:mod:`crossloom.modalities.vocabularies`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from crossloom.modalities.lay import blocks, fill, lay, turned
from crossloom.modalities.modality import Modality, Target
from crossloom.modalities.scripts import CLOSING, STOPS
from crossloom.modalities.text_embedding import TextEmbedder
from crossloom.modalities.vocabularies import (
    MASKLESS,
    AnyVocabulary,
    Layout,
    Vocabulary,
    specials,
    vocabulary,
)
from crossloom.units import Array, BadSample, Fate, Passage, Sample, Units, make_units

_ANY = 1 << 40  # a limit that no text reaches


@dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Word pieces of one or two passages.

    A sample holds ``field`` as a tuple of :class:`~crossloom.units.Passage` (what the component's
    reader chose), or as UTF-8 bytes.
    """

    kind: ClassVar[str] = "text"
    own: ClassVar[tuple[str, ...]] = ("field", "segment", "sign")
    field: str = "text"
    vocabulary: str = "tokenizer.model"
    """Path of the SentencePiece model (or ``vocab.txt``), relative to the recipe's ``data`` unless
    absolute."""
    layout: Layout = "own"
    size: int = 0
    """Number of ids the vocabulary must have: with it, a model can be built without the file. 0
    for as many as the file has."""
    limit: int = 64
    """Most units of an example, specials included; the longer passage is cut first."""
    filled: bool = False
    """Fill every text up to the limit with ``<pad>``, which are units like any other: read and
    scored with (SigLIP's text tower attends to its padding)."""
    positions: int = 0
    """Rows of the position table; 0 for as many as the limit. Published tables are longer than
    what their systems read (BERT: 512)."""
    offset: int = 0
    """Row of the first position (RoBERTa, XLM-R: 2)."""
    languages: tuple[str, ...] = ()
    """Languages with an embedding of their own (XLM); empty for none (XLM-R). Parts of a passage in
    another language than the rest (``Passage.switched``) have that language's."""
    doubled: bool = True
    """Part two passages by two ends where the layout does (XLM-R); InfoXLM's TLM has one."""
    segments: int = 1
    """Number of passage-type embeddings: 2 tells the second passage from the first (BERT)."""
    segment: int = 0
    """Passage type of the first passage: object tags beside a caption are 1 (Oscar)."""
    constant: bool = False
    """A learned vector added to every unit before the norm: the one passage type that RoBERTa and
    XLM-R keep a table for."""
    signs: tuple[str, ...] = ()
    """Languages with a token of their own, in the layout ``own``; others are then not read. The
    layout ``mbart`` has those of its 25 languages."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, each with a learned vector: where a sample has a member ``task`` (a reader's
    ``task``), that task's stands as a unit after the first, without position or passage type
    (12-in-1, section 3.2). It is counted in ``limit``."""
    sign: Literal["last", "first"] = "last"
    """Where the language token of a layout that has them stands: after the last end, as in what is
    read, or before all, as in what is said (mBART)."""
    words_of: str = ""
    """Stream of text whose table of word pieces is used; positions and norm are this stream's own
    (the decoder of BART and mBART). Empty for a table of its own."""
    inner: int = 0
    """Width of the tables of pieces, positions and types, whose sum a layer brings to the stream's
    width after the norm; 0 for that width itself. Large vocabularies need little memory so (ALBERT,
    Lan et al. 2020, section 3.1: 128; ELECTRA). What predicts pieces goes back to it."""
    scaled: bool = False
    """Multiply the embedding of a piece by the root of the width, before position and the rest are
    added (mBART)."""
    sentences: bool = False
    """Tell the sentences of a text apart (target ``sentence``: a number, -1 for specials), so that
    they can change places (``Hide.permute``). One ends with a full stop, question or exclamation
    mark, and quotes or brackets after it, where a new word follows."""
    characters: bool = False
    """Tell what each unit stands for (target ``characters``, three numbers: of the passage, of its
    first character and of the one past its last; -1 for specials): to score words, or spans."""
    stride: int = 0
    """Where the last passage does not fit, show a window of it, drawn anew at each visit; windows
    begin at most so many units apart (BERT's ``doc_stride``: 128). 0 to show its beginning."""
    restart: bool = False
    """Restart positions at the second passage (TLM in XLM)."""
    norm: bool = True
    """A layer norm over the embedding; pre-norm towers leave it to the Transformer (CLIP)."""
    marked: bool = False
    """A learned vector added to every unit after the norm, which says that it is of a text (the
    modality type of single-stream models)."""
    looks_at: str = ""
    """Stream that is seen on the text's own units, where a view shows both; empty for none. It is
    one of regions (early fusion), or with ``sees: words`` another text."""
    sees: Literal["whole", "referred", "words"] = "whole"
    """What is seen of it. ``whole``: the mean of its visible regions on every unit, through a norm
    that starts with a gain of 0 (VL-BERT, section 3.2); a learned vector where there is no image.
    ``referred``: on units of words that refer to a region, that region; on the first unit the whole
    image, where the regions have one; added after the norm (B2T2, section 3.2). ``words``: in place
    of a unit's own piece what attention finds for it among the other text's pieces
    (:class:`~crossloom.modalities.recovery.Recovery`)."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.tasks and self.filled:
            raise ValueError("tasks and filled: a text of one length has no place for its task")
        if not 0 <= self.segment < max(1, self.segments):
            raise ValueError(
                f"segment is {self.segment}; with segments={self.segments} it is below"
            )
        if self.inner and self.looks_at:
            raise ValueError("inner and looks_at: what is seen has the stream's width, not inner")
        if self.signs and self.layout != "own":
            raise ValueError(f"signs are for layout own; layout {self.layout} has its own or none")
        if self.positions and self.positions < self.offset + self.limit:
            raise ValueError(
                f"positions is {self.positions}; texts of up to {self.limit} units that start at "
                f"row {self.offset} need {self.offset + self.limit}: lower limit"
            )

    @property
    def vocab(self) -> AnyVocabulary:
        """The loaded vocabulary.

        Raises:
            ValueError: it cannot be loaded, or has another size than the field says.
        """
        found = vocabulary(self.vocabulary, self.layout, self.signs)
        if self.size and found.size != self.size:
            raise ValueError(
                f"{self.vocabulary or self.layout}: has {found.size} ids, but the recipe says "
                f"size: {self.size}; give the vocabulary the model was made for, or set size to 0"
            )
        return found

    def _mask(self) -> int:
        """The mask's id; without the file, the one that published vocabularies give it."""
        if self.layout in MASKLESS:
            return -1
        if not self.size or Path(self.vocabulary).is_file():
            return self.vocab.mask
        last = self.size - 1
        usual = {"own": 4, "xlm-r": last, "mbart": last, "xlm": 5, "xlm-cased": 5}.get(
            self.layout, 103
        )
        return min(usual, self.size - 1)

    def decode(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the sample's passages."""
        if not self.stride:
            return self._decode(sample)
        begins = self._windows(sample)
        return self._decode(sample, begins[int(rng.integers(len(begins)))])

    def windows(self, sample: Sample) -> list[Units]:
        """Units of every window of the last passage, each with the whole of the others."""
        return [self._decode(sample, begin) for begin in self._windows(sample)]

    def _windows(self, sample: Sample) -> list[int]:
        """Units of the last passage at which its windows begin."""
        passages = _passages(sample, self.field)
        *others, last = (len(self.vocab.encode(p.text)) for p in passages)
        specials = len(self._decode({self.field: [Passage(p.language, "a") for p in passages]}))
        room = self.limit - (specials - len(passages) * len(self.vocab.encode("a")))
        # as much of the others as _cut leaves them
        room = max(room - sum(others), room // 2)
        step = min(self.stride, room)  # nothing lies between two windows
        return [0, *range(step, last - room + step, step)]

    def _decode(self, sample: Sample, skipped: int = 0) -> Units:
        """Units of the passages, without the first so many of the last."""
        passages = _passages(sample, self.field)
        vocab = self.vocab
        pieces = [vocab.encode(p.text, p.language) for p in passages]
        for passage, part in zip(passages, pieces, strict=True):
            if len(part) == 0:
                raise BadSample("empty text", f"{self.field}: no units in {passage.text!r}")
        heads = [
            [vocab.begin] if vocab.begin >= 0 else [],
            [vocab.end] if vocab.doubled and self.doubled else [],
        ]
        heads, tails = heads[: len(pieces)], [[vocab.end] for _ in pieces]
        if isinstance(vocab, Vocabulary) and vocab.signs:
            sign = _sign(vocab.signs, passages[0].language)
            if self.sign == "first":
                heads[0] = [sign]
            else:
                tails[-1].append(sign)
        pieces[-1] = pieces[-1][skipped:]
        task = self._task(sample) if self.tasks else -1
        pieces = _cut(pieces, self.limit - sum(map(len, [*heads, *tails])) - int(task >= 0))
        ids: list[Array] = []
        inside: list[Array] = []
        group: list[Array] = []
        segment: list[Array] = []
        position: list[Array] = []
        language: list[Array] = []
        refers: list[Array] = []
        bound: list[Array] = []
        sentence: list[Array] = []
        begins: list[int] = []
        characters: list[Array] = []
        groups = told = 0
        for number, (passage, part) in enumerate(zip(passages, pieces, strict=True)):
            head, tail = heads[number], tails[number]
            begins.append(sum(map(len, ids)))
            ids.append(np.concatenate([head, part, tail]))
            inside.append(np.repeat([False, True, False], [len(head), len(part), len(tail)]))
            starts = vocab.starts_word[part].copy()
            starts[0] = True
            words = np.cumsum(starts)
            after = words[-1] + 1 + np.arange(len(tail))
            group.append(np.concatenate([[0] * len(head), words, after]) + groups)
            groups += int(after[-1]) + 1
            size = len(ids[-1])
            segment.append(np.full(size, min(self.segment + number, self.segments - 1)))
            begin = 0 if self.restart else begins[-1]
            position.append(np.arange(begin, begin + size))
            if self.sentences:
                numbers = _sentences([vocab.pieces[i] for i in part], starts) + told
                told = int(numbers[-1]) + 1
                sentence.append(np.concatenate([[-1] * len(head), numbers, [-1] * len(tail)]))
            if self.characters:
                at = skipped if number == len(passages) - 1 else 0
                spans = vocab.spans(passage.text)[at : at + len(part)]
                spans = np.insert(spans, 0, number, axis=1)
                characters.append(np.pad(spans, ((len(head), len(tail)), (0, 0)),
                                         constant_values=-1))  # fmt: skip
            if self._refers:
                named = _numbered(vocab.spans(passage.text)[: len(part)], passage.refers)
                refers.append(np.concatenate([[-1] * len(head), named, [-1] * len(tail)]))
            if any(p.bound for p in passages):
                numbered = _numbered(vocab.spans(passage.text)[: len(part)], passage.bound)
                bound.append(np.concatenate([[-1] * len(head), numbered, [-1] * len(tail)]))
            if self.languages:
                codes = np.full(size, self._language(passage.language))
                if passage.switched:
                    parts = [(a, b, self._language(code)) for a, b, code in passage.switched]
                    inner = codes[len(head) : len(head) + len(part)]
                    other = _numbered(vocab.spans(passage.text)[: len(part)], parts)
                    inner[other >= 0] = other[other >= 0]
                language.append(codes)
        token = np.concatenate(ids).astype(np.int64)
        content: dict[str, Array] = {"token": token}
        if self.languages:
            content["language"] = np.concatenate(language).astype(np.int64)
        if self.segments > 1:
            content["segment"] = np.concatenate(segment).astype(np.int64)
        if self._refers:
            content["refers"] = np.concatenate(refers).astype(np.int64)
        targets = {"token": token.copy()}
        if self.sentences:
            targets["sentence"] = np.concatenate(sentence).astype(np.int64)
        if self.characters:
            targets["characters"] = np.concatenate(characters).astype(np.int64)
        units = make_units(
            content,
            targets=targets,
            position=np.concatenate(position).astype(np.int64),
            maskable=np.concatenate(inside),
            group=bind(np.concatenate(group), np.concatenate(bound) if bound else None),
            languages=tuple(zip((p.language for p in passages), begins, strict=True)),
        )
        if self.tasks:
            units = _with_task(units, task, len(heads[0]))
        return fill(units, self.limit, vocab.pad) if self.filled else units

    def _task(self, sample: Sample) -> int:
        """Number of the sample's task, -1 where it has none."""
        name = sample.get("task", "")
        if name and name not in self.tasks:
            raise BadSample(
                "unknown task", f"task {name!r} is not in tasks: {', '.join(self.tasks)}"
            )
        return self.tasks.index(name) if name else -1

    @property
    def _refers(self) -> bool:
        return bool(self.looks_at) and self.sees == "referred"

    def loose(self, sample: Sample, rng: np.random.Generator) -> Units:
        """Units of the sample's passage, however many."""
        return replace(self, limit=_ANY, positions=0, filled=False).decode(sample, rng)

    def packed(self, units: Sequence[Units]) -> list[tuple[int, Units]]:
        """Passages as ``<s> a </s> b </s>`` (FULL-SENTENCES of RoBERTa, section 4.2).

        Where texts have a language token, so has the block, at the same end: passages that are
        joined are of one language.
        """
        vocab = self.vocab
        signed = isinstance(vocab, Vocabulary) and bool(vocab.signs)
        last = signed and self.sign == "last"
        if last:
            units = [turned(u, 1) for u in units]
        head = int(vocab.begin >= 0 or signed)
        out = []
        for parts in blocks([len(u) - head - 1 for u in units], self.limit, head):
            joined = lay(units, parts, head)
            joined = turned(joined, -1) if last else joined
            joined = fill(joined, self.limit, vocab.pad) if self.filled else joined
            out.append((parts[0][0], joined))
        return out

    def _language(self, code: str) -> int:
        try:
            return self.languages.index(code)
        except ValueError:
            raise BadSample("unknown language", f"language {code!r} is not listed") from None

    def blank(self) -> Units:
        """The unit ``<s>`` alone (or ``</s>``, where nothing begins a text)."""
        one = np.zeros(1, np.int64)
        vocab = self.vocab
        content = {"token": one + (vocab.begin if vocab.begin >= 0 else vocab.end)}
        content |= {"language": one} if self.languages else {}
        content |= {"segment": one} if self.segments > 1 else {}
        content |= {"refers": one - 1} if self._refers else {}
        content |= {"task": one - 1} if self.tasks else {}
        targets = {"token": one} | ({"sentence": one - 1} if self.sentences else {})
        targets |= {"characters": np.full((1, 3), -1)} if self.characters else {}
        return make_units(content, targets=targets, maskable=np.zeros(1, bool))

    def longest(self) -> int:
        """The limit."""
        return self.limit

    def predictable(self) -> Mapping[str, Target]:
        """``token``: the id itself, where the vocabulary has a mask to hide it."""
        if self.layout in MASKLESS:
            return {}
        size = self.size or self.vocab.size
        return {"token": Target(dim=size, form="index", barred=self._barred())}

    def _barred(self) -> tuple[int, ...]:
        """Ids that are no piece of a text; none without the file."""
        if self.size and not Path(self.vocabulary).is_file():
            return ()
        return specials(self.vocab)

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
            vocab=self.size or self.vocab.size,
            mask=self._mask(),
            positions=self.positions or self.offset + self.limit,
            offset=self.offset,
            limit=self.limit,
            languages=len(self.languages),
            segments=self.segments,
            tasks=len(self.tasks),
            width=width,
            dropout=self.dropout,
            norm=self.norm,
            marked=self.marked,
            looks_at=self.looks_at,
            sees=self.sees,
            constant=self.constant,
            words_of=self.words_of,
            scaled=self.scaled,
            inner=self.inner,
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


def _sentences(pieces: Sequence[str], starts: Array) -> Array:
    """Number of the sentence that each piece belongs to, ``[n]``, from 0."""
    ends = [p.rstrip(CLOSING).endswith(STOPS) for p in pieces]
    # quotes that are pieces of their own belong to the sentence they close
    for n in range(1, len(pieces)):
        ends[n] = ends[n] or (ends[n - 1] and not starts[n] and not pieces[n].strip(CLOSING))
    return np.cumsum(np.append([False], np.array(ends[:-1], bool) & starts[1:]))


def _sign(signs: Mapping[str, int], language: str) -> int:
    """The id of a language's token, by its code (``de_DE``) or the first part of it (``de``)."""
    for code, number in signs.items():
        if language in (code, code.partition("_")[0]):
            return number
    raise BadSample("unknown language", f"no token for language {language!r}; there are those of "
                    f"{', '.join(signs)}")  # fmt: skip


def _numbered(spans: Array, parts: Sequence[tuple[int, int, int]]) -> Array:
    """The number of the part that each piece lies in, ``[n]``, -1 for none; of several, the last.

    A part is its first character, the one past its last, and its number.
    """
    found = np.full(len(spans), -1, np.int64)
    for first, last, number in parts:
        found[(spans[:, 0] < last) & (spans[:, 1] > first)] = number
    return found


def bind(group: Array, bound: Array | None) -> Array:
    """Groups ``[N]`` int64 in which those of units bound by one number are one.

    Args:
        group: ``[N]``, words.
        bound: ``[N]``, -1 where a unit is bound to nothing; None where none is.
    """
    group = group.astype(np.int64)
    for number in np.unique(bound[bound >= 0]) if bound is not None else ():
        words = np.unique(group[bound == number])
        group[np.isin(group, words)] = words[0]
    return group


def _with_task(units: Units, task: int, place: int) -> Units:
    """Units that say of which task they are (-1 for none); one of its own stands at a place."""
    plain = np.arange(len(units))
    # a copy of the first unit, which is never hidden; its embedding is another
    order = np.insert(plain, place, 0) if task >= 0 else plain
    number = np.full(len(order), -1, np.int64)
    number[place : place + len(order) - len(plain)] = task
    maskable = units.maskable[order]
    maskable[number >= 0] = False
    return replace(
        units,
        content={k: v[order] for k, v in units.content.items()} | {"task": number},
        targets={k: v[order] for k, v in units.targets.items()},
        position=units.position[order],
        maskable=maskable,
        group=units.group[order],
        languages=tuple(
            (c, first + (task >= 0 and first >= place)) for c, first in units.languages
        ),
    )


def _cut(parts: list[Array], room: int) -> list[Array]:
    """Shorten parts to ``room`` units in all, the longest first."""
    sizes = [len(p) for p in parts]
    while sum(sizes) > room:
        longest = max(range(len(sizes)), key=sizes.__getitem__)
        second = max((s for i, s in enumerate(sizes) if i != longest), default=0)
        surplus = sum(sizes) - room
        sizes[longest] -= max(1, min(surplus, sizes[longest] - second))
    return [p[:n] for p, n in zip(parts, sizes, strict=True)]
