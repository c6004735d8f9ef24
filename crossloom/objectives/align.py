"""Word-region alignment: optimal transport between the units of two streams (UNITER, section 3.2).

The distance of an example is the cost of moving the units of one stream onto those of the other,
under the plan that IPOT finds (Xie et al. 2020, algorithm 1; ``ChenRocks/UNITER:model/ot.py``).
Matching examples should be near, mismatched ones far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crossloom.batch import AimBatch, Encoded
from crossloom.modalities.modality import Modality
from crossloom.objectives.objective import Aim, Head, Objective, example_aim
from crossloom.objectives.view import Shown
from crossloom.units import Array


@dataclass(frozen=True, kw_only=True)
class Align(Objective):
    """Bring the units of matching examples together, those of mismatched ones apart.

    The loss is the transport distance of matching examples less that of mismatched ones, so that it
    may fall below zero; it is divided by all examples. The view should mismatch one of its streams;
    with a view that never does, distances only fall.
    """

    kind: ClassVar[str] = "align"
    pair: tuple[str, str] = ("text", "image")
    beta: float = 0.5
    """Weight of IPOT's proximal term; at least 0.1: below, float32 does not suffice."""
    iterations: int = 50
    """Rounds; after 50, distances are within 0.002 of the exact ones on random directions."""
    skip: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By stream, how many units at the beginning and at the end of an example take no part: ViLT
    leaves out ``<s>`` and ``</s>``, UNITER nothing."""

    def __post_init__(self) -> None:
        if self.beta < 0.1 or self.iterations < 1:
            raise ValueError(
                f"beta {self.beta} must be at least 0.1, iterations {self.iterations} at least 1"
            )

    def aim(self, shown: Shown) -> Aim:
        """One slot: 1 when matched, -1 when not, float32."""
        return example_aim(np.array(1.0 if shown.matched else -1.0, np.float32))

    def blank(self, modalities: Mapping[str, Modality]) -> Array:
        """Neither."""
        return np.zeros(1, np.float32)

    def head(self, modalities: Mapping[str, Modality], widths: Mapping[str, int]) -> Head:
        """Nothing is learned beyond the states themselves.

        Raises:
            ValueError: the streams differ in width.
        """
        if len({widths[s] for s in self.pair}) > 1:
            wide = ", ".join(f"{s} {widths[s]}" for s in self.pair)
            raise ValueError(f"streams of different widths cannot be compared: {wide}")
        return AlignHead(self)

    def check(self, modalities: Mapping[str, Modality]) -> None:
        """Both streams must be in the view."""
        super().check(modalities)
        named = {*self.pair, *self.skip}
        if strange := sorted(named - set(self.view.streams)):
            raise ValueError(f"view {self.view.name!r} does not show {', '.join(strange)}")


class AlignHead(Head):
    """Transport distances; no parameters."""

    def __init__(self, spec: Align) -> None:
        super().__init__()
        self.spec = spec

    def distances(self, encoded: Encoded) -> Tensor:
        """Transport distance of each example, ``[E]`` float32, with gradient through the cost."""
        spec = self.spec
        (a, a_real), (b, b_real) = (
            rectangle(encoded, s, spec.skip.get(s, (0, 0))) for s in spec.pair
        )
        with torch.autocast(a.device.type, enabled=False):
            cost = 1 - a @ b.transpose(1, 2)
            plan = ipot(cost.detach(), a_real, b_real, spec.beta, spec.iterations)
            # the plan is zero wherever a place holds no unit
            return (plan * cost).sum((1, 2))

    def forward(self, encoded: Encoded, aim: AimBatch) -> dict[str, Tensor]:
        """Loss, and ``matched`` and ``apart``: distances summed over either kind."""
        distance = self.distances(encoded).index_select(0, aim.index)
        known = distance.detach() * aim.weight
        return {
            "loss": (distance * aim.value * aim.weight).sum(),
            "matched": (known * (aim.value > 0)).sum(),
            "apart": (known * (aim.value < 0)).sum(),
        }

    def predict(self, encoded: Encoded) -> Tensor:
        """Nearness, the negative distance, ``[E]``."""
        return -self.distances(encoded)


def rectangle(encoded: Encoded, stream: str, skip: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Directions of a stream's units, example by example.

    Returns:
        Unit vectors ``[E, L, D]`` float32, and ``[E, L]`` bool: where there is a unit that takes
        part. Elsewhere is an arbitrary unit.
    """
    flat = encoded.view.streams[stream]
    # as UNITER, which adds 1e-5 to lengths that are zero
    unit = F.normalize(encoded.states[stream].float(), dim=1, eps=1e-5)
    column = torch.arange(flat.longest, device=unit.device)
    place = flat.start[:, None] + torch.minimum(column, (flat.length - 1).clamp(min=0)[:, None])
    place = place.clamp(max=max(0, len(unit) - 1))
    real = (column >= skip[0]) & (column < flat.length[:, None] - skip[1])
    if flat.real is not None:
        real = real & flat.real[place]
    return unit.index_select(0, place.flatten()).unflatten(0, place.shape), real


@torch.no_grad()
def ipot(
    cost: Tensor, a_real: Tensor, b_real: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Transport plans between uniform marginals, by the inexact proximal point method.

    Float32 suffices without logarithms: each round scales the plan to its marginals, so that an
    entry may vanish but no row or column does, and a round shrinks nothing by more than
    ``exp(-2 / beta)``.

    Args:
        cost: ``[E, A, B]`` float32, 0..2.
        a_real: ``[E, A]`` bool. b_real: ``[E, B]`` bool: which places hold units.
        beta: weight of the proximal term, at least 0.1.
        iterations: rounds, with one inner step each.

    Returns:
        ``[E, A, B]`` float32, zero where either place is empty: over B it sums to one over the
        number of real A (to rounding), over A to one over that of B (as well as the rounds
        converged). All zero for an example in which a side is empty.
    """
    a_share = a_real / a_real.sum(1, keepdim=True).clamp(min=1)
    b_share = b_real / b_real.sum(1, keepdim=True).clamp(min=1)
    both = a_real[:, :, None] & b_real[:, None, :]
    kernel = torch.exp(-cost / beta) * both
    plan, a_scale = both.to(cost.dtype), a_share.to(cost.dtype)
    for _ in range(iterations):
        plan = plan * kernel
        b_sum = (a_scale[:, None, :] @ plan).squeeze(1)
        b_scale = b_share / b_sum.clamp(min=_TINY)
        a_sum = (plan @ b_scale[:, :, None]).squeeze(2)
        a_scale = a_share / a_sum.clamp(min=_TINY)
        plan *= a_scale[:, :, None] * b_scale[:, None, :]
    return plan


#: Keeps empty rows at zero; sums of real ones are far above it.
_TINY = torch.finfo(torch.float32).tiny
