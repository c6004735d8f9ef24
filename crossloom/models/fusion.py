"""The Transformer: layers that do what the plan says, over states by stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossloom.batch import ViewBatch
from crossloom.models.attention import Attention, Layout
from crossloom.models.plan import Attend, Feed, Plan

States = dict[str, Tensor]
_SHARED = "shared"


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "quick_gelu": _quick_gelu,
}


def _owners(names: tuple[str, ...], shared: bool) -> dict[str, tuple[str, ...]]:
    """Which streams each weight set serves, by the set's name."""
    return {_SHARED: names} if shared else {n: (n,) for n in names}


def _apply(modules: nn.ModuleDict, states: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Each stream through its own weights (or the shared ones), laid end to end."""
    if _SHARED in modules:
        joined = torch.cat([states[n] for n in names]) if len(names) > 1 else states[names[0]]
        return modules[_SHARED](joined)
    parts = [modules[n](states[n]) for n in names]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _split(x: Tensor, states: Mapping[str, Tensor], names: tuple[str, ...]) -> States:
    return dict(zip(names, x.split([len(states[n]) for n in names]), strict=True))


class AttendBlock(nn.Module):
    """Attention with residual and norm."""

    def __init__(self, spec: Attend, plan: Plan) -> None:
        super().__init__()
        self.spec, self.pre, self.dropout = spec, plan.norm == "pre", plan.dropout
        self.heads = spec.heads or plan.heads
        inner = spec.inner or plan.inner
        readers = tuple(spec.reads)
        read = tuple(dict.fromkeys(s for names in spec.reads.values() for s in names))
        every = tuple(dict.fromkeys((*readers, *read)))

        def each(names: tuple[str, ...], make: Callable[[int], nn.Module]) -> nn.ModuleDict:
            owners = _owners(names, spec.shared)
            return nn.ModuleDict({o: make(plan.widths[s[0]]) for o, s in owners.items()})

        self.query = each(readers, lambda width: nn.Linear(width, inner))
        self.keyvalue = each(read, lambda width: nn.Linear(width, 2 * inner))
        self.output = each(readers, lambda width: nn.Linear(inner, width))
        normed = every if self.pre else readers
        self.norm = each(normed, lambda width: nn.LayerNorm(width, eps=plan.epsilon))

    def forward(self, states: States, layout: Layout) -> States:
        """New states; streams that read nothing here are passed on as they are."""
        readers = layout.present(tuple(self.spec.reads))
        groups: dict[tuple[str, ...], list[str]] = {}
        for reader in readers:
            groups.setdefault(layout.readable(reader, self.spec.reads[reader]), []).append(reader)
        seen = self._normed(states, layout) if self.pre else states
        new = dict(states)
        for read, names in groups.items():
            group = tuple(names)
            if read:
                gain = self._attend(seen, layout, group, read)
            else:
                gain = {n: torch.zeros_like(states[n]) for n in group}
            for name in group:
                total = states[name] + F.dropout(gain[name], self.dropout, self.training)
                new[name] = total if self.pre else self._norm(name)(total)
        return new

    def _norm(self, stream: str) -> nn.Module:
        return self.norm[_SHARED if _SHARED in self.norm else stream]

    def _normed(self, states: States, layout: Layout) -> States:
        names = {*self.spec.reads, *(s for r in self.spec.reads.values() for s in r)}
        return {n: self._norm(n)(x) if n in names else x for n, x in states.items()}

    def _attend(
        self, states: States, layout: Layout, readers: tuple[str, ...], read: tuple[str, ...]
    ) -> States:
        q = _apply(self.query, states, readers).unflatten(1, (self.heads, -1))
        # while units are said one by one, other streams are there as keys and values only
        here = tuple(n for n in read if n in states)
        kv = _apply(self.keyvalue, states, here).unflatten(1, (2, self.heads, -1)) if here else None
        causal = (*self.spec.causal, *layout.view.causal)
        drop = self.dropout if self.training else 0.0
        out = layout.attend(q, kv, readers, here, causal, drop).flatten(1)
        return _split_apply(self.output, _split(out, states, readers), readers)


def _split_apply(modules: nn.ModuleDict, parts: States, names: tuple[str, ...]) -> States:
    return _split(_apply(modules, parts, names), parts, names)


class FeedBlock(nn.Module):
    """Feed-forward network with residual and norm."""

    def __init__(self, spec: Feed, plan: Plan) -> None:
        super().__init__()
        self.spec, self.pre, self.dropout = spec, plan.norm == "pre", plan.dropout
        self.activation = _ACTIVATIONS[plan.activation]
        hidden = spec.hidden or plan.hidden
        owners = _owners(spec.streams, spec.shared)
        widths = {o: plan.widths[s[0]] for o, s in owners.items()}
        self.up = nn.ModuleDict({o: nn.Linear(w, hidden) for o, w in widths.items()})
        self.down = nn.ModuleDict({o: nn.Linear(hidden, w) for o, w in widths.items()})
        self.norm = nn.ModuleDict({o: nn.LayerNorm(w, eps=plan.epsilon) for o, w in widths.items()})

    def forward(self, states: States, layout: Layout) -> States:
        """New states of the streams named."""
        new = dict(states)
        names = layout.present(self.spec.streams)
        if _SHARED in self.up and names:
            joined = torch.cat([states[n] for n in names]) if len(names) > 1 else states[names[0]]
            new |= _split(self._one(joined, _SHARED), states, names)
        else:
            new |= {n: self._one(states[n], n) for n in names}
        return new

    def _one(self, x: Tensor, owner: str) -> Tensor:
        inside = self.norm[owner](x) if self.pre else x
        gain = self.down[owner](self.activation(self.up[owner](inside)))
        total = x + F.dropout(gain, self.dropout, self.training)
        return total if self.pre else self.norm[owner](total)


class FusionLayer(nn.Module):
    """One layer of the plan."""

    def __init__(self, plan: Plan, number: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            AttendBlock(b, plan) if isinstance(b, Attend) else FeedBlock(b, plan)
            for b in plan.layers[number].blocks
        )

    def forward(self, states: States, layout: Layout) -> States:
        """Block after block."""
        for block in self.blocks:
            states = block(states, layout)
        return states


class Fusion(nn.Module):
    """All layers of a plan; with pre-norm, a last norm for each stream."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(plan, n) for n in range(len(plan.layers)))
        self.last = nn.ModuleDict(
            {s: nn.LayerNorm(w, eps=plan.epsilon) for s, w in plan.widths.items()}
            if plan.norm == "pre"
            else {}
        )
        self.checkpointing = False  #: recompute each layer's activations in backward

    def forward(
        self,
        states: States,
        view: ViewBatch,
        record: list[Attention] | None = None,
        layout: Layout | None = None,
    ) -> States:
        """Final states by stream, each ``[N, width]``; ``record`` collects what was looked at."""
        layout = layout or Layout(view, record)
        for layer in self.layers:
            if self.checkpointing and self.training:
                states = checkpoint(layer, states, layout, use_reentrant=False)
            else:
                states = layer(states, layout)
        return {n: self.last[n](x) if n in self.last else x for n, x in states.items()}
