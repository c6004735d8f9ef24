"""The plan: which stream reads which, layer by layer. Data, not code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Streams read streams; then residual and norm for each stream that read."""

    reads: Mapping[str, tuple[str, ...]]
    """By reading stream, what it reads: one softmax over all units of the streams listed."""
    shared: bool = False
    """One set of weights for all streams named."""
    causal: tuple[str, ...] = ()
    """Streams whose units read no later unit of their own stream."""
    heads: int | None = None
    """Attention heads; the plan's when None."""
    inner: int | None = None
    """Width of queries, keys and values over all heads; the plan's when None."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A feed-forward network for each stream; then residual and norm."""

    streams: tuple[str, ...]
    shared: bool = False
    hidden: int | None = None
    """Width inside; the plan's when None."""


Block = Attend | Feed


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Blocks in sequence: the unit of sharding, compilation and activation checkpointing."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All layers of a Transformer over named streams.

    A stream that a layer does not name passes through unchanged. A unit with nothing to read
    (its stream reads only streams that are empty or absent) receives zero.
    """

    widths: Mapping[str, int]
    """Width of each stream's states."""
    layers: tuple[Layer, ...]
    heads: int
    inner: int
    hidden: int
    norm: Literal["pre", "post"] = "post"
    activation: Literal["gelu", "relu", "quick_gelu"] = "gelu"
    dropout: float = 0.1
    epsilon: float = 1e-5
    """Of the layer norms: those of layers, embedders and heads alike."""

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.layers):
            for place, block in enumerate(layer.blocks):
                where = f"plan: layer {number}, block {place}"
                self._check(block, where)

    def _check(self, block: Block, where: str) -> None:
        if isinstance(block, Feed):
            named = set(block.streams)
        else:
            named = {*block.reads, *block.causal, *(s for r in block.reads.values() for s in r)}
            heads, inner = block.heads or self.heads, block.inner or self.inner
            if inner % heads:
                raise ValueError(f"{where}: inner {inner} is not a multiple of {heads} heads")
        if strange := sorted(named - set(self.widths)):
            raise ValueError(
                f"{where}: no stream {', '.join(strange)}; there are {', '.join(self.widths)}"
            )
        if block.shared and len({self.widths[s] for s in named}) > 1:
            raise ValueError(f"{where}: streams of several widths cannot share weights")

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(self.widths)

    def restricted(self, streams: tuple[str, ...]) -> Plan:
        """The same plan over some of its streams: others, and blocks left with nothing, go."""
        layers = tuple(
            Layer(blocks=blocks)
            for layer in self.layers
            if (blocks := tuple(b for x in layer.blocks if (b := _restrict(x, streams))))
        )
        return replace(
            self, widths={s: w for s, w in self.widths.items() if s in streams}, layers=layers
        )


def _restrict(block: Block, streams: tuple[str, ...]) -> Block | None:
    def only(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in names if n in streams)

    if isinstance(block, Feed):
        return replace(block, streams=only(block.streams)) if only(block.streams) else None
    reads = {s: only(read) for s, read in block.reads.items() if s in streams}
    return replace(block, reads=reads, causal=only(block.causal)) if reads else None
