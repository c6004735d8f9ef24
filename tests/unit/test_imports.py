"""Imports point one way, and starting up loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "crossloom"
#: What each room may import, beside itself. ``units``, ``batch`` and ``plugins`` are open to all.
ALLOWED = {
    "modalities": set(),
    "objectives": {"modalities"},
    "data_pipelines": {"modalities", "objectives"},
    "models": {"modalities", "objectives"},
    "training": {"modalities", "objectives", "data_pipelines", "models"},
    "evaluation": {"modalities", "objectives", "data_pipelines", "models", "training"},
    "recipes": {"modalities", "objectives", "data_pipelines", "models", "training"},
    "testing": {"modalities", "objectives", "data_pipelines", "models", "training", "evaluation"},
}
OPEN = {"units", "batch", "plugins"}
BASE = {"units": set(), "plugins": set(), "batch": {"units"}}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (n.split(".")[1] for n in names if n.startswith("crossloom."))


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below(room):
    for path in (ROOT / room).rglob("*.py"):
        above = set(imported(path)) - OPEN - ALLOWED[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("module", BASE)
def test_base_modules_import_next_to_nothing(module):
    assert set(imported(ROOT / f"{module}.py")) <= BASE[module]


def loaded_after(code):
    script = f"import sys; {code}; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_is_light():
    assert not {"torch", "numpy", "timm"} & loaded_after("import crossloom")


def test_the_command_line_and_recipes_load_no_towers_or_engines():
    heavy = {"timm", "open_clip", "deepspeed", "transformers", "matplotlib", "tensorboard"}
    code = "import crossloom.cli; from crossloom.training.recipe import load_recipe as r; r('demo')"
    assert not heavy & loaded_after(code)
