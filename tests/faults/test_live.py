"""Streams that cannot be indexed: read as they come."""

import io
import json
import sys
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from crossloom.data_pipelines import live
from crossloom.data_pipelines.live import samples
from crossloom.data_pipelines.shards import ShardError, open_shards
from crossloom.testing.recipes import tiny_recipe
from crossloom.training.environment import start
from crossloom.training.loop import train
from crossloom.training.recipe import RecipeError
from crossloom.training.run import make_stack

PRODUCER = """
import io, json, os, sys, tarfile
own, all = int(os.environ["CROSSLOOM_READER"]), int(os.environ["CROSSLOOM_READERS"])
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
    number = own
    while True:
        text = {"texts": {"en": ["number %d of many" % number], "de": ["Nummer %d" % number]}}
        data = json.dumps(text).encode()
        if number % 10 == 7:
            data = b"\\xff" + data
        info = tarfile.TarInfo("%06d.json" % number)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        number += all
"""


@pytest.fixture
def recipe(world, tmp_path):
    (tmp_path / "produce.py").write_text(PRODUCER)
    base = tiny_recipe(world)
    part = base.mixture["translations"]
    return replace(
        base,
        objectives={"tlm": base.objectives["tlm"]},
        mixture={"live": replace(part, shards=f"live:{sys.executable} {tmp_path / 'produce.py'}")},
        bad_share=0.5,
    )


def test_a_live_producer_trains_in_its_order_and_says_what_resume_means(recipe, tmp_path, capsys):
    stack = make_stack(recipe.located())
    keys = [k for n in range(5) for k in stack.micro(n).keys]
    numbers = [int(k.split("/")[1][:6]) for k in keys]
    assert numbers == [n for n in range(20) if n % 10 != 7]
    train(replace(recipe, workers=2), tmp_path / "run", start("cpu"))
    assert "live: a live stream" in (said := capsys.readouterr().out)
    assert "resumed run is approximate" in said
    lines = [json.loads(x) for x in (tmp_path / "run/quarantine.jsonl").read_text().splitlines()]
    assert {x["kind"] for x in lines} == {"not UTF-8"}
    assert {int(x["key"]) % 10 for x in lines} == {7}
    # two workers had a share each
    assert {int(x["key"]) % 2 for x in lines} == {1}


def test_streams_that_end_are_started_again_by_turns(recipe, world):
    paths = [world / f"train-00000{n}.tar" for n in (0, 2)]
    part = replace(recipe.mixture["live"], shards=tuple(f"live:cat {p}" for p in paths))
    stack = make_stack(replace(recipe, mixture={"live": part}).located())
    keys = [key for path in paths for key, _, _ in samples(f"cat {path}")]
    turns = 4  # more than there may be without a sample
    found = [k for n in range(turns * len(keys) // recipe.examples) for k in stack.micro(n).keys]
    assert [k.split("/")[1].split("@")[0] for k in found] == turns * keys


def test_a_member_met_again_begins_another_sample(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.json", "1.txt", "1.json", "2.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    found = [(key, set(members)) for key, members, _ in samples(f"cat {tmp_path / 'a.tar'}")]
    assert found == [("1", {"json", "txt"}), ("1", {"json"}), ("2", {"txt"})]


def test_every_loader_process_has_a_number_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "5-of-6.txt").touch()
    command = f"tar -C {tmp_path} -c $CROSSLOOM_READER-of-$CROSSLOOM_READERS.txt"
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(live, "get_worker_info", lambda: SimpleNamespace(id=2, num_workers=3))
    assert [key for key, _, _ in samples(command)] == ["5-of-6"]


def test_a_stream_that_is_cut_ends_with_a_fault(world):
    path = world / "train-000002.tar"
    keys = [key for key, _, _ in samples(f"cat {path}")]
    assert len(keys) == 10
    found = list(samples(f"head -c 9000 {path}"))
    assert found[-1][2][0] == "truncated shard"
    assert [k for k, _, fault in found[:-1]] == keys[: len(found) - 1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("true", "ended 3 times without a sample"),
        ("echo no such thing >&2; false", "ended 3 times without a sample"),
        ("sleep 20", "wrote nothing for"),
    ],
)
def test_a_stream_that_brings_nothing_ends_in_words(recipe, monkeypatch, command, message):
    monkeypatch.setenv("CROSSLOOM_PATIENCE", "0.5")
    part = replace(recipe.mixture["live"], shards=f"live:{command}")
    stack = make_stack(replace(recipe, mixture={"live": part}).located())
    with pytest.raises(ShardError, match=message):
        [stack.micro(number) for number in range(3)]


def test_what_needs_an_index_says_so(recipe, world):
    with pytest.raises(ShardError, match="a live stream can be trained on, and nothing else"):
        open_shards("live:cat x")
    part = replace(recipe.mixture["live"], shards=("live:cat x", "train-*.tar"))
    with pytest.raises((ShardError, RecipeError), match="cannot be one component"):
        make_stack(replace(recipe, mixture={"live": part}).located())
