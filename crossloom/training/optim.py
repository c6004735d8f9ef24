"""The optimiser: AdamW over groups that differ in decay and rate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with decoupled weight decay on matrices only."""

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    decay: float = 0.01
    clip: float = 1.0
    """Largest global gradient norm; 0 for none."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Factor on the rate by pattern of the parameter's name; 0 freezes; the first match wins."""

    def factor(self, name: str) -> float:
        """The factor of one parameter."""
        for pattern, factor in self.factors.items():
            if re.search(pattern, name):
                return factor
        return 1.0


def freeze(model: nn.Module, spec: Optim) -> None:
    """Stop gradients of parameters whose factor is zero (before the model is wrapped)."""
    for name, parameter in model.named_parameters():
        if spec.factor(name) == 0:
            parameter.requires_grad_(False)


def make_optimiser(model: nn.Module, spec: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; each group's own ``factor`` scales the scheduled rate.

    Biases, norms, scales and other vectors are not decayed.

    Raises:
        ValueError: everything is frozen.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (spec.factor(name), parameter.dim() > 1)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("optim.factors freezes every parameter; nothing is left to train")
    return torch.optim.AdamW(
        [
            {"params": p, "factor": factor, "weight_decay": spec.decay if decayed else 0.0}
            for (factor, decayed), p in groups.items()
        ],
        lr=spec.rate,
        betas=spec.betas,
        eps=spec.epsilon,
        fused=True,
    )
