"""Fixtures shared by all tests: a tiny world, its vocabulary, a tiny recipe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.tokenizer import train
from crossloom.data_pipelines.world import write_world

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 + 20 + 20 scenes, a few spoken captions, and a vocabulary."""
    out = tmp_path_factory.mktemp("world")
    write_world(out, examples=60, dev=20, test=20, speech=10, clips=20, shard_size=25, processes=1)
    train(open_shards("train-*.tar", out), out / "tokenizer.model", size=600, coverage=1.0)
    return out
