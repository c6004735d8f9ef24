"""Whatever hangs is named on every process, with its stack, and the run ends."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crossloom.testing.recipes import tiny_recipe
from crossloom.training import guard
from crossloom.training.engine import Engine
from crossloom.training.recipe import to_yaml

LOCAL = Path(__file__).parents[2] / "launch" / "local.sh"


def hang_in_loader(number):
    """In whichever process makes micro-batch ``number``."""
    from crossloom.data_pipelines.loader import Stack

    making = Stack.micro

    def micro(self, asked):
        if asked == number:
            time.sleep(600)
        return making(self, asked)

    Stack.micro = micro


def hang_in_step(number, rank):
    stepping = Engine.step

    def step(self, asked, *arguments):
        if (asked, self.environment.rank) == (number, rank):
            time.sleep(600)
        return stepping(self, asked, *arguments)

    Engine.step = step


def play(fault, world, out, processes, *options):
    """Run the tiny recipe with a fault; return the status, what was said, and the seconds."""
    out.mkdir()
    (out / "recipe.yaml").write_text(to_yaml(tiny_recipe(world)))
    # the fault is there before the command line begins, and in all processes
    script = out / "played.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import test_stalls\nfrom crossloom.cli import main\n"
        f"if __name__ == '__main__':\n    test_stalls.{fault}\n    main()\n"
    )
    python = [sys.executable]
    if processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*python, script, "pretrain", out / "recipe.yaml", *options, "--out", out / "run"]
    began = time.monotonic()
    done = subprocess.run(
        [*map(str, command), "--device", "cpu"], capture_output=True, text=True, timeout=400
    )
    return done.returncode, done.stderr, time.monotonic() - began


def test_a_loader_that_hangs_is_named_with_its_shard_and_stack(world, tmp_path):
    # right after the checkpoint of step 4, which may take ten times as long, and what follows not
    options = ["stall_after=5", "workers=1"]
    status, said, seconds = play("hang_in_loader(8)", world, tmp_path / "a", 1, *options)
    assert status == guard.STATUS
    assert seconds < 5 * guard.PATIENCE
    assert "rank 0: no step has ended for 5 s or more" in said
    assert "this process is at: waiting for data" in said
    assert "the batch of step 5 is read from" in said
    assert "train-000000.tar" in said
    # of the process that waits, and of the one that hangs
    assert "in steps" in said
    assert "in hang_in_loader" in said or "in micro" in said


@pytest.mark.distributed
def test_a_rank_that_hangs_is_named_and_so_is_what_the_other_waits_for(world, tmp_path):
    fault = "hang_in_step(5, 1)"
    status, said, _ = play(fault, world, tmp_path / "a", 2, "stall_after=3")
    assert status != 0
    first, second = (
        next(x for x in said.splitlines() if x.startswith(f"rank {n}: no step")) for n in (0, 1)
    )
    assert first.endswith("step 6: forward, backward, update")
    assert second.endswith("step 6: forward, backward, update")
    assert said.count("in _end") == 2  # both show their stacks
    assert 'test_stalls.py", line' in said  # the one that sleeps shows where


def test_a_guard_that_is_met_in_time_or_off_does_nothing(monkeypatch):
    ended = []
    monkeypatch.setattr(guard.os, "_exit", lambda status: ended.append(status))
    with guard.Guard(0.3, 0) as watch:
        for _ in range(8):
            watch.met()
            time.sleep(0.1)
        watch.met(slow=True)
        time.sleep(0.6)
    with guard.Guard(0.0, 0):
        time.sleep(0.1)
    assert not ended


def test_a_run_told_to_stop_leaves_a_checkpoint_and_a_status_of_its_own(world, tmp_path):
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe := long_recipe(world)))
    command = [sys.executable, "-m", "crossloom", "pretrain", str(tmp_path / "recipe.yaml")]
    command += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    status, said = stopped(command, tmp_path / "run", signal.SIGUSR1)
    assert status == 75
    assert "--resume goes on from there" in said
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 0 < step < recipe.steps
    done = subprocess.run([*command, f"steps={step + 2}", "--resume"], capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.distributed
def test_processes_told_to_stop_by_their_launcher_leave_a_checkpoint(world, tmp_path):
    (tmp_path / "recipe.yaml").write_text(to_yaml(long_recipe(world)))
    command = ["bash", str(LOCAL), "-n", "2", str(tmp_path / "recipe.yaml")]
    command += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    status, said = stopped(command, tmp_path / "run", signal.SIGTERM)
    assert status != 0
    assert said.count("--resume goes on from there") == 2
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()


def long_recipe(world):
    # loader processes must outlive a signal to the whole group
    return replace(tiny_recipe(world), steps=100_000, save_every=100_000, workers=1)


def stopped(command, run, number):
    """Start a run, signal its whole group once it trains, and return its status and words."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PATH": path},
        start_new_session=True,
    )  # fmt: skip
    try:
        limit = time.monotonic() + 120
        metrics = run / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said
