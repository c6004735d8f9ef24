"""Recipes: everything a run is, as one frozen dataclass, and as one flat YAML file.

A recipe is written as a short Python function; the run directory keeps it as YAML, in which every
part that plugins can provide names its ``kind``. That file can itself be run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from crossloom.data_pipelines.reader import Reader
from crossloom.data_pipelines.readers import READERS
from crossloom.modalities.modality import Modality
from crossloom.models.plan import Plan
from crossloom.objectives.objective import Objective
from crossloom.plugins import Family, PluginError, find, name_of
from crossloom.training.ddp import Ddp
from crossloom.training.optim import Optim
from crossloom.training.schedule import Schedule
from crossloom.training.spread import Backend

_STRICT = ConfigDict(extra="forbid")
#: Stands in the name of shards for the code of a language (``Component.languages``).
LANGUAGE = "{language}"
#: Fields that are paths where they are strings, relative to a recipe's ``data``.
PATHS = ("vocabulary", "names", "classes", "dictionary")


class RecipeError(ValueError):
    """A recipe that cannot be run: the message names the key and what to do."""


def _adapter(cls: type) -> TypeAdapter[Any]:
    # a dataclass takes pydantic's settings from this attribute; nested ones inherit them
    if "__pydantic_config__" not in vars(cls):
        cls.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return TypeAdapter(cls)


def _pluggable(base: type, family: Family | None) -> tuple[Any, ...]:
    """Annotations with which pydantic reads and writes ``{kind: …}`` as an instance of a plugin."""
    label = family or base.__name__.lower()

    def known(kind: str) -> Any:
        if family is not None:
            return find(family, kind)
        if kind not in READERS:
            raise PluginError(f"no {label} is called {kind!r}; there are {', '.join(READERS)}")
        return READERS[kind]

    def parse(value: Any) -> Any:
        if isinstance(value, base):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ValueError(f"needs a mapping with `kind`, the name of a {label}")
        rest = {k: v for k, v in value.items() if k != "kind"}
        cls = known(str(value["kind"]))
        try:
            return _adapter(cls).validate_python(rest)
        except ValidationError as error:
            raise ValueError(explain(error, cls)) from None

    def write(value: Any) -> dict[str, Any]:
        kind = name_of(family, type(value)) if family else type(value).kind
        body = _adapter(type(value)).dump_python(value, mode="json")
        return {"kind": kind, **body}

    schema = {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]}
    return PlainValidator(parse), PlainSerializer(write), WithJsonSchema(schema)


_MODALITY = _pluggable(Modality, "modality")
_OBJECTIVE = _pluggable(Objective, "objective")
_ENGINE = _pluggable(Backend, "engine")
_READER = _pluggable(Reader, None)
AnyModality = Annotated[Modality, _MODALITY[0], _MODALITY[1], _MODALITY[2]]
AnyObjective = Annotated[Objective, _OBJECTIVE[0], _OBJECTIVE[1], _OBJECTIVE[2]]
AnyEngine = Annotated[Backend, _ENGINE[0], _ENGINE[1], _ENGINE[2]]
AnyReader = Annotated[Reader, _READER[0], _READER[1], _READER[2]]


@dataclass(frozen=True, kw_only=True)
class Component:
    """A data source with the objectives trained on it."""

    shards: str | tuple[str, ...]
    """Tars: paths (relative to the recipe's ``data``), addresses, or commands (``pipe:``,
    ``live:``); ``*`` and braces are expanded. See docs/shards.md."""
    reader: AnyReader
    objectives: tuple[str, ...]
    weight: float = 1.0
    """Share of micro-batches, relative to the other components."""
    languages: tuple[str, ...] = ()
    """Languages that become components of their own when a run starts, called ``NAME-LANGUAGE``.
    Each reads the shards in whose names ``{language}`` is its code (also in ``held``); without
    ``{language}``, what the reader finds of it in all shards. ``alpha`` divides the weight among
    them. With shards of its own, a pair of languages can be one of them (``en-de``)."""
    alpha: float = 1.0
    """Languages weigh as ``examples ** alpha``, counted as the reader counts them (sentences, or
    stretches of documents), 0..1: XLM and mBERT 0.7, XLM-R 0.3; 1 is as they come."""
    held: str | tuple[str, ...] = ""
    """Shards held back, never trained on: the component's losses on them are measured every
    ``held_every`` steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in 0..1, not {self.alpha}")
        if self.alpha != 1 and not self.languages:
            raise ValueError("alpha weighs languages: list them in `languages`")
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"languages: one is named twice: {', '.join(self.languages)}")
        each = LANGUAGE in "".join(self.shards)
        if each and not self.languages:
            raise ValueError(f"shards have {LANGUAGE} in them: list the `languages`")
        if self.languages and self.held and each != (LANGUAGE in "".join(self.held)):
            raise ValueError(f"shards and held must both have {LANGUAGE} in them, or neither")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Other weights of the mixture, from a step on."""

    step: int
    """Steps done when they begin to hold: the step's number in ``shards trace``; at least 1."""
    weights: Mapping[str, float]
    """By component; those left out rest."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Dynamic stop-and-go (12-in-1, Lu et al., 2020, section 3.3), by loss on held-out shards.

    A component whose loss (weighted sum over its objectives) has not fallen by ``threshold`` for
    ``patience`` measurements rests: it is drawn with a ``gap``-th of its weight, until its loss
    rises by ``back`` over its best.
    """

    patience: int = 2
    threshold: float = 0.001
    """Relative."""
    gap: float = 4.0
    back: float = 0.005
    """Relative."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.threshold < 0 or self.gap < 1 or self.back < 0:
            raise ValueError(
                "patience and gap must be at least 1, threshold and back at least 0: "
                f"{self.patience}, {self.gap}, {self.threshold}, {self.back}"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One whole run."""

    name: str
    modalities: Mapping[str, AnyModality]
    """By stream name."""
    plan: Plan
    objectives: Mapping[str, AnyObjective]
    mixture: Mapping[str, Component]
    steps: int
    examples: int
    """Examples of a micro-batch."""
    phases: tuple[Phase, ...] = ()
    """Changes of the components' weights, by ascending step: staged training. A run resumed with
    other weights or further components gets one at that step, so that what was is still known."""
    micro: int = 1
    """Micro-batches of a step, over all processes: the global batch is examples × micro."""
    alike: bool = False
    """All micro-batches of a step are of one component (UNITER, 12-in-1: one task is drawn
    for a step). Otherwise a step mixes components, and as each objective is averaged over its own
    slots, one drawn more rarely weighs as much in a step as another."""
    fused: int = 0
    """Micro-batches run in one forward pass on a process; 0 for all of its share, -1 for as many
    as fit into the device's memory, which is tried out before the first step."""
    seed: int = 0
    tied: Mapping[str, str] = field(default_factory=dict)
    """Streams embedded by another stream's module: ``{second: text}`` for a second text."""
    marked: tuple[str, ...] = ()
    """Tied streams told from the one they are tied to by a learned vector on each unit: the second
    of two pictures that are read together."""
    data: str = "."
    """Folder that shards and vocabularies are relative to."""
    start: str = ""
    """Run directory (or safetensors file) whose weights the run starts from. It may be of another
    plan: what plays the same part is taken; the new run's ``start.json`` lists what was."""
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    precision: Literal["fp32", "bf16"] = "fp32"
    engine: AnyEngine = field(default_factory=Ddp)
    """What spreads the model over processes: ``ddp`` (one process, or whole copies), ``fsdp``, or
    ``deepspeed`` with its ``stage``. Losses are the same, to rounding. See docs/launching.md."""
    recompute: int = 0
    """Every so-many-th layer keeps no activations, and computes them again in the backward pass: 1
    for all layers, 0 for none."""
    compile: bool = False
    """Compile each layer of the plan (``torch.compile``)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights; 0 for none."""
    readers: int = 64
    """Virtual readers of each source: part of the data order, whatever the number of processes.
    Fewer where a source has little data for each (``Source.order``)."""
    window: int = 4096
    """Examples that a reader shuffles together."""
    workers: int = -1
    """Loader processes for each training process; -1 to choose by the machine."""
    held_every: int = 0
    """Steps between measurements of the losses on the components' held-out shards; 0 for none."""
    held_steps: int = 8
    """Batches of a measurement for each component, of the size of a training step; an epoch of the
    held-out shards at the most."""
    select: str = ""
    """``component/objective``: the final weights are those that did best on its held-out shards, by
    the share right (where the head tells none, by the loss); empty for the last weights."""
    pace: Pace | None = None
    """Let components rest that learn no more. What is decided is recorded in ``phases``."""
    log_every: int = 50
    save_every: int = 1000
    keep: int = 2
    """Newest checkpoints kept; 0 for all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for good; 0 for none."""
    bad_in_a_row: int = 100
    """Bad samples in a row that end the run."""
    bad_share: float = 0.01
    """Share of bad samples, after the first thousand examples, that ends the run."""
    spike: float = 0.0
    """A step whose gradient's norm is more than so many times its running mean is skipped, as one
    whose norm is not finite always is; 0 to skip the latter alone."""
    skips: int = 20
    """Skipped steps of a run, past which it ends."""
    stall_after: float = 60.0
    """Seconds without the end of a step after which every process says where it stands, and the run
    ends; ten times as long for a first step, a checkpoint or losses held back; 0 to wait for ever.
    """

    def __post_init__(self) -> None:
        if min(self.steps, self.examples, self.micro) < 1:
            raise ValueError("steps, examples and micro must be at least 1")
        if self.fused < -1:
            raise ValueError("fused: micro-batches in a pass; 0 for all, -1 for those that fit")
        for name, component in self.mixture.items():
            for objective in component.objectives:
                if objective not in self.objectives:
                    raise ValueError(
                        f"mixture.{name}.objectives: {unknown(objective, self.objectives)}"
                    )
            _check_joined(name, component, self.objectives, self.modalities)
        for stream in (*self.tied, *self.tied.values()):
            if stream not in self.modalities:
                raise ValueError(f"tied: {unknown(stream, self.modalities)}")
        for number, phase in enumerate(self.phases):
            for name in phase.weights:
                if name not in self.mixture:
                    raise ValueError(f"phases.{number}.weights: {unknown(name, self.mixture)}")
        if self.held_every and not any(c.held for c in self.mixture.values()):
            raise ValueError("held_every: no component of the mixture has `held` shards")
        if self.pace and not self.held_every:
            raise ValueError("pace: follows held-out losses; set held_every, and components' held")
        measured, _, by = self.select.partition("/")
        part = self.mixture.get(measured)
        if self.select and not (part and part.held and by in part.objectives and self.held_every):
            raise ValueError(
                f"select: {self.select!r}: name a component with `held` shards and one of its "
                "objectives, as component/objective, and set held_every"
            )
        if self.select and self.ema:
            raise ValueError("select: the weights themselves are measured; set ema to 0")
        drawn = {o for c in self.mixture.values() for o in c.objectives}
        for name, component in self.mixture.items():
            for objective in component.objectives:
                lacking = set(self.objectives[objective].beside) - set(component.objectives)
                if lacking:
                    raise ValueError(
                        f"mixture.{name}.objectives: {objective!r} needs {sorted(lacking)[0]!r} "
                        "beside it, on the same batches"
                    )
                users = [o for o, x in self.objectives.items() if objective in x.beside]
                if without := set(users) - set(component.objectives):
                    raise ValueError(
                        f"mixture.{name}.objectives: {sorted(without)[0]!r} takes its pairs from "
                        f"{objective!r}, wherever that is drawn: name both, or give {name} an "
                        f"objective of its own that shares {objective!r}"
                    )
        if idle := [o for o in self.objectives if o not in drawn]:
            raise ValueError(f"objectives.{idle[0]}: no component of the mixture trains it")
        if self.fused and not all(o.separable for o in self.objectives.values()):
            raise ValueError(
                "fused: contrastive objectives compare the whole batch; leave fused at 0"
            )

    def located(self) -> Recipe:
        """The recipe with every relative path of vocabularies and word lists under ``data``."""

        def under(parts: Mapping[str, Any]) -> dict[str, Any]:
            return {name: _under(part, Path(self.data)) for name, part in parts.items()}

        return replace(
            self,
            modalities=under(self.modalities),
            objectives=under(self.objectives),
            mixture=under(self.mixture),
        )


