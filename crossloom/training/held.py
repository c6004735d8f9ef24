"""Figures on data held back, measured while a run trains: the pace and the weights they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from crossloom.data_pipelines.collate import Collator
from crossloom.data_pipelines.loader import Shares, Stack, load
from crossloom.data_pipelines.mixture import Mixture
from crossloom.training.engine import Engine, Sums, add
from crossloom.training.environment import Environment, workers
from crossloom.training.quarantine import RunError
from crossloom.training.recipe import Pace, Recipe
from crossloom.training.run import make_part
from crossloom.units import Defect

#: By component, then by objective: ``loss``, and ``correct`` where the head tells the share right.
Measured = Mapping[str, Mapping[str, Mapping[str, float]]]
Note = Callable[[Iterable[Defect]], None]


class Held:
    """The held-out shards of a recipe's components, ready to be measured.

    The same batches each time: examples, corruption and global batches as in training (so that
    contrasts meet as many others), but without augmentation, dropout or gradient. The same numbers
    for any number of processes, as in training.
    """

    def __init__(self, recipe: Recipe, shares: Shares, environment: Environment) -> None:
        """Open the held-out shards.

        Raises:
            ShardError: shards are missing, unreadable or empty.
        """
        self.recipe, self.shares, self.environment = recipe, shares, environment
        steady = {s: m.steady() for s, m in recipe.modalities.items()}
        collator = Collator(steady, recipe.objectives, recipe.seed)
        self.stacks = {}
        for name, component in recipe.mixture.items():
            if component.held:
                part = make_part(name, component, recipe, component.held)
                once = Mixture({name: 1.0}, seed=recipe.seed)
                self.stacks[name] = Stack({name: part}, once, collator, recipe.examples)

    def measure(self, engine: Engine, note: Note) -> Measured:
        """Means over the slots of at most ``held_steps`` batches of each component.

        Args:
            engine: that trains the model.
            note: told of bad samples among those held back.
        """
        return {name: self._one(engine, stack, note) for name, stack in self.stacks.items()}

    def _one(self, engine: Engine, stack: Stack, note: Note) -> dict[str, dict[str, float]]:
        (part,) = stack.parts.values()
        whole = len(part.source) // (self.recipe.examples * self.recipe.micro)
        steps = range(max(1, min(self.recipe.held_steps, whole)))
        wanted = workers(self.recipe.workers, self.environment.world)
        total: Sums = {}
        counts = dict.fromkeys(part.objectives, 0.0)
        for batches in load(stack, self.shares, steps, workers=wanted):
            add(total, engine.evaluate(batches))
            for batch in batches:
                note(batch.defects)
                for name in counts:
                    counts[name] += batch.counts[name]
        told = [(n, m) for n in counts for m in ("loss", "correct") if m in total[n]]
        local = [float(total[n][m]) for n, m in told]
        found = self.environment.total([*local, *counts.values()])
        slots = dict(zip(counts, found[len(told) :], strict=True))
        means: dict[str, dict[str, float]] = {}
        for (name, meter), value in zip(told, found, strict=False):
            if slots[name]:
                means.setdefault(name, {})[meter] = value / slots[name]
        return means


@dataclass(frozen=True)
class Best:
    """The best measurement so far of the figure by which weights are selected."""

    by: str  #: component/objective
    figure: str  #: ``correct``, the higher the better; else ``loss``
    value: float
    step: int  #: steps done when it was measured

    def beaten(self, other: Best) -> bool:
        """Whether another measurement is better; of equal ones the earlier stays."""
        return other.value > self.value if self.figure == "correct" else other.value < self.value


def figure(by: str, measured: Measured, step: int) -> Best:
    """The figure named ``component/objective`` in a measurement.

    Raises:
        RunError: nothing held back has a slot of the objective.
    """
    component, _, objective = by.partition("/")
    meters = measured[component].get(objective)
    if meters is None:
        raise RunError(
            f"select: {by}: the objective scores nothing on the held-out shards; look at them "
            "with `crossloom shards show`"
        )
    meter = "correct" if "correct" in meters else "loss"
    return Best(by, meter, meters[meter], step)


@dataclass
class Walk:
    """Where one component stands: its best loss so far, and how long ago that was."""

    best: float
    since: int = 0
    slow: bool = False


def paced(
    pace: Pace, weights: Mapping[str, float], history: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """The components' weights after some measurements.

    A pure function of what was measured, so that a resumed run decides alike.

    Args:
        pace: the rule.
        weights: as the recipe has them.
        history: for each measurement, the held-out loss of each component that has one.
    """
    walks: dict[str, Walk] = {}
    for losses in history:
        for name, loss in losses.items():
            if name not in walks:
                walks[name] = Walk(loss)
                continue
            walk = walks[name]
            if loss < walk.best - pace.threshold * abs(walk.best):
                walk.best, walk.since = loss, 0
            else:
                walk.since += 1
            if walk.slow and loss > walk.best + pace.back * abs(walk.best):
                walk.slow, walk.since = False, 0
            elif walk.since >= pace.patience:
                walk.slow = True
    return {
        name: weight / pace.gap if name in walks and walks[name].slow else weight
        for name, weight in weights.items()
    }
