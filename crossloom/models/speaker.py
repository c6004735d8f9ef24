"""A model that says a stream unit by unit over any plan, with keys and values kept.

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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import Encoded, Stream, ViewBatch
from crossloom.modalities.modality import Embedder
from crossloom.models.attention import Layout, Sparse, on_grid, to_rectangle
from crossloom.models.model import CrossloomModel, check_order
from crossloom.objectives.reconstruct import ReconstructHead


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
