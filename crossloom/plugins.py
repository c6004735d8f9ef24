"""Finding modalities, objectives, sources, tasks, engines and recipes, built-in or not, by name.

Everything is found through entry points (groups ``crossloom.modality``, ``crossloom.objective``,
``crossloom.source``, ``crossloom.task``, ``crossloom.engine``, ``crossloom.recipe``); crossloom's
own parts are declared in its ``pyproject.toml`` like anybody else's. A name may also be
``module:attribute``.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

Family = Literal["modality", "objective", "source", "task", "engine", "recipe"]
FAMILIES: tuple[Family, ...] = get_args(Family)


class PluginError(ValueError):
    """A name that nothing, or more than one package, answers to."""


@dataclass(frozen=True)
class Plugin:
    """One thing that can be found by name."""

    family: Family
    name: str
    target: str  #: ``module:attribute``
    origin: str  #: distribution and version

    def load(self) -> Any:
        """Import the thing itself."""
        return _import(self.target, f"{self.family} {self.name!r} of {self.origin}")


@lru_cache(maxsize=1)
def _declared() -> tuple[Plugin, ...]:
    found = []
    for family in FAMILIES:
        for point in entry_points(group=f"crossloom.{family}"):
            found.append(Plugin(family, point.name, point.value, _origin(point)))
    return tuple(sorted(set(found), key=lambda p: (FAMILIES.index(p.family), p.name, p.target)))


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def listed(family: Family | None = None) -> tuple[Plugin, ...]:
    """All declared plugins, or those of one family, by name."""
    return tuple(p for p in _declared() if family in (None, p.family))


def find(family: Family, name: str) -> Any:
    """The modality class, objective class, converter, task class or recipe of that name.

    Raises:
        PluginError: no such name (the nearest are listed), two packages claim it, or the import
            fails (the message names the package).
    """
    if ":" in name:
        return _import(name, f"{family} {name!r}")
    claims = [p for p in listed(family) if p.name == name]
    if len(claims) == 1:
        return claims[0].load()
    if claims:
        owners = " and ".join(p.origin for p in claims)
        raise PluginError(f"{family} {name!r} is claimed by {owners}; uninstall one of them")
    known = [p.name for p in listed(family)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
    raise PluginError(f"no {family} is called {name!r}; {hint}")


def name_of(family: Family, thing: Any) -> str:
    """The shortest name under which :func:`find` returns ``thing``."""
    for plugin in listed(family):
        if plugin.target == f"{thing.__module__}:{thing.__qualname__}":
            return plugin.name
    return f"{thing.__module__}:{thing.__qualname__}"


def _import(target: str, what: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        lost = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        hint = "; it is looked for in the current folder and on PYTHONPATH" if lost else ""
        raise PluginError(f"{what} cannot be imported from {target}: {error}{hint}") from error
