"""Pieces of tensors on disk, and a run that goes on where they cannot be written."""

import errno
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossloom.testing.recipes import tiny_recipe
from crossloom.training import checkpoint
from crossloom.training.checkpoint import Piece
from crossloom.training.environment import Environment, start
from crossloom.training.loop import train
from crossloom.training.meters import read_journal
from crossloom.training.recipe import RecipeError
from crossloom.training.saver import Saver

CPU = Environment(torch.device("cpu"))


def cut(tensor, bounds):
    """Stretches of a tensor laid flat between bounds."""
    flat, edges = tensor.reshape(-1), [0, *sorted(bounds), tensor.numel()]
    shape = tuple(tensor.shape)
    return [Piece(flat[a:b], shape, a) for a, b in pairwise(edges)]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 5),
    saved=st.lists(st.integers(0, 35), max_size=4),
    wanted=st.lists(st.integers(0, 35), max_size=4),
)
def test_any_stretches_are_read_from_any_others(tmp_path_factory, rows, columns, saved, wanted):
    folder = tmp_path_factory.mktemp("pieces")
    tensor = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    size = tensor.numel()
    for rank, piece in enumerate(cut(tensor, [min(x, size) for x in saved])):
        checkpoint.write_part(folder, 7, rank, {"model/w": piece})
    found = checkpoint.load(checkpoint.commit(folder, 7, {}))
    assert torch.equal(found.whole("model/w"), tensor)
    for piece in cut(tensor, [min(x, size) for x in wanted]):
        mine = piece.beside(torch.full_like(piece.value, -1))
        found.fill("model/w", mine)
        assert torch.equal(mine.value, piece.value)


def test_what_does_not_fit_is_said(tmp_path):
    checkpoint.write_part(tmp_path, 1, 0, {"model/w": Piece.whole(torch.zeros(4, 3))})
    found = checkpoint.load(checkpoint.commit(tmp_path, 1, {}))
    with pytest.raises(ValueError, match=r"shape \(3, 4\) here, \(4, 3\) there"):
        found.fill("model/w", Piece.whole(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="no model/v"):
        found.whole("model/v")


@pytest.mark.parametrize(
    ("parts", "message"),
    [((0,), "lacks what lies from 5 to 12"), ((1,), "lacks what lies from 0 to 5"),
     ((0, 1, 1), "has twice what lies from 5 to 12")],
)  # fmt: skip
def test_what_is_not_the_whole_is_no_checkpoint(tmp_path, parts, message):
    pieces = cut(torch.zeros(4, 3), [5])
    for rank, part in enumerate(parts):
        checkpoint.write_part(tmp_path, 1, rank, {"model/w": pieces[part]})
    with pytest.raises(OSError, match=f"{message}; do all processes write to one folder"):
        checkpoint.commit(tmp_path, 1, {})
    assert checkpoint.checkpoints(tmp_path) == []


def test_more_than_the_whole_is_no_checkpoint(tmp_path):
    checkpoint.write_part(tmp_path, 1, 0, {"model/w": Piece(torch.zeros(12), (4, 2))})
    with pytest.raises(OSError, match=r"model/w .* from 12 to 8; do all processes"):
        checkpoint.commit(tmp_path, 1, {})


def test_a_tensor_that_only_a_missing_part_had_is_missed(tmp_path):
    checkpoint.write_part(tmp_path, 1, 0, {"model/v": Piece.whole(torch.zeros(3))})
    with pytest.raises(OSError, match="lacks model/w"):
        checkpoint.commit(tmp_path, 1, {}, ["model/v", "model/w"])


def test_a_checkpoint_without_a_part_is_refused(tmp_path):
    for step in (1, 2):
        for rank, piece in enumerate(cut(torch.zeros(4, 3), [5])):
            checkpoint.write_part(tmp_path, step, rank, {"model/w": piece})
        last = checkpoint.commit(tmp_path, step, {})
    manifest = json.loads((last / "manifest.json").read_text())
    del manifest["files"]["rank-00001.safetensors"]
    (last / "manifest.json").write_text(json.dumps(manifest))
    (last / "rank-00001.safetensors").unlink()
    found, (reason,) = checkpoint.newest(tmp_path)
    assert steps(tmp_path) == [1, 2]
    assert found == checkpoint.folder_of(tmp_path, 1)
    assert "model/w lacks what lies from 5 to 12" in reason


def test_what_does_not_belong_to_a_checkpoint_is_named(tmp_path):
    for step in (1, 2):
        checkpoint.write_part(tmp_path, step, 0, {"model/w": Piece.whole(torch.zeros(3))})
        last = checkpoint.commit(tmp_path, step, {})
    stray = last / "rank-00001.safetensors"
    stray.touch()
    with pytest.raises(checkpoint.CheckpointError, match=r"rank-00001\S+: not in the manifest"):
        checkpoint.verify(last)
    stray.unlink()
    checkpoint.verify(last)
    with pytest.raises(checkpoint.CheckpointError, match="of step 2, as the whole directory"):
        checkpoint.verify(last.rename(checkpoint.folder_of(tmp_path, 3)))


def test_a_checkpoint_of_an_earlier_version_is_refused_with_a_way_out(tmp_path):
    old = tmp_path / "step-000000001"
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps({"state.json": {"size": 1, "sha256": ""}}))
    with pytest.raises(checkpoint.CheckpointError, match=r"another version.*start="):
        checkpoint.load(old)


