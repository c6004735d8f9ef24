"""The Transformer: layers that do what the plan says, over states by stream.

A tied block has no parameters: it works with those of the first block of its name. An engine that
shards by layer keeps the layers that lend weights whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossloom.batch import ViewBatch
from crossloom.models.attention import Attention, Layout
from crossloom.models.plan import Attend, Block, Feed, Place, Plan

States = dict[str, Tensor]
Names = tuple[str, ...]
_SHARED = "shared"


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "quick_gelu": _quick_gelu,
}


def _owner(spec: Block, stream: str) -> str:
    """Name of the weights that serve a stream in a block."""
    return _SHARED if spec.shared else stream


def _each(
    plan: Plan,
    place: Place,
    names: Callable[[Place, Any], Iterable[str]],
    make: Callable[[int], nn.Module],
) -> nn.ModuleDict:
    """A module for each set of weights kept at a place, made from the width that it serves.

    ``names`` tells the streams for which a block that uses the weights needs this module.
    """
    widths = {
        _owner(plan.blocks[tenant], stream): plan.widths[stream]
        for tenant in plan.homes[place]
        for stream in names(tenant, plan.blocks[tenant])
    }
    return nn.ModuleDict({owner: make(width) for owner, width in widths.items()})


class _Rows:
    """Units of several streams through their weights: by stream, or laid end to end."""

    def __init__(
        self,
        modules: nn.ModuleDict,
        spec: Block,
        states: Mapping[str, Tensor],
        wanted: Iterable[Names],
    ) -> None:
        wanted = tuple(dict.fromkeys(wanted))
        names = tuple(dict.fromkeys(n for some in wanted for n in some))
        self.joined: dict[Names, Tensor] = {}
        if spec.shared:
            # as they are wanted, so that nothing is copied; all at once if some are wanted twice
            apart = sum(map(len, wanted)) == len(names)
            for some in wanted if apart else (names,):
                self.joined[some] = modules[_SHARED](_cat([states[n] for n in some]))
            self.parts: States = {}
            for some, rows in self.joined.items() if not apart else ():
                self.parts |= _split(rows, states, some)
        else:
            self.parts = {n: modules[n](states[n]) for n in names}

    def of(self, names: Names) -> Tensor:
        """Rows of some streams, as wanted, end to end."""
        if names in self.joined:
            return self.joined[names]
        return _cat([self.parts[n] for n in names])


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _split(x: Tensor, states: Mapping[str, Tensor], names: Names) -> States:
    return dict(zip(names, x.split([len(states[n]) for n in names]), strict=True))


class _Block(nn.Module):
    """What blocks have in common: where their weights are, residual and norms."""

    norm: nn.ModuleDict
    after: nn.ModuleDict  #: norms of what is added; empty but for sandwich

    def __init__(self, plan: Plan, place: Place, home: nn.Module | None) -> None:
        super().__init__()
        self.pre, self.dropout = plan.norm != "post", plan.dropout
        self.sandwich = plan.norm == "sandwich"
        # in a tuple, the other block's weights do not become a part of this one
        self._home = () if home is None else (home,)

    @property
    def weights(self) -> Any:
        """The block that holds the weights: this one, or the first of those tied to it."""
        return self._home[0] if self._home else self

    def _sum(self, state: Tensor, gain: Tensor, owner: str) -> Tensor:
        gain = F.dropout(gain, self.dropout, self.training)
        if self.sandwich:
            gain = self.weights.after[owner](gain)
        return state + gain if self.pre else self.weights.norm[owner](state + gain)


class AttendBlock(_Block):
    """Attention with residual and norm."""

    def __init__(self, plan: Plan, place: Place, home: nn.Module | None = None) -> None:
        super().__init__(plan, place, home)
        self.spec: Attend = plan.blocks[place]  # type: ignore[assignment]
        self.heads = self.spec.heads or plan.heads
        self.normed = _normed(plan, place, self.spec)
        if home is not None:
            return
        inner = self.spec.inner or plan.inner
        self.query = _each(plan, place, lambda _, b: b.readers, lambda w: nn.Linear(w, inner))
        self.keyvalue = _each(plan, place, lambda _, b: b.read, lambda w: nn.Linear(w, 2 * inner))
        self.output = _each(plan, place, lambda _, b: b.readers, lambda w: nn.Linear(inner, w))
        self.norm = _each(plan, place, lambda p, b: _normed(plan, p, b), _norm(plan))
        self.after = _after(plan, place)

    def forward(self, states: States, layout: Layout) -> States:
        """New states; streams that read nothing here are passed on as they are."""
        weights, spec = self.weights, self.spec
        seen = states
        if self.pre:
            norms = {n: weights.norm[_owner(spec, n)] for n in layout.present(self.normed)}
            seen = states | {n: norm(states[n]) for n, norm in norms.items()}
        groups: dict[Names, list[str]] = {}
        idle: list[str] = []
        for reader in layout.present(tuple(spec.reads)):
            read = layout.readable(reader, spec.reads[reader])
            (groups.setdefault(read, []) if read else idle).append(reader)
        gain = {n: torch.zeros_like(states[n]) for n in idle}
        if groups:
            gain |= self._attend(seen, layout, {tuple(r): read for read, r in groups.items()})
        return states | {n: self._sum(states[n], g, _owner(spec, n)) for n, g in gain.items()}

    def _attend(self, states: States, layout: Layout, groups: Mapping[Names, Names]) -> States:
        """What readers gain, each group from what it reads."""
        weights, spec = self.weights, self.spec
        # while units are said one by one, other streams are there as keys and values only
        here = {names: tuple(n for n in these if n in states) for names, these in groups.items()}
        queries = _Rows(weights.query, spec, states, here)
        pairs = _Rows(weights.keyvalue, spec, states, filter(None, here.values()))
        causal = (*spec.causal, *layout.view.causal)
        sparse = tuple(spec.sparse.items())
        drop = self.dropout if self.training else 0.0
        out: States = {}
        for names, these in here.items():
            q = queries.of(names).unflatten(1, (self.heads, -1))
            kv = pairs.of(these).unflatten(1, (2, self.heads, -1)) if these else None
            rows = layout.attend(q, kv, names, these, causal, sparse, drop).flatten(1)
            if spec.shared:
                out |= _split(weights.output[_SHARED](rows), states, names)
            else:
                out |= {n: weights.output[n](x) for n, x in _split(rows, states, names).items()}
        return out


def _normed(plan: Plan, place: Place, spec: Attend) -> Names:
    """Streams that a block norms: its readers, before it all that it reads and is not settled."""
    if plan.norm == "post":
        return tuple(spec.reads)
    names = dict.fromkeys((*spec.readers, *spec.read))
    return tuple(n for n in names if plan.settled[n] >= place[0])


def _norm(plan: Plan) -> Callable[[int], nn.Module]:
    return lambda width: nn.LayerNorm(width, eps=plan.epsilon)


def _after(plan: Plan, place: Place) -> nn.ModuleDict:
    """Norms of what a block adds to the streams that it changes."""
    if plan.norm != "sandwich":
        return nn.ModuleDict()
    return _each(plan, place, lambda _, b: b.changes, _norm(plan))


class FeedBlock(_Block):
    """Feed-forward network with residual and norm."""

    def __init__(self, plan: Plan, place: Place, home: nn.Module | None = None) -> None:
        super().__init__(plan, place, home)
        self.spec: Feed = plan.blocks[place]  # type: ignore[assignment]
        self.activation = _ACTIVATIONS[plan.activation]
        if home is not None:
            return
        hidden = self.spec.hidden or plan.hidden
        self.up = _each(plan, place, lambda _, b: b.streams, lambda w: nn.Linear(w, hidden))
        self.down = _each(plan, place, lambda _, b: b.streams, lambda w: nn.Linear(hidden, w))
        self.norm = _each(plan, place, lambda _, b: b.streams, _norm(plan))
        self.after = _after(plan, place)

    def forward(self, states: States, layout: Layout) -> States:
        """New states of the streams named."""
        names = layout.present(self.spec.streams)
        if not names:
            return states
        if not self.spec.shared:
            return states | {n: self._one(states[n], n) for n in names}
        joined = self._one(_cat([states[n] for n in names]), _SHARED)
        return states | _split(joined, states, names)

    def _one(self, x: Tensor, owner: str) -> Tensor:
        weights = self.weights
        inside = weights.norm[owner](x) if self.pre else x
        gain = weights.down[owner](self.activation(weights.up[owner](inside)))
        return self._sum(x, gain, owner)


class FusionLayer(nn.Module):
    """One layer of the plan; ``before`` are those from which it may take weights."""

    def __init__(self, plan: Plan, number: int, before: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for place, spec in enumerate(plan.layers[number].blocks):
            home = plan.home[number, place]
            own = home == (number, place)
            holder = None if own else ([*before, self][home[0]].blocks[home[1]])
            kind = AttendBlock if isinstance(spec, Attend) else FeedBlock
            self.blocks.append(kind(plan, (number, place), holder))

    def owns(self, block: Any) -> bool:
        """Whether a block is one of this layer's."""
        return any(block is b for b in self.blocks)

    def forward(self, states: States, layout: Layout) -> States:
        """Block after block."""
        for block in self.blocks:
            states = block(states, layout)
        return states


