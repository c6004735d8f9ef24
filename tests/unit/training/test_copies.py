"""Batches copied ahead: what is queued on which stream, told by a pretended device."""

from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from crossloom.batch import Batch
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.copies import Copies
from crossloom.training.engine import Engine
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.run import make_model, make_stack


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors(getattr(value, f.name))
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)


@pytest.fixture
def stack(world):
    return make_stack(replace(tiny_recipe(world), fused=1, micro=3).located())


class Stream:
    """A stream that remembers what it was asked, in a log shared by all."""

    log: list
    current: "Stream"

    def __init__(self, device=None, name="side"):
        self.name = name

    def wait_stream(self, other):
        self.log.append(("wait", self.name, other.name))


@pytest.fixture
def pretended(monkeypatch):
    """A CUDA device whose memory is the host's."""
    main = Stream(name="main")
    Stream.log, Stream.current = [], main

    @contextmanager
    def on(stream):
        Stream.current = stream
        yield
        Stream.current = main

    to = Batch.to

    def copy(batch, device):
        Stream.log.append(("copy", Stream.current.name, batch.micro))
        assert torch.device(device).type == "cuda"
        return to(batch, "cpu")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(Batch, "to", copy)
    recorded = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda x, stream: recorded.append((id(x), stream.name))
    )
    return Stream.log, recorded


def test_a_batch_is_copied_aside_once_and_waited_for_by_the_device(stack, pretended):
    log, recorded = pretended
    copies = Copies(torch.device("cuda"))
    one, other = stack.micro(0), stack.micro(1)
    copies.begin(one)
    copies.begin(one)
    found = copies.take(one)
    copies.begin(other)
    assert log == [("copy", "side", (0,)), ("wait", "main", "side"), ("copy", "side", (1,))]
    # every tensor of the copy, and nothing else, is in use by the stream that computes
    assert sorted(recorded) == sorted((id(x), "main") for x in tensors(found))
    assert len(recorded) > 20
    assert found.keys == one.keys
    copies.take(other)
    copies.take(other)  # not announced: copied now
    assert log[3:] == [("wait", "main", "side"), ("copy", "side", (1,)), ("wait", "main", "side")]


def test_elsewhere_nothing_happens_ahead(stack, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", None)
    copies = Copies(torch.device("cpu"))
    batch = stack.micro(0)
    copies.begin(batch)
    found = copies.take(batch)
    for view in batch.views:
        for stream, here in batch.views[view].streams.items():
            there = found.views[view].streams[stream]
            assert isinstance(there.position, torch.Tensor)
            assert np.array_equal(here.position, there.position.numpy())


class Told:
    """Copies that say what they were asked, in order."""

    def __init__(self, log):
        self.log, self.copies = log, Copies(torch.device("cpu"))

    def begin(self, batch):
        self.log.append(("begin", *batch.micro))

    def take(self, batch):
        self.log.append(("take", *batch.micro))
        return self.copies.take(batch)


def test_the_next_pass_is_copied_while_this_one_runs(world, stack):
    recipe = replace(tiny_recipe(world), fused=1, micro=3).located()
    engine = Engine(make_model(recipe), recipe, start("cpu"))
    log: list = []
    engine.copies = Told(log)
    forward = engine.model.forward
    engine.model.forward = lambda batch: [log.append(("run", *batch.micro)), forward(batch)][1]
    batches = [stack.micro(n) for n in range(3)]
    counts = {o: sum(b.counts[o] for b in batches) for o in recipe.objectives}
    engine.expect(batches[0])
    engine.step(0, batches, counts)
    assert log == [
        ("begin", 0), ("take", 0), ("begin", 1), ("run", 0), ("take", 1), ("begin", 2),
        ("run", 1), ("take", 2), ("run", 2),
    ]  # fmt: skip


def test_the_loop_announces_a_step_before_processes_agree_on_it(world, tmp_path, monkeypatch):
    from crossloom.training import loop

    log = []
    counts, step = loop._Run._counts, Engine.step
    monkeypatch.setattr(Engine, "expect", lambda self, b: log.append(("expect", *b.micro)))
    monkeypatch.setattr(loop._Run, "_counts", lambda *a: [log.append(("agree",)), counts(*a)][1])
    monkeypatch.setattr(
        Engine, "step", lambda self, n, *a: [log.append(("step", n)), step(self, n, *a)][1]
    )
    train(replace(tiny_recipe(world), fused=1, steps=2), tmp_path / "run", start("cpu"))
    assert log == [
        ("expect", 0), ("agree",), ("step", 0), ("expect", 1),
        ("expect", 2), ("agree",), ("step", 1), ("expect", 3),
    ]  # fmt: skip
