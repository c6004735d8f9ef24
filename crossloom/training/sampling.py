"""How often what is met: languages by alpha, and the shares of all components that result.

Which component a micro-batch is of must follow from its number alone. So a component of several
languages becomes one for each when a run starts, whose weights follow from the numbers of examples
that the shards' summaries tell. The run's ``recipe.yaml`` has these components: a resumed run knows
its weights, and where data or alpha changed since, goes on with others as it does after any change
of weights (:func:`crossloom.training.run.continued`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from crossloom.data_pipelines import live
from crossloom.data_pipelines.errors import ShardError
from crossloom.data_pipelines.loader import Stack
from crossloom.data_pipelines.mixture import temperature
from crossloom.data_pipelines.remote import is_remote
from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.source import Source
from crossloom.data_pipelines.summary import Listed
from crossloom.training.recipe import LANGUAGE, Component, Recipe, RecipeError

FILE = "mixture.json"


def expand(recipe: Recipe) -> Recipe:
    """The recipe with each component of several languages as one for each of them.

    A language's share of the component's weight, in its first weight and in every phase, is
    ``n ** alpha`` over the sum of these (XLM, arXiv 1901.07291, section 3.1), where ``n`` are the
    examples that the reader counts: sentences for ``texts``, stretches for ``blocks``. It is
    rounded to six digits, so that it is the same on every machine.

    Raises:
        RecipeError: a component's languages cannot be told apart or counted.
        ShardError: shards of a language are missing, unreadable or empty.
    """
    if not any(c.languages for c in recipe.mixture.values()):
        return recipe
    mixture: dict[str, Component] = {}
    parts: dict[str, dict[str, float]] = {}
    for name, component in recipe.mixture.items():
        each = _each(name, component)
        counts = {n: _examples(n, c, recipe.data) for n, c in each.items()} if each else {name: 1}
        shares = temperature(counts, component.alpha)
        parts[name] = {n: float(f"{share:.6g}") for n, share in shares.items()}
        for part, share in parts[name].items():
            one = each.get(part, component)
            if part in mixture or (part != name and part in recipe.mixture):
                raise RecipeError(f"mixture.{part}: there are two of that name; rename one")
            mixture[part] = replace(one, weight=component.weight * share)
    phases = tuple(
        replace(p, weights={n: w * x for k, w in p.weights.items() for n, x in parts[k].items()})
        for p in recipe.phases
    )
    return replace(recipe, mixture=mixture, phases=phases)


def _each(name: str, component: Component) -> dict[str, Component]:
    """A component for each of the languages, by name; none where they are not listed."""
    shards, reader = component.shards, component.reader
    if not component.languages:
        return {}
    if live.is_live(shards):
        raise RecipeError(f"mixture.{name}.languages: a live stream cannot be counted by language")
    plain = replace(component, shards="", held="", languages=(), alpha=1.0)
    if LANGUAGE in "".join(shards):
        return {
            f"{name}-{x}": replace(
                plain, shards=_filled(shards, x), held=_filled(component.held, x)
            )
            for x in component.languages
        }
    # a reader that tells languages apart finds no example in a sample that lists no text
    if "languages" not in {f.name for f in fields(reader)} or reader.total(Listed(1)) != 0:
        raise RecipeError(
            f"mixture.{name}.languages: reader {reader.kind!r} does not count by language; read "
            f"shards of their own with {LANGUAGE} in `shards`, or with `blocks`, or with `texts` "
            "and all_texts"
        )
    return {
        f"{name}-{x}": replace(
            plain,
            shards=shards,
            held=component.held,
            reader=replace(reader, languages=(x,)),  # type: ignore[call-arg]
        )
        for x in component.languages
    }


def _filled(patterns: str | tuple[str, ...], language: str) -> str | tuple[str, ...]:
    if isinstance(patterns, str):
        return patterns.replace(LANGUAGE, language)
    return tuple(p.replace(LANGUAGE, language) for p in patterns)


def _examples(name: str, component: Component, root: str) -> int:
    with naming(name):
        return len(Source(name, open_shards(component.shards, root), component.reader))


@contextmanager
def naming(component: str) -> Iterator[None]:
    """Errors about shards begin with the key of the recipe that names them."""
    try:
        yield
    except ShardError as error:
        error.args = (f"mixture.{component}.shards: {error}",)
        raise


@dataclass(frozen=True, kw_only=True)
class Share:
    """How much of the data and of the run a component is."""

    component: str
    examples: int  #: 0 where they cannot be counted (a live stream)
    data: float  #: share of all components' examples, 0..1: before alpha and weights
    run: float  #: share of the run's micro-batches, 0..1: after them
    epochs: float  #: how often the run meets each example

    def __str__(self) -> str:
        return (
            f"{self.component}: {self.examples:,} examples, {self.data:.2%} of the data, "
            f"{self.run:.2%} of the run, {self.epochs:.2g} epochs"
        )


HEADINGS = ("component", "examples", "of the data", "of the run", "epochs")


def shares(recipe: Recipe, stack: Stack) -> list[Share]:
    """The shares of all components over a whole run, its phases included."""
    counts = {n: 0 if p.source.live else len(p.source) for n, p in stack.parts.items()}
    total = sum(counts.values()) or 1
    micros = recipe.steps * recipe.micro
    given = dict(zip(stack.mixture.names, stack.mixture.given(micros).tolist(), strict=True))
    return [
        Share(
            component=name,
            examples=count,
            data=count / total,
            run=given[name] / micros,
            epochs=given[name] * recipe.examples / count if count else 0.0,
        )
        for name, count in counts.items()
    ]


def table(recipe: Recipe) -> list[Sequence[str]]:
    """The shares as rows under :data:`HEADINGS`, where all shards lie on this machine.

    No rows where they do not.
    """
    from crossloom.training.run import make_stack

    each = [c.shards for c in recipe.mixture.values()]
    patterns = tuple(p for s in each for p in ([s] if isinstance(s, str) else s))
    if live.is_live(patterns) or any(map(is_remote, [recipe.data, *patterns])):
        return []
    try:
        whole = expand(recipe)
        found = shares(whole, make_stack(whole))
    except ShardError:
        return []
    return [
        (x.component, f"{x.examples:,}", f"{x.data:.2%}", f"{x.run:.2%}", f"{x.epochs:.2g}")
        for x in found
    ]


def to_json(some: Sequence[Share]) -> str:
    """Shares as a run directory keeps them (``mixture.json``)."""
    return json.dumps([asdict(share) for share in some], ensure_ascii=False, indent=1) + "\n"


def read_shares(folder: Path) -> list[Share]:
    """The shares that a run directory has; none where it has none."""
    file = folder / FILE
    return [Share(**one) for one in json.loads(file.read_text("utf-8"))] if file.is_file() else []
