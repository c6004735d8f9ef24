"""Engine on torch alone: one process, or DDP over several."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossloom.batch import Batch
from crossloom.models.model import CrossloomModel
from crossloom.training.copies import Copies
from crossloom.training.engine import Accept, Sums, add
from crossloom.training.environment import Environment, seed_torch
from crossloom.training.optim import freeze, make_optimiser
from crossloom.training.recipe import Recipe

#: What ``forward_sync_buffers`` of DDP was called in earlier releases of torch.
_BEFORE = "broadcast_buffers"


class TorchEngine:
    """Autocast, accumulation, clipping, AdamW, EMA."""

    def __init__(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> None:
        self.recipe, self.environment = recipe, environment
        freeze(model, recipe.optim)
        self.model = model.to(environment.device)
        self.wrapped: nn.Module = self.model
        if environment.world > 1:
            # every head and embedder runs in every step, so there is nothing unused to look for
            # buffers (queues) are made alike everywhere: sending them each step would only cost
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else _BEFORE
            settings: dict[str, Any] = {"gradient_as_bucket_view": True, name: False}
            self.wrapped = DistributedDataParallel(self.model, **settings)
        self.copies = Copies(environment.device)
        self.optimiser = make_optimiser(self.model, recipe.optim)
        self.weights = {o: x.weight for o, x in recipe.objectives.items()}
        self.ema: dict[str, Tensor] = {}
        if recipe.ema:
            self.ema = {n: p.detach().clone() for n, p in self._trained()}

    def expect(self, batch: Batch) -> None:
        """See :class:`~crossloom.training.engine.Engine`."""
        self.copies.begin(batch)

    def step(
        self,
        number: int,
        batches: Sequence[Batch],
        counts: Mapping[str, float],
        accept: Accept = math.isfinite,
    ) -> Sums:
        """See :class:`~crossloom.training.engine.Engine`."""
        seed_torch(self.recipe.seed, "step", number, self.environment.rank)
        self.wrapped.train()
        self._set_rates(number)
        total: Sums = {}
        for place, batch in enumerate(batches):
            here = self.copies.take(batch)
            for following in batches[place + 1 : place + 2]:
                self.expect(following)
            last = place == len(batches) - 1
            sync = nullcontext() if last or self.wrapped is self.model else self.wrapped.no_sync()  # type: ignore[operator]
            with sync:
                sums = self._backward(here, counts)
            add(total, sums)
        clip = self.recipe.optim.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip or float("inf"))
        taken = accept(float(norm))
        if taken:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if taken:
            self.model.settle()
            self._average(number)
        total["step"] = {"norm": norm.detach()}
        return total

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> Sums:
        """See :class:`~crossloom.training.engine.Engine`."""
        device = self.environment.device
        self.model.eval()
        total: Sums = {}
        for batch in batches:
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
            ):
                add(total, self.model(batch.to(device)))
        return total

    def _backward(self, batch: Batch, counts: Mapping[str, float]) -> Sums:
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.environment.device.type, torch.bfloat16, enabled=bf16):
            sums: Sums = self.wrapped(batch)
        # sums over the global counts; DDP will divide by the number of processes
        parts = [
            sums[o]["loss"] * (self.weights[o] * self.environment.world / max(counts[o], 1.0))
            for o in sums
        ]
        torch.stack(parts).sum().backward()
        return sums

    def _set_rates(self, number: int) -> None:
        factor = self.recipe.schedule.factor(number, self.recipe.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.optim.rate * factor * group["factor"]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def _average(self, number: int) -> None:
        if self.ema:
            # the early average follows closely, else it would remember the initial weights
            decay = min(self.recipe.ema, (1 + number) / (10 + number))
            for name, parameter in self._trained():
                self.ema[name].lerp_(parameter, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name, and the moving average."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        out: dict[str, Tensor] = {}
        for parameter, values in self.optimiser.state.items():
            for key, value in values.items():
                out[f"optimiser/{key}/{names[id(parameter)]}"] = value
        return out | {f"ema/{n}": v for n, v in self.ema.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See :class:`~crossloom.training.engine.Engine`."""
        device = self.environment.device
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            values: dict[str, Any] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                values[key] = _wanted(state, f"optimiser/{key}/{name}").to(device).clone()
            if values["exp_avg"].shape != parameter.shape:
                raise ValueError(f"optimiser state of {name} has shape {values['exp_avg'].shape}")
            self.optimiser.state[parameter] = values
        for name in self.ema:
            self.ema[name] = _wanted(state, f"ema/{name}").to(device).clone()


def _wanted(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the checkpoint has no {name}; was it made by another recipe?")
    return state[name]
