"""From a recipe to the things a run needs: sources, stack, model; and back from a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from crossloom.data_pipelines import live
from crossloom.data_pipelines.check import Use
from crossloom.data_pipelines.collate import Collator
from crossloom.data_pipelines.loader import Part, Stack
from crossloom.data_pipelines.mixture import Mixture
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.modalities.vocabularies import in_one
from crossloom.models.model import CrossloomModel
from crossloom.training import checkpoint
from crossloom.training.environment import seed_torch
from crossloom.training.recipe import Component, Phase, Recipe, RecipeError, from_yaml, to_yaml
from crossloom.training.sampling import expand, naming

RECIPE = "recipe.yaml"
WEIGHTS = "model.safetensors"
#: By which measurement the weights were selected (``Recipe.select``).
SELECTED = "selected.json"


def make_stack(recipe: Recipe) -> Stack:
    """Open all shards of a recipe.

    Raises:
        RecipeError: a component's languages cannot be told apart or counted.
        ShardError: shards are missing, unreadable or empty.
    """
    recipe = expand(recipe)
    parts = {}
    for name, component in recipe.mixture.items():
        with naming(name):
            parts[name] = make_part(name, component, recipe, component.shards)
    mixture = Mixture(
        {n: c.weight for n, c in recipe.mixture.items()},
        seed=recipe.seed,
        changes=[(p.step * recipe.micro, p.weights) for p in recipe.phases],
        alike=recipe.micro if recipe.alike else 1,
    )
    spoken = sorted(set[str]().union(*(p.source.languages() for p in parts.values())))
    told = tuple(spoken) if len(spoken) > 1 else ()
    collator = Collator(recipe.modalities, recipe.objectives, recipe.seed, told)
    return Stack(parts, mixture, collator, recipe.examples)


def make_part(
    name: str, component: Component, recipe: Recipe, shards: str | tuple[str, ...]
) -> Part:
    """A component over some shards: those trained on, or those held back.

    Raises:
        ShardError: shards are missing, unreadable or empty.
    """
    source = _source(name, replace(component, shards=shards), recipe.data)
    order = source.order(recipe.seed, recipe.readers, recipe.window, recipe.examples)
    return Part(source=source, order=order, objectives=component.objectives)


def uses(recipe: Recipe) -> list[Use]:
    """What a recipe does with its shards, for :func:`crossloom.data_pipelines.check.check`.

    Raises:
        RecipeError: a component's languages cannot be told apart or counted.
        ShardError: shards are missing, unreadable or live.
    """
    out = []
    for component in expand(recipe).mixture.values():
        streams = {s for o in component.objectives for s in recipe.objectives[o].view.decoded}
        modalities = {s: m for s, m in recipe.modalities.items() if s in streams}
        out.append(Use(open_shards(component.shards, recipe.data), modalities, component.reader))
    return out


def _source(name: str, component: Component, root: str) -> Source:
    if live.is_live(component.shards):
        patterns = component.shards
        commands = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        return live.LiveSource(name, commands, component.reader)
    return Source(name, open_shards(component.shards, root), component.reader)


def continued(recipe: Recipe, before: Recipe, step: int) -> Recipe:
    """The recipe with which a run goes on at a step, given the one that it had before.

    Components may have been added or weigh anew: they do from this step on, as a phase, and the
    steps before keep their weights. What the data order counts in must be as it was.

    Raises:
        RecipeError: the seed, the size of batches or a component's data changed.
    """
    advice = "start a new run from the weights with start=RUN"
    for name in ("seed", "examples", "micro", "alike", "readers", "window"):
        was, now = getattr(before, name), getattr(recipe, name)
        if was != now:
            raise RecipeError(f"{name}: {was} when the run began, now {now}; {advice}")
    for name, part in before.mixture.items():
        if name not in recipe.mixture:
            raise RecipeError(f"mixture.{name}: was there before; give it weight 0, or {advice}")
        if replace(recipe.mixture[name], weight=part.weight) != part:
            raise RecipeError(f"mixture.{name}: differs from what the run began with; {advice}")
    past = tuple(p for p in before.phases if p.step < step)
    if recipe.phases and recipe.phases != before.phases:
        # the recipe says itself what comes when; it must agree on what has been
        if tuple(p for p in recipe.phases if p.step < step) != past:
            raise RecipeError(f"phases: those before step {step} have been trained with; keep them")
        return recipe
    first = {n: c.weight for n, c in before.mixture.items()}
    latest = dict(past[-1].weights) if past else first
    wanted = {n: c.weight for n, c in recipe.mixture.items()}
    mixture = {n: replace(c, weight=first.get(n, 0.0)) for n, c in recipe.mixture.items()}
    unchanged = any(wanted == {n: some.get(n, 0.0) for n in wanted} for some in (first, latest))
    change = () if unchanged or step == 0 else (Phase(step=step, weights=wanted),)
    planned = tuple(p for p in before.phases if p.step > step or (not change and p.step == step))
    return replace(recipe, mixture=mixture, phases=(*past, *change, *planned))


def make_model(recipe: Recipe) -> CrossloomModel:
    """The recipe's model with its initial weights, the same in every process.

    Raises:
        RecipeError: parts of the recipe do not fit each other.
    """
    most = recipe.examples * recipe.micro
    for name, objective in recipe.objectives.items():
        if objective.room is not None and most > objective.room:
            raise RecipeError(
                f"objectives.{name}.queue: {objective.room} features, and a step may bring {most} "
                "(examples × micro); make it longer"
            )
    seed_torch(recipe.seed, "weights")
    try:
        return CrossloomModel(
            recipe.modalities, recipe.plan, recipe.objectives, recipe.tied, recipe.marked
        )
    except ValueError as error:
        raise RecipeError(str(error)) from None


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], Path]:
    """Weights of a run directory (its final ones, else its newest checkpoint's) or of a file.

    Raises:
        RecipeError: there are none.
    """
    from safetensors.torch import load_file

    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file() and path.is_dir():
        newest, _ = checkpoint.newest(path / "checkpoints")
        if newest:
            return checkpoint.Checkpoint(newest).weights, newest
    if not file.is_file():
        raise RecipeError(f"{path}: no weights there; give a run directory or a .safetensors file")
    return load_file(file), file


def start_from(model: CrossloomModel, weights: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits by name and shape; return names that stay fresh, and names not used."""
    own = model.state_dict()
    fits = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)
    if not any(k.startswith("slow.") for k in fits):
        model.catch_up()
    return sorted(set(own) - set(fits)), sorted(set(weights) - set(fits))


