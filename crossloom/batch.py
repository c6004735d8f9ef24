"""What travels from the data workers to the model: ragged streams, aims, and the encoded view.

Layout. The units of all examples of a stream lie end to end on one flat axis of ``N`` units;
``length`` says how many belong to each of the ``E`` examples. Nothing is padded: linear layers and
norms see real units only, and attention finds an example's units in every stream by its number.

Batches are built from NumPy arrays in the workers (cheap to pickle) and become tensors on the
training process by :meth:`Batch.to`.

Shapes: E examples, N units of a stream, K scored slots of an objective, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crossloom.units import Array, Defect


def _join(arrays: Sequence[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _starts(length: Array) -> Array:
    return np.cumsum(length) - length


@dataclass(frozen=True, kw_only=True)
class Stream:
    """All units of one stream in one view."""

    content: Mapping[str, Any]  #: by name, [N, ...], already substituted where swapped or hidden
    whole: Mapping[str, Any]  #: by name, [E, ...]
    position: Any  #: [N] int64
    hidden: Any  #: [N] bool; the embedder shows its mask there, never the content
    length: Any  #: [E] int64, units of each example
    start: Any  #: [E] int64, flat index of each example's first unit
    example: Any  #: [N] int64, the example each unit belongs to
    longest: int  #: the largest length, known on the host
    real: Any = None  #: [N] bool, False for room that no unit takes (see `pick`); None: all are

    @classmethod
    def build(
        cls,
        content: Mapping[str, Any],
        whole: Mapping[str, Any],
        position: Any,
        hidden: Any,
        length: Any,
    ) -> Stream:
        """A stream; ``start``, ``example`` and ``longest`` follow from the lengths."""
        return cls(
            content=content,
            whole=whole,
            position=position,
            hidden=hidden,
            length=length,
            start=_starts(length),
            example=np.repeat(np.arange(len(length)), length),
            longest=int(length.max(initial=0)),
        )

    def counts(self) -> Any:
        """``[E]`` int64, the real units of each example."""
        if self.real is None:
            return self.length
        return torch.zeros_like(self.length).index_add(0, self.example, self.real.long())


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """The streams shown to one forward pass."""

    streams: Mapping[str, Stream]
    apart: bool = False  #: True: units read their own stream only, whatever the plan says
    across: bool = False  #: True: hidden units read other streams only, and are read by none
    causal: tuple[str, ...] = ()  #: streams whose units read no later unit of their own stream
    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: by stream, at most these
    unseen: tuple[str, ...] = ()  #: streams whose hidden units no other stream reads

    def readable(self, reader: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the named streams that a stream may read here; absent ones are left out."""
        allowed = (reader,) if self.apart else self.reads.get(reader, names)
        return tuple(n for n in names if n in self.streams and n in allowed)

    @property
    def examples(self) -> int:
        """Number of examples E (every stream has the same)."""
        return len(next(iter(self.streams.values())).length)

    def to(self, device: torch.device | str) -> ViewBatch:
        """The view as tensors on a device."""
        return _map(self, lambda x: _tensor(x, torch.device(device)))


@dataclass(frozen=True, kw_only=True)
class AimBatch:
    """What one objective scores in one batch."""

    index: Any  #: [K] int64: flat unit index of the objective's stream, or example number
    value: Any  #: [K, ...] the target
    weight: Any  #: [K] float32; 0 marks a blank slot
    trust: Any = None  #: [K] float32, a factor on each slot's loss that is not counted; or None
    parts: int = 1  #: micro-batches whose slots lie side by side
    language: Any = None
    """``[K]`` int64, which of the run's languages each slot is in, counted from 1; 0 for none of
    them. None where the run tells no languages apart, or no units are scored."""
    languages: int = 0  #: how many the run tells apart

    def by_language(self, each: Tensor) -> dict[str, Tensor]:
        """A loss ``[K]`` of each slot, and the weights, summed by language.

        Returns:
            ``"by_language"``, ``[1 + languages, 2]`` float32, detached; or nothing, where they are
            not told apart.
        """
        if self.language is None:
            return {}
        sums = torch.stack([each.detach().float(), self.weight], dim=1)
        empty = sums.new_zeros(1 + self.languages, 2)
        return {"by_language": empty.index_add(0, self.language, sums)}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch, or several fused into one."""

    views: Mapping[str, ViewBatch]
    aims: Mapping[str, AimBatch]  #: every objective of the recipe, drawn or blank
    counts: Mapping[str, float]  #: host numbers: summed weights by objective
    keys: tuple[str, ...]  #: examples, as ``shard/key`` or ``shard/key#item``
    units: int = 0  #: real units over all views, blanks left out
    fill: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By stream: the units of its examples, and how many they would be if each were as long as the
    stream allows; blanks left out."""
    micro: tuple[int, ...] = ()  #: which micro-batches of the run these are
    component: tuple[str, ...] = ()  #: the mixture component of each micro-batch
    defects: tuple[Defect, ...] = field(default=())  #: bad samples left out
    marks: bytes = b""  #: for each example asked for, in order: 1 where it was bad

    def to(self, device: torch.device | str) -> Batch:
        """The batch as tensors on a device."""
        return _map(self, lambda x: _tensor(x, torch.device(device)))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that a stream reads the tensors, wherever they were made."""
        _map(self, lambda x: x.record_stream(stream) if isinstance(x, Tensor) else None)

    def pin_memory(self) -> Batch:
        """The batch as tensors in page-locked memory, so that copies to a GPU overlap with work."""

        def pin(value: Any) -> Any:
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(value)
            return value.pin_memory() if isinstance(value, Tensor) else value

        return _map(self, pin)


def _tensor(value: Any, device: torch.device) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _map(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Apply ``leaf`` to every array in nested mappings and the dataclasses of this module."""
    if isinstance(value, (Stream, ViewBatch, AimBatch, Batch)):
        return replace(value, **{f.name: _map(getattr(value, f.name), leaf) for f in fields(value)})
    if isinstance(value, Mapping):
        return {k: _map(v, leaf) for k, v in value.items()}
    return leaf(value)


