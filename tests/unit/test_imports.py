"""Imports point one way, and starting up loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crossloom

ROOT = Path(__file__).parents[2] / "crossloom"
#: What each room may import, beside itself. ``units``, ``batch``, ``plugins`` and
#: ``processes`` are open to all.
ALLOWED = {
    "modalities": set(),
    "objectives": {"modalities"},
    "data_pipelines": {"modalities", "objectives"},
    "models": {"modalities", "objectives"},
    "training": {"modalities", "objectives", "data_pipelines", "models"},
    "evaluation": {"modalities", "objectives", "data_pipelines", "models", "training"},
    "interop": {"modalities", "objectives", "data_pipelines", "models", "training"},
    "recipes": {"modalities", "objectives", "data_pipelines", "models", "training", "interop"},
    "testing": {"modalities", "objectives", "data_pipelines", "models", "training", "evaluation"},
}
OPEN = {"units", "batch", "plugins", "processes"}
BASE = {"units": set(), "plugins": set(), "processes": set(), "batch": {"units"}}


def imported(path):
    """First level below ``crossloom`` of whatever a file imports, however it is written."""
    package = ["crossloom", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{source}.{a.name}" for a in node.names]
        for parts in (n.split(".") for n in names):
            if parts[0] == "crossloom" and len(parts) > 1:
                # a public name of the package stands for the module where it lives
                yield crossloom._NAMES.get(parts[1], f"crossloom.{parts[1]}").split(".")[1]


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("import crossloom.models.plan", "models"),
        ("from crossloom.models.plan import Plan", "models"),
        ("from crossloom import models", "models"),
        ("from crossloom import Recipe", "training"),
        ("from ..models import plan", "models"),
        ("from .. import models", "models"),
        ("if TYPE_CHECKING:\n    from crossloom.models import plan", "models"),
        ("def f():\n    from crossloom.models import plan", "models"),
        ("from . import text", "modalities"),
    ],
)
def test_every_way_to_import_is_seen(tmp_path, monkeypatch, line, room):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "modalities" / "new.py"
    path.parent.mkdir()
    path.write_text(line)
    assert list(imported(path)) == [room]


def test_every_room_has_its_place():
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms == set(ALLOWED), "say in ALLOWED what the new room may import"


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_lies_below(room):
    for path in (ROOT / room).rglob("*.py"):
        above = set(imported(path)) - OPEN - ALLOWED[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("module", BASE)
def test_base_modules_import_next_to_nothing(module):
    assert set(imported(ROOT / f"{module}.py")) <= BASE[module]


def loaded_after(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.splitlines()[-1].split())


def test_importing_is_light():
    assert not {"torch", "numpy", "timm"} & loaded_after("import crossloom")


def test_the_command_line_and_recipes_load_no_towers_or_engines():
    # sympy comes with torch's compiler, which takes longer to load than all of crossloom
    heavy = {"timm", "open_clip", "deepspeed", "transformers", "matplotlib", "tensorboard", "sympy"}
    code = "import crossloom.cli; from crossloom.training.recipe import load_recipe as r; r('demo')"
    assert not heavy & loaded_after(code)


@pytest.mark.parametrize("command", [["--help"], ["pretrain", "--help"]], ids=" ".join)
def test_help_is_light(command):
    heavy = {"timm", "open_clip", "deepspeed", "transformers", "matplotlib", "tensorboard"}
    run = f"sys.argv = ['crossloom', *{command}]; from crossloom.cli import main"
    found = loaded_after(f"{run}\nmain()")
    assert "crossloom.cli" in found
    assert not heavy & found
