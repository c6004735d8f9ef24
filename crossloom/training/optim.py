"""The optimiser: AdamW or LAMB over groups that differ in decay and rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: What the optimisers keep for each parameter, beside the number of steps.
MOMENTS = ("exp_avg", "exp_avg_sq")

_LAYER = re.compile(r"fusion\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Weight decay is decoupled, and on matrices only."""

    kind: Literal["adamw", "lamb"] = "adamw"
    """``lamb`` (You et al., 2020) for very large batches: each parameter's step is as long as the
    parameter is, times the rate."""
    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    decay: float = 0.01
    clip: float = 1.0
    """Largest global gradient norm; 0 for none."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Factor on the rate by pattern of the parameter's name; 0 freezes; the first match wins."""
    layer_decay: float = 1.0
    """Factor on the rate for each layer further from the heads: the plan's last layer learns at the
    rate, the one before at this part of it, and embedders at the smallest (ELECTRA, BEiT)."""

    def factor(self, name: str, layers: int = 0) -> float:
        """The factor of one parameter, in a model of so many layers."""
        for pattern, factor in self.factors.items():
            if re.search(pattern, name):
                return factor
        if found := _LAYER.match(name):
            return self.layer_decay ** (layers - 1 - int(found.group(1)))
        return self.layer_decay**layers if name.startswith(("embed.", "marks.")) else 1.0


def freeze(model: nn.Module, spec: Optim) -> None:
    """Stop gradients of parameters whose factor is zero (before the model is wrapped)."""
    for name, parameter in model.named_parameters():
        if spec.factor(name) == 0:
            parameter.requires_grad_(False)


def make_optimiser(model: nn.Module, spec: Optim) -> torch.optim.Optimizer:
    """The optimiser over trainable parameters; a group's own ``factor`` scales the scheduled rate.

    Biases, norms, scales and other vectors are not decayed.

    Raises:
        ValueError: everything is frozen.
    """
    names = [n for n, _ in model.named_parameters()]
    layers = 1 + max((int(x.group(1)) for n in names if (x := _LAYER.match(n))), default=-1)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (spec.factor(name, layers), parameter.dim() > 1)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("optim.factors freezes every parameter; nothing is left to train")
    settings: list[dict[str, Any]] = [
        {"params": p, "factor": factor, "weight_decay": spec.decay if decayed else 0.0}
        for (factor, decayed), p in groups.items()
    ]
    if spec.kind == "lamb":
        return Lamb(settings, spec.rate, spec.betas, spec.epsilon)
    return torch.optim.AdamW(settings, lr=spec.rate, betas=spec.betas, eps=spec.epsilon, fused=True)


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020, algorithm 2) with bias correction and identity scaling.

    Each parameter's update ``m / (sqrt(v) + eps) + decay * w`` is scaled by ``|w| / |update|``, or
    by 1 where either norm is zero. Norms are of whole parameters, also where they are in parts.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            here = [p for p in group["params"] if p.grad is not None]
            if here:
                self._step(group, here)

    def _step(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        first, second = group["betas"]
        weights, updates = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state |= {k: torch.zeros_like(parameter) for k in MOMENTS}
            state["step"] += 1
            step = state["step"]
            weight, gradient, mean, square = (
                _local(x) for x in (parameter, parameter.grad, *(state[k] for k in MOMENTS))
            )
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            root = (square / (1 - second**step)).sqrt_().add_(group["eps"])
            update = (mean / (1 - first**step)).div_(root)
            updates.append(update.add_(weight, alpha=group["weight_decay"]))
            weights.append(weight)
        squares = torch.stack([x.square().sum() for x in (*weights, *updates)])
        if hasattr(parameters[0].data, "to_local"):
            torch.distributed.all_reduce(squares)
        lengths, steps = squares.sqrt().chunk(2)
        known = (lengths > 0) & (steps > 0)
        trust = torch.where(known, lengths / steps.clamp(min=1e-30), 1.0)
        for weight, update, factor in zip(weights, updates, trust, strict=True):
            weight.sub_(update * (factor * group["lr"]))


def _local(tensor: Any) -> Tensor:
    """What of a tensor is here: its data, or this process's part of them."""
    data = tensor.data
    part: Tensor = data.to_local() if hasattr(data, "to_local") else data
    return part
