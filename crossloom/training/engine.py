"""The engine: one step on batches, whatever spreads the model over processes; its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from crossloom.batch import Batch
from crossloom.models.model import CrossloomModel
from crossloom.training.checkpoint import Checkpoint, Piece
from crossloom.training.copies import Copies
from crossloom.training.environment import Environment, seed_torch
from crossloom.training.optim import freeze
from crossloom.training.recipe import Recipe
from crossloom.training.spread import Accept

#: Sums over slots by objective and meter ("loss", "correct", …), local to the process.
Sums = dict[str, dict[str, Tensor]]


def add(total: Sums, sums: Sums) -> None:
    """Take further sums into a total, detached."""
    for name, meters in sums.items():
        mine = total.setdefault(name, {})
        for meter, value in meters.items():
            mine[meter] = mine[meter] + value.detach() if meter in mine else value.detach()


class Engine:
    """Runs steps on a model: autocast, accumulation, rates, slow encoders, a moving average.

    Parameters, gradients and the optimiser lie as the recipe's ``engine`` spreads them.
    """

    def __init__(self, model: CrossloomModel, recipe: Recipe, environment: Environment) -> None:
        """Bring a model to its device and spread it.

        Raises:
            ValueError: the recipe asks for what its engine cannot do.
        """
        self.recipe, self.environment = recipe, environment
        freeze(model, recipe.optim)
        model.fusion.recompute = recipe.recompute
        if recipe.compile:
            for layer in model.fusion.layers:
                layer.compile(dynamic=True)
        self.model = model.to(environment.device)
        self.spread = recipe.engine.spread(self.model, recipe, environment)
        self.copies = Copies(environment.device)
        self.weights = {o: x.weight for o, x in recipe.objectives.items()}
        #: by objective, those over whose slots its loss is averaged
        self.among = {
            name: [o for o, x in recipe.objectives.items() if x.mean == spec.mean]
            if spec.mean
            else [name]
            for name, spec in recipe.objectives.items()
        }
        self.ema: dict[str, Piece] = {}
        if recipe.ema:
            self.ema = {n: p.beside(p.value.clone()) for n, p in self._trained().items()}

    def expect(self, batch: Batch) -> None:
        """Begin to bring a batch to the device, ahead of the step that runs it."""
        self.copies.begin(batch)

    def step(
        self,
        number: int,
        batches: Sequence[Batch],
        counts: Mapping[str, float],
        accept: Accept | None = None,
    ) -> Sums:
        """Forward and backward over the batches, then one update, if the gradient is accepted.

        Args:
            number: of the step, which decides the learning rate and the dropout.
            batches: this process's share, as NumPy arrays.
            counts: by objective, summed weights over all processes and batches of the step.
            accept: told the gradient's norm over all processes, before clipping; where it says no,
                nothing changes: neither weights nor the optimiser, queues or averages. It is what
                the host waits for in a step; None takes every step and waits for nothing.

        Returns:
            Local sums, detached; ``"step"`` holds ``"norm"``, the gradient's norm before clipping.
        """
        seed_torch(self.recipe.seed, "step", number, self.environment.rank)
        self.spread.module.train()
        self._set_rates(number)
        total: Sums = {}
        for place, batch in enumerate(batches):
            here = self.copies.take(batch)
            for following in batches[place + 1 : place + 2]:
                self.expect(following)
            with self.spread.turn(last=place == len(batches) - 1):
                with self._precision():
                    sums: Sums = self.spread.module(here)
                self.spread.backward(self._loss(sums, counts))
            add(total, sums)
        norm, taken = self.spread.update(accept)
        if taken:
            self.model.settle(self.spread.local)
            self._average(number)
        total["step"] = {"norm": norm}
        return total

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> Sums:
        """Local sums over the batches, without dropout or gradient; nothing changes."""
        self.model.eval()
        total: Sums = {}
        for batch in batches:
            with self._precision():
                add(total, self.model(batch.to(self.environment.device)))
        self.spread.rest()
        return total

    @contextmanager
    def _precision(self) -> Iterator[None]:
        bf16 = self.recipe.precision == "bf16"
        with torch.autocast(self.environment.device.type, torch.bfloat16, enabled=bf16):
            yield

    def _loss(self, sums: Sums, counts: Mapping[str, float]) -> Tensor:
        # sums over the global counts; gradients will be divided by the number of processes
        slots = {o: max(sum(counts[p] for p in self.among[o]), 1.0) for o in sums}
        parts = [
            sums[o]["loss"] * (self.weights[o] * self.environment.world / slots[o]) for o in sums
        ]
        return torch.stack(parts).sum()

    def _set_rates(self, number: int) -> None:
        factor = self.recipe.schedule.factor(number, self.recipe.steps)
        for group in self.spread.groups:
            group["lr"] = self.recipe.optim.rate * factor * group["factor"]

    def _trained(self) -> dict[str, Piece]:
        trained = {n for n, p in self.model.named_parameters() if p.requires_grad}
        return {n: p for n, p in self.spread.parameters().items() if n in trained}

    @torch.no_grad()
    def _average(self, number: int) -> None:
        if self.ema:
            # the early average follows closely, else it would remember the initial weights
            decay = min(self.recipe.ema, (1 + number) / (10 + number))
            for name, piece in self._trained().items():
                self.ema[name].value.lerp_(piece.value, 1 - decay)

    def state(self) -> dict[str, Piece]:
        """Everything that must be saved, as this process holds it.

        Under ``model/`` the weights and buffers, under ``optimiser/`` its moments and its number of
        steps, under ``ema/`` the moving average.
        """
        buffers = dict(self.model.named_buffers())
        saved = self.model.state_dict().keys() & buffers.keys()
        out = {f"model/{n}": p for n, p in self.spread.parameters().items()}
        out |= {f"model/{n}": Piece.whole(buffers[n]) for n in sorted(saved)}
        out |= {f"optimiser/{n}": p for n, p in self.spread.moments().items()}
        out["optimiser/step"] = Piece.whole(self.spread.counters()[0])
        return out | {f"ema/{n}": p for n, p in self.ema.items()}

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Take back what :meth:`state` gave, on whatever number of processes it was saved.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        own = {f"model/{n}" for n in self.model.state_dict()}
        if strange := sorted(n for n in checkpoint.shapes.keys() - own if n.startswith("model/")):
            raise ValueError(f"the model has no {strange[0].removeprefix('model/')}")
        for name, piece in self.state().items():
            checkpoint.fill(name, piece)
        first, *others = self.spread.counters()
        for counter in others:
            counter.copy_(first)
        self.spread.renew()