def fuse(batches: Sequence[Batch], of_units: Mapping[str, str]) -> Batch:
    """Several NumPy batches as one: the same examples, side by side in one forward pass.

    Args:
        batches: micro-batches of the same recipe.
        of_units: for objectives that score units, the stream whose flat axis their aims index, as
            ``"view/stream"``; objectives that score examples have ``"view/"``.
    """
    if len(batches) == 1:
        return batches[0]
    views: dict[str, ViewBatch] = {}
    offsets: dict[str, list[int]] = {}
    for name, first in batches[0].views.items():
        parts = [b.views[name] for b in batches]
        streams = {}
        for stream in first.streams:
            each = [p.streams[stream] for p in parts]
            offsets[f"{name}/{stream}"] = _offsets([len(s.position) for s in each])
            streams[stream] = Stream.build(
                {k: _join([s.content[k] for s in each]) for k in each[0].content},
                {k: _join([s.whole[k] for s in each]) for k in each[0].whole},
                _join([s.position for s in each]),
                _join([s.hidden for s in each]),
                _join([s.length for s in each]),
            )
        offsets[f"{name}/"] = _offsets([p.examples for p in parts])
        views[name] = replace(first, streams=streams)
    aims = {}
    for name in batches[0].aims:
        each_aim = [b.aims[name] for b in batches]
        shift = offsets[of_units[name]]
        aims[name] = AimBatch(
            index=_join([a.index + by for a, by in zip(each_aim, shift, strict=True)]),
            value=_join([a.value for a in each_aim]),
            weight=_join([a.weight for a in each_aim]),
            trust=_join_trust(each_aim),
            parts=sum(a.parts for a in each_aim),
            language=_join_languages(each_aim),
            languages=each_aim[0].languages,
        )
    return Batch(
        views=views,
        aims=aims,
        counts={k: sum(b.counts[k] for b in batches) for k in batches[0].counts},
        keys=sum((b.keys for b in batches), ()),
        units=sum(b.units for b in batches),
        fill={
            s: (sum(b.fill[s][0] for b in batches), sum(b.fill[s][1] for b in batches))
            for s in batches[0].fill
        },
        micro=sum((b.micro for b in batches), ()),
        component=sum((b.component for b in batches), ()),
        defects=sum((b.defects for b in batches), ()),
        marks=b"".join(b.marks for b in batches),
    )


def _join_trust(aims: Sequence[AimBatch]) -> Any:
    """Blank aims, which have no trust, are trusted wholly: their weight is zero anyway."""
    if all(a.trust is None for a in aims):
        return None
    return _join([np.ones_like(a.weight) if a.trust is None else a.trust for a in aims])


def _join_languages(aims: Sequence[AimBatch]) -> Any:
    return None if aims[0].language is None else _join([a.language for a in aims])


def _offsets(sizes: Sequence[int]) -> list[int]:
    return [int(x) for x in np.cumsum([0, *sizes[:-1]])]


