"""Attention between ragged streams: one function, whatever the plan asks for.

Queries are the units of one or more streams laid end to end, keys those of the streams they read.
A :class:`Together` says where each example's units of several streams lie, once per view.
Two back ends give the same numbers: a padded masked one (any device), and variable-length kernels
(``torch.nn.attention.varlen``, CUDA with bf16 or fp16) when nothing is masked inside an example,
or all that is masked is what a lone stream would read of its own future (no grid's pattern);
without dropout of weights, and for heads as wide as the kernels take.

Legend: E examples, N units laid flat, L longest example, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import Stream, ViewBatch
from crossloom.models.plan import Grid

#: Streams that read a part of their own units, with the pattern.
Sparse = tuple[tuple[str, Grid], ...]

#: Whether the kernel has a flag for reading no later unit; it has windows since torch 2.11. Its
#: signature would tell, but looking takes a second of every process that starts.
_FLAGGED = torch.__version__.startswith("2.10.")
#: Units of a head's width that its kernels take, in multiples of eight.
_WIDEST = 256


@dataclass(frozen=True)
class Together:
    """The units of several streams, example by example.

    Units lie flat, stream after stream; ``pad`` finds them as a rectangle of examples.
    """

    length: Tensor  #: [E] int64, units of each example over the streams
    longest: int  #: L
    pad: Tensor  #: [E * L] flat index of each place (of unit 0 where there is none)
    valid: Tensor  #: [E, L] bool
    back: Tensor  #: [N] place of each flat unit in the rectangle
    full: bool  #: every example fills its row (known on the host)
    alone: bool  #: of one stream, whose units lie example by example as they are
    # what variable-length kernels want
    bounds: Tensor  #: [E + 1] int32 cumulative lengths
    ordered: Tensor  #: [N] flat index of the units in example order
    unordered: Tensor  #: [N] place in example order of each flat unit


def together(streams: Mapping[str, Stream], names: tuple[str, ...]) -> Together:
    """Where each example's units of the named streams lie."""
    parts = [streams[n] for n in names]
    longest = sum(p.longest for p in parts)
    flat_before, place_before = 0, torch.zeros_like(parts[0].length)
    bounds = F.pad(torch.stack([p.length for p in parts]).sum(0).cumsum(0), (1, 0))
    back, unordered = [], []
    for part in parts:
        unit = torch.arange(len(part.position), device=part.position.device)
        column = unit - part.start[part.example] + place_before[part.example]
        back.append(part.example * longest + column)
        unordered.append(bounds[part.example] + column)
        place_before = place_before + part.length
        flat_before += len(unit)
    places, orders = torch.cat(back), torch.cat(unordered)
    examples = len(parts[0].length)
    units = torch.arange(flat_before, device=places.device)
    pad = places.new_zeros(examples * longest).scatter(0, places, units)
    column = torch.arange(longest, device=places.device)
    return Together(
        length=place_before,
        longest=longest,
        pad=pad,
        valid=column < place_before[:, None],
        back=places,
        full=flat_before == examples * longest,
        alone=len(names) == 1,
        bounds=bounds.to(torch.int32),
        ordered=torch.empty_like(orders).scatter(0, orders, units),
        unordered=orders,
    )


class _Move(torch.autograd.Function):
    """``x[index]`` whose backward is a gather too: quick and deterministic.

    ``index`` places rows, ``reverse`` finds for each row of ``x`` its one true place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, reverse: Tensor, keep: Tensor | None) -> Tensor:
        ctx.save_for_backward(reverse, *([] if keep is None else [keep]))
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        reverse, *keep = ctx.saved_tensors
        out = gradient.index_select(0, reverse)
        if keep:
            out = out * keep[0].to(out.dtype)
        return out, None, None, None


def to_rectangle(x: Tensor, where: Together) -> Tensor:
    """``[N, …]`` laid flat to ``[E, L, …]``; places without a unit hold an arbitrary row."""
    # what fills its rows lies there already
    out = x if where.alone and where.full else _Move.apply(x, where.pad, where.back, None)
    return out.view(len(where.length), where.longest, *x.shape[1:])


def to_flat(x: Tensor, where: Together) -> Tensor:
    """``[E, L, …]`` back to ``[N, …]``."""
    flat = x.reshape(-1, *x.shape[2:])
    if where.alone and where.full:
        return flat
    keep = where.valid.reshape(-1, *[1] * (flat.dim() - 1))
    out: Tensor = _Move.apply(flat, where.back, where.pad, keep)
    return out


@dataclass(frozen=True)
class Attention:
    """What one block's readers looked at, kept for people to see."""

    queries: tuple[str, ...]
    keys: tuple[str, ...]
    weights: Tensor  #: [E, H, Lq, Lk], rows of real queries sum to one
    to: Together
    of: Together


