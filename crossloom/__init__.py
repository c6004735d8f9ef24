"""crossloom: pre-train multimodal and multilingual models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from crossloom.run import Loaded, load
    from crossloom.training.recipe import Recipe
    from crossloom.units import Fate, Units

#: Public names and where they live; imported when first asked for, so that importing is quick.
_NAMES = {
    "load": "crossloom.run",
    "Loaded": "crossloom.run",
    "Recipe": "crossloom.training.recipe",
    "Fate": "crossloom.units",
    "Units": "crossloom.units",
}

__all__ = ["Fate", "Loaded", "Recipe", "Units", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'crossloom' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_NAMES[name]), name)
