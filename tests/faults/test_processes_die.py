"""A process that the system kills ends the run in words, not in a hang."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
import torch.utils.data

from crossloom.data_pipelines import check as checking
from crossloom.data_pipelines.errors import WorkerError
from crossloom.data_pipelines.loader import Stack
from crossloom.data_pipelines.shards import open_shards
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.loop import RunError, train


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_ends_the_run_in_words(world, tmp_path, monkeypatch, how):
    making = Stack.micro

    def micro(self, number):
        if number >= 6 and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), how)
        return making(self, number)

    monkeypatch.setattr(Stack, "micro", micro)
    recipe = replace(tiny_recipe(world), workers=1, save_every=1)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"process that loads data \(pid \d+\).*ended by the system"):
        train(recipe, tmp_path / "run", start("cpu"))
    assert time.monotonic() - began < 30
    monkeypatch.undo()
    train(recipe, tmp_path / "run", start("cpu"), resume=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_other_errors_stay_what_they_are(world, tmp_path, monkeypatch):
    def micro(self, number):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Stack, "micro", micro)
    with pytest.raises(RuntimeError, match="a mistake of ours") as found:
        train(tiny_recipe(world), tmp_path / "run", start("cpu"))
    assert not isinstance(found.value, RunError)


def test_what_a_worker_says_to_people_is_said_as_it_is(world, tmp_path, monkeypatch):
    def micro(self, number):
        assert torch.utils.data.get_worker_info()
        raise ValueError("the reader tells no label")

    monkeypatch.setattr(Stack, "micro", micro)
    with pytest.raises(ValueError, match=r"^the reader tells no label$"):
        train(replace(tiny_recipe(world), workers=1), tmp_path / "run", start("cpu"))


def test_a_full_device_ends_the_run_with_what_helps(world, tmp_path, monkeypatch):
    def step(self, *arguments):
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(RunError, match=r"out of memory \(.*fused=-1.*recompute=1"):
        train(tiny_recipe(world), tmp_path / "run", start("cpu"))


def _die(piece):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_check_ends_in_words(world, monkeypatch):
    monkeypatch.setattr(checking, "_check", _die)
    monkeypatch.setattr(checking, "get_context", lambda _: multiprocessing.get_context("fork"))
    with pytest.raises(WorkerError, match=r"ended by the system.*0 of 20 samples"):
        checking.check_shards(str(world / "test-*.tar"), processes=2)


def test_a_check_of_a_recipe_decodes_what_it_would_use_and_each_defect_is_listed_once(
    world, tmp_path
):
    import json

    from damage import copy_with_damage

    from crossloom.training.run import uses

    keys = copy_with_damage(world, tmp_path / "bad")
    recipe = tiny_recipe(tmp_path / "bad").located()
    seen = []
    report = checking.check(
        uses(recipe), tmp_path / "q.jsonl", lambda *x: seen.append(x), processes=1
    )
    lines = [json.loads(x) for x in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {x["key"]: x["kind"] for x in lines} == keys
    assert len(lines) == len(keys) == sum(report.defects.values())
    assert seen[-1] == (120, 120)  # two components read the 60 samples
    assert report.samples == 60
    assert all(x["shard"].endswith("train-000000.tar") for x in lines)
    # by their extensions alone, other things are wrong with them
    every = checking.check_shards(str(tmp_path / "bad" / "train-*.tar"), processes=1)
    assert dict(every.defects) == {"undecodable": 2, "not UTF-8": 1}


def test_check_compares_the_checksum_of_the_tar(world, tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes((world / "test-000000.tar").read_bytes())
    from crossloom.data_pipelines.shards import load_index

    load_index(path, checksums=True)
    assert checking.check_shards(str(path), processes=1).defects == {}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the padding, where no member is
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert dict(checking.check_shards(str(path), processes=1).defects) == {"checksum mismatch": 1}


def test_the_demo_world_is_without_defect(world):
    recipe = tiny_recipe(world).located()
    from crossloom.training.run import uses

    assert checking.check(uses(recipe), processes=1).defects == {}
    assert len(open_shards("train-*.tar", world)) == 3
