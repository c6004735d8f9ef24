"""What the launcher starts again by itself goes on by itself, on as many machines as are left."""

import random
import socket

import pytest
from kills import ENGINES, Run, wait

from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import load_recipe

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
STEPS = 14


@pytest.fixture
def runs():
    """Runs that leave nothing behind, however the test ends."""
    made = []
    yield made
    for run in made:
        run.stop()


def test_a_killed_worker_is_started_again_with_its_group_and_losses_are_exact(
    world, tmp_path, runs
):
    whole = Run(ENGINES["ddp"], world, tmp_path / "whole", STEPS)
    launcher = ("local.sh", "-n", "2", "--restarts", "2")
    run = Run(ENGINES["ddp"], world, tmp_path / "run", STEPS, launcher)
    runs += [whole, run]
    whole.start()
    assert whole.process.wait(180) == 0
    run.start()
    for step in (5, 9):  # each time other processes
        assert wait(lambda step=step: run.step() >= step, 180)
        assert run.kill("rank", random.Random(step)) == "rank"
        assert wait(lambda step=step: run.step() < step, 180)
    assert run.process.wait(180) == 0
    assert run.losses() == whole.losses()
    assert len(run.losses()) == STEPS


def test_a_run_on_two_machines_goes_on_with_the_one_that_is_left(world, tmp_path, runs):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{probe.getsockname()[1]}"
    for node in (0, 1):
        launcher = ("nodes.sh", "--nodes", "1:2", "--node", str(node), "--at", at, "-n", "1",
                    "--local-addr", "127.0.0.1", "--restarts", "3")  # fmt: skip
        run = Run(ENGINES["ddp"], world, tmp_path / "run", STEPS, launcher)
        run.starts = node  # so that the two are told apart
        run.start()
        runs.append(run)
    staying, leaving = runs
    assert wait(lambda: staying.step() >= 6, 180)
    leaving.kill("all", random.Random(0))
    assert staying.process.wait(300) == 0
    lines = read_journal(tmp_path / "run" / "metrics.jsonl")
    assert [x["step"] for x in lines] == list(range(1, STEPS + 1))
    assert "own_seconds/1" in lines[0]  # it was two
    assert "own_seconds/1" not in lines[-1]
    options = [f"data={world}", f"steps={STEPS}", "examples=8", "micro=2", "workers=0"]
    train(load_recipe("demo", [*options, "log_every=1"]), tmp_path / "one", start("cpu"))
    alone = read_journal(tmp_path / "one" / "metrics.jsonl")
    for first, second in zip(alone, lines, strict=True):
        for name in (k for k in first if k.endswith("/loss")):
            assert second[name] == pytest.approx(first[name], rel=1e-5), (first["step"], name)