def _under(part: Any, folder: Path) -> Any:
    """A dataclass with the relative paths in it, and in those it holds, below a folder.

    Those that begin with the folder are below it already: a run's own recipe has such.
    """
    changes: dict[str, Any] = {}
    for name in (f.name for f in fields(part)):
        value = getattr(part, name)
        if is_dataclass(value):
            found = _under(value, folder)
        elif name in PATHS and isinstance(value, str) and value and not _below(value, folder):
            found = str(folder / value)
        else:
            continue
        if found is not value:
            changes[name] = found
    return replace(part, **changes) if changes else part


def _below(path: str, folder: Path) -> bool:
    return Path(path).is_absolute() or Path(path).is_relative_to(folder)


def _check_joined(
    name: str,
    component: Component,
    objectives: Mapping[str, Objective],
    modalities: Mapping[str, Modality],
) -> None:
    """Joined streams are of one text, and how many examples they make is not known ahead."""
    members = {"text", *getattr(component.reader, "copies", ())}
    for objective in component.objectives if component.reader.joined else ():
        view, slots = objectives[objective].view, objectives[objective].slots(1)
        read = {modalities[s].field for s in view.streams if s in modalities}
        if not read <= members or slots is not None or view.mismatch:
            kind = component.reader.kind
            raise ValueError(
                f"mixture.{name}.objectives: {objective!r} compares examples or streams, and "
                f"reader {kind!r} joins examples of one text stream; train it with another reader"
            )


