"""One step of a run once more, to look at it: its examples, its losses, and what is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossloom.data_pipelines.loader import Shares, load
from crossloom.training import checkpoint
from crossloom.training.engine import Engine, Sums
from crossloom.training.environment import Environment
from crossloom.training.loop import restore
from crossloom.training.quarantine import Badness
from crossloom.training.recipe import RecipeError, from_yaml
from crossloom.training.run import RECIPE, make_model, make_stack
from crossloom.training.skips import begin
from crossloom.training.start import start


def replay(out: Path, number: int, environment: Environment, say: Callable[[str], None]) -> None:
    """Take a run's steps from the last checkpoint before step ``number``, and tell of that one.

    Weights, batch and dropout are those that the step had; nothing is written.

    Args:
        out: the run directory.
        number: of the step, as in ``metrics.jsonl`` and ``skipped.jsonl``: the first is 1.
        environment: of this process; as many as the run had, for the same dropout.
        say: takes each line.

    Raises:
        RecipeError: there is no run, or no such step.
    """
    if not (out / RECIPE).is_file():
        raise RecipeError(f"--debug-step: {out} is no run; name it with --out")
    recipe = from_yaml(out / RECIPE).located()
    if not 1 <= number <= recipe.steps:
        raise RecipeError(f"--debug-step {number}: the run has steps 1 to {recipe.steps}")
    model, stack = make_model(recipe), make_stack(recipe)
    if recipe.start:
        start(model, recipe)
    engine = Engine(model, recipe, environment)
    saved = checkpoint.checkpoints(out / "checkpoints")
    before = [p for p in saved if int(p.name.rpartition("-")[2]) < number]
    found = checkpoint.load(before[-1]) if before else None
    if found:
        badness = Badness(recipe, stack.defects)
        restore(found, str(before[-1]), engine, recipe, badness, False)
    first = found.step if found else 0
    skips = begin(recipe, found.notes.get("skips", {}) if found else {})
    shares = Shares(recipe.micro, environment.rank, environment.world, recipe.fused)
    for step, batches in enumerate(load(stack, shares, range(first, number), workers=0), first):
        names = list(recipe.objectives)
        total = environment.total([sum(b.counts[n] for b in batches) for n in names])
        counts = dict(zip(names, total, strict=True))
        if step < number - 1:
            engine.step(step, batches, counts, skips.accept)
            continue
        for batch in batches:
            say(f"rank {environment.rank}: {' '.join(batch.keys)}")
        looked = _Look(engine.model)
        sums = engine.step(step, batches, counts, looked.at_gradients)
        say(f"step {number}, from the checkpoint of step {first}: gradient norm {looked.norm:.6g}")
        for name, value in _means(sums, counts, environment).items():
            say(f"{name} {value:.6g}")
        for line in looked.found or ["all states and gradients are finite"]:
            say(f"rank {environment.rank}: {line}")


def _means(sums: Sums, counts: Mapping[str, float], environment: Environment) -> dict[str, float]:
    drawn = [n for n in counts if counts[n] > 0]
    total = environment.total([float(sums[n]["loss"]) for n in drawn])
    return {f"{n}/loss": x / counts[n] for n, x in zip(drawn, total, strict=True)}


class _Look:
    """What is not finite in one step, in the order in which it came about."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.norm = model, 0.0
        self.found: list[str] = []
        for name, parameter in model.named_parameters():
            self._note(f"weight {name}", parameter)
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self._note(f"output of {name or 'the model'}", tensor)

        return hook

    def _note(self, what: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            count = int((~torch.isfinite(tensor.detach())).sum())
            if count:
                self.found.append(f"{what}: {count} of {tensor.numel()} are not finite")

    def at_gradients(self, norm: float) -> bool:
        """Look at gradients while they are there; the step is not taken."""
        self.norm = norm
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self._note(f"gradient of {name}", parameter.grad)
        return False


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
