"""The contract of a task: how it is fine-tuned, and how it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from crossloom.data_pipelines.reader import Reader, json_of
from crossloom.data_pipelines.shards import Shard, open_shards
from crossloom.data_pipelines.source import Defect, Source
from crossloom.modalities.text import Text
from crossloom.models.model import CrossloomModel
from crossloom.models.plan import Attend
from crossloom.objectives.match import Match
from crossloom.objectives.objective import Objective
from crossloom.objectives.pool import Pool
from crossloom.objectives.pooled import Pooled
from crossloom.training.optim import Optim
from crossloom.training.recipe import Component, Recipe, RecipeError
from crossloom.training.schedule import Schedule
from crossloom.units import BadSample

#: The component that is measured, not trained on, and how many batches of it: all there are.
DEV, WHOLE = "dev", 10**9
Trained = TypeVar("Trained", bound=Objective)
#: Called with (examples done, examples in all).
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Result:
    """A task's outcome on one split."""

    metrics: dict[str, Any]
    """Nested by name; shares in 0..1. ``by_language`` is what tables and heat maps by language
    show: the figure that stands for the task, in each language."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """One for each example (or query): key, what was asked, predicted and right."""
    defects: list[Defect] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    """Predictions in the benchmark's own form: content by file name."""
    split: str = ""
    """The split scored, as the shards' names tell it: ``test``, or ``testA, testB``."""
    selected_by: str = ""
    """How the weights scored were chosen among those of fine-tuning."""
    earlier: Path | None = None
    """Where a result went that lay in this one's place and was scored otherwise."""


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
    dev: str = ""
    """Shards by which the weights are selected: those that do best on them while fine-tuning, on
    all of their whole batches. Empty for the last weights."""
    dev_every: int = 100
    """Steps between such measurements."""
    text: str = "text"
    """The text stream."""
    asked: str | None = None
    """By which name of ``Text.tasks`` texts say what is asked (12-in-1); empty to leave it unsaid.
    None: the task's own, where it is among them."""
    pool: Pool | None = None
    """What of a stream a classifier reads; as the recipe's matching head, or else as
    :func:`pooling` says, when None."""
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

    def reading(self, recipe: Recipe, reader: Reader) -> Reader:
        """A reader as the run's streams need it: it tells texts what is asked.

        Raises:
            RecipeError: they know of no such task.
        """
        tasks = getattr(recipe.modalities.get(self.text), "tasks", ())
        usual = self.kind if self.kind in tasks else ""
        name = usual if self.asked is None else self.asked
        if name and name not in tasks:
            known = ", ".join(tasks) or "no task: leave it empty"
            raise RecipeError(f"asked: {name!r}, but the texts of {recipe.name} know {known}")
        return replace(reader, task=name) if name else reader

    def dev_reader(self, recipe: Recipe) -> Reader:
        """What of the ``dev`` shards is read; as fine-tuning reads, if not said otherwise."""
        return self.component(recipe).reader

    @abstractmethod
    def evaluate(self, model: CrossloomModel, recipe: Recipe, watch: Watch | None = None) -> Result:
        """Score a fine-tuned (or zero-shot) model on the test shards of ``recipe.data``."""

    def recipe(self, base: Recipe, start: str) -> Recipe:
        """The fine-tuning recipe: the base's streams and layers that the task needs, new heads.

        Args:
            base: the pre-training recipe, vocabularies located.
            start: run whose weights are taken; empty trains the same from scratch.
        """
        streams, objectives = self.streams(base), dict(self.objectives(base))
        asked = frozenset(t for o in objectives.values() for t in o.asks)
        component = self.component(base)
        mixture = {self.kind: replace(component, reader=self.reading(base, component.reader))}
        if self.dev:
            # never drawn: only measured
            mixture[DEV] = replace(
                component,
                shards=self.dev,
                held=self.dev,
                reader=self.reading(base, self.dev_reader(base)),
                weight=0.0,
            )
        return replace(
            base,
            name=f"{base.name}-{self.kind}",
            # the task's shards need not have what pre-training alone predicted
            modalities={s: base.modalities[s].asked(asked) for s in streams},
            plan=base.plan.restricted(streams),
            tied={s: o for s, o in base.tied.items() if s in streams and o in streams},
            marked=tuple(s for s in base.marked if s in streams),
            objectives=objectives,
            mixture=mixture,
            # stages and pauses of pre-training speak of components that are not here
            phases=(),
            held_every=self.dev_every if self.dev else 0,
            held_steps=WHOLE if self.dev else base.held_steps,
            select=f"{DEV}/{mixture[self.kind].objectives[0]}" if self.dev else "",
            ema=0.0 if self.dev else base.ema,
            pace=None,
            start=start,
            steps=self.budget.steps,
            examples=self.budget.examples,
            micro=1,
            fused=0,
            optim=self.budget.optim,
            schedule=self.budget.schedule,
        )

    def source(self, recipe: Recipe, component: Component, shards: str) -> Source:
        """Examples of a split.

        Raises:
            RecipeError: two shards have one name, by which keys tell examples apart.
        """
        opened = open_shards(shards, recipe.data)
        first: dict[str, Shard] = {}
        for shard in opened:
            if (other := first.setdefault(shard.name, shard)) is not shard:
                raise RecipeError(
                    f"{other.shown} and {shard.shown} have one name, by which examples are known; "
                    "rename one, or score them one after the other"
                )
        return Source(self.kind, opened, self.reading(recipe, component.reader))

    def split(self, recipe: Recipe) -> str:
        """Names of the splits that the test shards belong to."""
        names = (split_of(s.name) for s in open_shards(self.test, recipe.data))
        return ", ".join(dict.fromkeys(names))


