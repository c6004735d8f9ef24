"""Slow encoders: copies of embedders and layers that follow the trained ones at a distance.

They make the keys of momentum contrast (MoCo, He et al. 2020; WenLan; InfoXLM): features that
change slowly enough for a queue of past ones to stay comparable. They have no gradient, move once
per optimiser step, and are part of the model's weights, so they are saved and resumed with them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from crossloom.models.fusion import Fusion


class Slow(nn.Module):
    """Slow copies of what some views go through."""

    def __init__(
        self,
        embed: nn.ModuleDict,
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
        # each in one go, so that parts which embedders or layers share are shared by the copies
        self.embed = copy.deepcopy(embed)
        self.fusion = copy.deepcopy(fusion)
        if depth:
            self.fusion.layers = self.fusion.layers[:depth]
        self.requires_grad_(False)

    def pairs(self, embed: nn.ModuleDict, fusion: Fusion) -> list[tuple[nn.Module, nn.Module]]:
        """Each slow module with the one it follows."""
        out: list[tuple[nn.Module, nn.Module]] = [(m, embed[s]) for s, m in self.embed.items()]
        out += zip(self.fusion.layers, fusion.layers, strict=False)
        return [*out, *((m, fusion.last[s]) for s, m in self.fusion.last.items())]


@torch.no_grad()
def follow(
    pairs: Iterable[tuple[nn.Module, nn.Module]],
    momentum: float,
    local: Callable[[nn.Parameter], Tensor] = torch.Tensor.detach,
) -> None:
    """Move slow parameters towards those they follow: ``momentum * slow + (1 - momentum) * fast``.

    Args:
        pairs: slow module, and the module it was copied from.
        momentum: 0 copies, 1 stands still.
        local: what of a parameter this process holds; the same stretch of both of a pair.
    """
    # by the slow parameter, so that one that several layers share moves once
    both = {
        s: f
        for slow, fast in pairs
        for s, f in zip(slow.parameters(), fast.parameters(), strict=True)
    }
    if both:
        fast = [local(f) for f in both.values()]
        torch._foreach_lerp_([local(s) for s in both], fast, 1 - momentum)
