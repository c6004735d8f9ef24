"""The plan: which stream reads which, layer by layer. Data, not code.

A further kind of block (an adapter by language, a gate) would be a dataclass beside :class:`Attend`
and :class:`Feed`, a module in ``fusion.py``, and lines in ``show``, ``draw`` and ``flops``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Which of its own stream's units a unit reads, where they lie on a grid, row by row.

    The patterns of DALL·E (Ramesh et al. 2021, appendix B.1 and figure 11), both ways; of a stream
    that is read left to right, the half before. They run on from row to row, as there.
    """

    side: int
    """Units of a row."""
    reads: Literal["row", "column", "convolution"]
    """``row``: units up to a whole row away, so that the nearest reach the unit above. ``column``:
    those of the same column. ``convolution``: a square of ``kernel`` × ``kernel`` about the unit.
    """
    kernel: int = 11
    first: int = 1
    """Position of the first unit on the grid. Those before it (the one that begins the codes) are
    read by all, and read all."""

    def __post_init__(self) -> None:
        if self.side < 1 or self.first < 0:
            raise ValueError(f"side must be at least 1, first at least 0: {self}")
        if self.reads == "convolution" and not (self.kernel % 2 and 1 <= self.kernel <= self.side):
            raise ValueError(f"kernel {self.kernel}: an odd number of 1..{self.side}, the side")


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Streams read streams; then residual and norm for each stream that read."""

    reads: Mapping[str, tuple[str, ...]]
    """By reading stream, what it reads: one softmax over all units of the streams listed."""
    shared: bool = False
    """One set of weights for all streams named."""
    causal: tuple[str, ...] = ()
    """Streams whose units read no later unit of their own stream."""
    sparse: Mapping[str, Grid] = field(default_factory=dict)
    """Streams that lie on a grid and read only a part of their own units; other streams they read
    whole. What is not read is masked: this saves neither time nor memory, and kernels for examples
    of variable length are not used."""
    heads: int | None = None
    """Attention heads; the plan's when None."""
    inner: int | None = None
    """Width of queries, keys and values over all heads; the plan's when None."""
    tied: str = ""
    """Blocks of one name use the weights of the first of them, whoever reads whom there."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Streams that read something here: those that need queries."""
        return tuple(s for s, read in self.reads.items() if read)

    @property
    def read(self) -> tuple[str, ...]:
        """Streams that are read: those that need keys and values."""
        return tuple(dict.fromkeys(s for read in self.reads.values() for s in read))

    @property
    def changes(self) -> tuple[str, ...]:
        """Streams whose states differ afterwards."""
        return tuple(self.reads)

    @property
    def names(self) -> tuple[str, ...]:
        """All streams that take part."""
        return tuple(dict.fromkeys((*self.reads, *self.read)))


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A feed-forward network for each stream; then residual and norm."""

    streams: tuple[str, ...]
    shared: bool = False
    hidden: int | None = None
    """Width inside; the plan's when None."""
    tied: str = ""
    """Blocks of one name use the weights of the first of them."""

    @property
    def changes(self) -> tuple[str, ...]:
        """Streams whose states differ afterwards."""
        return self.streams

    @property
    def names(self) -> tuple[str, ...]:
        """All streams that take part."""
        return self.streams


Block = Attend | Feed

Norm = Literal["pre", "post", "sandwich"]

