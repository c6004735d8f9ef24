"""Starting a run from another's weights, of the same recipe or of a quite different one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crossloom.models.model import CrossloomModel
from crossloom.models.plan import Plan
from crossloom.models.start import counterparts, transplant
from crossloom.training.checkpoint import write_atomically
from crossloom.training.heads import Weights, carry, other_classes
from crossloom.training.recipe import Recipe
from crossloom.training.run import RECIPE, load_weights, open_run

_SLOW_HEAD = re.compile(r"heads\.[^.]+\.slow\.")
_QUEUE = re.compile(r"heads\.[^.]+\.queue\.")


@dataclass(frozen=True)
class Started:
    """What became of the weights that a run was to start from."""

    source: str
    taken: tuple[str, ...]  #: the model's weights that are the source's now
    fresh: tuple[str, ...]  #: the model's weights that keep their initial values
    unused: tuple[str, ...]  #: the source's weights that no name of the model's was found for
    misfits: tuple[str, ...] = ()  #: of the fresh, what the source has in another shape; with both

    def save(self, path: Path) -> None:
        """As JSON, for people."""
        write_atomically(path, json.dumps(vars(self), indent=1) + "\n")

    def __str__(self) -> str:
        said = f"{len(self.taken)} weights from {self.source}; {len(self.fresh)} start afresh"
        if not self.misfits:
            return said
        return f"{said}, of them {len(self.misfits)} for their shape, as {self.misfits[0]}"


def start(model: CrossloomModel, recipe: Recipe) -> Started:
    """Give a model the weights of ``recipe.start``, as far as they fit.

    By name and shape first. When the source is a run whose layers are others than the recipe's,
    the same name means another thing: layers, and embedders of streams with another name, are then
    taken by the part they play (:mod:`crossloom.models.start`). Rows of a token table are taken
    from the same vocabulary only, those of classes by the classes' names. A head that the source
    does not have takes poolers and classes of heads that are made alike: so classifiers go on with
    the pooler of matching, and with the answers learned (:mod:`crossloom.training.heads`).

    Raises:
        RecipeError: there are no weights.
    """
    weights, _ = load_weights(recipe.start)
    own = model.state_dict()
    pairs = [(k, k) for k in own]
    before = open_run(recipe.start) if (Path(recipe.start) / RECIPE).is_file() else None
    barred = _other_words(recipe, before)
    strange = barred | other_classes(recipe, before)
    rows: set[str] = set()
    taken = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape and name not in strange
    }
    if before is not None:
        if not same_layers(before.plan, recipe.plan):
            taken = {k: v for k, v in taken.items() if not k.startswith("fusion.")}
            pairs = [(k, k) for k in own if not k.startswith("fusion.")]
        alike = _alike(recipe, before)
        pairs += counterparts(own, before.plan, recipe.plan, alike)
        moved = transplant(weights, own, before.plan, recipe.plan, alike)
        taken = {k: v for k, v in moved.items() if k not in barred} | taken
        found, rows = carry(recipe, before, Weights(own, weights, taken))
        taken |= found
    slow = {k for k in own if k.startswith("slow.") or _SLOW_HEAD.match(k)}
    other = before is not None and not same_layers(before.plan, recipe.plan)
    if late := bool(barred) or other or not slow <= taken.keys():
        # slow copies of other layers or words, and what they have queued, mean nothing here
        taken = {k: v for k, v in taken.items() if k not in slow and not _QUEUE.match(k)}
    model.load_state_dict(taken, strict=False)
    if late:
        model.catch_up()
    known = taken.keys() | strange
    misfits = {
        mine: f"{mine} ({list(own[mine].shape)} here, {list(weights[name].shape)} there)"
        for mine, name in pairs
        if name in weights and mine not in known and weights[name].shape != own[mine].shape
    }
    used = {id(v) for v in taken.values()}
    given = taken.keys() | rows
    return Started(
        source=recipe.start,
        taken=tuple(sorted(taken)),
        fresh=tuple(sorted(set(own) - set(taken))),
        unused=tuple(sorted(k for k, v in weights.items() if id(v) not in used and k not in given)),
        misfits=tuple(misfits.values()),
    )


def same_layers(source: Plan, target: Plan) -> bool:
    """Whether a name of a layer's weight means the same in both plans."""
    return source.norm == target.norm and (
        source.layers == target.layers or source.restricted(target.streams).layers == target.layers
    )


def _alike(recipe: Recipe, before: Recipe) -> Mapping[str, str]:
    """By stream, the source's that it takes after: of the same name, or else the same kind."""
    found = {}
    for stream, modality in recipe.modalities.items():
        kinds = {s: m.kind for s, m in before.modalities.items()}
        if kinds.get(stream) == modality.kind:
            found[stream] = stream
        elif same := [s for s, kind in kinds.items() if kind == modality.kind]:
            found[stream] = same[0]
    return found


def _other_words(recipe: Recipe, before: Recipe | None) -> set[str]:
    """Names of token tables, and of what scores tokens, whose rows mean other words."""
    if before is None:
        return set()
    barred = set()
    for stream, source in _alike(recipe, before).items():
        mine, theirs = _identity(recipe, stream), _identity(before, source)
        if mine and theirs and mine != theirs:
            barred.add(f"embed.{stream}.token.weight")
            heads = [o for o, x in recipe.objectives.items() if x.scored == stream]
            barred |= {f"heads.{o}.{part}" for o in heads for part in ("bias", "decoder")}
    return barred


def _identity(recipe: Recipe, stream: str) -> str:
    try:
        return recipe.modalities[stream].identity()
    except ValueError:  # its file is not here
        return ""
