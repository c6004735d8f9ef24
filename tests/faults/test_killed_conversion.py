"""A conversion killed at any moment and started again ends like one that nothing interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossloom.data_pipelines.shards import open_shards
from crossloom.data_pipelines.sources import cc100
from crossloom.data_pipelines.sources.common import SourceError
from crossloom.data_pipelines.world import write_world
from crossloom.data_pipelines.write import ShardError, ShardSet, ShardWriter, recover

CONVERT = """
import os, signal, sys
from pathlib import Path
from crossloom.data_pipelines.sources import cc100
at, renames = int(sys.argv[4]), 0
real = os.rename
def rename(a, b):
    global renames
    if renames == at:
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
    real(a, b)
os.rename = rename
cc100.convert(Path(sys.argv[1]), Path(sys.argv[2]), shard_size=10, overwrite=sys.argv[3] == "over")
"""


def convert(source, out, *options):
    return subprocess.run(
        [sys.executable, "-c", CONVERT, source, out, *map(str, options)]
    ).returncode


def files(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir())}


def corpus(path, documents, word="dog"):
    path.write_text("\n".join(f"A {word} of number {n}.\n" for n in range(documents)), "utf-8")
    return path


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return corpus(folder / "en.txt", 25)


def test_killed_while_it_writes(tmp_path, capsys):
    """By a real signal at a real moment: when two shards of many have been staged."""
    big = corpus(tmp_path / "en.txt", 60_000)
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", CONVERT, str(big), str(out), "", "-1"])
    until = time.monotonic() + 60
    while len(list(out.glob(".*.partial/*.tar"))) < 3 and time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (left,) = out.iterdir()
    assert left.name.endswith(".partial")
    with pytest.raises(ShardError, match="no such shards"):
        open_shards(str(out))  # nothing half-written can be taken for shards
    small = corpus(tmp_path / "sw.txt", 25)
    cc100.convert(small, out, shard_size=10)
    assert f"{left}: left by a conversion that was interrupted; removed" in capsys.readouterr().err
    cc100.convert(small, whole, shard_size=10)
    assert capsys.readouterr().err == ""
    assert files(out) == files(whole)


@pytest.mark.parametrize("at", range(4))
def test_killed_while_the_first_set_is_renamed_into_place(source, tmp_path, at):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert convert(source, out, "", at) == -signal.SIGKILL
    assert len(list(out.glob("*.tar"))) == at
    cc100.convert(source, out, shard_size=10)
    cc100.convert(source, whole, shard_size=10)
    assert files(out) == files(whole)


@pytest.mark.parametrize("at", [0, 5, 10, 12])
def test_killed_while_an_earlier_set_is_replaced(source, tmp_path, at):
    out, whole = tmp_path / "out", tmp_path / "whole"
    cc100.convert(corpus(tmp_path / "en.txt", 35, "cat"), out, shard_size=10)
    open_shards(str(out))  # with indexes and a summary, which go with their tars
    before = files(out)
    assert len(before) == 10
    assert convert(source, out, "over", at) == -signal.SIGKILL
    # without leave to replace it the earlier set is back, and stays
    with pytest.raises(SourceError, match="already holds shards"):
        cc100.convert(source, out, shard_size=10)
    assert files(out) == before
    assert convert(source, out, "over", at) == -signal.SIGKILL
    cc100.convert(source, out, shard_size=10, overwrite=True)
    cc100.convert(source, whole, shard_size=10)
    assert files(out) == files(whole)


def test_taking_back_may_itself_be_interrupted(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cc100.convert(corpus(tmp_path / "en.txt", 35, "cat"), out, shard_size=10)
    before, real = files(out), os.rename
    assert convert(source, out, "over", 7) == -signal.SIGKILL
    for steps in range(9):

        def rename(a, b, left=[steps]):  # noqa: B006
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(a, b)

        monkeypatch.setattr(os, "rename", rename)
        try:
            recover(out)
        except KeyboardInterrupt:
            continue
        break
    assert steps > 1
    assert files(out) == before


def test_who_is_still_writing_is_left_alone(tmp_path):
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("a", {"txt": "x"})
        recover(tmp_path)
        with ShardSet(tmp_path) as other:
            other.write("dev", "a", {"txt": "x"})
        (staging,) = (p for p in tmp_path.iterdir() if p.suffix == ".partial")
    assert sorted(files(tmp_path)) == ["dev-000000.tar", "train-000000.tar"]
    assert not staging.exists()


def test_a_world_whose_making_was_killed_is_made_again(tmp_path, monkeypatch):
    settings = {"dev": 2, "test": 2, "speech": 0, "processes": 1}
    write_world(tmp_path / "whole", examples=4, **settings)
    write_world(tmp_path / "out", examples=3, seed=1, **settings)
    real, left = os.replace, [4]

    def replace(a, b):
        if Path(b).parent == tmp_path / "out":
            left[0] -= 1
            if left[0] == 2:
                raise SystemExit
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(SystemExit):
        write_world(tmp_path / "out", examples=4, overwrite=True, **settings)
    monkeypatch.undo()
    # what is left does not pass for a world of either kind
    assert not (tmp_path / "out/world.json").exists()
    write_world(tmp_path / "out", examples=4, **settings)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
