"""Killed at any moment, a run goes on by itself and exactly: the short version of `make faults`."""

import random

import pytest
from kills import ENGINES, Kill, differing, draw, endure


def play(engine, kills, world, out, **options):
    return endure(
        ENGINES[engine], kills, world, out, steps=16, within=90.0, rng=random.Random(1),
        say=lambda _: None, **options,
    )  # fmt: skip


def test_a_killed_process_or_loader_costs_no_more_than_the_last_checkpoint(world, tmp_path):
    kills = [
        Kill(step=5, delay=0.0, writing=True, role="rank"),
        Kill(step=9, delay=0.0, writing=False, role="loader"),
    ]
    restarts = play("single", kills, world, tmp_path)
    assert len(restarts) == 2
    assert [r.faults for r in restarts] == [[], []]
    assert restarts[0].done >= 5
    assert restarts[1].done >= 9


def test_kills_are_drawn_by_seed_with_every_role_and_moment():
    kills = draw(9, 60, random.Random("0 ddp"))
    assert kills == draw(9, 60, random.Random("0 ddp"))
    assert {k.role for k in kills} == {"rank", "loader", "all", "launcher"}
    assert {k.writing for k in kills} == {True, False}
    assert [k.step for k in kills] == sorted(k.step for k in kills)
    assert any(k.again is not None for k in kills)


def test_the_first_step_that_differs_is_named():
    wanted = [{"step": 1, "a/loss": 0.5}, {"step": 2, "a/loss": 0.25}]
    assert differing(wanted[:1], wanted) == []
    assert differing(wanted, wanted) == []
    (said,) = differing([wanted[0], {"step": 2, "a/loss": 0.25000001}], wanted)
    assert said.startswith("step 2 differs")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["optim.rate=0.01", "seed=1"])
def test_a_run_that_does_not_go_on_exactly_is_noticed(world, tmp_path, spoil):
    kill = Kill(step=6, delay=0.0, writing=False, role="all")
    (restart,) = play("single", [kill], world, tmp_path, spoil=[spoil])
    assert restart.faults
    wrong = "differs from the undisturbed run" if spoil.startswith("optim") else "did not go on"
    assert wrong in restart.faults[0]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("role", ["rank", "launcher"])
@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "single"])
def test_two_processes_go_on_alike(world, tmp_path, engine, role):
    kill = Kill(step=6, delay=0.05, writing=True, role=role)
    (restart,) = play(engine, [kill], world, tmp_path)
    assert not restart.faults
