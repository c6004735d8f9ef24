"""Saying a stream unit by unit over any plan, with keys and values kept: searched, or sampled.

What is read is computed once: the first pass runs the whole view, with the opening of the stream
that is said, and keeps the keys and values of every attention in which that stream reads. Further
passes run the new units alone. This holds because nothing the stream reads may read it
(:func:`~crossloom.models.model.check_order`): an encoder's memory, or an image before a caption in
one Transformer.

Two ways to predict: from the state of the last unit said (``Generate``), or, for models trained
to fill in hidden units (``Reconstruct`` with a causal stream), from a hidden unit at the next
place, whose keys are not kept (UniLM, section 2.3; VLP).

Legend: E examples, B beams, R = E * B rows, L places, H heads, C width of a head, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import Encoded, Stream, ViewBatch
from crossloom.modalities.modality import Embedder
from crossloom.models.attention import Layout, Sparse, on_grid, to_rectangle
from crossloom.models.model import CrossloomModel, check_order
from crossloom.objectives.reconstruct import ReconstructHead
from crossloom.units import keyed_rng


@dataclass(frozen=True, kw_only=True)
class Search:
    """How units are chosen."""

    beams: int = 1
    """Continuations followed at a time; 1 is greedy."""
    longest: int = 20
    """New units at most, the end counted."""
    shortest: int = 0
    """New units before the end may come."""
    penalty: float = 1.0
    """A finished row scores its summed log probability over its length to this power, the end
    counted: above 0 favours long ones, 0 is the plain sum."""
    best: int = 1
    """Continuations returned for each example, at most ``beams``; samples, any number."""
    early: bool = True
    """Stop when ``beams`` rows have finished; else when none that goes on can win any more."""
    temperature: float = 0.0
    """Above 0, units are drawn, not searched for: from probabilities whose logarithms are divided
    by this."""
    top_k: int = 0
    """Drawn from so many likeliest units; 0 for all."""
    top_p: float = 1.0
    """Of those, from the likeliest that make up this share (nucleus; Holtzman et al. 2020)."""
    seed: int = 0
    """Of what is drawn, beside the place of the example and of its sample."""

    def __post_init__(self) -> None:
        most = self.best if self.temperature else self.beams
        if not 1 <= self.best <= most or self.longest < 1:
            raise ValueError(f"longest, and best in 1..beams, must be at least 1: {self}")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature and top_k from 0, top_p above 0 up to 1: {self}")
        if self.temperature and self.beams > 1:
            raise ValueError("beams are searched for; with a temperature, say how many by `best`")


class Said(NamedTuple):
    """One continuation."""

    units: tuple[int, ...]  #: without opening and end
    score: float  #: log probability (of the model, at no temperature), as the search scores it


@torch.inference_mode()
def generate(
    model: CrossloomModel,
    objective: str,
    view: ViewBatch,
    *,
    end: int | None,
    search: Search | None = None,
    never: Sequence[int] = (),
    forced: Tensor | None = None,
) -> list[list[Said]]:
    """Continue the units of a stream, example by example.

    Args:
        model: set to evaluation mode.
        objective: whose head predicts, and whose stream is continued.
        view: everything the stream reads, and its opening: one unit or more of each example.
        end: the class that ends a continuation; None where all are as long as the search says.
        search: greedy when None.
        never: classes that are not said (specials).
        forced: ``[E]`` or ``[E, F]`` int64, classes that are said first (a language token);
            they are not part of what is returned, nor of its score and length.

    Returns:
        For each example its best continuations, best first.

    Raises:
        ValueError: the objective predicts no classes, or a unit could know a later one.
    """
    search = search or Search()
    model.eval()
    speaker = Speaker(model, objective, view, room=search.longest + _columns(forced))
    logits = speaker.begin()
    for column in range(_columns(forced)):
        assert forced is not None
        logits = speaker.say(forced.view(len(forced), -1)[:, column].to(logits.device))
    last = -1 if end is None else end
    if search.temperature:
        return _sample(speaker, speaker.spread(search.best, logits), last, search, never)
    return _beam(speaker, speaker.spread(search.beams, logits), last, search, never)


def _columns(forced: Tensor | None) -> int:
    return 0 if forced is None else forced.view(len(forced), -1).shape[1]


class Speaker:
    """A model that has read its view and says one unit after the other, keeping what it read.

    Rows start as the examples; :meth:`spread` makes several of each, :meth:`pick` reorders them.
    """

    def __init__(self, model: CrossloomModel, objective: str, view: ViewBatch, room: int) -> None:
        """Prepare for up to ``room`` further units.

        Raises:
            ValueError: the objective predicts no classes, a unit could know a later one, or the
                stream's embedder looks at other streams.
        """
        head = dict(model.heads.items()).get(objective)
        if not isinstance(head, ReconstructHead) or head.loss != "cross_entropy":
            raise ValueError(f"objective {objective!r} predicts no classes of units to be said")
        self.model, self.head, self.stream = model, head, head.stream
        check_order(model.plan, model.views[objective], self.stream)
        embedder = model.embed[model.owner[self.stream]]
        assert isinstance(embedder, Embedder)
        if embedder.looks_at:
            raise ValueError(
                f"{self.stream!r} is embedded with an eye on {', '.join(embedder.looks_at)}, "
                "which is not kept while it is said"
            )
        self.view, self.room = view, room
        #: a hidden unit at the next place is asked, not the last unit said
        self.ahead = model.objectives[objective].generates != self.stream
        self.memory = _Memory(view, self.stream, room + 1)

    def begin(self) -> Tensor:
        """Log probabilities ``[E, V]`` of the unit after the opening."""
        encoded = self.model.encode(self.view, layout=self.memory.first())
        opening = self.view.streams[self.stream]
        last = opening.start + opening.length - 1
        self._pattern = {k: v.index_select(0, last) for k, v in opening.content.items()}
        self._whole = dict(opening.whole)
        self._position = opening.position.index_select(0, last)
        if self.ahead:
            return self._step([self._masks()], keep=0)
        return self._predict(encoded, last)

    def say(self, unit: Tensor) -> Tensor:
        """Append a unit ``[R]`` to each row; log probabilities ``[R, V]`` of the one after it."""
        self._position = self._position + 1
        new = self._at(unit, self._position, hidden=False)
        return self._step([new, self._masks()] if self.ahead else [new], keep=1)

    def spread(self, beams: int, values: Tensor) -> Tensor:
        """Make each row ``beams`` rows, one after the other; ``values [E, …]`` likewise."""
        rows = torch.arange(len(values), device=values.device).repeat_interleave(beams)
        self.pick(rows, static=True)
        return values.index_select(0, rows)

    def pick(self, rows: Tensor, *, static: bool = False) -> None:
        """Rows take the place of others.

        Args:
            rows: ``[R]`` int64, for each row the one whose past it takes.
            static: what was read is to be moved too (rows of different examples trade places).
        """
        self.memory.pick(rows, static)
        self._position = self._position.index_select(0, rows)
        if static:
            self._pattern = {k: v.index_select(0, rows) for k, v in self._pattern.items()}
            self._whole = {k: v.index_select(0, rows) for k, v in self._whole.items()}

    def _masks(self) -> Stream:
        return self._at(self._pattern[self.head.name], self._position + 1, hidden=True)

    def _at(self, unit: Tensor, position: Tensor, hidden: bool) -> Stream:
        """One unit for each row."""
        rows = torch.arange(len(unit), device=unit.device)
        return Stream(
            content={**self._pattern, self.head.name: unit},
            whole=self._whole,
            position=position,
            hidden=torch.full_like(rows, int(hidden), dtype=torch.bool),
            length=torch.ones_like(rows),
            start=rows,
            example=rows,
            longest=1,
        )

    def _step(self, new: Sequence[Stream], keep: int) -> Tensor:
        """Run new units of each row, of which the first ``keep`` are remembered."""
        stream = _abreast(new)
        view = replace(self.view, streams={self.stream: stream})
        encoded = self.model.encode(view, layout=self.memory.next(view, len(new), keep))
        return self._predict(encoded, stream.start + len(new) - 1)

    def _predict(self, encoded: Encoded, index: Tensor) -> Tensor:
        return self.head.logits(encoded, index).float().log_softmax(1)


def _abreast(parts: Sequence[Stream]) -> Stream:
    """Streams of one unit for each row as one of several, the parts in order in each row."""
    first, n = parts[0], len(parts)
    if n == 1:
        return first

    def join(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values), 1).flatten(0, 1)

    return replace(
        first,
        content={k: join([p.content[k] for p in parts]) for k in first.content},
        position=join([p.position for p in parts]),
        hidden=join([p.hidden for p in parts]),
        length=first.length * n,
        start=first.start * n,
        example=first.example.repeat_interleave(n),
        longest=n,
    )


@dataclass
class _Kept:
    """Keys and values of one attention: what was read, then what has been said."""

    keyvalue: Tensor  #: [R, L + room, 2, H, C]
    valid: Tensor  #: [R, L + room] bool
    position: Tensor  #: [R, L + room] int64, of the units of the stream; -1 for those of others
    filled: int  #: places in use
    read: int  #: of which this many are the same for all rows of an example


class _Memory:
    """Keys and values by attention, in the order in which a pass meets those the stream reads by.

    Every pass meets them in the same order, so that their number identifies them, even where
    layers share their weights.
    """

    def __init__(self, view: ViewBatch, stream: str, room: int) -> None:
        self.view, self.stream, self.room = view, stream, room
        self.kept: list[_Kept] = []

    def first(self) -> Layout:
        """The layout of the pass that reads the whole view."""
        self.kept.clear()
        return _First(self)

    def next(self, view: ViewBatch, new: int, keep: int) -> Layout:
        """The layout of a pass over ``new`` units of each row."""
        return _Next(view, self, new, keep)

    def pick(self, rows: Tensor, static: bool) -> None:
        """See :meth:`Speaker.pick`; what an example's rows read is the same for all of them."""
        for kept in self.kept:
            if static:
                kept.keyvalue = kept.keyvalue.index_select(0, rows)
                kept.valid = kept.valid.index_select(0, rows)
                kept.position = kept.position.index_select(0, rows)
            elif kept.filled > kept.read:
                said = slice(kept.read, kept.filled)
                kept.keyvalue[:, said] = kept.keyvalue[:, said].index_select(0, rows)


