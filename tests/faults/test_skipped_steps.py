"""A step that would spoil the weights is left out, written down, and counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.loop import RunError, train
from crossloom.training.meters import Meters, read_journal
from crossloom.training.recipe import RecipeError
from crossloom.training.replay import replay
from crossloom.training.run import load_weights, make_stack
from crossloom.training.skips import Skips


def spoil(steps, factor, rank=0):
    """Multiply the losses of some steps, on one process."""
    stepping, loss = Engine.step, Engine._loss

    def step(self, number, *arguments):
        self.number = number
        return stepping(self, number, *arguments)

    def spoilt(self, sums, counts):
        wrong = self.number in steps and self.environment.rank == rank
        return loss(self, sums, counts) * (factor if wrong else 1.0)

    Engine.step, Engine._loss = step, spoilt


@pytest.fixture
def spoilt(monkeypatch):
    """Undo :func:`spoil` after the test."""
    for name in ("step", "_loss"):
        monkeypatch.setattr(Engine, name, getattr(Engine, name))
    return spoil


def alike(one, other, room):
    mine, theirs = one.under(room), other.under(room)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def listed(run):
    return [json.loads(x) for x in (run / "skipped.jsonl").read_text().splitlines()]


def test_a_step_that_is_not_finite_changes_nothing_and_is_written_down(world, tmp_path, spoilt):
    recipe = replace(tiny_recipe(world), steps=3, save_every=1, keep=0, ema=0.9)
    spoilt({1}, float("nan"))
    train(recipe, tmp_path / "run", start("cpu"))
    first, second, third = map(
        checkpoint.load, checkpoint.checkpoints(tmp_path / "run/checkpoints")
    )
    for room in ("model", "optimiser", "ema"):
        assert alike(first, second, room)
        assert not alike(second, third, room)
    (line,) = listed(tmp_path / "run")
    assert line["step"] == 2
    assert line["reason"] == "the gradient's norm is nan"
    assert len(line["keys"]) == recipe.examples * recipe.micro
    lines = read_journal(tmp_path / "run" / "metrics.jsonl")
    assert [x["skipped_total"] for x in lines] == [0, 1, 1]
    assert not any(k.endswith("/loss") for k in lines[1])  # it is in no mean
    assert any(k.endswith("/loss") for k in lines[2])
    train(replace(recipe, log_every=3), tmp_path / "told once", start("cpu"))
    (whole,) = read_journal(tmp_path / "told once" / "metrics.jsonl")
    norms = lines[0]["gradient_norm"], lines[2]["gradient_norm"]
    assert whole["gradient_norm"] == pytest.approx(sum(norms) / 2)


def test_a_run_ends_after_as_many_skipped_steps_as_the_recipe_says(world, tmp_path, spoilt):
    spoilt(range(2, 12), float("nan"))
    recipe = replace(tiny_recipe(world), skips=3, save_every=3)
    with pytest.raises(RunError, match=r"step 6: .* 4 steps were skipped \(skips allows 3\)"):
        train(recipe, tmp_path / "run", start("cpu"))
    assert [x["step"] for x in listed(tmp_path / "run")] == [3, 4, 5, 6]
    # going on from step 3 does not forget that one was skipped, and lists none twice
    with pytest.raises(RunError, match=r"step 6: .* 4 steps were skipped"):
        train(recipe, tmp_path / "run", start("cpu"), resume=True)
    assert [x["step"] for x in listed(tmp_path / "run")] == [3, 4, 5, 6]


def run(world: str, out: str) -> None:
    spoil({5}, float("inf"), rank=1)
    train(replace(tiny_recipe(Path(world)), micro=2), Path(out), start("cpu"))


def test_a_step_is_replayed_with_its_examples_losses_and_what_is_not_finite(world, tmp_path):
    recipe = replace(tiny_recipe(world), steps=6, save_every=2, log_every=1, keep=0)
    train(recipe, tmp_path / "run", start("cpu"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    said: list[str] = []
    # two steps after the checkpoint of step 2: the weights are those of then
    replay(tmp_path / "run", 4, start("cpu"), said.append)
    line = read_journal(tmp_path / "run" / "metrics.jsonl")[3]
    losses = {x.split()[0]: float(x.split()[1]) for x in said if "/loss " in x}
    assert losses == pytest.approx({k: line[k] for k in losses}, rel=1e-5)
    assert losses.keys() == {k for k in line if k.endswith("/loss")}
    keys = make_stack(recipe.located())
    assert said[0].split()[2:] == [k for n in (6, 7) for k in keys.keys(n)[1]]
    assert "all states and gradients are finite" in said[-1]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(RecipeError, match="--debug-step 7: the run has steps 1 to 6"):
        replay(tmp_path / "run", 7, start("cpu"), said.append)


def test_a_replay_names_where_it_begins_to_go_wrong(world, tmp_path, monkeypatch):
    train(replace(tiny_recipe(world), steps=2), tmp_path / "run", start("cpu"))
    forward = torch.nn.LayerNorm.forward
    monkeypatch.setattr(
        torch.nn.LayerNorm, "forward", lambda self, x: forward(self, x) * float("nan")
    )
    said: list[str] = []
    replay(tmp_path / "run", 1, start("cpu"), said.append)
    wrong = [x for x in said if "are not finite" in x]
    assert "output of " in wrong[0]
    assert "norm" in wrong[0]
    assert any("gradient of " in x for x in wrong)
    assert not any("weight " in x for x in wrong)


@pytest.mark.distributed
def test_all_processes_skip_what_one_of_them_spoils(world, tmp_path):
    run_ranks(2, run, str(world), str(tmp_path / "run"))
    (line,) = listed(tmp_path / "run")
    assert line["step"] == 6
    assert len(line["keys"]) == 8  # of both
    weights, _ = load_weights(tmp_path / "run")
    assert all(torch.isfinite(x).all() for x in weights.values())


def test_a_skipped_step_is_in_no_mean_norm():
    meters = Meters(start("cpu"))
    for sums in ({"step": {"norm": torch.tensor(2.0)}}, {}, {"step": {"norm": torch.tensor(5.0)}}):
        meters.add(sums, {}, steps=1)
    assert meters.report()["gradient_norm"] == 3.5


def test_spikes_are_told_by_the_mean_of_what_was_taken():
    skips = Skips(spike=4.0, most=9)
    assert all(skips.accept(1.0) for _ in range(20))
    assert not skips.accept(4.5)
    assert skips.reason == "the gradient's norm is 4.5, 4.5 times its mean of late"
    assert skips.mean == pytest.approx(1.0)  # a spike is no part of it
    assert skips.accept(3.9)
    assert skips.mean == pytest.approx(1 + 2.9 / 21)
    assert not skips.reason
    again = Skips(4.0, 9, **skips.notes())
    for norm in (5.0, float("inf"), 0.1, 4.0):
        assert again.accept(norm) == skips.accept(norm)
    assert Skips(0.0, 9, mean=1.0, seen=99).accept(1e9)  # switched off
    first = Skips(spike=4.0, most=9)
    assert [first.accept(x) for x in (1.0, 100.0, *[1.0] * 18, 100.0)] == [*[True] * 20, False]