class Fusion(nn.Module):
    """All layers of a plan; with pre-norm or sandwich, a last norm for each stream, or for all."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(len(plan.layers)):
            self.layers.append(FusionLayer(plan, number, self.layers))
        widths = {} if plan.norm == "post" else plan.widths
        #: by stream, the name of its last norm
        self.closing = {s: _SHARED if plan.last == "shared" else s for s in widths}
        self.last = nn.ModuleDict({self.closing[s]: _norm(plan)(w) for s, w in widths.items()})
        #: after how many layers a stream's last norm comes
        self.after = {s: plan.settled[s] + 1 for s in widths}
        #: every so-many-th layer keeps no activations, and computes them again in the backward pass
        self.recompute = 0

    def forward(
        self,
        states: States,
        view: ViewBatch,
        record: list[Attention] | None = None,
        middle: dict[int, States] | None = None,
        depth: int = 0,
        layout: Layout | None = None,
    ) -> States:
        """Final states by stream, each ``[N, width]``.

        Args:
            states: by stream, as embedded.
            view: where the units lie.
            record: collects what was looked at.
            middle: receives, under the layers that are its keys (from 1), the states after them.
            depth: end after so many layers, without the last norm; 0 for all.
            layout: of the view, if it is made already; it then decides what attention does.
        """
        layout = layout or Layout(view, record)
        states = self._settle(states, 0)
        for number, layer in enumerate(self.layers, 1):
            if self.training and self.recompute and number % self.recompute == 0:
                states = checkpoint(layer, states, layout, use_reentrant=False)
            else:
                states = layer(states, layout)
            if middle is not None and number in middle:
                middle[number] = states
            states = self._settle(states, number)
            if number == depth:
                break
        return _linked(states) if self.training else states

    def apart(self) -> list[nn.Module]:
        """Layers that have weights of their own and lend none: what can be sharded by itself."""
        every = [layer for layer in self.layers if isinstance(layer, FusionLayer)]
        homes = [(layer, b.weights) for layer in every for b in layer.blocks]
        lent = {id(home) for layer, home in homes if not layer.owns(home)}
        return [
            layer
            for layer in every
            if next(layer.parameters(), None) is not None
            and not lent & {id(b) for b in layer.blocks}
        ]

    def _settle(self, states: States, layers: int) -> States:
        """The last norm of the streams that no layer changes after so many."""
        done = [n for n in states if self.after.get(n) == layers]
        return states | {n: self.last[self.closing[n]](states[n]) for n in done}


def _linked(states: States) -> States:
    """The same states; whichever are scored, all weights get a gradient, perhaps of zero.

    Heads that look at the text alone would leave the last layers of the image without gradients,
    which processes that average gradients would wait for.
    """
    nothing = torch.stack([x.sum(dtype=torch.float32) for x in states.values()]).sum() * 0
    return {n: x + nothing for n, x in states.items()} if len(states) > 1 else states
