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
from crossloom.training.recipe import to_yaml

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
    # a host cut off while a checkpoint is gathered would be given ten times as long
    pace = {"steps": 100_000, "log_every": 1, "save_every": 100_000}
    recipe = replace(tiny_recipe(world), micro=8, stall_after=10.0, workers=0, **pace)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    out = tmp_path / "run"
    with hosts(2) as made:
        logs = [(tmp_path / f"host-{n}.log").open("w") for n in range(2)]
        runs = [
            made.start(
                n, command(n, 2, tmp_path / "recipe.yaml", out), stderr=logs[n], stdout=logs[n]
            )
            for n in range(2)
        ]
        try:
            limit = time.monotonic() + 240
            metrics = out / "metrics.jsonl"
            while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
                assert time.monotonic() < limit
                time.sleep(0.2)
            made.cut(1)
            # nothing tells the first host that its packets go nowhere
            assert runs[0].wait(60) != 0
        finally:
            stop(runs)
    said = (tmp_path / "host-0.log").read_text()
    for rank in (0, 1):
        assert f"rank {rank}: no step has ended for 10 s or more" in said
