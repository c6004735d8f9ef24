"""What a recipe is, told without its data: streams, passes, objectives, parameters, a page of all.

Parameters are counted on the meta device: nothing is allocated, and nothing read but a vocabulary
whose size the recipe does not state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from crossloom.modalities.modality import Modality
from crossloom.modalities.names import Names
from crossloom.models import show
from crossloom.models.draw import draw
from crossloom.models.fusion import Fusion
from crossloom.models.model import CrossloomModel
from crossloom.objectives.objective import Objective
from crossloom.objectives.view import View
from crossloom.plugins import Plugin
from crossloom.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of a recipe's model by part, such as ``embed.text``, ``layers``, ``heads.mlm``."""

    parts: Mapping[str, int]
    """Those that do not depend on a vocabulary of unknown size."""
    each: Mapping[str, int] = field(default_factory=dict)
    """Those that each id of such a vocabulary adds."""
    complete: bool = True
    """False when only the layers can be counted."""

    def said(self, part: str = "") -> str:
        """One part exactly, or all together in millions."""
        parts = [part] if part else list(self.parts)
        count = sum(self.parts[p] for p in parts)
        each = sum(self.each.get(p, 0) for p in parts)
        text = f"{count:,}" if part else f"{count / 1e6:,.1f} M"
        if not self.complete and not part:
            return f"{text} in layers; the rest needs its vocabulary"
        return text + (f" + {each:,} × vocabulary" if each else "")


