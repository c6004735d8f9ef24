"""As many micro-batches in a pass as fit into memory, found without a trace in the run."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from crossloom.models.model import CrossloomModel
from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import fit
from crossloom.training.environment import Environment, start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import RecipeError, from_yaml, override
from crossloom.training.run import make_stack

FORWARD = CrossloomModel.forward


def limit(examples):
    """A device that has no room for more examples in a pass."""

    def forward(self, batch):
        out = FORWARD(self, batch)
        if len(batch.keys) > examples:
            raise torch.OutOfMemoryError("no room")
        return out

    CrossloomModel.forward = forward


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Undo :func:`limit` after the test."""
    monkeypatch.setattr(CrossloomModel, "forward", FORWARD)


def make(world, **changes):
    return replace(tiny_recipe(Path(world)), steps=4, micro=4, save_every=2, **changes)


def losses(out):
    lines = read_journal(Path(out) / "metrics.jsonl")
    return [{k: v for k, v in x.items() if k.endswith("/loss")} for x in lines]


def test_what_fits_is_found_said_kept_and_changes_nothing(world, tmp_path, capsys):
    limit(9)  # two micro-batches of four
    train(make(world, fused=-1), tmp_path / "found", start("cpu"))
    assert "fused: 2 micro-batches of 4 examples in a pass" in capsys.readouterr().out
    assert from_yaml(tmp_path / "found" / "recipe.yaml").fused == 2
    limit(1000)
    train(make(world, fused=2), tmp_path / "given", start("cpu"))
    assert losses(tmp_path / "found") == losses(tmp_path / "given")
    # with more room a run that goes on stays as it was, to the last digit
    longer = {"steps": 6}
    for name, fused in (("found", -1), ("given", 2)):
        train(replace(make(world, fused=fused), **longer), tmp_path / name, start("cpu"),
              resume=True)  # fmt: skip
    assert from_yaml(tmp_path / "found" / "recipe.yaml").fused == 2
    assert losses(tmp_path / "found") == losses(tmp_path / "given")
    assert len(losses(tmp_path / "found")) == 6


def test_the_largest_of_the_first_micro_batches_stands_for_all(world, monkeypatch):
    recipe = make(world, fused=-1).located()
    stack, tried = make_stack(recipe), []
    monkeypatch.setattr(fit, "_fits", lambda *given: bool(tried.append(given[2])))
    with pytest.raises(RecipeError, match="not even one"):
        fit.fitting(recipe, stack, start("cpu"))
    units = {n: [b.units for b in stack.first(n, 8)] for n in stack.parts}
    assert all(len(set(some)) > 1 for some in units.values())
    for fused, batches in zip((4, 2, 1), tried, strict=True):
        assert [b.units for b in batches] == [fused * max(some) for some in units.values()]


@pytest.mark.parametrize(("examples", "fused"), [(16, 4), (15, 2), (7, 1)])
def test_the_most_that_divides_a_share_is_taken_and_nothing_is_left_of_trials(
    world, monkeypatch, examples, fused
):
    made = []
    making = fit.make_model
    monkeypatch.setattr(
        fit, "make_model", lambda r: made.append(weakref.ref(m := making(r))) or m
    )  # fmt: skip
    limit(examples)
    recipe = make(world, fused=-1).located()
    assert fit.fitting(recipe, make_stack(recipe), start("cpu")) == fused
    assert len(made) == {4: 1, 2: 2, 1: 3}[fused]
    assert not any(m() is not None for m in made)


def test_where_nothing_fits_or_a_pass_must_be_whole_it_is_said(world, tmp_path):
    limit(3)
    with pytest.raises(RecipeError, match="not even one micro-batch of 4 examples fits"):
        train(make(world, fused=-1), tmp_path / "run", start("cpu"))
    with pytest.raises(ValueError, match="contrastive objectives compare the whole batch"):
        replace(tiny_recipe(world, contrast=True), fused=-1)
    with pytest.raises(ValueError, match="-1 for those that fit"):
        make(world, fused=-2)


def run(world, out, engines):
    environment = start("cpu")
    for name, assignments, narrow in engines:
        # one process has less room than the other
        limit(4 if environment.rank == narrow else 8)
        recipe = override(make(world, fused=-1), assignments)
        train(recipe, Path(out) / name, environment)
        limit(1000)
        fused = from_yaml(Path(out) / name / "recipe.yaml").fused
        train(replace(recipe, fused=fused), Path(out) / f"{name}-given", environment)


class Other(Environment):
    """One of two processes, of which the other has room for one micro-batch."""

    def total(self, values):
        self.asked.append(values)
        return [values[0] + (len(self.asked) > 1)]

    asked: ClassVar[list] = []


def test_a_process_goes_by_the_one_with_the_least_room(world):
    environment = Other(torch.device("cpu"), 1, 2)
    recipe = make(world, fused=-1).located()
    assert fit.fitting(recipe, make_stack(recipe), environment) == 1
    assert environment.asked == [[1.0], [1.0]]


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_agree_on_what_fits_the_smallest(world, tmp_path):
    run_ranks(2, run, str(world), str(tmp_path), [("ddp", ["engine=ddp"], 1)])
    assert from_yaml(tmp_path / "ddp" / "recipe.yaml").fused == 1
    assert losses(tmp_path / "ddp") == losses(tmp_path / "ddp-given")


@pytest.mark.slow
@pytest.mark.distributed
def test_engines_that_keep_models_in_parts_find_it_too(world, tmp_path):
    engines = [("fsdp", ["engine=fsdp"], None)]
    for stage in range(4):
        engines.append((f"{stage}", ["engine=deepspeed", f"engine.stage={stage}"], None))
    run_ranks(2, run, str(world), str(tmp_path), engines)
    for name, _, _ in engines:
        assert from_yaml(tmp_path / name / "recipe.yaml").fused == 2
        assert losses(tmp_path / name) == losses(tmp_path / f"{name}-given")
