"""Slow encoders: copies of embedders and layers that follow the trained ones at a distance.

They make the keys of momentum contrast (MoCo, He et al. 2020; WenLan; InfoXLM): features that
change slowly enough for a queue of past ones to stay comparable. They have no gradient, move once
per optimiser step, and are part of the model's weights, so they are saved and resumed with them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from crossloom.batch import Encoded, ViewBatch
from crossloom.modalities.modality import Embedder
from crossloom.models.attention import Attention, Layout
from crossloom.models.fusion import Fusion, States


class Slow(nn.Module):
    """Slow copies of what some views go through."""

    def __init__(
        self,
        embed: Mapping[str, nn.Module],
        fusion: Fusion,
        momentum: float,
        layers: tuple[int, ...] = (),
        depth: int = 0,
    ) -> None:
        """Copy the modules as they are now.

        Args:
            embed: embedders by the stream that owns them.
            fusion: the layers.
            momentum: share of themselves that the copies keep at each step, 0..1.
            layers: after which states are wanted.
            depth: layers copied, from the first; 0 for all.
        """
        super().__init__()
        self.momentum, self.layers, self.depth = momentum, layers, depth
        self.embed = nn.ModuleDict({s: copy.deepcopy(m) for s, m in embed.items()})
        slow = {s: m for s, m in self.embed.items() if isinstance(m, Embedder)}
        for module in slow.values():
            # what one borrowed from another's original, it takes from the other's copy
            module.borrow(slow)
        self.fusion = copy.deepcopy(fusion)
        if depth:
            self.fusion.layers = self.fusion.layers[:depth]
            self.fusion.last, self.fusion.after = nn.ModuleDict(), {}
        self.requires_grad_(False)

    def pairs(
        self, embed: Mapping[str, nn.Module], fusion: Fusion
    ) -> list[tuple[nn.Module, nn.Module]]:
        """Each slow module with the one it follows."""
        out: list[tuple[nn.Module, nn.Module]] = [(m, embed[s]) for s, m in self.embed.items()]
        out += zip(self.fusion.layers, fusion.layers, strict=False)
        return [*out, *((m, fusion.last[s]) for s, m in self.fusion.last.items())]


def encode(
    embedders: Mapping[str, nn.Module],
    fusion: Fusion,
    view: ViewBatch,
    *,
    record: list[Attention] | None = None,
    layers: tuple[int, ...] = (),
    depth: int = 0,
    embedded: States | None = None,
) -> Encoded:
    """One view through embedders and layers.

    Args:
        embedders: by stream.
        fusion: the layers.
        view: as tensors.
        record: collects what was looked at.
        layers: after which states are wanted too, counted from 1.
        depth: layers run, from the first; 0 for all, and the last norms.
        embedded: the streams' units, where they are embedded already.
    """
    if embedded is None:
        embedded = {name: _embed(embedders[name], name, view) for name in view.streams}
    middle: dict[int, States] = {n: {} for n in layers}
    states = fusion(embedded, view, record, middle, depth)
    return Encoded(view, states, embedders, embedded, middle)


def _embed(embedder: nn.Module, name: str, view: ViewBatch) -> Tensor:
    stream = view.streams[name]
    looks_at: tuple[str, ...] = getattr(embedder, "looks_at", ())
    if not looks_at:
        return embedder(stream)
    # what may not be read in this view may not be looked at either
    readable = Layout(view).readable(name, looks_at)
    return embedder(stream, {n: view.streams[n] for n in readable})


@torch.no_grad()
def follow(pairs: Iterable[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    """Move slow parameters towards those they follow: ``momentum * slow + (1 - momentum) * fast``.

    Args:
        pairs: slow module, and the module it was copied from.
        momentum: 0 copies, 1 stands still.
    """
    # by the slow parameter, so that one that several layers share moves once
    both = {
        s: f.detach()
        for slow, fast in pairs
        for s, f in zip(slow.parameters(), fast.parameters(), strict=True)
    }
    if both:
        torch._foreach_lerp_(list(both), list(both.values()), 1 - momentum)