def open_run(folder: str | Path) -> Recipe:
    """The recipe of a run directory, its vocabularies found beside it.

    Raises:
        RecipeError: it is no run directory, or a vocabulary differs from the one trained with.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{folder}: not a run directory (it has no {RECIPE})")
    recipe = from_yaml(folder / RECIPE)
    modalities = {}
    for stream, modality in recipe.modalities.items():
        copy = folder / f"{recipe.tied.get(stream, stream)}.model"
        if getattr(modality, "vocabulary", None) and copy.is_file():
            modality = replace(modality, vocabulary=str(copy.resolve()))  # type: ignore[call-arg]
        modalities[stream] = modality
    return replace(recipe, modalities=modalities)


def identities(recipe: Recipe) -> dict[str, str]:
    """What must not change between a run and its reuse, by stream: vocabulary hashes."""
    return {s: i for s, m in recipe.modalities.items() if (i := m.identity())}


def check_identities(recipe: Recipe, known: Mapping[str, str], where: str) -> None:
    """Compare vocabularies with those that weights were trained with.

    Raises:
        RecipeError: one differs.
    """
    for stream, identity in identities(recipe).items():
        if known.get(stream, identity) != identity:
            path = getattr(recipe.modalities[stream], "vocabulary", "?")
            raise RecipeError(
                f"modalities.{stream}.vocabulary: {path} is not the one that {where} was trained "
                f"with ({identity} against {known[stream]}); use {where}/{stream}.model"
            )


def prepare_folder(folder: Path, recipe: Recipe) -> None:
    """Create a run directory with its recipe and copies of its vocabularies.

    A vocabulary that is not there is passed over: a model of known size can do without.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stream, modality in recipe.modalities.items():
        path = getattr(modality, "vocabulary", None) if stream not in recipe.tied else None
        if (
            path
            and Path(path).is_file()
            and Path(path).resolve() != (folder / f"{stream}.model").resolve()
        ):
            layout = getattr(modality, "layout", "own")
            checkpoint.write_atomically(folder / f"{stream}.model", in_one(Path(path), layout))
    checkpoint.write_atomically(folder / RECIPE, to_yaml(recipe))