def pick(stream: Stream, order: Tensor) -> tuple[Stream, Tensor]:
    """A stream's examples in another order, with repeats, when only the device knows the order.

    The host cannot know how many units there will be without waiting for the device. So every
    example is given ``longest`` units, of which those beyond its own are marked as not ``real``
    and read by nobody; where all examples are equally long, nothing is left over.

    Args:
        stream: as tensors.
        order: ``[F]`` int64, which example comes where.

    Returns:
        The stream of F examples, without content (it is embedded already), and which unit of the
        old flat axis each new one is, ``[F * longest]``.
    """
    longest, device = stream.longest, order.device
    column = torch.arange(longest, device=device)
    length = stream.length[order]
    last = (length - 1).clamp(min=0)[:, None]
    index = (stream.start[order][:, None] + torch.minimum(column, last)).flatten()
    index = index.clamp(max=max(0, len(stream.position) - 1))
    even = len(stream.position) == len(stream.length) * longest
    number = torch.arange(len(order), device=device)
    picked = Stream(
        content={},
        whole={},
        position=stream.position[index],
        hidden=stream.hidden[index],
        length=torch.full_like(length, longest),
        start=number * longest,
        example=number.repeat_interleave(longest, output_size=len(order) * longest),
        longest=longest,
        real=None if even else (column < length[:, None]).flatten(),
    )
    return picked, index


class Passes(Protocol):
    """What a head may ask the model for beside the view that it scores."""

    def again(self, encoded: Encoded, order: Mapping[str, Tensor]) -> Encoded:
        """See :meth:`Encoded.again`."""

    def anew(self, encoded: Encoded, view: ViewBatch) -> Encoded:
        """See :meth:`Encoded.anew`."""

    def slow(self, encoded: Encoded, streams: tuple[str, ...]) -> Encoded:
        """See :meth:`Encoded.slow`."""

    def beside(self, objective: str) -> tuple[nn.Module, Encoded, AimBatch]:
        """See :meth:`Encoded.beside`."""


@dataclass(frozen=True)
class Encoded:
    """One view after the Transformer: final states by stream, and the embedders for tied heads."""

    view: ViewBatch
    states: Mapping[str, Tensor]  #: by stream, [N, D]
    embedders: Mapping[str, nn.Module]
    embedded: Mapping[str, Tensor] = field(default_factory=dict)  #: before the first layer
    middle: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    #: states after the layers that objectives asked for, counted from 1
    passes: Passes | None = None  #: the model's, while a batch is scored

    def after(self, layer: int) -> Encoded:
        """The view as it is after a layer, counted from 1; 0 for the last."""
        return replace(self, states=self.middle[layer]) if layer else self

    def again(self, order: Mapping[str, Tensor]) -> Encoded:
        """The same units paired anew and sent through all layers once more.

        Args:
            order: for every stream of the view, ``[F]`` int64: which example comes where. The
                streams are embedded already; none may be embedded with what it sees of another.
        """
        assert self.passes is not None, "only while a batch is scored"
        return self.passes.again(self, order)

    def anew(self, view: ViewBatch) -> Encoded:
        """Streams of the view shown otherwise, through embedders and all layers."""
        assert self.passes is not None, "only while a batch is scored"
        return self.passes.anew(self, view)

    def slow(self, streams: tuple[str, ...] | None = None) -> Encoded:
        """The same view by the slow encoders, without gradient; only some streams if named."""
        assert self.passes is not None, "only while a batch is scored"
        return self.passes.slow(self, streams or tuple(self.view.streams))

    def beside(self, objective: str) -> tuple[nn.Module, Encoded, AimBatch]:
        """Another objective's head, its view of the same batch, and what it scores there."""
        assert self.passes is not None, "only while a batch is scored"
        return self.passes.beside(objective)

    def at(self, stream: str, index: Tensor) -> Tensor:
        """States ``[K, D]`` of chosen units."""
        return self.states[stream].index_select(0, index)

    def anchor(self, stream: str, last: bool = False) -> Tensor:
        """State ``[E, D]`` of each example's first (or last) unit; zero where it has none."""
        state, flat = self.states[stream], self.view.streams[stream]
        if len(state) == 0:
            return state.new_zeros(len(flat.length), state.shape[1])
        place = flat.start + (flat.counts() - 1).clamp(min=0) if last else flat.start
        chosen = state.index_select(0, place.clamp(max=len(state) - 1))
        return chosen * (flat.length > 0).unsqueeze(1).to(chosen.dtype)

    def mean(self, stream: str) -> Tensor:
        """Mean state ``[E, D]`` over each example's units; zero where an example has none."""
        state, flat = self.states[stream], self.view.streams[stream]
        length = flat.counts()
        if flat.real is not None:
            state = state * flat.real[:, None].to(state.dtype)
        total = state.new_zeros(len(length), state.shape[1]).index_add(0, flat.example, state)
        return total / length.clamp(min=1).unsqueeze(1).to(total.dtype)