def parameters(recipe: Recipe) -> Parameters:
    """Count the parameters of a recipe's model.

    A tied table or weight counts once, where it is kept. Where a vocabulary is missing whose size
    the recipe does not state, what each of its ids adds is found from two sizes.

    Raises:
        ValueError: parts of the recipe do not fit each other.
    """
    try:
        return Parameters(parts=_count(recipe))
    except ValueError as error:
        lacking = error
    few, many = _sized(recipe, 1000), _sized(recipe, 2000)
    if few == recipe:
        if "vocabulary" not in str(lacking):
            raise lacking
        return Parameters(parts={"layers": _layers(recipe)}, complete=False)
    first, second = _count(few), _count(many)
    each = {part: (second[part] - count) // 1000 for part, count in first.items()}
    return Parameters(parts={p: n - 1000 * each[p] for p, n in first.items()}, each=each)


def _count(recipe: Recipe) -> dict[str, int]:
    with torch.device("meta"):
        model = CrossloomModel(
            recipe.modalities, recipe.plan, recipe.objectives, recipe.tied, recipe.marked
        )
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        kind, _, rest = name.partition(".")
        part = "layers" if kind == "fusion" else f"{kind}.{rest.partition('.')[0]}"
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


def _layers(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Fusion(recipe.plan).parameters())


def _sized(recipe: Recipe, ids: int) -> Recipe:
    """The recipe with a number of ids for each vocabulary whose size it does not state."""

    def fill(modality: Modality) -> Modality:
        names = getattr(modality, "names", None)
        if isinstance(names, Names) and names.size == 0:
            modality = replace(modality, names=replace(names, size=ids))  # type: ignore[call-arg]
        unknown = hasattr(modality, "vocabulary") and getattr(modality, "size", None) == 0
        return replace(modality, size=ids) if unknown else modality  # type: ignore[call-arg]

    return replace(recipe, modalities={s: fill(m) for s, m in recipe.modalities.items()})


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a micro-batch of a component costs."""

    component: str
    share: float  #: of the micro-batches, before any phase
    views: tuple[str, ...]  #: drawn; every other view of the recipe runs on one blank unit
    units: int  #: at most, over the drawn views


def passes(recipe: Recipe) -> list[Pass]:
    """Passes and units of a micro-batch, by component."""
    total = sum(c.weight for c in recipe.mixture.values()) or 1.0
    out = []
    for name, component in recipe.mixture.items():
        views = {v.name: v for o in component.objectives for v in [recipe.objectives[o].view]}
        longest = sum(recipe.modalities[s].longest() for v in views.values() for s in v.streams)
        out.append(
            Pass(
                component=name,
                share=component.weight / total,
                views=tuple(views),
                units=recipe.examples * longest,
            )
        )
    return out


def words(recipe: Recipe) -> str:
    """The plan and its reading patterns in a few words."""
    views = [o.view for o in recipe.objectives.values()]
    said = [show.words(recipe.plan)]
    if any(v.causal and set(v.streams) - set(v.causal) for v in views):
        said.append("prefix")
    elif any(v.causal for v in views):
        said.append("left to right")
    if any(v.apart for v in views) and "towers" not in said[0]:
        said.append("streams apart")
    if any(v.across for v in views):
        said.append("hidden units across")
    return "; ".join(said)


def streams(recipe: Recipe) -> str:
    """Streams with their modalities."""
    parts = []
    for stream, modality in recipe.modalities.items():
        kind = f"as {recipe.tied[stream]}" if stream in recipe.tied else modality.kind
        parts.append(stream if stream == kind else f"{stream} ({kind})")
    return ", ".join(parts)


def shown(view: View) -> str:
    """What a view shows and hides, and who may read whom."""
    parts = []
    for stream in view.streams:
        marks = []
        if hide := view.hide.get(stream):
            marks.append(
                f"{hide.rate:.0%} hidden" + (f" by {hide.by}" if hide.by != "unit" else "")
            )
        if others := view.mismatched.count(stream):
            marks.append(f"{others * view.mismatch_rate / len(view.mismatched):.0%} another's")
        if stream in view.mixed:
            marks.append("with another's")
        if stream in view.follow:
            marks.append(f"what is hidden of {view.follow[stream]}")
        if stream in view.twice:
            marks.append(f"then {', '.join(row[stream] for row in view.places)}")
        if rivals := view.against.count(stream):
            marks.append(f"against {rivals} of others")
        if stream in view.causal:
            marks.append("left to right")
        if stream in view.reads:
            marks.append(f"reads {', '.join(view.reads[stream]) or 'nothing'}")
        parts.append(stream + (f" ({', '.join(marks)})" if marks else ""))
    read = "apart: " if view.apart else "hidden units across: " if view.across else ""
    return read + ", ".join(parts)


def settings(objective: Objective) -> str:
    """What an objective sets, its defaults left out."""
    said = []
    for one in fields(objective):
        value: Any = getattr(objective, one.name)
        if one.name in ("view", "weight") or value == one.default:
            continue
        if one.default_factory is not MISSING and value == one.default_factory():
            continue
        if isinstance(value, (str, int, float)):
            said.append(f"{one.name}={value}")
        elif isinstance(value, tuple) and len(value) <= 3:
            said.append(f"{one.name}={'+'.join(map(str, value))}")
    return " ".join(said)


Table = tuple[str, tuple[str, ...], list[Sequence[str]]]  #: title, headings, rows


def tables(recipe: Recipe) -> list[Table]:
    """A recipe as tables: plan, objectives, passes, parameters.

    Raises:
        ValueError: parts of the recipe do not fit each other.
    """
    counted = parameters(recipe)
    plan = show.columns(show.table(recipe.plan))
    objectives: list[Sequence[str]] = [
        (
            name,
            objective.kind,
            settings(objective),
            f"{objective.view.name}: {shown(objective.view)}",
            f"{objective.weight:g}",
        )
        for name, objective in recipe.objectives.items()
    ]
    micro: list[Sequence[str]] = [
        (one.component, f"{one.share:.0%}", ", ".join(one.views), f"{one.units:,}")
        for one in passes(recipe)
    ]
    views = {o.view.name for o in recipe.objectives.values()}
    batch = f"{recipe.micro} micro-batches of {recipe.examples} examples"
    if recipe.micro == 1:
        batch = f"one micro-batch of {recipe.examples} examples"
    sizes: list[Sequence[str]] = [(part, counted.said(part)) for part in counted.parts]
    sizes.append(("all", counted.said()))
    step = f"a step: {batch}; a pass for each of {len(views)} views, those not drawn on blank units"
    return [
        (f"plan: {words(recipe)}", show.HEADINGS, plan),
        ("objectives", ("objective", "kind", "settings", "view", "weight"), objectives),
        (step, ("component", "share", "views drawn", "units at most"), micro),
        ("parameters", ("part", "parameters"), sizes),
    ]


# --- all recipes --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class State:
    """What was shown for a recipe, and how many parameters its original has."""

    shown: str
    tests: tuple[str, ...] = ()
    """Files below ``tests`` that show it."""
    published: int = 0
    """Parameters of the original; 0 where no count is known."""
    to: int = 1
    """What ``published`` is rounded to."""
    source: str = ""
    """Who counts: the paper, a library, or the modules of released code."""
    differences: Mapping[str, int] = field(default_factory=dict)
    """What ours has more, or less where negative; together with ``published`` it makes our
    number."""

    def count(self) -> str:
        """The published number, and what ours has beside it."""
        if not self.published:
            return ""
        exact = f"{self.published:,}" if self.to == 1 else f"{_millions(self.published)} M"
        said = f"{exact} ({self.source})"
        for what, number in self.differences.items():
            size = f"{abs(number):,}" if abs(number) < 1e5 else f"{_millions(abs(number))} M"
            said += f" {'+' if number > 0 else '−'} {what} ({size})"
        return said


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}".removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One recipe in the list of all."""

    name: str
    says: str  #: first line of the function's docstring: what it is, and its paper
    plan: str
    size: str  #: of the plan: layers and widths
    streams: str
    objectives: str
    parameters: str
    drawing: str  #: SVG
    drawn: str  #: what the drawing shows: plan, streams and size
    state: State | None = None


def entry(plugin: Plugin, state: State | None = None) -> Entry:
    """A recipe as the list shows it, whatever files this machine has.

    Raises:
        PluginError: the recipe cannot be imported.
        ValueError: parts of the recipe do not fit each other.
    """
    make = plugin.load()
    recipe: Recipe = make()
    recipe = replace(recipe, modalities={s: _bare(m) for s, m in recipe.modalities.items()})
    return Entry(
        name=plugin.name,
        says=(make.__doc__ or "").strip().split("\n")[0],
        plan=words(recipe),
        size=show.size_of(recipe.plan),
        streams=streams(recipe),
        objectives=", ".join(recipe.objectives),
        parameters=parameters(recipe).said(),
        drawing=draw(recipe.plan),
        drawn=show.title(recipe.plan),
        state=state,
    )


def _bare(modality: Modality) -> Modality:
    """Without the vocabulary that may or may not lie here: the list is the same everywhere."""
    return replace(modality, vocabulary="") if hasattr(modality, "vocabulary") else modality  # type: ignore[call-arg]


def page(entries: Iterable[Entry], folder: Path) -> None:
    """Write ``recipes.md`` and ``images/plans/*.svg`` into a folder of documentation.

    Equal plans share a drawing, which is named after what it shows.
    """
    drawings = folder / "images" / "plans"
    drawings.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[Entry]] = {}
    files: dict[str, str] = {}
    rows = []
    for one in entries:
        drawn.setdefault(one.drawing, []).append(one)
        if one.drawing not in files:
            files[one.drawing] = _file(one.drawn, files.values())
        state = one.state
        cells = (
            f"`{one.name}`",
            one.says,
            f"[{one.plan}; {one.size}](images/plans/{files[one.drawing]})",
            one.streams,
            one.objectives,
            one.parameters,
            state.count() if state else "",
            _shown(state) if state else "",
        )
        rows.append("| " + " | ".join(c.replace("|", r"\|") for c in cells) + " |")
    for old in drawings.glob("*.svg"):
        old.unlink()
    pictures = []
    for drawing, those in drawn.items():
        title, file = those[0].drawn, files[drawing]
        (drawings / file).write_text(drawing, "utf-8")
        names = ", ".join(f"`{one.name}`" for one in those)
        head = title[0].upper() + title[1:]
        pictures.append(f"### {head}\n\n{names}\n\n![{head}](images/plans/{file})\n")
    text = _PAGE.format(rows="\n".join(rows), pictures="\n".join(pictures))
    (folder / "recipes.md").write_text(text, "utf-8")


