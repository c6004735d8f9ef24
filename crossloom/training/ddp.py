"""Whole parameters on every process: one process alone, or DDP."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossloom.batch import Batch
from crossloom.models.model import CrossloomModel
from crossloom.training.checkpoint import Piece
from crossloom.training.environment import Environment
from crossloom.training.optim import MOMENTS, make_optimiser
from crossloom.training.spread import Accept, Backend, Spread

if TYPE_CHECKING:
    from crossloom.training.recipe import Recipe

#: What ``forward_sync_buffers`` of DDP was called in earlier releases of torch.
_BEFORE = "broadcast_buffers"


@dataclass(frozen=True, kw_only=True)
class Ddp(Backend):
    """torch alone: one process, or whole copies of the model on several (DDP)."""

    alone: ClassVar[bool] = True

    def spread(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> Spread:
        """See :class:`~crossloom.training.spread.Backend`."""
        module: nn.Module = model
        if environment.world > 1:
            # every head and embedder runs in every step, so there is nothing unused to look for
            # buffers (queues) are made alike everywhere: sending them each step would only cost
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in known else _BEFORE
            settings: dict[str, Any] = {"gradient_as_bucket_view": True, name: False}
            module = DistributedDataParallel(_Rehearsed(model), **settings)
            _rehearse(module)
        return Whole(model, module, recipe)


class _Rehearsed(nn.Module):
    """A model; asked for no batch, it gives a 0 that every parameter is part of."""

    def __init__(self, model: CrossloomModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch | None) -> Any:
        if batch is not None:
            return self.model(batch)
        return sum(p.flatten()[:0].sum().float() for p in self.parameters() if p.requires_grad)


def _rehearse(module: nn.Module) -> None:
    """Let DDP lay its buckets, which it does after a first backward pass.

    On more than two processes the order in which an element is summed hangs on where in a bucket it
    lies. Were they laid by the first step of each start, a run that goes on from a checkpoint would
    differ in a last digit from one that was never stopped.
    """
    module(None).backward()
    module.zero_grad(set_to_none=True)


class Whole:
    """See :class:`~crossloom.training.spread.Spread`: nothing is in parts."""

    def __init__(self, model: CrossloomModel, module: nn.Module, recipe: Recipe) -> None:
        self.model, self.module = model, module
        self.limit = recipe.optim.clip or float("inf")
        self.optimiser = make_optimiser(model, recipe.optim)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups."""
        return self.optimiser.param_groups

    def turn(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in the last batch's backward pass."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add gradients."""
        loss.backward()

    def update(self, accept: Accept | None) -> tuple[Tensor, bool]:
        """Clip, and step if it is accepted."""
        norm = self.clip()
        if taken := accept is None or accept(float(norm)):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return norm, taken

    def clip(self) -> Tensor:
        """Scale gradients to the largest norm allowed; return the norm that they had."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.limit).detach()

    def rest(self) -> None:
        """Nothing was gathered."""

    def local(self, parameter: nn.Parameter) -> Tensor:
        """The whole parameter."""
        return parameter.detach()

    def piece(self, parameter: nn.Parameter) -> Piece:
        """What of a parameter this process holds."""
        return Piece.whole(parameter)

    def parameters(self) -> Mapping[str, Piece]:
        """All parameters."""
        return {n: self.piece(p) for n, p in self.model.named_parameters()}

    def moments(self) -> Mapping[str, Piece]:
        """The optimiser's running means."""
        out: dict[str, Piece] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                piece, state = self.piece(parameter), self._state(parameter)
                out |= {f"{k}/{name}": piece.beside(self.local(state[k])) for k in MOMENTS}
        return out

    def counters(self) -> list[Tensor]:
        """One for each parameter."""
        return [s["step"] for s in self.optimiser.state.values()]

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return state_of(self.optimiser, parameter)

    def renew(self) -> None:
        """The pieces are the parameters themselves."""


def state_of(optimiser: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """An optimiser's state of a parameter, made as its first step would make it."""
    state: dict[str, Any] = optimiser.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state |= {k: torch.zeros_like(parameter.detach()) for k in MOMENTS}
    return state