class Layout:
    """Everything attention needs to know of one view; parts are made when first asked for."""

    def __init__(self, view: ViewBatch, record: list[Attention] | None = None) -> None:
        self.view = view
        self.record = record
        self._together: dict[tuple[str, ...], Together] = {}
        self._mask: dict[tuple[Any, ...], Tensor | None] = {}

    def present(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the streams that the view shows."""
        return tuple(n for n in names if n in self.view.streams)

    def readable(self, reader: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """What a stream may read in this view."""
        return self.view.readable(reader, names)

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
        """What each reader gathers, ``[Nq, H, C]``; where units are said, keys are kept here.

        Args:
            q: ``[Nq, H, C]``, units of ``readers`` end to end.
            keyvalue: ``[Nk, 2, H, C]``, units of ``read`` end to end; None when there are none.
            readers, read: stream names.
            causal: streams whose units read no later unit of their own stream.
            sparse: streams whose units read a part of their own stream.
            dropout: of attention weights.
        """
        assert keyvalue is not None
        k, v = keyvalue.unbind(1)
        return attention(q, k, v, self, readers, read, causal, sparse, dropout)

    def together(self, names: tuple[str, ...]) -> Together:
        """Where the units of these streams lie."""
        if names not in self._together:
            self._together[names] = together(self.view.streams, names)
        return self._together[names]

    def roomy(self, names: tuple[str, ...]) -> bool:
        """Whether some units of these streams are not real, and must not be read."""
        return any(self.view.streams[n].real is not None for n in names)

    def mask(
        self,
        queries: tuple[str, ...],
        keys: tuple[str, ...],
        causal: tuple[str, ...],
        sparse: Sparse = (),
    ) -> Tensor | None:
        """What may be read: bool, broadcastable to ``[E, 1, Lq, Lk]``; None when all of it."""
        signature = (queries, keys, causal, sparse)
        if signature not in self._mask:
            self._mask[signature] = self._make_mask(*signature)
        return self._mask[signature]

    def _make_mask(
        self,
        queries: tuple[str, ...],
        keys: tuple[str, ...],
        causal: tuple[str, ...],
        sparse: Sparse,
    ) -> Tensor | None:
        k = self.together(keys)
        mask = None if k.full else k.valid[:, None, None, :]
        if self.roomy(keys):
            streams = [self.view.streams[n] for n in keys]
            real = [s.hidden.new_ones(len(s.hidden)) if s.real is None else s.real for s in streams]
            mask = (k.valid & torch.cat(real)[k.pad].view_as(k.valid))[:, None, None, :]
        shape = (len(k.length), 1, -1, k.longest)
        if self.view.across:
            allowed = self._across(queries, keys).view(shape)
            mask = allowed if mask is None else allowed & mask
        if self.unseen(keys):
            allowed = self.seen(queries, keys)
            mask = allowed if mask is None else allowed & mask
        if causal:
            allowed = ~self._later(queries, keys, causal).view(shape)
            mask = allowed if mask is None else allowed & mask
        for name, grid in sparse:
            q_place, k_place = (self.cells(n, name) for n in (queries, keys))
            # places without a unit read whatever there is: a softmax over nothing has no gradient
            q_place = q_place.masked_fill(~self.together(queries).valid, -1)
            allowed = on_grid(grid, q_place, k_place).view(shape)
            mask = allowed if mask is None else allowed & mask
        return mask

    def cells(self, names: tuple[str, ...], stream: str) -> Tensor:
        """Of each place: the position of its unit in a stream, -1 for units of others, [E, L]."""
        shown = [self.view.streams[n] for n in names]
        return self._spread(
            [
                s.position if n == stream else torch.full_like(s.position, -1)
                for n, s in zip(names, shown, strict=True)
            ],
            names,
        )

    def unseen(self, names: tuple[str, ...]) -> bool:
        """Whether other streams must not read some units of these."""
        return any(n in names for n in self.view.unseen)

    def seen(self, queries: tuple[str, ...], keys: tuple[str, ...]) -> Tensor:
        """Pairs of places whose key is not hidden from the query, ``[E, 1, 1 or Lq, Lk]``."""
        k, streams = self.together(keys), self.view.streams
        out = None
        for name in self.view.unseen:
            if name not in keys:
                continue
            hidden = [streams[n].hidden & (n == name) for n in keys]
            seen = ~torch.cat(hidden)[k.pad].view_as(k.valid)[:, None, None, :]
            if name in queries:
                q = self.together(queries)
                mine = [torch.full_like(streams[n].hidden, n == name) for n in queries]
                seen = seen | torch.cat(mine)[q.pad].view(-1, 1, q.longest, 1)
            out = seen if out is None else out & seen
        assert out is not None
        return out

    def _later(
        self, queries: tuple[str, ...], keys: tuple[str, ...], causal: tuple[str, ...]
    ) -> Tensor:
        """Pairs of places of one causal stream whose key comes after the query, [E, Lq, Lk]."""
        (q_which, q_order), (k_which, k_order) = (self._places(n, causal) for n in (queries, keys))
        same = (q_which[:, :, None] == k_which[:, None, :]) & (q_which[:, :, None] >= 0)
        return same & (k_order[:, None, :] > q_order[:, :, None])

    def _across(self, queries: tuple[str, ...], keys: tuple[str, ...]) -> Tensor:
        """Pairs of places that may be read where hidden units read across, [E, Lq, Lk].

        Raises:
            ValueError: the plan's block has streams read some of the view's only.
        """
        if set(keys) != set(self.view.streams):
            raise ValueError(
                f"plan: {', '.join(queries)} read {', '.join(keys)} in one block; a view with "
                f"across needs a plan in which all of {', '.join(self.view.streams)} read "
                "themselves and each other (single_stream)"
            )
        (q_which, q_order), (k_which, k_order) = (self._places(n, keys) for n in (queries, keys))
        q_hidden, k_hidden = (
            self._spread([self.view.streams[n].hidden for n in names], names)
            for names in (queries, keys)
        )
        same = q_which[:, :, None] == k_which[:, None, :]
        itself = same & (q_order[:, :, None] == k_order[:, None, :])
        # places without a unit read whatever there is: a softmax over nothing has no gradient
        nobody = ~self.together(queries).valid[:, :, None]
        return itself | ((same ^ q_hidden[:, :, None]) & ~k_hidden[:, None, :]) | nobody

    def _places(self, names: tuple[str, ...], listed: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Of each place: its stream's number in ``listed`` (-1: none), and which unit of it is."""
        streams = [self.view.streams[n] for n in names]
        numbers = [listed.index(n) if n in listed else -1 for n in names]
        which = [torch.full_like(s.position, n) for s, n in zip(streams, numbers, strict=True)]
        order = [
            torch.arange(len(s.position), device=s.position.device) - s.start[s.example]
            for s in streams
        ]
        return self._spread(which, names), self._spread(order, names)

    def _spread(self, values: list[Tensor], names: tuple[str, ...]) -> Tensor:
        """Values of units, stream after stream, at their places, [E, L]."""
        where = self.together(names)
        return torch.cat(values)[where.pad].view(-1, where.longest)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    queries: tuple[str, ...],
    keys: tuple[str, ...],
    causal: tuple[str, ...] = (),
    sparse: Sparse = (),
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention inside each example.

    Args:
        q: ``[Nq, H, C]``, units of ``queries`` end to end.
        k, v: ``[Nk, H, C]``, units of ``keys`` end to end.
        layout: of the view.
        queries, keys: stream names, in the order in which units are laid.
        causal: streams whose units read no later unit of their own stream.
        sparse: streams whose units read a part of their own stream.
        dropout: of attention weights.

    Returns:
        ``[Nq, H, C]``; zero for units that have nothing to read.
    """
    causal = tuple(c for c in causal if c in queries and c in keys)
    sparse = tuple((s, grid) for s, grid in sparse if s in queries and s in keys)
    to, of = layout.together(queries), layout.together(keys)
    if not (to.longest and of.longest):
        # no unit to read, or none that reads: zero, and a gradient of zero for every weight
        return q * 0 + (k.sum() + v.sum()) * 0
    if layout.record is not None:
        mask = layout.mask(queries, keys, causal, sparse)
        layout.record.append(Attention(queries, keys, _weights(q, k, to, of, mask), to, of))
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= _WIDEST
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and not dropout and fits:
        restricted = layout.roomy(keys) or layout.view.across or layout.unseen(keys) or sparse
        # beside other streams, a causal one would need a mask of its own
        if not restricted and (not causal or causal == queries == keys):
            return varlen(q, k, v, to, of, causal=bool(causal))
    mask = layout.mask(queries, keys, causal, sparse)
    out = F.scaled_dot_product_attention(
        to_rectangle(q, to).transpose(1, 2),
        to_rectangle(k, of).transpose(1, 2),
        to_rectangle(v, of).transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
    )
    out = to_flat(out.transpose(1, 2), to)
    if layout.unseen(keys):
        assert mask is not None
        nothing = (~mask.any(-1)).expand(-1, 1, to.longest).reshape(-1)
        out = out.masked_fill(nothing.index_select(0, to.back)[:, None, None], 0)
    if queries == keys or set(queries) <= set(keys):
        return out  # every unit reads at least itself
    empty = (of.length == 0)[torch.cat([layout.view.streams[n].example for n in queries])]
    return out.masked_fill(empty[:, None, None], 0)


def on_grid(grid: Grid, query: Tensor, key: Tensor) -> Tensor:
    """Pairs of positions of which the first may read the second.

    Args:
        grid: the pattern.
        query: ``[E, Lq]`` positions in the stream; what is no unit of it lies before the grid.
        key: ``[E, Lk]`` likewise.

    Returns:
        ``[E, Lq, Lk]`` bool.
    """
    query, key = query - grid.first, key - grid.first
    apart = (query[:, :, None] - key[:, None, :]).abs()
    if grid.reads == "row":
        read = apart <= grid.side
    elif grid.reads == "column":
        read = apart % grid.side == 0
    else:
        reach = grid.kernel // 2
        read = ((apart + reach) % grid.side < grid.kernel) & (apart <= reach * (grid.side + 1))
    return read | (query < 0)[:, :, None] | (key < 0)[:, None, :]


def _weights(q: Tensor, k: Tensor, to: Together, of: Together, mask: Tensor | None) -> Tensor:
    rows = to_rectangle(q, to).transpose(1, 2).float()
    columns = to_rectangle(k, of).permute(0, 2, 3, 1).float()
    scores = rows @ columns / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0).detach()


def varlen(q: Tensor, k: Tensor, v: Tensor, to: Together, of: Together, *, causal: bool) -> Tensor:
    """The same by kernels that take examples of any length end to end.

    Args:
        q: ``[Nq, H, C]``, laid as ``to`` says. k, v: ``[Nk, H, C]``, laid as ``of`` says.
        to, of: where queries and keys lie.
        causal: no unit reads a later one; queries and keys are then those of one stream.
    """
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn
    past: dict[str, Any] = {"is_causal": True} if _FLAGGED else {"window_size": (-1, 0)}
    out: Tensor = kernel(
        *(_ordered(x, where) for x, where in ((q, to), (k, of), (v, of))),
        to.bounds,
        of.bounds,
        to.longest,
        of.longest,
        **(past if causal else {}),
    )
    return out if to.alone else _Move.apply(out, to.unordered, to.ordered, None)


def _ordered(x: Tensor, where: Together) -> Tensor:
    return x if where.alone else _Move.apply(x, where.ordered, where.unordered, None)
