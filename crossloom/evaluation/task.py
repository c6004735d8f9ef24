"""The contract of a task: how it is fine-tuned, and how it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Defect, Source
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.objectives.pool import Pool
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError
from crossloom.training.schedule import Schedule

#: Called with (examples done, examples in all).
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """A task's outcome on one split."""

    metrics: dict[str, Any]
    """Nested by name; shares in 0..1."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """One for each example (or query): key, what was asked, predicted and right."""
    defects: list[Defect] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    """Predictions in the benchmark's own form: content by file name."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how hard to fine-tune; a recipe override can change each."""

    steps: int = 1000
    examples: int = 64
    optim: Optim = field(default_factory=lambda: Optim(rate=5e-5))
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Something to fine-tune and evaluate. Subclasses set ``kind``, its name for people."""

    kind: ClassVar[str]
    headlines: ClassVar[Mapping[str, str]] = {}
    """The figures that stand for the task, by dotted path in its metrics, with how to call them."""
    train: str = "train-*.tar"
    test: str = "test-*.tar"
    text: str = "text"
    """The text stream."""
    pool: Pool = "first"
    """What of the text a classifier reads: its first unit, or the mean."""
    budget: Budget = field(default_factory=Budget)

    @abstractmethod
    def streams(self, recipe: Recipe) -> tuple[str, ...]:
        """The streams it shows, of those the pre-training recipe has."""

    @abstractmethod
    def objectives(self, recipe: Recipe) -> Mapping[str, Objective]:
        """What fine-tuning trains."""

    @abstractmethod
    def component(self, recipe: Recipe) -> Component:
        """What fine-tuning reads."""

    @abstractmethod
    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Score a fine-tuned (or zero-shot) model on the test shards of ``recipe.data``."""

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """The fine-tuning recipe: the base's streams and layers that the task needs, new heads.

        Args:
            base: the pre-training recipe, vocabularies located.
            start: run whose weights are taken; empty trains the same from scratch.
        """
        streams = self.streams(base)
        return replace(
            base,
            name=f"{base.name}-{self.kind}",
            modalities={s: base.modalities[s] for s in streams},
            plan=base.plan.restricted(streams),
            tied={s: o for s, o in base.tied.items() if s in streams and o in streams},
            objectives=dict(self.objectives(base)),
            mixture={self.kind: self.component(base)},
            start=start,
            steps=self.budget.steps,
            examples=self.budget.examples,
            micro=1,
            fused=0,
            optim=self.budget.optim,
            schedule=self.budget.schedule,
        )

    def source(self, recipe: Recipe, component: Component, shards: str) -> Source:
        """Examples of a split."""
        return Source(self.kind, open_shards(shards, recipe.data), component.reader)


def other_stream(recipe: Recipe, text: str) -> str:
    """The one stream beside the text.

    Raises:
        RecipeError: there is none, or there are several.
    """
    others = [s for s in recipe.modalities if s != text and s not in recipe.tied]
    if len(others) != 1:
        raise RecipeError(
            f"{recipe.name}: the task needs one stream beside {text!r}; "
            f"there are {', '.join(others) or 'none'}: name it with image=STREAM"
        )
    return others[0]