def languages_of(shards: Sequence[Shard], field: str, texts: str) -> tuple[str, ...]:
    """All languages that things which samples list are told in, in the order met.

    Samples that cannot be used are passed over: they are counted when they are read to be scored.

    Args:
        shards: whose samples are looked at, by their json alone.
        field: of the json, a list; samples without it are not read.
        texts: field of what is listed: its texts by language.

    Raises:
        RecipeError: there is none.
    """
    found: dict[str, None] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.items.get(field):
                # a json that anybody may have written may be built in another way
                with suppress(BadSample, AttributeError, KeyError, TypeError):
                    for one in json_of(shard, entry)[field]:
                        found |= {code: None for code, text in one[texts].items() if text}
    if not found:
        raise RecipeError(f"{shards[0].shown}: holds no {field} to test on")
    return tuple(found)


def split_of(key: str) -> str:
    """The split of a shard's name, or of an example's key.

    >>> split_of("testA-000003/0000012#1"), split_of("validation")
    ('testA', 'validation')
    """
    name, dash, number = key.partition("/")[0].rpartition("-")
    return name if dash and number.isdigit() else key.partition("/")[0]


def check_one_split(task: Task, recipe: Recipe) -> None:
    """Refuse several splits where all test shards are searched together.

    Raises:
        RecipeError: the test shards' names tell of more than one.
    """
    names = (s.name for s in open_shards(task.test, recipe.data))
    # shards that have numbers for names tell no split
    splits = list(dict.fromkeys(split_of(n) for n in names if not n.isdigit()))
    if len(splits) > 1:
        raise RecipeError(
            f"{task.kind}: {task.test} are of the splits {', '.join(splits)}, which would be "
            f"searched as one; give one, as test='{splits[0]}-*.tar' (shards of one split are "
            "called SPLIT-000000.tar, and on)"
        )


def trained(recipe: Recipe, name: str, kind: type[Trained]) -> Trained:
    """The objective that a task was fine-tuned with.

    Raises:
        RecipeError: the run has none of this name and kind.
    """
    objective = recipe.objectives.get(name)
    if not isinstance(objective, kind):
        raise RecipeError(
            f"{recipe.name}: has no objective {name} of kind {kind.kind}; fine-tune {name} first"
        )
    return objective


def pooling(recipe: Recipe, streams: tuple[str, ...], text: str) -> dict[str, Any]:
    """How a new head summarises these streams, as fields of it: as the recipe's matching head does.

    Where nothing is matched, as a head that ranks or classifies does (12-in-1); of several, as that
    which is shown these streams. Without any, the first unit of the text is read (the mean where
    the text is read from left to right, so that its first unit knows of no other); of two towers,
    whose texts know of no picture, both streams are.
    """
    heads = [o for o in recipe.objectives.values() if isinstance(o, Pooled)]
    if fit := [o for o in heads if set(o.pooled) <= set(streams)]:

        def rank(head: Pooled) -> tuple[bool, bool]:
            return not isinstance(head, Match), set(head.view.streams) != set(streams)

        return min(fit, key=rank).pooling
    causal = (b.causal for b in recipe.plan.blocks.values() if isinstance(b, Attend))
    return {
        "pooled": (text,) if recipe.plan.known(text) >= set(streams) else streams,
        "pool": "mean" if any(text in s for s in causal) else "first",
    }


def other_stream(recipe: Recipe, text: str) -> str:
    """The one stream beside the text.

    Raises:
        RecipeError: there is none, or there are several.
    """
    others = [s for s in recipe.modalities if s != text and s not in recipe.tied]
    if not others:
        raise RecipeError(
            f"{recipe.name}: the task needs a stream beside {text!r}, and the run has none"
        )
    if len(others) > 1:
        raise RecipeError(
            f"{recipe.name}: the task needs one stream beside {text!r}; "
            f"there are {', '.join(others)}: name it with image=STREAM"
        )
    return others[0]


def with_characters(recipe: Recipe, stream: str, *, stride: int = 0) -> Recipe:
    """The recipe with a text that tells its characters, in windows if it has a stride.

    Raises:
        RecipeError: the stream is no text.
    """
    text = recipe.modalities[stream]
    if not isinstance(text, Text):
        raise RecipeError(f"{recipe.name}: {stream!r} is of kind {text.kind!r}, not a text")
    told = replace(text, characters=True, stride=stride)
    return replace(recipe, modalities={**recipe.modalities, stream: told})