Recipe.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every field written out."""
    return dict(TypeAdapter(Recipe).dump_python(recipe, mode="json"))


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML; :func:`from_yaml` gives it back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def from_dict(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Raises:
        RecipeError: an unknown or missing key, or a value that does not fit; names the nearest key.
    """
    try:
        return TypeAdapter(Recipe).validate_python(dict(values))
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, Recipe)}") from None


def from_yaml(path: Path) -> Recipe:
    """A recipe from a file.

    Raises:
        RecipeError: the file is missing or does not hold a recipe.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = str(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            told = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise RecipeError(f"{path}: not YAML ({told})") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: not a recipe; `crossloom recipes show NAME` prints one")
    return from_dict(values, str(path))


def override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with dotted assignments applied: ``optim.rate=1e-4``.

    Raises:
        RecipeError: an assignment without ``=``, an unknown key, or a value that does not fit.
    """
    if not assignments:
        return recipe
    values = to_dict(recipe)
    opened: list[Any] = []  #: mappings that take keys they do not have yet
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"{assignment!r} is no assignment; write key=value")
        node: Any = values
        *parents, last = path.split(".")
        for depth, part in enumerate([*parents, last]):
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                part = int(part)  # type: ignore[assignment]
            elif not isinstance(node, dict) or part not in node:
                at = ".".join(path.split(".")[:depth])
                known = node if isinstance(node, dict) else {}
                prefix = f"{at}: " if at else ""
                if at == "optim.factors" or any(node is x for x in opened):
                    break
                raise RecipeError(f"{path}: {prefix}{unknown(part, known)}")
            if depth < len(parents):
                node = node[part]
        value = value_of(text)
        if isinstance(node, dict) and isinstance(node.get(last), dict) and isinstance(value, str):
            # another kind of plugin by its name alone: engine=fsdp
            node, last = node[last], "kind"
        if isinstance(node, dict) and last == "kind" and node.get("kind") != value:
            # it has other settings, which begin with their defaults
            node.clear()
            opened.append(node)
        node[int(last) if isinstance(node, list) else last] = value
    return from_dict(values, "after overrides")