class _First(Layout):
    """Attends as ever, and keeps keys and values where the stream reads."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__(memory.view)
        self.memory = memory

    def attend(
        self,
        q: Tensor,
        keyvalue: Tensor | None,
        readers: tuple[str, ...],
        read: tuple[str, ...],
        causal: tuple[str, ...],
        sparse: Sparse,
        dropout: float,
    ) -> Tensor:
        memory = self.memory
        if memory.stream in readers:
            assert keyvalue is not None
            where = self.together(read)
            grows = memory.room if memory.stream in read else 0
            valid = where.valid
            if self.unseen(read):
                valid = valid & self.seen((memory.stream,), read)[:, 0, 0]
            memory.kept.append(
                _Kept(
                    keyvalue=F.pad(to_rectangle(keyvalue, where), (0, 0) * 3 + (0, grows)),
                    valid=F.pad(valid, (0, grows)),
                    position=F.pad(self.cells(read, memory.stream), (0, grows), value=-1),
                    filled=where.longest,
                    read=where.longest,
                )
            )
        return super().attend(q, keyvalue, readers, read, causal, sparse, dropout)


class _Next(Layout):
    """Attends from new units of the stream to everything kept and to each other."""

    def __init__(self, view: ViewBatch, memory: _Memory, new: int, keep: int) -> None:
        super().__init__(view)
        self.memory, self.new, self.keep = memory, new, keep
        self.waiting = iter(memory.kept)

    def readable(self, reader: str, names: tuple[str, ...]) -> tuple[str, ...]:
        # as in the first pass: streams that are not run again can still be read
        return self.memory.view.readable(reader, names)

    def attend(
        self,
        q: Tensor,
        keyvalue: Tensor | None,
        readers: tuple[str, ...],
        read: tuple[str, ...],
        causal: tuple[str, ...],
        sparse: Sparse,
        dropout: float,
    ) -> Tensor:
        kept, new = next(self.waiting), self.new
        filled = kept.filled
        if keyvalue is not None:
            here = slice(filled, filled + new)
            kept.keyvalue[:, here] = keyvalue.unflatten(0, (-1, new))
            kept.valid[:, here] = True
            kept.position[:, here] = self.view.streams[self.memory.stream].position.view(-1, new)
            filled += new
        mask = kept.valid[:, None, None, :filled]
        if keyvalue is not None and new > 1:
            later = torch.ones(new, filled, dtype=torch.bool, device=q.device).triu(
                filled - new + 1
            )
            mask = mask & ~later
        for grid in (grid for name, grid in sparse if name == self.memory.stream):
            place = self.view.streams[self.memory.stream].position.view(-1, new)
            mask = mask & on_grid(grid, place, kept.position[:, :filled])[:, None]
        k, v = kept.keyvalue[:, :filled].unbind(2)
        out = F.scaled_dot_product_attention(
            q.unflatten(0, (-1, new)).transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
        )
        if keyvalue is not None:
            kept.filled += self.keep
            # a unit that is only asked, not said, is forgotten
            kept.valid[:, kept.filled : filled] = False
        else:
            # a row whose examples have nothing there to read receives zero
            out = out.masked_fill(~kept.valid.any(1)[:, None, None, None], 0)
        return out.transpose(1, 2).flatten(0, 1)


def _sample(
    speaker: Speaker, logits: Tensor, end: int, search: Search, never: Sequence[int]
) -> list[list[Said]]:
    """Independent continuations, ``best`` of each example, all at a time."""
    rows, device = len(logits), logits.device
    keys = (divmod(row, search.best) for row in range(rows))
    drawn = [keyed_rng("sample", search.seed, *key).random(search.longest) for key in keys]
    lots = torch.from_numpy(np.stack(drawn)).to(device)
    barred = torch.tensor([n for n in never if n != end], dtype=torch.long, device=device)
    total = torch.zeros(rows, device=device)
    length = torch.zeros(rows, dtype=torch.long, device=device)
    over = torch.zeros(rows, dtype=torch.bool, device=device)
    said: list[Tensor] = []
    for place in range(search.longest):
        logits = logits.index_fill(1, barred, -math.inf)
        if place < search.shortest and end >= 0:
            logits[:, end] = -math.inf
        unit = choose(logits, search, lots[:, place])
        total += logits.gather(1, unit[:, None])[:, 0].masked_fill(over, 0.0)
        length += ~over
        over |= unit == end
        said.append(unit)
        if len(said) == search.longest or (end >= 0 and bool(over.all())):
            break
        logits = speaker.say(unit)
    scores = (total / length**search.penalty).tolist()
    ended = (length - over.long()).tolist()
    lists = torch.stack(said, 1).tolist()
    found = [Said(tuple(u[:n]), s) for u, n, s in zip(lists, ended, scores, strict=True)]
    parts = [found[n : n + search.best] for n in range(0, rows, search.best)]
    return [sorted(some, key=lambda s: -s.score) for some in parts]


def choose(logits: Tensor, search: Search, lots: Tensor) -> Tensor:
    """A unit for each row, ``[R]``, as temperature, ``top_k`` and ``top_p`` say.

    Args:
        logits: ``[R, V]``.
        search: with a temperature.
        lots: ``[R]`` in 0..1: where in the distribution, the likeliest units first.
    """
    chance, order = (
        (logits.double() / search.temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    )
    if search.top_k:
        chance[:, search.top_k :] = 0
    before = chance.cumsum(1) - chance
    chance = chance.masked_fill(before >= search.top_p * chance.sum(1, keepdim=True), 0)
    reach = chance.cumsum(1)
    place = (reach <= lots[:, None] * reach[:, -1:]).sum(1)
    last = (chance > 0).sum(1) - 1  # what rounding would put past the last
    return order.gather(1, torch.minimum(place, last)[:, None])[:, 0]


def _beam(
    speaker: Speaker, logits: Tensor, end: int, search: Search, never: Sequence[int]
) -> list[list[Said]]:
    """Beam search, all examples at a time."""
    beams, device = search.beams, logits.device
    examples, classes = len(logits) // beams, logits.shape[1]
    barred = torch.tensor([n for n in never if n != end], dtype=torch.long, device=device)
    # all rows of an example are alike at first: only one of them may go on
    total = torch.full((examples, beams), -math.inf, device=device)
    total[:, 0] = 0
    said = torch.zeros(examples, beams, 0, dtype=torch.long, device=device)
    done: list[list[Said]] = [[] for _ in range(examples)]
    begin = torch.arange(examples, device=device)[:, None] * beams
    for length in range(1, search.longest + 1):
        logits = logits.index_fill(1, barred, -math.inf)
        if length <= search.shortest and end >= 0:
            logits[:, end] = -math.inf
        scores = (total.view(-1, 1) + logits).view(examples, -1)
        # enough that `beams` rows go on even if every row could end
        best, where = scores.topk(min(2 * beams, scores.shape[1]), dim=1)
        row, unit = where // classes, where % classes
        ends = unit == end
        _finish(done, best, row, ends, said, search, length)
        # rows that go on: the best that do not end, in order
        order = (best.masked_fill(ends, -math.inf)).argsort(stable=True, dim=1, descending=True)
        order = order[:, :beams]
        if order.shape[1] < beams:
            order = F.pad(order, (0, beams - order.shape[1]), value=int(order.shape[1]) - 1)
        total = best.masked_fill(ends, -math.inf).gather(1, order)
        row, unit = row.gather(1, order), unit.gather(1, order)
        past = said.gather(1, row[:, :, None].expand(-1, -1, said.shape[2]))
        said = torch.cat([past, unit[:, :, None]], 2)
        if length == search.longest or _settled(done, total, search, length):
            break
        speaker.pick((begin + row).view(-1))
        logits = speaker.say(unit.view(-1))
    _cut_short(done, total, said, search)
    return [sorted(some, key=lambda s: -s.score)[: search.best] for some in done]


def _finish(
    done: list[list[Said]],
    best: Tensor,
    row: Tensor,
    ends: Tensor,
    said: Tensor,
    search: Search,
    length: int,
) -> None:
    """Take in rows that end, if they are among the best ``beams`` of their example."""
    if not bool(ends.any()):
        return
    lists = (x.tolist() for x in (best, row, ends, said))
    for found, scores, rows, over, past in zip(done, *lists, strict=True):
        if _full(found, search):
            continue
        for place in range(min(search.beams, len(scores))):
            if over[place] and scores[place] > -math.inf:
                found.append(Said(tuple(past[rows[place]]), scores[place] / length**search.penalty))
        found.sort(key=lambda s: -s.score)
        del found[search.beams :]


def _full(found: Sequence[Said], search: Search) -> bool:
    return search.early and len(found) >= search.beams


def _settled(done: Sequence[Sequence[Said]], total: Tensor, search: Search, length: int) -> bool:
    """Whether no example has anything to gain by going on."""
    if any(len(found) < search.beams for found in done):
        return False
    if search.early:
        return True
    # sums only fall; a positive penalty divides them by more the longer they get
    reach = search.longest if search.penalty > 0 else length + 1
    hope = (total.max(1).values / reach**search.penalty).tolist()
    return all(found[-1].score >= h for found, h in zip(done, hope, strict=True))


def _cut_short(done: Sequence[list[Said]], total: Tensor, said: Tensor, search: Search) -> None:
    """Rows that were still going on at the length's limit compete as they are."""
    length = said.shape[2]
    for found, scores, rows in zip(done, total.tolist(), said.tolist(), strict=True):
        if length < search.longest or _full(found, search):
            continue
        found.extend(
            Said(tuple(units), score / length**search.penalty)
            for units, score in zip(rows, scores, strict=True)
            if score > -math.inf
        )
