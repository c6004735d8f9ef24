"""Several machines, each with its own address, started by the launcher for several machines."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import address, hosts

from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import load_recipe, to_yaml

NODES = Path(__file__).parents[2] / "launch" / "nodes.sh"

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def command(host: int, count: int, recipe: Path, out: Path) -> list[str]:
    own = ["--nodes", count, "--node", host, "--local-addr", address(host), "-n", 2]
    at = ["--at", f"{address(0)}:29500"]
    return [str(x) for x in ("bash", NODES, *own, *at, recipe, "--out", out, "--device", "cpu")]


def stop(runs: list[subprocess.Popen]) -> None:
    for run in runs:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_with_two_processes_each_give_the_losses_of_one_process(world, tmp_path, count):
    recipe = replace(tiny_recipe(world), micro=8)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    out = tmp_path / "many"
    with hosts(count) as made:
        runs = [
            made.start(n, command(n, count, tmp_path / "recipe.yaml", out)) for n in range(count)
        ]
        try:
            assert [r.wait(240) for r in runs] == [0] * count
        finally:
            stop(runs)
    train(recipe, tmp_path / "one", start("cpu"))
    one, many = (read_journal(x / "metrics.jsonl") for x in (tmp_path / "one", out))
    assert len(one) == len(many) == recipe.steps
    for first, second in zip(one, many, strict=True):
        for name in (k for k in first if k.endswith("/loss")):
            assert second[name] == pytest.approx(first[name], abs=1e-4), (first["step"], name)


def test_a_host_that_is_cut_off_ends_the_run_in_words(world, tmp_path):
    """The demo's model on four hosts, of which three are left."""
    # a host cut off while a checkpoint is gathered would be given ten times as long
    pace = {"steps": 100_000, "log_every": 1, "save_every": 100_000, "stall_after": 10.0}
    demo = replace(load_recipe("demo"), data=str(world), examples=4, micro=8, workers=0)
    recipe = replace(demo, **pace)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    out = tmp_path / "run"
    with hosts(4) as made:
        logs = [(tmp_path / f"host-{n}.log").open("w") for n in range(4)]
        runs = [
            made.start(
                n, command(n, 4, tmp_path / "recipe.yaml", out), stderr=logs[n], stdout=logs[n]
            )
            for n in range(4)
        ]
        try:
            limit = time.monotonic() + 300
            metrics = out / "metrics.jsonl"
            while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
                assert time.monotonic() < limit
                time.sleep(0.2)
            made.cut(3)
            # nothing tells the other hosts that their packets go nowhere
            limit = time.monotonic() + 60
            assert all(r.wait(max(0.0, limit - time.monotonic())) != 0 for r in runs[:3])
        finally:
            stop(runs)
    said = "".join((tmp_path / f"host-{n}.log").read_text() for n in range(3))
    for rank in range(6):
        assert f"rank {rank}: no step has ended for 10 s or more" in said
