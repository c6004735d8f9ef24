"""Slow processes are told by what they do on their own."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from crossloom.testing.processes import run_ranks
from crossloom.testing.recipes import tiny_recipe
from crossloom.training import stragglers
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal


class Sleeps(nn.Module):
    def forward(self, seconds):
        time.sleep(seconds)
        return seconds


def test_forward_passes_of_training_are_timed_and_no_others():
    model = Sleeps()
    forwards = stragglers.Forwards(model, torch.device("cpu"))
    model(0.05)
    model(0.05)
    time.sleep(0.2)
    model.eval()
    model(0.2)
    assert 0.1 <= forwards.seconds() < 0.2
    assert forwards.seconds() == 0


def test_the_spread_is_the_slowest_over_the_median():
    assert stragglers.report([1.0, 1.0, 3.0]) == {
        "own_seconds/0": 1.0, "own_seconds/1": 1.0, "own_seconds/2": 3.0, "own_seconds/spread": 3.0,
    }  # fmt: skip
    assert stragglers.slow([1.0, 1.0, 3.0]) == "slow: rank 2 (3.00 s); the median is 1.00 s a step"
    assert stragglers.slow([1.0, 1.2, 1.1]) == ""


def run(world: str, out: str) -> None:
    from crossloom.models.model import CrossloomModel

    environment = start("cpu")
    forward = CrossloomModel.forward

    def slowly(self, *arguments):
        time.sleep(0.5 * environment.rank)
        return forward(self, *arguments)

    CrossloomModel.forward = slowly
    train(replace(tiny_recipe(Path(world)), steps=3, log_every=3), Path(out), environment)


@pytest.mark.distributed
def test_a_rank_that_is_slow_has_the_longer_time_though_all_wait_for_it(world, tmp_path):
    run_ranks(2, run, str(world), str(tmp_path))
    (line,) = read_journal(tmp_path / "metrics.jsonl")
    assert line["own_seconds/1"] > line["own_seconds/0"] + 0.3
    assert line["own_seconds/spread"] > 1.05