def value_of(text: str) -> Any:
    """What YAML says a text is, or the text: ``*.tar`` and ``{dev,test}-*.tar`` are shards."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def explain(error: ValidationError, cls: type) -> str:
    """Pydantic's findings in one line: key, what is wrong, and the nearest known key."""
    lines = []
    for item in error.errors():
        place = [str(x) for x in item["loc"]]
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            lines.append(f"{'.'.join(place)}: {unknown(place[-1], _known(cls, place[:-1]))}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{'.'.join(place)}: {message}" if place else message)
    return "; ".join(dict.fromkeys(lines))


def _known(cls: Any, path: Sequence[str]) -> list[str]:
    """Field names of the dataclass that a path below ``cls`` leads to."""
    for part in path:
        inner = {f.name: f.type for f in fields(cls)}.get(part) if is_dataclass(cls) else None
        cls = {"Optim": Optim, "Schedule": Schedule, "Plan": Plan}.get(str(inner))
    return [f.name for f in fields(cls)] if cls and is_dataclass(cls) else []


def unknown(name: str, known: Any) -> str:
    """In words, that a name is not among those known, and the nearest of them."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if near:
        return f"there is no {name!r}; did you mean {near[0]!r}?"
    return f"there is no {name!r}" + (f"; there are {', '.join(names)}" if names else "")


def json_schema() -> dict[str, Any]:
    """JSON schema of recipes, for editors."""
    return TypeAdapter(Recipe).json_schema()


def load_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe by name (built-in or a plugin's), or from a YAML file, with overrides applied.

    Raises:
        RecipeError: nothing is called so, or an override does not fit.
    """
    if name.endswith((".yaml", ".yml")):
        recipe = from_yaml(Path(name))
    else:
        try:
            recipe = find("recipe", name)()
        except PluginError as error:
            raise RecipeError(str(error)) from None
    return override(recipe, assignments)