Place = tuple[int, int]  #: number of a layer, and of a block in it


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Blocks in sequence: the unit of sharding, compilation and activation checkpointing."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All layers of a Transformer over named streams.

    A stream that a layer does not name passes through unchanged. A unit with nothing to read
    (its stream reads only streams that are empty or absent) receives zero.

    With pre-norm, a stream's last norm follows the last layer that changes it; what later layers
    read of it is taken as it is (the memory of a decoder). ``sandwich`` is pre-norm whose blocks
    also norm what they add, before it is added (CogView's Sandwich-LN, section 2.4), so that states
    cannot grow without bound in half precision.

    Blocks with the same ``tied`` name share one set of weights for each stream, or one for all
    streams where they are ``shared``; the streams, the reading and the causal ones may differ.
    """

    widths: Mapping[str, int]
    """Width of each stream's states."""
    layers: tuple[Layer, ...]
    heads: int
    inner: int
    hidden: int
    norm: Norm = "post"
    last: Literal["each", "shared"] = "each"
    """With pre-norm and sandwich, the norm after all layers: each stream's own, or one for all."""
    activation: Literal["gelu", "gelu_tanh", "relu", "quick_gelu"] = "gelu"
    dropout: float = 0.1
    epsilon: float = 1e-5
    """Of the layer norms: those of layers, embedders and heads alike."""

    def __post_init__(self) -> None:
        if self.last == "shared" and len(set(self.widths.values())) > 1:
            raise ValueError("plan: last: streams of several widths cannot share the last norm")
        for (layer, block), spec in self.blocks.items():
            self._check(spec, f"plan: layer {layer}, block {block}")
        for home, tenants in self.homes.items():
            for tenant in tenants[1:]:
                self._check_tied_block(home, tenant)

    def _check(self, block: Block, where: str) -> None:
        named = set(block.names)
        if isinstance(block, Attend):
            named |= set(block.causal)
            for stream in block.sparse:
                if stream not in block.reads.get(stream, ()):
                    raise ValueError(f"{where}: sparse: {stream!r} does not read itself here")
            heads, inner = block.heads or self.heads, block.inner or self.inner
            if inner % heads:
                raise ValueError(f"{where}: inner {inner} is not a multiple of {heads} heads")
        if strange := sorted(named - set(self.widths)):
            raise ValueError(
                f"{where}: no stream {', '.join(strange)}; there are {', '.join(self.widths)}"
            )
        if block.shared and len({self.widths[s] for s in named}) > 1:
            raise ValueError(f"{where}: streams of several widths cannot share weights")

    def _check_tied_block(self, home: Place, tenant: Place) -> None:
        one, other = self.blocks[home], self.blocks[tenant]
        where = f"plan: layer {tenant[0]}, block {tenant[1]}: tied {other.tied!r}"
        first = f"layer {home[0]}, block {home[1]}"
        if type(one) is not type(other):
            raise ValueError(f"{where}: {first} is of another kind ({type(one).__name__})")
        if one.shared != other.shared:
            raise ValueError(f"{where}: set shared on {first} too, or on neither")
        for name, mine in self._sizes(other).items():
            if mine != (theirs := self._sizes(one)[name]):
                raise ValueError(f"{where}: {name} is {mine}, but {theirs} in {first}")
        if one.shared and len({self.widths[s] for s in (*one.names, *other.names)}) > 1:
            raise ValueError(f"{where}: its streams differ in width from those of {first}")

    def _sizes(self, block: Block) -> dict[str, int]:
        if isinstance(block, Feed):
            return {"hidden": block.hidden or self.hidden}
        return {"inner": block.inner or self.inner, "heads": block.heads or self.heads}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(self.widths)

    @cached_property
    def blocks(self) -> Mapping[Place, Block]:
        """All blocks by their place, in order."""
        return {
            (number, place): block
            for number, layer in enumerate(self.layers)
            for place, block in enumerate(layer.blocks)
        }

    @cached_property
    def homes(self) -> Mapping[Place, tuple[Place, ...]]:
        """Places whose blocks hold weights, each with all the places that use them."""
        first: dict[str, Place] = {}
        out: dict[Place, tuple[Place, ...]] = {}
        for place, block in self.blocks.items():
            home = first.setdefault(block.tied, place) if block.tied else place
            out[home] = (*out.get(home, ()), place)
        return out

    @cached_property
    def home(self) -> Mapping[Place, Place]:
        """For each place, the one that holds its weights."""
        return {tenant: home for home, tenants in self.homes.items() for tenant in tenants}

    @cached_property
    def settled(self) -> Mapping[str, int]:
        """By stream, the last layer that changes it; -1 where none does."""
        out = dict.fromkeys(self.widths, -1)
        for (number, _), block in self.blocks.items():
            out |= dict.fromkeys(block.changes, number)
        return out

    def known(self, stream: str) -> frozenset[str]:
        """Streams that the last states of a stream tell of, itself among them."""
        told = {s: frozenset((s,)) for s in self.widths}
        for block in self.blocks.values():
            if isinstance(block, Attend):
                told |= {
                    reader: told[reader].union(*(told[s] for s in read))
                    for reader, read in block.reads.items()
                }
        return told[stream]

    def restricted(self, streams: tuple[str, ...]) -> Plan:
        """The same plan over some of its streams.

        Layers and blocks keep their numbers, though some may be left with nothing to do: weights
        are found again by name.
        """
        return replace(
            self,
            widths={s: w for s, w in self.widths.items() if s in streams},
            layers=tuple(
                Layer(blocks=tuple(_restrict(b, streams) for b in layer.blocks))
                for layer in self.layers
            ),
        )


def _restrict(block: Block, streams: tuple[str, ...]) -> Block:
    def only(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in names if n in streams)

    if isinstance(block, Feed):
        return replace(block, streams=only(block.streams))
    reads = {s: only(read) for s, read in block.reads.items() if s in streams}
    sparse = {s: grid for s, grid in block.sparse.items() if s in streams}
    return replace(block, reads=reads, causal=only(block.causal), sparse=sparse)