def _file(title: str, taken: Iterable[str]) -> str:
    """A file's name from what it shows; numbered where two different drawings are told alike."""
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    names = [f"{stem}.svg", *(f"{stem}-{n}.svg" for n in range(2, 100))]
    return next(n for n in names if n not in set(taken))


def _shown(state: State) -> str:
    links = (f"[{Path(test).stem}](../tests/{test})" for test in state.tests)
    return f"{state.shown}: {', '.join(links)}"


_PAGE = """# Recipes

`crossloom recipes show NAME` prints a recipe as YAML that can be edited and run, with its plan,
objectives, passes and parameters; `--svg FILE` draws the plan. Parameters are those of the whole
model in training, heads included; where a vocabulary is trained first, what each of its ids adds is
told apart. `published` is the original's own number with what ours has more or less, and who
counted; a paper's rounded number often leaves out tables and heads. `state` is what tests show of
the recipe, and where. Written by `crossloom recipes list --page docs`.

| recipe | what it is | plan | streams | objectives | parameters | published | state |
|---|---|---|---|---|---|---|---|
{rows}

## Drawings

Streams are columns and layers go upward. A box over several columns is one softmax, or one network,
over all of them; an arrow leads from a stream to the box that reads it; equal layers are drawn
once. A broken frame works with the weights of other layers. What a view adds (streams apart, read
left to right, or a prefix) is told by `recipes show`.

{pictures}"""