def begin(saver, step):
    saver.begin(step, {"model/w": Piece.whole(torch.full((3,), float(step)))}, {})


def steps(folder):
    return [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(folder)]


def test_the_newest_are_kept_and_some_for_good(tmp_path):
    saver = Saver(tmp_path, CPU, keep=2, keep_every=4)
    for step in range(1, 8):
        begin(saver, step)
    saver.finish()
    assert steps(tmp_path) == [4, 6, 7]


def test_a_checkpoint_holds_what_was_there_when_it_was_begun(tmp_path):
    weight = torch.ones(5)
    saver = Saver(tmp_path, CPU, keep=1)
    saver.begin(1, {"model/w": Piece.whole(weight)}, {})
    weight.zero_()
    saver.finish()
    assert checkpoint.load(tmp_path / "step-000000001").weights["w"].tolist() == [1] * 5


def test_it_is_there_only_when_all_processes_have_written(tmp_path):
    saver = Saver(tmp_path, Environment(torch.device("cpu"), rank=0, world=2), keep=1)
    saver.finish = lambda: None
    begin(saver, 1)
    saver._thread.join()
    saver.settle(1.0, 0.0)
    assert steps(tmp_path) == []
    saver.settle(2.0, 0.0)
    assert steps(tmp_path) == [1]
    begin(saver, 2)
    saver._thread.join()
    saver.settle(1.0, 1.0)
    assert steps(tmp_path) == [1]
    assert (saver.failed, list(tmp_path.glob(".*"))) == (1, [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_run_goes_on_where_a_checkpoint_cannot_be_written(
    world, tmp_path, monkeypatch, capsys, code
):
    whole = checkpoint.write_part

    def fails(folder, step, rank, pieces):
        if step == 4:
            (Path(folder) / f".step-{step:09d}.partial").mkdir(parents=True)
            raise OSError(code, "it does not work")
        whole(folder, step, rank, pieces)

    monkeypatch.setattr(checkpoint, "write_part", fails)
    recipe = replace(tiny_recipe(world), steps=6, save_every=2, keep=0)
    train(recipe, tmp_path, start("cpu"))
    assert steps(tmp_path / "checkpoints") == [2, 6]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    said = capsys.readouterr().out
    assert "the checkpoint of step 4 cannot be written (it does not work)" in said
    lines = read_journal(tmp_path / "metrics.jsonl")
    assert [x["saves_failed"] for x in lines][-1] == 1
    assert lines[2]["seconds_saving"] > 0


def test_a_run_of_which_nothing_can_be_used_does_not_begin_anew(world, tmp_path):
    recipe = replace(tiny_recipe(world), steps=1)
    train(recipe, tmp_path, start("cpu"))
    (tmp_path / "checkpoints" / "step-000000001" / "state.json").unlink()
    with pytest.raises(RecipeError, match=r"state\.json: missing; remove .*checkpoints to begin"):
        train(recipe, tmp_path, start("cpu"), resume=True)


def test_a_file_that_cannot_be_written_is_named_itself(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        checkpoint.write_atomically(tmp_path / "gone" / "told.json", "{}")
    assert refused.value.filename == str(tmp_path / "gone" / "told.json")
    (tmp_path / "told.json").mkdir()
    with pytest.raises(IsADirectoryError):
        checkpoint.write_atomically(tmp_path / "told.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["told.json"]
