"""How many micro-batches a process runs in one pass: as many as its memory takes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch

from crossloom.batch import Batch, fuse
from crossloom.data_pipelines.loader import Shares, Stack
from crossloom.training.engine import Engine
from crossloom.training.environment import Environment
from crossloom.training.guard import Guard
from crossloom.training.recipe import Recipe, RecipeError
from crossloom.training.run import make_model
from crossloom.training.spread import passes

#: Micro-batches of each component, of which the largest stands for all.
_LOOKED_AT = 8


def fitting(recipe: Recipe, stack: Stack, environment: Environment, most: int = 0) -> int:
    """The most micro-batches in a pass with which steps fit into memory on every process.

    Whole steps are tried on a model and an optimiser that are made for it and thrown away, over
    passes that repeat the largest of each component's first micro-batches. Weights, random streams
    and the order of examples are as they were. Engines that keep the model in parts need all
    processes in every pass: they have the same batches, and should have devices of the same size.

    Args:
        recipe: whose ``fused`` is to be found.
        stack: its data.
        environment: of this process; all processes call this.
        most: not more than so many; 0 for no limit.

    Raises:
        RecipeError: not even one fits.
    """
    own = Shares(recipe.micro, environment.rank, environment.world).own
    # where a process can do without the others, none waits for one that has given up
    here = replace(environment, rank=0, world=1) if recipe.engine.alone else environment
    largest = [max(stack.first(n, _LOOKED_AT), key=lambda b: b.units) for n in stack.parts]
    with Guard(recipe.stall_after, environment.rank) as guard:
        for fused in range(min(most or own, own), 0, -1):
            if own % fused:
                continue
            guard.met(slow=True)
            guard.at(f"trying whether passes of {fused} micro-batches fit into memory")
            batches = [fuse([b] * fused, stack.collator.of_units()) for b in largest]
            tried = replace(recipe, fused=fused, micro=own * here.world)
            fits = _fits(tried, here, batches)
            gc.collect()  # only here is the error gone, and what it held
            if environment.device.type == "cuda":
                torch.cuda.empty_cache()
            if environment.total([float(fits)]) == [environment.world]:
                return fused
    raise RecipeError(
        f"fused: not even one micro-batch of {recipe.examples} examples fits into memory; lower "
        "examples (and raise micro), set recompute, or choose an engine that keeps less"
    )


def _fits(recipe: Recipe, environment: Environment, batches: Sequence[Batch]) -> bool:
    try:
        engine = Engine(make_model(recipe), recipe, environment)
        counts = dict.fromkeys(recipe.objectives, 1.0)
        for number in range(2):  # in the second the optimiser's moments are there from the start
            for batch in batches:
                engine.step(number, [batch] * passes(recipe, environment), counts)
    except torch.OutOfMemoryError:
        return False
    return True
