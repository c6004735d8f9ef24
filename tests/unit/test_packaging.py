import sys
from importlib import import_module
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
POINTS = [
    (group, name, target)
    for group, points in PROJECT["entry-points"].items()
    for name, target in points.items()
]


@pytest.mark.parametrize(("group", "name", "target"), POINTS)
def test_every_entry_point_leads_somewhere(group, name, target):
    from crossloom.plugins import find

    module, attribute = target.split(":")
    thing = getattr(import_module(module), attribute)
    assert find(group.split(".")[1], name) is thing
    assert (thing.__doc__ or "").strip()


def test_every_recipe_builds_and_survives_its_own_yaml():
    import yaml

    from crossloom.plugins import listed
    from crossloom.training.recipe import from_dict, to_yaml

    for plugin in listed("recipe"):
        recipe = plugin.load()()
        assert recipe.name == plugin.name
        assert from_dict(yaml.safe_load(to_yaml(recipe))) == recipe


def test_constraints_name_versions_alone():
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pins = [x for x in lines if x and not x.startswith("#")]
    assert pins
    assert all("==" in x and "/" not in x and "@" not in x for x in pins)


def test_public_names_are_there():
    import crossloom

    for name in crossloom.__all__:
        assert getattr(crossloom, name) is not None
    with pytest.raises(AttributeError):
        _ = crossloom.nothing
